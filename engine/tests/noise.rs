//! Fidelity where arithmetic is coarser than the goldens': how far log-probs are from the float32 reference's, next to
//! how far transformers' own run in the same arithmetic is (`tests/golden/noise.json`; `tests/golden/noise.py` says what
//! its figures are).
//!
//! On a GPU that is bf16, and FP8 for the checkpoint whose FP8 weights a GPU multiplies in 8 bits. On the CPU, which
//! widens weights and computes in float32, it is bf16 with pages in bf16, and float32 itself otherwise.
//!
//! ```text
//! cargo test --release -p millrace-engine --test noise -- --nocapture
//! cargo test --release -p millrace-engine --test noise --features test-on-cuda -- --nocapture
//! ```

mod common;

use common::*;
use millrace_engine::{EngineConfig, SamplingParams};
use millrace_kernels::KvDtype;
use serde_json::Value;

/// Of the reference's most probable tokens, and of ours that are looked through for them.
const TOP: usize = 20;
const OURS: usize = 100;
/// What float32 implementations differ by at most (golden.rs).
const FLOAT_BAR: f32 = 1e-3;
const ON_GPU: bool = cfg!(feature = "test-on-cuda");

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
}

/// What is allowed to a family.
struct Noise {
    /// The arithmetic that it is the noise of.
    name: &'static str,
    spread: Spread,
    /// Whether the largest difference counts, too. In coarse arithmetic it is a token whose experts flipped.
    to_the_last: bool,
    figures: Value,
}

impl Noise {
    fn of(family: &str, kv_dtype: KvDtype) -> Noise {
        let path = golden_dir(family).join("../noise.json");
        let all: Value =
            serde_json::from_slice(&std::fs::read(path).expect("noise.json")).expect("JSON");
        let in_fp8 = ON_GPU && all[family].get("fp8").is_some();
        let in_float = !ON_GPU && kv_dtype == KvDtype::F32;
        let figures = all[family][if in_fp8 { "fp8" } else { "bf16" }].clone();
        let number = |key: &str| match in_float {
            true => FLOAT_BAR,
            false => figures[key].as_f64().expect("a number") as f32,
        };
        Noise {
            name: match (in_float, in_fp8) {
                (true, _) => "float32",
                (_, true) => "transformers' fp8",
                _ => "transformers' bf16",
            },
            spread: Spread {
                median: number("median"),
                p90: number("p90"),
                max: number("max"),
            },
            to_the_last: in_float,
            figures,
        }
    }

    /// Greedy steps that this noise does not change: experts are as far from flipping as the best two tokens are.
    fn clear_steps(&self, prompt: &str) -> impl Iterator<Item = usize> {
        let steps = self.figures["steps"][prompt].as_array().expect("steps");
        steps
            .iter()
            .map(|step| step.as_u64().expect("a step") as usize)
    }

    fn allows(&self, found: &Found) -> bool {
        found.spread.median <= self.spread.median
            && found.spread.p90 <= self.spread.p90
            && (!self.to_the_last || found.spread.max <= self.spread.max)
            && found.differing == 0
    }
}

struct Found {
    spread: Spread,
    /// Clear greedy steps, and those of them where we chose another token.
    compared: usize,
    differing: usize,
}

/// Log-probs of the reference's tokens at all its positions, of prompts and of greedy continuations, both given to
/// the engine as prompts, so that one token that differs does not change all after it.
fn compare(family: &str, noise: &Noise, config: EngineConfig) -> Found {
    let golden = Golden::open(family);
    let mut engine = engine(family, config);
    let (mut differences, mut compared, mut differing) = (Vec::new(), 0, 0);
    for (number, prompt) in PROMPTS.iter().enumerate() {
        let tokens = golden.ids(&format!("{prompt}.tokens"));
        let greedy_tokens = golden.ids(&format!("{prompt}.greedy_tokens"));
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
                differences.push((ours - logprob).abs());
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
        let rows = ids.chunks(TOP).zip(logprobs.chunks(TOP)).enumerate();
        let chosen: Vec<u32> = rows
            .map(|(step, (ids, logprobs))| see(tokens.len() - 1 + step, ids, logprobs))
            .collect();
        for step in noise.clear_steps(prompt) {
            compared += 1;
            differing += usize::from(chosen[step] != greedy_tokens[step]);
        }
    }
    Found {
        spread: Spread::of(differences),
        compared,
        differing,
    }
}

#[test]
fn every_family_is_as_near_to_its_goldens_as_its_arithmetic_allows() {
    let mut failed = Vec::new();
    for family in FAMILIES {
        for kv_dtype in [KvDtype::Bf16, KvDtype::F32] {
            let config = EngineConfig {
                kv_dtype,
                ..float_config()
            };
            let noise = Noise::of(family, kv_dtype);
            let found = compare(family, &noise, config);
            let (ours, theirs) = (found.spread, noise.spread);
            println!(
                "{family:21} {:4} pages: median {:.1e} ({:.1e} in {}), p90 {:.1e} ({:.1e}), max {:.1e} ({:.1e}); \
                 {} of {} clear greedy steps differ",
                kv_dtype.as_str(),
                ours.median,
                theirs.median,
                noise.name,
                ours.p90,
                theirs.p90,
                ours.max,
                theirs.max,
                found.differing,
                found.compared,
            );
            if !noise.allows(&found) {
                failed.push((family, kv_dtype));
            }
        }
    }
    assert!(failed.is_empty(), "further away: {failed:?}");
}
