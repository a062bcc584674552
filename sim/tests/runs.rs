//! Whole runs of the simulation.

use millrace_sim::{Fault, PolicyName, Report, Scenario, What, run};

/// A small cluster under an even load, with caches at work.
const CHAT: &str = "
name: test
duration: 300
workload:
  shape: mooncake-conversation
  rate: {points: [[0, 0.15], [150, 0.3]]}
objectives: {ttft: 2.0, itl: 0.05}
start: {prefill: 0.3, decode: 0.3}
peak: {prefill: 0.5, decode: 0.4}
";

fn chat(policy: PolicyName) -> Scenario {
    Scenario {
        policy,
        ..Scenario::parse(CHAT).unwrap()
    }
}

/// Every request is answered, refused, failed or still running. (That queues and pools agree, the run itself
/// asserts at its end.)
fn all_accounted_for(report: &Report) {
    let ended = report.answered + report.refused + report.failed + report.running;
    assert_eq!(report.arrived, ended, "{}", report.text());
}

#[test]
fn the_same_seed_gives_the_same_report_and_another_gives_another() {
    for policy in PolicyName::ALL {
        let mut scenario = chat(policy);
        let json = |s: &Scenario| serde_json::to_string(&run(s).unwrap()).unwrap();
        let first = json(&scenario);
        assert!(first == json(&scenario), "{policy:?}");
        scenario.seed += 1;
        assert!(first != json(&scenario), "{policy:?}");
    }
}

#[test]
fn every_request_is_accounted_for_whatever_fails() {
    let fault = |at, what| Fault {
        at,
        what,
        lasts: 20.0,
        share: 0.5,
        factor: 4.0,
    };
    for policy in PolicyName::ALL {
        let mut scenario = chat(policy);
        scenario.faults = vec![
            fault(40.0, What::PrefillDeath),
            fault(80.0, What::DecodeDeath),
            fault(120.0, What::DecodeSlow),
            fault(160.0, What::PrefillSlow),
            fault(200.0, What::MetricsGap),
            fault(240.0, What::RouterRestart),
        ];
        let report = run(&scenario).unwrap();
        all_accounted_for(&report);
        assert!(report.replays > 0, "deaths are hidden by replays");
        assert!(report.failed > 0, "the router's own are not");
    }
}

#[test]
fn deaths_alone_fail_nobody() {
    let mut scenario = chat(PolicyName::Static);
    for (at, what) in [(50.0, What::DecodeDeath), (100.0, What::PrefillDeath)] {
        scenario.faults.push(Fault {
            at,
            what,
            lasts: 10.0,
            share: 0.3,
            factor: 1.0,
        });
    }
    let report = run(&scenario).unwrap();
    all_accounted_for(&report);
    assert!(report.replays > 0);
    assert_eq!(report.failed, 0, "{}", report.text());
}

#[test]
fn a_full_house_refuses_and_still_loses_nobody() {
    let mut scenario = chat(PolicyName::Static);
    scenario.workload.rate.points = vec![(0.0, 1.5)];
    scenario.admission.max_running = 8;
    scenario.admission.max_waiting = 4;
    let report = run(&scenario).unwrap();
    all_accounted_for(&report);
    assert!(report.refused > 0);
}

#[test]
fn turns_of_a_session_find_what_was_said_before() {
    let report = run(&chat(PolicyName::Static)).unwrap();
    assert!(report.prefix_hit_rate > 0.2, "{}", report.text());
}

#[test]
fn few_pages_preempt_and_lose_nobody() {
    let mut scenario = chat(PolicyName::Static);
    scenario.profile.decode.kv_pages = 600;
    scenario.max_model_len = 20_000;
    scenario.workload.rate.points = vec![(0.0, 0.5)];
    scenario.workload.lengths = Some(serde_json::from_str(
        r#"{"prompt": {"median": 300, "mean": 400, "max": 4000}, "output": {"median": 1500, "mean": 2000, "max": 8000}}"#,
    ).unwrap());
    let report = run(&scenario).unwrap();
    all_accounted_for(&report);
    assert!(report.preemptions > 0, "{}", report.text());
}

#[test]
fn without_load_the_autoscaler_does_nothing_but_give_up_what_nobody_uses() {
    let mut scenario = chat(PolicyName::Millrace);
    scenario.duration = 3600.0;
    scenario.workload.rate.points = vec![(0.0, 0.0)];
    let report = run(&scenario).unwrap();
    assert_eq!(report.arrived, 0);
    assert_eq!(report.ups.prefill + report.ups.decode, 0);
    assert!(report.series.last().unwrap().gpus > 0, "its minimum stays");
    scenario.scaling.min = (scenario.gpus as f64 * 0.3 / 2.0).round() as u32;
    let report = run(&scenario).unwrap();
    let changes = [report.ups, report.downs].map(|by| by.prefill + by.decode);
    assert_eq!(changes, [0, 0], "nothing is above the minimum");
}

#[test]
fn a_plot_begins_with_what_a_run_begins_with() {
    for policy in PolicyName::ALL {
        let report = run(&chat(policy)).unwrap();
        let first = &report.series[0];
        let replicas = [first.replicas.prefill, first.replicas.decode];
        assert!(
            replicas.iter().all(|&n| n > 0) && first.gpus > 0,
            "{policy:?} {first:?}"
        );
    }
}

#[test]
fn a_warm_up_is_not_counted() {
    let mut scenario = chat(PolicyName::Static);
    let all = run(&scenario).unwrap();
    scenario.warmup = 150.0;
    let later = run(&scenario).unwrap();
    assert!(later.arrived < all.arrived);
    assert!((later.gpu_hours / all.gpu_hours - 0.5).abs() < 0.01);
}

#[test]
fn a_scenario_that_is_faster_has_the_same_shape() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
    let read = |name: &str| std::fs::read_to_string(format!("{folder}/{name}.yaml")).unwrap();
    let step = Scenario::parse(&read("step-up")).unwrap();
    let fast = step.clone().faster(4.0);
    assert_eq!((fast.duration, fast.warmup), (600.0, 75.0));
    assert_eq!(fast.name, "step-up-x4");
    let points = |s: &Scenario| s.workload.rate.points.clone();
    for (slow, fast) in points(&step).into_iter().zip(points(&fast)) {
        assert_eq!((slow.0 / 4.0, slow.1), fast);
    }
    // Of the same rates there are as many fewer requests; the profile and its starts are the same.
    let count = |s: Scenario| {
        let policy = PolicyName::Static;
        run(&Scenario { policy, ..s }).unwrap().arrived as f64
    };
    assert_eq!(fast.profile, step.profile);
    let times = count(step) / count(fast);
    assert!((times / 4.0 - 1.0).abs() < 0.03, "{times}");
    let deaths = Scenario::parse(&read("decode-deaths")).unwrap();
    let fast = deaths.clone().faster(2.0);
    for (slow, fast) in deaths.faults.iter().zip(&fast.faults) {
        assert_eq!((slow.at, slow.lasts), (2.0 * fast.at, 2.0 * fast.lasts));
    }
}

#[test]
fn all_scenarios_can_be_run_at_any_size() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
    let mut names = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let mut scenario = Scenario::parse(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
        for gpus in [32, 320, 2000] {
            scenario.gpus = gpus;
            scenario.check().unwrap();
        }
        assert!(names.insert(scenario.name), "two of one name");
    }
    assert!(names.len() >= 20);
}

#[test]
fn recorded_requests_come_as_they_were_recorded() {
    let recorded = "
name: recorded
gpus: 2
replica: 1
duration: 60
workload:
  requests: [[0.0, 500, 1], [1.0, 800, 20], [1.0, 300, 40], [50.0, 100, 2], [61.0, 100, 2]]
objectives: {ttft: 2.0, itl: 0.05}
start: {prefill: 0.5, decode: 0.5}
peak: {prefill: 0.5, decode: 0.5}
policy: static
";
    let mut scenario = Scenario::parse(recorded).unwrap();
    let report = run(&scenario).unwrap();
    // What comes after the end does not come at all.
    assert_eq!((report.arrived, report.answered), (4, 4));
    let (input, output) = (report.input_rate * 60.0, report.output_rate * 60.0);
    assert_eq!((input.round(), output.round()), (1700.0, 63.0));
    let fast = run(&scenario.clone().faster(2.0)).unwrap();
    assert_eq!((fast.arrived, fast.seconds), (4, 30.0));
    scenario.workload.requests.swap(0, 3);
    let error = scenario.check().unwrap_err().to_string();
    assert!(error.contains("in order of time"), "{error}");
}

#[test]
fn measured_batches_are_in_order() {
    let mut scenario = Scenario::parse(include_str!("../scenarios/step-up.yaml")).unwrap();
    let batches = [
        (vec![[1.0, 2e-3], [4.0, 1e-3]], true),
        (vec![[4.0, 1e-3], [1.0, 2e-3]], false),
        (vec![[1.0, 1e-3], [1.0, 2e-3]], false),
        (vec![[0.0, 1e-3]], false),
        (vec![[1.0, f64::NAN]], false),
    ];
    for (batch, right) in batches {
        scenario.profile.step.batch = batch;
        let checked = scenario.check().map_err(|error| error.to_string());
        assert_eq!(checked.is_ok(), right, "{checked:?}");
        if let Err(error) = checked {
            assert!(error.contains("profile.step.batch"), "{error}");
        }
    }
}
