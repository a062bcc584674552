"""Random-weight checkpoint folders in the published key layout: config.json, safetensors, generation_config.json."""

import json
import math
import zlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

# How far a kind of weight spreads, in units of 1/sqrt(fan-in) (embed and bias: plain standard deviations). The head's
# makes logits of standard deviation 2.5 (top-1 probability about 0.1-0.3 of 320); the gate's separates experts clearly.
GAINS = {
    "embed": 1.0, "head": 2.5, "gate": 2.0, "qk": 1.3, "linear": 1.0, "out": 0.7, "expert_down": 0.7,
    "qkv_bias": 0.5, "correction_bias": 0.2,
}
TIED_EMBED = 0.27  # a tied embedding is also the head: logits of about 2.5 at hidden size 84
BLOCK = 128
E4M3_MAX = 448.0


def attention(c):
    """(name, shape, kind) of one attention layer's tensors."""
    h, heads = c["hidden_size"], c["num_attention_heads"]
    if "kv_lora_rank" in c:
        nope, rope, v, rank = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
        if c["q_lora_rank"] is None:
            yield "q_proj.weight", (heads * (nope + rope), h), "qk"
        else:
            yield "q_a_proj.weight", (c["q_lora_rank"], h), "linear"
            yield "q_a_layernorm.weight", (c["q_lora_rank"],), "norm"
            yield "q_b_proj.weight", (heads * (nope + rope), c["q_lora_rank"]), "qk"
        yield "kv_a_proj_with_mqa.weight", (rank + rope, h), "qk"
        yield "kv_a_layernorm.weight", (rank,), "norm"
        yield "kv_b_proj.weight", (heads * (nope + v), rank), "linear"
        yield "o_proj.weight", (h, heads * v), "out"
        return
    dim = c.get("head_dim", h // heads)
    kv = c["num_key_value_heads"]
    for name, rows, kind in (("q", heads * dim, "qk"), ("k", kv * dim, "qk"), ("v", kv * dim, "linear")):
        yield f"{name}_proj.weight", (rows, h), kind
        if c["model_type"] == "qwen2":
            yield f"{name}_proj.bias", (rows,), "qkv_bias"
    if c["model_type"] == "qwen3":
        yield "q_norm.weight", (dim,), "norm"
        yield "k_norm.weight", (dim,), "norm"
    yield "o_proj.weight", (h, heads * dim), "out"


def mlp(prefix, hidden, inner, down="out"):
    yield f"{prefix}gate_proj.weight", (inner, hidden), "linear"
    yield f"{prefix}up_proj.weight", (inner, hidden), "linear"
    yield f"{prefix}down_proj.weight", (hidden, inner), down


def layer(c, index):
    """One decoder layer's tensors; index num_hidden_layers is the MTP layer's own block."""
    h = c["hidden_size"]
    yield "input_layernorm.weight", (h,), "norm"
    for name, shape, kind in attention(c):
        yield f"self_attn.{name}", shape, kind
    yield "post_attention_layernorm.weight", (h,), "norm"
    if index < c.get("first_k_dense_replace", c["num_hidden_layers"]):
        yield from mlp("mlp.", h, c["intermediate_size"])
        return
    yield "mlp.gate.weight", (c["n_routed_experts"], h), "gate"
    if c["topk_method"] == "noaux_tc":
        yield "mlp.gate.e_score_correction_bias", (c["n_routed_experts"],), "correction_bias"
    inner = c["moe_intermediate_size"]
    for expert in range(c["n_routed_experts"]):
        yield from mlp(f"mlp.experts.{expert}.", h, inner, "expert_down")
    yield from mlp("mlp.shared_experts.", h, inner * c["n_shared_experts"])


def tensors(c):
    """Every tensor of the checkpoint but the MTP layer's copies of the embedding and the head."""
    h, vocab, layers = c["hidden_size"], c["vocab_size"], c["num_hidden_layers"]
    yield "model.embed_tokens.weight", (vocab, h), "embed"
    for index in range(layers + c.get("num_nextn_predict_layers", 0)):
        for name, shape, kind in layer(c, index):
            yield f"model.layers.{index}.{name}", shape, kind
    for index in range(layers, layers + c.get("num_nextn_predict_layers", 0)):
        prefix = f"model.layers.{index}."
        yield prefix + "enorm.weight", (h,), "norm"
        yield prefix + "hnorm.weight", (h,), "norm"
        yield prefix + "eh_proj.weight", (h, 2 * h), "linear"
        yield prefix + "shared_head.norm.weight", (h,), "norm"
    yield "model.norm.weight", (h,), "norm"
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, h), "head"


def draw(family, name, shape, kind):
    """One float32 tensor; its values depend on the family's seed and on its own name only."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{family.seed} {name}".encode()))  # only 32 bits count
    x = torch.randn(shape, generator=generator)
    if kind == "norm":
        return 1.0 + 0.2 * x
    gain = (GAINS | family.gains)[kind]
    if kind == "embed":
        return x * (TIED_EMBED if family.config["tie_word_embeddings"] else gain)
    if kind == "correction_bias":
        return x * gain + family.gains.get("correction_mean", 0.0)
    if kind == "qkv_bias":
        return x * gain
    return x * (gain / math.sqrt(shape[1]))


def quantise(weight, scales, generator):
    """A float8_e4m3fn weight and its float32 weight_scale_inv, one scale a 128 x 128 block (the last ones are short).

    "arbitrary" scales leave up to 40 % of the range unused, so that scales are no simple function of the weights;
    "ue8m0" ones are the smallest power of two that fits.
    """
    n, k = weight.shape
    rows, cols = -(-n // BLOCK), -(-k // BLOCK)
    padded = torch.zeros(rows * BLOCK, cols * BLOCK)
    padded[:n, :k] = weight
    blocks = padded.view(rows, BLOCK, cols, BLOCK)
    scale = blocks.abs().amax((1, 3)) / E4M3_MAX
    if scales == "ue8m0":
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    else:
        scale = scale * (1.0 + 0.4 * torch.rand(scale.shape, generator=generator))
    q = (blocks / scale[:, None, :, None]).view(rows * BLOCK, cols * BLOCK)[:n, :k]
    return q.to(torch.float8_e4m3fn).contiguous(), scale


def dequantise(q, scale):
    """The float32 weight that an FP8 checkpoint stands for."""
    n, k = q.shape
    wide = scale.repeat_interleave(BLOCK, 0)[:n].repeat_interleave(BLOCK, 1)[:, :k]
    return q.float() * wide


def quantised(family, name):
    """Whether an FP8 checkpoint stores this tensor in FP8: the linear weights of attention and of every MLP."""
    if name.endswith("kv_a_proj_with_mqa.weight"):
        return family.kv_a_fp8
    return name.endswith("proj.weight") and (".self_attn." in name or ".mlp." in name)


def build(family):
    """The checkpoint's tensors as stored, by key."""
    c, stored = family.config, {}
    generator = torch.Generator().manual_seed(family.seed)
    dtype = getattr(torch, family.dtype)
    for name, shape, kind in tensors(c):
        x = draw(family, name, shape, kind)
        if family.scales and quantised(family, name):
            stored[name], stored[name + "_scale_inv"] = quantise(x, family.scales, generator)
        else:
            stored[name] = x if kind == "correction_bias" else x.to(dtype)
    for index in range(c["num_hidden_layers"], c["num_hidden_layers"] + c.get("num_nextn_predict_layers", 0)):
        stored[f"model.layers.{index}.embed_tokens.weight"] = stored["model.embed_tokens.weight"].clone()
        stored[f"model.layers.{index}.shared_head.head.weight"] = stored["lm_head.weight"].clone()
    return stored


def as_float32(stored):
    """What the stored tensors stand for, in float32."""
    return {
        name: dequantise(x, stored[name + "_scale_inv"]) if name + "_scale_inv" in stored else x.float()
        for name, x in stored.items() if not name.endswith("_scale_inv")
    }


def write_json(path, value):
    Path(path).write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read(folder):
    """The stored tensors of a folder, from however many files."""
    return {name: x for file in sorted(Path(folder).glob("model*.safetensors")) for name, x in load_file(file).items()}


def write(family, stored, folder):
    """The folder as a hub would hold it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    write_json(folder / "config.json", family.config)
    write_json(folder / "generation_config.json", {
        "_from_model_config": True, "bos_token_id": family.config["bos_token_id"],
        "eos_token_id": family.config["eos_token_id"], "do_sample": True, "temperature": 0.6, "top_p": 0.95})
    if family.shards == 1:
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        return
    names, weight_map = list(stored), {}
    for shard in range(family.shards):
        file = f"model-{shard + 1:05}-of-{family.shards:06}.safetensors"
        part = names[len(names) * shard // family.shards: len(names) * (shard + 1) // family.shards]
        save_file({name: stored[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(x.numel() * x.element_size() for x in stored.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
