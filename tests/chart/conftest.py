"""The chart rendered, and installed into a control plane without nodes: nothing here runs a pod.

helm and kubectl are those that tests/cluster/kube builds; the API server is real, so that what it accepts and
refuses is what any cluster would.
"""
import functools
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "cluster"))

import openapi  # noqa: E402
from cluster import REPOSITORY, Cluster  # noqa: E402

CHART = REPOSITORY / "charts/millrace"
# The oldest that Chart.yaml allows, and the newest that there is.
VERSIONS = ["v1.34.4", "v1.37.2"]


def helm(*command, check=True):
    """What it printed; failing, what it complained of."""
    done = subprocess.run(["helm", *command], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout if check else done.stderr


@functools.cache
def render(*values, check=True):
    """The chart's manifests with `a.b=c` each (JSON values)."""
    settings = [word for value in values for word in ("--set-json", value)]
    return helm("template", "millrace", str(CHART), "--namespace", "millrace-system", *settings, check=check)


@pytest.fixture(scope="session", params=VERSIONS)
def kubernetes(request):
    """Schemas of a Kubernetes version."""
    return openapi.kubernetes(request.param)


@pytest.fixture(scope="session")
def ours(tmp_path_factory):
    """Schemas of our custom resources."""
    return openapi.custom(tmp_path_factory.mktemp("schemas") / "ours", *CHART.glob("files/crds/*.yaml"))


@pytest.fixture(scope="session")
def control_plane():
    with Cluster(nodes=0) as cluster:
        yield cluster.kubectl


@pytest.fixture
def namespace(control_plane):
    """A fresh one that admits restricted pods only."""
    name = f"chart-{uuid.uuid4().hex[:8]}"
    control_plane.new_namespace(name, enforce="restricted")
    yield name
    control_plane("delete", "namespace", name, "--wait=false")
