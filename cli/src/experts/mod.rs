//! `millrace experts`: what the router's `GET /experts` says of expert-parallel groups, to look at.
//!
//! ```text
//! GET /experts -> view -> render (tables, history) + heat (who is loaded how much)
//! ```

mod heat;
mod render;

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use millrace_router::experts::view::ExpertsView;

use crate::{
    client::{self, ClientArgs},
    errors::Outcome,
    style::Style,
};

/// How long the router may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
const BETWEEN: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Args)]
pub struct ExpertsArgs {
    /// Where the router's HTTP API listens
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:8000",
        env = "MILLRACE_HTTP"
    )]
    pub http: String,
    #[command(flatten)]
    pub client: ClientArgs,
    /// Show it anew every second, until Ctrl-C
    #[arg(long, conflicts_with = "json")]
    pub watch: bool,
    /// Print the router's JSON as it came
    #[arg(long)]
    pub json: bool,
}

pub fn main(args: ExpertsArgs) -> anyhow::Result<Outcome> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run(args))
}

async fn run(args: ExpertsArgs) -> anyhow::Result<Outcome> {
    let mut out = std::io::stdout();
    let look = heat::Look {
        style: Style::of(&out),
        width: terminal_width().unwrap_or(heat::DEFAULT_WIDTH),
    };
    loop {
        let body = fetch(&args.http, &args.client).await?;
        if args.json {
            out.write_all(&body)?;
            out.write_all(b"\n")?;
            return Ok(Outcome::Done);
        }
        let view: ExpertsView = serde_json::from_slice(&body).with_context(|| {
            format!(
                "what {} answered is not of this version of Millrace",
                args.http
            )
        })?;
        if args.watch && out.is_terminal() {
            out.write_all(b"\x1b[H\x1b[2J")?;
        }
        out.write_all(render::text(&view, look).as_bytes())?;
        out.flush()?;
        if !args.watch {
            return Ok(Outcome::Done);
        }
        tokio::time::sleep(BETWEEN).await;
    }
}

async fn fetch(address: &str, args: &ClientArgs) -> anyhow::Result<Vec<u8>> {
    let answer = tokio::time::timeout(PATIENCE, client::get(address, "/experts", args))
        .await
        .with_context(|| {
            format!(
                "{address} did not answer within {} s; is it a router's --http address?",
                PATIENCE.as_secs()
            )
        })??;
    if answer.status == 401 {
        bail!("{address} asks for an API key: pass one that it knows with --api-key KEY");
    }
    if answer.status != 200 {
        bail!(
            "{address} answered {} to /experts; pass a router's --http HOST:PORT",
            answer.status
        );
    }
    Ok(answer.body)
}

/// `None` where there is no terminal.
fn terminal_width() -> Option<usize> {
    // SAFETY: winsize is plain numbers, for which all zeros are a value.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes one winsize where it is pointed to, and fails where there is no terminal.
    let answer = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &mut size) };
    (answer == 0 && size.ws_col > 0).then_some(size.ws_col.into())
}
