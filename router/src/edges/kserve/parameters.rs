//! Sampling by name and value, from a JSON tensor or from the request's parameter map.
//!
//! Triton's examples write numbers as strings (`{"temperature": "0.1"}`), so both are taken.

use std::str::FromStr;

use millrace_proto::kserve::InferParameter;
use millrace_proto::kserve::infer_parameter::ParameterChoice;
use serde_json::{Map, Value};

use super::error::InferError;
use crate::api::SamplingRequest;

/// Sets one parameter.
///
/// # Errors
/// The name is unknown (most often a misspelling, which must not go unnoticed) or the value does not fit.
pub(super) fn set(
    sampling: &mut SamplingRequest,
    name: &str,
    value: &Value,
) -> Result<(), InferError> {
    let wrong = |expected: &str| InferError::parameter(name, format!("{value} is not {expected}"));
    let real = || {
        number::<f32>(value)
            .filter(|it| it.is_finite())
            .ok_or_else(|| wrong("a finite number"))
    };
    let count = || number::<u32>(value).ok_or_else(|| wrong("a whole number from 0"));
    let flag = || boolean(value).ok_or_else(|| wrong("true or false"));
    match name {
        "temperature" => sampling.temperature = Some(real()?),
        "top_p" => sampling.top_p = Some(real()?),
        "top_k" => sampling.top_k = Some(number(value).ok_or_else(|| wrong("a whole number"))?),
        "min_p" => sampling.min_p = Some(real()?),
        "repetition_penalty" => sampling.repetition_penalty = Some(real()?),
        "frequency_penalty" => sampling.frequency_penalty = Some(real()?),
        "presence_penalty" => sampling.presence_penalty = Some(real()?),
        "seed" => {
            // Negative seeds are as good as others.
            let seed =
                number::<u64>(value).or_else(|| number::<i64>(value).map(i64::cast_unsigned));
            sampling.seed = Some(seed.ok_or_else(|| wrong("a 64-bit integer"))?);
        }
        "stop" => {
            sampling.stop = strings(value).ok_or_else(|| wrong("a string or a list of strings"))?
        }
        "stop_token_ids" => {
            sampling.stop_token_ids = ids(value).ok_or_else(|| wrong("a list of token ids"))?
        }
        "logit_bias" => {
            sampling.logit_bias =
                bias(value).ok_or_else(|| wrong("an object of token ids and numbers"))?
        }
        "min_tokens" => sampling.min_tokens = Some(count()?),
        "max_tokens" => sampling.max_tokens = Some(count()?),
        "n" => sampling.n = Some(count()?),
        "ignore_eos" => sampling.ignore_eos = flag()?,
        "include_stop_str_in_output" => sampling.include_stop = flag()?,
        "skip_special_tokens" => sampling.keep_special_tokens = !flag()?,
        _ => {
            return Err(InferError::parameter(
                name,
                "it is not known or not supported here",
            ));
        }
    }
    Ok(())
}

/// Sets all parameters of a JSON object.
pub(super) fn set_all(
    sampling: &mut SamplingRequest,
    parameters: &Map<String, Value>,
) -> Result<(), InferError> {
    let given = parameters.iter().filter(|(_, value)| !value.is_null());
    given
        .into_iter()
        .try_for_each(|(name, value)| set(sampling, name, value))
}

/// A request parameter as JSON. `None` for one without a value; a number that JSON cannot write
/// becomes null, which no parameter takes.
pub(super) fn to_json(parameter: &InferParameter) -> Option<Value> {
    Some(match parameter.parameter_choice.as_ref()? {
        ParameterChoice::BoolParam(value) => Value::from(*value),
        ParameterChoice::Int64Param(value) => Value::from(*value),
        ParameterChoice::Uint64Param(value) => Value::from(*value),
        ParameterChoice::DoubleParam(value) => Value::from(*value),
        ParameterChoice::StringParam(value) => Value::from(value.as_str()),
    })
}

/// A number, or its decimal form in a string.
fn number<T: FromStr>(value: &Value) -> Option<T> {
    match value {
        Value::Number(number) => number.to_string().parse().ok(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::String(text) => text.trim().to_ascii_lowercase().parse().ok(),
        _ => None,
    }
}

fn strings(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(all) => all
            .iter()
            .map(|it| it.as_str().map(str::to_owned))
            .collect(),
        _ => None,
    }
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    // The parameter map has no lists: there it is a string of JSON.
    match value {
        Value::String(text) => serde_json::from_str(text).ok(),
        list => serde_json::from_value(list.clone()).ok(),
    }
}

fn bias(value: &Value) -> Option<std::collections::HashMap<u32, f32>> {
    match value {
        Value::String(text) => serde_json::from_str(text).ok(),
        object => serde_json::from_value(object.clone()).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_strings() {
        let json = serde_json::json!({
            "temperature": "0.1", "top_p": 0.95, "top_k": "-1", "max_tokens": 100, "min_tokens": "3", "seed": -1, "n": 2,
            "stop": ["a", "b"], "stop_token_ids": "[1, 2]", "logit_bias": {"7": -1.5}, "ignore_eos": "True",
            "skip_special_tokens": false, "presence_penalty": null
        });
        let mut sampling = SamplingRequest::default();
        set_all(&mut sampling, json.as_object().unwrap()).unwrap();
        let expected = SamplingRequest {
            temperature: Some(0.1),
            top_p: Some(0.95),
            top_k: Some(-1),
            max_tokens: Some(100),
            min_tokens: Some(3),
            seed: Some(u64::MAX),
            n: Some(2),
            stop: vec!["a".into(), "b".into()],
            stop_token_ids: vec![1, 2],
            logit_bias: [(7, -1.5)].into(),
            ignore_eos: true,
            keep_special_tokens: true,
            ..Default::default()
        };
        assert_eq!(sampling, expected);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (name, value) in [
            ("temprature", serde_json::json!(1)),
            ("temperature", serde_json::json!("hot")),
            ("temperature", serde_json::json!("NaN")),
            ("temperature", serde_json::json!([1])),
            ("max_tokens", serde_json::json!(-1)),
            ("max_tokens", serde_json::json!(1.5)),
            ("ignore_eos", serde_json::json!(1)),
            ("stop", serde_json::json!([1])),
            ("stop_token_ids", serde_json::json!("1")),
            ("logit_bias", serde_json::json!({"a": 1})),
            ("logprobs", serde_json::json!(1)),
        ] {
            let error = set(&mut SamplingRequest::default(), name, &value).unwrap_err();
            assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
        }
    }

    #[test]
    fn parameters_of_the_request() {
        let json = |choice| {
            to_json(&InferParameter {
                parameter_choice: Some(choice),
            })
            .unwrap()
        };
        assert_eq!(json(ParameterChoice::Int64Param(5)), 5);
        assert_eq!(json(ParameterChoice::DoubleParam(f64::NAN)), Value::Null);
        assert_eq!(
            to_json(&InferParameter {
                parameter_choice: None
            }),
            None
        );
        assert!(set(&mut SamplingRequest::default(), "temperature", &Value::Null).is_err());
    }
}
