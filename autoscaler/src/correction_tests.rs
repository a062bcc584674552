use super::*;
use crate::histogram::Histogram;
use crate::load::Prompt;
use crate::model::{DecodeModel, PerformanceModel, PrefillModel};
use crate::observation::Distribution;
use crate::policy::{Behavior, Objectives, PoolPolicy};
use crate::window::{Fleet, Sums};

const STEP: f64 = 0.02;

fn policy() -> Policy {
    let pool = PoolPolicy {
        min: 1,
        max: 8,
        ranks: 1,
        gpus: 1,
    };
    Policy {
        objectives: Objectives::default(),
        pools: ByRole {
            prefill: pool,
            decode: pool,
        },
        max_gpus: None,
        behavior: Behavior::default(),
        scale_to_zero: None,
        schedule: Vec::new(),
        cold_start_seconds: 60.0,
        local_prefill_tokens: 0,
        model: PerformanceModel {
            prefill: PrefillModel {
                chunk_tokens: 2048,
                base_seconds: STEP,
                seconds_per_token: 1e-4,
                seconds_per_token_context: 0.0,
            },
            decode: DecodeModel {
                base_seconds: STEP,
                seconds_per_sequence: 0.0,
                seconds_per_context_token: 0.0,
            },
            max_running: 8,
            kv_tokens: 1 << 20,
        },
    }
}

fn shape() -> Shape {
    Shape {
        prompts: vec![Prompt {
            share: 1.0,
            tokens: 100.0,
            cached: 0.0,
        }],
        generation: 100.0,
        generation_variation: 0.0,
        tokens_per_update: 1.0,
        context: 150.0,
        turns: 8.0,
        fits: 1000.0,
    }
}

/// What three decode ranks were seen doing for a minute: so many sequences each, and tokens so far apart.
fn seen(batch: f64, itl: f64) -> Totals {
    let tokens = 10_000;
    let itl = Distribution {
        bounds: vec![itl, 10.0 * itl],
        counts: vec![tokens, 0, 0],
        sum: tokens as f64 * itl,
    };
    Totals {
        seconds: 60.0,
        sums: Sums {
            arrived: 60,
            itl: Histogram::of(&itl).expect("consistent"),
            ..Sums::default()
        },
        fleet: Fleet {
            decode_seen: 36.0,
            decoding: 36.0 * batch,
            ..Fleet::default()
        },
    }
}

#[test]
fn few_sequences_correct_the_model_of_decode() {
    let replicas = ByRole {
        prefill: 1,
        decode: 3,
    };
    for (batch, learns) in [(0.01, false), (0.2, true), (3.0, true)] {
        let mut learned = Learned::default();
        for _ in 0..60 {
            let seen = seen(batch, STEP / 2.0);
            learned.learn(&policy(), &shape(), &seen, replicas, 5.0);
        }
        let decode = learned.believed().decode;
        let expected = if learns { 0.5 } else { 1.0 };
        assert!(
            (decode - expected).abs() < 0.01,
            "{batch} sequences: {decode}"
        );
    }
}
