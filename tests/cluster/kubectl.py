"""kubectl as tests use it: commands as people type them, and objects as parsed JSON."""
import json
import os
import re
import subprocess
import time

import httpx

# How long anything may take before a test gives up on it. No test asserts that something is fast.
PATIENCE = 240

CORE, APPS, OURS = "/api/v1", "/apis/apps/v1", "/apis/serving.millrace.dev/v1alpha1"
PATHS = {
    "pods": CORE, "services": CORE, "nodes": CORE, "namespaces": CORE, "events": CORE,
    "serviceaccounts": CORE, "configmaps": CORE,
    "deployments": APPS, "statefulsets": APPS,
    "modeldeployments": OURS, "workerpools": OURS, "poolautoscalers": OURS,
    "poddisruptionbudgets": "/apis/policy/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "endpointslices": "/apis/discovery.k8s.io/v1",
    "leases": "/apis/coordination.k8s.io/v1",
    "podgroups": "/apis/scheduling.k8s.io/v1beta1",
    "podmonitors": "/apis/monitoring.coreos.com/v1",
    "httproutes": "/apis/gateway.networking.k8s.io/v1",
    "grpcroutes": "/apis/gateway.networking.k8s.io/v1",
    "customresourcedefinitions": "/apis/apiextensions.k8s.io/v1",
}


class Kubectl:
    """Changes go through commands. Polling reads through `kubectl proxy`: a new process for each look
    would be most of a small machine's work."""

    def __init__(self, kubeconfig):
        self.environment = os.environ | {"KUBECONFIG": str(kubeconfig)}
        self.proxy = subprocess.Popen(
            ["kubectl", "proxy", "--port", "0"], env=self.environment, stdout=subprocess.PIPE, text=True)
        self.http = httpx.Client(base_url="http://" + re.search(r"127\.0\.0\.1:\d+", self.proxy.stdout.readline())[0])

    def close(self):
        self.http.close()
        self.proxy.terminate()
        self.proxy.wait()

    def __call__(self, *command, stdin=None, check=True, program="kubectl"):
        """The output of a command."""
        done = subprocess.run([program, *command], env=self.environment, input=stdin, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if check and done.returncode != 0:
            raise AssertionError(f"{program} {' '.join(command)}: {done.stderr.strip()}\n{done.stdout.strip()}")
        return done.stdout if check else done.stdout + done.stderr

    def apply(self, *objects):
        """What it said; refusals are errors."""
        return self("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def new_namespace(self, name, **labels):
        """With all that the cluster puts into one."""
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": name, "labels": {f"pod-security.kubernetes.io/{key}": value for key, value in labels.items()}}})
        wait_for(f"what every namespace has, in {name}", lambda: self.get("serviceaccounts", "default", name)
                 and self.get("configmaps", "kube-root-ca.crt", name))

    def list(self, kind, namespace=None, **labels):
        """Objects that have all of the labels."""
        answer = self.http.get(self._path(kind, namespace), params={"labelSelector": selector(labels)})
        return [] if answer.status_code == 404 else self._json(answer)["items"]

    def get(self, kind, name, namespace=None):
        """The object, or None if there is none."""
        answer = self.http.get(f"{self._path(kind, namespace)}/{name}")
        return None if answer.status_code == 404 else self._json(answer)

    def patch(self, kind, name, change, namespace=None, subresource=None):
        """A merge patch: null removes a field."""
        where = ["-n", namespace] if namespace else []
        return self("patch", kind, name, *where, "--type", "merge", "-p", json.dumps(change),
                    *(["--subresource", subresource] if subresource else []))

    @staticmethod
    def _path(kind, namespace):
        return PATHS[kind] + (f"/namespaces/{namespace}" if namespace else "") + f"/{kind}"

    @staticmethod
    def _json(answer):
        answer.raise_for_status()
        return answer.json()


def selector(labels):
    """Keyword arguments are the last parts of our own labels' names."""
    return ",".join(f"serving.millrace.dev/{key}={value}" for key, value in labels.items() if value is not None)


def condition(thing, kind):
    """A condition of an object; {} if it has none of this kind."""
    conditions = ((thing or {}).get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == kind), {})


def wait_for(what, holds, patience=PATIENCE):
    """Polls until `holds()` does; gives its value. An API server that cannot be asked just now says nothing."""
    end = time.monotonic() + patience
    while True:
        try:
            value = holds()
        except httpx.HTTPError:
            value = None
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {patience} s for {what}")
        time.sleep(0.25)
