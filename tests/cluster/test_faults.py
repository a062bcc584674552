"""What breaks under load: processes of each role, a drained node, the API server."""
import pytest

from deployments import never_less, ready
from kubectl import wait_for


def restarts(deployment, name):
    pod = next(p for p in deployment.pods() if p["metadata"]["name"] == name)
    return ready(pod) and pod["status"]["containerStatuses"][0]["restartCount"]


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_killed_worker(cluster, tiny, traffic, role):
    pod = tiny.pods(role)[0]
    with traffic(tiny) as load:
        cluster.kill_pod(pod)
        load.more()
        wait_for("it to be back", lambda: restarts(tiny, pod["metadata"]["name"]))
        tiny.wait()


def test_a_killed_router(cluster, tiny, traffic):
    """Its clients have to ask again; the other router answers."""
    pod = tiny.pods("router")[0]
    with traffic(tiny, resend=True) as load:
        cluster.kill_pod(pod)
        load.more()
        wait_for("it to be back", lambda: restarts(tiny, pod["metadata"]["name"]))
        tiny.wait()


def test_a_router_that_leaves_as_it_should(tiny, traffic):
    with traffic(tiny):
        tiny.patch({"router": {"replicas": 1}})
        wait_for("one router", lambda: tiny.settled() and len(tiny.pods("router")) == 1)
        tiny.patch({"router": {"replicas": 2}})
        wait_for("two routers", lambda: tiny.settled() and len(tiny.pods("router")) == 2)


def test_a_drained_node(tiny, traffic):
    node = tiny.pods("decode")[0]["spec"]["nodeName"]
    try:
        with traffic(tiny):
            tiny.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout", "180s")
            tiny.wait()
            assert all(pod["spec"]["nodeName"] != node for pod in tiny.pods())
    finally:
        tiny.kubectl("uncordon", node)


def test_the_api_server_restarts(cluster, tiny, traffic):
    before = tiny.revision()
    with traffic(tiny) as load, never_less(tiny, prefill=1, decode=2):
        tiny.patch({"model": {"revision": "while it restarts"}})
        wait_for("another revision", lambda: tiny.status()["revision"] != before)
        cluster.restart_api_server()
        load.more()
        assert tiny.revision() != before
