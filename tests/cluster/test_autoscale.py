"""PoolAutoscalers: load grows and shrinks, and the workers with it; none, and back by a request.

How fast the machine is decides what a good objective is, so that is measured first.
"""
import time
from contextlib import contextmanager

import httpx
import yaml

from deployments import NAMESPACE, SMALL, spec, worker
from kubectl import condition, wait_for
from traffic import first_answer

# What a worker does is bounded, so that several do more than one also on a small machine: two sequences at once, and a
# part of a processor. Without prefill workers there is one pool.
POOLS = spec(prefill=0) | {"decode": worker(engine={"threads": 1, "kvPages": 400, "maxRunning": 2},
                                            resources=SMALL | {"limits": {"cpu": "300m"}})}
# Three times the window over which latencies are measured.
SLOWLY = 900


def profile(step_seconds):
    return {
        "prefill": {"chunkTokens": 512, "baseSeconds": step_seconds, "secondsPerToken": step_seconds / 16,
                    "secondsPerTokenContext": 0},
        "decode": {"baseSeconds": step_seconds, "secondsPerSequence": 0, "secondsPerContextToken": 0},
        "maxRunning": 2, "kvTokens": 400 * 64,
    }


class PoolAutoscaler:
    """Its profile is in a ConfigMap of the same name."""

    def __init__(self, deployment, **fields):
        self.kubectl, self.name = deployment.kubectl, deployment.name
        self.measured(0.005)
        self.kubectl.apply({
            "apiVersion": "serving.millrace.dev/v1alpha1", "kind": "PoolAutoscaler",
            "metadata": {"name": self.name, "namespace": NAMESPACE},
            "spec": {
                "target": {"name": deployment.name}, "objectives": {"ttftMilliseconds": 3_600_000, "itlMilliseconds": 3_600_000},
                "decode": {"maxReplicas": 3}, "profile": {"configMap": {"name": self.name}},
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}}, **fields}})

    def measured(self, step_seconds):
        text = yaml.safe_dump({"profile": profile(step_seconds)})
        self.kubectl.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": self.name, "namespace": NAMESPACE},
                            "data": {"profile.yaml": text}})

    def get(self):
        return self.kubectl.get("poolautoscalers", self.name, NAMESPACE) or {}

    def patch(self, change):
        self.kubectl.patch("pas", self.name, {"spec": change}, NAMESPACE)

    def status(self):
        """Of the latest spec."""
        found = self.get()
        status = found.get("status") or {}
        return status if status.get("observedGeneration") == found["metadata"]["generation"] else {}

    def holds(self, kind, status="True"):
        return self.status() and condition(self.get(), kind).get("status") == status

    def delete(self):
        for kind in ("pas", "configmap"):
            self.kubectl("delete", kind, self.name, "-n", NAMESPACE, "--ignore-not-found")


@contextmanager
def scaled(deployment, **fields):
    autoscaler = PoolAutoscaler(deployment, **fields)
    try:
        yield autoscaler
    finally:
        print(autoscaler.get().get("status"))
        autoscaler.delete()


def groups(deployment):
    return deployment.pools("decode")[0]["spec"]["replicas"]


def capacity(deployment, traffic):
    """Questions a second that one worker answers with both of its turns taken."""
    with traffic(deployment, streams=3) as load:
        before, began = load.answered, time.monotonic()
        wait_for("sixty answers", lambda: load.answered >= before + 60, SLOWLY)
        return (load.answered - before) / (time.monotonic() - began)


def test_load_brings_workers_and_takes_them_away(make, traffic):
    deployment = make("by-load", POOLS)
    deployment.wait()
    most = capacity(deployment, traffic)
    print(f"a worker answers {most:.2f} questions a second")
    # Half of that one worker can do. Of twice as much, and a little, more and more would wait.
    with traffic(deployment, rate=0.5 * most) as load, scaled(deployment) as autoscaler:
        measured = wait_for("numbers", lambda: all("measuredMilliseconds" in autoscaler.status().get(latency, {})
                                                   for latency in ("ttft", "itl")) and autoscaler.status(), SLOWLY)
        ttft, itl = (max(1, measured[latency]["measuredMilliseconds"]) for latency in ("ttft", "itl"))
        autoscaler.measured(itl / 1000)
        autoscaler.patch({"objectives": {"ttftMilliseconds": 2 * ttft + 200, "itlMilliseconds": 20 * itl + 100}})
        load.more()
        assert groups(deployment) == 1, "so much one worker can do"
        with traffic(deployment, rate=0.55 * most) as doubled:
            wait_for("more workers", lambda: groups(deployment) > 1, SLOWLY)
            wait_for("them to serve", lambda: len(deployment.pods("decode")) > 1 and deployment.settled(), SLOWLY)
            back = wait_for("TTFT to be back under its objective", lambda: (seen := autoscaler.status().get("ttft"))
                            and seen.get("measuredMilliseconds", 1 << 31) <= seen["objectiveMilliseconds"] and seen, SLOWLY)
            print(f"with {groups(deployment)} groups: {back['summary']}")
            doubled.more()
        wait_for("fewer workers", lambda: groups(deployment) == 1, 2 * SLOWLY)
        wait_for("the others to have drained", lambda: len(deployment.pods("decode")) == 1, SLOWLY)
        load.more()
    deployment.wait()
    assert groups(deployment) == 1, "without a PoolAutoscaler groups stay as they are"


def test_a_request_wakes_what_went_to_nothing(make, reference):
    deployment = make("to-nothing", POOLS)
    deployment.wait()
    with scaled(deployment, scaleToZero={"idleSeconds": 60}):
        wait_for("no workers", lambda: groups(deployment) == 0 and not deployment.pods("decode"), SLOWLY)

        def answer():
            try:
                return first_answer(deployment.base())
            except (httpx.TransportError, KeyError, ValueError):  # it is on its way: 503 and the like
                return None

        assert wait_for("an answer", answer, SLOWLY).strip() == reference[0][1].strip()
        assert groups(deployment) >= 1


def test_it_says_why_it_does_nothing(cluster, tiny, make):
    with scaled(tiny, prefill={"maxReplicas": 2}) as first:
        wait_for("it to be told", lambda: first.holds("Active", "False"))
        assert condition(first.get(), "Active")["reason"] == "ReplicasDeclared"
    deployment = make("two-of-them", POOLS)
    deployment.wait()
    with scaled(deployment) as older:
        wait_for("it to act", lambda: older.holds("Active"))
        time.sleep(1)  # the API server's times are whole seconds
        cluster.kubectl.apply({"apiVersion": "serving.millrace.dev/v1alpha1", "kind": "PoolAutoscaler",
                               "metadata": {"name": "another", "namespace": NAMESPACE}, "spec": older.get()["spec"]})
        another = lambda: cluster.kubectl.get("poolautoscalers", "another", NAMESPACE)
        wait_for("the younger to stand back", lambda: condition(another(), "Active").get("reason") == "OlderActs")
        older.delete()
        wait_for("the younger to act", lambda: condition(another(), "Active").get("status") == "True")
        cluster.kubectl("delete", "pas", "another", "-n", NAMESPACE)
