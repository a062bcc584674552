//! Sampling parameters.

use millrace_engine::SamplingParams;
use millrace_proto::worker::v1 as wire;

use super::{InvalidField, Problem, at_most};

/// Checks every value. `vocab_size` bounds token ids that are looked up, and counts of alternatives.
pub fn sampling_from_wire(
    sampling: wire::Sampling,
    vocab_size: usize,
) -> Result<SamplingParams, InvalidField> {
    let wire::Sampling {
        temperature,
        top_p,
        top_k,
        min_p,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        logit_bias,
        seed,
        stop_token_ids,
        min_tokens,
        max_tokens,
        ignore_eos,
        logprobs,
        prompt_logprobs,
    } = sampling;
    let penalty =
        |field, value: f32| require(field, value, "from -2 to 2", |x| (-2.0..=2.0).contains(&x));
    let alternatives = |field, count: Option<u32>| {
        count
            .map(|count| at_most(field, count, vocab_size))
            .transpose()
    };
    let params = SamplingParams {
        temperature: require("sampling.temperature", temperature, "0 or more", |x| {
            x >= 0.0
        })?,
        top_p: require("sampling.top_p", top_p, "above 0 and at most 1", |x| {
            x > 0.0 && x <= 1.0
        })?,
        top_k,
        min_p: require("sampling.min_p", min_p, "from 0 to 1", |x| {
            (0.0..=1.0).contains(&x)
        })?,
        repetition_penalty: require(
            "sampling.repetition_penalty",
            repetition_penalty,
            "above 0",
            |x| x > 0.0,
        )?,
        frequency_penalty: penalty("sampling.frequency_penalty", frequency_penalty)?,
        presence_penalty: penalty("sampling.presence_penalty", presence_penalty)?,
        logit_bias: bias(logit_bias, vocab_size)?,
        seed,
        stop_token_ids,
        min_tokens: at_most("sampling.min_tokens", min_tokens, max_tokens as usize)?,
        max_tokens: require_count("sampling.max_tokens", max_tokens)?,
        ignore_eos,
        logprobs: alternatives("sampling.logprobs", logprobs)?,
        prompt_logprobs: alternatives("sampling.prompt_logprobs", prompt_logprobs)?,
    };
    Ok(params)
}

/// The inverse, for the call from the decode to the prefill worker.
pub fn sampling_to_wire(params: &SamplingParams) -> wire::Sampling {
    wire::Sampling {
        temperature: params.temperature,
        top_p: params.top_p,
        top_k: params.top_k,
        min_p: params.min_p,
        repetition_penalty: params.repetition_penalty,
        frequency_penalty: params.frequency_penalty,
        presence_penalty: params.presence_penalty,
        logit_bias: params.logit_bias.iter().copied().collect(),
        seed: params.seed,
        stop_token_ids: params.stop_token_ids.clone(),
        min_tokens: clamp(params.min_tokens),
        max_tokens: clamp(params.max_tokens),
        ignore_eos: params.ignore_eos,
        logprobs: params.logprobs.map(clamp),
        prompt_logprobs: params.prompt_logprobs.map(clamp),
    }
}

fn clamp(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// `value` if it is finite and `allowed`, which `text` describes.
fn require(
    field: &'static str,
    value: f32,
    text: &'static str,
    allowed: impl Fn(f32) -> bool,
) -> Result<f32, InvalidField> {
    if value.is_finite() && allowed(value) {
        return Ok(value);
    }
    let problem = Problem::Range {
        value: value.into(),
        allowed: text,
    };
    Err(InvalidField { field, problem })
}

fn require_count(field: &'static str, count: u32) -> Result<usize, InvalidField> {
    if count == 0 {
        let problem = Problem::Range {
            value: 0.0,
            allowed: "1 or more",
        };
        return Err(InvalidField { field, problem });
    }
    Ok(count as usize)
}

/// Sorted by token, so that equal requests are equal however their map was laid out.
fn bias(
    bias: std::collections::HashMap<u32, f32>,
    vocab_size: usize,
) -> Result<Vec<(u32, f32)>, InvalidField> {
    let mut bias: Vec<(u32, f32)> = bias.into_iter().collect();
    bias.sort_unstable_by_key(|&(token, _)| token);
    for &(token, value) in &bias {
        at_most(
            "sampling.logit_bias token id",
            token,
            vocab_size.saturating_sub(1),
        )?;
        require("sampling.logit_bias", value, "finite", |_| true)?;
    }
    Ok(bias)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> wire::Sampling {
        sampling_to_wire(&SamplingParams {
            logit_bias: vec![(3, -1.0), (9, 2.0)],
            stop_token_ids: vec![7],
            logprobs: Some(5),
            max_tokens: 16,
            ..SamplingParams::default()
        })
    }

    #[test]
    fn parameters_survive_the_way_from_decode_to_prefill() {
        let params = sampling_from_wire(valid(), 100).unwrap();
        assert_eq!(
            sampling_from_wire(sampling_to_wire(&params), 100),
            Ok(params)
        );
    }

    #[test]
    fn every_bad_value_is_named() {
        type Change = fn(&mut wire::Sampling);
        let cases: [(&str, Change); 14] = [
            ("sampling.temperature", |s| s.temperature = f32::NAN),
            ("sampling.temperature", |s| s.temperature = -0.1),
            ("sampling.temperature", |s| s.temperature = f32::INFINITY),
            ("sampling.top_p", |s| s.top_p = 0.0),
            ("sampling.top_p", |s| s.top_p = 1.5),
            ("sampling.min_p", |s| s.min_p = -1.0),
            ("sampling.repetition_penalty", |s| {
                s.repetition_penalty = 0.0
            }),
            ("sampling.frequency_penalty", |s| s.frequency_penalty = 2.5),
            ("sampling.presence_penalty", |s| {
                s.presence_penalty = f32::NAN
            }),
            ("sampling.logit_bias", |s| {
                s.logit_bias.insert(1, f32::NEG_INFINITY);
            }),
            ("sampling.logit_bias token id", |s| {
                s.logit_bias.insert(100, 1.0);
            }),
            ("sampling.max_tokens", |s| s.max_tokens = 0),
            ("sampling.min_tokens", |s| s.min_tokens = 17),
            ("sampling.logprobs", |s| s.logprobs = Some(101)),
        ];
        for (field, change) in cases {
            let mut sampling = valid();
            change(&mut sampling);
            let error = sampling_from_wire(sampling, 100).unwrap_err();
            assert_eq!(error.field, field, "{error}");
            let status = tonic::Status::from(error);
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().starts_with(field), "{}", status.message());
        }
    }
}
