"""Time to first token of a split deployment against an aggregated one: `bench/run split-ttft`.

Both run at once and are asked in turn, so that whatever else the machine does hits both; an idle deployment costs
nothing. Every prompt is new (no prefix cache helps), given as token ids, and workers have the same threads in both.
"""

import argparse
import http.client
import json
import os
import random
import re
import signal
import statistics
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BINARY = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/millrace"


class Deployment:
    """`millrace up` on free ports."""

    def __init__(self, *flags):
        command = [BINARY, "up", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in self.process.stdout:
            if found := re.search(r"HTTP +http://([\d.]+):(\d+)", line):
                self.connection = http.client.HTTPConnection(found[1], int(found[2]))
            if "Ctrl-C" in line:
                return
        raise SystemExit("millrace up did not start")

    def first_token(self, ids):
        """Seconds from sending the request to its first streamed token."""
        body = json.dumps({"prompt": ids, "max_tokens": 1, "temperature": 0, "stream": True, "ignore_eos": True})
        start = time.perf_counter()
        self.connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = self.connection.getresponse()
        assert response.status == 200, response.read()
        response.readline()
        seconds = time.perf_counter() - start
        response.read()
        return seconds

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    subprocess.run(["cargo", "build", "--release", "-q", "--bin", "millrace"], cwd=ROOT, check=True)
    rng = random.Random(1)
    print(f"tiny-r1, {os.cpu_count()} cores; prompt of {args.prompt} tokens, {args.pairs} pairs, one request at a time")
    for threads in args.threads:
        deployments = [Deployment("--threads", str(threads)), Deployment("--threads", str(threads), "--aggregated")]
        times = ([], [])
        try:
            for pair in range(args.pairs + 2):
                for index in random.Random(pair).sample((0, 1), 2):
                    ids = [rng.randrange(10, 2000) for _ in range(args.prompt)]
                    seconds = deployments[index].first_token(ids)
                    if pair >= 2:  # The first two warm up.
                        times[index].append(1000 * seconds)
        finally:
            for deployment in deployments:
                deployment.stop()
        split, aggregated = map(statistics.median, times)
        print(f"  {threads} thread(s) a worker: split {split:6.1f} ms   aggregated {aggregated:6.1f} ms   "
              f"ratio of medians {split / aggregated:.3f}   of the best {min(times[0]) / min(times[1]):.3f}")


if __name__ == "__main__":
    main()
