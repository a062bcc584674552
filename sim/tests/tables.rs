//! What is said of many runs together.

use millrace_sim::report::markdown::comparison;
use millrace_sim::report::svg;
use millrace_sim::{PolicyName, Report, Scenario, run};

use PolicyName::{Hpa, Millrace, Planner, Static};

fn report(scenario: &str, policy: PolicyName, seed: u64, attainment: f64, hours: f64) -> Report {
    Report {
        scenario: scenario.into(),
        policy,
        gpus: 32,
        seed,
        attainment,
        gpu_hours: hours,
        ..Report::default()
    }
}

/// `day` is won against `hpa` with two seeds of three and against `planner` with another two; `night` with one.
fn three_seeds() -> Vec<Report> {
    let mut reports = Vec::new();
    for (seed, hpa, planner) in [(1, 10.0, 6.0), (2, 10.0, 4.0), (3, 7.0, 6.0)] {
        reports.push(report("day", Millrace, seed, 0.98, 8.0));
        reports.push(report("day", Hpa, seed, 0.98, hpa));
        reports.push(report("day", Planner, seed, 0.6, planner));
        reports.push(report("day", Static, seed, 1.0, 12.0));
        let attained = if seed == 2 { 0.9 } else { 0.7 };
        reports.push(report("night", Millrace, seed, attained, 5.0));
        reports.push(report("night", Hpa, seed, 0.8, 5.0));
    }
    reports
}

fn has(tables: &str, line: &str) {
    assert!(tables.lines().any(|l| l == line), "{line}\nin\n{tables}");
}

#[test]
fn a_scenario_is_won_with_most_of_its_seeds() {
    let tables = comparison(&three_seeds());
    has(&tables, "## 32 GPUs, seeds 1, 2, 3");
    has(
        &tables,
        "| won | ahead of hpa | ahead of planner | ahead of both |",
    );
    has(&tables, "| 32 GPUs, plainly | 1 of 2 | 0 of 1 | 0 of 1 |");
    has(
        &tables,
        "| 32 GPUs, by the objective | 1 of 2 | 1 of 1 | 0 of 1 |",
    );
    has(
        &tables,
        "| scenario | millrace | hpa | planner | static | seeds ahead of hpa | seeds ahead of planner | seeds ahead of both |",
    );
    has(
        &tables,
        "| day | 98.00 % / 8.0 | 98.00 % / 9.0 | 60.00 % / 5.3 | 100.00 % / 12.0 | 2 of 3 | 2 of 3 | 1 of 3 |",
    );
    has(
        &tables,
        "| night | 76.67 % / 5.0 | 80.00 % / 5.0 |  |  | 1 of 3 |  |  |",
    );
    // Each seed of each policy.
    has(
        &tables,
        "| day | 60.00 % / 6.0 | 60.00 % / 4.0 | 60.00 % / 6.0 |",
    );
    has(
        &tables,
        "| night | 70.00 % / 5.0 | 90.00 % / 5.0 | 70.00 % / 5.0 |",
    );
}

#[test]
fn each_size_has_its_section_and_the_order_of_reports_does_not_matter() {
    let mut reports = three_seeds();
    let larger = reports
        .clone()
        .into_iter()
        .map(|r| Report { gpus: 320, ..r });
    reports.extend(larger);
    let tables = comparison(&reports);
    for gpus in [32, 320] {
        has(&tables, &format!("## {gpus} GPUs, seeds 1, 2, 3"));
        has(
            &tables,
            &format!("| {gpus} GPUs, plainly | 1 of 2 | 0 of 1 | 0 of 1 |"),
        );
    }
    reports.reverse();
    assert_eq!(comparison(&reports), tables);
    // Nor does it that a run is there twice.
    reports.extend(three_seeds());
    assert_eq!(comparison(&reports), tables);
}

#[test]
fn a_seed_that_is_missing_is_neither_won_nor_lost() {
    let mut reports = three_seeds();
    reports.retain(|r| (r.policy, r.seed) != (Hpa, 3));
    let tables = comparison(&reports);
    has(&tables, "| 32 GPUs, plainly | 1 of 2 | 0 of 1 | 0 of 1 |");
    has(
        &tables,
        "| day | 98.00 % / 8.0 | 98.00 % / 10.0 (2) | 60.00 % / 5.3 | 100.00 % / 12.0 | 2 of 2 | 2 of 3 | 1 of 2 |",
    );
}

#[test]
fn one_seed_has_every_figure_and_a_line_for_each_baseline() {
    let mut reports = three_seeds();
    reports.retain(|r| r.seed == 1);
    let tables = comparison(&reports);
    has(
        &tables,
        "| day | 32 | hpa | 98.00 % | 0.00 | 0.0 | 10.0 | 0 | 0 | 0 |",
    );
    has(
        &tables,
        "| day | 32 | hpa | +0.00 points | -20.0 % | yes | yes |",
    );
    has(
        &tables,
        "| night | 32 | hpa | -10.00 points | +0.0 % | no | no |",
    );
    has(
        &tables,
        "| 32 GPUs, by the objective | 1 of 2 | 1 of 1 | 1 of 1 |",
    );
    // Seeds that scenarios have of their own are one each.
    for report in reports.iter_mut().filter(|r| r.scenario == "night") {
        report.seed = 7;
    }
    assert_eq!(comparison(&reports), tables);
}

#[test]
fn without_anybody_to_compare_there_is_no_verdict() {
    for policies in [&[Static][..], &[Hpa, Planner], &[Millrace, Static]] {
        for seeds in [1, 3] {
            let mut reports = three_seeds();
            reports.retain(|r| policies.contains(&r.policy) && r.seed <= seeds);
            let tables = comparison(&reports);
            assert!(
                !tables.contains("ahead") && !tables.contains("Ahead"),
                "{tables}"
            );
            assert!(tables.contains("| day |"), "{tables}");
        }
    }
    assert!(!comparison(&[]).contains("ahead"));
}

/// A whole cycle of a day, with replicas that come and go.
fn busy() -> Report {
    let mut scenario = Scenario::parse(include_str!("../scenarios/step-up.yaml")).unwrap();
    scenario.gpus = 16;
    run(&scenario).unwrap()
}

#[test]
fn a_report_is_read_back_as_it_was_and_is_small_and_so_is_its_plot() {
    let report = busy();
    assert!(report.arrived > 10_000);
    let json = serde_json::to_string_pretty(&report).unwrap();
    assert_eq!(Report::parse(&json).unwrap(), report);
    assert!(
        report.series.len() <= 120,
        "nothing grows with the requests"
    );
    let plot = svg::timeline(&report);
    assert!(plot.len() < 60_000, "{}", plot.len());
    assert!(Report::parse(&json[..json.len() / 2]).is_err());
}
