"""Ranks of a group and its etcd die, hang and come back under load: no wrong token, no client error.

Twice FAULT_ROUNDS kills of ranks (default 20 in all).
"""
import os
import random
import signal
import statistics
import time

import pytest

from deployment import Deployment, idle, wait_for
from etcd import Etcd
from groups import epoch, group, rank_pids, whole
from load import STREAMS, TOKENS, assert_same, failed, run, run_and_disturb

ROUNDS = 2 * int(os.environ.get("FAULT_ROUNDS", "10"))
RANKS = 2
FLAGS = ("--decode-ranks", str(RANKS), "--redundant-experts", "32", "--balance-interval-seconds", "1")


@pytest.fixture(scope="module")
def reference():
    with Deployment() as lone:
        return run(lone, "lone")


@pytest.fixture(scope="module")
def etcd(tmp_path_factory):
    with Etcd(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture(scope="module")
def deployment(etcd):
    # Replicas of all experts: what a dead rank leaves can go on at once.
    with Deployment(*FLAGS, "--etcd", etcd.client) as deployment:
        wait_for(whole(deployment.http), "the group")
        yield deployment


def went_on_elsewhere(deployment, load):
    """The streams that a worker failed."""
    requests = failed(deployment)
    return {n for n in range(STREAMS) if load.request_id(n) in requests}


def percentile(values, percent):
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def settled(deployment):
    wait_for(whole(deployment.http), "the rank to be a member again")
    wait_for(lambda: idle(deployment), "all pages to come back")


def test_killing_a_rank_is_not_seen_by_clients(deployment, etcd, reference):
    rng = random.Random("ranks")
    stayed, alone, replayed = [], [], []
    for round_ in range(ROUNDS):
        when = rng.randrange(STREAMS, STREAMS * TOKENS * 3 // 4)
        rank = rng.randrange(RANKS)
        pids = rank_pids(deployment.process.pid)
        # Every third time etcd goes with it, and every third time it goes first and stays away meanwhile.
        with_etcd = round_ % 3

        def disturb():
            if with_etcd == 2:
                etcd.kill()
            os.kill(pids[rank], signal.SIGKILL)
            if with_etcd:
                if with_etcd == 2:
                    time.sleep(0.5)
                    etcd.start()
                else:
                    etcd.restart()

        load = run_and_disturb(deployment.http, f"kill {round_}", when, disturb)
        assert_same(load, reference, f"round {round_}: killed rank {rank} after {when} tokens")
        settled(deployment)
        elsewhere, gaps = went_on_elsewhere(deployment, load), load.gaps()
        stay = max((gap for n, gap in enumerate(gaps) if n not in elsewhere), default=0.0)
        replay = max((gap for n, gap in enumerate(gaps) if n in elsewhere), default=0.0)
        (stayed if with_etcd else alone).append(stay)
        replayed.append(replay)
        etcd_too = ("", ", etcd restarted", ", etcd away before and for 0.5 s after")[with_etcd]
        print(f"round {round_}: rank {rank} killed after {when} tokens{etcd_too}: longest pause {stay:.2f} s on the other ranks, "
              f"{replay:.2f} s of {len(elsewhere)} replayed streams; epoch {epoch(deployment.http)}")
    for name, pauses in (("other ranks' streams", alone), ("other ranks' streams, etcd killed too", stayed), ("replayed streams", replayed)):
        if pauses:
            print(f"pause per kill, {name}: p50 {statistics.median(pauses):.2f} s, p99 {percentile(pauses, 99):.2f} s, max {max(pauses):.2f} s")


@pytest.mark.parametrize("seconds", [0.3, 4.0])
def test_a_rank_that_hangs_and_goes_on(deployment, reference, seconds):
    """Slow for a moment, or silent for long enough to be given up: its old life must do no harm when it wakes."""
    for rank in range(RANKS):
        pid = rank_pids(deployment.process.pid)[rank]

        def disturb():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)

        before = epoch(deployment.http)
        load = run_and_disturb(deployment.http, f"stop {seconds} {rank}", 10 * STREAMS, disturb)
        assert_same(load, reference, f"rank {rank} stopped for {seconds} s")
        settled(deployment)
        assert rank_pids(deployment.process.pid)[rank] == pid, "it is the same process, and a member again"
        print(f"rank {rank} stopped for {seconds} s: longest pause {max(load.gaps()):.2f} s, {epoch(deployment.http) - before} epochs")


@pytest.mark.parametrize("how", ["compact", "expire_leases", "restart"])
def test_etcd_forgets_and_groups_serve_on(deployment, etcd, reference, how):
    load = run_and_disturb(deployment.http, how, 10 * STREAMS, getattr(etcd, how))
    assert_same(load, reference, how)
    # Epochs are still decided: a lost rank is left out and comes back.
    before = epoch(deployment.http)
    os.kill(rank_pids(deployment.process.pid)[0], signal.SIGKILL)
    # Left out and taken in again, or at once in its new life if that came first.
    wait_for(lambda: epoch(deployment.http) > before, "an epoch after the one whose rank died")
    settled(deployment)
    assert_same(run(deployment, f"after {how}"), reference, f"after {how}")


def test_serving_goes_on_while_etcd_is_away(deployment, etcd, reference):
    before = epoch(deployment.http)
    etcd.kill()
    try:
        assert_same(run(deployment, "without etcd"), reference, "without etcd")
        assert epoch(deployment.http) == before, "changes wait"
    finally:
        etcd.start()
    settled(deployment)


@pytest.mark.parametrize("redundant", ["0", "2"])
def test_experts_that_died_with_their_only_rank_are_read_again(reference, redundant):
    """Without replicas the others must load what is lost before they can go on."""
    with Deployment("--decode-ranks", "2", "--redundant-experts", redundant) as deployment:
        wait_for(whole(deployment.http), "the group")
        for rank in range(2):
            pids = rank_pids(deployment.process.pid)
            load = run_and_disturb(deployment.http, f"lost {rank}", 10 * STREAMS, lambda: os.kill(pids[rank], signal.SIGKILL))
            assert_same(load, reference, f"rank {rank} killed, {redundant} replicas")
            settled(deployment)
            print(f"rank {rank} of 2 killed, {redundant} replicas: longest pause {max(load.gaps()):.2f} s")


def test_a_killed_prefill_rank_is_not_seen_by_clients(reference):
    with Deployment("--prefill-ranks", "2", "--redundant-experts", "32", "--local-prefill-tokens", "0") as deployment:
        wait_for(whole(deployment.http, "prefill-0"), "the group")
        for rank in range(2):
            pids = rank_pids(deployment.process.pid, "prefill-0")
            load = run_and_disturb(deployment.http, f"prefill {rank}", 1, lambda: os.kill(pids[rank], signal.SIGKILL))
            assert_same(load, reference, f"prefill rank {rank} killed")
            wait_for(whole(deployment.http, "prefill-0"), "the rank to be a member again")
            wait_for(lambda: idle(deployment), "all pages to come back")


def test_a_killed_router_finds_the_group_as_it_is(reference):
    """Its memory was the only store: the ranks know the epoch, and it goes on from there."""
    with Deployment("--decode-ranks", "2", "--redundant-experts", "8", "--balance-interval-seconds", "1", "--balance-min-gain", "0") as deployment:
        wait_for(whole(deployment.http), "the group")
        assert_same(run(deployment, "before"), reference, "before")
        before, ranks = epoch(deployment.http), rank_pids(deployment.process.pid)
        [router] = deployment.pids()["router"]
        os.kill(router, signal.SIGKILL)
        wait_for(lambda: deployment.pids().get("router", [router]) != [router], "a new router")
        wait_for(whole(deployment.http), "the group at the new router")
        assert epoch(deployment.http) >= before
        assert rank_pids(deployment.process.pid) == ranks, "no rank had to be started again"
        assert_same(run(deployment, "after"), reference, "after")
        os.kill(ranks[1], signal.SIGKILL)
        wait_for(lambda: epoch(deployment.http) > before, "epochs decided by the new router")
        settled(deployment)
        assert group(deployment.http)["state"] == "whole"
