//! Fidelity: every family against goldens that transformers computed in float32.
//!
//! The bar: log-probs of the top 20 within 1e-3, and the same greedy tokens as long as the
//! reference's own top two are further apart than that.

// In float32, which a GPU's products are not: noise.rs looks at those.
#![cfg(not(feature = "test-on-cuda"))]

mod common;

use std::sync::Arc;

use common::*;
use millrace_engine::{
    SamplingParams,
    forward::{Forward, Ranks, Slots, page_layout},
};
use millrace_kernels::{Backend, Batch, KvDtype};
use millrace_model::checkpoint::Checkpoint;

const BAR: f32 = 1e-3;
const TOP: usize = 20;

fn with_logprobs(max_tokens: usize) -> SamplingParams {
    SamplingParams {
        logprobs: Some(TOP),
        prompt_logprobs: Some(TOP),
        ..greedy(max_tokens)
    }
}

/// Largest difference between the reference's top and ours, by token id. `ours` holds more than
/// the top, so that a token that swapped places is still found.
fn difference(ids: &[u32], reference: &[f32], ours: &[(u32, f32)]) -> f32 {
    ids.iter()
        .zip(reference)
        .map(
            |(id, logprob)| match ours.iter().find(|(ours, _)| ours == id) {
                Some((_, found)) => (found - logprob).abs(),
                None => {
                    // Below our last one: it differs at least by what separates it from that.
                    (logprob - ours.last().map_or(f32::NEG_INFINITY, |last| last.1)).abs()
                }
            },
        )
        .fold(0.0, f32::max)
}

#[test]
fn every_family_matches_its_goldens() {
    let mut worst_of_all = 0.0f32;
    for family in FAMILIES {
        let golden = Golden::open(family);
        let mut engine = engine(family, float_config());
        let mut worst = 0.0f32;
        for (number, prompt) in PROMPTS.iter().enumerate() {
            let tokens = golden.ids(&format!("{prompt}.tokens"));
            let greedy_tokens = golden.ids(&format!("{prompt}.greedy_tokens"));
            let gaps = golden.floats(&format!("{prompt}.greedy_gap"));
            let answer = run_one(
                &mut engine,
                number as u64,
                &tokens,
                with_logprobs(greedy_tokens.len()),
            );

            let positions = golden.ids(&format!("{prompt}.positions"));
            let ids = golden.ids(&format!("{prompt}.top_ids"));
            let logprobs = golden.floats(&format!("{prompt}.top_logprobs"));
            let start = answer.start.as_ref().expect("a first output");
            for ((&position, ids), logprobs) in positions
                .iter()
                .zip(ids.chunks(TOP))
                .zip(logprobs.chunks(TOP))
            {
                // The row at `position` is about the token after it.
                let ours = match start.prompt_logprobs.get(position as usize + 1) {
                    Some(about) => &about.as_ref().expect("only the first has none").top,
                    None => &answer.tokens[0].top,
                };
                let found = difference(ids, logprobs, ours);
                assert!(
                    found <= BAR,
                    "{family} {prompt} position {position}: {found}"
                );
                worst = worst.max(found);
            }

            let ids = golden.ids(&format!("{prompt}.greedy_top_ids"));
            let logprobs = golden.floats(&format!("{prompt}.greedy_top_logprobs"));
            for (step, token) in answer.tokens.iter().enumerate() {
                let at = step * TOP..(step + 1) * TOP;
                let found = difference(&ids[at.clone()], &logprobs[at], &token.top);
                assert!(found <= BAR, "{family} {prompt} step {step}: {found}");
                worst = worst.max(found);
                if gaps[step] <= BAR {
                    break; // From here on the reference itself could have gone another way.
                }
                assert_eq!(
                    token.id, greedy_tokens[step],
                    "{family} {prompt} step {step}"
                );
            }
        }
        println!("{family}: largest log-prob difference {worst:.2e}");
        worst_of_all = worst_of_all.max(worst);
    }
    println!("all families: {worst_of_all:.2e} (bar {BAR:.0e})");
}

/// The MTP layer's own choice, wherever the reference's top two are apart.
#[test]
fn mtp_drafts_match_their_goldens() {
    let mut compared = 0;
    for family in FAMILIES {
        let golden = Golden::open(family);
        if !golden.has("p65.mtp_positions") {
            continue;
        }
        let checkpoint = Checkpoint::open(&golden_dir(family)).expect("a golden checkpoint opens");
        let (rows, context) = (1100, 1100);
        let backend = Arc::new(backend(2));
        let layout = page_layout(checkpoint.config(), true, KvDtype::F32).expect("a layout");
        let pages = backend.pages(layout, 18).expect("a small pool");
        let mut forward = Forward::load(
            backend,
            &checkpoint,
            &float_config(),
            rows,
            context,
            Slots::All,
            &mut |_| {},
        )
        .expect("it loads");
        for prompt in PROMPTS {
            let mut tokens = golden.ids(&format!("{prompt}.tokens"));
            tokens.extend(golden.ids(&format!("{prompt}.greedy_tokens")));
            // Each position but the last has a next token to look at.
            let known = tokens.len() - 1;
            let mut batch = Batch::default();
            batch.push(&tokens[..known], 0, 0..18);
            let alone = &mut Ranks::Alone;
            forward.run(&batch, &pages, alone).expect("alone");
            batch.clear();
            batch.push(&tokens[1..], 0, 0..18);
            let all: Vec<usize> = (0..known).collect();
            let drafts = forward.draft(&batch, &all, &all, &pages, alone);
            let drafts = drafts.expect("alone");
            let positions = golden.ids(&format!("{prompt}.mtp_positions"));
            let ids = golden.ids(&format!("{prompt}.mtp_top_ids"));
            let logprobs = golden.floats(&format!("{prompt}.mtp_top_logprobs"));
            for (index, &position) in positions.iter().enumerate() {
                let top = &logprobs[index * TOP..];
                if top[0] - top[1] > BAR && (position as usize) < known {
                    let draft = drafts[position as usize];
                    assert_eq!(
                        draft,
                        ids[index * TOP],
                        "{family} {prompt} position {position}"
                    );
                    compared += 1;
                }
            }
        }
    }
    println!("{compared} drafts compared");
    assert!(compared > 500);
}
