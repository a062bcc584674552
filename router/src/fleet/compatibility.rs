//! What must be equal before two workers may share pages.

use std::fmt;

/// The layout of a worker's cache. Compared field by field, so that a mismatch has a name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Compatibility {
    /// Hash of the checkpoint.
    pub model_revision: String,
    pub page_tokens: u32,
    /// MTP layers included.
    pub cached_layers: u32,
    /// Cached values a token and layer.
    pub row_values: u32,
    /// `f32` or `bf16`.
    pub kv_dtype: String,
    /// How the cache is split over ranks; `replicated` for latent attention.
    pub parallelism: String,
}

/// The first field in which two layouts differ.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: the worker has {worker}, expected {expected}")]
pub struct Mismatch {
    pub field: &'static str,
    pub worker: String,
    pub expected: String,
}

impl Mismatch {
    /// `Err` if the values differ.
    pub fn unless_equal<T: PartialEq + fmt::Display>(
        field: &'static str,
        worker: T,
        expected: T,
    ) -> Result<(), Mismatch> {
        if worker == expected {
            return Ok(());
        }
        Err(Mismatch {
            field,
            worker: worker.to_string(),
            expected: expected.to_string(),
        })
    }
}

impl Compatibility {
    /// Checks a worker's layout against the one expected.
    pub fn check(&self, expected: &Compatibility) -> Result<(), Mismatch> {
        let (w, e) = (self, expected);
        Mismatch::unless_equal("model_revision", &w.model_revision, &e.model_revision)?;
        Mismatch::unless_equal("page_tokens", w.page_tokens, e.page_tokens)?;
        Mismatch::unless_equal("cached_layers", w.cached_layers, e.cached_layers)?;
        Mismatch::unless_equal("row_values", w.row_values, e.row_values)?;
        Mismatch::unless_equal("kv_dtype", &w.kv_dtype, &e.kv_dtype)?;
        Mismatch::unless_equal("parallelism", &w.parallelism, &e.parallelism)
    }
}
