//! Qwen2, Llama 3 and Qwen3.

use super::error::ConfigError;
use super::keys::{Keys, MAX_SIZE};
use super::{DenseConfig, Family, RopeConfig, rope};

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Qwen2,
    Llama,
    Qwen3,
}

const MAX_HEADS: usize = 4096;
const MAX_HEAD_DIM: usize = 4096;
/// Keys by which Hugging Face families say that they have routed experts.
const MOE_KEYS: [&str; 3] = ["num_experts", "num_local_experts", "n_routed_experts"];

pub(super) fn parse(keys: &Keys, kind: Kind) -> Result<(Family, RopeConfig), ConfigError> {
    refuse_variants(keys)?;
    let num_heads = keys.size("num_attention_heads", MAX_HEADS)?;
    let num_kv_heads = keys
        .opt_size("num_key_value_heads", MAX_HEADS)?
        .unwrap_or(num_heads);
    if num_heads % num_kv_heads != 0 {
        return Err(keys.wrong(
            "num_key_value_heads",
            format!("a divisor of num_attention_heads ({num_heads})"),
        ));
    }
    let head_dim = head_dim(keys, kind, num_heads)?;
    // Qwen2 has no such key: its q, k and v always have biases and its o never.
    let attention_bias = kind != Kind::Qwen2 && keys.bool_or("attention_bias", false)?;
    let config = DenseConfig {
        num_heads,
        num_kv_heads,
        head_dim,
        intermediate_size: keys.size("intermediate_size", MAX_SIZE)?,
        qkv_bias: kind == Kind::Qwen2 || attention_bias,
        o_bias: attention_bias,
        qk_norm: kind == Kind::Qwen3,
    };
    Ok((Family::Dense(config), rope::parse(keys, head_dim, false)?))
}

fn head_dim(keys: &Keys, kind: Kind, num_heads: usize) -> Result<usize, ConfigError> {
    let head_dim = match keys.opt_size("head_dim", MAX_HEAD_DIM)? {
        Some(dim) => dim,
        None if kind == Kind::Qwen3 => {
            return Err(keys.missing("head_dim", "the values of a head, 128 in Qwen3"));
        }
        None => {
            let hidden = keys.size("hidden_size", MAX_SIZE)?;
            if hidden % num_heads != 0 {
                let expected = format!(
                    "a multiple of num_attention_heads ({num_heads}), since head_dim is absent"
                );
                return Err(keys.wrong("hidden_size", expected));
            }
            hidden / num_heads
        }
    };
    if head_dim % 2 != 0 {
        let key = if keys.get("head_dim").is_some() {
            "head_dim"
        } else {
            "hidden_size"
        };
        return Err(keys.wrong(
            key,
            format!("an even head size: RoPE rotates pairs, and heads have {head_dim} values"),
        ));
    }
    Ok(head_dim)
}

/// What some checkpoints of these architectures have and the forward pass does not.
fn refuse_variants(keys: &Keys) -> Result<(), ConfigError> {
    for key in MOE_KEYS {
        if keys.get(key).is_some() {
            return Err(keys.unsupported(
                key,
                "this architecture is dense; experts are supported in DeepSeek's",
            ));
        }
    }
    keys.refuse_true(
        "use_sliding_window",
        "every layer attends to the whole context",
    )?;
    keys.refuse_true("mlp_bias", "feed-forward layers have no bias")?;
    if let Some(layers) = keys.get("layer_types") {
        let full = |list: &Vec<serde_json::Value>| {
            list.iter()
                .all(|kind| kind.as_str() == Some("full_attention"))
        };
        if !layers.as_array().is_some_and(full) {
            return Err(keys.unsupported("layer_types", "every layer must be full_attention"));
        }
    }
    Ok(())
}

impl DenseConfig {
    /// What attention logits are multiplied by: `head_dim^-1/2`.
    pub fn softmax_scale(&self) -> f32 {
        (self.head_dim as f64).powf(-0.5) as f32
    }
}
