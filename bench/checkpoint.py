"""A random DeepSeek-V2 of about 30 million parameters in bfloat16, twice: as a Hugging Face folder and as a GGUF file.

Both hold the same numbers, so a comparison of speed compares nothing else. Shapes are the real model's where they
decide what is computed (a latent of 512 + 64 values, heads of 192 and 128) and small elsewhere.
"""

import json
import struct
from pathlib import Path

import numpy as np

SIZES = {
    "hidden_size": 384, "intermediate_size": 1024, "moe_intermediate_size": 128, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 8, "q_lora_rank": 192, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 16, "n_shared_experts": 2,
    "num_experts_per_tok": 4, "vocab_size": 2048, "max_position_embeddings": 4096,
}
CONFIG = SIZES | {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "attention_bias": False,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
    "scoring_func": "softmax", "norm_topk_prob": False, "routed_scaling_factor": 1.0, "hidden_act": "silu",
    "rms_norm_eps": 1e-6, "rope_theta": 10000, "rope_scaling": None, "tie_word_embeddings": False,
    "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16",
}


def tensors(seed=1):
    """Yields (name, float32 array whose values are exact in bfloat16)."""
    rng = np.random.default_rng(seed)
    c = CONFIG
    hidden, heads, latent, rope = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"], c["qk_rope_head_dim"]
    query = c["qk_nope_head_dim"] + rope

    def matrix(name, rows, cols):
        return name + ".weight", exact(rng.standard_normal((rows, cols), np.float32) / cols**0.5)

    def norm(name, width):
        return name + ".weight", exact(1 + 0.1 * rng.standard_normal(width, np.float32))

    def mlp(prefix, inter):
        yield matrix(prefix + ".gate_proj", inter, hidden)
        yield matrix(prefix + ".up_proj", inter, hidden)
        yield matrix(prefix + ".down_proj", hidden, inter)

    yield matrix("model.embed_tokens", c["vocab_size"], hidden)
    for i in range(c["num_hidden_layers"]):
        layer, attention = f"model.layers.{i}", f"model.layers.{i}.self_attn"
        yield norm(layer + ".input_layernorm", hidden)
        yield matrix(attention + ".q_a_proj", c["q_lora_rank"], hidden)
        yield norm(attention + ".q_a_layernorm", c["q_lora_rank"])
        yield matrix(attention + ".q_b_proj", heads * query, c["q_lora_rank"])
        yield matrix(attention + ".kv_a_proj_with_mqa", latent + rope, hidden)
        yield norm(attention + ".kv_a_layernorm", latent)
        yield matrix(attention + ".kv_b_proj", heads * (c["qk_nope_head_dim"] + c["v_head_dim"]), latent)
        yield matrix(attention + ".o_proj", hidden, heads * c["v_head_dim"])
        yield norm(layer + ".post_attention_layernorm", hidden)
        if i < c["first_k_dense_replace"]:
            yield from mlp(layer + ".mlp", c["intermediate_size"])
            continue
        yield matrix(layer + ".mlp.gate", c["n_routed_experts"], hidden)
        for e in range(c["n_routed_experts"]):
            yield from mlp(f"{layer}.mlp.experts.{e}", c["moe_intermediate_size"])
        yield from mlp(layer + ".mlp.shared_experts", c["moe_intermediate_size"] * c["n_shared_experts"])
    yield norm("model.norm", hidden)
    yield matrix("lm_head", c["vocab_size"], hidden)


def exact(values):
    """Rounds to values that bfloat16 holds (by truncation: these are random numbers)."""
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def bfloat16(values):
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def write_folder(folder, named):
    """config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    header, parts, at = {}, [], 0
    for name, values in named:
        data = bfloat16(values).tobytes()
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [at, at + len(data)]}
        parts.append(data)
        at += len(data)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.writelines(parts)


def write_gguf(path, named):
    """llama.cpp's form: architecture deepseek2, absorbed attention (one latent head), experts stacked."""
    import gguf

    c, weights = CONFIG, dict(named)
    writer = gguf.GGUFWriter(path, "deepseek2")
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_leading_dense_block_count(c["first_k_dense_replace"])
    writer.add_vocab_size(c["vocab_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_rope_freq_base(c["rope_theta"])
    writer.add_rope_dimension_count(c["qk_rope_head_dim"])
    writer.add_q_lora_rank(c["q_lora_rank"])
    writer.add_kv_lora_rank(c["kv_lora_rank"])
    writer.add_key_length(c["kv_lora_rank"] + c["qk_rope_head_dim"])
    writer.add_value_length(c["kv_lora_rank"])
    writer.add_key_length_mla(c["qk_nope_head_dim"] + c["qk_rope_head_dim"])
    writer.add_value_length_mla(c["v_head_dim"])
    writer.add_expert_count(c["n_routed_experts"])
    writer.add_expert_used_count(c["num_experts_per_tok"])
    writer.add_expert_shared_count(c["n_shared_experts"])
    writer.add_expert_feed_forward_length(c["moe_intermediate_size"])
    writer.add_expert_weights_scale(c["routed_scaling_factor"])
    writer.add_expert_weights_norm(c["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
    # Token ids are fed directly; the vocabulary only has to have the right size.
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"<{i}>" for i in range(c["vocab_size"])])
    writer.add_token_types([gguf.TokenType.NORMAL] * c["vocab_size"])
    writer.add_token_merges(["< 0"])

    def add(name, values, wide=False):
        if wide or values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            data = bfloat16(np.ascontiguousarray(values)).view(np.uint8)
            writer.add_tensor(name, data, raw_shape=data.shape, raw_dtype=gguf.GGMLQuantizationType.BF16)

    def take(name):
        return weights.pop(name + ".weight")

    def mlp(block, prefix, suffix):
        for ours, theirs in (("gate_proj", "ffn_gate"), ("up_proj", "ffn_up"), ("down_proj", "ffn_down")):
            add(f"{block}.{theirs}{suffix}.weight", take(f"{prefix}.{ours}"))

    add("token_embd.weight", take("model.embed_tokens"))
    for i in range(c["num_hidden_layers"]):
        layer, attention, block = f"model.layers.{i}", f"model.layers.{i}.self_attn", f"blk.{i}"
        for ours, theirs in (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"),
                             ("self_attn.q_a_proj", "attn_q_a"), ("self_attn.q_a_layernorm", "attn_q_a_norm"),
                             ("self_attn.q_b_proj", "attn_q_b"), ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
                             ("self_attn.kv_a_layernorm", "attn_kv_a_norm"), ("self_attn.o_proj", "attn_output")):
            add(f"{block}.{theirs}.weight", take(f"{layer}.{ours}"))
        heads = take(attention + ".kv_b_proj").reshape(c["num_attention_heads"], -1, c["kv_lora_rank"])
        nope = c["qk_nope_head_dim"]
        add(f"{block}.attn_k_b.weight", heads[:, :nope].transpose(0, 2, 1))
        add(f"{block}.attn_v_b.weight", heads[:, nope:])
        if i < c["first_k_dense_replace"]:
            mlp(block, layer + ".mlp", "")
            continue
        add(f"{block}.ffn_gate_inp.weight", take(layer + ".mlp.gate"), wide=True)
        for ours, theirs in (("gate_proj", "ffn_gate"), ("up_proj", "ffn_up"), ("down_proj", "ffn_down")):
            stack = [take(f"{layer}.mlp.experts.{e}.{ours}") for e in range(c["n_routed_experts"])]
            add(f"{block}.{theirs}_exps.weight", np.stack(stack))
        mlp(block, layer + ".mlp.shared_experts", "_shexp")
    add("output_norm.weight", take("model.norm"))
    add("output.weight", take("lm_head"))
    assert not weights, f"not written: {sorted(weights)}"
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write(folder: Path):
    """Writes both forms below `folder`; answers (Hugging Face folder, GGUF file)."""
    named = list(tensors())
    write_folder(folder / "hf", named)
    write_gguf(folder / "model.gguf", named)
    parameters = sum(values.size for _, values in named)
    print(f"random DeepSeek-V2, {parameters / 1e6:.1f} million parameters, bfloat16")
    return folder / "hf", folder / "model.gguf"
