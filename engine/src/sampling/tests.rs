//! Tokens and log-probs of rows, by the ops of the processor.

use std::collections::{HashMap, HashSet};

use millrace_kernels::{Backend, cpu::CpuBackend};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::*;

/// Row by row of equal length, in one call.
fn answers(rows: &[(&[f32], Want<'_>)]) -> Vec<Answer> {
    let backend = CpuBackend::new(1);
    let copies = rows.iter().map(|(row, want)| row.repeat(want.rows()));
    let values: Vec<f32> = copies.flatten().collect();
    let cols = rows[0].0.len();
    let mut logits = backend.tensor_f32(values.len() / cols, cols);
    backend.write(&values, &mut logits);
    answer(&backend, &mut logits, rows.iter().map(|row| &row.1))
}

/// Output token number `index`; end tokens before `min_tokens` are `ends`.
fn choose(
    logits: &[f32],
    params: &SamplingParams,
    history: &History,
    ends: &[u32],
    index: usize,
) -> Result<u32, NotFinite> {
    let want = params.want(index, history.seen().into(), ends);
    answers(&[(logits, want)])[0].token
}

fn sampled(temperature: f32) -> SamplingParams {
    SamplingParams {
        temperature,
        ..SamplingParams::default()
    }
}

fn draw_many(logits: &[f32], params: &SamplingParams, count: u64) -> Vec<f64> {
    let params: Vec<SamplingParams> = (0..count)
        .map(|seed| SamplingParams {
            seed,
            ..params.clone()
        })
        .collect();
    let want = |params| SamplingParams::want(params, 3, [].as_slice().into(), &[]);
    let rows: Vec<_> = params.iter().map(|params| (logits, want(params))).collect();
    let mut frequency = vec![0.0; logits.len()];
    for answer in answers(&rows) {
        frequency[answer.token.unwrap() as usize] += 1.0 / count as f64;
    }
    frequency
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [0.0, 1.0, 2.0, -1.0];
    let total: f64 = logits.iter().map(|l| f64::from(l / 0.7f32).exp()).sum();
    let frequency = draw_many(&logits, &sampled(0.7), 20_000);
    for (f, l) in frequency.iter().zip(logits) {
        let p = f64::from(l / 0.7f32).exp() / total;
        // Five standard deviations of a binomial share.
        assert!(
            (f - p).abs() < 5.0 * (p * (1.0 - p) / 20_000.0).sqrt() + 1e-4,
            "{f} {p}"
        );
    }
}

#[test]
fn filters_leave_what_they_should() {
    let logits = [3.0, 2.0, 1.0, 0.0];
    let support = |params: SamplingParams| -> Vec<usize> {
        let f = draw_many(&logits, &params, 4_000);
        (0..4).filter(|&i| f[i] > 0.0).collect()
    };
    let top_k = SamplingParams {
        top_k: 2,
        ..sampled(1.0)
    };
    assert_eq!(support(top_k.clone()), [0, 1]);
    // Shares are 0.644, 0.237, 0.087, 0.032.
    let top_p = |top_p| SamplingParams {
        top_p,
        ..sampled(1.0)
    };
    assert_eq!(support(top_p(0.64)), [0]);
    assert_eq!(support(top_p(0.65)), [0, 1]);
    let min_p = SamplingParams {
        min_p: 0.3,
        ..sampled(1.0)
    };
    assert_eq!(support(min_p), [0, 1]);
    // top_p counts within what top_k left: 0.731 and 0.269.
    let both = SamplingParams {
        top_p: 0.7,
        ..top_k
    };
    assert_eq!(support(both), [0]);
}

#[test]
fn penalties_bias_and_bans_move_the_greedy_choice() {
    let greedy = |params: SamplingParams, history: &History, ends: &[u32]| {
        choose(&[2.0, 1.9, -1.0], &params, history, ends, 0).unwrap()
    };
    let none = History::default();
    let plain = SamplingParams {
        min_tokens: 1,
        ..SamplingParams::default()
    };
    assert_eq!(greedy(plain.clone(), &none, &[]), 0);
    assert_eq!(greedy(plain.clone(), &none, &[0]), 1);
    let stop = SamplingParams {
        stop_token_ids: vec![1],
        ..plain.clone()
    };
    assert_eq!(greedy(stop, &none, &[0]), 2);
    let bias = SamplingParams {
        logit_bias: vec![(2, 10.0)],
        ..plain.clone()
    };
    assert_eq!(greedy(bias, &none, &[]), 2);
    let repetition = SamplingParams {
        repetition_penalty: 1.1,
        ..plain.clone()
    };
    assert_eq!(greedy(repetition, &History::new(&[0], &[]), &[]), 1);
    let presence = SamplingParams {
        presence_penalty: 0.2,
        ..plain
    };
    assert_eq!(greedy(presence.clone(), &History::new(&[], &[0]), &[]), 1);
    assert_eq!(greedy(presence, &History::new(&[0], &[]), &[]), 0);
}

#[test]
fn not_a_number_is_an_error_and_never_a_token() {
    let params = SamplingParams {
        min_tokens: 1,
        ..sampled(1.0)
    };
    let none = History::default();
    let nan = [f32::NAN, 0.0];
    assert_eq!(choose(&nan, &params, &none, &[], 0), Err(NotFinite));
    // Nor where it could not be chosen.
    assert_eq!(choose(&nan, &params, &none, &[0], 0), Err(NotFinite));
    assert_eq!(
        choose(&[0.0, 1.0], &params, &none, &[0, 1], 0),
        Err(NotFinite)
    );
}

/// Edits by their definition, over a whole row.
fn edited(
    logits: &[f32],
    params: &SamplingParams,
    banned: &[u32],
    prompt: &[u32],
    output: &[u32],
) -> Vec<f32> {
    let mut logits = logits.to_vec();
    for &(token, bias) in &params.logit_bias {
        logits[token as usize] += bias;
    }
    for &token in banned {
        logits[token as usize] = f32::NEG_INFINITY;
    }
    let seen: HashSet<u32> = prompt.iter().chain(output).copied().collect();
    for token in seen {
        let logit = &mut logits[token as usize];
        if *logit > 0.0 {
            *logit /= params.repetition_penalty;
        } else {
            *logit *= params.repetition_penalty;
        }
    }
    let mut counts: HashMap<u32, u32> = HashMap::new();
    for &token in output {
        *counts.entry(token).or_default() += 1;
    }
    for (token, count) in counts {
        logits[token as usize] -= params.frequency_penalty * count as f32 + params.presence_penalty;
    }
    logits
}

/// One request of everything that may be asked for.
struct Case {
    logits: Vec<f32>,
    params: SamplingParams,
    prompt: Vec<u32>,
    output: Vec<u32>,
    history: History,
}

const VOCAB: u32 = 97;
const ENDS: [u32; 2] = [3, 50];

impl Case {
    fn random(rng: &mut SmallRng) -> Case {
        let tokens = |rng: &mut SmallRng, most: usize| -> Vec<u32> {
            let count = rng.random_range(0..=most);
            (0..count).map(|_| rng.random_range(0..VOCAB)).collect()
        };
        let (prompt, output) = (tokens(rng, 40), tokens(rng, 40));
        let params = SamplingParams {
            temperature: [0.0, 0.7][rng.random_range(0..2)],
            top_p: rng.random_range(0.5..1.0),
            repetition_penalty: [1.0, 1.3][rng.random_range(0..2)],
            frequency_penalty: [0.0, 0.3, -0.2][rng.random_range(0..3)],
            presence_penalty: [0.0, 0.4][rng.random_range(0..2)],
            logit_bias: tokens(rng, 3)
                .into_iter()
                .map(|token| (token, rng.random_range(-9.0..9.0)))
                .collect(),
            min_tokens: rng.random_range(0..40),
            stop_token_ids: tokens(rng, 2),
            seed: rng.random(),
            logprobs: [None, Some(0), Some(5)][rng.random_range(0..3)],
            ..SamplingParams::default()
        };
        // Few different values, so that there are ties.
        let logit = |rng: &mut SmallRng| rng.random_range(-20..20) as f32 / 4.0;
        let mut logits: Vec<f32> = (0..VOCAB).map(|_| logit(rng)).collect();
        if rng.random_bool(0.1) {
            logits[rng.random_range(0..VOCAB as usize)] = f32::NAN;
        }
        let history = match params.has_penalties() {
            true => History::new(&prompt, &output),
            false => History::default(),
        };
        Case {
            logits,
            params,
            prompt,
            output,
            history,
        }
    }

    fn want(&self) -> Want<'_> {
        let seen = self.history.seen().into();
        self.params.want(self.output.len(), seen, &ENDS)
    }

    /// The token of an edited row without any lists, and the log-probs of the row as it is.
    fn check(&self, found: &Answer) {
        let params = &self.params;
        let mut banned = Vec::new();
        if self.output.len() < params.min_tokens {
            banned = [&ENDS, &params.stop_token_ids[..]].concat();
        }
        let row = edited(&self.logits, params, &banned, &self.prompt, &self.output);
        let plain = SamplingParams {
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            min_tokens: 0,
            logprobs: None,
            ..params.clone()
        };
        let mut token = choose(&row, &plain, &History::default(), &[], self.output.len());
        if self.logits.iter().any(|logit| logit.is_nan()) {
            token = Err(NotFinite);
        }
        assert_eq!(found.token, token);
        let (Some(count), Ok(token)) = (params.logprobs, token) else {
            assert_eq!(found.log_probs, None);
            return;
        };
        let found = found.log_probs.as_ref().expect("wanted");
        let sum: f64 = self.logits.iter().map(|l| f64::from(*l).exp()).sum();
        let want = |token: u32| f64::from(self.logits[token as usize]) - sum.ln();
        assert!((f64::from(found.chosen) - want(token)).abs() < 1e-5);
        let mut order: Vec<u32> = (0..VOCAB).collect();
        order.sort_by(|a, b| want(*b).total_cmp(&want(*a)));
        let tokens: Vec<u32> = found.top.iter().map(|one| one.0).collect();
        assert_eq!(tokens, order[..count]);
        for (token, log_prob) in &found.top {
            assert!((f64::from(*log_prob) - want(*token)).abs() < 1e-5);
        }
    }
}

#[test]
fn rows_of_a_batch_are_answered_as_each_alone_and_by_the_definition() {
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    for _ in 0..50 {
        let cases: Vec<Case> = (0..20).map(|_| Case::random(&mut rng)).collect();
        let rows: Vec<_> = cases
            .iter()
            .map(|case| (&case.logits[..], case.want()))
            .collect();
        let together = answers(&rows);
        for ((case, row), found) in cases.iter().zip(rows).zip(&together) {
            case.check(found);
            assert_eq!(&answers(&[row])[0], found);
        }
    }
}
