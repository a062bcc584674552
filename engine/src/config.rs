//! How an engine is sized, and why it could not be built.

use millrace_kernels::{DeviceMemory, KernelError, KvDtype};
use millrace_model::{checkpoint::CheckpointError, config::ConfigError};

use crate::ExpertError;

#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Most tokens a step computes; longer prompts are cut into chunks of this.
    pub max_batch_tokens: usize,
    /// Most sequences in a step.
    pub max_running: usize,
    /// Prompt plus output, in tokens. `None`: what the model allows.
    pub max_model_len: Option<usize>,
    /// Pages of 64 tokens. The pool must hold at least one sequence of `max_model_len`.
    pub kv_pages: usize,
    pub kv_dtype: KvDtype,
    /// Draft a second token a step with the model's MTP layer, if it has one.
    pub mtp: bool,
    /// Keep finished pages for prompts that start the same.
    pub prefix_cache: bool,
    /// A split request with at most this many tokens left to compute is prefilled by the decode
    /// worker itself: the round trip would cost more than the computation.
    pub local_prefill_tokens: usize,
}

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig {
            max_batch_tokens: 256,
            max_running: 64,
            max_model_len: None,
            kv_pages: 1024,
            kv_dtype: KvDtype::Bf16,
            mtp: true,
            prefix_cache: true,
            local_prefill_tokens: 16,
        }
    }
}

impl EngineConfig {
    /// Rows of the largest step: there must be room for every running sequence's token and draft.
    pub fn most_rows(&self) -> usize {
        self.max_batch_tokens.max(2 * self.max_running)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{tensor}: {source}")]
    Weights { tensor: String, source: KernelError },
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Expert(#[from] ExpertError),
    #[error(
        "{pages} KV pages hold {} tokens, but one sequence may have {max_model_len}: raise --kv-pages to at least {} or lower --max-model-len",
        pages * 64, max_model_len.div_ceil(64)
    )]
    TooFewPages { pages: usize, max_model_len: usize },
    #[error("--max-model-len {asked} is more than the model's {allowed} positions")]
    ModelLen { asked: usize, allowed: usize },
    #[error("--kv-dtype fp8 is for models with latent attention, and this one has none: use bf16")]
    NotLatent,
    #[error(
        "the weights take {:.2} GiB, and the device has: {memory}; lower --kv-pages, --max-batch-tokens or --max-running, or spread the experts over more ranks",
        *weights as f64 / (1u64 << 30) as f64
    )]
    DeviceRoom {
        weights: usize,
        memory: DeviceMemory,
    },
    #[error("{what} must be at least 1")]
    Zero { what: &'static str },
}

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    pub bytes_done: u64,
    pub bytes_total: u64,
}
