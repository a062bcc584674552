//! From timelines to the printed figures. Pure.

use std::{fmt::Write, time::Duration};

use super::load::{LoadArgs, Timeline};

/// The table that `millrace bench` prints.
pub fn text(args: &LoadArgs, timelines: &[Timeline], wall: Duration) -> String {
    let tokens: usize = timelines.iter().map(Timeline::tokens).sum();
    let prompt_tokens: usize = timelines.iter().map(|one| one.prompt_tokens).sum();
    let pace = match args.rate {
        Some(rate) => format!("{rate} a second"),
        None => format!("{} at a time", args.concurrency),
    };
    let mut out = format!(
        "{} requests, {pace}, {} prompt tokens ({} shared), {} output tokens: {:.2} s\n\
         output  {:.1} tokens/s\n\
         input   {:.1} tokens/s\n",
        timelines.len(),
        args.prompt_tokens,
        args.shared_tokens.min(args.prompt_tokens.least),
        args.output_tokens,
        wall.as_secs_f64(),
        tokens as f64 / wall.as_secs_f64(),
        prompt_tokens as f64 / wall.as_secs_f64(),
    );
    let rows = [
        (
            "time to first token",
            timelines.iter().filter_map(Timeline::first).collect(),
        ),
        (
            "inter-token latency",
            timelines.iter().filter_map(Timeline::between).collect(),
        ),
        (
            "whole request",
            timelines
                .iter()
                .filter_map(Timeline::last)
                .collect::<Vec<_>>(),
        ),
    ];
    let _ = writeln!(
        out,
        "{:<20} {:>9} {:>9} {:>9}   ms",
        "", "p50", "p90", "p99"
    );
    for (name, mut values) in rows {
        values.sort();
        let _ = write!(out, "{name:<20}");
        for percent in [50, 90, 99] {
            let _ = write!(
                out,
                " {:>9.2}",
                percentile(&values, percent).as_secs_f64() * 1e3
            );
        }
        out.push('\n');
    }
    out
}

/// The smallest value that `percent` % of `sorted` do not exceed (nearest rank); zero of nothing.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

impl Timeline {
    /// What `--record` writes. `itl` is null for an answer of one message.
    pub fn to_json(&self) -> serde_json::Value {
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        serde_json::json!({
            "at": self.began.as_secs_f64(),
            "prompt": self.prompt_tokens,
            "output": self.tokens(),
            "ttft": seconds(self.first()),
            "itl": seconds(self.between()),
            "whole": seconds(self.last()),
        })
    }

    fn tokens(&self) -> usize {
        self.arrivals.iter().map(|(_, tokens)| tokens).sum()
    }

    fn first(&self) -> Option<Duration> {
        self.arrivals.first().map(|(time, _)| *time)
    }

    fn last(&self) -> Option<Duration> {
        self.arrivals.last().map(|(time, _)| *time)
    }

    /// The mean time between tokens after the first message, which may carry several tokens: a request
    /// whose drafts are accepted gets two at a time.
    fn between(&self) -> Option<Duration> {
        let later = self.tokens() - self.arrivals.first()?.1;
        let span = self.last()? - self.first()?;
        (later > 0).then(|| span / later as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let values: Vec<Duration> = (1..=10).map(Duration::from_millis).collect();
        assert_eq!(percentile(&values, 50), Duration::from_millis(5));
        assert_eq!(percentile(&values, 90), Duration::from_millis(9));
        assert_eq!(percentile(&values, 99), Duration::from_millis(10));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }

    #[test]
    fn a_pair_of_tokens_counts_as_two_gaps() {
        let ms = Duration::from_millis;
        let timeline = Timeline {
            arrivals: vec![(ms(10), 1), (ms(20), 2), (ms(30), 2)],
            ..Timeline::default()
        };
        assert_eq!(timeline.first(), Some(ms(10)));
        assert_eq!(timeline.between(), Some(ms(5)));
        assert_eq!(
            Timeline {
                arrivals: vec![(ms(10), 1)],
                ..Timeline::default()
            }
            .between(),
            None
        );
    }
}
