"""Ranks that share the experts: scheduled together, and with one node less."""
import pytest

import chart as charts
from deployments import NAMESPACE, ModelDeployment, SMALL, ready, spec, worker
from kubectl import condition, wait_for

EXPERTS = 32  # of tiny-r1: with as many replicas again, either of two ranks has them all


def group_spec():
    apart = {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {"serving.millrace.dev/deployment": "group", "serving.millrace.dev/role": "decode"}}}}]}}
    return spec(prefill=0) | {
        "router": {"replicas": 1, "resources": SMALL},
        "decode": worker(replicas=1, ranks=2, redundantExperts=EXPERTS, pod={"affinity": apart})}


def whole(deployment):
    """Its one group, once every rank is a member."""
    groups = list((deployment.settled() or {}).get("groups", {}).values())
    return groups and groups[0]["state"] == "Healthy" and groups[0]["readyRanks"] == groups[0]["ranks"] and groups[0]


@pytest.fixture(scope="module")
def group(cluster, operator):
    with_router_on_first = group_spec()
    if cluster.own:
        # What the test has no second of should not be what dies: a router, the chart's etcd.
        with_router_on_first["router"]["pod"] = {"nodeSelector": {"kubernetes.io/hostname": "n1"}}
        cluster.kubectl("cordon", "n2")
        for pod in cluster.kubectl.list("pods", charts.NAMESPACE):
            if pod["metadata"]["labels"].get("app.kubernetes.io/component") == "etcd" and pod["spec"]["nodeName"] == "n2":
                cluster.kubectl("delete", "pod", pod["metadata"]["name"], "-n", charts.NAMESPACE)
        wait_for("the chart's pods", lambda: all(map(ready, cluster.kubectl.list("pods", charts.NAMESPACE))))
        cluster.kubectl("uncordon", "n2")
    deployment = ModelDeployment(cluster, "group", with_router_on_first)
    wait_for("the group", lambda: whole(deployment))
    yield deployment
    deployment.delete()
    deployment.wait_gone()


def test_ranks_are_a_gang_and_the_status_has_their_epoch(group, traffic):
    kubectl, pods = group.kubectl, group.pods("decode")
    with traffic(group):
        assert whole(group)["epoch"] >= 1
    assert {pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"] for pod in pods} == {"0", "1"}
    gangs = kubectl.list("podgroups", NAMESPACE, deployment=group.name)
    if not gangs:
        pytest.skip("this cluster does not serve scheduling.k8s.io/v1beta1")
    name = group.statefulsets("decode")[0]["metadata"]["name"]
    assert [gang["metadata"]["name"] for gang in gangs] == [name]
    assert gangs[0]["spec"]["schedulingPolicy"]["gang"]["minCount"] == 2
    assert all(pod["spec"]["schedulingGroup"]["podGroupName"] == name for pod in pods)


def test_a_group_more_and_a_group_less(group, traffic):
    gangs = lambda: len(group.kubectl.list("podgroups", NAMESPACE, deployment=group.name))
    one = gangs()
    with traffic(group) as load:
        group.patch({"decode": {"replicas": 2}})
        wait_for("two groups", lambda: group.settled() and len(group.pods("decode")) == 4)
        load.more()
        group.patch({"decode": {"replicas": 1}})
        wait_for("one group", lambda: len(group.pods("decode")) == 2 and gangs() == one and whole(group))


def test_a_gang_that_does_not_fit_takes_no_room(cluster, make):
    """Three ranks with all GPUs of a node each, and two nodes."""
    cluster.ours("a node with pretended GPUs")
    gpus = {"resources": {"requests": SMALL["requests"], "limits": {"nvidia.com/gpu": 8}}}
    large = make("large", spec(prefill=0) | {"decode": worker(replicas=1, ranks=3, **gpus)})
    wait_for("three pods that found no room", lambda: len(large.pods("decode")) == 3 and all(
        condition(pod, "PodScheduled").get("status") == "False" for pod in large.pods("decode")))
    assert not any(pod["spec"].get("nodeName") for pod in large.pods("decode"))
    wait_for("the status to say so", lambda: "schedul" in large.told().lower())


def test_a_node_is_lost_with_its_rank(cluster, group, traffic):
    cluster.ours("losing a node")
    kubectl = group.kubectl
    assert {pod["spec"]["nodeName"] for pod in group.pods("decode")} == {"n1", "n2"}
    lost = next(pod for pod in group.pods("decode") if pod["spec"]["nodeName"] == "n2")
    kept = next(pod for pod in group.pods("decode") if pod["spec"]["nodeName"] == "n1")
    try:
        with traffic(group) as load:
            cluster.kube("kill-node", "n2")
            wait_for("it to be called Degraded", lambda: group.status()["phase"] == "Degraded")
            assert [g["state"] for g in group.status()["groups"].values()] == ["Degraded"]
            load.more()
            wait_for("the group", lambda: whole(group))
        pods = {pod["metadata"]["name"]: pod for pod in group.pods("decode")}
        back = pods[lost["metadata"]["name"]]
        assert back["metadata"]["uid"] != lost["metadata"]["uid"] and back["spec"]["nodeName"] == "n1"
        assert pods[kept["metadata"]["name"]]["metadata"]["uid"] == kept["metadata"]["uid"], "the other rank went on"
    finally:
        cluster.kube("start-node", "n2")
        wait_for("both nodes", lambda: all(condition(node, "Ready")["status"] == "True" for node in kubectl.list("nodes")))
