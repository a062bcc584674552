//! `millrace chat`: a conversation in the terminal, over the public gRPC API.
//!
//! ```text
//! repl (lines, /commands)  or  one question (argument, piped input)
//!   -> session (what was said so far) -> answer (one stream: thinking dimmed, answer plain)
//! ```

mod answer;
mod repl;
mod session;

use std::io::{IsTerminal, Read};

use anyhow::{Context, bail};
use clap::Args;
use millrace_proto::inference::v1::SamplingParams;

use self::{answer::Answer, session::Session};
use crate::{
    client::ClientArgs,
    errors::{INTERRUPTED, Outcome},
    style::Style,
};

#[derive(Debug, Clone, Args)]
pub struct ChatArgs {
    /// A question; without one, and with a terminal, a conversation starts. Piped input is a question too
    pub question: Vec<String>,
    /// Where the router's gRPC API listens
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:9000",
        env = "MILLRACE_GRPC"
    )]
    pub grpc: String,
    #[command(flatten)]
    pub client: ClientArgs,
    /// Which model [default: the only one served]
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub model: String,
    /// A system message before everything else
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// 0 is greedy [default: the model's recommendation]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// Most tokens of an answer, thinking included
    #[arg(long, value_name = "TOKENS")]
    pub max_tokens: Option<u32>,
    /// The same seed gives the same answers
    #[arg(long)]
    pub seed: Option<u64>,
    /// Do not show what the model thinks (never shown where the output is no terminal)
    #[arg(long)]
    pub hide_thinking: bool,
}

pub fn main(args: ChatArgs) -> anyhow::Result<Outcome> {
    // A worker thread keeps the connection alive while the user types.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let mut session = runtime.block_on(Session::connect(&args))?;
    let view = View {
        style: Style::of(&std::io::stdout()),
        thinking: std::io::stdout().is_terminal() && !args.hide_thinking,
    };
    match question(&args)? {
        None => repl::run(&runtime, &mut session, view),
        Some(question) => match runtime.block_on(session.ask(&question, view))? {
            Answer::Complete => Ok(Outcome::Done),
            Answer::Cancelled => Ok(Outcome::Code(INTERRUPTED)),
        },
    }
}

/// How answers are shown.
#[derive(Debug, Clone, Copy)]
pub struct View {
    pub style: Style,
    pub thinking: bool,
}

/// The one question to answer, or `None` for a conversation.
fn question(args: &ChatArgs) -> anyhow::Result<Option<String>> {
    let text = if !args.question.is_empty() {
        args.question.join(" ")
    } else if std::io::stdin().is_terminal() {
        return Ok(None);
    } else {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("standard input is not UTF-8 text")?;
        text
    };
    match text.trim() {
        "" => bail!("the question is empty"),
        text => Ok(Some(text.to_owned())),
    }
}

fn sampling(args: &ChatArgs) -> SamplingParams {
    SamplingParams {
        temperature: args.temperature,
        max_tokens: args.max_tokens,
        seed: args.seed,
        ..SamplingParams::default()
    }
}
