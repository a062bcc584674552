//! The conversation loop: lines, commands, and what Ctrl-C and Ctrl-D mean.

use rustyline::{DefaultEditor, error::ReadlineError};
use tokio::runtime::Runtime;

use super::{View, answer::Answer, session::Session};
use crate::errors::Outcome;

const HELP: &str = "\
/reset   forget the conversation
/help    this
/exit    leave (or Ctrl-D)
Ctrl-C   stop the answer that is being written";

pub fn run(runtime: &Runtime, session: &mut Session, view: View) -> anyhow::Result<Outcome> {
    let mut editor = DefaultEditor::new()?;
    println!(
        "{}/help lists commands, Ctrl-D leaves{}",
        view.style.dim(),
        view.style.reset()
    );
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Eof) => return Ok(Outcome::Done),
            // With nothing to cancel it clears the line, as shells do.
            Err(ReadlineError::Interrupted) => continue,
            Err(error) => return Err(error.into()),
        };
        let line = line.trim();
        if !line.is_empty() {
            editor.add_history_entry(line)?;
        }
        match line {
            "" => {}
            "/exit" | "/quit" => return Ok(Outcome::Done),
            "/help" => println!("{HELP}"),
            "/reset" => {
                session.reset();
                println!("the conversation was forgotten");
            }
            command if is_command(command) => {
                println!("unknown command {command}; /help lists them")
            }
            question => match runtime.block_on(session.ask(question, view)) {
                Ok(Answer::Complete) => {}
                Ok(Answer::Cancelled) => {
                    println!("{}(stopped){}", view.style.dim(), view.style.reset())
                }
                // The session outlives a failed turn: workers may come back.
                Err(error) => eprintln!("error: {error}"),
            },
        }
    }
}

/// One word after a slash; `/etc/hosts is ...` is a question.
fn is_command(line: &str) -> bool {
    line.strip_prefix('/')
        .is_some_and(|word| !word.is_empty() && word.chars().all(char::is_alphabetic))
}
