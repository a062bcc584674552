"""The checkpoints to make: one entry a folder, its config.json as DeepSeek, Qwen and Meta publish theirs, sized down.

Sizes are odd on purpose: no dimension that a kernel tiles is a multiple of 128 everywhere, several are not of 16, so
that every tail is walked; the rotary limits are small, so that the scaling bites within 1000 positions.
"""

from dataclasses import dataclass, field

FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}


@dataclass
class Family:
    """A checkpoint folder to make.

    `seed` feeds weights and prompts; `dtype` is how plain tensors are stored; `scales` is how FP8 block scales are drawn
    ("arbitrary", "ue8m0" or None for no FP8), and `kv_a_fp8` whether `kv_a_proj_with_mqa` is FP8 as well, as DeepSeek's is;
    `shards` is the number of safetensors files; `gains` overrides the spread of single kinds of weight (see
    checkpoint.py); `reference` changes the config for transformers alone, where it does not know a key of it.
    """

    name: str
    config: dict
    seed: int
    dtype: str = "bfloat16"
    scales: str | None = None
    kv_a_fp8: bool = False
    shards: int = 1
    gains: dict = field(default_factory=dict)
    reference: dict = field(default_factory=dict)

    @property
    def mtp(self) -> bool:
        return self.config.get("num_nextn_predict_layers", 0) > 0


def yarn(factor, original, mscale):
    return {"beta_fast": 32, "beta_slow": 1, "factor": factor, "mscale": mscale, "mscale_all_dim": mscale,
            "original_max_position_embeddings": original, "type": "yarn"}


COMMON = {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1, "hidden_act": "silu",
    "initializer_range": 0.02, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "use_cache": True, "vocab_size": 320,
}

DEEPSEEK = COMMON | {"ep_size": 1, "first_k_dense_replace": 1, "moe_layer_freq": 1, "pretraining_tp": 1, "rope_theta": 10000}

V2 = DEEPSEEK | {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "aux_loss_alpha": 0.001, "norm_topk_prob": False,
    "scoring_func": "softmax", "seq_aux": True, "n_shared_experts": 2,
}

V3 = DEEPSEEK | {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "norm_topk_prob": True,
    "num_nextn_predict_layers": 1, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "n_shared_experts": 1,
}

FAMILIES = [
    Family("deepseek_v2_lite", V2 | {
        "hidden_size": 96, "intermediate_size": 200, "moe_intermediate_size": 28, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 72,
        "qk_nope_head_dim": 24, "qk_rope_head_dim": 16, "v_head_dim": 20, "max_position_embeddings": 2560,
        "n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
        "routed_scaling_factor": 1.0, "rope_scaling": yarn(40, 64, 0.707),
    }, seed=1),
    Family("deepseek_v2", V2 | {
        "hidden_size": 96, "intermediate_size": 104, "moe_intermediate_size": 20, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 40, "kv_lora_rank": 64,
        "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "max_position_embeddings": 2048,
        "n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
        "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0, "rope_scaling": yarn(16, 128, 0.707),
    }, seed=2, gains={"expert_down": 0.12}),
    Family("deepseek_v3", V3 | {
        "hidden_size": 88, "intermediate_size": 136, "moe_intermediate_size": 20, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 40, "kv_lora_rank": 64,
        "qk_nope_head_dim": 24, "qk_rope_head_dim": 16, "v_head_dim": 20, "max_position_embeddings": 5120,
        "n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "rope_scaling": yarn(40, 128, 1.0),
    }, seed=3, shards=3),
    Family("deepseek_v3_fp8", V3 | {
        "hidden_size": 136, "intermediate_size": 200, "moe_intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 136, "kv_lora_rank": 512,
        "qk_nope_head_dim": 40, "qk_rope_head_dim": 64, "v_head_dim": 40, "max_position_embeddings": 4096,
        "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "rope_scaling": yarn(8, 512, 1.0),
        "quantization_config": FP8,
    }, seed=4, scales="arbitrary"),
    # Whole FP8 blocks, which GPUs multiply in 8 bits: everywhere else a size keeps them from it.
    Family("deepseek_v3_fp8_whole", V3 | {
        "hidden_size": 256, "intermediate_size": 128, "moe_intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 128, "kv_lora_rank": 512,
        "qk_nope_head_dim": 32, "qk_rope_head_dim": 64, "v_head_dim": 64, "max_position_embeddings": 4096,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 2, "rope_scaling": yarn(8, 512, 1.0),
        "num_nextn_predict_layers": 0, "quantization_config": FP8,
    }, seed=11, scales="arbitrary", kv_a_fp8=True),
    # Its correction bias is mostly negative: biased scores below zero must still beat every expert of a dropped group.
    Family("deepseek_v31", V3 | {
        "hidden_size": 136, "intermediate_size": 300, "moe_intermediate_size": 132, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 64, "kv_lora_rank": 96,
        "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "max_position_embeddings": 4096,
        "n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "rope_scaling": yarn(4, 1024, 1.0),
        "num_nextn_predict_layers": 0,
        "quantization_config": FP8 | {"scale_fmt": "ue8m0"},
    }, seed=5, scales="ue8m0", gains={"correction_mean": -0.8}),
    Family("qwen2", COMMON | {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 96, "intermediate_size": 136,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "rope_theta": 1000000.0, "sliding_window": 2048, "use_sliding_window": False, "max_window_layers": 3,
    }, seed=6),
    Family("qwen2_tied", COMMON | {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 84, "intermediate_size": 72,
        "num_hidden_layers": 3, "num_attention_heads": 7, "num_key_value_heads": 1, "max_position_embeddings": 2048,
        "rope_theta": 10000, "tie_word_embeddings": True, "torch_dtype": "float32", "use_sliding_window": False,
    }, seed=7, dtype="float32", gains={"linear": 1.5, "out": 2.5}),
    Family("llama", COMMON | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 120, "intermediate_size": 72,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "mlp_bias": False, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 128, "rope_type": "llama3"},
    }, seed=8),
    Family("qwen3", COMMON | {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 104, "intermediate_size": 136,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 48,
        "max_position_embeddings": 2048, "rope_theta": 1000000, "use_sliding_window": False, "max_window_layers": 3,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 512, "rope_type": "yarn"},
    }, seed=9),
    # DeepSeek-R1-0528-Qwen3-8B's rope_scaling has YaRN's own attn_factor, which multiplies the 0.1 ln(factor) + 1 that
    # cos and sin are scaled by (here to 1). transformers ignores the key and knows the product as attention_factor.
    Family("qwen3_attn_factor", COMMON | {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 72, "intermediate_size": 100,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "max_position_embeddings": 2048, "rope_theta": 1000000, "use_sliding_window": False, "max_window_layers": 2,
        "rope_scaling": {"attn_factor": 0.8782488562869419, "factor": 4.0, "original_max_position_embeddings": 512,
                         "rope_type": "yarn"},
    }, seed=10, reference={"rope_scaling": {"attention_factor": 1.0, "factor": 4.0, "original_max_position_embeddings": 512,
                                            "rope_type": "yarn"}}),
]
