"""A real deployment under recorded load, and the simulation of it: `bench/run simulated-and-real`.

One prefill and one decode worker of the embedded tiny-r1 on one thread each, with router and client beside them. Steps
are measured first, by `millrace bench profile`: an engine alone. What a message between processes takes is measured by
short requests that come alone, and by how much longer steps take while prefill worker, decode worker, router and client
share the cores, by requests that come two at a time.

Then requests of many lengths come at random times, faster and faster; the same requests, at the same times, go through
`millrace sim`. Printed are both, and how far the simulation is off. Nothing of that load itself goes into the model.
"""

import argparse
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BINARY = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/millrace"
THREADS, RUNNING, CHUNK, PAGES = 1, 16, 512, 2000
MODEL = json.loads((ROOT / "models/tiny-r1/config.json").read_text())
# Pages of all layers in float32, as CPUs keep them.
PAGE_BYTES = 64 * MODEL["num_hidden_layers"] * (MODEL["kv_lora_rank"] + MODEL["qk_rope_head_dim"]) * 4
ENGINE = ["--threads", THREADS, "--max-running", RUNNING, "--max-batch-tokens", CHUNK, "--kv-pages", PAGES, "--no-mtp",
          "--no-prefix-cache"]
PERCENTILES = [50, 90, 99]
# Requests that come alone, and two at a time; how far off a quantile may be.
LONE, PAIRED, BAR = 20, 100, 0.15
STEP_OF = {"prefill": ["prefill_base", "token", "token_context"], "decode": ["base", "sequence", "batch", "context"]}


def millrace(*args):
    return subprocess.run([BINARY, *map(str, args)], check=True, capture_output=True, text=True).stdout


class Deployment:
    """`millrace up` on free ports."""

    def __init__(self):
        command = [BINARY, "up", "--prefill", "1", "--decode", "1", "--local-prefill-tokens", "0",
                   "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", *map(str, ENGINE)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in self.process.stdout:
            if found := re.search(r"gRPC +([\d.]+:\d+)", line):
                self.grpc = found[1]
            if "Ctrl-C" in line:
                return
        raise SystemExit("millrace up did not start")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def load(self, folder, *args):
        """One object a request, in order of time."""
        file = folder / "recorded.jsonl"
        millrace("bench", "--grpc", self.grpc, "--record", file, *args)
        return sorted(map(json.loads, file.read_text().splitlines()), key=lambda one: one["at"])


def quantiles(values):
    """Milliseconds, by nearest rank."""
    values = sorted(value for value in values if value is not None)
    return [1000 * values[max(1, math.ceil(len(values) * percent / 100)) - 1] for percent in PERCENTILES]


def simulate(folder, step, hop, requests):
    seconds = requests[-1]["at"] + 120
    engine = {"max_batch_tokens": CHUNK, "max_running": RUNNING, "kv_pages": PAGES, "local_prefill_tokens": 0}
    scenario = {
        "name": "recorded", "gpus": 2, "replica": 1, "duration": seconds, "policy": "static",
        "workload": {"requests": [[one["at"], one["prompt"], one["output"]] for one in requests]},
        "objectives": {"ttft": 10, "itl": 1}, "start": {"prefill": 0.5, "decode": 0.5}, "peak": {"prefill": 0.5, "decode": 0.5},
        "max_model_len": 4096, "admission": {"max_running": 10000, "max_waiting": 10000, "max_waiting_tokens": 1 << 30},
        "profile": {"step": step, "hop": hop, "noise": 0, "prefill": engine, "decode": engine,
                    # Pages are copied within the machine.
                    "transfer": {"latency": hop, "bandwidth": 2e9, "page_bytes": PAGE_BYTES}},
    }
    (folder / "scenario.yaml").write_text(json.dumps(scenario))
    millrace("sim", folder / "scenario.yaml", "--out", folder / "out", "--json")
    (report,) = (json.loads(file.read_text()) for file in (folder / "out").glob("*.json"))
    assert report["answered"] == len(requests), report
    return report


def medians(requests):
    return {key: quantiles(one[key] for one in requests)[0] for key in ("ttft", "itl")}


def message(folder, step, lone):
    """Seconds from process to process: what short requests' first tokens take beside their step."""
    # A time to first token grows by the same number of messages, whatever one takes.
    without, with_a_millisecond = (simulate(folder, step, hop, lone)["ttft"]["p50"] for hop in (0, 0.001))
    return max(0, (medians(lone)["ttft"] - without) / (with_a_millisecond - without) / 1000)


def shared(folder, step, hop, paired):
    """By how much longer steps take where workers, router and client share the cores: the factors that bring the
    simulation to the median first token, and time between tokens, of requests that come two at a time."""
    real, least, most, decode = medians(paired), 0.5, 3.0, 1.0
    # Longer steps make longer queues, so that the first token's median is anything but a line: halve the interval.
    for _ in range(12):
        prefill = (least + most) / 2
        report = simulate(folder, longer(step, prefill, decode), hop, paired)
        decode *= real["itl"] / report["itl"]["p50"]
        least, most = (least, prefill) if report["ttft"]["p50"] > real["ttft"] else (prefill, most)
    return prefill, decode


def longer(step, prefill, decode):
    scaled = lambda value, factor: [[number, seconds * factor] for number, seconds in value] \
        if isinstance(value, list) else value * factor
    factors = {"prefill": prefill, "decode": decode}
    return {name: scaled(step[name], factor) for role, factor in factors.items() for name in STEP_OF[role]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[2, 4, 6], help="requests a second")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--prompts", default="32-512")
    parser.add_argument("--outputs", default="8-96")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    profile = millrace("bench", "profile", "--for", "sim", "--context", 1024, *ENGINE)
    print(profile)
    step = {name: json.loads(value) for name, value in re.findall(r"^  (\w+): (.+)$", profile, re.M)}
    outside = []
    with Deployment() as deployment:
        load = lambda *more: deployment.load(folder, "--prompt-tokens", args.prompts, "--output-tokens", args.outputs, *more)
        load("--requests", 4, "--concurrency", 1)
        hop = message(folder, step, deployment.load(folder, "--requests", LONE, "--concurrency", 1, "--prompt-tokens", 32))
        factors = shared(folder, step, hop, load("--requests", PAIRED, "--concurrency", 2, "--seed", 2))
        step = longer(step, *factors)
        print(f"a message from process to process takes {1e3 * hop:.2f} ms, by {LONE} requests of 32 tokens one at a time;\n"
              f"steps take {factors[0]:.3f} times as long in a prefill worker beside all others, and {factors[1]:.3f} times in a decode\n"
              f"worker, by {PAIRED} requests two at a time\n")
        print(f"{'':<22}{'measured':>27}{'simulated':>27}{'off by':>24}")
        print(f"{'ms':<22}" + 2 * f"{'p50':>9}{'p90':>9}{'p99':>9}" + f"{'p50':>8}{'p90':>8}{'p99':>8}")
        for rate in args.rates:
            real = load("--requests", args.requests, "--rate", rate)
            report = simulate(folder, step, hop, real)
            print(f"{args.requests} requests, {rate} a second, prompts of {args.prompts} tokens, answers of {args.outputs}:")
            for name, key in [("first token", "ttft"), ("between tokens", "itl"), ("whole request", "whole")]:
                measured = quantiles(one[key] for one in real)
                simulated = [report[key][f"p{percent}"] for percent in PERCENTILES]
                off = [s / m - 1 for m, s in zip(measured, simulated)]
                outside += [f"{name} p{percent} at {rate:g} a second ({100 * part:+.0f}%)"
                            for percent, part in zip(PERCENTILES, off) if abs(part) > BAR]
                print(f"  {name:<20}" + "".join(f"{value:>9.1f}" for value in measured + simulated)
                      + "".join(f"{100 * part:>+7.0f}%" for part in off))
    print(f"\nwithin {100 * BAR:.0f} %: " + ("all" if not outside else "all but " + ", ".join(outside)))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
