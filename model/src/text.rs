//! `tokenizer_config.json` and the chat template's file: what the tokenizer and the chat template
//! both need, and the name of all that text depends on.

mod revision;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::files::{MAX_TEXT_FILE, read_bounded, read_optional};
pub use revision::revision;

/// Why text cannot be turned into tokens, or a folder's tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("cannot read {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is not valid JSON: {source}")]
    Json {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{path}: `{key}` must be {expected}")]
    Value {
        path: PathBuf,
        key: String,
        expected: &'static str,
    },
    #[error("{path} is not a usable tokenizer: {source}")]
    Tokenizer {
        path: PathBuf,
        source: tokenizers::Error,
    },
    #[error("{path}: {found} is not supported: {reason}")]
    Unsupported {
        path: PathBuf,
        found: String,
        reason: &'static str,
    },
    #[error(
        "{key} is {token:?}, which is not in the vocabulary of tokenizer.json; are both of the same model?"
    )]
    UnknownSpecial { key: &'static str, token: String },
    #[error("cannot tokenise the text: {source}")]
    Encode { source: tokenizers::Error },
}

/// `tokenizer_config.json`, with `special_tokens_map.json` for what it lacks, and
/// `chat_template.jinja` for what it may have outdated.
#[derive(Debug, Clone, Default)]
pub(crate) struct TextConfig {
    /// `None`: tokenizer.json's post-processor decides.
    pub add_bos_token: Option<bool>,
    pub add_eos_token: Option<bool>,
    /// `bos_token`, `eos_token`, ... with their texts, as a chat template sees them.
    pub special_tokens: Vec<(&'static str, String)>,
    /// The text of `chat_template.jinja`; without it `chat_template`, in whichever form.
    pub chat_template: Option<Value>,
}

/// Every special token that has a name of its own in transformers.
const SPECIAL: [&str; 7] = [
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "sep_token",
    "cls_token",
    "mask_token",
];

impl TextConfig {
    /// Absent files leave everything empty.
    pub fn from_dir(dir: &Path) -> Result<TextConfig, TextError> {
        let path = dir.join("tokenizer_config.json");
        let config = read_object(&path)?.unwrap_or_default();
        let map_path = dir.join("special_tokens_map.json");
        let map = read_object(&map_path)?.unwrap_or_default();
        let flag = |key: &str| match config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(_) => Err(TextError::Value {
                path: path.clone(),
                key: key.to_string(),
                expected: "true or false",
            }),
        };
        let mut special_tokens = Vec::new();
        for key in SPECIAL {
            let text = match token_text(&config, key, &path)? {
                Some(text) => Some(text),
                None => token_text(&map, key, &map_path)?,
            };
            special_tokens.extend(text.map(|text| (key, text)));
        }
        let chat_template = match read_template(dir)? {
            Some(text) => Some(Value::String(text)),
            None => config
                .get("chat_template")
                .filter(|v| !v.is_null())
                .cloned(),
        };
        Ok(TextConfig {
            add_bos_token: flag("add_bos_token")?,
            add_eos_token: flag("add_eos_token")?,
            special_tokens,
            chat_template,
        })
    }

    pub fn special(&self, key: &str) -> Option<&str> {
        self.special_tokens
            .iter()
            .find(|(name, _)| *name == key)
            .map(|(_, text)| text.as_str())
    }
}

/// The JSON file at `path`, which must exist.
pub(crate) fn read_json(path: &Path) -> Result<(Value, Vec<u8>), TextError> {
    let read = |source| TextError::Read {
        path: path.to_path_buf(),
        source,
    };
    let bytes = read_bounded(path, MAX_TEXT_FILE).map_err(read)?;
    let value = serde_json::from_slice(&bytes).map_err(|source| TextError::Json {
        path: path.to_path_buf(),
        source,
    })?;
    Ok((value, bytes))
}

fn read_template(dir: &Path) -> Result<Option<String>, TextError> {
    let path = dir.join("chat_template.jinja");
    let bytes = read_optional(&path, MAX_TEXT_FILE).map_err(|source| TextError::Read {
        path: path.clone(),
        source,
    })?;
    let text = bytes.map(String::from_utf8).transpose();
    text.map_err(|_| TextError::Value {
        path,
        key: "the file".to_string(),
        expected: "UTF-8 text",
    })
}

fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, TextError> {
    let bytes = read_optional(path, MAX_TEXT_FILE).map_err(|source| TextError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    let parse = |bytes: Vec<u8>| serde_json::from_slice(&bytes);
    bytes
        .map(parse)
        .transpose()
        .map_err(|source| TextError::Json {
            path: path.to_path_buf(),
            source,
        })
}

/// A token is written as its text or as an object with `content`.
fn token_text(
    map: &Map<String, Value>,
    key: &str,
    path: &Path,
) -> Result<Option<String>, TextError> {
    let text = match map.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(token)) => token.get("content").and_then(Value::as_str),
        Some(value) => value.as_str(),
    };
    let expected = "a string, or an object with a string `content`";
    text.map(|text| Some(text.to_string()))
        .ok_or_else(|| TextError::Value {
            path: path.to_path_buf(),
            key: key.to_string(),
            expected,
        })
}
