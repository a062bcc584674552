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
mod tests {
    use super::*;
    use millrace_proto::kserve::infer_parameter::ParameterChoice;
    use millrace_proto::kserve::model_infer_request::{
        InferInputTensor, InferRequestedOutputTensor,
    };
    use millrace_proto::kserve::{InferParameter, InferTensorContents};
    use proptest::prelude::*;
    use tonic::metadata::MetadataMap;

    fn caller() -> Caller {
        Caller::of(&MetadataMap::new())
    }

    fn input(name: &str, datatype: &str, contents: InferTensorContents) -> InferInputTensor {
        InferInputTensor {
            name: name.into(),
            datatype: datatype.into(),
            shape: vec![1],
            contents: Some(contents),
            ..Default::default()
        }
    }

    fn text(name: &str, value: &str) -> InferInputTensor {
        input(
            name,
            "BYTES",
            InferTensorContents {
                bytes_contents: vec![value.into()],
                ..Default::default()
            },
        )
    }

    fn flag(name: &str, value: bool) -> InferInputTensor {
        input(
            name,
            "BOOL",
            InferTensorContents {
                bool_contents: vec![value],
                ..Default::default()
            },
        )
    }

    fn request(inputs: Vec<InferInputTensor>) -> ModelInferRequest {
        ModelInferRequest {
            model_name: "tiny-r1".into(),
            id: "7".into(),
            inputs,
            ..Default::default()
        }
    }

    fn refused(request: &ModelInferRequest, rpc: Rpc) -> String {
        let status = read(request, &caller(), rpc).unwrap_err().into_status();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        status.message().to_owned()
    }

    #[test]
    fn text_and_parameters() {
        let mut wire = request(vec![
            text("text_input", "hi"),
            text("sampling_parameters", r#"{"temperature":"0.5"}"#),
        ]);
        let parameter = |choice| InferParameter {
            parameter_choice: Some(choice),
        };
        wire.parameters.insert(
            "max_tokens".into(),
            parameter(ParameterChoice::Int64Param(9)),
        );
        wire.parameters.insert(
            "temperature".into(),
            parameter(ParameterChoice::DoubleParam(0.1)),
        );
        wire.parameters.insert(
            "timeout".into(),
            parameter(ParameterChoice::Int64Param(1_000_000)),
        );
        wire.parameters.insert(
            "priority".into(),
            parameter(ParameterChoice::Uint64Param(1)),
        );
        let infer = read(&wire, &caller(), Rpc::Unary).unwrap();
        assert_eq!(infer.request.prompt, Prompt::Text("hi".into()));
        assert_eq!(infer.request.options.request_id, "7");
        assert!(infer.request.options.deadline.is_some() && infer.request.echo && !infer.stream);
        // The tensor wins over the map.
        assert_eq!(infer.request.sampling.temperature, Some(0.5));
        assert_eq!(infer.request.sampling.max_tokens, Some(9));
        assert_eq!(infer.request.default_max_tokens, Some(16));
        let expected = Outputs {
            text: true,
            token_ids: true,
            finish_reason: true,
            ..Outputs::default()
        };
        assert_eq!((infer.choices, infer.outputs), (1, expected));
    }

    #[test]
    fn streams_leave_the_prompt_out() {
        let streamed = |exclude: Option<bool>| {
            let mut inputs = vec![text("text_input", "hi"), flag("stream", true)];
            inputs.extend(exclude.map(|it| flag("exclude_input_in_output", it)));
            request(inputs)
        };
        assert!(
            !read(&streamed(None), &caller(), Rpc::Stream)
                .unwrap()
                .request
                .echo
        );
        assert!(
            !read(&streamed(Some(true)), &caller(), Rpc::Stream)
                .unwrap()
                .request
                .echo
        );
        assert!(refused(&streamed(Some(false)), Rpc::Stream).contains("cannot be false"));
        assert!(refused(&streamed(None), Rpc::Unary).contains("ModelStreamInfer"));
        let whole = request(vec![
            text("text_input", "hi"),
            flag("exclude_input_in_output", true),
        ]);
        assert!(!read(&whole, &caller(), Rpc::Unary).unwrap().request.echo);
    }

    #[test]
    fn outputs_by_name_and_by_flag() {
        let mut wire = request(vec![
            text("text_input", "hi"),
            flag("return_num_output_tokens", true),
        ]);
        let output = |name: &str| InferRequestedOutputTensor {
            name: name.into(),
            ..Default::default()
        };
        wire.outputs = vec![output("text_output")];
        let expected = Outputs {
            text: true,
            num_output_tokens: true,
            ..Outputs::default()
        };
        assert_eq!(
            read(&wire, &caller(), Rpc::Unary).unwrap().outputs,
            expected
        );
        wire.outputs = vec![output("logits")];
        assert!(refused(&wire, Rpc::Unary).contains("`logits`"));
        wire.outputs = vec![output("token_ids")];
        wire.inputs.push(text("sampling_parameters", r#"{"n":2}"#));
        assert!(refused(&wire, Rpc::Unary).contains("`n` is 2"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(refused(&request(vec![]), Rpc::Unary).contains("no prompt"));
        assert!(
            refused(
                &request(vec![text("text_input", "a"), text("text_input", "b")]),
                Rpc::Unary
            )
            .contains("twice")
        );
        assert!(
            refused(
                &request(vec![text("text_input", "a"), text("txet", "b")]),
                Rpc::Unary
            )
            .contains("`txet`")
        );
        assert!(
            refused(
                &request(vec![text("text_input", "a"), text("image", "b")]),
                Rpc::Unary
            )
            .contains("not supported")
        );
        assert!(
            refused(
                &request(vec![
                    text("text_input", "a"),
                    text("sampling_parameters", "[]")
                ]),
                Rpc::Unary
            )
            .contains("JSON object")
        );
        let mut wire = request(vec![text("text_input", "a")]);
        wire.raw_input_contents = vec![vec![], vec![]];
        assert!(refused(&wire, Rpc::Unary).contains("2 raw_input_contents for 1 inputs"));
        wire.raw_input_contents = vec![b"\x01\0\0\0a".to_vec()];
        assert!(refused(&wire, Rpc::Unary).contains("`contents` beside raw_input_contents"));
        let mut wire = request(vec![text("text_input", "a")]);
        let parameter = InferParameter {
            parameter_choice: Some(ParameterChoice::Int64Param(3)),
        };
        wire.parameters.insert("sequence_id".into(), parameter);
        assert!(refused(&wire, Rpc::Unary).contains("sequences are not supported"));
    }

    fn arbitrary_input() -> impl Strategy<Value = (InferInputTensor, Vec<u8>)> {
        let name = prop::sample::select(vec![
            "text_input",
            "input_ids",
            "stream",
            "sampling_parameters",
            "other",
        ]);
        let datatype = prop::sample::select(vec!["BYTES", "BOOL", "INT32", "INT64", ""]);
        let shape = prop::collection::vec(prop_oneof![Just(1_i64), any::<i64>()], 0..3);
        (name, datatype, shape, any::<Vec<u8>>(), any::<bool>()).prop_map(
            |(name, datatype, shape, raw, typed)| {
                let contents = typed.then(|| InferTensorContents {
                    bytes_contents: vec![raw.clone()],
                    ..Default::default()
                });
                (
                    InferInputTensor {
                        name: name.into(),
                        datatype: datatype.into(),
                        shape,
                        contents,
                        ..Default::default()
                    },
                    raw,
                )
            },
        )
    }

    proptest! {
        #[test]
        fn any_request_is_read_or_refused(inputs in prop::collection::vec(arbitrary_input(), 0..4), with_raw: bool) {
            let (inputs, raw): (Vec<_>, Vec<_>) = inputs.into_iter().unzip();
            let mut wire = request(inputs);
            if with_raw {
                wire.raw_input_contents = raw;
            }
            let _ = read(&wire, &caller(), Rpc::Stream).map_err(InferError::into_status);
        }
    }
}
