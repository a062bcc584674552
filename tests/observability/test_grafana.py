"""Dashboards, held against Grafana's own schema by a program of its developers' library (grafana/)."""
import json
import os
import subprocess
from pathlib import Path

import pytest

DASHBOARDS = sorted((Path(__file__).parents[2] / "charts/millrace/dashboards").glob("*.json"))


def schema(*paths):
    return subprocess.run([os.environ["GRAFANA_SCHEMA"], *paths], capture_output=True, text=True, check=False)


def test_dashboards_are_what_grafana_reads():
    assert DASHBOARDS
    checked = schema(*DASHBOARDS)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(("change", "complaint"), [
    (lambda panel: panel.update(colour="blue"), "colour"),
    (lambda panel: panel["options"]["legend"].pop("showLegend"), "showLegend"),
    (lambda panel: panel["gridPos"].update(w="wide"), "gridPos"),
])
def test_others_are_not(change, complaint, tmp_path):
    dashboard = json.loads(DASHBOARDS[0].read_text())
    change(next(panel for panel in dashboard["panels"] if panel["type"] == "timeseries"))
    changed = tmp_path / "dashboard.json"
    changed.write_text(json.dumps(dashboard))
    checked = schema(changed)
    assert checked.returncode == 1 and complaint in checked.stdout, checked.stdout
