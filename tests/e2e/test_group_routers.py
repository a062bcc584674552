"""Two routers share a group and an etcd: one decides, and the other takes over when it dies."""
import signal
import subprocess
import threading

import pytest

from deployment import BINARY, PATIENCE, Deployment, environment, wait_for
from etcd import Etcd, free_port
from groups import epoch, experts, group, whole
from load import STREAMS, assert_same, run, run_and_disturb


class Process:
    """One role, started as a pod would; killed at the end of the block."""

    def __init__(self, *args):
        self.args = [BINARY, *args]
        self.log = []
        self.process = None
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.args, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE, text=True, env=environment())
        threading.Thread(target=self.log.extend, args=[self.process.stderr], daemon=True).start()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.kill()
        if error[0] is not None:
            print(*self.args[1:2], "".join(self.log[-100:]), sep="\n")


class Router(Process):
    def __init__(self, etcd):
        self.http, self.workers = (f"127.0.0.1:{free_port()}" for _ in range(2))
        super().__init__("router", "--http", self.http, "--grpc", "127.0.0.1:0", "--workers", self.workers,
                         "--etcd", etcd.client, "--balance-interval-seconds", "1", "--balance-min-gain", "0")

    def leads(self):
        return experts(self.http)["store"]["leading"]


class Rank(Process):
    def __init__(self, rank, routers):
        super().__init__("decode", "--group", "shared", "--rank", str(rank), "--ranks", "2", "--redundant-experts", "8",
                         "--threads", "1", "--router", ",".join(router.workers for router in routers))


@pytest.fixture(scope="module")
def reference():
    with Deployment() as lone:
        return run(lone, "lone")


def both_whole(routers):
    return lambda: all(whole(router.http, "shared")() for router in routers)


def same_epoch(routers):
    return len({epoch(router.http, "shared") for router in routers}) == 1


class At:
    """What `run` needs of a deployment."""

    def __init__(self, router):
        self.http = router.http


def test_a_router_takes_over_from_one_that_was_killed(tmp_path, reference):
    with Etcd(tmp_path) as etcd, Router(etcd) as one, Router(etcd) as two, Rank(0, [one, two]), Rank(1, [one, two]) as second:
        routers = [one, two]
        wait_for(both_whole(routers), "the group at both routers")
        wait_for(lambda: one.leads() or two.leads(), "a leader")
        for router in routers:
            assert_same(run(At(router), f"at {routers.index(router)}"), reference, "both routers serve")
        assert not (one.leads() and two.leads()), "one decides"
        leader, other = (one, two) if one.leads() else (two, one)

        # Its clients are gone with it; those of the other notice nothing.
        load = run_and_disturb(other.http, "leader killed", 10 * STREAMS, leader.kill)
        assert_same(load, reference, "the leading router was killed")
        wait_for(other.leads, "the other router to take over")
        before = epoch(other.http, "shared")

        second.kill()
        wait_for(lambda: group(other.http, "shared")["state"] != "whole", "word of the lost rank")
        second.start()
        wait_for(whole(other.http, "shared"), "the rank to be a member again")
        # Left out and taken in again, or at once in its new life if that came first.
        assert epoch(other.http, "shared") > before

        # The first comes back as one that follows.
        leader.start()
        wait_for(both_whole(routers), "the group at both routers")
        wait_for(lambda: same_epoch(routers), "one epoch at both")
        for router in routers:
            assert_same(run(At(router), f"again at {routers.index(router)}"), reference, "both serve again")
        wait_for(lambda: same_epoch(routers), "one epoch at both")


def test_a_leader_that_hung_decides_nothing_any_more(tmp_path, reference):
    """It wakes and believes that it leads; compare-and-swap says otherwise."""
    with Etcd(tmp_path) as etcd, Router(etcd) as one, Router(etcd) as two, Rank(0, [one, two]), Rank(1, [one, two]):
        routers = [one, two]
        wait_for(both_whole(routers), "the group at both routers")
        wait_for(lambda: one.leads() or two.leads(), "a leader")
        leader, other = (one, two) if one.leads() else (two, one)

        def disturb():
            leader.process.send_signal(signal.SIGSTOP)
            wait_for(other.leads, "the other router to take over")
            leader.process.send_signal(signal.SIGCONT)

        load = run_and_disturb(other.http, "leader hung", 10 * STREAMS, disturb)
        assert_same(load, reference, "the leading router hung")
        wait_for(lambda: one.leads() != two.leads(), "exactly one leader")
        wait_for(both_whole(routers), "the group at both routers")
        for router in routers:
            assert_same(run(At(router), f"later at {routers.index(router)}"), reference, "both serve")
