"""Two ranks of three cannot reach each other, while the router and the third reach both.

The deployment and its client run in a network namespace of their own, whose packet filter drops what goes to or from the
port on which rank 1 takes links: only rank 0 connects there, as of two ranks the lower one dials.
"""
import time

import pytest

import partition
from deployment import Deployment, wait_for
from groups import epoch, group, whole
from load import STREAMS, assert_same, run, run_and_disturb

CUT_SECONDS = 4


def cut_and_heal():
    partition.ready()
    with Deployment() as lone:
        reference = run(lone, "lone")
    with Deployment("--decode-ranks", "3", "--redundant-experts", "32") as deployment:
        wait_for(whole(deployment.http), "the group")
        assert_same(run(deployment, "before"), reference, "before the cut")
        first = epoch(deployment.http)
        ports = {rank["rank"]: rank["exchange"].rsplit(":", 1)[1] for rank in group(deployment.http)["ranks"]}
        two = lambda: len(group(deployment.http)["epoch"]["members"]) == 2

        def disturb():
            for direction in ("dport", "sport"):
                partition.drop(f"tcp {direction} {ports[1]}")
            wait_for(two, "the group to go on without one of them")
            left = {0, 1} - {member["rank"] for member in group(deployment.http)["epoch"]["members"]}
            assert len(left) == 1, "one of the two that cannot reach each other is left out"
            # It stays out for as long as that lasts: letting it in again would stop the group again.
            time.sleep(CUT_SECONDS)
            assert two() and epoch(deployment.http) == first + 1
            partition.heal()

        load = run_and_disturb(deployment.http, "cut", 10 * STREAMS, disturb)
        assert_same(load, reference, "ranks 0 and 1 cut off from each other")
        wait_for(whole(deployment.http), "both to be members again")
        assert_same(run(deployment, "after"), reference, "after the cut")
        print(f"links cut between two ranks of three for {CUT_SECONDS} s: longest pause {max(load.gaps()):.2f} s, "
              f"{epoch(deployment.http) - first} epochs")


@pytest.mark.skipif(bool(partition.impossible()), reason=f"no network namespace: {partition.impossible()}")
def test_two_ranks_that_cannot_reach_each_other():
    partition.in_namespace(__file__)


if __name__ == "__main__":
    cut_and_heal()
