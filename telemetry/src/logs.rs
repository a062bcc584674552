//! Structured logs on standard error, for people or for machines.
//!
//! Ids are fields of spans, so that every line below a span carries them: a worker's `run` is in a
//! span with `worker` and `role`, each request in one with `request`. In the JSON form they are
//! under `spans`.

use std::{fmt, str::FromStr};

use tracing_subscriber::{EnvFilter, util::TryInitError};
use tracing_subscriber::{layer::SubscriberExt as _, util::SubscriberInitExt as _};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One line an event, coloured on a terminal.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// The names the command line takes.
impl FromStr for LogFormat {
    type Err = LogError;

    fn from_str(name: &str) -> Result<LogFormat, LogError> {
        match name {
            "human" => Ok(LogFormat::Human),
            "json" => Ok(LogFormat::Json),
            other => Err(LogError::Format(other.to_string())),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LogFormat::Human => "human",
            LogFormat::Json => "json",
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("log format `{0}` is not known; use `human` or `json`")]
    Format(String),
    #[error("RUST_LOG is not a log filter: {0}; an example: RUST_LOG=info,millrace_decode=debug")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("logging was already set up in this process")]
    Twice(#[from] TryInitError),
}

/// Starts logging for the whole process. `RUST_LOG` chooses what is shown; without it, `info`.
pub fn init(format: LogFormat) -> Result<(), LogError> {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(directives) if !directives.trim().is_empty() => EnvFilter::try_new(directives)?,
        _ => EnvFilter::new("info"),
    };
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Human => {
            use std::io::IsTerminal as _;
            let colour = std::io::stderr().is_terminal();
            registry.with(layer.with_ansi(colour)).try_init()?;
        }
        LogFormat::Json => {
            // The list of spans already holds the innermost one.
            let layer = layer.json().flatten_event(true).with_current_span(false);
            registry.with(layer).try_init()?;
        }
    }
    Ok(())
}
