"""What the operator makes of ModelDeployments (operator/tests/build writes it down: $OBJECTS), against the API of two
Kubernetes versions and the definitions of the projects that the other kinds are of."""
import os
from pathlib import Path

import openapi
import pytest

# Kinds by where they are defined: a Go module and a file of it.
GATEWAY = ("sigs.k8s.io/gateway-api", "v1.6.3", "config/crd/standard/gateway.networking.k8s.io_{}.yaml")
PROMETHEUS = ("github.com/prometheus-operator/prometheus-operator", "v0.88.0",
              "example/prometheus-operator-crd/monitoring.coreos.com_{}.yaml")
DEFINITIONS = [(GATEWAY, "httproutes"), (GATEWAY, "grpcroutes"), (PROMETHEUS, "podmonitors"), (PROMETHEUS, "prometheusrules")]


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    files = [openapi.module(name, version) / path.format(plural) for (name, version, path), plural in DEFINITIONS]
    return openapi.custom(tmp_path_factory.mktemp("schemas") / "others", *files)


@pytest.mark.parametrize("cluster", ["plain", "gangs"])
def test_every_object_is_what_kubernetes_takes(cluster, kubernetes, ours, others):
    if cluster == "gangs" and not list(kubernetes.glob("podgroup-*")):
        pytest.skip("this version has no PodGroups, and the operator then makes none")
    files = sorted((Path(os.environ["OBJECTS"]) / cluster).glob("*.json"))
    assert len(files) > 10
    wrong, right = openapi.conform(files, kubernetes, ours, others)
    assert not wrong, "\n".join(wrong)
    print(f"{right} objects of {len(files)} deployments")
    kinds = {kind for file in files for kind in ("PodMonitor", "HTTPRoute", "GRPCRoute", "PodGroup") if f'"{kind}"' in file.read_text()}
    assert {"PodMonitor", "HTTPRoute", "GRPCRoute"} <= kinds and ("PodGroup" in kinds) == (cluster == "gangs")


def test_the_charts_pod_monitors_and_rules_are_what_prometheus_takes(others, kubernetes):
    from conftest import render
    text = render("monitoring.podMonitor.enabled=true", "alerts.prometheusRule.enabled=true")
    wrong, _ = openapi.conform(text, kubernetes, others)
    assert not wrong and "kind: PrometheusRule" in text
