//! A request's sampling parameters, complete and already validated.

use std::borrow::Cow;

use millrace_kernels::{Draw, Edits, Seen};

use super::{Token, Want};

/// Every field has its value: defaults were applied by the router.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// In (0, 1].
    pub top_p: f32,
    /// 0: all.
    pub top_k: u32,
    /// Relative to the most probable token, in [0, 1].
    pub min_p: f32,
    /// Above 0; 1 is none.
    pub repetition_penalty: f32,
    pub frequency_penalty: f32,
    pub presence_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: u64,
    /// End generation, besides the model's end tokens.
    pub stop_token_ids: Vec<u32>,
    /// No end or stop token before this many.
    pub min_tokens: usize,
    /// Over the whole output, replayed tokens included.
    pub max_tokens: usize,
    pub ignore_eos: bool,
    /// Alternatives a generated token; `Some(0)`: only the chosen token's log-prob.
    pub logprobs: Option<usize>,
    /// Likewise for the prompt's tokens.
    pub prompt_logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> SamplingParams {
        SamplingParams {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            stop_token_ids: Vec::new(),
            min_tokens: 0,
            max_tokens: usize::MAX,
            ignore_eos: false,
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}

/// Below this a temperature is greedy (vLLM's bound).
const GREEDY_BELOW: f32 = 1e-5;

impl SamplingParams {
    /// Whether the token with the largest logit is taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature < GREEDY_BELOW
    }

    /// What is wanted of the row of output token number `index`, after tokens that are `seen` (nothing where there are
    /// no penalties). `ends`: the model's end tokens.
    pub fn want<'a>(&'a self, index: usize, seen: Cow<'a, [Seen]>, ends: &[u32]) -> Want<'a> {
        let banned = match index < self.min_tokens {
            true => [ends, &self.stop_token_ids].concat(),
            false => Vec::new(),
        };
        let edited = !(self.logit_bias.is_empty() && banned.is_empty() && seen.is_empty());
        let edits = edited.then(|| Edits {
            bias: &self.logit_bias,
            banned,
            repetition: self.repetition_penalty,
            frequency: self.frequency_penalty,
            presence: self.presence_penalty,
            seen,
        });
        Want {
            edits,
            token: match self.is_greedy() {
                true => Token::Best,
                false => Token::Drawn(self.draw(index)),
            },
            log_probs: self.logprobs,
        }
    }

    fn draw(&self, index: usize) -> Draw {
        Draw {
            inverse_temperature: 1.0 / self.temperature,
            min_p: self.min_p,
            top_k: self.top_k,
            top_p: self.top_p,
            quantile: uniform(self.seed, index as u64),
        }
    }

    /// Whether earlier tokens change a token's logits.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }
}

/// Uniform in [0, 1), a function of its arguments: two rounds of SplitMix64's finaliser.
fn uniform(seed: u64, index: u64) -> f64 {
    let mixed = mix(mix(seed).wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
