//! What came of a run.

pub mod markdown;
mod runs;
pub mod svg;
mod verdict;

use std::fmt::Write;

use millrace_autoscaler::ByRole;
use serde::{Deserialize, Serialize};

use crate::clock::{Nanos, seconds};
use crate::policy::PolicyName;
use crate::scenario::{Scenario, ScenarioError};
use crate::tally::Tally;

/// Figures of one run, and nothing that grows with its requests: many runs' are kept at once. Counts are of requests that arrived after the warm-up.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Report {
    pub scenario: String,
    pub policy: PolicyName,
    pub gpus: u32,
    pub seed: u64,
    pub seconds: f64,
    pub arrived: u64,
    pub answered: u64,
    pub refused: u64,
    pub failed: u64,
    /// At the end.
    pub running: u64,
    /// Of those that ended: the share that attained both objectives, and each of them. Refused and failed ones
    /// attained none.
    pub attainment: f64,
    pub attainment_ttft: f64,
    pub attainment_itl: f64,
    pub gpu_hours: f64,
    pub gpus_most: u32,
    /// Looks that asked for more replicas, and for fewer.
    pub ups: ByRole<u32>,
    pub downs: ByRole<u32>,
    /// Milliseconds.
    pub ttft_mean: f64,
    pub ttft: Quantiles,
    pub itl: Quantiles,
    pub whole: Quantiles,
    /// Tokens a second.
    pub output_rate: f64,
    pub input_rate: f64,
    /// Share of prompt tokens that engines found in their caches.
    pub prefix_hit_rate: f64,
    pub replays: u64,
    pub preemptions: u64,
    pub events: u64,
    pub series: Vec<Point>,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Quantiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

/// A part of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Seconds, at its start.
    pub at: f64,
    /// Requests a second.
    pub arrivals: f64,
    /// Of those that arrived in it. `None`: none ended.
    pub attainment: Option<f64>,
    /// Seconds.
    pub ttft_p90: Option<f64>,
    pub replicas: ByRole<u32>,
    pub gpus: u32,
    pub waiting: u64,
}

impl Quantiles {
    fn of(mut values: Vec<Nanos>) -> Quantiles {
        values.sort_unstable();
        let at = |percent| quantile(&values, percent).map_or(0.0, |v| v as f64 / 1e6);
        Quantiles {
            p50: at(50),
            p90: at(90),
            p99: at(99),
        }
    }
}

fn mean(values: &[Nanos]) -> f64 {
    let sum: u128 = values.iter().map(|&value| u128::from(value)).sum();
    sum as f64 / 1e6 / values.len().max(1) as f64
}

/// The smallest value that `percent` % of `sorted` do not exceed (nearest rank), as `millrace bench` has it.
fn quantile(sorted: &[Nanos], percent: usize) -> Option<Nanos> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

impl Report {
    /// Reads the JSON that a report is written as. Every number comes back as it was: `serde_json` would do that only
    /// with a feature that the whole binary would have then.
    ///
    /// # Errors
    /// Says where the text is no report.
    pub fn parse(json: &str) -> Result<Report, ScenarioError> {
        ScenarioError::read(json)
    }

    pub(crate) fn new(scenario: &Scenario, tally: Tally, running: u64, events: u64) -> Report {
        let ended = tally.answered + tally.refused + tally.failed;
        let share = |part: u64| part as f64 / ended.max(1) as f64;
        let counted = scenario.duration - scenario.warmup;
        let bin = seconds(tally.bin);
        let gpu_hours = tally.gpu_hours();
        let series = points(tally.bins, bin, scenario.duration);
        Report {
            scenario: scenario.name.clone(),
            policy: scenario.policy,
            gpus: scenario.gpus,
            seed: scenario.seed,
            seconds: counted,
            arrived: tally.arrived,
            answered: tally.answered,
            refused: tally.refused,
            failed: tally.failed,
            running,
            attainment: share(tally.attained),
            attainment_ttft: share(tally.attained_ttft),
            attainment_itl: share(tally.attained_itl),
            gpu_hours,
            gpus_most: tally.gpus_most,
            ups: tally.ups,
            downs: tally.downs,
            ttft_mean: mean(&tally.ttft),
            ttft: Quantiles::of(tally.ttft),
            itl: Quantiles::of(tally.itl),
            whole: Quantiles::of(tally.whole),
            output_rate: tally.output_tokens as f64 / counted,
            input_rate: tally.prompt_tokens as f64 / counted,
            prefix_hit_rate: tally.prefix_hits as f64 / tally.prefix_queries.max(1) as f64,
            replays: tally.replays,
            preemptions: tally.preemptions,
            events,
            series,
        }
    }

    /// The table that `millrace sim` prints.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{} with {} on {} GPUs, seed {}: {} s\n",
            self.scenario,
            self.policy.as_str(),
            self.gpus,
            self.seed,
            self.seconds
        );
        let _ = writeln!(
            out,
            "requests  {} arrived: {} answered, {} refused, {} failed, {} running at the end",
            self.arrived, self.answered, self.refused, self.failed, self.running
        );
        let _ = writeln!(
            out,
            "attained  {:.2} % (first token {:.2} %, between tokens {:.2} %)",
            100.0 * self.attainment,
            100.0 * self.attainment_ttft,
            100.0 * self.attainment_itl
        );
        let _ = writeln!(
            out,
            "GPU hours {:.2}, {} GPUs at most",
            self.gpu_hours, self.gpus_most
        );
        let _ = writeln!(
            out,
            "changes   prefill {} up, {} down; decode {} up, {} down",
            self.ups.prefill, self.downs.prefill, self.ups.decode, self.downs.decode
        );
        let _ = writeln!(out, "output    {:.1} tokens/s", self.output_rate);
        let _ = writeln!(
            out,
            "input     {:.1} tokens/s, {:.1} % of lookups found in caches",
            self.input_rate,
            100.0 * self.prefix_hit_rate
        );
        let _ = writeln!(
            out,
            "engines   {} preemptions, {} replays; {} events",
            self.preemptions, self.replays, self.events
        );
        let _ = writeln!(
            out,
            "{:<20} {:>9} {:>9} {:>9}   ms",
            "", "p50", "p90", "p99"
        );
        for (name, q) in [
            ("time to first token", self.ttft),
            ("inter-token latency", self.itl),
            ("whole request", self.whole),
        ] {
            let _ = writeln!(
                out,
                "{name:<20} {:>9.2} {:>9.2} {:>9.2}",
                q.p50, q.p90, q.p99
            );
        }
        out
    }
}

/// Replicas change only at looks, and not every part of the run has one.
fn points(bins: Vec<crate::tally::Bin>, bin: f64, duration: f64) -> Vec<Point> {
    let mut last: Option<(ByRole<u32>, u32, u64)> = None;
    let mut points = Vec::new();
    for (number, mut part) in bins.into_iter().enumerate() {
        let at = number as f64 * bin;
        if at >= duration {
            break;
        }
        let seen = (part.replicas, part.gpus, part.waiting);
        let (replicas, gpus, waiting) = match part.looked {
            true => *last.insert(seen),
            false => last.unwrap_or(seen),
        };
        part.ttft.sort_unstable();
        points.push(Point {
            at,
            arrivals: part.arrived as f64 / bin,
            attainment: (part.ended > 0).then(|| part.attained as f64 / part.ended as f64),
            ttft_p90: quantile(&part.ttft, 90).map(seconds),
            replicas,
            gpus,
            waiting,
        });
    }
    points
}
