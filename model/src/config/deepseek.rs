//! DeepSeek-V2 and V3: attention dimensions, experts and gate.

use super::error::ConfigError;
use super::keys::{Keys, MAX_SIZE};
use super::{
    DeepSeekConfig, Family, GateConfig, MoeConfig, RopeConfig, RopeScaling, Scoring, TopkMethod,
    rope,
};
use crate::rope::yarn_mscale;

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Generation {
    V2,
    V3,
}

const MAX_HEADS: usize = 4096;
const MAX_HEAD_DIM: usize = 4096;
const MAX_EXPERTS: usize = 1 << 16;
const MAX_MTP_LAYERS: usize = 64;

pub(super) fn parse(
    keys: &Keys,
    generation: Generation,
) -> Result<(Family, RopeConfig), ConfigError> {
    let rope_dim = keys.size("qk_rope_head_dim", MAX_HEAD_DIM)?;
    if rope_dim % 2 != 0 {
        return Err(keys.wrong("qk_rope_head_dim", "an even number: RoPE rotates pairs"));
    }
    let config = DeepSeekConfig {
        num_heads: keys.size("num_attention_heads", MAX_HEADS)?,
        q_lora_rank: keys.opt_size("q_lora_rank", MAX_SIZE)?,
        kv_lora_rank: keys.size("kv_lora_rank", MAX_SIZE)?,
        qk_nope_head_dim: keys.size("qk_nope_head_dim", MAX_HEAD_DIM)?,
        qk_rope_head_dim: rope_dim,
        v_head_dim: keys.size("v_head_dim", MAX_HEAD_DIM)?,
        attention_bias: keys.bool_or("attention_bias", false)?,
        intermediate_size: keys.size("intermediate_size", MAX_SIZE)?,
        moe: moe(keys, generation)?,
        num_mtp_layers: keys
            .integer("num_nextn_predict_layers", 0, MAX_MTP_LAYERS)?
            .unwrap_or(0),
    };
    keys.refuse_true("mlp_bias", "DeepSeek's feed-forward layers have no bias")?;
    let interleaved = keys.bool_or("rope_interleave", true)?;
    Ok((
        Family::DeepSeek(config),
        rope::parse(keys, rope_dim, interleaved)?,
    ))
}

fn moe(keys: &Keys, generation: Generation) -> Result<Option<MoeConfig>, ConfigError> {
    let Some(num_experts) = keys.opt_size("n_routed_experts", MAX_EXPERTS)? else {
        return Ok(None);
    };
    let experts_per_token = keys.size("num_experts_per_tok", MAX_EXPERTS)?;
    if experts_per_token > num_experts {
        return Err(keys.wrong(
            "num_experts_per_tok",
            format!("at most n_routed_experts ({num_experts})"),
        ));
    }
    let gate = gate(keys, generation, num_experts)?;
    let reachable = num_experts / gate.n_group * gate.topk_group;
    if experts_per_token > reachable {
        let expected = format!(
            "at most the {reachable} experts that topk_group ({}) groups hold",
            gate.topk_group
        );
        return Err(keys.wrong("num_experts_per_tok", expected));
    }
    Ok(Some(MoeConfig {
        num_experts,
        num_shared_experts: keys
            .integer("n_shared_experts", 0, MAX_EXPERTS)?
            .unwrap_or(0),
        experts_per_token,
        intermediate_size: keys.size("moe_intermediate_size", MAX_SIZE)?,
        first_k_dense: keys
            .integer("first_k_dense_replace", 0, MAX_SIZE)?
            .unwrap_or(0),
        layer_freq: keys.opt_size("moe_layer_freq", MAX_SIZE)?.unwrap_or(1),
        gate,
    }))
}

fn gate(
    keys: &Keys,
    generation: Generation,
    num_experts: usize,
) -> Result<GateConfig, ConfigError> {
    let scoring = match (keys.opt_str("scoring_func")?, generation) {
        (None | Some("softmax"), Generation::V2) => Scoring::Softmax,
        (None | Some("sigmoid"), Generation::V3) => Scoring::Sigmoid,
        (Some(_), Generation::V2) => {
            return Err(keys.unsupported("scoring_func", "DeepSeek-V2 has softmax scores"));
        }
        (Some(_), Generation::V3) => {
            return Err(keys.unsupported("scoring_func", "DeepSeek-V3 has sigmoid scores"));
        }
    };
    let topk_method = match (keys.opt_str("topk_method")?, generation) {
        (None | Some("greedy"), Generation::V2) => TopkMethod::Greedy,
        (Some("group_limited_greedy"), Generation::V2) => TopkMethod::GroupLimitedGreedy,
        (None | Some("noaux_tc"), Generation::V3) => TopkMethod::NoauxTc,
        (Some(_), Generation::V2) => {
            return Err(keys.unsupported(
                "topk_method",
                "DeepSeek-V2 has greedy or group_limited_greedy",
            ));
        }
        (Some(_), Generation::V3) => {
            return Err(keys.unsupported("topk_method", "DeepSeek-V3 has noaux_tc"));
        }
    };
    let norm_topk_prob = keys.bool_or("norm_topk_prob", generation == Generation::V3)?;
    if norm_topk_prob && generation == Generation::V2 {
        // The published code divides instead of scaling, transformers ignores the key, others do both.
        return Err(keys.unsupported(
            "norm_topk_prob",
            "implementations of DeepSeek-V2 disagree on what it means",
        ));
    }
    let (n_group, topk_group) = match topk_method {
        TopkMethod::Greedy => (1, 1),
        _ => groups(keys, topk_method, num_experts)?,
    };
    let routed_scaling_factor = keys.opt_positive("routed_scaling_factor")?.unwrap_or(1.0);
    Ok(GateConfig {
        scoring,
        topk_method,
        n_group,
        topk_group,
        norm_topk_prob,
        routed_scaling_factor,
    })
}

fn groups(
    keys: &Keys,
    method: TopkMethod,
    num_experts: usize,
) -> Result<(usize, usize), ConfigError> {
    let n_group = keys.size("n_group", num_experts)?;
    let topk_group = keys.size("topk_group", MAX_EXPERTS)?;
    if !num_experts.is_multiple_of(n_group) {
        return Err(keys.wrong(
            "n_routed_experts",
            format!("a multiple of n_group ({n_group})"),
        ));
    }
    if topk_group > n_group {
        return Err(keys.wrong("topk_group", format!("at most n_group ({n_group})")));
    }
    if method == TopkMethod::NoauxTc && num_experts / n_group < 2 {
        let expected = format!(
            "at most n_routed_experts / 2 ({}): a group is scored by its two best",
            num_experts / 2
        );
        return Err(keys.wrong("n_group", expected));
    }
    Ok((n_group, topk_group))
}

impl MoeConfig {
    /// Whether layer `index` (from 0, MTP layers after the main ones) routes to experts.
    pub fn is_moe_layer(&self, index: usize) -> bool {
        index >= self.first_k_dense && index.is_multiple_of(self.layer_freq)
    }
}

impl DeepSeekConfig {
    /// Values of a query or key head: the unrotated part and the rotated part.
    pub fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// Values of a latent cache row: `[c_kv | k_pe]`.
    pub fn latent_dim(&self) -> usize {
        self.kv_lora_rank + self.qk_rope_head_dim
    }

    /// What attention logits are multiplied by: `qk_head_dim^-1/2`, and under YaRN also the square
    /// of `0.1 * mscale_all_dim * ln(factor) + 1` (DeepSeek-V2 reference code).
    pub fn softmax_scale(&self, rope: &RopeConfig) -> f32 {
        let scale = (self.qk_head_dim() as f64).powf(-0.5);
        let mscale = match rope.scaling {
            RopeScaling::Yarn {
                factor,
                mscale_all_dim: Some(all_dim),
                ..
            } => yarn_mscale(f64::from(factor), f64::from(all_dim)),
            _ => 1.0,
        };
        (scale * mscale * mscale) as f32
    }
}
