"""A release's life as the API server sees it: installed, upgraded, removed. No nodes, so its pods stay Pending."""
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import CHART, REPOSITORY
from kubectl import wait_for
from resources import everything

DEFINITIONS = ["modeldeployments.serving.millrace.dev", "workerpools.serving.millrace.dev", "poolautoscalers.serving.millrace.dev"]


@pytest.fixture
def helm(control_plane, namespace):
    """helm(command, ...): of one release in one namespace, gone at the end."""
    def helm(*command, **fields):
        return control_plane(*command, "--namespace", namespace, program="helm", **fields)

    yield helm
    helm("uninstall", "millrace", "--ignore-not-found")
    control_plane("delete", "crd", *DEFINITIONS, "--ignore-not-found")


def without(folder, field):
    """A copy of the chart, as if from before there was `field` in the router's spec."""
    old = Path(folder) / "millrace"
    shutil.copytree(CHART, old)
    file = old / "files/crds/modeldeployments.yaml"
    definition = yaml.load(file.read_text(), yaml.CSafeLoader)
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["properties"]["spec"]["properties"]["router"]["properties"][field]
    file.write_text(yaml.dump(definition, Dumper=yaml.CSafeDumper))
    return old


def router_fields(kubectl):
    versions = kubectl.get("customresourcedefinitions", DEFINITIONS[0])["spec"]["versions"]
    return versions[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["router"]["properties"]


def test_definitions_in_the_chart_are_those_of_the_binary():
    subprocess.run([REPOSITORY / "charts/generate-crds", "--check"], check=True, cwd=REPOSITORY,
                   env=os.environ | {"MILLRACE_BIN": os.environ["MILLRACE_BIN"]})


def test_an_upgrade_changes_definitions(control_plane, helm, tmp_path):
    helm("install", "millrace", str(without(tmp_path, "maxWaiting")))
    assert "maxWaiting" not in router_fields(control_plane)
    helm("upgrade", "millrace", str(CHART))
    assert "maxWaiting" in router_fields(control_plane)


def test_nothing_is_left_of_a_release_that_keeps_nothing(control_plane, helm):
    before = everything(control_plane)
    helm("install", "millrace", str(CHART), "--set", "crds.keep=false")
    pods = wait_for("pods of the operator and etcd, which a restricted namespace admits",
                    lambda: len(found := [o for o in everything(control_plane) - before if o.startswith("Pod ")]) == 2 and found)
    assert len(pods) == 2
    helm("uninstall", "millrace")

    left = None

    def gone():
        nonlocal left
        try:
            left = everything(control_plane) - before
        except AssertionError as listing:  # a kind that is listed still and served no more
            left = listing
        return not left

    try:
        wait_for("everything to be gone", gone)
    except AssertionError:
        raise AssertionError(f"left behind: {left}") from None


def test_definitions_that_are_kept_are_taken_over_again(control_plane, helm):
    helm("install", "millrace", str(CHART))
    helm("uninstall", "millrace")
    assert control_plane.get("customresourcedefinitions", DEFINITIONS[0]), "crds.keep"
    helm("install", "millrace", str(CHART), "--set", "crds.keep=false")
    helm("uninstall", "millrace")
    wait_for("the definition to be gone", lambda: not control_plane.get("customresourcedefinitions", DEFINITIONS[0]))


def test_the_number_of_members_cannot_change(helm):
    helm("install", "millrace", str(CHART))
    said = helm("upgrade", "millrace", str(CHART), "--set", "etcd.replicas=3", check=False)
    assert "etcd.replicas" in said and "Change the number of members" in said
    helm("upgrade", "millrace", str(CHART), "--set", "operator.replicas=2")


def test_a_release_of_one_namespace_may_work_there_and_nowhere_else(control_plane, helm, namespace):
    helm("install", "millrace", str(CHART), "--set", f"watchNamespace={namespace}")
    operator = f"system:serviceaccount:{namespace}:millrace-operator"

    def may(verb, kind, where):
        return control_plane("auth", "can-i", verb, kind, "--as", operator, "-n", where, check=False).strip() == "yes"

    assert may("patch", "statefulsets", namespace) and not may("patch", "statefulsets", "default")
    assert not may("get", "secrets", namespace)
    assert not may("patch", "poolautoscalers", namespace), "nothing but their status"
    assert may("patch", "podgroups.scheduling.k8s.io", namespace), "which this cluster serves"


def test_people_who_edit_a_namespace_may_edit_models_there(control_plane, helm, namespace):
    helm("install", "millrace", str(CHART))
    control_plane("create", "rolebinding", "ann", "--clusterrole=edit", "--user=ann", "-n", namespace)
    can = lambda *what: control_plane("auth", "can-i", *what, "--as", "ann", "-n", namespace, check=False).strip() == "yes"
    wait_for("the role to be aggregated", lambda: can("create", "modeldeployments"))
    assert can("update", "workerpools", "--subresource=scale") and can("list", "workerpools")
    assert not can("create", "workerpools")
    assert can("create", "poolautoscalers") and can("get", "poolautoscalers")
