//! What can be wrong with a checkpoint folder.

use std::path::PathBuf;

use super::header::Dtype;
use crate::config::ConfigError;

/// A folder that cannot be served, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot read {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "{dir} has neither model.safetensors nor model.safetensors.index.json; \
         convert other formats (such as pytorch_model.bin) to safetensors first"
    )]
    NoWeights { dir: PathBuf },
    /// The 8-byte length or the JSON after it.
    #[error("{path}: broken safetensors header: {reason}; download the file again")]
    Header { path: PathBuf, reason: String },
    /// The header is readable but lies about a tensor.
    #[error("{path}: tensor {tensor}: {reason}; download the file again")]
    Layout {
        path: PathBuf,
        tensor: String,
        reason: String,
    },
    #[error("{path}: broken shard index: {reason}")]
    Index { path: PathBuf, reason: String },
    #[error("shard {path} is named in the index but missing ({source}); download it")]
    MissingShard {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "tensor {tensor} should be in {path} according to the index, but is not; download that shard again"
    )]
    NotInShard { tensor: String, path: PathBuf },
    #[error("the checkpoint has no tensor {tensor}; is config.json of the same model?")]
    MissingTensor { tensor: String },
    #[error("tensor {tensor} has shape {found:?} but config.json implies {expected:?}")]
    Shape {
        tensor: String,
        found: Vec<usize>,
        expected: Vec<usize>,
    },
    #[error("tensor {tensor} is stored as {found}; supported here: {expected}")]
    Dtype {
        tensor: String,
        found: Dtype,
        expected: &'static str,
    },
    /// FP8 weights without the configuration or the scales to read them by.
    #[error("tensor {tensor} is FP8, but {reason}")]
    Fp8 {
        tensor: String,
        reason: &'static str,
    },
    #[error(
        "tensor {tensor} has a value that is not finite (or a bad FP8 scale) at row {row}, column {col}"
    )]
    NotFinite {
        tensor: String,
        row: usize,
        col: usize,
    },
}
