//! Sampling values: what the client asked for, else what the checkpoint recommends, else vLLM's
//! defaults; and whether they make sense.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use millrace_model::config::SamplingDefaults;

use super::model::ServedModel;
use crate::api::{RequestError, SamplingRequest};
use crate::dispatch::Sampling;

const MAX_STOP_STRINGS: usize = 16;
/// Every generated character is compared with all of them.
const MAX_STOP_BYTES: usize = 1024;
const MAX_STOP_TOKENS: usize = 256;
const MAX_LOGIT_BIASES: usize = 1024;
const MAX_LOGPROBS: u32 = 20;
/// Below this, sampling is greedy (vLLM's value): dividing logits by less only makes infinities.
const GREEDY_BELOW: f32 = 1e-5;

/// Valid and complete sampling of a request, whose prompt is not known yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// For the first choice. Its `max_tokens` is set by [`Resolved::fit`].
    pub sampling: Sampling,
    pub choices: u32,
    pub stop: Vec<String>,
    pub include_stop: bool,
    pub keep_special_tokens: bool,
    /// As asked for; `None`: as `default_max_tokens` says.
    max_tokens: Option<u32>,
}

/// Checks and completes `request`. `seed` is used if it has none. `scores_prompt`: `max_tokens` may
/// be 0.
///
/// # Errors
/// `Invalid` with the field to blame.
pub fn resolve(
    request: &SamplingRequest,
    model: &ServedModel,
    max_choices: u32,
    scores_prompt: bool,
    seed: impl FnOnce() -> u64,
) -> Result<Resolved, RequestError> {
    let SamplingDefaults {
        temperature,
        top_p,
        top_k,
        repetition_penalty,
    } = model.defaults;
    let vocab = model.vocab_size;

    let temperature = request.temperature.or(temperature).unwrap_or(1.0);
    within("temperature", temperature, 0.0..=f32::MAX)?;
    let top_p = request.top_p.or(top_p).unwrap_or(1.0);
    within("top_p", top_p, 0.0..=1.0)?;
    if top_p == 0.0 {
        return Err(invalid("top_p", "top_p must be greater than 0".into()));
    }
    let top_k = match request.top_k {
        Some(-1) => 0, // as vLLM writes "all"
        Some(k) => u32::try_from(k).map_err(|_| {
            invalid(
                "top_k",
                format!("top_k must be 0 or -1 (all) or positive, not {k}"),
            )
        })?,
        None => top_k.unwrap_or(0),
    };
    let min_p = request.min_p.unwrap_or(0.0);
    within("min_p", min_p, 0.0..=1.0)?;
    let repetition_penalty = request
        .repetition_penalty
        .or(repetition_penalty)
        .unwrap_or(1.0);
    within(
        "repetition_penalty",
        repetition_penalty,
        f32::MIN_POSITIVE..=f32::MAX,
    )?;
    let frequency_penalty = request.frequency_penalty.unwrap_or(0.0);
    within("frequency_penalty", frequency_penalty, -2.0..=2.0)?;
    let presence_penalty = request.presence_penalty.unwrap_or(0.0);
    within("presence_penalty", presence_penalty, -2.0..=2.0)?;

    let choices = request.n.unwrap_or(1);
    count("n", choices, 1..=max_choices)?;
    for (field, asked) in [
        ("logprobs", request.logprobs),
        ("prompt_logprobs", request.prompt_logprobs),
    ] {
        count(field, asked.unwrap_or(0), 0..=MAX_LOGPROBS)?;
    }
    check_logit_bias(&request.logit_bias, vocab)?;
    check_stop(&request.stop)?;
    count(
        "stop_token_ids",
        request.stop_token_ids.len(),
        0..=MAX_STOP_TOKENS,
    )?;
    if let Some(&id) = request.stop_token_ids.iter().find(|&&id| id >= vocab) {
        return Err(invalid(
            "stop_token_ids",
            not_in_vocabulary("stop_token_ids", id, vocab),
        ));
    }
    let min_tokens = request.min_tokens.unwrap_or(0);
    if let Some(max) = request.max_tokens {
        if max == 0 && !scores_prompt {
            return Err(invalid(
                "max_tokens",
                "max_tokens must be at least 1".into(),
            ));
        }
        if min_tokens > max {
            let message = format!("min_tokens ({min_tokens}) must not exceed max_tokens ({max})");
            return Err(invalid("min_tokens", message));
        }
    }
    Ok(Resolved {
        sampling: Sampling {
            temperature: if temperature < GREEDY_BELOW {
                0.0
            } else {
                temperature
            },
            top_p,
            top_k: top_k.min(vocab),
            min_p,
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            logit_bias: request.logit_bias.clone(),
            seed: request.seed.unwrap_or_else(seed),
            stop_token_ids: request.stop_token_ids.clone(),
            min_tokens,
            max_tokens: 0,
            ignore_eos: request.ignore_eos,
            logprobs: request.logprobs,
            prompt_logprobs: request.prompt_logprobs,
        },
        choices,
        stop: request.stop.clone(),
        include_stop: request.include_stop,
        keep_special_tokens: request.keep_special_tokens,
        max_tokens: request.max_tokens,
    })
}

/// What is left to generate once the prompt is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Generate {
        max_tokens: u32,
    },
    /// `max_tokens` is 0: one token is generated for its prompt's log-probs, and dropped.
    ScorePrompt,
}

impl Resolved {
    /// How much may be generated after `prompt_tokens` in a context of `max_model_len`.
    /// `default`: what an absent `max_tokens` means, as far as there is room.
    ///
    /// # Errors
    /// `Invalid`, naming the numbers, if the prompt leaves no room, or less than was asked for.
    pub fn fit(
        &self,
        prompt_tokens: usize,
        max_model_len: u32,
        default: Option<u32>,
    ) -> Result<Room, RequestError> {
        let context = max_model_len as usize;
        let room = context.saturating_sub(prompt_tokens) as u32;
        if room == 0 {
            return Err(invalid(
                "prompt",
                format!(
                    "the model's context is {context} tokens, but the prompt has {prompt_tokens}, which leaves no room to generate; shorten it"
                ),
            ));
        }
        match self.max_tokens {
            Some(0) => Ok(Room::ScorePrompt),
            Some(asked) if asked > room => Err(invalid(
                "max_tokens",
                format!(
                    "the model's context is {context} tokens, but {} were asked for ({prompt_tokens} in the prompt, {asked} to generate); lower max_tokens to {room} or less, or shorten the prompt",
                    prompt_tokens + asked as usize
                ),
            )),
            Some(asked) => Ok(Room::Generate { max_tokens: asked }),
            None => {
                let max_tokens = default
                    .unwrap_or(room)
                    .max(self.sampling.min_tokens)
                    .min(room);
                Ok(Room::Generate { max_tokens })
            }
        }
    }
}

pub fn invalid(field: &'static str, message: String) -> RequestError {
    RequestError::Invalid {
        message,
        param: Some(field),
    }
}

/// Why a token id is refused.
pub fn not_in_vocabulary(field: &str, id: u32, vocab: u32) -> String {
    format!("{field}: token id {id} is not in the vocabulary of {vocab} tokens")
}

fn within(field: &'static str, value: f32, range: RangeInclusive<f32>) -> Result<(), RequestError> {
    // NaN is in no range.
    if range.contains(&value) {
        return Ok(());
    }
    let (low, high) = (*range.start(), *range.end());
    let wanted = match (low, high) {
        (0.0, f32::MAX) => "a finite number of at least 0".to_owned(),
        (_, f32::MAX) => "a finite number greater than 0".to_owned(),
        _ => format!("between {low} and {high}"),
    };
    Err(invalid(
        field,
        format!("{field} must be {wanted}, not {value}"),
    ))
}

fn count<N: PartialOrd + std::fmt::Display>(
    field: &'static str,
    value: N,
    range: RangeInclusive<N>,
) -> Result<(), RequestError> {
    if range.contains(&value) {
        return Ok(());
    }
    let (low, high) = range.into_inner();
    Err(invalid(
        field,
        format!("{field} must be {low} to {high}, not {value}"),
    ))
}

fn check_logit_bias(bias: &HashMap<u32, f32>, vocab: u32) -> Result<(), RequestError> {
    count("logit_bias", bias.len(), 0..=MAX_LOGIT_BIASES)?;
    for (&id, &value) in bias {
        if id >= vocab {
            return Err(invalid(
                "logit_bias",
                not_in_vocabulary("logit_bias", id, vocab),
            ));
        }
        within("logit_bias", value, -100.0..=100.0)?;
    }
    Ok(())
}

fn check_stop(stop: &[String]) -> Result<(), RequestError> {
    if stop.len() > MAX_STOP_STRINGS {
        let message = format!(
            "stop has {} strings; at most {MAX_STOP_STRINGS}",
            stop.len()
        );
        return Err(invalid("stop", message));
    }
    if stop.iter().any(String::is_empty) {
        return Err(invalid("stop", "stop strings must not be empty".into()));
    }
    if let Some(long) = stop.iter().find(|s| s.len() > MAX_STOP_BYTES) {
        let message = format!(
            "a stop string has {} bytes; at most {MAX_STOP_BYTES}",
            long.len()
        );
        return Err(invalid("stop", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
