//! `millrace sim`: scenarios in, reports out.

mod files;

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
    #[arg(value_name = "SCENARIO", required_unless_present = "compare")]
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
    /// The same seed gives the same report; with several, tables say with how many of them millrace is ahead
    /// [default: the scenario's]
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    seed: Vec<u64>,
    /// How long a worker takes, in YAML or JSON [default: a rank of DeepSeek-V3 on an H200]
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Where to write tables (Markdown) and, as each run ends, a plot of it (SVG) and, with --json, its figures
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write every run's figures as JSON, too
    #[arg(long, requires = "out")]
    json: bool,
    /// Runs at a time
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive)]
    threads: usize,
    /// Runs nothing: makes the tables from what --json wrote there, in one go or several, here or elsewhere
    #[arg(
        long,
        value_name = "DIR",
        num_args = 1..,
        conflicts_with_all = ["scenarios", "policy", "gpus", "faster", "seed", "profile", "json", "threads"]
    )]
    compare: Vec<PathBuf>,
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
    // Before the runs: they take long, and what came of them would be lost.
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out).with_context(|| format!("--out {}", out.display()))?;
    }
    let reports = match args.compare.as_slice() {
        [] => run(&args)?,
        folders => files::read(folders)?,
    };
    let tables = report::markdown::comparison(&reports);
    if reports.len() > 1 || !args.compare.is_empty() {
        print!("{tables}");
    }
    if let Some(out) = &args.out {
        files::write(&out.join("comparison.md"), &tables)?;
    }
    Ok(Outcome::Done)
}

/// Prints and writes each run as it ends, so that a session that is cut off has lost nothing.
fn run(args: &SimArgs) -> anyhow::Result<Vec<Report>> {
    let profile = args.profile.as_deref().map(read_profile).transpose()?;
    let mut runs = Vec::new();
    for file in &args.scenarios {
        let scenario = Scenario::parse(&read(file)?).with_context(|| file.display().to_string())?;
        let scenario = scenario.faster(args.faster);
        runs.extend(variants(args, &scenario, profile.as_ref()));
    }
    run_all(&runs, args.threads, |report| {
        eprintln!("{}", report.text());
        match &args.out {
            Some(out) => write(out, report, args),
            None => Ok(()),
        }
    })
}

/// A scenario at every size, with every seed and under every policy that was asked for. What is compared with each
/// other comes one after the other.
fn variants(args: &SimArgs, scenario: &Scenario, profile: Option<&Profile>) -> Vec<Scenario> {
    let named: Vec<PolicyName> = args.policy.iter().flat_map(|p| p.0.clone()).collect();
    let mut variants = Vec::new();
    for gpus in or(&args.gpus, scenario.gpus) {
        for seed in or(&args.seed, scenario.seed) {
            for policy in or(&named, scenario.policy) {
                variants.push(Scenario {
                    gpus,
                    policy,
                    seed,
                    profile: profile.unwrap_or(&scenario.profile).clone(),
                    ..scenario.clone()
                });
            }
        }
    }
    variants
}

fn or<T: Copy>(asked: &[T], own: T) -> Vec<T> {
    match asked {
        [] => vec![own],
        asked => asked.to_vec(),
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| file.display().to_string())
}

fn read_profile(file: &Path) -> anyhow::Result<Profile> {
    Profile::parse(&read(file)?).with_context(|| format!("--profile {}", file.display()))
}

fn write(out: &Path, report: &Report, args: &SimArgs) -> anyhow::Result<()> {
    let (scenario, policy) = (&report.scenario, report.policy.as_str());
    let mut name = format!("{scenario}-{}-{policy}", report.gpus);
    if args.seed.len() > 1 {
        name += &format!("-seed{}", report.seed);
    }
    let plot = report::svg::timeline(report);
    files::write(&out.join(format!("{name}.svg")), &plot)?;
    if args.json {
        let figures = serde_json::to_string_pretty(report)?;
        files::write(&out.join(format!("{name}.json")), &figures)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: SimArgs,
    }

    fn sim(arguments: &[&str]) -> anyhow::Result<()> {
        let all = ["sim"].iter().chain(arguments);
        main(Cli::try_parse_from(all)?.args).map(drop)
    }

    const SCENARIO: &str = "
name: short
gpus: 8
duration: 60
workload:
  shape: mooncake-conversation
  rate: {points: [[0, 0.3]]}
objectives: {ttft: 2.0, itl: 0.05}
start: {prefill: 0.25, decode: 0.25}
peak: {prefill: 0.5, decode: 0.5}
";

    #[test]
    fn runs_of_several_goes_make_the_tables_of_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let text = |name: &str| std::fs::read_to_string(path(name)).unwrap();
        let scenario = path("short.yaml");
        std::fs::write(&scenario, SCENARIO).unwrap();
        let go = |more: &[&str], out: &str| {
            let arguments = [scenario.as_str(), "--json", "--out", out];
            sim(&[&arguments, more].concat()).unwrap();
        };
        go(
            &["--policy", "all", "--seed", "1,2", "--threads", "2"],
            &path("all"),
        );
        go(&["--policy", "all", "--seed", "1"], &path("one"));
        go(&["--policy", "hpa,millrace", "--seed", "2"], &path("two"));
        go(
            &["--policy", "planner,static", "--seed", "2"],
            &path("three"),
        );

        let at_once = text("all/comparison.md");
        assert!(at_once.contains("## 8 GPUs, seeds 1, 2"), "{at_once}");
        let [all, one, two, three, out] = ["all", "one", "two", "three", "out"].map(path);
        sim(&["--compare", &two, &one, &three, "--out", &out]).unwrap();
        assert_eq!(text("out/comparison.md"), at_once);
        // The same run twice is one run.
        sim(&["--compare", &all, "--compare", &one, "--out", &out]).unwrap();
        assert_eq!(text("out/comparison.md"), at_once);

        // Only where there are several seeds do names tell of them.
        assert_eq!(
            text("all/short-8-hpa-seed1.json"),
            text("one/short-8-hpa.json")
        );
        assert_eq!(
            text("all/short-8-hpa-seed2.svg"),
            text("two/short-8-hpa.svg")
        );

        // Another build's, say.
        let other =
            text("one/short-8-hpa.json").replace("\"preemptions\": 0", "\"preemptions\": 7");
        std::fs::write(path("two/other.json"), other).unwrap();
        let error = sim(&["--compare", &one, &two]).unwrap_err().to_string();
        assert!(
            error.contains("other.json") && error.contains("short-8-hpa.json"),
            "{error}"
        );
    }

    #[test]
    fn what_cannot_be_compared_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let error = |arguments: &[&str]| format!("{:#}", sim(arguments).unwrap_err());
        assert!(error(&["--compare", path]).contains("no JSON"));
        std::fs::write(folder.path().join("half.json"), "{\"scenario\": \"sh").unwrap();
        assert!(error(&["--compare", path]).contains("half.json"));
        assert!(error(&["--compare", path, "--seed", "1"]).contains("cannot be used with"));
        assert!(error(&[]).contains("SCENARIO"));
    }
}
