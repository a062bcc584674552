//! Between the dispatcher's types and the worker contract.

use std::time::Duration;

use millrace_proto::worker::v1 as proto;

use super::job::{Candidate, End, First, Job, PromptToken, Timing, Token, Update};
use super::placement::Placed;
use crate::api::FinishReason;

/// A job's request to a decode worker, `output` already generated.
pub fn request(
    job: &Job,
    request_id: String,
    output: &[u32],
    prefill: Option<&Placed>,
    prompt_logprobs: Option<u32>,
) -> proto::GenerateRequest {
    let s = &job.sampling;
    proto::GenerateRequest {
        request_id,
        prompt_token_ids: job.prompt.to_vec(),
        output_token_ids: output.to_vec(),
        sampling: Some(proto::Sampling {
            temperature: s.temperature,
            top_p: s.top_p,
            top_k: s.top_k,
            min_p: s.min_p,
            repetition_penalty: s.repetition_penalty,
            frequency_penalty: s.frequency_penalty,
            presence_penalty: s.presence_penalty,
            logit_bias: s.logit_bias.clone(),
            seed: s.seed,
            stop_token_ids: s.stop_token_ids.clone(),
            min_tokens: s.min_tokens,
            max_tokens: s.max_tokens,
            ignore_eos: s.ignore_eos,
            logprobs: s.logprobs,
            prompt_logprobs,
        }),
        prefill: prefill.map(|placed| proto::PrefillTarget {
            worker_id: placed.worker_id.clone(),
            address: placed.address.clone(),
        }),
        cache_salt: job.cache_salt.to_string(),
    }
}

/// A worker's update. `is_first`: what it says of the prompt counts.
pub fn update(update: proto::GenerateUpdate, is_first: bool) -> Update {
    let reason = match update.finish() {
        proto::FinishReason::Unspecified => None,
        proto::FinishReason::Stop => Some(FinishReason::Stop),
        proto::FinishReason::Length => Some(FinishReason::Length),
    };
    let first = is_first.then(|| First {
        cached_tokens: update.cached_tokens.unwrap_or(0),
        prompt: update.prompt.into_iter().map(prompt_token).collect(),
        timing: update.timing.map(timing),
    });
    Update {
        tokens: update.tokens.into_iter().map(token).collect(),
        first,
        end: reason.map(|reason| End {
            reason,
            stop_token: update.stop_token_id,
        }),
    }
}

fn token(token: proto::Token) -> Token {
    Token {
        id: token.id,
        logprob: token.logprob,
        top: candidates(token.top),
    }
}

fn prompt_token(token: proto::PromptToken) -> PromptToken {
    PromptToken {
        logprob: token.logprob,
        top: candidates(token.top),
    }
}

fn candidates(top: Vec<proto::CandidateToken>) -> Vec<Candidate> {
    top.into_iter()
        .map(|c| Candidate {
            id: c.id,
            logprob: c.logprob,
        })
        .collect()
}

fn timing(timing: proto::Timing) -> Timing {
    // A clock that went backwards must not take the request down.
    let seconds = |s: f64| Duration::try_from_secs_f64(s).unwrap_or_default();
    Timing {
        queue: seconds(timing.queue_seconds),
        prefill: seconds(timing.prefill_seconds),
        remote_prefill: timing.remote_prefill,
    }
}
