//! What the dispatcher is given and what it gives back: tokens, no text.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_telemetry::traces::Span;

use crate::api::FinishReason;

/// One sequence to generate.
#[derive(Debug, Clone)]
pub struct Job {
    /// Appears in the workers' logs; attempts and choices add to it.
    pub request_id: String,
    /// At least one token.
    pub prompt: Arc<[u32]>,
    pub sampling: Sampling,
    /// Sequences with different salts share no cached prefix.
    pub cache_salt: Arc<str>,
    pub deadline: Option<Instant>,
    /// The request's. Every attempt is a part of it.
    pub span: Span,
}

/// Complete and valid sampling values; text is gone. Ranges as in the public contract.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    pub temperature: f32,
    pub top_p: f32,
    /// 0: all.
    pub top_k: u32,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub frequency_penalty: f32,
    pub presence_penalty: f32,
    pub logit_bias: HashMap<u32, f32>,
    /// Always set, so that a replay draws the same tokens.
    pub seed: u64,
    /// Besides the model's end tokens.
    pub stop_token_ids: Vec<u32>,
    pub min_tokens: u32,
    /// At least 1. Counted over the whole output, whoever generated it.
    pub max_tokens: u32,
    pub ignore_eos: bool,
    pub logprobs: Option<u32>,
    pub prompt_logprobs: Option<u32>,
}

/// A step of a sequence.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Update {
    pub tokens: Vec<Token>,
    /// Once, with the first update, whoever generates it.
    pub first: Option<First>,
    /// With the last update.
    pub end: Option<End>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub id: u32,
    /// With `Sampling::logprobs`.
    pub logprob: Option<f32>,
    /// Most probable first.
    pub top: Vec<Candidate>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    pub id: u32,
    pub logprob: f32,
}

/// What became of the prompt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct First {
    /// Prompt tokens found in a prefix cache.
    pub cached_tokens: u32,
    /// One a prompt token, with `Sampling::prompt_logprobs`.
    pub prompt: Vec<PromptToken>,
    /// As the workers measured it.
    pub timing: Option<Timing>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct PromptToken {
    /// `None` for the first token of a prompt.
    pub logprob: Option<f32>,
    pub top: Vec<Candidate>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// Until pages were reserved.
    pub queue: Duration,
    /// From then to the first token.
    pub prefill: Duration,
    /// A prefill worker did it.
    pub remote_prefill: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub reason: FinishReason,
    /// The end or stop token that finished it.
    pub stop_token: Option<u32>,
}
