//! The sampling fields that chat and completions share: OpenAI's, and vLLM's beside them.

use std::collections::HashMap;

use serde::Deserialize;

use super::fields::{Seed, Stop, TokenKey};
use crate::api::SamplingRequest;

/// Read from the same body as the endpoint's own fields. Ranges are checked behind the edge, where
/// all dialects meet.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct SamplingFields {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    logit_bias: Option<HashMap<TokenKey, f32>>,
    seed: Option<Seed>,
    stop: Option<Stop>,
    stop_token_ids: Option<Vec<u32>>,
    min_tokens: Option<u32>,
    max_tokens: Option<u32>,
    /// OpenAI's newer name of `max_tokens`; it wins.
    max_completion_tokens: Option<u32>,
    ignore_eos: Option<bool>,
    n: Option<u32>,
    prompt_logprobs: Option<u32>,
    include_stop_str_in_output: Option<bool>,
    skip_special_tokens: Option<bool>,
}

impl SamplingFields {
    /// All but `logprobs`, which the two endpoints ask for in different ways.
    pub(super) fn into_request(self) -> SamplingRequest {
        SamplingRequest {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias: self
                .logit_bias
                .into_iter()
                .flatten()
                .map(|(token, bias)| (token.0, bias))
                .collect(),
            seed: self.seed.map(|seed| seed.0),
            stop: self.stop.unwrap_or_default().0,
            stop_token_ids: self.stop_token_ids.unwrap_or_default(),
            min_tokens: self.min_tokens,
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            n: self.n,
            logprobs: None,
            prompt_logprobs: self.prompt_logprobs,
            include_stop: self.include_stop_str_in_output.unwrap_or(false),
            keep_special_tokens: !self.skip_special_tokens.unwrap_or(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_arrives() {
        let body = r#"{"temperature":0.5,"top_p":0.9,"top_k":-1,"min_p":0.1,"repetition_penalty":1.1,"frequency_penalty":0.2,
            "presence_penalty":-0.3,"logit_bias":{"12":-100},"seed":-2,"stop":"END","stop_token_ids":[1,2],"min_tokens":3,
            "max_tokens":4,"max_completion_tokens":5,"ignore_eos":true,"n":2,"prompt_logprobs":1,
            "include_stop_str_in_output":true,"skip_special_tokens":false,"user":"ignored"}"#;
        let fields: SamplingFields = serde_json::from_str(body).unwrap();
        let expected = SamplingRequest {
            temperature: Some(0.5),
            top_p: Some(0.9),
            top_k: Some(-1),
            min_p: Some(0.1),
            repetition_penalty: Some(1.1),
            frequency_penalty: Some(0.2),
            presence_penalty: Some(-0.3),
            logit_bias: HashMap::from([(12, -100.0)]),
            seed: Some(u64::MAX - 1),
            stop: vec!["END".into()],
            stop_token_ids: vec![1, 2],
            min_tokens: Some(3),
            max_tokens: Some(5),
            ignore_eos: true,
            n: Some(2),
            logprobs: None,
            prompt_logprobs: Some(1),
            include_stop: true,
            keep_special_tokens: true,
        };
        assert_eq!(fields.into_request(), expected);
    }

    #[test]
    fn null_is_absent() {
        let body = r#"{"temperature":null,"stop":null,"seed":null,"logit_bias":null,"n":null,"max_tokens":null,"stop_token_ids":null,"ignore_eos":null,"skip_special_tokens":null}"#;
        let fields: SamplingFields = serde_json::from_str(body).unwrap();
        assert_eq!(fields.into_request(), SamplingRequest::default());
    }
}
