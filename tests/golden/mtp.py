"""The multi-token-prediction layer of DeepSeek-V3 over transformers' decoder layer.

h[p], the main model's hidden state at p after its final norm, and token p+1 give the distribution of token p+2:
eh_proj([enorm(embedding of token p+1) ; hnorm(h[p])]) -> one MoE decoder layer -> shared_head.norm -> shared_head.head.
The layer has a cache of its own, and its position p is the main model's p. (transformers' generate numbers it p+1: rotary
positions act by their differences only, so both give the same but for the rounding of the angles.)
"""

import torch
import torch.nn.functional as F

import checkpoint
import reference


def rms_norm(x, weight, eps):
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


class Mtp:
    """The MTP layer of a checkpoint; `main` is transformers' model of the rest."""

    def __init__(self, config, stored, main):
        self.config, self.main = config, main
        prefix = f"model.layers.{config['num_hidden_layers']}."
        own = {k.removeprefix(prefix): v for k, v in checkpoint.as_float32(stored).items() if k.startswith(prefix)}
        outside = ("embed_tokens.", "enorm.", "hnorm.", "eh_proj.", "shared_head.")
        self.weights = {k: v for k, v in own.items() if k.startswith(outside)}
        block = type(main.model.layers[-1])(main.config, config["num_hidden_layers"]).eval()
        block.load_state_dict(fused(config, {k: v for k, v in own.items() if k not in self.weights}))
        self.block, self.gates = block, []
        block.mlp.gate.register_forward_hook(
            lambda gate, _, out: self.gates.append(reference.margin(config, out[0], gate.e_score_correction_bias)))

    @torch.no_grad()
    def logits(self, hidden, next_tokens):
        """Logits [T, vocab] and gate margins [T] from hidden states [T, hidden] and the tokens that follow each."""
        w, eps = self.weights, self.config["rms_norm_eps"]
        embedded = F.embedding(torch.tensor(next_tokens), w["embed_tokens.weight"])
        pair = torch.cat((rms_norm(embedded, w["enorm.weight"], eps), rms_norm(hidden, w["hnorm.weight"], eps)), -1)
        x = F.linear(pair, w["eh_proj.weight"])[None]
        positions = torch.arange(len(next_tokens))[None]
        mask = torch.full((len(next_tokens),) * 2, -torch.inf).triu(1)[None, None]
        self.gates.clear()
        x = self.block(x, position_embeddings=self.main.model.rotary_emb(x, positions), attention_mask=mask)[0]
        x = rms_norm(x, w["shared_head.norm.weight"], eps)
        return F.linear(x, w["shared_head.head.weight"]), self.gates[0]

    @torch.no_grad()
    def library_logits(self, hidden, next_tokens):
        """The same by transformers' own MtpModel, as a check of this file."""
        from transformers.modeling_layers import MtpModel
        model = MtpModel(self.main, 1).eval()
        ours = self.block.state_dict()
        own = {f"layers.0.mtp_block.{k}": v for k, v in ours.items()}
        own |= {f"layers.0.{k}": v for k, v in self.weights.items() if k.startswith(("enorm", "hnorm", "eh_proj"))}
        own["layers.0.post_norm.weight"] = self.weights["shared_head.norm.weight"]
        missing, unexpected = model.load_state_dict(own, strict=False)
        if unexpected or any(k.startswith("layers.") for k in missing):
            raise SystemExit(f"transformers' MTP layer did not take the weights: {missing} {unexpected}")
        model.set_attn_implementation("eager")
        positions = torch.arange(len(next_tokens))[None]
        out = model.forward_layer(0, hidden[None], positions, None, input_ids=torch.tensor([next_tokens]))
        return self.main.lm_head(out)[0]


def fused(config, own):
    """A layer's per-expert tensors stacked as transformers holds them."""
    experts = range(config["n_routed_experts"])
    stack = lambda part: torch.stack([own[f"mlp.experts.{e}.{part}_proj.weight"] for e in experts])
    out = {k: v for k, v in own.items() if ".experts." not in k}
    return out | {"mlp.experts.gate_up_proj": torch.cat((stack("gate"), stack("up")), 1),
                  "mlp.experts.down_proj": stack("down")}
