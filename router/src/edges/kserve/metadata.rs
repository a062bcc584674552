//! What KServe clients can learn of this server and its model.

use millrace_proto::kserve::model_metadata_response::TensorMetadata;
use millrace_proto::kserve::{ModelMetadataResponse, ServerMetadataResponse};

use crate::api::ModelCard;

/// Only what is there: of the protocol's extensions, request parameters.
pub(super) fn server() -> ServerMetadataResponse {
    ServerMetadataResponse {
        name: "millrace".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        extensions: vec!["parameters".into()],
    }
}

/// The tensors that [`super`] lists.
pub(super) fn model(card: ModelCard) -> ModelMetadataResponse {
    ModelMetadataResponse {
        name: card.name,
        versions: vec![card.revision],
        platform: "millrace".into(),
        inputs: vec![
            tensor("text_input", "BYTES", 1),
            tensor("input_ids", "INT64", -1),
            tensor("stream", "BOOL", 1),
            tensor("exclude_input_in_output", "BOOL", 1),
            tensor("sampling_parameters", "BYTES", 1),
            tensor("return_finish_reason", "BOOL", 1),
            tensor("return_num_input_tokens", "BOOL", 1),
            tensor("return_num_output_tokens", "BOOL", 1),
        ],
        outputs: vec![
            tensor("text_output", "BYTES", -1),
            tensor("token_ids", "INT64", -1),
            tensor("finish_reason", "BYTES", -1),
            tensor("num_input_tokens", "UINT32", 1),
            tensor("num_output_tokens", "UINT32", -1),
        ],
    }
}

fn tensor(name: &str, datatype: &str, size: i64) -> TensorMetadata {
    TensorMetadata {
        name: name.into(),
        datatype: datatype.into(),
        shape: vec![size],
    }
}
