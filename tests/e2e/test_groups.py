"""Decode ranks that share the experts: the tokens of a lone worker, before, while and after experts move.

GROUP_CHANGES placement changes under load (default 50).
"""
import json
import os
import random
import subprocess
import threading
import time

import pytest

from deployment import BINARY, PATIENCE, Deployment, environment, idle, wait_for
from groups import epoch, group, rank_pids, whole
from load import TOKENS, assert_same, run

CHANGES = int(os.environ.get("GROUP_CHANGES", "50"))
# Often, and for any gain at all: experts move as much as they can.
RESTLESS = ("--balance-interval-seconds", "0.3", "--balance-min-gain", "0")


@pytest.fixture(scope="module")
def reference():
    """The tokens of one decode worker that holds every expert."""
    with Deployment() as lone:
        tokens = run(lone, "lone")
    assert all(len(stream) == TOKENS for stream in tokens)
    return tokens


@pytest.mark.parametrize("flags", [
    ("--decode-ranks", "2"),
    ("--decode-ranks", "4", "--redundant-experts", "4"),
    # Nothing is drafted, pages move over TCP, and the group prefills by itself.
    ("--decode-ranks", "3", "--redundant-experts", "1", "--no-mtp", "--aggregated", "--transfer", "tcp"),
    ("--decode-ranks", "2", "--decode", "2", "--redundant-experts", "2"),
    ("--prefill-ranks", "2", "--local-prefill-tokens", "0"),
    ("--prefill-ranks", "2", "--decode-ranks", "2", "--redundant-experts", "2", "--local-prefill-tokens", "0"),
], ids=lambda flags: " ".join(flags))
def test_a_group_gives_the_tokens_of_a_lone_worker(reference, flags):
    with Deployment(*flags) as deployment:
        assert_same(run(deployment, "group"), reference, " ".join(flags))
        for process in deployment.metrics_urls:
            if "." in process:  # a rank
                assert deployment.total("millrace_group_steps_total", process, result="complete") > 0, f"{process} took part"
        wait_for(lambda: idle(deployment), "all pages to come back")


class Drift(threading.Thread):
    """Long prompts of one token each, another every time: what is hot changes all the time."""

    def __init__(self, deployment):
        super().__init__()
        self.deployment, self.over, self.failed = deployment, threading.Event(), None

    def run(self):
        rng = random.Random(5)
        while not self.over.is_set():
            prompt = [rng.randrange(10, 2000)] * 700
            answer = self.deployment.client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1})
            if answer.status_code != 200:
                self.failed = answer.text
            self.over.wait(0.5)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.over.set()
        self.join()
        assert error[0] is not None or self.failed is None, self.failed


def test_experts_move_under_load_and_no_token_changes(reference):
    # Aggregated: what the long prompts choose counts in the group.
    with Deployment("--decode-ranks", "2", "--redundant-experts", "8", "--aggregated", *RESTLESS) as deployment, Drift(deployment):
        wait_for(whole(deployment.http), "the group")
        first, loads = epoch(deployment.http), 0
        last, since = first, time.monotonic()
        while (changes := (now := epoch(deployment.http)) - first) < CHANGES:
            if now != last:
                last, since = now, time.monotonic()
            # By the clock: a fast device goes through many loads between two looks of the balancer.
            assert time.monotonic() - since < PATIENCE, f"only {changes} changes in {loads} loads"
            loads += 1
            assert_same(run(deployment, f"load {loads}"), reference, f"load {loads}, {changes} changes before it")
        found = group(deployment.http)
        assert found["epoch"]["reset"] <= first, "nobody was lost on the way"
        print(f"{changes} placement changes under {loads} loads: every token as without a group")

def test_the_terminal_shows_the_placement(reference):
    # Looked at often, and never moved: what is shown does not change while it is compared.
    with Deployment("--decode-ranks", "2", "--redundant-experts", "4",
                    "--balance-interval-seconds", "1", "--balance-min-gain", "1") as deployment:
        assert_same(run(deployment, "shown"), reference, "shown")
        # Counts are of what came between two looks; a fast device is done before the first.
        wait_for(lambda: run(deployment, "shown") and group(deployment.http)["load"], "counts")
        command = [BINARY, "experts", "--http", deployment.http]
        shown = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True).stdout
        for part in ("this router decides", "decode-0: whole", "4 MoE layers of 32 experts and 4 replicas, on 2 ranks of 18 slots",
                     "balancedness over ranks", "Rows computed, a row a layer, a column a rank", "Choices of gates"):
            assert part in shown, shown
        assert "\x1b" not in shown, "no colours where there is no terminal"
        found = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment(), check=True).stdout)
        [shape] = [group["shape"] for group in found["groups"]]
        assert (shape["experts"], shape["ranks"], shape["slots"]) == (32, 2, 18)
        assert set(rank_pids(deployment.process.pid)) == {0, 1}


def test_a_plain_deployment_has_no_groups():
    with Deployment() as deployment:
        command = [BINARY, "experts", "--http", deployment.http]
        shown = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True).stdout
        assert "No group of ranks is attached" in shown


def test_nobody_to_ask_is_one_clear_line():
    done = subprocess.run([BINARY, "experts", "--http", "127.0.0.1:1"], capture_output=True, text=True, env=environment())
    assert done.returncode == 1
    assert done.stderr.startswith("error: no Millrace answers at 127.0.0.1:1; start one"), done.stderr


@pytest.mark.parametrize("flags, words", [
    (("--redundant-experts", "4"), "--decode-ranks"),
    (("--decode-ranks", "2", "--redundant-experts", "33"), "no more than that"),
    (("--decode-ranks", "2", "--model", "golden/qwen2"), "no routed experts"),
])
def test_flags_that_do_not_go_together_are_one_clear_line(flags, words):
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run([BINARY, "up", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", *flags],
                          capture_output=True, text=True, env=environment(), cwd=tests)
    assert done.returncode == 1, done
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ") and words in line, line


def test_a_rank_that_its_group_does_not_have_is_refused():
    done = subprocess.run([BINARY, "decode", "--group", "g", "--rank", "2", "--ranks", "2"],
                          capture_output=True, text=True, env=environment())
    assert done.returncode == 1 and "has ranks 0 to 1" in done.stderr, done.stderr
    done = subprocess.run([BINARY, "decode", "--rank", "2"], capture_output=True, text=True, env=environment())
    assert done.returncode == 2 and "--group" in done.stderr, done.stderr
