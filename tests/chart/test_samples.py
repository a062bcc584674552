"""Samples, and near misses of them, as an API server with our definitions takes and refuses them."""
import copy

import pytest
import yaml
from conftest import CHART
from kubectl import condition, wait_for
from openapi import conform

SAMPLES = sorted((CHART / "samples").glob("*.yaml"))


def test_samples_are_what_the_definitions_say(ours):
    wrong, right = conform(SAMPLES, ours)
    assert not wrong and right == len(SAMPLES) >= 3


@pytest.fixture(scope="module")
def definitions(control_plane):
    folder = str(CHART / "files/crds")
    control_plane("apply", "--server-side", "-f", folder)
    wait_for("the definitions to be served", lambda: all(
        condition(definition, "Established").get("status") == "True"
        for definition in control_plane.list("customresourcedefinitions")))
    yield control_plane
    control_plane("delete", "-f", folder)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda file: file.stem)
def test_an_api_server_takes_a_sample(definitions, sample):
    definitions("create", "--dry-run=server", "--validate=strict", "-f", str(sample))


# A change of a sample, and what the refusal must say.
BAD = [
    (lambda spec: spec["model"]["source"].update(hostPath={"path": "/m"}), "set exactly one of builtin"),
    (lambda spec: spec["model"].update(source={}), "set exactly one of builtin"),
    (lambda spec: spec["model"].update(source={"hostPath": {"path": "m"}}), "a host path begins with /"),
    (lambda spec: spec["model"].update(source={"persistentVolumeClaim": {"claimName": "c", "path": "../x"}}), "path is relative"),
    (lambda spec: spec["model"].update(source={"http": {"url": "ftp://x", "checksum": "sha256:" + "0" * 64}}), "url begins with"),
    (lambda spec: spec["model"].update(source={"http": {"url": "http://x", "checksum": "md5:1"}}), "checksum"),
    (lambda spec: spec["model"].update(servedNames=[""]), "a served name is empty"),
    (lambda spec: spec["decode"].update(redundantExperts=8), "redundantExperts needs ranks"),
    (lambda spec: spec["decode"].update(ranks=0), "spec.decode.ranks"),
    (lambda spec: spec["decode"].update(device="tpu"), "spec.decode.device"),
    (lambda spec: spec.pop("decode"), "spec.decode"),
    (lambda spec: spec.update(rollout={"maxSurge": "some"}), "maxSurge is a number or a percentage"),
    (lambda spec: spec.update(router={"service": {"type": "ExternalName"}}), "type is ClusterIP"),
    (lambda spec: spec.update(etcd={"endpoints": []}), "spec.etcd.endpoints"),
    (lambda spec: spec.update(replicas=2), "replicas"),
]


@pytest.mark.parametrize("change, said", BAD, ids=[said for _, said in BAD])
def test_an_api_server_refuses_what_cannot_be_meant(definitions, change, said):
    sample = yaml.safe_load((CHART / "samples/tiny-r1.yaml").read_text())
    bad = copy.deepcopy(sample)
    change(bad["spec"])
    answer = definitions("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=yaml.safe_dump(bad), check=False)
    assert said in answer and "created" not in answer, answer


def test_names_leave_room_for_those_of_pods(definitions):
    sample = yaml.safe_load((CHART / "samples/tiny-r1.yaml").read_text())
    sample["metadata"]["name"] = "m" * 41  # a label's value may have 63, and a pod's name adds its pool's and group's
    answer = definitions("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(sample), check=False)
    assert "the name is longer than" in answer
