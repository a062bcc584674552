"""How far the goldens move when one thing is done wrong: `python sensitivity.py [FAMILY ...]` prints a Markdown table.

A golden that hardly moves would not notice the mistake; each row's figure should be well above the tests' 1e-3.
Nothing is written.
"""

import copy
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import checkpoint
import reference
from families import FAMILIES
from mtp import Mtp

HERE = Path(__file__).parent


def attentions(model):
    return [layer.self_attn for layer in model.model.layers]


def gates(model):
    return [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]


def each(modules, **values):
    for module in modules:
        for name, value in values.items():
            setattr(module, name, value)


def ones(modules):
    for module in modules:
        module.weight.data.fill_(1.0)


def zero_bias(model):
    for attention in attentions(model):
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            linear.bias.data.zero_()


def biased_weights(model):
    """Weights gathered from the scores that the correction bias was added to."""
    for gate in gates(model):
        def hook(gate, _, out):
            scores = (out[0].sigmoid() + gate.e_score_correction_bias).gather(1, out[2])
            return out[0], scores / scores.sum(-1, keepdim=True) * gate.routed_scaling_factor, out[2]
        gate.register_forward_hook(hook)


def masked_with_zero(model):
    """Experts of dropped groups left in the running with score 0, which beats a negative biased score."""
    for gate in gates(model):
        def hook(gate, _, out):
            scores = out[0].sigmoid()
            grouped = (scores + gate.e_score_correction_bias).view(len(scores), gate.num_group, -1)
            best = grouped.topk(2, -1)[0].sum(-1).topk(gate.topk_group, -1)[1]
            mask = torch.zeros(grouped.shape[:2]).scatter(1, best, 1.0)
            index = (grouped * mask[..., None]).flatten(1).topk(gate.top_k, -1)[1]
            weights = scores.gather(1, index)
            return out[0], weights / weights.sum(-1, keepdim=True) * gate.routed_scaling_factor, index
        gate.register_forward_hook(hook)


def rotary(model, wrong):
    """The rotary frequencies of another config (attention factor as it was)."""
    module = model.model.rotary_emb
    module.inv_freq = type(module)(wrong).inv_freq


def halves(model):
    """Rotary pairs taken as (i, i + d/2) instead of (2i, 2i + 1)."""
    def rearrange(weight, heads, start, dim):
        rows = weight.data.view(heads, -1, weight.shape[1])
        part = rows[:, start:start + dim]
        rows[:, start:start + dim] = torch.stack((part[:, :dim // 2], part[:, dim // 2:]), 2).flatten(1, 2)
    for a in attentions(model):
        query = a.q_proj if a.q_lora_rank is None else a.q_b_proj
        rearrange(query.weight, a.num_heads, a.qk_nope_head_dim, a.qk_rope_head_dim)
        rearrange(a.kv_a_proj_with_mqa.weight, 1, a.kv_lora_rank, a.qk_rope_head_dim)


def interleaved_heads(model):
    """Query head i reading key head i % kv instead of i // (heads / kv)."""
    for a in attentions(model):
        kv, groups = a.k_proj.out_features // a.head_dim, a.num_key_value_groups
        rows = a.q_proj.weight.data.view(kv, groups, a.head_dim, -1)
        a.q_proj.weight.data = rows.transpose(0, 1).reshape(a.q_proj.weight.shape).contiguous()
        cols = a.o_proj.weight.data.view(-1, kv, groups, a.head_dim)
        a.o_proj.weight.data = cols.transpose(1, 2).reshape(a.o_proj.weight.shape).contiguous()


def mistakes(config, model_config):
    """(what, how to do it to a loaded model) for a family."""
    unscaled = copy.deepcopy(model_config)
    unscaled.rope_parameters = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    scaled = config.get("rope_scaling")
    if scaled:
        yield "plain rotary frequencies", lambda m: rotary(m, unscaled)
    if "kv_lora_rank" in config:
        scale = (config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5
        yield "softmax scale without mscale squared", lambda m: each(attentions(m), scaling=scale)
        yield "rotary pairs as halves", halves
        yield "kv_a_layernorm weight left out", lambda m: ones([a.kv_a_layernorm for a in attentions(m)])
        if config["topk_method"] != "greedy":
            yield "no group limit", lambda m: each(gates(m), num_group=1, topk_group=1)
        if config["topk_method"] == "noaux_tc":
            yield "no correction bias", lambda m: each(gates(m), e_score_correction_bias=torch.zeros(config["n_routed_experts"]))
            yield "weights from biased scores", biased_weights
            yield "dropped groups masked with 0", masked_with_zero
            yield "weights not normalised", lambda m: each(gates(m), norm_topk_prob=False)
        if config["routed_scaling_factor"] != 1.0:
            yield "no routed_scaling_factor", lambda m: each(gates(m), routed_scaling_factor=1.0)
        return
    if config["num_attention_heads"] > config["num_key_value_heads"] > 1:
        yield "key heads dealt round-robin", interleaved_heads
    if config["model_type"] == "qwen2":
        yield "no q, k, v bias", zero_bias
    if config["model_type"] == "qwen3":
        yield "no q_norm, k_norm weight", lambda m: ones([n for a in attentions(m) for n in (a.q_norm, a.k_norm)])
        if "attn_factor" in scaled:
            factor = 0.1 * math.log(scaled["factor"]) + 1.0
            yield "attn_factor ignored", lambda m: each([m.model.rotary_emb], attention_scaling=factor)
        else:
            yield "rotary attention factor 1", lambda m: each([m.model.rotary_emb], attention_scaling=1.0)


def distance(config, model, goldens):
    """Largest |change| of the stored log-probs, for the 65- and the 1000-token prompt, and changed top-1 choices (1000)."""
    ref, moved = reference.Reference(config, model), []
    for name in ("p65", "p1000"):
        logits, _, _ = ref.extend(goldens[f"{name}.tokens"].tolist(), None)
        rows = reference.log_probs(logits[goldens[f"{name}.positions"].long()])
        ids = goldens[f"{name}.top_ids"].long()
        moved.append(float((rows.gather(1, ids) - goldens[f"{name}.top_logprobs"]).abs().max()))
    moved.append(float((rows.argmax(-1) != ids[:, 0]).double().mean()))
    return moved


def short_block_wrong(stored):
    """FP8 scales whose short last row block has the scale of the block above it."""
    wrong = dict(stored)
    for name, scale in stored.items():
        if name.endswith("_scale_inv") and len(scale) > 1:
            wrong[name] = torch.cat((scale[:-1], scale[-2:-1]))
    return wrong


def mtp_mistakes(family, stored, goldens):
    """What MTP log-probs do when one thing is wrong, as `distance` says it."""
    model = reference.load(family, stored)
    swapped = dict(stored)
    key = f"model.layers.{family.config['num_hidden_layers']}.eh_proj.weight"
    swapped[key] = stored[key].roll(family.config["hidden_size"], 1)
    ref, before = reference.Reference(family.config, model), []
    model.model.norm.register_forward_pre_hook(lambda _, x: before.append(x[0][0]))
    for what, weights, use_before in (("nothing", stored, False), ("h before the final norm", stored, True),
                                      ("eh_proj's halves swapped", swapped, False)):
        mtp, moved = Mtp(family.config, weights, model), []
        for name in ("p65", "p1000"):
            sequence = goldens[f"{name}.tokens"].tolist() + goldens[f"{name}.greedy_tokens"].tolist()
            before.clear()
            hidden = ref.extend(sequence, None)[1]
            logits, _ = mtp.logits((before[0] if use_before else hidden)[:-1], sequence[1:])
            rows = reference.log_probs(logits[goldens[f"{name}.mtp_positions"].long()])
            ids = goldens[f"{name}.mtp_top_ids"].long()
            moved.append(float((rows.gather(1, ids) - goldens[f"{name}.mtp_top_logprobs"]).abs().max()))
        yield what, moved + [float((rows.argmax(-1) != ids[:, 0]).double().mean())]


def report(family, what, moved):
    short, long, other = moved
    print(f"| {family.name} | {what} | {short:.1e} | {long:.1e} | {other:.0%} |", flush=True)


def main():
    torch.set_num_threads(1)
    print("| family | done wrong | 65 tokens | 1000 tokens | other top-1 |\n|---|---|---|---|---|")
    for family in FAMILIES:
        if sys.argv[1:] and family.name not in sys.argv[1:]:
            continue
        stored = checkpoint.read(HERE / family.name)
        goldens = load_file(HERE / family.name / "golden.safetensors")
        model = reference.load(family, stored)
        cases = [("nothing", lambda m: None), ("nothing (sdpa attention)", lambda m: m.set_attn_implementation("sdpa"))]
        for what, spoil in cases + list(mistakes(family.config, model.config)):
            model = reference.load(family, stored)
            spoil(model)
            report(family, what, distance(family.config, model, goldens))
        if family.scales:
            model = reference.load(family, short_block_wrong(stored))
            report(family, "short last block scaled as the one above", distance(family.config, model, goldens))
        if family.mtp:
            for what, moved in mtp_mistakes(family, stored, goldens):
                report(family, "MTP: " + what, moved)


if __name__ == "__main__":
    main()
