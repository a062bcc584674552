"""SIGKILL of workers under load, over and over: no client sees an error or a wrong token, nothing leaks.

FAULT_ROUNDS kills of each role (default 10: twenty in all). A kill counts if it cut an answer off. On a fast device answers
are complete before their clients have read much of them: once a kill cut nothing, streams ask anew until the next one, for
long answers if it is to hit decode, and for short ones if prefill.
"""
import os
import random
import signal

import pytest

from deployment import Deployment, idle, wait_for
from load import STREAMS, TOKENS, assert_same, failed, run, run_and_disturb

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "10"))
# Tokens of an answer on a fast device.
FAST_TOKENS = {"prefill": 4, "decode": 8 * TOKENS}
# Kills until one of them cuts something.
TRIES = 10


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
        deployment.fast = False
        yield deployment


def wanted(deployment, tokens):
    """At least so many tokens a stream of what it answers undisturbed."""
    if len(deployment.reference[0]) < tokens:
        longer = run(deployment, "longer", tokens)
        assert [stream[:TOKENS] for stream in longer] == deployment.reference
        deployment.reference = longer
    return deployment.reference


def kill_under_load(deployment, role, name, rng):
    """Gives how many requests it cut off, which went on elsewhere, and what was done."""
    tokens = FAST_TOKENS[role] if deployment.fast else TOKENS
    reference = wanted(deployment, tokens)
    # Prefill matters early in the load, decode throughout. On a fast device prefill is over at once, and begins anew with
    # every answer; of long answers as little has been read when they are complete as of short ones.
    most = {"prefill": 8 * STREAMS * tokens if deployment.fast else STREAMS, "decode": STREAMS * TOKENS * 3 // 4}
    when = rng.randrange(1, most[role])
    victim = rng.choice(deployment.pids()[role])
    load = run_and_disturb(deployment.http, name, when, lambda: os.kill(victim, signal.SIGKILL), tokens, again=deployment.fast)
    what = f"killed {role} after {when} tokens"
    assert_same(load, reference, f"{name}: {what}")
    wait_for(workers_up(deployment), "the killed worker to be back")
    wait_for(lambda: idle(deployment), "all pages to come back")
    return len(load.open_then & failed(deployment)), f"{what}: {sum(load.asked)} of {sum(load.asked)} answers right"


def test_the_same_load_twice_gives_the_same_tokens(deployment):
    assert_same(run(deployment, "again"), deployment.reference, "again")


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_killing_a_worker_is_not_seen_by_clients(deployment, role):
    rng = random.Random(role)
    cuts = []
    for round_ in range((ROUNDS + 1) // 2):  # half of them on each deployment
        for attempt in range(TRIES):
            cut, what = kill_under_load(deployment, role, f"{role} {round_} {attempt}", rng)
            print(f"{what}, {cut} of them begun on the killed worker")
            cuts.append(cut)
            if cut:
                break
            deployment.fast = True
        assert cut, f"none of {TRIES} kills cut anything off"
    print(f"{len(cuts)} kills of {role}, {sum(1 for cut in cuts if cut)} of which cut {sum(cuts)} answers off")
