//! `millrace top`: how busy a deployment is and how long its answers take, as one of its routers sees it.
//!
//! ```text
//! GET /fleet, once a second ─▶ window (two sums to rates and quantiles) ─▶ render (text)
//! ```
//!
//! One connection to one router's HTTP port is all it needs, so it works over a port-forward.

mod render;
mod window;

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use clap::Args;
use millrace_router::overview::view::FleetAnswer;

use crate::{
    client::{self, HttpArgs},
    errors::Outcome,
    style::Style,
    terminal,
};
use window::Window;

const BETWEEN: Duration = Duration::from_secs(1);
/// Another screen than the shell's, and back.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
const LEAVE: &[u8] = b"\x1b[?25h\x1b[?1049l";
/// From the upper left corner on, over what is there: a screen that is cleared first flickers.
const HOME: &str = "\x1b[H";
const REST_OF_LINE: &str = "\x1b[K";
const REST_OF_SCREEN: &str = "\x1b[J";

#[derive(Debug, Clone, Args)]
pub struct TopArgs {
    #[command(flatten)]
    pub router: HttpArgs,
    /// Over how long rates and quantiles are taken
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub window: u64,
    /// Print it once, of all that came in since the router started
    #[arg(long)]
    pub once: bool,
    /// Print the router's JSON as it came
    #[arg(long, conflicts_with = "once")]
    pub json: bool,
}

pub fn main(args: TopArgs) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(args))
}

async fn run(args: TopArgs) -> anyhow::Result<Outcome> {
    let mut out = std::io::stdout();
    if args.json {
        out.write_all(&client::look(&args.router, "/fleet").await?)?;
        out.write_all(b"\n")?;
        return Ok(Outcome::Done);
    }
    let style = Style::of(&out);
    if args.once || !out.is_terminal() {
        let answer = fetch(&args).await?;
        let rates = Window::whole(&answer.traffic);
        let text = render::text(&args.router.http, &answer, &rates, style, usize::MAX);
        out.write_all(text.as_bytes())?;
        return Ok(Outcome::Done);
    }
    out.write_all(ENTER)?;
    let mut screen = std::io::stdout();
    let ended = tokio::select! {
        ended = watch(&args, style, &mut screen) => ended,
        stopped = tokio::signal::ctrl_c() => stopped.map_err(Into::into),
    };
    out.write_all(LEAVE)?;
    out.flush()?;
    ended.map(|()| Outcome::Done)
}

/// Draws it anew each second. A router that does not answer for a while is waited for, since a
/// rollout or a broken port-forward is no reason to look away.
async fn watch(args: &TopArgs, style: Style, out: &mut impl Write) -> anyhow::Result<()> {
    // An address that is wrong from the start is an error at once.
    let mut answer = fetch(args).await?;
    let mut window = Window::new(Duration::from_secs(args.window));
    let mut silent = None;
    loop {
        let rates = window.push(answer.traffic.clone());
        let rows = terminal::size().map_or(usize::MAX, |size| size.rows);
        let mut text = match &silent {
            Some(error) => format!("{}no answer: {error:#}{}\n", style.bold(), style.reset()),
            None => String::new(),
        };
        let taken = text.lines().count();
        text += &render::text(
            &args.router.http,
            &answer,
            &rates,
            style,
            rows - taken.min(rows),
        );
        draw(out, &text, rows)?;
        tokio::time::sleep(BETWEEN).await;
        match fetch(args).await {
            Ok(new) => (answer, silent) = (new, None),
            Err(error) => silent = Some(error),
        }
    }
}

fn draw(out: &mut impl Write, text: &str, rows: usize) -> std::io::Result<()> {
    let mut screen = HOME.to_owned();
    for (at, line) in text.lines().take(rows).enumerate() {
        if at > 0 {
            screen.push_str("\r\n");
        }
        screen.push_str(line);
        screen.push_str(REST_OF_LINE);
    }
    screen.push_str(REST_OF_SCREEN);
    out.write_all(screen.as_bytes())?;
    out.flush()
}

async fn fetch(args: &TopArgs) -> anyhow::Result<FleetAnswer> {
    let body = client::look(&args.router, "/fleet").await?;
    client::read(&args.router.http, &body)
}
