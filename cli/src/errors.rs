//! From errors to what a terminal and a supervisor see.

use std::process::ExitCode;

/// Stopped by a second Ctrl-C: 128 + SIGINT, as shells count.
pub const INTERRUPTED: u8 = 130;

/// How a command ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// With this exit code; whatever there was to say has been said.
    Code(u8),
}

/// Prints an error as one line, causes included, and gives the exit code: 0, an outcome's own, or 1.
pub fn exit_code(result: anyhow::Result<Outcome>) -> ExitCode {
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Code(code)) => ExitCode::from(code),
        Err(error) => {
            // `up` shows a failed child's last line: keep it to one.
            eprintln!("error: {}", one_line(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
