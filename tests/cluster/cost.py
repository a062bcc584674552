"""What reconciling costs: many ModelDeployments on a control plane without nodes, and one operator.

    tests/cluster/cost.py [COUNT]     (default 500)

The operator runs as a process under the rights of the chart's service account. It has converged once the
StatefulSets, Deployments and Services of all ModelDeployments exist; their pods stay pending. Printed are
that time, its requests (from the API server's audit log) for each reconcile (from its own metrics), and its
processor time and memory, while it works and over 30 idle seconds. Needs helm, kubectl and the release
binary (MILLRACE_BIN).
"""
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx

import chart as charts
import rbac
from cluster import Cluster
from deployment import BINARY, parse
from deployments import NAMESPACE, spec
from kubectl import PATHS, wait_for
from operators import Operator

IDLE = 30
NO_WRITES = {"get", "list", "watch", "lease"}


class Measured(Operator):
    def __init__(self, cluster, folder):
        super().__init__(cluster.kubectl, folder, charts.NAMESPACE)
        self.cluster = cluster

    def cpu(self):
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self):
        """MiB resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024

    def reconciles(self):
        samples = parse(httpx.get(f"http://{self.http}/metrics").text)
        return sum(value for name, _, value in samples if name == "millrace_operator_reconciles_total")

    def requests(self):
        """Verb -> how many so far; a watch once, when it begins. Its Lease, renewed every two seconds, counts as `lease`."""
        return Counter("lease" if event["objectRef"]["resource"] == "leases" else event["verb"]
                       for event in rbac.requests(self.cluster.audit_log(), charts.NAMESPACE, self.account)
                       if not (event["verb"] == "watch" and event["stage"] != "ResponseStarted"))

    def now(self):
        return time.monotonic(), self.cpu(), self.reconciles(), self.requests()


def count(kubectl, kind):
    """How many there are, without having them all sent."""
    page = kubectl.http.get(f"{PATHS[kind]}/namespaces/{NAMESPACE}/{kind}", params={"limit": 1}).json()
    return len(page["items"]) + page["metadata"].get("remainingItemCount", 0)


def settled(operator):
    """Once it writes nothing for ten seconds."""
    writes = lambda: sum(n for verb, n in operator.requests().items() if verb not in NO_WRITES)
    before = None
    while before != (before := writes()):
        time.sleep(10)


def row(what, value):
    print(f"{what:52} {value}", flush=True)


def between(what, before, after):
    seconds, cpu, reconciles = (b - a for a, b in zip(before[:3], after[:3]))
    requests = after[3] - before[3]
    row(f"{what}: processor", f"{100 * cpu / seconds:.1f} % of one core ({cpu:.1f} s in {seconds:.0f} s)")
    row(f"{what}: reconciles", f"{reconciles:.0f} ({reconciles / seconds:.1f}/s)")
    row(f"{what}: requests", f"{requests.total()} ({requests.total() / seconds:.1f}/s): "
        + (", ".join(f"{verb} {n}" for verb, n in requests.most_common()) or "none"))
    if reconciles:
        row(f"{what}: requests a reconcile", f"{requests.total() / reconciles:.2f}")


def main(many):
    folder = Path(tempfile.mkdtemp(prefix="millrace-cost-"))
    with Cluster(nodes=0) as cluster:
        cluster.ours("a control plane alone")
        kubectl = cluster.kubectl
        for namespace in (NAMESPACE, charts.NAMESPACE):
            kubectl("create", "namespace", namespace)
        # Its own pods stay pending too: what counts here are its definitions and rights.
        kubectl("install", charts.RELEASE, str(charts.CHART), "-n", charts.NAMESPACE, program="helm")
        with Measured(cluster, folder) as operator:
            wait_for(f"the operator (its log: {operator.log})", lambda: operator.reconciles() >= 0)
            kubectl.apply(deployment("first"))
            wait_for("the first", lambda: count(kubectl, "statefulsets") == 2)
            settled(operator)
            each = {kind: count(kubectl, kind) for kind in ("statefulsets", "deployments", "services")}

            before = operator.now()
            kubectl.apply(*(deployment(f"m{n:03}") for n in range(many)))
            created = time.monotonic()
            wait_for("all children", lambda: all(
                count(kubectl, kind) >= n * (many + 1) for kind, n in each.items()), patience=1800)
            after = operator.now()
            print(f"{many} ModelDeployments, children of each: {json.dumps(each)}")
            print(f"machine: {os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}; {commit()}")
            row("time to create the ModelDeployments", f"{created - before[0]:.1f} s")
            row("time until all children exist, from the first", f"{after[0] - before[0]:.1f} s")
            between("converging", before, after)
            settled(operator)
            end = operator.now()
            between("until it has said all in the statuses", before, end)
            row("requests a ModelDeployment, in all", f"{(end[3] - before[3]).total() / many:.1f}")

            before = operator.now()
            time.sleep(IDLE)
            between("idle", before, operator.now())
            row("memory", f"{operator.memory():.0f} MiB resident")


def deployment(name):
    return {"apiVersion": "serving.millrace.dev/v1alpha1", "kind": "ModelDeployment",
            "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec(decode=1)}


def commit():
    return subprocess.run([BINARY, "--version"], stdout=subprocess.PIPE, text=True).stdout.strip().replace("\n", ", ")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
