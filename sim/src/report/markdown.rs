//! Reports as tables.

use std::fmt::Write;

use super::Report;
use super::runs::{Ahead, BASELINES, Contest, Runs};
use super::verdict::{is_ahead, is_ahead_by_objective, is_won, rules};
use crate::policy::PolicyName;

/// All runs side by side, and for how many scenarios ours is ahead. What is absent has no verdict. The order of the
/// reports does not matter, so runs that were made in several goes give the tables of one.
pub fn comparison(reports: &[Report]) -> String {
    let runs = Runs::new(reports);
    let several = runs.several_seeds();
    let mut out = match several {
        true => sections(&runs),
        false => one_seed(&runs),
    };
    if !runs.contests().is_empty() {
        let _ = write!(out, "\n{}", rules());
        if several {
            out.push_str(
                "Seeds are compared one by one, and a scenario is won with more than half of those that all compared \
                 policies ran with. Ahead of both is with the same seed.\n",
            );
        }
    }
    out
}

/// The figures of every run, a line for each baseline, and how often ours is ahead.
fn one_seed(runs: &Runs<'_>) -> String {
    let mut out = String::from(
        "| scenario | GPUs | policy | attained | TTFT p99 s | ITL p99 ms | GPU hours | changes | refused | failed |\n\
         |---|---:|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for report in runs.iter() {
        let (ups, downs) = (report.ups, report.downs);
        let _ = writeln!(
            out,
            "| {} | {} | {} | {:.2} % | {:.2} | {:.1} | {:.1} | {} | {} | {} |",
            report.scenario,
            report.gpus,
            report.policy.as_str(),
            100.0 * report.attainment,
            report.ttft.p99 / 1e3,
            report.itl.p99,
            report.gpu_hours,
            ups.prefill + ups.decode + downs.prefill + downs.decode,
            report.refused,
            report.failed
        );
    }
    let contests = runs.contests();
    if !contests.is_empty() {
        let _ = write!(out, "\n{}", verdicts(runs));
        let _ = write!(out, "\n{}", summary(&runs.by_size(), &contests));
    }
    out
}

/// Ours against each baseline.
fn verdicts(runs: &Runs<'_>) -> String {
    let mut out = String::from(
        "| scenario | GPUs | against | attained | GPU hours | ahead | ahead by the objective |\n\
         |---|---:|---|---:|---:|---|---|\n",
    );
    let said = |yes: bool| if yes { "yes" } else { "no" };
    for ours in runs.iter().filter(|r| r.policy == PolicyName::Millrace) {
        for other in BASELINES.iter().filter_map(|&p| runs.instead(ours, p)) {
            let _ = writeln!(
                out,
                "| {} | {} | {} | {:+.2} points | {:+.1} % | {} | {} |",
                ours.scenario,
                ours.gpus,
                other.policy.as_str(),
                100.0 * (ours.attainment - other.attainment),
                100.0 * (ours.gpu_hours / other.gpu_hours - 1.0),
                said(is_ahead(ours.into(), other.into())),
                said(is_ahead_by_objective(ours.into(), other.into())),
            );
        }
    }
    out
}

/// In how many scenarios ours is ahead: two lines for each size.
fn summary(sizes: &[(u32, Runs<'_>)], contests: &[Contest]) -> String {
    let names = contests.iter().map(|c| format!("ahead of {}", c.name));
    let mut out = header("won", names);
    for (gpus, runs) in sizes {
        for (rule, by_objective) in [("plainly", false), ("by the objective", true)] {
            let count = |ahead: &Ahead| match by_objective {
                true => ahead.by_objective,
                false => ahead.plainly,
            };
            let cells = contests.iter().map(|contest| {
                let scenarios = runs.scenarios().into_iter();
                let fought = scenarios.filter_map(|s| runs.ahead(s, contest.against));
                let won: Vec<bool> = fought.map(|a| is_won(count(&a), a.seeds)).collect();
                let wins = won.iter().filter(|&&won| won).count();
                of(wins, won.len())
            });
            out.push_str(&row(&format!("{gpus} GPUs, {rule}"), cells));
        }
    }
    out
}

/// What several seeds say of each size.
fn sections(runs: &Runs<'_>) -> String {
    let mut out = String::new();
    for (number, (gpus, runs)) in runs.by_size().iter().enumerate() {
        let between = if number == 0 { "" } else { "\n" };
        let seeds: Vec<String> = runs.seeds().iter().map(u64::to_string).collect();
        let _ = writeln!(out, "{between}## {gpus} GPUs, seeds {}\n", seeds.join(", "));
        let contests = runs.contests();
        if !contests.is_empty() {
            let _ = writeln!(out, "{}", summary(&runs.by_size(), &contests));
        }
        out.push_str(&means(runs, &contests));
        out.push_str(&each_seed(runs));
    }
    out
}

/// A line a scenario: every policy's means, and with how many seeds ours is ahead.
fn means(runs: &Runs<'_>, contests: &[Contest]) -> String {
    let policies = runs.policies();
    let all = runs.seeds().len();
    let mut out = String::from(
        "Attained / GPU hours, each the mean over the seeds (over so many as are in brackets, where some are missing)",
    );
    if !contests.is_empty() {
        out.push_str(", and with how many seeds `millrace` is ahead by the objective");
    }
    out.push_str(":\n\n");
    let names = policies.iter().map(|policy| policy.as_str().to_owned());
    let seeds = contests
        .iter()
        .map(|c| format!("seeds ahead of {}", c.name));
    out.push_str(&header("scenario", names.chain(seeds)));
    for scenario in runs.scenarios() {
        let cells = policies
            .iter()
            .map(|&policy| mean(&runs.of(scenario, policy), all));
        let seeds = contests.iter().map(|contest| {
            let ahead = runs.ahead(scenario, contest.against);
            ahead.map_or_else(String::new, |a| of(a.by_objective, a.seeds))
        });
        out.push_str(&row(scenario, cells.chain(seeds)));
    }
    out
}

/// A table for each policy, with a column for each seed.
fn each_seed(runs: &Runs<'_>) -> String {
    let seeds = runs.seeds();
    let mut out = String::new();
    for policy in runs.policies() {
        let _ = writeln!(out, "\n`{}`, with each seed:\n", policy.as_str());
        let names = seeds.iter().map(|seed| format!("seed {seed}"));
        out.push_str(&header("scenario", names));
        for scenario in runs.scenarios() {
            let of = runs.of(scenario, policy);
            if of.is_empty() {
                continue;
            }
            let cells = seeds.iter().map(|&seed| {
                let run = of.iter().find(|r| r.seed == seed);
                run.map_or_else(String::new, |r| figures(r.attainment, r.gpu_hours))
            });
            out.push_str(&row(scenario, cells));
        }
    }
    out
}

/// Of `all` seeds, those that there are.
fn mean(reports: &[&Report], all: usize) -> String {
    if reports.is_empty() {
        return String::new();
    }
    let mean = |value: fn(&Report) -> f64| {
        let sum: f64 = reports.iter().map(|&r| value(r)).sum();
        sum / reports.len() as f64
    };
    let mut cell = figures(mean(|r| r.attainment), mean(|r| r.gpu_hours));
    if reports.len() < all {
        let _ = write!(cell, " ({})", reports.len());
    }
    cell
}

fn figures(attainment: f64, gpu_hours: f64) -> String {
    format!("{:.2} % / {gpu_hours:.1}", 100.0 * attainment)
}

fn of(part: usize, all: usize) -> String {
    match all {
        0 => String::new(),
        all => format!("{part} of {all}"),
    }
}

/// The first column is names, and figures follow.
fn header(first: &str, names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    let rule = "---:|".repeat(names.len());
    format!("{}|---|{rule}\n", row(first, names.into_iter()))
}

fn row(first: &str, cells: impl Iterator<Item = String>) -> String {
    let mut out = format!("| {first} |");
    for cell in cells {
        let _ = write!(out, " {cell} |");
    }
    out.push('\n');
    out
}
