//! How long a rank takes, by what it is given: measured once for a model on a kind of GPU.

use serde::{Deserialize, Serialize};

/// Of one rank (one worker): its times and its limits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PerformanceModel {
    pub prefill: PrefillModel,
    pub decode: DecodeModel,
    /// Most sequences a decode step. What workers report is preferred.
    pub max_running: u32,
    /// Tokens that a decode rank's cache holds. What workers report is preferred.
    pub kv_tokens: u64,
}

/// A chunk of `n` tokens takes `base + per_token * n + per_token_context * n * context` seconds. `context` is what one
/// of them looks back at on average: all tokens before the chunk, and half of the chunk.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrefillModel {
    /// Tokens of a full chunk.
    pub chunk_tokens: u32,
    pub base_seconds: f64,
    pub seconds_per_token: f64,
    pub seconds_per_token_context: f64,
}

/// A step of `batch` sequences that each have `context` tokens takes
/// `base + per_sequence * batch + per_context_token * batch * context` seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecodeModel {
    pub base_seconds: f64,
    pub seconds_per_sequence: f64,
    pub seconds_per_context_token: f64,
}

impl PrefillModel {
    /// Seconds to compute `tokens` after `cached` tokens, in full chunks.
    pub fn seconds(&self, tokens: f64, cached: f64) -> f64 {
        let chunks = (tokens / f64::from(self.chunk_tokens.max(1))).ceil();
        let context = cached + tokens / 2.0;
        self.base_seconds * chunks
            + self.seconds_per_token * tokens
            + self.seconds_per_token_context * tokens * context
    }
}

impl DecodeModel {
    /// Seconds of a step.
    pub fn step_seconds(&self, batch: f64, context: f64) -> f64 {
        self.base_seconds + batch * self.seconds_of_one(context)
    }

    /// What one sequence adds to a step.
    pub fn seconds_of_one(&self, context: f64) -> f64 {
        self.seconds_per_sequence + self.seconds_per_context_token * context
    }
}
