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

use clap::Args;
use millrace_router::experts::view::ExpertsView;

use crate::{
    client::{self, HttpArgs},
    errors::Outcome,
    style::Style,
    terminal,
};

const BETWEEN: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Args)]
pub struct ExpertsArgs {
    #[command(flatten)]
    pub router: HttpArgs,
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
        width: terminal::size().map_or(heat::DEFAULT_WIDTH, |size| size.columns),
    };
    loop {
        let body = client::look(&args.router, "/experts").await?;
        if args.json {
            out.write_all(&body)?;
            out.write_all(b"\n")?;
            return Ok(Outcome::Done);
        }
        let view: ExpertsView = client::read(&args.router.http, &body)?;
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
