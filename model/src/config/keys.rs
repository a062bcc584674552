//! Typed access to the keys of one JSON object; every failure names the file, key and value.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::error::ConfigError;

/// Far above any real dimension, low enough that products of three fit in 64 bits.
pub(super) const MAX_SIZE: usize = 1 << 20;
/// Values longer than this are cut in messages.
const SHOWN: usize = 80;

pub(super) struct Keys<'a> {
    pub file: &'static str,
    /// Where in the file the object stands: empty, or `rope_scaling.` and the like.
    prefix: &'static str,
    map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    pub fn root(file: &'static str, value: &'a Value) -> Result<Keys<'a>, ConfigError> {
        match value {
            Value::Object(map) => Ok(Keys {
                file,
                prefix: "",
                map,
            }),
            other => Err(ConfigError::NotAnObject {
                file,
                found: shown(other),
            }),
        }
    }

    /// A key's value; null counts as absent, as in transformers.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// The object under `key`; `prefix` is `key` and a dot.
    pub fn object(&self, key: &str, prefix: &'static str) -> Result<Option<Keys<'a>>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Keys {
                file: self.file,
                prefix,
                map,
            })),
            Some(_) => Err(self.wrong(key, "an object")),
        }
    }

    pub fn size(&self, key: &str, max: usize) -> Result<usize, ConfigError> {
        self.opt_size(key, max)?
            .ok_or_else(|| self.missing(key, format!("an integer from 1 to {max}")))
    }

    pub fn opt_size(&self, key: &str, max: usize) -> Result<Option<usize>, ConfigError> {
        self.integer(key, 1, max)
    }

    /// An integer from `min` to `max`; `None` if absent.
    pub fn integer(&self, key: &str, min: usize, max: usize) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(n) if n >= min as u64 && n <= max as u64 => Ok(Some(n as usize)),
            _ => Err(self.wrong(key, format!("an integer from {min} to {max}"))),
        }
    }

    /// A finite number that `accept` accepts, kept in f64 until the caller narrows it.
    pub fn opt_number(
        &self,
        key: &str,
        expected: &'static str,
        accept: impl Fn(f64) -> bool,
    ) -> Result<Option<f32>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            // The narrowed value must be finite and acceptable too: 1e-300 is no positive f32.
            Some(n) if accept(n) && (n as f32).is_finite() && accept(f64::from(n as f32)) => {
                Ok(Some(n as f32))
            }
            _ => Err(self.wrong(key, expected)),
        }
    }

    pub fn opt_positive(&self, key: &str) -> Result<Option<f32>, ConfigError> {
        self.opt_number(key, "a positive number", |n| n > 0.0)
    }

    pub fn positive(&self, key: &str) -> Result<f32, ConfigError> {
        self.opt_positive(key)?
            .ok_or_else(|| self.missing(key, "a positive number"))
    }

    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    pub fn opt_str(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }

    /// Token ids: one integer or a list of them, each below `vocab`.
    pub fn token_ids(&self, key: &str, vocab: usize) -> Result<Vec<u32>, ConfigError> {
        let one = |value: &Value| {
            value
                .as_u64()
                .filter(|&n| n < vocab as u64)
                .map(|n| n as u32)
        };
        let ids = match self.get(key) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(value) => one(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| {
            self.wrong(
                key,
                format!("a token id below vocab_size ({vocab}), or a list of them"),
            )
        })
    }

    /// Refuses a boolean that switches on something Millrace does not implement.
    pub fn refuse_true(&self, key: &str, reason: &'static str) -> Result<(), ConfigError> {
        if self.bool_or(key, false)? {
            Err(self.unsupported(key, reason))
        } else {
            Ok(())
        }
    }

    pub fn missing(&self, key: &str, expected: impl Into<Cow<'static, str>>) -> ConfigError {
        ConfigError::Missing {
            file: self.file,
            key: self.path(key),
            expected: expected.into(),
        }
    }

    pub fn wrong(&self, key: &str, expected: impl Into<Cow<'static, str>>) -> ConfigError {
        ConfigError::Value {
            file: self.file,
            key: self.path(key),
            found: self.found(key),
            expected: expected.into(),
        }
    }

    pub fn unsupported(&self, key: &str, reason: impl Into<Cow<'static, str>>) -> ConfigError {
        ConfigError::Unsupported {
            file: self.file,
            key: self.path(key),
            found: self.found(key),
            reason: reason.into(),
        }
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn found(&self, key: &str) -> String {
        self.map
            .get(key)
            .map_or_else(|| "absent".to_string(), shown)
    }
}

/// A value for a message: JSON, cut if long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}
