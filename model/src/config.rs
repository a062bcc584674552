//! `config.json` as typed values: everything a forward pass needs to know of an architecture.
//!
//! Field names follow Hugging Face's where one exists. The numbers are plain and already
//! validated: a [`ModelConfig`] that exists describes a model that can be run.
//!
//! Invariant: only `keys` looks at JSON values; each family's file says which keys it has.

mod deepseek;
mod dense;
mod error;
mod keys;
mod parse;
mod quantization;
mod rope;

pub use error::{ConfigError, SUPPORTED};
pub use quantization::{Fp8Config, ScaleFormat};

/// A model that Millrace can serve.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub common: CommonConfig,
    pub family: Family,
}

/// What every family has.
#[derive(Debug, Clone, PartialEq)]
pub struct CommonConfig {
    /// `architectures[0]`, for messages and `/v1/models`.
    pub architecture: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    /// Main-model layers, without MTP layers.
    pub num_layers: usize,
    pub rms_norm_eps: f32,
    /// Prompt plus output, in tokens.
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
    pub bos_token_id: Option<u32>,
    /// Every id that ends generation (`config.json` and `generation_config.json` together).
    pub eos_token_ids: Vec<u32>,
    pub rope: RopeConfig,
    /// `generation_config.json`'s sampling defaults.
    pub sampling_defaults: SamplingDefaults,
    /// `None`: weights are stored as float32, float16 or bfloat16.
    pub quantization: Option<Fp8Config>,
}

/// Sampling values a checkpoint recommends; absent ones fall back to the server's defaults.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SamplingDefaults {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub repetition_penalty: Option<f32>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Family {
    DeepSeek(DeepSeekConfig),
    Dense(DenseConfig),
}

/// DeepSeek-V2-Lite, V2, V3, R1, V3.1: latent attention (MLA) and mixture of experts.
#[derive(Debug, Clone, PartialEq)]
pub struct DeepSeekConfig {
    pub num_heads: usize,
    /// `None`: queries are projected directly (`q_proj`), as in V2-Lite.
    pub q_lora_rank: Option<usize>,
    pub kv_lora_rank: usize,
    pub qk_nope_head_dim: usize,
    pub qk_rope_head_dim: usize,
    pub v_head_dim: usize,
    /// Biases on q_a, kv_a and o projections.
    pub attention_bias: bool,
    /// SwiGLU width of dense layers.
    pub intermediate_size: usize,
    /// `None`: every layer is dense.
    pub moe: Option<MoeConfig>,
    /// MTP layers stored in the checkpoint after the main layers (0 or more; only the first is used).
    pub num_mtp_layers: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct MoeConfig {
    pub num_experts: usize,
    /// 0 or more; they form one SwiGLU of `num_shared_experts * intermediate_size`.
    pub num_shared_experts: usize,
    pub experts_per_token: usize,
    pub intermediate_size: usize,
    /// Layers below this index are dense.
    pub first_k_dense: usize,
    /// From `first_k_dense` on, layers whose index is a multiple of this are MoE (1: all).
    pub layer_freq: usize,
    pub gate: GateConfig,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateConfig {
    pub scoring: Scoring,
    pub topk_method: TopkMethod,
    /// 1 where groups are not limited.
    pub n_group: usize,
    pub topk_group: usize,
    /// Divide the chosen weights by their sum.
    pub norm_topk_prob: bool,
    pub routed_scaling_factor: f32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    Softmax,
    Sigmoid,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopkMethod {
    /// The largest scores (V2-Lite).
    Greedy,
    /// Groups ranked by their largest score (V2).
    GroupLimitedGreedy,
    /// Groups ranked by the sum of their two largest bias-corrected scores (V3).
    NoauxTc,
}

/// Qwen2, Llama 3, Qwen3: grouped-query attention and a dense SwiGLU.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseConfig {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub intermediate_size: usize,
    /// Bias on q, k and v (Qwen2; Llama and Qwen3 with `attention_bias`).
    pub qkv_bias: bool,
    /// Bias on o (Llama and Qwen3 with `attention_bias`).
    pub o_bias: bool,
    /// Per-head RMSNorm on q and k before RoPE (Qwen3).
    pub qk_norm: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    pub theta: f32,
    /// Rotated values of a head: `qk_rope_head_dim` or `head_dim`.
    pub dim: usize,
    /// Pairs are neighbours (DeepSeek) rather than half a head apart (Llama, Qwen).
    pub interleaved: bool,
    pub scaling: RopeScaling,
}

#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    Yarn {
        factor: f32,
        original_max_position: usize,
        beta_fast: f32,
        beta_slow: f32,
        /// `Some` for DeepSeek, whose softmax scale also depends on `mscale_all_dim`.
        mscale: Option<f32>,
        mscale_all_dim: Option<f32>,
        /// An explicit cos/sin factor that overrides the computed one.
        attention_factor: Option<f32>,
    },
    Llama3 {
        factor: f32,
        low_freq_factor: f32,
        high_freq_factor: f32,
        original_max_position: usize,
    },
    Linear {
        factor: f32,
    },
}
