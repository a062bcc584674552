"""Histograms as a Prometheus sees them that asks for more than the text format: exemplars, and native histograms."""
import re
import secrets
import subprocess
import time

import catalogue
import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from deployment import PATIENCE, wait_for

OPENMETRICS = {"accept": "application/openmetrics-text; version=1.0.0"}
# What a request's way through all processes is measured by, and whose spans tell of it.
OF_REQUESTS = [
    ("millrace_time_to_first_token_seconds", "", "millrace-router"),
    ("millrace_inter_token_latency_seconds", "", "millrace-router"),
    ("millrace_e2e_request_latency_seconds", "", "millrace-router"),
    ("millrace_request_queue_time_seconds", "", "millrace-router"),
    ("millrace_request_queue_time_seconds", "decode", "millrace-decode"),
    ("millrace_request_prefill_time_seconds", "decode", "millrace-decode"),
    ("millrace_request_queue_time_seconds", "prefill", "millrace-prefill"),
    ("millrace_request_prefill_time_seconds", "prefill", "millrace-prefill"),
    ("millrace_transfer_exposed_seconds", "prefill", "millrace-prefill"),
]
# Between two bounds of a native histogram.
FACTOR = 2 ** (1 / 8)


def urls(watched):
    return [(process, url) for deployment in watched.deployments.values() for process, url in deployment.metrics_urls.items()]


def test_what_processes_show_is_openmetrics(watched):
    """By the strictest reader that there is: of names, order, bounds, exemplars and the end."""
    for process, url in urls(watched):
        answer = httpx.get(url, headers=OPENMETRICS, timeout=PATIENCE)
        assert answer.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        told = {family.name: family for family in text_string_to_metric_families(answer.text)}
        plain = httpx.get(url, timeout=PATIENCE)
        assert plain.headers["content-type"] == "text/plain; version=0.0.4"
        kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", plain.text, re.M))
        assert {name + "_total" * (family.type == "counter"): family.type for name, family in told.items()} == kinds, process


def test_promtool_finds_nothing_in_the_text_format(watched):
    for process, url in urls(watched):
        text = httpx.get(url, timeout=PATIENCE).text
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
        assert checked.returncode == 0, f"{process}: {checked.stderr}"


@pytest.mark.parametrize("name, role, service", OF_REQUESTS)
def test_exemplars_name_traces(watched, name, role, service):
    found = exemplars(watched.prometheus, f'{name}_bucket{{role="{role}"}}')
    assert found
    traces = set()
    for labels, exemplar in found:
        assert exemplar["labels"].keys() == {"trace_id"}
        assert float(exemplar["value"]) <= float(labels["le"])
        traces.add(exemplar["labels"]["trace_id"])
    assert all(re.fullmatch("[0-9a-f]{32}", trace) for trace in traces)
    # Not every process waits for its last spans to be sent when a request is measured.
    known = lambda: {span.trace for span in watched.collector.spans() if span.service == service}  # noqa: E731
    wait_for(lambda: traces <= known(), f"the traces of {len(traces)} exemplars")
    print(f"{name}{{role={role!r}}}: {len(found)} exemplars of {len(traces)} traces")


def test_only_what_is_recorded_is_an_exemplar(watched):
    """A client chooses its trace, and whether it is recorded."""
    deployment = watched.deployments["split"]
    traces = {flags: secrets.token_hex(16) for flags in ("01", "00")}
    for flags in ("00", "01"):
        # Longer than any other, so that it is its bucket's last.
        answer = deployment.client.post("/v1/completions", headers={"traceparent": f"00-{traces[flags]}-{secrets.token_hex(8)}-{flags}"},
                                        json={"prompt": [17] * 700, "max_tokens": 8, "ignore_eos": True})
        assert answer.status_code == 200, answer.text
    text = httpx.get(deployment.metrics_urls["router"], headers=OPENMETRICS, timeout=PATIENCE).text
    assert traces["01"] in text and traces["00"] not in text
    query = 'millrace_request_prompt_tokens_bucket{namespace="split"}'
    wait_for(lambda: traces["01"] in {e["labels"]["trace_id"] for _, e in exemplars(watched.prometheus, query, time.time())},
             "the client's own trace")
    # By protobuf, too: a Prometheus that keeps native histograms has no buckets' series.
    query = 'millrace_request_prompt_tokens{namespace="split"}'
    wait_for(lambda: exemplars(watched.native, query, time.time()), "exemplars of a native histogram")


def exemplars(prometheus, query, until=None):
    """(labels, exemplar) each."""
    # A second more than was watched: scrapes come after what they tell of.
    found = prometheus.api("/api/v1/query_exemplars", query=query, start=0, end=(until or time.time()) + 1)
    return [(one["seriesLabels"], exemplar) for one in found for exemplar in one["exemplars"]]


def histograms():
    return sorted({name for (_, name), metric in catalogue.read().items() if metric.kind == "histogram"}
                  - {"millrace_operator_reconcile_seconds"})


def test_native_histograms_count_what_classic_ones_count(watched):
    """Once nothing comes any more, both have the same observations: so their counts and sums are the same, and a quantile
    of the one lies where the other has it, within a bucket of each."""
    compared = 0
    for name in histograms():
        for ours, theirs in (("histogram_count({})", "{}_count"), ("histogram_sum({})", "{}_sum")):
            wait_for(lambda: watched.native.now(ours.format(name)) == watched.prometheus.now(theirs.format(name)) != {},
                     f"{theirs.format(name)} to be the same in both")
        native = watched.native.now(f"histogram_quantile(0.95, {name})")
        classic = watched.prometheus.now(f"histogram_quantile(0.95, {name}_bucket)")
        assert native.keys() == classic.keys(), name
        for labels, value in native.items():
            low, high = bucket(watched.prometheus, name, labels, classic[labels])
            # Above the last bound a classic histogram has nothing but that bound.
            assert low / FACTOR <= value <= high * FACTOR, (name, labels, value, classic[labels], (low, high))
            compared += 1
    print(f"{compared} series of {len(histograms())} histograms")


def bucket(prometheus, name, labels, value):
    matchers = ", ".join(f'{k}="{v}"' for k, v in labels)
    bounds = sorted(float(dict(of)["le"]) for of in prometheus.now(f"{name}_bucket{{{matchers}}}"))
    low = max((bound for bound in bounds if bound < value), default=0)
    high = min(bound for bound in bounds if bound >= value)
    return low, float("inf") if high == bounds[-2] else high


@pytest.mark.parametrize("name", ["millrace_time_to_first_token_seconds", "millrace_inter_token_latency_seconds",
                                  "millrace_e2e_request_latency_seconds"])
def test_quantiles_of_rates_agree(watched, name):
    """As a dashboard asks, over all routers: within what the classic buckets, the wider ones, can tell."""
    window = f"{int(watched.end - watched.start)}s"
    [native] = at(watched.native, f"histogram_quantile(0.95, sum(rate({name}[{window}])))", watched.end)
    [classic] = at(watched.prometheus, f"histogram_quantile(0.95, sum by (le) (rate({name}_bucket[{window}])))", watched.end)
    print(f"{name}: p95 native {native:.4f}, classic {classic:.4f}")
    assert 0.7 < native / classic < 1.4


def at(prometheus, query, time):
    return [float(one["value"][1]) for one in prometheus.api("/api/v1/query", query=query, time=time)["result"]]
