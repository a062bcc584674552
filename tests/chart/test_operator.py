"""The operator as a process, under the rights that the chart gives it: what it says of a PoolAutoscaler's profile in a
ConfigMap, that it sees a change of that, and what a collector is told of its work.

There are no nodes, so no workers: what a PoolAutoscaler wants of them is test_autoscale's to see.
"""
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from conftest import CHART
from kubectl import condition, wait_for
from operators import Operator
from test_release import DEFINITIONS

sys.path.append(str(Path(__file__).resolve().parents[1] / "traces"))
from collector import Collector  # noqa: E402

PROFILE = """\
profile:
  prefill: {chunkTokens: 512, baseSeconds: 1.2e-3, secondsPerToken: 8.1e-5, secondsPerTokenContext: 0}
  decode: {baseSeconds: 4.0e-3, secondsPerSequence: 6.0e-4, secondsPerContextToken: 4.0e-7}
  maxRunning: 32
  kvTokens: 65536
"""


@pytest.fixture(scope="module")
def collector(tmp_path_factory):
    with Collector(tmp_path_factory.mktemp("collector")) as collector:
        yield collector


@pytest.fixture
def operator(control_plane, namespace, collector, tmp_path):
    """With a ModelDeployment `tiny`, and a PoolAutoscaler whose profile is in a ConfigMap `tiny`."""
    kubectl = control_plane
    kubectl("install", "millrace", str(CHART), "-n", namespace, program="helm")
    of = {"apiVersion": "serving.millrace.dev/v1alpha1", "metadata": {"name": "tiny", "namespace": namespace}}
    kubectl.apply(
        of | {"kind": "ModelDeployment", "spec": {"model": {"source": {"builtin": "tiny-r1"}}, "decode": {}}},
        of | {"kind": "PoolAutoscaler", "spec": {
            "target": {"name": "tiny"}, "objectives": {"ttftMilliseconds": 500}, "decode": {"maxReplicas": 4},
            "profile": {"configMap": {"name": "tiny"}}}})
    traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.endpoint}", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with Operator(kubectl, tmp_path, namespace, **traces) as operator:
        yield operator
        print(operator.log.read_text()[-4000:])
        kubectl("delete", "mdep,pas", "tiny", "-n", namespace)  # which waits for the operator to have let go
    kubectl("uninstall", "millrace", "-n", namespace, program="helm")
    kubectl("delete", "crd", *DEFINITIONS, "--ignore-not-found")


@pytest.fixture
def becomes(control_plane, namespace, operator):
    """Waits for the PoolAutoscaler's condition `Active` to have a status and a reason; gives the message."""
    def active():
        found = condition(control_plane.get("poolautoscalers", "tiny", namespace), "Active")
        return found.get("status"), found.get("reason"), found.get("message")

    def becomes(*wanted):
        return wait_for(f"Active to be {wanted}", lambda: (seen := active())[:2] == wanted and seen)[2]

    return becomes


def test_a_profile_is_taken_from_a_config_map(control_plane, namespace, becomes, tmp_path):
    def put(text):
        (tmp_path / "profile.yaml").write_text(text)
        made = control_plane("create", "configmap", "tiny", "-n", namespace, f"--from-file={tmp_path}/profile.yaml",
                             "--dry-run=client", "-o", "yaml")
        control_plane("apply", "-f", "-", stdin=made)

    assert "kubectl create configmap tiny --from-file=profile.yaml=FILE" in becomes("False", "ProfileMissing")
    put(PROFILE)
    becomes("True", "InCharge")
    put(PROFILE.replace("maxRunning", "running"))
    assert "profile.yaml of the ConfigMap tiny is no profile" in becomes("False", "ProfileInvalid")
    # As a user comes by it.
    printed = subprocess.run([os.environ["MILLRACE_BIN"], "bench", "profile", "--max-running", "4", "--kv-pages", "400",
                              "--context", "128"], stdout=subprocess.PIPE, text=True, check=True).stdout
    put(printed)
    becomes("True", "InCharge")
    control_plane("delete", "configmap", "tiny", "-n", namespace)
    becomes("False", "ProfileMissing")


def test_reconciles_are_traced(operator, becomes, collector):
    becomes("False", "ProfileMissing")

    def looks():
        """Name of the look -> (verb, resource) of its requests, over all traces."""
        spans, found = collector.spans(), {}
        names = {span.id: span.name for span in spans if span.kind == "server"}
        for span in spans:
            if span.kind == "client" and span.parent in names:
                found.setdefault(names[span.parent], set()).add((span.name, span.attributes["millrace.resource"]))
        return found

    wanted = {
        "reconcile deployment": {("patch", "workerpools"), ("patch", "services")},
        "reconcile pool": {("patch", "workerpools/status")},
        "reconcile autoscaler": {("get", "configmaps"), ("patch", "poolautoscalers/status")},
    }
    wait_for("requests of all kinds of looks", lambda: (seen := looks()) and all(
        asked <= seen.get(name, set()) for name, asked in wanted.items()))
    shown = httpx.get(f"http://{operator.http}/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}).text
    exemplars = set(re.findall(r'^millrace_operator_reconcile_seconds_bucket.* # \{trace_id="(\w+)"\}', shown, re.M))
    assert exemplars
    wait_for("their traces", lambda: exemplars <= {span.trace for span in collector.spans()})
