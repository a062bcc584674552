//! What `up` shows while it runs: children's logs, its own messages, a bar while weights load.
//!
//! All of it goes to standard error; standard output has the endpoints alone.

use indicatif::{ProgressBar, ProgressStyle};
use millrace_engine::LoadProgress;
use millrace_worker::notice::Notice;

use super::child::{Event, Exit};
use crate::style::Style;

pub struct Screen {
    names: Vec<String>,
    style: Style,
    /// Logs were asked for.
    verbose: bool,
    /// Bytes read and to be read, a child.
    loading: Vec<LoadProgress>,
    bar: ProgressBar,
    /// Where there is no terminal: the quarter last printed.
    quarter: u64,
    /// The last error line of each child, shown when it fails at the start.
    errors: Vec<Option<String>>,
}

impl Screen {
    pub fn new(names: &[String], verbose: bool) -> Screen {
        let bar = ProgressBar::new(0); // draws to standard error, and only if that is a terminal
        if let Ok(style) =
            ProgressStyle::with_template("loading weights {wide_bar} {bytes} of {total_bytes}")
        {
            bar.set_style(style);
        }
        Screen {
            names: names.to_vec(),
            style: Style::of(&std::io::stderr()),
            verbose,
            loading: vec![
                LoadProgress {
                    bytes_done: 0,
                    bytes_total: 0
                };
                names.len()
            ],
            bar,
            quarter: 0,
            errors: vec![None; names.len()],
        }
    }

    /// A message of `up` itself.
    pub fn say(&self, text: &str) {
        self.line(&format!(
            "{}millrace{}: {text}",
            self.style.bold(),
            self.style.reset()
        ));
    }

    /// Weights are loaded; the bar makes room for the rest.
    pub fn loaded(&self) {
        self.bar.finish_and_clear();
    }

    /// While the deployment starts: an error is kept for the one line that says why it failed.
    pub fn starting(&mut self, child: usize, event: &Event) {
        match event {
            Event::Log(line) if line.starts_with("error: ") => {
                self.errors[child] = line.strip_prefix("error: ").map(str::to_owned);
            }
            Event::Log(line) => self.log(child, line),
            Event::Notice(Notice::Loading(progress)) => self.progress(child, *progress),
            _ => {}
        }
    }

    /// Why a child that ended at the start did so.
    pub fn failure(&self, child: usize, exit: &Exit) -> String {
        let name = &self.names[child];
        match &self.errors[child] {
            Some(error) => format!("{name}: {error}"),
            None => format!("{name} {}", exit.how),
        }
    }

    /// While it runs: crashes and recoveries are told.
    pub fn running(&mut self, child: usize, event: Event) {
        let name = &self.names[child];
        match event {
            Event::Log(line) => self.log(child, &line),
            Event::Exited(Exit {
                how,
                restart_in: Some(delay),
            }) => {
                self.say(&format!(
                    "{name} {how}; starting it again in {:.1} s",
                    delay.as_secs_f64()
                ));
            }
            Event::Notice(Notice::Ready) => self.say(&format!("{name} is back")),
            _ => {}
        }
    }

    /// While it stops: what the router logs. Workers complain that their router is gone; that is the
    /// plan, and shown only to who asked for logs.
    pub fn stopping(&mut self, child: usize, event: Event) {
        match event {
            Event::Log(line) if child == 0 || self.verbose => self.log(child, &line),
            _ => {}
        }
    }

    fn log(&self, child: usize, line: &str) {
        let width = self.names.iter().map(String::len).max().unwrap_or_default();
        let (colour, reset) = (self.style.colour(child), self.style.reset());
        self.line(&format!(
            "{colour}{:width$} |{reset} {line}",
            self.names[child]
        ));
    }

    fn progress(&mut self, child: usize, progress: LoadProgress) {
        self.loading[child] = progress;
        let done: u64 = self.loading.iter().map(|p| p.bytes_done).sum();
        let total: u64 = self.loading.iter().map(|p| p.bytes_total).sum();
        self.bar.set_length(total);
        self.bar.set_position(done);
        let quarter = (done * 4).checked_div(total).unwrap_or_default();
        if self.bar.is_hidden() && quarter > self.quarter {
            self.quarter = quarter;
            self.say(&format!("loading weights: {} %", quarter * 25));
        }
    }

    fn line(&self, text: &str) {
        // Above the bar while there is one.
        self.bar.suspend(|| eprintln!("{text}"));
    }
}
