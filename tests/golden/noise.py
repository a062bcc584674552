"""How far coarser arithmetic is from the goldens: `python noise.py [FAMILY ...]` writes noise.json, for the families named.

`bf16` is transformers' own run in bfloat16. `fp8`, of checkpoints that a GPU multiplies in 8 bits, is the same with the inputs
of every linear layer that the checkpoint has in FP8 rounded to e4m3, one scale for 128 values of a row, and its weights as
they are: what a layer in FP8 computes on hardware that has it. Devices are held to these figures (engine/tests/noise.rs):

- `median`, `p90`, `max`: |difference| of the log-probs of the stored tokens, at every stored position of prompts and
  continuations: half of them, nine in ten, and all are at most so much. The last is mostly a token whose experts flipped.
- `gate`: how far a compared score of a router moved, while the token's experts so far were the same.
- `clear`: as `max`, of positions whose gate margin is more than twice `gate`: theirs cannot flip.
- `steps`: by prompt, the greedy steps at such positions whose two best tokens are further apart than twice `clear`: those
  that no noise of this size changes.
"""

import argparse
import json
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

import checkpoint
import reference
from families import FAMILIES

HERE = Path(__file__).parent


def through_e4m3(x):
    """What is left of float32 rows [..., n x 128] that are multiplied in 8 bits."""
    blocks = x.unflatten(-1, (-1, checkpoint.BLOCK))
    scale = blocks.abs().amax(-1, keepdim=True) / checkpoint.E4M3_MAX
    scale = torch.where(scale > 0, scale, 1.0)
    return ((blocks / scale).to(torch.float8_e4m3fn).float() * scale).flatten(-2)


class EightBits(TorchFunctionMode):
    """A bfloat16 model's linear layers, single experts too, that a checkpoint has in FP8, multiplied so: by their weights as
    they are, which are those of `exact`.
    """

    def __init__(self, family, model, exact):
        super().__init__()
        self.weights = set()
        for (name, parameter), (_, weights) in zip(model.named_parameters(), exact.named_parameters(), strict=True):
            # Experts are one parameter, whose name has no ".weight".
            if checkpoint.quantised(family, name.removesuffix(".weight") + ".weight"):
                parameter.data = weights.data
                self.weights.add(weights.untyped_storage().data_ptr())

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear and args[1].untyped_storage().data_ptr() in self.weights:
            x, weights, *bias = args
            return F.linear(through_e4m3(x.float()), weights, *bias).to(x.dtype)
        return function(*args, **(kwargs or {}))


def in_eight_bits(stored):
    """Whether a GPU multiplies all of a checkpoint's FP8 weights in 8 bits: it takes whole blocks, and 64 outputs at a time."""
    shapes = [x.shape for name, x in stored.items() if name + "_scale_inv" in stored]
    return bool(shapes) and all(n % 64 == 0 and k % checkpoint.BLOCK == 0 for n, k in shapes)


def compare(goldens, exact, rough, mode=nullcontext()):
    """The figures of `rough`, run in `mode`, against those of the reference; both are `Reference`s."""
    found, gate = [], 0.0
    for prompt in sorted({key.split(".")[0] for key in goldens}):
        tokens, after = goldens[f"{prompt}.tokens"].tolist(), goldens[f"{prompt}.greedy_tokens"].tolist()
        _, _, margins = exact.extend(tokens + after, None)
        with mode:
            logits = rough.extend(tokens + after, None)[0].float()
        same = torch.ones(len(margins), dtype=torch.bool)
        for (_, ours, scores), (_, theirs, moved) in zip(exact.gates, rough.gates, strict=True):
            gate = max(gate, float((moved - scores)[same].abs().max()))
            same &= (ours.sort(-1).values == theirs.sort(-1).values).all(-1)
        log_probs, last = reference.log_probs(logits).float(), len(tokens) - 1
        steps = torch.arange(last, last + len(after))
        for what, positions in (("top", goldens[f"{prompt}.positions"].long()), ("greedy_top", steps)):
            ids, expected = goldens[f"{prompt}.{what}_ids"].long(), goldens[f"{prompt}.{what}_logprobs"]
            found.append((prompt, what, margins[positions], (log_probs[positions].gather(1, ids) - expected).abs()))
    every = torch.cat([moved.flatten() for *_, moved in found]).sort().values
    at = lambda share: float(every[round((len(every) - 1) * share)])  # noqa: E731
    clear = max(float(moved[margin > 2 * gate].max()) for *_, margin, moved in found if (margin > 2 * gate).any())
    steps = {
        prompt: ((margin > 2 * gate) & (goldens[f"{prompt}.greedy_gap"] > 2 * clear)).nonzero().flatten().tolist()
        for prompt, what, margin, _ in found if what == "greedy_top"
    }
    return {"median": at(0.5), "p90": at(0.9), "max": at(1.0), "gate": gate, "clear": clear, "steps": steps}


def measure(family):
    folder = HERE / family.name
    goldens, stored = load_file(folder / "golden.safetensors"), checkpoint.read(folder)
    load = lambda dtype: reference.Reference(family.config, reference.load(family, stored, dtype))  # noqa: E731
    exact = load(torch.float32)
    result = {"bf16": compare(goldens, exact, load(torch.bfloat16))}
    if in_eight_bits(stored):
        rough = load(torch.bfloat16)
        result["fp8"] = compare(goldens, exact, rough, EightBits(family, rough.model, exact.model))
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)  # as in generate.py
    path = HERE / "noise.json"
    before = json.loads(path.read_text()) if args.family else {}
    result = {"versions": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}}
    if before and before["versions"] != result["versions"]:
        raise SystemExit(f"the other families' are of {before['versions']}: make all of them")
    for family in FAMILIES:
        if args.family and family.name not in args.family:
            result[family.name] = before[family.name]
            continue
        result[family.name] = measure(family)
        for what, figures in result[family.name].items():
            count = sum(map(len, figures["steps"].values()))
            text = ", ".join(f"{name} {value:.1e}" for name, value in figures.items() if name != "steps")
            print(f"{family.name:22} {what}: {text}, {count} steps", flush=True)
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in result.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
