"""What processes show is what docs/metrics.md says."""
import json
import re
import subprocess

import catalogue
import expressions
import httpx
import pytest
from deployment import BINARY, PATIENCE, REPOSITORY, environment, parse


def test_the_catalogue_is_what_the_code_registers():
    subprocess.run([REPOSITORY / "docs/generate-metrics", "--check"], check=True, env=environment() | {"MILLRACE_BIN": BINARY})


@pytest.mark.parametrize("role", ["router", "prefill", "decode"])
def test_a_process_shows_nothing_else(watched, role):
    known = catalogue.read()
    shown = set()
    for deployment in watched.deployments.values():
        for process, url in deployment.metrics_urls.items():
            if not process.startswith(role):
                continue
            text = httpx.get(url, timeout=PATIENCE).text
            kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.M))
            for sample, labels, _ in parse(text):
                name = sample if sample in kinds else re.sub(expressions.ENDINGS, "", sample)
                metric = known.get((role, name))
                assert metric, f"{process} shows {name}, which docs/metrics.md does not have for a {role}"
                assert kinds[name] == metric.kind, name
                labels.pop("le", None)
                assert labels.keys() == metric.labels.keys(), name
                for label, value in labels.items():
                    assert metric.labels[label] is None or value in metric.labels[label], f"{name}: {label}={value}"
                shown.add(name)
    missing = {name for process, name in known if process == role} - shown
    # Series by rank are those of groups of this role alone.
    assert all(name.startswith("millrace_group_") for name in missing) and (role == "prefill" or not missing), missing


def test_no_process_has_many_series(watched):
    """Labels are bounded: a deployment that has seen hundreds of requests has as many series as one that has seen ten."""
    for namespace, deployment in watched.deployments.items():
        for process, url in deployment.metrics_urls.items():
            series = [line for line in httpx.get(url, timeout=PATIENCE).text.splitlines() if line and not line.startswith("#")]
            print(f"{namespace} {process}: {len(series)} series")
            assert len(series) < 1000, process


def test_objectives_are_bounds_of_the_histograms(watched):
    """Elsewhere the share that keeps one could not be read off."""
    schema = json.loads((expressions.CHART / "values.schema.json").read_text())["properties"]["alerts"]["properties"]
    chosen = {name: set(values["enum"]) for name, values in schema["objectives"]["properties"].items()}
    for dashboard in expressions.CHART.glob("dashboards/overview.json"):
        for variable in json.loads(dashboard.read_text())["templating"]["list"]:
            for name, of in (("ttft", "firstToken"), ("itl", "betweenTokens")):
                if variable["name"] == name:
                    chosen[of] |= set(variable["query"].split(","))
    text = httpx.get(watched.deployments["split"].metrics_urls["router"], timeout=PATIENCE).text
    for of, metric in (("firstToken", "time_to_first_token_seconds"), ("betweenTokens", "inter_token_latency_seconds")):
        bounds = set(re.findall(rf'millrace_{metric}_bucket{{.*le="([^"]+)"', text))
        assert chosen[of] <= bounds, chosen[of] - bounds
