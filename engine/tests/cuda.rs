//! Fidelity of a GPU, which computes products in bf16: how far its log-probs are from the float32 reference's,
//! next to how far transformers' own bf16 run is (`tests/golden/bf16.json`).
//!
//! ```text
//! cargo test --release -p millrace-engine --features test-on-cuda
//! ```
#![cfg(feature = "test-on-cuda")]

mod common;

use common::*;
use millrace_engine::{EngineConfig, SamplingParams};
use millrace_kernels::KvDtype;

/// Of the reference's most probable tokens, and of ours that are looked through for them.
const TOP: usize = 20;
const OURS: usize = 100;

/// |difference| of log-probs: half of them, nine in ten, and all are at most this.
#[derive(Debug, Clone, Copy)]
struct Spread {
    median: f32,
    p90: f32,
    max: f32,
}

impl Spread {
    fn of(mut differences: Vec<f32>) -> Spread {
        differences.sort_by(f32::total_cmp);
        let at =
            |share: f64| differences[((differences.len() - 1) as f64 * share).round() as usize];
        Spread {
            median: at(0.5),
            p90: at(0.9),
            max: at(1.0),
        }
    }

    /// What transformers' bf16 run shows for this family.
    fn of_bf16(family: &str) -> Spread {
        let path = golden_dir(family).join("../bf16.json");
        let all: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).expect("bf16.json")).expect("JSON");
        let number = |key: &str| all[family][key].as_f64().expect("a number") as f32;
        Spread {
            median: number("median"),
            p90: number("p90"),
            max: number("max"),
        }
    }
}

/// Log-probs of the reference's tokens at all its positions, of prompts and of greedy continuations, both given to
/// the engine as prompts, so that one token that differs does not change all after it.
fn differences(family: &str, config: EngineConfig) -> (Vec<f32>, usize, usize) {
    let golden = Golden::open(family);
    let noise = Spread::of_bf16(family).max;
    let mut engine = engine(family, config);
    let (mut found, mut compared, mut differing) = (Vec::new(), 0, 0);
    for (number, prompt) in PROMPTS.iter().enumerate() {
        let tokens = golden.ids(&format!("{prompt}.tokens"));
        let greedy_tokens = golden.ids(&format!("{prompt}.greedy_tokens"));
        let gaps = golden.floats(&format!("{prompt}.greedy_gap"));
        let sequence = [&tokens[..], &greedy_tokens[..]].concat();
        let sampling = SamplingParams {
            prompt_logprobs: Some(OURS),
            ..greedy(1)
        };
        let answer = run_one(&mut engine, number as u64, &sequence, sampling);
        let start = answer.start.as_ref().expect("a first output");
        let mut see = |position: usize, ids: &[u32], logprobs: &[f32]| -> u32 {
            let about = start.prompt_logprobs[position + 1].as_ref();
            let top = &about.expect("only the first has none").top;
            for (id, logprob) in ids.iter().zip(logprobs) {
                let ours = top.iter().find(|(ours, _)| ours == id);
                // One that is not among ours is at most as probable as the last of them.
                let ours = ours.or(top.last()).expect("not empty").1;
                found.push((ours - logprob).abs());
            }
            top[0].0
        };
        let positions = golden.ids(&format!("{prompt}.positions"));
        let ids = golden.ids(&format!("{prompt}.top_ids"));
        let logprobs = golden.floats(&format!("{prompt}.top_logprobs"));
        let rows = ids.chunks(TOP).zip(logprobs.chunks(TOP));
        for (&position, (ids, logprobs)) in positions.iter().zip(rows) {
            see(position as usize, ids, logprobs);
        }
        let ids = golden.ids(&format!("{prompt}.greedy_top_ids"));
        let logprobs = golden.floats(&format!("{prompt}.greedy_top_logprobs"));
        for (step, (ids, logprobs)) in ids.chunks(TOP).zip(logprobs.chunks(TOP)).enumerate() {
            let chosen = see(tokens.len() - 1 + step, ids, logprobs);
            if gaps[step] > 2.0 * noise {
                compared += 1;
                differing += usize::from(chosen != greedy_tokens[step]);
            }
        }
    }
    (found, compared, differing)
}

#[test]
fn every_family_is_as_near_to_its_goldens_as_bf16_is() {
    let mut failed = Vec::new();
    for family in FAMILIES {
        for kv_dtype in [KvDtype::Bf16, KvDtype::F32] {
            let config = EngineConfig {
                kv_dtype,
                ..float_config()
            };
            let (found, compared, differing) = differences(family, config);
            let (ours, theirs) = (Spread::of(found), Spread::of_bf16(family));
            println!(
                "{family:18} {:4} pages: median {:.1e} ({:.1e} in transformers' bf16), p90 {:.1e} ({:.1e}), \
                 max {:.1e} ({:.1e}); {differing} of {compared} clear greedy steps differ",
                kv_dtype.as_str(),
                ours.median,
                theirs.median,
                ours.p90,
                theirs.p90,
                ours.max,
                theirs.max,
            );
            if ours.median > theirs.median || ours.p90 > theirs.p90 || differing > 0 {
                failed.push((family, kv_dtype));
            }
        }
    }
    assert!(failed.is_empty(), "further away: {failed:?}");
}
