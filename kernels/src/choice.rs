//! What is asked of rows of logits: how they are changed before a token is chosen, how one is drawn, and how
//! probable it was.

use std::borrow::Cow;

/// Changes of a row of logits before a token is chosen from it, in the order of the fields. Tokens that the row has
/// no logit for are passed over, and a NaN stays one whatever is done to it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Edits<'a> {
    /// Added, one after another where a token comes again.
    pub bias: &'a [(u32, f32)],
    /// Become -inf.
    pub banned: Vec<u32>,
    /// Logits of all of `seen` above 0 are divided by it, others multiplied; 1 is none (Keskar et al. 2019).
    pub repetition: f32,
    /// `frequency * count + presence` is subtracted from those that were generated.
    pub frequency: f32,
    pub presence: f32,
    /// Each token once.
    pub seen: Cow<'a, [Seen]>,
}

/// A token that came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Seen {
    pub token: u32,
    /// How often it was generated; 0 where only the prompt has it.
    pub count: u32,
}

/// How a token is drawn from a row of logits: weights are `e^((logit - largest) * inverse_temperature)`; of those that
/// are at least `min_p`, `top_k` (0: all) and then `top_p` of the sum leave the largest, and the token is the one
/// at `quantile` in [0, 1) when the rest stand one after another by token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    pub inverse_temperature: f32,
    pub min_p: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub quantile: f64,
}

/// A token of a row whose log-probs are wanted: its own, and those of the `count` most probable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scored {
    pub row: usize,
    pub token: u32,
    pub count: usize,
}

/// The chosen token's log-prob and the most probable alternatives.
#[derive(Debug, Clone, PartialEq)]
pub struct LogProbs {
    pub chosen: f32,
    /// Most probable first; equal ones in order of token id.
    pub top: Vec<(u32, f32)>,
}

impl LogProbs {
    /// From logits: the row's largest, the sum of `e^(logit - largest)` over it, the chosen token's, and the largest
    /// with their tokens in any order.
    pub(crate) fn new(largest: f32, sum: f64, chosen: f32, mut top: Vec<(u32, f32)>) -> LogProbs {
        let log_sum = f64::from(largest) + sum.ln();
        let log_prob = |logit: f32| (f64::from(logit) - log_sum) as f32;
        top.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for (_, value) in &mut top {
            *value = log_prob(*value);
        }
        LogProbs {
            chosen: log_prob(chosen),
            top,
        }
    }
}
