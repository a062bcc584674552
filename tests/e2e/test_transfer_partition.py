"""The network between prefill and decode worker is cut while pages are on their way, again and again.

The deployment and its client run in a network namespace of their own, whose packet filter for a while lets through only what
goes to or from the router, the decode worker's service and metrics: no call and no page gets from one worker to the
other. Short cuts are for the protocols below to mend; long ones end calls, connections and leases.

FAULT_ROUNDS cuts (default 10), pages by TRANSFER (`tests/run nixl`: NIXL, over sockets here).
"""
import asyncio
import os
import random
import re
import sys
import time
from collections import Counter

import pytest

import partition
from deployment import TRANSFER, Deployment, idle, wait_for
from load import STREAMS, Load, assert_same, hidden, requests, run

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "10"))
# Peers that say nothing are given up after ten seconds.
SECONDS = (2, 14)
# Longer than anything takes, unless it hangs.
PATIENCE = 180


def open_ports(deployment):
    """What clients, this test and the router need."""
    log = "".join(deployment.log)
    found = {address.rsplit(":", 1)[1] for address in (deployment.http, deployment.grpc)}
    found |= {re.search(r":(\d+)/", url)[1] for url in deployment.metrics_urls.values()}
    found.add(re.search(r" workers=\S+:(\d+)", log)[1])
    found.add(re.search(r"role=decode}: .*listening grpc=\S+:(\d+)", log)[1])
    return ", ".join(sorted(found))


async def cut_in(load, when, seconds, ports):
    """Runs the load and cuts once there are `when` tokens. Gives each stream's error, or None."""
    async def cut():
        await load.until(when)
        partition.drop(f"tcp dport != {{ {ports} }} tcp sport != {{ {ports} }}")
        await asyncio.sleep(seconds)
        partition.heal()

    async with load.client, asyncio.timeout(PATIENCE):
        streams = [load.one(n, request) for n, request in enumerate(requests())]
        *ended, _ = await asyncio.gather(*streams, cut(), return_exceptions=True)
        return ended


def cuts():
    partition.ready()
    rng = random.Random(7)
    flags = ["--kv-pages", "400", "--local-prefill-tokens", "0", "--max-model-len", "2048", "--transfer", TRANSFER,
             "--log", "info"]
    # On one machine NIXL would use its memory.
    with Deployment(*flags, env={"UCX_TLS": "tcp,self"}) as deployment:
        reference = run(deployment, "reference")
        ports = open_ports(deployment)
        slowest, all_ends = 0, Counter()
        for round_ in range(ROUNDS):
            seconds, when = SECONDS[round_ % 2], rng.randrange(1, STREAMS)
            load, ends, before = Load(deployment.http, f"cut {round_}"), Counter(), hidden(deployment)
            for n, error in enumerate(asyncio.run(cut_in(load, when, seconds, ports))):
                got = load.received[n]
                # What came before an error is right, too.
                assert got == reference[n] if error is None else got == reference[n][:len(got)], (round_, n, error)
                ends["right" if error is None else "ended by an error"] += 1
            healed = time.monotonic()
            wait_for(lambda: idle(deployment), "all pages and leases to come back")
            assert_same(run(deployment, f"after {round_}"), reference, f"after cut {round_}")
            recovered = time.monotonic() - healed
            slowest, all_ends = max(slowest, recovered), all_ends + ends
            print(f"cut of {seconds:2} s after {when:2} tokens: {dict(ends)}, {hidden(deployment) - before:.0f} calls begun again "
                  f"meanwhile; all pages back and all right again after {recovered:.1f} s")
        dropped = deployment.total("millrace_leases_total", state="dropped")
        moved = {name: deployment.total("millrace_transfer_bytes_total", transport=name) for name in ("nixl", "tcp", "shm")}
        assert moved[TRANSFER] > 0 and sum(moved.values()) == moved[TRANSFER], moved
        assert dropped == 0
        print(f"{ROUNDS} cuts, pages by {TRANSFER}: {dict(all_ends)}; no wrong token, no page or lease lost; right again after "
              f"{slowest:.1f} s at most")


@pytest.mark.skipif(TRANSFER not in ("nixl", "tcp"), reason="pages do not go over a network")
@pytest.mark.skipif(bool(partition.impossible()), reason=f"no network namespace: {partition.impossible()}")
def test_cuts_between_prefill_and_decode():
    partition.in_namespace(__file__)


if __name__ == "__main__":
    sys.exit(cuts())
