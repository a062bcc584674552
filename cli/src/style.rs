//! Terminal styling: ANSI codes where a person looks, nothing in pipes and files.

use std::io::IsTerminal;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Plain,
    Ansi,
}

impl Style {
    /// For text written to `stream`. NO_COLOR and TERM=dumb turn styling off.
    pub fn of(stream: &impl IsTerminal) -> Style {
        let off = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        if stream.is_terminal() && !off {
            Style::Ansi
        } else {
            Style::Plain
        }
    }

    pub fn dim(self) -> &'static str {
        self.code("\x1b[2m")
    }

    pub fn bold(self) -> &'static str {
        self.code("\x1b[1m")
    }

    /// One of six colours, the same for the same `index`.
    pub fn colour(self, index: usize) -> &'static str {
        const COLOURS: [&str; 6] = [
            "\x1b[36m", "\x1b[33m", "\x1b[32m", "\x1b[35m", "\x1b[34m", "\x1b[31m",
        ];
        self.code(COLOURS[index % COLOURS.len()])
    }

    pub fn reset(self) -> &'static str {
        self.code("\x1b[0m")
    }

    fn code(self, code: &'static str) -> &'static str {
        match self {
            Style::Plain => "",
            Style::Ansi => code,
        }
    }
}
