"""ModelDeployments as tests make and watch them."""
import threading
import time
from contextlib import contextmanager

from kubectl import condition, wait_for
from traffic import MODEL

NAMESPACE = "models"
# Two nodes share what may be two cores: little is asked for, so that a scheduler never is in the way.
SMALL = {"requests": {"cpu": "50m", "memory": "96Mi"}}


def worker(**fields):
    return {"engine": {"threads": 1, "kvPages": 400}, "resources": SMALL, **fields}


def spec(prefill=1, decode=2, routers=1, **fields):
    """Pools by their number of groups: None leaves it to whoever scales; with 0 prefill there is no such pool."""
    count = lambda n: {} if n is None else {"replicas": n}
    return {
        "model": {"source": {"builtin": MODEL}, "servedNames": [MODEL]},
        "router": {"replicas": routers, "resources": SMALL},
        **({"prefill": worker(**count(prefill))} if prefill != 0 else {}),
        "decode": worker(**count(decode)),
        "drain": {"deadlineSeconds": 30},
        **fields,
    }


class ModelDeployment:
    def __init__(self, cluster, name, spec):
        self.cluster, self.kubectl, self.name = cluster, cluster.kubectl, name
        if not cluster.own:  # addresses of Services are the cluster's own; a node's port may be reached
            spec = spec | {"router": spec["router"] | {"service": {"type": "NodePort"}}}
        self.kubectl.apply({
            "apiVersion": "serving.millrace.dev/v1alpha1", "kind": "ModelDeployment",
            "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec})

    # ---- what is there ------------------------------------------------------------------------

    def get(self):
        return self.kubectl.get("modeldeployments", self.name, NAMESPACE)

    def status(self):
        return (self.get() or {}).get("status") or {}

    def told(self):
        """What all of its conditions say."""
        return "\n".join(c["message"] for c in self.status().get("conditions", []))

    def pools(self, role=None, revision=None):
        return self.kubectl.list("workerpools", NAMESPACE, deployment=self.name, role=role, revision=revision)

    def pods(self, role=None, revision=None):
        return self.kubectl.list("pods", NAMESPACE, deployment=self.name, role=role, revision=revision)

    def workers(self, revision=None):
        return [pod for pod in self.pods(revision=revision)
                if pod["metadata"]["labels"]["serving.millrace.dev/role"] != "router"]

    def statefulsets(self, role=None):
        return self.kubectl.list("statefulsets", NAMESPACE, deployment=self.name, role=role)

    def base(self):
        """Where this host reaches the router's Service."""
        service = self.kubectl.get("services", self.name, NAMESPACE)["spec"]
        http = next(port for port in service["ports"] if port["name"] == "http")
        if self.cluster.own:
            return f"http://{service['clusterIP']}:{http['port']}"
        node = self.kubectl.list("nodes")[0]["status"]["addresses"]
        address = next(a["address"] for a in node if a["type"] == "InternalIP")
        return f"http://{address}:{http['nodePort']}"

    # ---- what changes it ----------------------------------------------------------------------

    def patch(self, change):
        """A merge patch of the spec."""
        self.kubectl.patch("mdep", self.name, {"spec": change}, NAMESPACE)

    def delete(self):
        self.kubectl("delete", "mdep", self.name, "-n", NAMESPACE, "--wait=false")

    # ---- waiting ------------------------------------------------------------------------------

    def settled(self):
        """The status, if it is of the latest spec and everything asked for is there; nothing else is."""
        found = self.get() or {}
        status = found.get("status") or {}
        if status.get("observedGeneration") != found["metadata"]["generation"] or status.get("phase") != "Available":
            return None
        pods = self.pods()
        old = [p for p in self.workers() if p["metadata"]["labels"]["serving.millrace.dev/revision"] != status["revision"]]
        return status if not old and pods and all(ready(pod) for pod in pods) else None

    def wait(self, what="to be available"):
        return wait_for(f"{self.name} {what}", self.settled)

    def revision(self):
        return self.wait()["revision"]

    def wait_gone(self):
        """Until nothing that belongs to it is left."""
        kinds = ("workerpools", "statefulsets", "deployments", "services", "pods", "poddisruptionbudgets",
                 "networkpolicies", "podgroups", "endpointslices")
        left = lambda: [o["metadata"]["name"] for kind in kinds
                        for o in self.kubectl.list(kind, NAMESPACE, deployment=self.name)]
        wait_for(f"nothing to be left of {self.name}", lambda: self.get() is None and not left())


def ready(pod):
    return condition(pod, "Ready").get("status") == "True" and "deletionTimestamp" not in pod["metadata"]


def routable(pod):
    return condition(pod, "serving.millrace.dev/routable").get("status") == "True"


def uids(pods):
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods}


@contextmanager
def never_less(deployment, prefill, decode):
    """While the block runs, the status never says that fewer groups serve."""
    over, seen = threading.Event(), []

    def look():
        while not over.is_set():
            try:
                status = deployment.status()
                seen.append((status["prefill"]["ready"], status["decode"]["ready"]))
            except Exception:  # the API server may be away, and that is not what this is about
                pass
            time.sleep(0.2)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    fewest = [min(counts) for counts in zip(*seen)]
    assert fewest[0] >= prefill and fewest[1] >= decode, f"prefill and decode groups ready at times: {sorted(set(seen))}"
