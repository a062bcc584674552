"""Where pods find a checkpoint: each kind of source that needs nothing from outside, by what it answers."""
import hashlib
import shutil

import pytest

from cluster import REPOSITORY
from deployments import NAMESPACE, spec
from files_server import FilesServer
from kubectl import wait_for
from traffic import MODEL, first_answer


@pytest.fixture(scope="module")
def checkpoint(cluster, tmp_path_factory):
    """A copy of the model that the binary carries, with its checksums."""
    cluster.ours("a folder that both nodes see")
    folder = tmp_path_factory.mktemp("sources") / "tiny"
    shutil.copytree(REPOSITORY / "models/tiny-r1", folder, ignore=shutil.ignore_patterns("train", "*.md"))
    sums = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(folder.iterdir()))
    (folder / "SHA256SUMS").write_text(sums)
    for part in (folder, *folder.iterdir(), *list(folder.parents)[:3]):
        part.chmod(0o755)
    return folder


def answers(deployment, reference):
    deployment.wait()
    assert first_answer(deployment.base()) == reference[0][1]
    return deployment


def served_from(source):
    return spec(prefill=0, decode=1) | {"model": {"source": source, "servedNames": [MODEL]}}


def test_an_image(cluster, make, checkpoint, reference):
    cluster.kube("load-image", str(checkpoint), "checkpoint:test")
    image = {"reference": "docker.io/library/checkpoint:test", "pullPolicy": "IfNotPresent"}
    answers(make("from-image", served_from({"image": image})), reference)


def test_a_claim(cluster, make, checkpoint, reference):
    """The checkpoint is a folder of the volume, which is only read."""
    kubectl = cluster.kubectl
    kind = {"storageClassName": "", "accessModes": ["ReadOnlyMany"]}
    kubectl.apply(
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "checkpoint"},
         "spec": kind | {"capacity": {"storage": "1Gi"}, "hostPath": {"path": str(checkpoint.parent)},
                         "persistentVolumeReclaimPolicy": "Retain"}},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "checkpoint", "namespace": NAMESPACE},
         "spec": kind | {"volumeName": "checkpoint", "resources": {"requests": {"storage": "1Gi"}}}})
    try:
        answers(make("from-claim", served_from({"persistentVolumeClaim": {"claimName": "checkpoint", "path": checkpoint.name}})),
                reference)
    finally:
        kubectl("delete", "pvc", "checkpoint", "-n", NAMESPACE, "--wait=false")
        kubectl("delete", "pv", "checkpoint", "--wait=false")


def test_a_download(cluster, make, checkpoint, reference):
    checksum = "sha256:" + hashlib.sha256((checkpoint / "SHA256SUMS").read_bytes()).hexdigest()
    with FilesServer(checkpoint, host=cluster.host()) as server:
        deployment = answers(make("from-http", served_from({"http": {"url": server.url, "checksum": checksum}})), reference)
        # Another checksum is another revision, which says why it does not start and takes nothing away.
        before = deployment.revision()
        deployment.patch({"model": {"source": {"http": {"checksum": "sha256:" + 64 * "0"}}}})
        wait_for("the status to say what is wrong", lambda: deployment.status()["revision"] != before
                 and "SHA256SUMS" in deployment.told())
        deployment.patch({"model": {"source": {"http": {"checksum": checksum}}}})
        assert deployment.revision() == before
