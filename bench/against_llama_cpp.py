"""One engine against llama.cpp on the same weights: prefill and decode tokens per second, as ratios.

    bench/run llama-cpp            (or: python bench/against_llama_cpp.py)

Both run the same random DeepSeek-V2 in bfloat16, fed with token ids, one sequence, greedy. Rounds alternate between the
two, so that whatever else the machine does hits both. Before anything is timed, the two must agree on the tokens.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

import checkpoint

ROOT = Path(__file__).resolve().parents[1]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def prompt(length, seed):
    """The same ids as engine/examples/bench_engine.rs draws."""
    state, ids = seed, []
    for _ in range(length):
        state = (state * 1664525 + 1013904223) % 2**32
        ids.append(10 + (state >> 8) % (checkpoint.CONFIG["vocab_size"] - 10))
    return ids


class LlamaCpp:
    """llama.cpp through its C API."""

    def __init__(self, gguf, threads, context):
        import llama_cpp

        self.c = c = llama_cpp
        silent = c.llama_log_callback(lambda *_: None)
        self.silent = silent  # Kept alive: the library calls it.
        c.llama_log_set(silent, ctypes.c_void_p(0))
        c.llama_backend_init()
        self.model = c.llama_model_load_from_file(str(gguf).encode(), c.llama_model_default_params())
        params = c.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self.context = c.llama_init_from_model(self.model, params)
        assert self.context, "llama.cpp made no context"

    def evaluate(self, ids):
        array = (self.c.llama_token * len(ids))(*ids)
        assert self.c.llama_decode(self.context, self.c.llama_batch_get_one(array, len(ids))) == 0

    def best(self):
        logits = self.c.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(checkpoint.CONFIG["vocab_size"],)).argmax())

    def generate(self, ids, output):
        """(prefill seconds, decode seconds, tokens)."""
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)
        start = time.perf_counter()
        self.evaluate(ids)
        tokens = [self.best()]
        prefilled = time.perf_counter()
        while len(tokens) < output:
            self.evaluate(tokens[-1:])
            tokens.append(self.best())
        return prefilled - start, time.perf_counter() - prefilled, tokens


def ours(folder, threads, args, seed):
    command = [TARGET / "release/examples/bench_engine", folder, "--threads", threads, "--prompt", args.prompt,
               "--output", args.output, "--repeat", 1, "--seed", seed, "--tokens"]
    return json.loads(subprocess.run([str(x) for x in command], check=True, capture_output=True, text=True).stdout)


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return "unknown processor"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    subprocess.run(["cargo", "build", "--release", "-q", "-p", "millrace-engine", "--example", "bench_engine"],
                   cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder, gguf = checkpoint.write(Path(scratch))
        print(f"{processor()}, {os.cpu_count()} cores; prompt {args.prompt}, output {args.output}, one sequence, "
              f"median of {args.rounds} alternating rounds")
        for threads in args.threads:
            peer = LlamaCpp(gguf, threads, args.prompt + args.output)
            rates = {"millrace": ([], []), "llama.cpp": ([], [])}
            agree = []
            for seed in range(1, args.rounds + 1):
                result = ours(folder, threads, args, seed)
                rates["millrace"][0].append(result["prefill_tokens_per_second"]["best"])
                rates["millrace"][1].append(result["decode_tokens_per_second"]["best"])
                prefill, decode, tokens = peer.generate(prompt(args.prompt, seed), args.output)
                rates["llama.cpp"][0].append(args.prompt / prefill)
                rates["llama.cpp"][1].append((args.output - 1) / decode)
                same = [a == b for a, b in zip(tokens, result["tokens"])]
                agree.append(same.index(False) if False in same else len(same))
            print(f"\n{threads} thread(s); the two agree on the first {statistics.median(agree)} of {args.output} "
                  f"tokens (median; caches round differently, and a random model repeats itself)")
            for index, phase in enumerate(("prefill", "decode")):
                a, b = (statistics.median(rates[name][index]) for name in ("millrace", "llama.cpp"))
                print(f"  {phase:8} millrace {a:8.0f} tok/s   llama.cpp {b:8.0f} tok/s   ratio {a / b:.2f}")


if __name__ == "__main__":
    main()
