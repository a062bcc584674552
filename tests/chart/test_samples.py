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
    assert not wrong and right == len(SAMPLES) >= 4


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


AUTOSCALER = {
    "set at least one of ttftMilliseconds": lambda spec: spec.update(objectives={"percentile": 95}),
    "spec.objectives.percentile": lambda spec: spec["objectives"].update(percentile=100),
    "minReplicas is more than maxReplicas": lambda spec: spec["decode"].update(minReplicas=9),
    "spec.decode.minReplicas": lambda spec: spec["decode"].update(minReplicas=0),
    "spec.decode.maxReplicas": lambda spec: spec["decode"].pop("maxReplicas"),
    "spec.schedule[0].from": lambda spec: spec["schedule"][0].update({"from": "7:30"}),
    "from and until are the same": lambda spec: spec["schedule"][0].update(until="07:30"),
    "set at least one of prefillReplicas": lambda spec: spec["schedule"][0].pop("decodeReplicas"),
    "schedule has prefillReplicas": lambda spec: spec.pop("prefill") and spec["schedule"][0].update(prefillReplicas=1),
    "spec.scaleToZero.idleSeconds": lambda spec: spec.update(scaleToZero={"idleSeconds": 5}),
    "groups would go before they serve": lambda spec: spec.update(scaleToZero={"idleSeconds": 60}, coldStartSeconds=61),
    "baseSeconds is above 0": lambda spec: spec["profile"]["decode"].update(baseSeconds=0),
    "spec.profile": lambda spec: spec.pop("profile"),
    "set either configMap, or all of": lambda spec: spec["profile"].pop("kvTokens"),
    "set either configMap": lambda spec: spec["profile"].update(configMap={"name": "tiny"}),
    "spec.profile.configMap.name": lambda spec: spec.update(profile={"configMap": {}}),
    "spec.target.name": lambda spec: spec["target"].update(name=""),
}


@pytest.mark.parametrize("said", AUTOSCALER)
def test_an_api_server_refuses_an_autoscaler_that_cannot_be_meant(definitions, said):
    bad = yaml.safe_load((CHART / "samples/autoscaler.yaml").read_text())
    AUTOSCALER[said](bad["spec"])
    answer = definitions("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=yaml.safe_dump(bad), check=False)
    assert said in answer and "created" not in answer, answer


def test_names_leave_room_for_those_of_pods(definitions):
    sample = yaml.safe_load((CHART / "samples/tiny-r1.yaml").read_text())
    sample["metadata"]["name"] = "m" * 41  # a label's value may have 63, and a pod's name adds its pool's and group's
    answer = definitions("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(sample), check=False)
    assert "the name is longer than" in answer
