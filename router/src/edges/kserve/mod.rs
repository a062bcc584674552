//! KServe v2 (the Open Inference Protocol), with the tensors of Triton's vLLM backend.
//!
//! | input | datatype, shape | |
//! |---|---|---|
//! | `text_input` | BYTES [1] | the prompt; or else |
//! | `input_ids` | INT32 or INT64 [n] or [1, n] | the prompt's token ids |
//! | `stream` | BOOL [1] | `ModelStreamInfer`: a response a step, and not one at the end |
//! | `exclude_input_in_output` | BOOL [1] | absent: true when streaming, otherwise **false** |
//! | `sampling_parameters` | BYTES [1] | a JSON object, vLLM's names; the request's parameters work too |
//! | `return_finish_reason`, `return_num_input_tokens`, `return_num_output_tokens` | BOOL [1] | adds that output |
//!
//! | output | datatype, shape | |
//! |---|---|---|
//! | `text_output` | BYTES [n choices] | new text |
//! | `token_ids` | INT64 [m] | new tokens; with one choice only |
//! | `finish_reason` | BYTES [n choices] | `stop`, `length`, or empty while it goes on |
//! | `num_input_tokens` | UINT32 [1] | |
//! | `num_output_tokens` | UINT32 [n choices] | of this response |
//!
//! A request that names no outputs gets `text_output`, `finish_reason` and, with one choice,
//! `token_ids`. `max_tokens` is 16 unless given, as there. There is no chat: the prompt is completed
//! as it is.

mod answer;
mod error;
mod metadata;
mod parameters;
mod request;
mod service;
mod stream;
mod tensor;

pub(super) use service::KserveEdge;
