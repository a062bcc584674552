//! One server and one queue: what theory says of it, the simulation must show.
//!
//! A prefill worker that computes one prompt a step, one after another, is that server: steps take
//! `token * tokens` and nothing else, and an answer of one token ends with the prompt.

use millrace_sim::{PolicyName, Scenario, run};

/// Seconds of service on average.
const SERVICE: f64 = 0.1;

fn mean_wait(utilisation: f64, exponential: bool) -> f64 {
    let rate = utilisation / SERVICE / 2.0;
    let yaml = format!(
        "
name: queue
gpus: 2
replica: 1
duration: 40000
warmup: 500
workload:
  lengths:
    prompt: {{median: 1000, mean: 1000, max: 30000, exponential: {exponential}}}
    output: {{median: 1, mean: 1, max: 1}}
  rate: {{points: [[0, {rate}]]}}
objectives: {{ttft: 10, itl: 1}}
start: {{prefill: 0.5, decode: 0.5}}
peak: {{prefill: 0.5, decode: 0.5}}
admission: {{max_running: 100000, max_waiting: 100000, max_waiting_tokens: 100000000}}
profile:
  step: {{base: 0, sequence: 0, context: 0, token: 0.0001, token_context: 0}}
  transfer: {{latency: 0, bandwidth: 1.0e+18, page_bytes: 1}}
  hop: 0
  noise: 0
  prefill: {{max_batch_tokens: 30000, max_running: 1, kv_pages: 512, local_prefill_tokens: 0}}
  decode: {{max_batch_tokens: 100000, max_running: 100000, kv_pages: 200000, local_prefill_tokens: 0}}
"
    );
    let mut scenario = Scenario::parse(&yaml).unwrap();
    scenario.policy = PolicyName::Static;
    let report = run(&scenario).unwrap();
    assert_eq!(report.answered + report.running, report.arrived);
    report.ttft_mean / 1e3 - SERVICE
}

/// Of the mean over some 200,000 to 320,000 requests, whose waits are correlated.
const ERROR: f64 = 0.06;

fn agrees(found: f64, expected: f64) {
    let off = (found / expected - 1.0).abs();
    assert!(off < ERROR, "{found} s where theory has {expected} s");
}

#[test]
fn waits_are_those_of_m_m_1() {
    for utilisation in [0.5, 0.8] {
        let expected = SERVICE * utilisation / (1.0 - utilisation);
        agrees(mean_wait(utilisation, true), expected);
    }
}

#[test]
fn waits_are_those_of_m_d_1() {
    for utilisation in [0.5, 0.8] {
        let expected = SERVICE * utilisation / (2.0 * (1.0 - utilisation));
        agrees(mean_wait(utilisation, false), expected);
    }
}
