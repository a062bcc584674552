"""Every query of every panel and alert, asked of a real Prometheus that scrapes real deployments under load."""
import json
import os
import re
from pathlib import Path

import catalogue
import expressions

# Queries by a part of their text that no deployment on one machine has data for, and why.
ELSEWHERE = {
    "millrace_autoscaler_": "the operator has these, too",
    "millrace_operator_": "there is no operator without a Kubernetes cluster (tests/cluster has one)",
}


def elsewhere(query):
    return next((why for text, why in ELSEWHERE.items() if text in query), None)


def test_every_panel_has_data(watched):
    empty, asked = [], []
    for dashboard, panel in expressions.panels():
        for target in panel["targets"]:
            query = expressions.filled(target["expr"])
            series = watched.range(query)
            if not series and not elsewhere(query):
                empty.append(f"{dashboard}: {panel['title']}: {query}")
            asked.append({"dashboard": dashboard, "panel": panel["id"], "target": target["refId"], "series": series})
    assert not empty, "\n".join(empty)
    # For tests/observability/draw.py.
    if out := os.environ.get("PANELS"):
        Path(out).write_text(json.dumps({"start": watched.start, "end": watched.end, "asked": asked}))
    print(f"{len(asked)} queries of {len(list(expressions.panels()))} panels; "
          f"{sum(bool(elsewhere(one['expr'])) for _, panel in expressions.panels() for one in panel['targets'])} of them "
          "could have no data here")


def test_every_variable_has_values(watched):
    for dashboard, query in expressions.variables():
        metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()
        if not elsewhere(query):
            assert watched.range(f"count by ({label}) ({expressions.filled(metric)})"), f"{dashboard}: {query}"


def test_every_side_of_an_alert_has_data(watched):
    """An alert whose metrics are not there can never fire."""
    empty, asked = [], 0
    for rule in expressions.rules():
        for operand in expressions.operands(rule["expr"]):
            # Within a test there are no minutes.
            operand = re.sub(r"\[\d+[mh]:1m\]", "[15s:1s]", operand)
            asked += 1
            if not watched.range(operand) and not elsewhere(operand):
                empty.append(f"{rule.get('alert') or rule['record']}: {operand}")
    assert not empty, "\n".join(empty)
    print(f"{asked} sides of {len(list(expressions.rules()))} rules")


def test_prometheus_evaluates_the_rules_and_nothing_is_critical(watched):
    rules = watched.prometheus.rules()
    assert {rule["name"] for rule in rules} == {rule.get("alert") or rule["record"] for rule in expressions.rules()}
    for rule in rules:
        assert rule["health"] == "ok", rule
        # Late tokens are this machine's to say.
        if rule["type"] == "alerting" and rule["labels"]["severity"] == "critical" and "Late" not in rule["name"]:
            assert rule["state"] == "inactive", rule


def test_names_are_in_the_catalogue():
    """For queries without data here this is all that says that their metrics exist."""
    known = {name for _, name in catalogue.read()}
    asked = [target["expr"] for _, panel in expressions.panels() for target in panel["targets"]]
    for query in [*asked, *(rule["expr"] for rule in expressions.rules())]:
        assert expressions.metrics(query) <= known, query


def test_roles_are_never_mixed():
    """A name that several roles have means something else in each. A query says which, or keeps them apart."""
    roles = {}
    for process, name in catalogue.read():
        roles.setdefault(name, set()).add(process)
    for dashboard, panel in expressions.panels():
        for target in panel["targets"]:
            query = target["expr"]
            for metric, matchers in expressions.selected(query):
                of = roles[re.sub(expressions.ENDINGS, "", metric)]
                if len(of) > 1 and metric.startswith("millrace_") and metric != "millrace_build_info":
                    apart = re.search(r'\brole="(|prefill|decode|\$role)"', matchers) or "{{role}}" in target["legendFormat"]
                    assert apart, f"{dashboard}: {panel['title']}: {query}"


def test_what_is_called_transfer_is_the_transfer_layers_own():
    """What passes between a router's call and a worker's first token is not the time that pages were on their way."""
    for dashboard, panel in expressions.panels():
        for target in panel["targets"]:
            words = f"{panel['title']} {target['legendFormat']}".lower()
            if "transfer" in words or "on their way" in words or "on the wire" in words:
                names = {name for name, _ in expressions.selected(target["expr"])}
                times = {name for name in names if "_seconds" in name and not name.endswith("_count")}
                assert all("_transfer_" in name for name in times or names), f"{dashboard}: {panel['title']}: {names}"
