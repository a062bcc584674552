"""Writes the checkpoint that speed is compared on: `python bench_checkpoint.py FOLDER`.

A random DeepSeek-V2 of about 30 million parameters in bfloat16 with the real attention sizes (512 + 64 cached values a
token and layer, heads of 192 and 128), whose every part llama.cpp's converter and loader know:

- q_lora_rank is set: llama.cpp takes a DeepSeek-V2 without one only at the layer counts of published Lite models.
- topk_method is "greedy" with one group: llama.cpp does not read V2's group limit.
- sizes are multiples of 32.

The tokenizer is tiny-r1's (the first argument after the folder names another). The converter recognises pre-tokenizers by
a hash over token ids, so it refuses every vocabulary it has not seen, this one too: run it (llama-cpp-python's source package
holds it, vendor/llama.cpp/convert_hf_to_gguf.py) through a wrapper that sets
`TextModel.get_vocab_base_pre = lambda self, tokenizer: "deepseek-v3"` first. Benchmarks that feed token ids do not
depend on it.
"""

import argparse
import json
import shutil
from pathlib import Path

import checkpoint
from families import V2, Family, yarn

TOKENIZER = Path(__file__).parents[2] / "models" / "tiny-r1"

BENCH = Family("bench", V2 | {
    "hidden_size": 384, "intermediate_size": 1024, "moe_intermediate_size": 128, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 8, "q_lora_rank": 192, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "max_position_embeddings": 163840,
    "n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
    "routed_scaling_factor": 1.0, "rope_scaling": yarn(40, 4096, 0.707), "vocab_size": 2048,
}, seed=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tokenizer", type=Path, nargs="?", default=TOKENIZER)
    args = parser.parse_args()
    vocabulary = json.loads((args.tokenizer / "tokenizer.json").read_text())
    ids = {*vocabulary["model"]["vocab"].values(), *(t["id"] for t in vocabulary["added_tokens"])}
    if max(ids) >= BENCH.config["vocab_size"]:
        raise SystemExit(f"the tokenizer's largest id {max(ids)} needs a vocab_size above {BENCH.config['vocab_size']}")
    stored = checkpoint.build(BENCH)
    checkpoint.write(BENCH, stored, args.folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(args.tokenizer / name, args.folder / name)
    parameters = sum(x.numel() for x in stored.values())
    print(f"{args.folder}: {parameters / 1e6:.1f} million parameters, {sum(x.nbytes for x in stored.values()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
