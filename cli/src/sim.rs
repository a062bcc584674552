//! `millrace sim`: scenarios in, reports out.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use millrace_sim::{PolicyName, Profile, Report, Scenario, report, run_all};

use crate::args::positive;
use crate::errors::Outcome;

/// Simulates deployments: the real router, engine and autoscaler decisions against modelled workers.
#[derive(Debug, Clone, Args)]
pub struct SimArgs {
    /// What to simulate, in YAML; sim/scenarios has examples
    #[arg(value_name = "SCENARIO", required = true)]
    scenarios: Vec<PathBuf>,
    /// millrace, hpa, planner, static, or all [default: the scenario's]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = policy)]
    policy: Vec<Policies>,
    /// GPUs of the cluster [default: the scenario's]
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    gpus: Vec<u32>,
    /// Load and faults come so many times as fast, and the run is as much shorter; starts and policies are as ever
    #[arg(long, value_name = "TIMES", default_value = "1", value_parser = times)]
    faster: f64,
    /// The same seed gives the same report [default: the scenario's]
    #[arg(long)]
    seed: Option<u64>,
    /// How long a worker takes, in YAML or JSON [default: a rank of DeepSeek-V3 on an H200]
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Where to write a table (Markdown), a plot of each run (SVG) and, with --json, its figures
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write every run's figures as JSON, too
    #[arg(long, requires = "out")]
    json: bool,
    /// Runs at a time
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive)]
    threads: usize,
}

#[derive(Debug, Clone)]
struct Policies(Vec<PolicyName>);

fn policy(name: &str) -> Result<Policies, UnknownPolicy> {
    if name == "all" {
        return Ok(Policies(PolicyName::ALL.to_vec()));
    }
    let named = PolicyName::ALL.into_iter().find(|p| p.as_str() == name);
    named.map(|name| Policies(vec![name])).ok_or(UnknownPolicy)
}

#[derive(Debug, thiserror::Error)]
#[error("expected millrace, hpa, planner, static or all")]
struct UnknownPolicy;

fn times(text: &str) -> Result<f64, NotPositive> {
    let times = text.parse().ok();
    times
        .filter(|&times: &f64| times > 0.0 && times.is_finite())
        .ok_or(NotPositive)
}

#[derive(Debug, thiserror::Error)]
#[error("expected a number above 0")]
struct NotPositive;

pub fn main(args: SimArgs) -> anyhow::Result<Outcome> {
    let profile = args.profile.as_deref().map(read_profile).transpose()?;
    let mut runs = Vec::new();
    for file in &args.scenarios {
        let scenario = Scenario::parse(&read(file)?).with_context(|| file.display().to_string())?;
        let scenario = scenario.faster(args.faster);
        runs.extend(variants(&args, &scenario, profile.as_ref()));
    }
    let reports = run_all(&runs, args.threads, |report| {
        eprintln!("{}", report.text());
    })?;
    if reports.len() > 1 {
        println!("{}", report::markdown::comparison(&reports));
    }
    if let Some(out) = &args.out {
        write(out, &reports, args.json).with_context(|| format!("--out {}", out.display()))?;
    }
    Ok(Outcome::Done)
}

/// A scenario at every size and under every policy that was asked for.
fn variants(args: &SimArgs, scenario: &Scenario, profile: Option<&Profile>) -> Vec<Scenario> {
    let or = |asked: &[u32], own| match asked {
        [] => vec![own],
        asked => asked.to_vec(),
    };
    let named: Vec<PolicyName> = args.policy.iter().flat_map(|p| p.0.clone()).collect();
    let policies = match named.as_slice() {
        [] => vec![scenario.policy],
        _ => named,
    };
    let mut variants = Vec::new();
    for gpus in or(&args.gpus, scenario.gpus) {
        for &policy in &policies {
            variants.push(Scenario {
                gpus,
                policy,
                seed: args.seed.unwrap_or(scenario.seed),
                profile: profile.unwrap_or(&scenario.profile).clone(),
                ..scenario.clone()
            });
        }
    }
    variants
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| file.display().to_string())
}

fn read_profile(file: &Path) -> anyhow::Result<Profile> {
    Profile::parse(&read(file)?).with_context(|| format!("--profile {}", file.display()))
}

fn write(out: &Path, reports: &[Report], json: bool) -> anyhow::Result<()> {
    std::fs::create_dir_all(out)?;
    let table = report::markdown::comparison(reports);
    std::fs::write(out.join("comparison.md"), table)?;
    for report in reports {
        let (scenario, policy) = (&report.scenario, report.policy.as_str());
        let name = format!("{scenario}-{}-{policy}", report.gpus);
        let plot = report::svg::timeline(report);
        std::fs::write(out.join(format!("{name}.svg")), plot)?;
        if json {
            let figures = serde_json::to_string_pretty(report)?;
            std::fs::write(out.join(format!("{name}.json")), figures)?;
        }
    }
    Ok(())
}
