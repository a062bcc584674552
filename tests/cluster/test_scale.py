"""More and fewer groups, asked for in the ModelDeployment or at its WorkerPools."""
import json

import pytest

from deployments import NAMESPACE, ModelDeployment, ready, spec
from kubectl import wait_for


@pytest.fixture(scope="module")
def scaled(cluster, operator):
    deployment = ModelDeployment(cluster, "scaled", spec(prefill=0, decode=None))
    deployment.wait()
    yield deployment
    deployment.delete()
    deployment.wait_gone()


def decode_ready(deployment, count):
    return wait_for(f"{count} decode groups", lambda: deployment.settled()
                    and deployment.status()["decode"]["summary"] == f"{count}/{count}" and len(deployment.pods("decode")) == count)


def pool(deployment):
    return deployment.pools("decode")[0]


def test_the_deployment_scales(tiny, traffic):
    with traffic(tiny) as load:
        tiny.patch({"decode": {"replicas": 3}, "prefill": {"replicas": 2}})
        decode_ready(tiny, 3)
        assert len(tiny.pods("prefill")) == 2
        load.more()
        tiny.patch({"decode": {"replicas": 2}, "prefill": {"replicas": 1}})
        decode_ready(tiny, 2)


def test_kubectl_scale_and_the_scale_subresource(scaled, traffic):
    kubectl, name = scaled.kubectl, pool(scaled)["metadata"]["name"]
    assert pool(scaled)["spec"]["replicas"] == 1
    with traffic(scaled) as load:
        kubectl("scale", "wp", name, "--replicas", "3", "-n", NAMESPACE)
        decode_ready(scaled, 3)
        scale = json.loads(kubectl("get", "wp", name, "--subresource", "scale", "-o", "json", "-n", NAMESPACE))
        assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (3, 3)
        chosen = kubectl("get", "pods", "-l", scale["status"]["selector"], "-o", "name", "-n", NAMESPACE).split()
        assert len(chosen) == 3, "the selector finds the pods"
        load.more()
        kubectl.patch("wp", name, {"spec": {"replicas": 1}}, NAMESPACE, subresource="scale")
        decode_ready(scaled, 1)


def test_a_rollout_keeps_what_was_scaled(scaled, traffic):
    before = scaled.revision()
    with traffic(scaled):
        scaled.kubectl("scale", "wp", pool(scaled)["metadata"]["name"], "--replicas", "2", "-n", NAMESPACE)
        decode_ready(scaled, 2)
        scaled.patch({"model": {"revision": "next"}})
        wait_for("the next revision", lambda: scaled.status()["revision"] != before and scaled.settled())
        decode_ready(scaled, 2)
    assert pool(scaled)["spec"]["replicas"] == 2


def test_a_scaled_pool_is_put_back_where_the_deployment_says_how_many(tiny):
    name = tiny.pools("decode")[0]["metadata"]["name"]
    tiny.kubectl("scale", "wp", name, "--replicas", "1", "-n", NAMESPACE)
    wait_for("the pool to be put back", lambda: tiny.kubectl.get("workerpools", name, NAMESPACE)["spec"]["replicas"] == 2)
    tiny.wait()


def test_to_nothing_and_back(scaled):
    name = pool(scaled)["metadata"]["name"]
    scaled.kubectl("scale", "wp", name, "--replicas", "0", "-n", NAMESPACE)
    wait_for("no decode workers", lambda: not scaled.pods("decode"))
    assert scaled.status()["phase"] != "Available"
    scaled.kubectl("scale", "wp", name, "--replicas", "1", "-n", NAMESPACE)
    decode_ready(scaled, 1)
    assert all(ready(pod) for pod in scaled.pods())
