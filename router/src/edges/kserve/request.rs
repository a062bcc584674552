//! A `ModelInferRequest`, read into the router's own terms.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use millrace_proto::kserve::ModelInferRequest;
use serde_json::{Map, Value};

use super::super::grpc::Caller;
use super::error::{InferError, TensorProblem};
use super::parameters;
use super::tensor::Input;
use crate::api::{CompletionRequest, Prompt, SamplingRequest};

/// As in vLLM's sampling parameters, and so in Triton's backend.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Whether the call can answer in pieces.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rpc {
    /// `ModelInfer`
    Unary,
    /// `ModelStreamInfer`
    Stream,
}

/// A request, and how its answer is to look.
#[derive(Debug)]
pub(super) struct Infer {
    pub(super) request: CompletionRequest,
    /// A response a step; otherwise one at the end.
    pub(super) stream: bool,
    pub(super) choices: u32,
    pub(super) outputs: Outputs,
}

/// The tensors of each response.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Outputs {
    pub(super) text: bool,
    pub(super) token_ids: bool,
    pub(super) finish_reason: bool,
    pub(super) num_input_tokens: bool,
    pub(super) num_output_tokens: bool,
}

/// The inputs by name, each believed once it is read.
struct Inputs<'a>(HashMap<&'a str, Input<'a>>);

impl<'a> Inputs<'a> {
    fn of(request: &'a ModelInferRequest) -> Result<Inputs<'a>, InferError> {
        let (inputs, raw) = (request.inputs.len(), request.raw_input_contents.len());
        if raw != 0 && raw != inputs {
            return Err(InferError::RawCount { inputs, raw });
        }
        let mut named = HashMap::new();
        for (at, tensor) in request.inputs.iter().enumerate() {
            let raw = request.raw_input_contents.get(at).map(Vec::as_slice);
            if named
                .insert(tensor.name.as_str(), Input { tensor, raw })
                .is_some()
            {
                return Err(problem(&tensor.name, TensorProblem::Twice));
            }
        }
        Ok(Inputs(named))
    }

    fn take<T>(
        &mut self,
        name: &str,
        read: fn(&Input<'a>) -> Result<T, TensorProblem>,
    ) -> Result<Option<T>, InferError> {
        self.0
            .remove(name)
            .map(|input| read(&input).map_err(|it| problem(name, it)))
            .transpose()
    }

    fn flag(&mut self, name: &str) -> Result<Option<bool>, InferError> {
        self.take(name, Input::flag)
    }

    /// Nothing may be left: a misspelt input must not go unnoticed.
    fn done(self) -> Result<(), InferError> {
        match self.0.into_keys().min() {
            None => Ok(()),
            Some(name @ ("image" | "return_logprobs" | "return_cumulative_logprob")) => {
                Err(problem(name, TensorProblem::Unsupported))
            }
            Some(name) => Err(problem(name, TensorProblem::Unknown)),
        }
    }
}

fn problem(name: &str, problem: TensorProblem) -> InferError {
    InferError::Input {
        name: name.to_owned(),
        problem,
    }
}

/// # Errors
/// The first tensor, output or parameter that cannot be used.
pub(super) fn read(
    request: &ModelInferRequest,
    caller: &Caller,
    rpc: Rpc,
) -> Result<Infer, InferError> {
    let mut inputs = Inputs::of(request)?;
    let text = inputs.take("text_input", Input::text)?;
    let ids = inputs.take("input_ids", Input::token_ids)?;
    let prompt = match (text, ids) {
        (Some(text), None) => Prompt::Text(text.to_owned()),
        (None, Some(ids)) => Prompt::Tokens(ids),
        (None, None) => return Err(InferError::NoPrompt),
        (Some(_), Some(_)) => return Err(InferError::TwoPrompts),
    };
    let stream = inputs.flag("stream")?.unwrap_or(false);
    if stream && rpc == Rpc::Unary {
        return Err(InferError::StreamedUnary);
    }
    let echo = match inputs.flag("exclude_input_in_output")? {
        Some(false) if stream => return Err(InferError::EchoedStream),
        Some(exclude) => !exclude,
        None => !stream,
    };
    let mut sampling = SamplingRequest::default();
    let deadline = read_parameters(request, &mut sampling)?
        .into_iter()
        .chain(caller.deadline)
        .min();
    if let Some(json) = inputs.take("sampling_parameters", Input::text)? {
        let parsed: Map<String, Value> = serde_json::from_str(json).map_err(|error| {
            problem(
                "sampling_parameters",
                TensorProblem::NotJson(error.to_string()),
            )
        })?;
        parameters::set_all(&mut sampling, &parsed)?;
    }
    let choices = sampling.n.unwrap_or(1);
    let mut outputs = outputs(request, choices)?;
    outputs.finish_reason |= inputs.flag("return_finish_reason")?.unwrap_or(false);
    outputs.num_input_tokens |= inputs.flag("return_num_input_tokens")?.unwrap_or(false);
    outputs.num_output_tokens |= inputs.flag("return_num_output_tokens")?.unwrap_or(false);
    inputs.done()?;
    let mut options = caller.options(&request.id, String::new());
    options.deadline = deadline;
    let request = CompletionRequest {
        model: request.model_name.clone(),
        prompt,
        sampling,
        default_max_tokens: Some(DEFAULT_MAX_TOKENS),
        echo,
        options,
    };
    Ok(Infer {
        request,
        stream,
        choices,
        outputs,
    })
}

/// Reads the request's parameter map; returns the deadline it sets.
fn read_parameters(
    request: &ModelInferRequest,
    sampling: &mut SamplingRequest,
) -> Result<Option<Instant>, InferError> {
    let mut deadline = None;
    for (name, parameter) in &request.parameters {
        let Some(value) = parameters::to_json(parameter) else {
            continue;
        };
        match name.as_str() {
            // Triton's own: microseconds; 0 is none.
            "timeout" => {
                let micros = value
                    .as_u64()
                    .ok_or_else(|| InferError::parameter(name, "it must be microseconds from 0"))?;
                deadline = (micros > 0)
                    .then(|| Instant::now().checked_add(Duration::from_micros(micros)))
                    .flatten();
            }
            // Final responses are never empty here, and there are no priorities to keep.
            "triton_enable_empty_final_response" | "priority" | "binary_data_output" => {}
            "sequence_id" if value != 0 && value != "" => {
                return Err(InferError::parameter(
                    name,
                    "sequences are not supported; a prompt carries its whole history",
                ));
            }
            "sequence_id" | "sequence_start" | "sequence_end" => {}
            _ => parameters::set(sampling, name, &value)?,
        }
    }
    Ok(deadline)
}

fn outputs(request: &ModelInferRequest, choices: u32) -> Result<Outputs, InferError> {
    if request.outputs.is_empty() {
        return Ok(Outputs {
            text: true,
            finish_reason: true,
            token_ids: choices == 1,
            ..Outputs::default()
        });
    }
    let mut outputs = Outputs::default();
    for output in &request.outputs {
        for parameter in ["classification", "shared_memory_region"] {
            if output.parameters.contains_key(parameter) {
                return Err(InferError::OutputParameter {
                    name: output.name.clone(),
                    parameter: parameter.to_owned(),
                });
            }
        }
        match output.name.as_str() {
            "text_output" => outputs.text = true,
            "token_ids" if choices != 1 => return Err(InferError::RaggedTokens { n: choices }),
            "token_ids" => outputs.token_ids = true,
            "finish_reason" => outputs.finish_reason = true,
            "num_input_tokens" => outputs.num_input_tokens = true,
            "num_output_tokens" => outputs.num_output_tokens = true,
            other => {
                return Err(InferError::Output {
                    name: other.to_owned(),
                });
            }
        }
    }
    Ok(outputs)
}

#[cfg(test)]
mod tests;
