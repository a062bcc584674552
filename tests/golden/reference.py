"""The reference: transformers in float32 with eager attention and experts, and the margins of its routers' choices."""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, DynamicCache, logging

import checkpoint

logging.set_verbosity_error()  # it would list the MTP layer's keys as unexpected, which they are to it


def load(family, stored, dtype=torch.float32, **options):
    """transformers' model of a checkpoint: its float32 meaning (in `dtype`) and its config less the quantisation."""
    config = family.config
    plain = {k: v for k, v in config.items() if k != "quantization_config"} | {"torch_dtype": "float32"} | family.reference
    mtp = tuple(f"model.layers.{config['num_hidden_layers'] + i}." for i in range(config.get("num_nextn_predict_layers", 0)))
    weights = {k: v.contiguous() for k, v in checkpoint.as_float32(stored).items() if not k.startswith(mtp or ("\0",))}
    options = {"attn_implementation": "eager"} | ({"experts_implementation": "eager"} if "n_routed_experts" in config else {}) | options
    with tempfile.TemporaryDirectory() as folder:
        save_file(weights, f"{folder}/model.safetensors", {"format": "pt"})
        Path(folder, "config.json").write_text(json.dumps(plain))
        model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True, **options)
    missing = {k for k in report["missing_keys"] if not (config["tie_word_embeddings"] and k == "lm_head.weight")}
    if missing or report["unexpected_keys"] or report["mismatched_keys"]:
        raise SystemExit(f"{config['model_type']}: transformers did not take the checkpoint as it is: {report}")
    return model.eval()


def compared(config, logits, bias):
    """What a router compares: each expert's score [T, experts], and each group's [T, groups], or None without a limit."""
    groups, kept = config.get("n_group") or 1, config.get("topk_group") or 1
    noaux = config["topk_method"] == "noaux_tc"
    scores = logits.sigmoid() + bias if noaux else logits.softmax(-1)
    if config["topk_method"] == "greedy" or kept >= groups:
        return scores, None
    grouped = scores.view(len(scores), groups, -1)
    return scores, grouped.topk(2, -1)[0].sum(-1) if noaux else grouped.amax(-1)


def margin(config, logits, bias):
    """How far each token's routing is from flipping, in units of the compared scores: the smaller of the gaps between the
    last kept and the first dropped group, and the last kept and the first dropped expert of the kept groups.
    """
    k = config["num_experts_per_tok"]
    scores, groups = compared(config, logits, bias)
    result = torch.full(scores.shape[:1], float("inf"))
    if groups is not None:
        kept = config["topk_group"]
        order = groups.sort(-1, descending=True)
        result = order.values[:, kept - 1] - order.values[:, kept]
        mask = torch.ones_like(groups, dtype=torch.bool).scatter(1, order.indices[:, :kept], False)
        scores = scores.view(*groups.shape, -1).masked_fill(mask[..., None], -torch.inf).flatten(1)
    ranked = scores.sort(-1, descending=True).values
    return torch.minimum(result, ranked[:, k - 1] - ranked[:, k])


class Reference:
    """A model with a growing sequence: `extend` runs new tokens after the cached ones."""

    def __init__(self, config, model):
        self.config, self.model, self.gates = config, model, []
        if "n_routed_experts" in config:
            for layer in model.model.layers[config["first_k_dense_replace"]:]:
                layer.mlp.gate.register_forward_hook(self.record)

    def record(self, gate, _, output):
        bias = getattr(gate, "e_score_correction_bias", 0.0)
        scores = [x for x in compared(self.config, output[0], bias) if x is not None]
        self.gates.append((margin(self.config, output[0], bias), output[2], torch.cat(scores, -1)))

    @torch.no_grad()
    def extend(self, tokens, cache):
        """Logits [T, vocab], hidden states after the final norm [T, hidden] and each token's smallest gate margin [T]."""
        self.gates.clear()
        out = self.model.model(torch.tensor([tokens]), cache=cache, use_cache=cache is not None)
        hidden = out.last_hidden_state[0]
        margins = torch.stack([m for m, *_ in self.gates]).amin(0) if self.gates else torch.full((len(tokens),), torch.inf)
        return self.model.lm_head(hidden), hidden, margins

    def cache(self):
        return DynamicCache(config=self.model.config)


def log_probs(logits):
    """Float64 log-softmax of float32 logits: the reference's own arithmetic ends at the logits."""
    return logits.double().log_softmax(-1)
