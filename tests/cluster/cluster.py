"""The cluster: one of the tests' own, or the one that KUBECONFIG names."""
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import pytest

from kubectl import Kubectl

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
KUBE = HERE / "kube/kube"
# As tests/run found it: kubectl() changes what processes get, never this process's own.
EXISTING = os.environ.get("KUBECONFIG")
# The model's own tasks, and `millrace up` as the end-to-end tests start it.
sys.path += [str(REPOSITORY / "models/tiny-r1/train"), str(REPOSITORY / "tests/e2e")]


class Cluster:
    """Use as a context manager. `nodes` is what a cluster of our own gets."""

    def __init__(self, nodes=2):
        self.own = not EXISTING
        self.work = None
        # From when to when the API server was not ready, in its own clock's UTC.
        self.restarts = []
        if self.own:
            self.work = Path(tempfile.mkdtemp(prefix="millrace-cluster-"))
            try:
                self.kube("up", "--nodes", str(nodes))
            except BaseException:
                self.down()
                raise
        try:
            self.kubectl = Kubectl(self.work / "admin.kubeconfig" if self.own else EXISTING)
        except BaseException:
            self.down()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kubectl.close()
        self.down()

    def down(self):
        if self.own and os.environ.get("KEEP_CLUSTER") != "1":
            subprocess.run([KUBE, "down"], env=self.environment(), stderr=subprocess.DEVNULL)
            shutil.rmtree(self.work, ignore_errors=True)

    def environment(self):
        return os.environ | {"WORK": str(self.work)}

    def kube(self, *command):
        """A command of tests/cluster/kube/kube, for a cluster of our own."""
        self.ours(f"kube {command[0]}")
        # Not into a pipe: what it starts in the background would keep that open.
        with open(self.work / "kube.log", "a+") as log:
            if subprocess.run([KUBE, *command], env=self.environment(), stdout=log, stderr=log).returncode != 0:
                log.seek(0)
                raise AssertionError(f"kube {' '.join(command)}:\n{log.read()[-4000:]}")

    def restart_api_server(self):
        begun = datetime.now(timezone.utc)
        self.kube("restart-apiserver")
        self.restarts.append((begun, datetime.now(timezone.utc)))

    def host(self):
        """Where pods reach this host."""
        self.ours("something that pods reach on this host")
        return f"10.{100 + int(os.environ.get('KUBE_ID', 0))}.0.1"

    def ours(self, what):
        if not self.own:
            pytest.skip(f"{what} needs a cluster of the tests' own: run without KUBECONFIG")

    def kill_pod(self, pod):
        """SIGKILL to the first container's process, as a crash would be: nothing has a chance to say goodbye."""
        self.ours("SIGKILL of a container")
        uid, killed = pod["metadata"]["uid"], 0
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if uid in (process / "cgroup").read_text() and (process / "cmdline").read_bytes().startswith(b"/millrace\0"):
                    os.kill(int(process.name), signal.SIGKILL)
                    killed += 1
            except (OSError, ProcessLookupError):  # it has ended meanwhile
                continue
        assert killed, f"found no process of {pod['metadata']['name']}"

    def audit_log(self):
        self.ours("the audit log")
        return self.work / "log/audit.log"
