"""What a group of decode ranks costs and gains: `bench/run experts`.

Ratios of runs on the same machine in turn, so that whatever else it does hits all of them. Ranks are processes; a
machine with fewer cores than ranks shows what lockstep costs when ranks wait for a core, not what more cores give.
"""

import argparse
import http.client
import json
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/e2e"))
from deployment import BINARY, Deployment, wait_for  # noqa: E402
from groups import epoch, whole  # noqa: E402
from test_group_balance import DOMAINS, measure  # noqa: E402

RESTLESS = ("--balance-interval-seconds", "0.5", "--balance-min-gain", "0")


def percentiles(values):
    values = sorted(values)
    at = lambda part: values[min(len(values) - 1, int(part * len(values)))]
    return at(0.5), at(0.9), at(0.99), values[-1]


class Stream(threading.Thread):
    """One stream of tokens without drafts, so that a gap is a step. Sampled, so that it does not go in circles."""

    def __init__(self, deployment, seed, tokens):
        super().__init__()
        self.deployment, self.seed, self.tokens, self.times = deployment, seed, tokens, []

    def run(self):
        host, port = self.deployment.http.split(":")
        connection = http.client.HTTPConnection(host, int(port))
        rng = random.Random(self.seed)
        body = {"prompt": [rng.randrange(10, 2000) for _ in range(40)], "max_tokens": self.tokens, "ignore_eos": True,
                "stream": True, "temperature": 0.8, "seed": self.seed}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        while line := response.readline():
            if line.startswith(b"data: {"):
                self.times.append(time.monotonic())


def steps(deployment, streams, tokens):
    """Gaps between tokens, as (end, seconds), and when the epoch was seen to change."""
    running = [Stream(deployment, seed, tokens) for seed in range(streams)]
    changes, last = [], epoch(deployment.http)
    for stream in running:
        stream.start()
    while any(stream.is_alive() for stream in running):
        # Looked at often enough to say which steps were near a change, seldom enough not to be a load.
        time.sleep(0.05)
        if (now := epoch(deployment.http)) != last:
            changes.append(time.monotonic())
            last = now
    for stream in running:
        stream.join()
    begin = max(stream.times[0] for stream in running)  # prompts are computed before
    end = min(stream.times[-1] for stream in running)
    gaps = [(b, b - a) for stream in running for a, b in zip(stream.times, stream.times[1:]) if begin < a and b < end]
    return gaps, [change for change in changes if begin < change < end]


def swaps(args):
    print(f"step time across swaps: tiny-r1, 2 ranks, 8 replicas, {args.streams} streams without drafts, "
          f"{args.turns} turns of {args.tokens} tokens each")
    flags = ("--decode-ranks", "2", "--redundant-experts", "8", "--aggregated", "--no-mtp")
    gaps, changes = {"experts stay": [], "experts move": []}, []
    with Deployment(*flags, "--balance-interval-seconds", "0") as still, Deployment(*flags, *RESTLESS) as restless:
        both = {"experts stay": still, "experts move": restless}
        for deployment in both.values():
            wait_for(whole(deployment.http), "the group")
            steps(deployment, args.streams, 50)  # warms up
        # In turn: an idle group sleeps, and whatever else the machine does hits both.
        for _ in range(args.turns):
            for name, deployment in both.items():
                of_turn, seen = steps(deployment, args.streams, args.tokens)
                gaps[name] += of_turn
                changes += seen
    median = statistics.median(seconds for _, seconds in gaps["experts stay"])

    def line(name, some):
        p50, p90, p99, most = (value / median for value in percentiles([seconds for _, seconds in some]))
        print(f"  {name}: {len(some)} gaps between tokens, p50 {p50:.2f}x, p90 {p90:.2f}x, p99 {p99:.2f}x, max {most:.2f}x")

    print(f"  {len(changes)} swaps; times are parts of the median where experts stay, {1e3 * median:.2f} ms")
    # A change is seen up to 50 ms after it was committed, and adopted a moment after that.
    near = lambda end, seconds: any(end - seconds - 0.1 < change < end + 0.1 for change in changes)
    moving = gaps["experts move"]
    line("experts stay (what is noise)", gaps["experts stay"])
    for name, wanted in (("experts move, within 0.1 s of a swap", True), ("experts move, all others", False)):
        some = [gap for gap in moving if near(*gap) == wanted]
        if some:
            line(name, some)


def throughput(args):
    print(f"throughput by ranks: tiny-r1, {os.cpu_count()} cores, 16 streams of 128 tokens after 64, aggregated; "
          "threads a rank: cores / ranks, at least 1")
    groups = {1: (), 2: ("--decode-ranks", "2"), 4: ("--decode-ranks", "4")}
    rates = {ranks: [] for ranks in groups}
    for turn in range(args.turns):
        for ranks, flags in groups.items():
            with Deployment("--aggregated", *flags) as deployment:
                if ranks > 1:
                    wait_for(whole(deployment.http), "the group")
                command = [BINARY, "bench", "--grpc", deployment.grpc, "--requests", "48", "--concurrency", "16",
                           "--prompt-tokens", "64", "--output-tokens", "128", "--seed", str(turn)]
                out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                rates[ranks].append(float(re.search(r"output +([\d.]+)", out)[1]))
    lone = statistics.median(rates[1])
    for ranks, values in rates.items():
        rate = statistics.median(values)
        print(f"  {ranks} rank(s): {rate:7.1f} tokens/s, {rate / lone:.3f} of one rank's")


def balance():
    print("balancedness over ranks (mean over highest, all layers) under traffic of one domain of tiny-r1")
    for ranks in (2, 4):
        for domain in DOMAINS:
            without, _ = measure(ranks, 0, domain, "--balance-min-gain", "1")
            placed, _ = measure(ranks, 0, domain)
            replicas, _ = measure(ranks, ranks, domain)
            print(f"  {ranks} ranks, {domain:5}: {without:.3f} as dealt, {placed:.3f} placed, {replicas:.3f} placed with {ranks} replicas")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--turns", type=int, default=4)
    args = parser.parse_args()
    swaps(args)
    throughput(args)
    balance()


if __name__ == "__main__":
    main()
