"""What a user sees after `helm install` and `kubectl apply` of the sample."""
import json

import yaml

import chart as charts
from deployments import NAMESPACE, ModelDeployment
from kubectl import PATIENCE, wait_for
from traffic import first_answer

SAMPLE = charts.CHART / "samples/tiny-r1.yaml"


def test_the_sample_answers(cluster, operator, reference):
    kubectl = cluster.kubectl
    sample = yaml.safe_load(SAMPLE.read_text())
    kubectl("apply", "-n", NAMESPACE, "-f", str(SAMPLE))
    deployment = ModelDeployment(cluster, sample["metadata"]["name"], sample["spec"])
    kubectl("wait", "mdep", deployment.name, "-n", NAMESPACE, "--for", "condition=Available", f"--timeout={PATIENCE}s")
    deployment.wait()
    assert first_answer(deployment.base(), deployment.status()["model"]) == reference[0][1]
    deployment.delete()
    deployment.wait_gone()


def test_kubectl_tells(tiny):
    kubectl, status = tiny.kubectl, tiny.wait()
    header, row = (line.split() for line in kubectl("get", "mdep", tiny.name, "-n", NAMESPACE).splitlines())
    told = dict(zip(header, row))
    assert told["MODEL"] == "tiny-r1" and told["REVISION"] == status["revision"]
    assert (told["PREFILL"], told["DECODE"], told["PHASE"]) == ("1/1", "2/2", "Available")
    described = kubectl("describe", "mdep", tiny.name, "-n", NAMESPACE)
    assert "Available" in described and "Observed Generation" in described
    assert len(kubectl("get", "millrace", "-n", NAMESPACE, "-o", "name").split()) == 1 + len(tiny.pools())
    assert kubectl("get", "events.events.k8s.io", "-n", NAMESPACE, "--field-selector", "regarding.kind=ModelDeployment", "-o", "name")


def test_nonsense_is_refused_by_the_api_server(tiny):
    for change, says in [
        ({"decode": {"replicas": -1}}, "spec.decode.replicas"),
        ({"decode": {"redundantExperts": 3}}, "redundantExperts needs ranks"),
        ({"model": {"source": {"hostPath": {"path": "/m"}}}}, "exactly one of"),
        ({"rollout": {"maxSurge": "a few"}}, "maxSurge is a number or a percentage"),
        ({"decode": {"replica": 1}}, 'unknown field "spec.decode.replica"'),
    ]:
        said = tiny.kubectl("patch", "mdep", tiny.name, "-n", NAMESPACE, "--type", "merge", "-p",
                            json.dumps({"spec": change}), check=False)
        assert says in said, said


def test_what_only_the_operator_can_judge_is_said_in_the_status(tiny):
    """A group's epochs need a store that all routers share."""
    before = tiny.revision()
    tiny.patch({"etcd": {"endpoints": ["nowhere"]}})
    wait_for("the status to name the field", lambda: tiny.status()["phase"] == "Invalid"
             and any("etcd.endpoints" in c["message"] for c in tiny.status()["conditions"]))
    tiny.patch({"etcd": None})
    assert tiny.wait()["revision"] == before


def test_objects_beside_the_pods(tiny):
    kubectl = tiny.kubectl
    gateway = {"parents": [{"name": "front"}], "hostnames": ["a.test"], "grpcHostnames": ["grpc.a.test"]}
    tiny.patch({"monitoring": {"podMonitor": True}, "router": {"gateway": gateway}})
    for kind in ("networkpolicies", "poddisruptionbudgets", "podmonitors", "httproutes", "grpcroutes"):
        wait_for(kind, lambda: kubectl.list(kind, NAMESPACE, deployment=tiny.name))
    tiny.patch({"monitoring": None, "router": {"gateway": None}, "networkPolicy": False})
    for kind in ("podmonitors", "httproutes", "grpcroutes", "networkpolicies"):
        wait_for(f"no {kind}", lambda: not kubectl.list(kind, NAMESPACE, deployment=tiny.name))
    tiny.patch({"networkPolicy": None})
    wait_for("networkpolicies", lambda: kubectl.list("networkpolicies", NAMESPACE, deployment=tiny.name))
    tiny.wait()


def test_pods_have_no_privileges(tiny):
    """The namespace is held to the restricted standard, so they would not be here otherwise; and nothing more."""
    for pod in tiny.pods():
        spec = pod["spec"]
        container = spec["containers"][0]["securityContext"]
        assert spec["securityContext"]["runAsNonRoot"] and container["readOnlyRootFilesystem"]
        assert not spec.get("automountServiceAccountToken", True), "nothing in these pods asks the API server"
