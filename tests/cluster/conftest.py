"""One cluster and one install of the chart for all tests: they leave both as they found them.

MILLRACE_IMAGE names an image for an existing cluster (KUBECONFIG); a cluster of our own gets one made of
image/rootfs. KEEP_CLUSTER=1 leaves the cluster up for a look at what failed.
"""
import os
import subprocess

import pytest

import chart as charts
import dump as dumps
from cluster import HERE, REPOSITORY, Cluster
from deployment import BINARY, Deployment
from deployments import NAMESPACE, ModelDeployment, spec
from resources import everything
from traffic import MODEL, Traffic, record

# As a release lives: installed, upgraded, used, and removed at the end.
ORDER = ["upgrade", "install", "sources", "rollout", "scale", "autoscale", "faults", "operator", "group", "rbac", "uninstall"]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: ORDER.index(item.path.stem.removeprefix("test_")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    item.failed = getattr(item, "failed", False) or report.failed
    if report.failed and call.when != "teardown" and "cluster" in item.funcargs:
        try:
            report.sections.append(("cluster", dumps.dump(item.funcargs["cluster"].kubectl)))
        except Exception as error:  # what failed may be the cluster itself
            report.sections.append(("cluster", f"cannot be asked: {error}"))
    return report


@pytest.fixture(scope="session")
def reference():
    """What the model answers, by this very binary without any cluster."""
    with Deployment("--aggregated") as deployment:
        return record(f"http://{deployment.http}")


@pytest.fixture(scope="session")
def cluster():
    with Cluster() as cluster:
        # Kinds that other projects define and the operator makes objects of, where they are served.
        cluster.kubectl("apply", "--server-side", "-f", str(HERE / "foreign-crds.yaml"))
        for namespace in (NAMESPACE, charts.NAMESPACE):
            cluster.kubectl.new_namespace(namespace, enforce="restricted")
        yield cluster


@pytest.fixture(scope="session")
def images(cluster, tmp_path_factory):
    """The image under test under two names, as if the first were of an earlier release."""
    if not cluster.own:
        image = os.environ.get("MILLRACE_IMAGE") or pytest.fail("set MILLRACE_IMAGE to an image that the cluster can pull")
        return os.environ.get("MILLRACE_IMAGE_BEFORE", image), image
    root = tmp_path_factory.mktemp("image") / "root"
    subprocess.run([REPOSITORY / "image/rootfs", root, "--binary", BINARY], check=True)
    for name in ("millrace:before", "millrace:test"):
        cluster.kube("load-image", str(root), name, "/millrace")
    return "docker.io/library/millrace:before", "docker.io/library/millrace:test"


@pytest.fixture(scope="session")
def chart(cluster, images, tmp_path_factory):
    """Installed, as the version from before."""
    before, image = images
    chart = charts.Chart(cluster, image, before, tmp_path_factory.mktemp("chart"))
    if cluster.own:
        # No storage class here: the volume for the chart's etcd is made by hand. Both nodes are this host.
        data = tmp_path_factory.mktemp("etcd")
        data.chmod(0o777)
        cluster.kubectl.apply({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "etcd"},
            "spec": {"capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"],
                     "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": str(data)}}})
    chart.found = everything(cluster.kubectl)
    chart.install()
    return chart


@pytest.fixture(scope="session")
def operator(chart):
    """The chart of this tree."""
    chart.current()
    return chart


@pytest.fixture(scope="session")
def tiny_before(cluster, chart):
    """Two routers, one prefill and two decode workers; also what the release from before serves."""
    return ModelDeployment(cluster, "served", spec(routers=2))


@pytest.fixture
def tiny(request, cluster, operator, tiny_before):
    """The same, under the chart of this tree, and whole."""
    tiny_before.wait()
    yield tiny_before
    if request.node.failed:  # and nobody knows in which state
        tiny_before.delete()
        tiny_before.wait_gone()
        ModelDeployment(cluster, tiny_before.name, spec(routers=2))


@pytest.fixture(scope="session")
def traffic(reference):
    """traffic(deployment): load on it for a block."""
    return lambda deployment, **fields: Traffic(deployment.base(), reference, **fields)


@pytest.fixture
def make(cluster, operator):
    """make(name, spec): a deployment that goes when the test ends."""
    made = []

    def make(name, spec):
        made.append(ModelDeployment(cluster, name, spec))
        return made[-1]

    yield make
    for deployment in made:
        if deployment.get():
            deployment.delete()
    for deployment in made:
        deployment.wait_gone()
