//! One streamed answer, printed as it comes.

use std::io::{self, Write};

use millrace_proto::inference::v1::ChatResponse;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::View;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Complete,
    /// By Ctrl-C. The stream was dropped, which cancels the request on the server.
    Cancelled,
}

#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error("the answer could not be printed: {0}")]
    Output(#[from] io::Error),
    #[error("{}", .0.message())]
    Stream(#[from] Status),
}

/// Prints thinking dimmed (or not at all) and the answer plainly; gives the answer's text.
///
/// # Errors
/// The stream ended with an error, or standard output could not be written.
pub async fn print(
    mut stream: impl Stream<Item = Result<ChatResponse, Status>> + Unpin,
    view: View,
) -> Result<(Answer, String), AnswerError> {
    let mut page = Page {
        out: io::stdout(),
        view,
        thought: false,
        text: String::new(),
    };
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        let next = tokio::select! {
            next = stream.next() => next,
            _ = &mut interrupted => {
                page.end()?;
                return Ok((Answer::Cancelled, page.text));
            }
        };
        match next {
            Some(Ok(response)) => page.add(&response)?,
            Some(Err(status)) => {
                page.end()?;
                return Err(status.into());
            }
            None => {
                page.end()?;
                return Ok((Answer::Complete, page.text));
            }
        }
    }
}

struct Page<W> {
    out: W,
    view: View,
    /// Thinking was printed last.
    thought: bool,
    /// The answer so far.
    text: String,
}

impl<W: Write> Page<W> {
    fn add(&mut self, response: &ChatResponse) -> io::Result<()> {
        if self.view.thinking && !response.reasoning_content.is_empty() {
            let style = self.view.style;
            write!(
                self.out,
                "{}{}{}",
                style.dim(),
                response.reasoning_content,
                style.reset()
            )?;
            self.thought = true;
        }
        // Blank lines between thinking and answer are the page's to set.
        let content = match self.text.is_empty() {
            true => response.content.trim_start(),
            false => response.content.as_str(),
        };
        if !content.is_empty() {
            if std::mem::take(&mut self.thought) {
                write!(self.out, "\n\n")?;
            }
            self.out.write_all(content.as_bytes())?;
            self.text.push_str(content);
        }
        self.out.flush()
    }

    fn end(&mut self) -> io::Result<()> {
        writeln!(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::style::Style;

    fn page(view: View) -> Page<Vec<u8>> {
        Page {
            out: Vec::new(),
            view,
            thought: false,
            text: String::new(),
        }
    }

    fn response(reasoning: &str, content: &str) -> ChatResponse {
        ChatResponse {
            reasoning_content: reasoning.into(),
            content: content.into(),
            ..ChatResponse::default()
        }
    }

    fn shown(view: View) -> (String, String) {
        let mut page = page(view);
        for (reasoning, content) in [
            ("2 + ", ""),
            ("2", ""),
            ("", "\n\n"),
            ("", "4"),
            ("", " !\n"),
        ] {
            page.add(&response(reasoning, content)).unwrap();
        }
        page.end().unwrap();
        (String::from_utf8(page.out).unwrap(), page.text)
    }

    #[test]
    fn thinking_is_dim_and_the_answer_plain() {
        let (out, text) = shown(View {
            style: Style::Ansi,
            thinking: true,
        });
        assert_eq!(out, "\x1b[2m2 + \x1b[0m\x1b[2m2\x1b[0m\n\n4 !\n\n");
        assert_eq!(text, "4 !\n");
    }

    #[test]
    fn a_pipe_gets_the_answer_alone() {
        assert_eq!(
            shown(View {
                style: Style::Plain,
                thinking: false
            })
            .0,
            "4 !\n\n"
        );
    }
}
