"""How far transformers' own bf16 run is from the goldens: `python bf16.py` writes bf16.json.

|difference| of the log-probs of the stored tokens, at every stored position of prompts and continuations: half of them, nine
in ten, and all are at most so much. A device that computes in bf16 is held to the first two (engine/tests/cuda.rs).
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

import checkpoint
import reference
from families import FAMILIES

HERE = Path(__file__).parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@torch.no_grad()
def differences(family):
    folder = HERE / family.name
    goldens = load_file(folder / "golden.safetensors")
    model = reference.load(family, checkpoint.read(folder), dtype=torch.bfloat16).to(DEVICE)
    for prompt in sorted({key.split(".")[0] for key in goldens}):
        tokens, after = goldens[f"{prompt}.tokens"].long(), goldens[f"{prompt}.greedy_tokens"].long()
        logits = model(torch.cat([tokens, after])[None].to(DEVICE)).logits[0].float().cpu()
        found = reference.log_probs(logits).float()
        last = len(tokens) - 1
        steps = torch.arange(last, last + len(after))
        for what, positions in (("top", goldens[f"{prompt}.positions"].long()), ("greedy_top", steps)):
            ids, expected = goldens[f"{prompt}.{what}_ids"].long(), goldens[f"{prompt}.{what}_logprobs"]
            yield (found[positions].gather(1, ids) - expected).abs().flatten()


def main():
    result = {"versions": {"torch": torch.__version__, "transformers": transformers.__version__, "device": DEVICE}}
    for family in FAMILIES:
        found = torch.cat(list(differences(family))).sort().values
        at = lambda share: float(found[round((len(found) - 1) * share)])  # noqa: E731
        result[family.name] = {"median": at(0.5), "p90": at(0.9), "max": at(1.0)}
        print(family.name, result[family.name], flush=True)
    (HERE / "bf16.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
