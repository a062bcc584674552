"""The operator itself dies, has a rival, and finds its children changed."""
import pytest

import chart as charts
from deployments import NAMESPACE, ModelDeployment, never_less, ready, routable, spec
from kubectl import wait_for

COMPONENT = "app.kubernetes.io/component=operator"


def operators(kubectl):
    """Its pods that are not on their way out."""
    return [pod for pod in kubectl.list("pods", charts.NAMESPACE)
            if pod["metadata"]["labels"].get("app.kubernetes.io/component") == "operator"
            and "deletionTimestamp" not in pod["metadata"]]


def leader(kubectl):
    holders = [lease["spec"].get("holderIdentity") for lease in kubectl.list("leases", charts.NAMESPACE)]
    return next((pod for pod in operators(kubectl) if pod["metadata"]["name"] in holders and ready(pod)), None)


def kill(cluster, pod):
    """As a crash; and its pod goes too, because a container that dies often has to wait longer each time."""
    cluster.kill_pod(pod)
    cluster.kubectl("delete", "pod", pod["metadata"]["name"], "-n", charts.NAMESPACE, "--force", "--grace-period", "0")


def what_it_did(deployment):
    """All that the operator has a hand in."""
    return (
        sorted((p["metadata"]["name"], p["spec"]["replicas"]) for p in deployment.pools()),
        sorted((s["metadata"]["name"], s["spec"]["replicas"]) for s in deployment.statefulsets()),
        sorted(p["metadata"]["name"] for p in deployment.workers() if routable(p)),
    )


def test_killed_at_every_step_of_a_rollout(cluster, tiny, traffic):
    before, kills = tiny.revision(), 0
    # One group more or less at a time, so that there are many steps.
    with traffic(tiny), never_less(tiny, prefill=1, decode=2):
        seen = what_it_did(tiny)
        tiny.patch({"model": {"revision": "step by step"}, "rollout": None})

        def another_step_or_the_end():
            return what_it_did(tiny) != seen or (tiny.settled() and tiny.status()["revision"] != before)

        while True:
            wait_for("another step", another_step_or_the_end)
            if tiny.settled() and tiny.status()["revision"] != before:
                break
            kill(cluster, wait_for("a leader", lambda: leader(cluster.kubectl)))
            kills += 1
            seen = what_it_did(tiny)
    print(f"killed {kills} times")
    assert kills >= 4


def test_the_leader_dies_and_the_other_goes_on(cluster, tiny, traffic):
    kubectl, before = cluster.kubectl, tiny.revision()
    name = kubectl("get", "deployments", "-n", charts.NAMESPACE, "-l", COMPONENT, "-o", "name").strip()
    kubectl("scale", name, "--replicas", "2", "-n", charts.NAMESPACE)
    wait_for("two operators", lambda: sum(map(ready, operators(kubectl))) == 2)
    first = wait_for("a leader", lambda: leader(kubectl))
    with traffic(tiny), never_less(tiny, prefill=1, decode=2):
        tiny.patch({"model": {"revision": "two operators"}})
        wait_for("another revision", lambda: tiny.status()["revision"] != before)
        kill(cluster, first)
        second = wait_for("another leader", lambda: leader(kubectl))
        assert second["metadata"]["uid"] != first["metadata"]["uid"]
        assert tiny.revision() != before
    kubectl("scale", name, "--replicas", "1", "-n", charts.NAMESPACE)
    wait_for("one operator", lambda: len(operators(kubectl)) == 1)
    wait_for("it to lead", lambda: leader(kubectl))


def test_children_changed_by_hand_are_restored(tiny, traffic):
    kubectl = tiny.kubectl
    statefulset = tiny.statefulsets("decode")[0]["metadata"]["name"]
    pool = tiny.pools("decode")[0]["metadata"]["name"]
    budget = kubectl.list("poddisruptionbudgets", NAMESPACE, deployment=tiny.name)[0]["metadata"]["name"]
    policy = kubectl.list("networkpolicies", NAMESPACE, deployment=tiny.name)[0]["metadata"]["name"]
    with traffic(tiny):
        for kind, name, change, field in [
            ("statefulsets", statefulset, {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}},
             lambda o: o["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]),
            ("statefulsets", statefulset, {"metadata": {"labels": {"serving.millrace.dev/role": "cook"}}},
             lambda o: o["metadata"]["labels"]),
            ("deployments", f"{tiny.name}-router", {"spec": {"replicas": 3}}, lambda o: o["spec"]["replicas"]),
            ("services", tiny.name, {"spec": {"selector": {"more": "than-asked"}}}, lambda o: o["spec"]["selector"]),
            ("services", pool, {"spec": {"publishNotReadyAddresses": False}}, lambda o: o["spec"].get("publishNotReadyAddresses")),
        ]:
            was = field(kubectl.get(kind, name, NAMESPACE))
            kubectl.patch(kind, name, change, NAMESPACE)
            wait_for(f"{kind} {name} to be as it was", lambda: field(kubectl.get(kind, name, NAMESPACE)) == was)
        for kind, name in [("services", pool), ("poddisruptionbudgets", budget), ("networkpolicies", policy)]:
            was = kubectl.get(kind, name, NAMESPACE)["metadata"]["uid"]
            kubectl("delete", kind, name, "-n", NAMESPACE)
            wait_for(f"{kind} {name} to be back", lambda: (kubectl.get(kind, name, NAMESPACE) or {"metadata": {"uid": was}})["metadata"]["uid"] != was)
        tiny.wait()


@pytest.mark.parametrize("when", ["rolling", "starting"])
def test_deleted_midway(cluster, operator, when):
    doomed = ModelDeployment(cluster, f"doomed-{when}", spec(decode=1))
    if when == "rolling":
        before = doomed.revision()
        doomed.patch({"model": {"revision": "never there"}})
        wait_for("another revision", lambda: doomed.status()["revision"] != before and doomed.workers(doomed.status()["revision"]))
    else:
        wait_for("a worker", doomed.workers)
    doomed.delete()
    doomed.wait_gone()
