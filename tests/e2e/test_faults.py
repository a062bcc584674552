"""SIGKILL of workers under load, over and over: no client sees an error or a wrong token, nothing leaks.

FAULT_ROUNDS kills of each role (default 10: twenty in all).
"""
import os
import random
import signal

import pytest

from deployment import Deployment, idle, wait_for
from load import STREAMS, TOKENS, assert_same, hidden, run, run_and_disturb

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "10"))


def workers_up(deployment):
    return lambda: all(deployment.total("millrace_router_workers", "router", role=role) == len(pids)
                       for role, pids in deployment.pids().items() if role != "router")


@pytest.fixture(scope="module", params=["1+1", "2+2"])
def deployment(request):
    prefill, decode = request.param.split("+")
    # Small enough a pool that leaked pages would be missed soon.
    flags = ["--prefill", prefill, "--decode", decode, "--kv-pages", "400", "--local-prefill-tokens", "0"]
    with Deployment(*flags, "--max-model-len", "2048") as deployment:
        deployment.reference = run(deployment, "reference")
        assert all(len(tokens) == TOKENS for tokens in deployment.reference)
        yield deployment


def test_the_same_load_twice_gives_the_same_tokens(deployment):
    assert run(deployment, "again") == deployment.reference


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_killing_a_worker_is_not_seen_by_clients(deployment, role):
    rng = random.Random(role)
    for round_ in range((ROUNDS + 1) // 2):  # half of them on each deployment
        # Prefill matters early in the load, decode throughout.
        when = rng.randrange(1, STREAMS) if role == "prefill" else rng.randrange(1, STREAMS * TOKENS * 3 // 4)
        before = hidden(deployment)
        kill = lambda: os.kill(rng.choice(deployment.pids()[role]), signal.SIGKILL)
        load = run_and_disturb(deployment.http, f"{role} {round_}", when, kill)
        assert_same(load, deployment.reference, f"round {round_}: killed {role} after {when} tokens")
        wait_for(workers_up(deployment), "the killed worker to be back")
        wait_for(lambda: idle(deployment), "all pages to come back")
        went_on = hidden(deployment) - before
        assert went_on > 0, "the kill came early enough to hit something"
        print(f"killed {role} after {when} tokens: 16 of 16 streams right, {went_on:.0f} sequences went on elsewhere")
