"""What the chart renders, with many values, against the API of the oldest and the newest Kubernetes."""
import functools
import json
import re

import pytest
import yaml
from conftest import CHART, helm, render
from openapi import conform

OTHERS = ["PodMonitor", "PrometheusRule"]  # of other projects, whose schemas are not Kubernetes'

EXTRAS = """{"podLabels": {"team": "a"}, "podAnnotations": {"note": "b"}, "nodeSelector": {"disk": "ssd"}, "extraArgs": ["--x=1"],
  "extraEnv": [{"name": "A", "value": "b"}], "tolerations": [{"key": "k", "operator": "Exists"}], "priorityClassName": "high",
  "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
    {"matchExpressions": [{"key": "k", "operator": "Exists"}]}]}}}}"""
SETTINGS = {
    "defaults": [],
    "one namespace": ['watchNamespace="models"'],
    "three members": ["etcd.replicas=3", "operator.replicas=2"],
    "external etcd": ['etcd.mode="external"', 'etcd.external.endpoints=["a:2379","b:2379"]'],
    "no etcd": ['etcd.mode="none"'],
    "emptyDir": ["etcd.persistence.enabled=false"],
    "storage": ['etcd.persistence.storageClass="fast"', 'etcd.persistence.whenDeleted="Retain"', 'etcd.persistence.size="10Gi"'],
    "nothing optional": ["crds.install=false", "rbac.create=false", "networkPolicy.enabled=false",
                         "serviceAccount.create=false", 'serviceAccount.name="mine"'],
    "everything optional": ["crds.keep=false", "monitoring.podMonitor.enabled=true",
                            "monitoring.podMonitor.nativeHistograms=true", "dashboards.enabled=true", "alerts.enabled=true",
                            "alerts.prometheusRule.enabled=true",
                            'rbac.podMonitors="always"', 'rbac.gatewayRoutes="always"', 'rbac.podGroups="always"',
                            f'imagePullSecrets={json.dumps([{"name": "registry"}])}'],
    "images": ['image.repository="registry.example.com/millrace"', 'image.tag="1"', 'workerImage="other:2"',
               'etcd.image.repository="etcd"', 'etcd.image.tag="v3"'],
    "pods otherwise": [f"operator={EXTRAS}", f"etcd={EXTRAS}"],
    "names": ['fullnameOverride="serving"'],
}


@pytest.fixture(params=SETTINGS.values(), ids=SETTINGS.keys())
def manifests(request):
    return render(*request.param)


@functools.cache
def parse(text):
    return [o for o in yaml.load_all(text, yaml.CSafeLoader) if o]


def objects(text, kind=None):
    return [o for o in parse(text) if kind in (None, o["kind"])]


def one(text, kind, suffix=""):
    found = [o for o in objects(text, kind) if o["metadata"]["name"].endswith(suffix)]
    assert len(found) == 1, [o["metadata"]["name"] for o in found]
    return found[0]


def args(text, kind):
    return one(text, kind)["spec"]["template"]["spec"]["containers"][0]["args"]


def test_the_chart_has_no_lint():
    helm("lint", "--strict", str(CHART))


def test_every_manifest_is_what_kubernetes_takes(manifests, kubernetes):
    wrong, right = conform(manifests, kubernetes, skip=OTHERS)
    assert not wrong
    assert right >= 1


def test_pods_are_restricted(manifests):
    for workload in [*objects(manifests, "Deployment"), *objects(manifests, "StatefulSet")]:
        pod = workload["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def test_selectors_choose_the_pods_they_are_for(manifests):
    pods = {w["metadata"]["name"]: w["spec"]["template"]["metadata"]["labels"]
            for kind in ("Deployment", "StatefulSet") for w in objects(manifests, kind)}
    for thing in objects(manifests):
        spec = thing.get("spec") or {}
        selector = spec.get("podSelector") or spec.get("selector")
        if thing["kind"] in ("Service", "NetworkPolicy", "PodDisruptionBudget", "PodMonitor"):
            wanted = selector.get("matchLabels", selector)
            chosen = [name for name, labels in pods.items() if wanted.items() <= labels.items()]
            assert len(chosen) == 1, (thing["metadata"]["name"], chosen)
            assert thing["metadata"]["name"].removesuffix("-peers") == chosen[0]


def test_everything_says_what_it_is_part_of(manifests):
    for thing in objects(manifests):
        assert thing["metadata"]["labels"]["app.kubernetes.io/instance"] == "millrace"
        assert "namespace" in thing["metadata"] or thing["kind"].startswith(("ClusterRole", "CustomResource"))


def test_an_operator_of_one_namespace_has_no_rights_elsewhere():
    text = render('watchNamespace="models"', "rbac.aggregate=false")
    assert not objects(text, "ClusterRole") and not objects(text, "ClusterRoleBinding")
    assert one(text, "Role", "-operator")["metadata"]["namespace"] == "models"
    assert one(text, "RoleBinding", "-operator")["subjects"][0]["namespace"] == "millrace-system"
    assert one(text, "Role", "-leader")["metadata"]["namespace"] == "millrace-system"
    assert "--watch-namespace=models" in args(text, "Deployment")
    every = one(render(), "ClusterRole", "-operator")
    assert one(text, "Role", "-operator")["rules"] == every["rules"]


def test_rights_are_for_kinds_that_are_served():
    groups = lambda *values: {g for rule in one(render(*values), "ClusterRole", "-operator")["rules"] for g in rule["apiGroups"]}
    foreign = {"monitoring.coreos.com", "gateway.networking.k8s.io"}
    assert not groups() & foreign
    assert foreign <= groups('rbac.podMonitors="always"', 'rbac.gatewayRoutes="always"')
    assert "scheduling.k8s.io" not in groups('rbac.podGroups="never"')
    with_api = helm("template", "millrace", str(CHART), "--api-versions", "scheduling.k8s.io/v1beta1/PodGroup")
    assert "podgroups" in with_api


def test_members_know_each_other():
    text = render("etcd.replicas=3")
    members = [f"millrace-etcd-{i}=http://millrace-etcd-{i}.millrace-etcd-peers.millrace-system.svc:2380" for i in range(3)]
    assert f"--initial-cluster={','.join(members)}" in args(text, "StatefulSet")
    assert one(text, "StatefulSet")["spec"]["serviceName"] == one(text, "Service", "-peers")["metadata"]["name"]
    assert one(text, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert not objects(render(), "PodDisruptionBudget"), "a budget for one pod would keep nodes from being drained"


def test_the_operator_is_told_where_etcd_is():
    etcd = lambda *values: [a for a in args(render(*values), "Deployment") if a.startswith("--etcd=")]
    assert etcd() == ["--etcd=millrace-etcd.millrace-system.svc:2379"]
    assert etcd('etcd.mode="external"', 'etcd.external.endpoints=["a:1","b:2"]') == ["--etcd=a:1,b:2"]
    assert etcd('etcd.mode="none"') == []
    assert not objects(render('etcd.mode="none"'), "StatefulSet")


def test_images_are_as_asked_for():
    def images(*values):
        text = render(*values)
        worker = next(a for a in args(text, "Deployment") if a.startswith("--image=")).removeprefix("--image=")
        image = lambda kind: one(text, kind)["spec"]["template"]["spec"]["containers"][0]["image"]
        return image("Deployment"), worker, image("StatefulSet")

    assert len(set(images())) == 1
    assert images('image.tag="2"', 'workerImage="w:3"', 'etcd.image.repository="e"', 'etcd.image.tag="4"') == ("millrace:2", "w:3", "e:4")
    digest = "sha256:" + "0" * 64
    assert images(f'image.digest="{digest}"') == (f"millrace@{digest}",) * 3
    assert images(f'image.digest="{digest}"', 'etcd.image.tag="v3"')[2] == "millrace:v3"


def test_definitions_stay_or_go_as_asked():
    kept = lambda *values: [o["metadata"].get("annotations", {}).get("helm.sh/resource-policy")
                            for o in objects(render(*values), "CustomResourceDefinition")]
    assert kept() == ["keep"] * 3
    assert kept("crds.keep=false") == [None] * 3
    assert kept("crds.install=false") == []


def test_dashboards_and_alerts_are_the_files_of_their_folders():
    text = render("dashboards.enabled=true", "alerts.enabled=true")
    rendered = {file: content for o in objects(text, "ConfigMap") for file, content in o["data"].items()}
    files = [*CHART.glob("dashboards/*.json"), *CHART.glob("alerts/*.yaml")]
    assert rendered == {file.name: file.read_text() for file in files}
    assert not objects(render(), "ConfigMap")


def test_rules_of_the_prometheus_operator_are_the_same_files():
    text = render("alerts.prometheusRule.enabled=true", 'alerts.prometheusRule.labels={"release": "prometheus"}')
    rules = {o["metadata"]["name"].removeprefix("millrace-"): o for o in objects(text, "PrometheusRule")}
    assert {name: rule["spec"] for name, rule in rules.items()} == {
        file.stem: yaml.load(file.read_text(), yaml.CSafeLoader) for file in CHART.glob("alerts/*.yaml")}
    assert all(rule["metadata"]["labels"]["release"] == "prometheus" for rule in rules.values())
    assert not objects(render("alerts.enabled=true"), "PrometheusRule")


def test_rules_have_the_objectives_that_were_asked_for():
    text = render("alerts.prometheusRule.enabled=true", 'alerts.objectives.firstToken="0.1"', 'alerts.objectives.betweenTokens="0.05"')
    rules = one(text, "PrometheusRule", "-objectives")["spec"]["groups"][0]["rules"]
    bounds = {re.search(r"millrace_(\w+)_late", r["record"])[1]: re.search(r'le=~"(.*?)\(', r["expr"])[1]
              for r in rules if "_late" in r.get("record", "")}
    assert bounds == {"first_tokens": "0.1", "tokens": "0.05"}
