//! What can be wrong with an inference request.

use tonic::{Code, Status};

use super::super::grpc::status;
use crate::api::RequestError;

/// Why a request was not answered. All but the last are INVALID_ARGUMENT, or NOT_FOUND for a version.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum InferError {
    #[error("input `{name}`: {problem}")]
    Input {
        name: String,
        problem: TensorProblem,
    },
    #[error(
        "the request has {raw} raw_input_contents for {inputs} inputs; send one an input, or none"
    )]
    RawCount { inputs: usize, raw: usize },
    #[error(
        "the request has no prompt: send the input `text_input` (BYTES [1]) or `input_ids` (INT32 or INT64 [n])"
    )]
    NoPrompt,
    #[error("the request has both `text_input` and `input_ids`; send one of them")]
    TwoPrompts,
    #[error("`exclude_input_in_output` cannot be false when `stream` is true")]
    EchoedStream,
    #[error("`stream` needs ModelStreamInfer; ModelInfer gives one response")]
    StreamedUnary,
    #[error(
        "there is no output `{name}`; there are text_output, token_ids, finish_reason, num_input_tokens and num_output_tokens"
    )]
    Output { name: String },
    #[error("the output `{name}` with `{parameter}` is not supported")]
    OutputParameter { name: String, parameter: String },
    #[error("the output `token_ids` is available with one choice only; `n` is {n}")]
    RaggedTokens { n: u32 },
    #[error("parameter `{name}`: {problem}")]
    Parameter { name: String, problem: String },
    #[error(
        "the model `{model}` has no version {version:?}; leave the version out or send {served:?}"
    )]
    Version {
        model: String,
        version: String,
        served: String,
    },
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// What is wrong with one input tensor.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum TensorProblem {
    #[error("there is no such input; see ModelMetadata for those there are")]
    Unknown,
    #[error("it is there twice")]
    Twice,
    #[error("its datatype is {got:?} and must be {expected}")]
    Datatype { got: String, expected: &'static str },
    #[error("its shape {0:?} is no shape: sizes must not be negative, and their product must fit")]
    Shape(Vec<i64>),
    #[error("its shape {shape:?} must be {expected}")]
    Rank {
        shape: Vec<i64>,
        expected: &'static str,
    },
    #[error("it has `contents` beside raw_input_contents; send one of them")]
    BothForms,
    #[error("its shape needs {expected} values, and it has {got} in `{field}`")]
    Count {
        expected: usize,
        got: usize,
        field: &'static str,
    },
    #[error("its shape needs {expected} raw bytes, and it has {got}")]
    Bytes { expected: usize, got: usize },
    #[error("raw element {element} is cut off at byte {at}")]
    CutOff { element: usize, at: usize },
    #[error("{extra} raw bytes follow its last element")]
    Trailing { extra: usize },
    #[error("it is not UTF-8 (byte {at})")]
    NotUtf8 { at: usize },
    #[error("it is not a JSON object of parameters: {0}")]
    NotJson(String),
    #[error("element {element} is {value}, which is no token id")]
    NotTokenId { element: usize, value: i64 },
    #[error("element {element} is the byte {value}, and a BOOL is 0 or 1")]
    NotBool { element: usize, value: u8 },
    #[error("its data is in shared memory, which is not supported; send it in the request")]
    SharedMemory,
    #[error("it is not supported")]
    Unsupported,
}

impl InferError {
    pub(super) fn parameter(name: &str, problem: impl Into<String>) -> InferError {
        InferError::Parameter {
            name: name.to_owned(),
            problem: problem.into(),
        }
    }

    pub(super) fn into_status(self) -> Status {
        let message = self.to_string();
        match self {
            InferError::Request(error) => status::from_error(error),
            InferError::Version { .. } => Status::new(Code::NotFound, message),
            InferError::Input { name, .. } | InferError::Parameter { name, .. } => {
                status::invalid(&name, message)
            }
            _ => status::invalid("inputs", message),
        }
    }
}
