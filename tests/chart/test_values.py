"""Values that mean nothing are refused by name, and the schema knows exactly those of values.yaml."""
import json

import pytest
import yaml
from conftest import CHART, render

# A value, and what the refusal must name.
BAD = [
    ("replicas=3", "replicas"),
    ("operator.replicaCount=2", "replicaCount"),
    ("operator.replicas=-1", "/operator/replicas"),
    ('operator.replicas="two"', "/operator/replicas"),
    ('operator.logFormat="xml"', "/operator/logFormat"),
    ('operator.resources={"requests": {"cpu": "lots"}}', "/operator/resources/requests/cpu"),
    ('operator.extraEnv=[{"value": "x"}]', "/operator/extraEnv/0"),
    ('image.repository=""', "/image/repository"),
    ("image.tag=1.2", "/image/tag"),
    ('image.digest="latest"', "/image/digest"),
    ('image.pullPolicy="Sometimes"', "/image/pullPolicy"),
    ('imagePullSecrets=["registry"]', "/imagePullSecrets/0"),
    ('watchNamespace="Models"', "/watchNamespace"),
    ('crds.keep="yes"', "/crds/keep"),
    ('rbac.podGroups=true', "/rbac/podGroups"),
    ("serviceAccount.create=false", "/serviceAccount/name"),
    ('etcd.mode="internal"', "/etcd/mode"),
    ('etcd.mode="external"', "/etcd/external/endpoints"),
    ('etcd.external.endpoints=["a"]', "/etcd/external/endpoints/0"),
    ('etcd.external.endpoints=["https://a:2379"]', "/etcd/external/endpoints/0"),
    ("etcd.replicas=2", "/etcd/replicas"),
    ('etcd={"replicas": 3, "persistence": {"enabled": false}}', "/etcd/persistence/enabled"),
    ('etcd.persistence.size="big"', "/etcd/persistence/size"),
    ('etcd.persistence.whenDeleted="Ask"', "/etcd/persistence/whenDeleted"),
    ("etcd.quotaBackendBytes=1", "/etcd/quotaBackendBytes"),
    ('monitoring.podMonitor.interval="often"', "/monitoring/podMonitor/interval"),
    ('alerts.objectives.firstToken="1.9"', "/alerts/objectives/firstToken"),
    ('dashboards.labels={"a": 1}', "/dashboards/labels/a"),
]


@pytest.mark.parametrize("value, named", BAD, ids=[value for value, _ in BAD])
def test_a_bad_value_is_refused_by_name(value, named):
    said = render(value, check=False)
    assert "don't meet the specifications of the schema" in said and named in said, said


def leaves(values, path=()):
    """Paths of values.yaml down to what is set as a whole."""
    if isinstance(values, dict) and values and path[-1:] not in (("labels",), ("resources",)):
        for key, value in values.items():
            yield from leaves(value, (*path, key))
    else:
        yield path


def test_the_schema_knows_every_value_and_no_other():
    schema = json.loads((CHART / "values.schema.json").read_text())

    def known(shape, path=()):
        for key, child in shape.get("properties", {}).items():
            if child.get("properties"):
                assert child["additionalProperties"] is False, (*path, key)
                yield from known(child, (*path, key))
            else:
                yield (*path, key)

    values = set(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))
    assert set(known(schema)) - {("global",)} == values
