"""Makes the golden checkpoints and their goldens: `python generate.py [FAMILY ...]`. With --check nothing is written:
the goldens of the folders as they are get recomputed and compared. README.md describes the files.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import checkpoint
import reference
import vocabulary
from families import FAMILIES
from mtp import Mtp

HERE = Path(__file__).parent
LENGTHS = (1, 63, 64, 65, 1000)
TOP = 20  # log-probs kept a position
STEPS = 32  # greedy tokens
EVERY = 16  # kept positions of prompts longer than DENSE
DENSE = 65
PROMPT_MARGIN = 3e-4  # a drawn token whose routing is closer to flipping is drawn anew
GREEDY_MARGIN = 1e-4  # ... and a continuation with such a token makes the prompt's last token be drawn anew
GAP = 2e-3  # smallest top-2 gap of a greedy step, in log-prob
TRIES = 300  # last tokens tried for a prompt
DISTINCT = 6  # fewest different greedy tokens: a continuation stuck in a loop tests little
FIRST_TOKEN = 3  # ids below are left to bos, eos and padding


def draw_prompt(ref, rng, length, cache):
    """A random prompt whose routing is nowhere close to flipping, token by token; the cache ends up holding it."""
    prompt, margins = [], []
    while len(prompt) < length:
        token = int(rng.integers(FIRST_TOKEN, ref.config["vocab_size"]))
        logits, _, margin = ref.extend([token], cache)
        if margin[0] < PROMPT_MARGIN:
            cache.crop(-1)
            continue
        prompt.append(token)
        margins.append(margin[0])
    return prompt, logits[-1], float(min(margins))


def greedy(ref, logits, cache):
    """STEPS greedy tokens after the cached ones, each step's log-probs [STEPS, vocab] and the smallest gate margin."""
    tokens, steps, smallest = [], [], float("inf")
    for step in range(STEPS):
        steps.append(reference.log_probs(logits))
        tokens.append(int(logits.argmax()))
        if step + 1 < STEPS:
            logits, _, margin = ref.extend(tokens[-1:], cache)
            logits, smallest = logits[-1], min(smallest, float(margin[0]))
    return tokens, torch.stack(steps), smallest


def sample(ref, rng, length):
    """A prompt and its continuation, both clear of ties: (prompt, greedy tokens, their log-probs, margins)."""
    cache = ref.cache()
    prompt, logits, margin = draw_prompt(ref, rng, length, cache)
    for _ in range(TRIES):
        tokens, steps, greedy_margin = greedy(ref, logits, cache)
        top = steps.topk(2).values
        gap = float((top[:, 0] - top[:, 1]).min())
        if gap >= GAP and greedy_margin >= GREEDY_MARGIN and min(tokens) >= FIRST_TOKEN and len(set(tokens)) >= DISTINCT:
            return prompt, tokens, steps, {"min_gate_margin": min(margin, greedy_margin), "min_greedy_gap": gap}
        cache.crop(-STEPS)
        last, logits, last_margin = draw_prompt(ref, rng, 1, cache)
        prompt[-1], margin = last[0], min(margin, last_margin)
    raise SystemExit(f"no continuation of the {length}-token prompt is clear of ties and repetition; change the seed")


def kept(length):
    """The positions whose log-probs are stored."""
    return list(range(length)) if length <= DENSE else sorted({*range(0, length, EVERY), length - 1})


def top(logits):
    values, ids = reference.log_probs(logits).topk(TOP)
    return ids.int(), values.float()


def golden(ref, mtp, prompt, tokens):
    """All tensors of one prompt, computed in whole passes (the continuation too: no cache is involved)."""
    logits, hidden, margins = ref.extend(prompt + tokens, None)
    positions = kept(len(prompt))
    out = {"tokens": torch.tensor(prompt, dtype=torch.int32), "positions": torch.tensor(positions, dtype=torch.int32)}
    out["top_ids"], out["top_logprobs"] = top(logits[positions])
    out["greedy_tokens"] = torch.tensor(tokens, dtype=torch.int32)
    steps = logits[len(prompt) - 1: -1]
    out["greedy_top_ids"], out["greedy_top_logprobs"] = top(steps)
    out["greedy_gap"] = out["greedy_top_logprobs"][:, 0] - out["greedy_top_logprobs"][:, 1]
    facts = {"whole_pass_min_gate_margin": float(margins[:-1].min())}  # nothing depends on the last token
    if mtp:
        sequence = prompt + tokens
        draft, gate = mtp.logits(hidden[:-1], sequence[1:])
        library = (draft - mtp.library_logits(hidden[:-1], sequence[1:])).abs().max()
        if library > 2e-5:
            raise SystemExit(f"mtp.py differs from transformers' MtpModel by {library:.1e}")
        last = len(prompt) - 1
        where = sorted({*kept(len(prompt)), *range(last, last + STEPS)})
        where = [p for p in where if gate[p] >= GREEDY_MARGIN]
        out["mtp_positions"] = torch.tensor(where, dtype=torch.int32)
        out["mtp_top_ids"], out["mtp_top_logprobs"] = top(draft[where])
        facts |= {"mtp_min_gate_margin": float(gate[where].min()), "mtp_vs_library": float(library)}
    return out, facts, logits


def generate(family, folder):
    stored = checkpoint.build(family)
    checkpoint.write(family, stored, folder)
    vocabulary.write(folder, family.config["vocab_size"])
    model = reference.load(family, stored)
    ref = reference.Reference(family.config, model)
    mtp = Mtp(family.config, stored, model) if family.mtp else None
    rng = np.random.default_rng(family.seed)
    saved, prompts = {}, []
    for length in LENGTHS:
        name = f"p{length}"
        prompt, tokens, steps, facts = sample(ref, rng, length)
        tensors, more, logits = golden(ref, mtp, prompt, tokens)
        whole = reference.log_probs(logits[len(prompt) - 1: -1])
        keep = tensors["greedy_top_ids"].long()
        facts |= more | {"cached_vs_whole": float((whole - steps).gather(1, keep).abs().max())}
        if logits[len(prompt) - 1: -1].argmax(-1).tolist() != tokens:
            raise SystemExit(f"{family.name} {name}: greedy tokens differ between a cached and a whole pass; change the seed")
        saved |= {f"{name}.{k}": v.contiguous() for k, v in tensors.items()}
        facts = {key: value for key, value in facts.items() if value != float("inf")}  # a dense model has no gate
        prompts.append({"name": name, "length": length, "mtp": bool(mtp)} | facts)
    save_file(saved, folder / "golden.safetensors")
    checkpoint.write_json(folder / "golden.json", {
        "family": family.name, "seed": family.seed, "top": TOP, "steps": STEPS, "prompts": prompts,
        "versions": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__},
    })
    return saved, prompts


def check(family, folder):
    """The largest change of a stored log-prob when the goldens of a folder are recomputed from its files."""
    stored, goldens = checkpoint.read(folder), load_file(folder / "golden.safetensors")
    model = reference.load(family, stored)
    ref = reference.Reference(family.config, model)
    mtp = Mtp(family.config, stored, model) if family.mtp else None
    largest = 0.0
    for length in LENGTHS:
        old = {k.split(".")[1]: v for k, v in goldens.items() if k.split(".")[0] == f"p{length}"}
        new, _, logits = golden(ref, mtp, old["tokens"].tolist(), old["greedy_tokens"].tolist())
        for key, value in old.items():
            if value.dtype == torch.float32:
                largest = max(largest, float((value - new[key]).abs().max()))
            elif not torch.equal(value, new[key]) and not key.endswith("top_ids"):  # ids of equal log-probs may change places
                raise SystemExit(f"{family.name} p{length}: {key} differs")
        if logits[length - 1: -1].argmax(-1).tolist() != old["greedy_tokens"].tolist():
            raise SystemExit(f"{family.name} p{length}: the greedy tokens differ")
    if not family.scales and not family.reference:  # transformers reads these folders by itself
        direct = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            there = reference.log_probs(direct(goldens["p65.tokens"].long()[None]).logits[0])
        there = there.gather(1, goldens["p65.top_ids"].long())
        largest = max(largest, float((there - goldens["p65.top_logprobs"]).abs().max()))
    return largest


def summary(saved, prompts):
    """What was measured, in a line."""
    tops = torch.cat([v[:, 0].exp() for k, v in saved.items() if k.endswith(".top_logprobs")])
    text = f"top-1 p {tops.median():.2f}"
    for label, key, pick in (("gate margin", "min_gate_margin", min), ("MTP's", "mtp_min_gate_margin", min),
                             ("gap", "min_greedy_gap", min), ("cached-whole", "cached_vs_whole", max)):
        found = [p[key] for p in prompts if key in p]
        text += f", {label} {pick(found):.1e}" if found else ""
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", nargs="*")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    unknown = set(args.family) - {f.name for f in FAMILIES}
    if unknown:
        raise SystemExit(f"no such family: {', '.join(sorted(unknown))}; there are {', '.join(f.name for f in FAMILIES)}")
    torch.set_num_threads(1)  # the sizes are tiny, and one thread adds in one order
    for family in FAMILIES:
        if args.family and family.name not in args.family:
            continue
        start, folder = time.time(), HERE / family.name
        if args.check:
            largest = check(family, folder)
            print(f"{family.name}: largest difference {largest:.1e}", flush=True)
            if largest > 1e-4:
                raise SystemExit("the goldens are not what this transformers computes")
            continue
        measured = summary(*generate(family, folder))
        size = sum(f.stat().st_size for f in folder.iterdir()) / 1000
        print(f"{family.name:18} {size:5.0f} kB {time.time() - start:4.0f} s, {measured}", flush=True)


if __name__ == "__main__":
    main()
