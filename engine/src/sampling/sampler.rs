//! Chooses one token from one row of logits.

use std::collections::{HashMap, HashSet};

use millrace_kernels::cpu::{Drawer, arg_max};

use super::SamplingParams;

/// The tokens before, as penalties see them. Kept only for requests that have penalties.
#[derive(Debug, Clone, Default)]
pub struct History {
    prompt: HashSet<u32>,
    output: HashMap<u32, u32>,
}

impl History {
    pub fn new(prompt: &[u32], output: &[u32]) -> History {
        let mut history = History {
            prompt: prompt.iter().copied().collect(),
            output: HashMap::new(),
        };
        for &token in output {
            history.push(token);
        }
        history
    }

    /// Notes a generated token.
    pub fn push(&mut self, token: u32) {
        *self.output.entry(token).or_default() += 1;
    }
}

/// A logit was NaN, or no token can be chosen at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model's logits are not finite")]
pub struct NotFinite;

/// Chooses by whatever a request asks for.
#[derive(Debug, Default)]
pub struct Sampler {
    drawer: Drawer,
}

impl Sampler {
    /// Chooses output token number `index` (0 for the first). `banned` tokens cannot be chosen
    /// (end tokens before `min_tokens`). Changes `logits`.
    pub fn choose(
        &mut self,
        logits: &mut [f32],
        params: &SamplingParams,
        history: Option<&History>,
        banned: &[u32],
        index: usize,
    ) -> Result<u32, NotFinite> {
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(NotFinite);
        }
        for &(token, bias) in &params.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        for &token in banned {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        if let Some(history) = history {
            penalise(logits, params, history);
        }
        let (best, max) = arg_max(logits);
        if !max.is_finite() {
            return Err(NotFinite);
        }
        if params.is_greedy() {
            return Ok(best);
        }
        Ok(self.drawer.draw(logits, max, &params.draw(index)))
    }
}

/// Repetition (Keskar et al. 2019) over prompt and output; frequency and presence over output.
fn penalise(logits: &mut [f32], params: &SamplingParams, history: &History) {
    let repetition = params.repetition_penalty;
    if repetition != 1.0 {
        let unseen_in_prompt = history
            .output
            .keys()
            .filter(|token| !history.prompt.contains(token));
        for &token in history.prompt.iter().chain(unseen_in_prompt) {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 {
                    *logit / repetition
                } else {
                    *logit * repetition
                };
            }
        }
    }
    for (&token, &count) in &history.output {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit -= params.frequency_penalty * count as f32 + params.presence_penalty;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled(temperature: f32) -> SamplingParams {
        SamplingParams {
            temperature,
            ..SamplingParams::default()
        }
    }

    fn draw_many(logits: &[f32], params: &SamplingParams, count: u64) -> Vec<f64> {
        let mut sampler = Sampler::default();
        let mut frequency = vec![0.0; logits.len()];
        for seed in 0..count {
            let params = SamplingParams {
                seed,
                ..params.clone()
            };
            let token = sampler
                .choose(&mut logits.to_vec(), &params, None, &[], 3)
                .unwrap();
            frequency[token as usize] += 1.0 / count as f64;
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
        assert_eq!(
            support(SamplingParams {
                top_k: 2,
                ..sampled(1.0)
            }),
            [0, 1]
        );
        // Shares are 0.644, 0.237, 0.087, 0.032.
        assert_eq!(
            support(SamplingParams {
                top_p: 0.64,
                ..sampled(1.0)
            }),
            [0]
        );
        assert_eq!(
            support(SamplingParams {
                top_p: 0.65,
                ..sampled(1.0)
            }),
            [0, 1]
        );
        assert_eq!(
            support(SamplingParams {
                min_p: 0.3,
                ..sampled(1.0)
            }),
            [0, 1]
        );
        // top_p counts within what top_k left: 0.731 and 0.269.
        assert_eq!(
            support(SamplingParams {
                top_k: 2,
                top_p: 0.7,
                ..sampled(1.0)
            }),
            [0]
        );
    }

    #[test]
    fn penalties_bias_and_bans_move_the_greedy_choice() {
        let mut sampler = Sampler::default();
        let mut greedy = |params: &SamplingParams, history: Option<&History>, banned: &[u32]| {
            sampler
                .choose(&mut [2.0, 1.9, -1.0], params, history, banned, 0)
                .unwrap()
        };
        let plain = SamplingParams::default();
        assert_eq!(greedy(&plain, None, &[]), 0);
        assert_eq!(greedy(&plain, None, &[0]), 1);
        assert_eq!(
            greedy(
                &SamplingParams {
                    logit_bias: vec![(2, 10.0)],
                    ..plain.clone()
                },
                None,
                &[]
            ),
            2
        );
        let history = History::new(&[0], &[]);
        let repetition = SamplingParams {
            repetition_penalty: 1.1,
            ..plain.clone()
        };
        assert_eq!(greedy(&repetition, Some(&history), &[]), 1);
        let history = History::new(&[], &[0]);
        assert_eq!(
            greedy(
                &SamplingParams {
                    presence_penalty: 0.2,
                    ..plain.clone()
                },
                Some(&history),
                &[]
            ),
            1
        );
        assert_eq!(
            greedy(
                &SamplingParams {
                    presence_penalty: 0.2,
                    ..plain
                },
                Some(&History::new(&[0], &[])),
                &[]
            ),
            0
        );
    }

    #[test]
    fn not_a_number_is_an_error_and_never_a_token() {
        let mut sampler = Sampler::default();
        let params = sampled(1.0);
        assert_eq!(
            sampler.choose(&mut [f32::NAN, 0.0], &params, None, &[], 0),
            Err(NotFinite)
        );
        assert_eq!(
            sampler.choose(&mut [0.0, 1.0], &params, None, &[0, 1], 0),
            Err(NotFinite)
        );
    }
}
