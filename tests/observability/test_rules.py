"""The chart's rules by Prometheus' own tool: they can be read, and each alert fires when it should and does not when it
should not. Each has a runbook."""
import re
import subprocess
from pathlib import Path

import expressions
import yaml
from deployment import REPOSITORY

TESTS = Path(__file__).parent / "alerts"
RUNBOOKS = REPOSITORY / "docs/runbooks"


def promtool(*arguments):
    ran = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def alerts():
    return [rule for rule in expressions.rules() if "alert" in rule]


def test_rules_are_rules():
    promtool("check", "rules", *sorted((REPOSITORY / "charts/millrace/alerts").glob("*.yaml")))


def test_each_alert_fires_when_it_should():
    promtool("test", "rules", *sorted(TESTS.glob("*.yaml")))


def test_each_alert_is_tested_both_ways():
    fires, quiet = set(), set()
    for file in TESTS.glob("*.yaml"):
        for test in yaml.load(file.read_text(), yaml.CSafeLoader)["tests"]:
            for asked in test["alert_rule_test"]:
                severities = {(asked["alertname"], alert["exp_labels"]["severity"]) for alert in asked["exp_alerts"]}
                fires |= severities
                if not severities:
                    quiet.add(asked["alertname"])
    assert fires == {(alert["alert"], alert["labels"]["severity"]) for alert in alerts()}
    assert quiet == {alert["alert"] for alert in alerts()}


def test_each_alert_has_a_runbook():
    for alert in alerts():
        assert alert["annotations"]["runbook"] == f"docs/runbooks/{alert['alert']}.md"
    runbooks = {file.stem for file in RUNBOOKS.glob("Millrace*.md")}
    assert runbooks == {alert["alert"] for alert in alerts()}
    for name in runbooks:
        sections = re.findall(r"^## (.*)$", (RUNBOOKS / f"{name}.md").read_text(), re.M)
        assert sections == ["What it means", "How to look", "What to do"], name
