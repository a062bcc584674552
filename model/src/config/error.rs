//! What can be wrong with a configuration.

use std::borrow::Cow;
use std::path::PathBuf;

/// A `config.json` or `generation_config.json` that does not describe a model Millrace can run.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "cannot read {path}: {source}; a model folder is a Hugging Face checkpoint with config.json in it"
    )]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{file} is not valid JSON: {source}")]
    Json {
        file: &'static str,
        source: serde_json::Error,
    },
    #[error("{file} must hold a JSON object, not {found}")]
    NotAnObject { file: &'static str, found: String },
    #[error("config.json: architecture {found} is not supported; supported are {}", SUPPORTED.join(", "))]
    Architecture { found: String },
    /// A key that every checkpoint of the architecture has is absent or null.
    #[error("{file}: `{key}` is missing; expected {expected}")]
    Missing {
        file: &'static str,
        key: String,
        expected: Cow<'static, str>,
    },
    /// A value of the wrong type, out of range, or at odds with another.
    #[error("{file}: `{key}` is {found}; expected {expected}")]
    Value {
        file: &'static str,
        key: String,
        found: String,
        expected: Cow<'static, str>,
    },
    /// A value that is meaningful to Hugging Face but not implemented here.
    #[error("{file}: `{key}` = {found} is not supported: {reason}")]
    Unsupported {
        file: &'static str,
        key: String,
        found: String,
        reason: Cow<'static, str>,
    },
}

/// The architectures [`super::ModelConfig::from_json`] knows.
pub const SUPPORTED: [&str; 5] = [
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "Qwen2ForCausalLM",
    "LlamaForCausalLM",
    "Qwen3ForCausalLM",
];
