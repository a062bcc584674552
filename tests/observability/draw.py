#!/usr/bin/env python3
"""Draws panels of the dashboards for the documents, from their JSON and from what the test's Prometheus answered. It is
not Grafana that draws: there is none here.

  PANELS=panels.json tests/run observability && tests/observability/draw.py panels.json docs/images

It needs matplotlib (bench/requirements.txt).
"""
import json
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.colors import Normalize  # noqa: E402
from matplotlib.ticker import FuncFormatter  # noqa: E402

DASHBOARDS = Path(__file__).resolve().parents[2] / "charts/millrace/dashboards"
# Picture -> dashboard and titles of its panels.
PICTURES = {
    "request-path": ("request-path", ["A mean first token, by where its time went", "Time to first token",
                                      "Prefill worker: computing", "Prefill worker: pages still on their way"]),
    "overview": ("overview", ["Time between tokens", "Sequences", "Tokens", "Sequences at routers"]),
    "experts": ("experts", ["Load of ranks", "Balancedness of layers", "Balancedness", "Epoch"]),
    "transfer": ("transfer", ["Bytes sent", "Time of a page", "What transfer adds", "Leases"]),
}
# Rates need a few scrapes to begin with, in seconds.
SETTLED = 8


def scaled(unit):
    """How a unit's numbers are written on an axis."""
    def bytes_(x, _):
        step = next((s for s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if abs(x) >= s[1]), ("B", 1))
        return f"{x / step[1]:g} {step[0]}"

    def seconds(x, _):
        return "0" if x == 0 else f"{x:g} s" if abs(x) >= 1 else f"{x * 1e3:g} ms" if abs(x) >= 1e-3 else f"{x * 1e6:g} us"

    return {"s": seconds, "percentunit": lambda x, _: f"{x * 100:g} %", "Bps": lambda x, at: bytes_(x, at) + "/s",
            "bytes": bytes_, "reqps": lambda x, _: f"{x:g}/s", "ops": lambda x, _: f"{x:g}/s"}.get(unit, lambda x, _: f"{x:g}")


def legend(target, labels):
    return re.sub(r"\{\{(\w+)\}\}", lambda name: labels.get(name[1], ""), target["legendFormat"])


def draw(axes, panel, answers, start):
    unit = panel["fieldConfig"]["defaults"]["unit"]
    named = [(legend(target, labels), [(t - start, v) for t, v in values if t - start >= SETTLED])
             for target in panel["targets"] for labels, values in answers[panel["id"], target["refId"]]]
    # What stays at nothing has no line to see.
    named = [(name, values) for name, values in named if any(v for _, v in values)] or named[:1]
    if panel["type"] == "heatmap":
        named.sort(key=lambda one: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", one[0])])
    axes.set_title(panel["title"], fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    axes.set_xlabel("seconds", fontsize=7)
    if panel["type"] == "heatmap":
        heatmap(axes, named, scaled(unit))
        return
    axes.yaxis.set_major_formatter(FuncFormatter(scaled(unit)))
    axes.grid(alpha=0.3)
    if panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal":
        times = sorted({t for _, values in named for t, _ in values})
        rows = [[max(dict(values).get(t, 0), 0) for t in times] for _, values in named]
        axes.stackplot(times, rows, labels=[name for name, _ in named], alpha=0.8)
    else:
        for name, values in named:
            axes.plot(*zip(*values), label=name, linewidth=1)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)  # room for the legend
    axes.legend(fontsize=6, loc="upper left", ncols=1 + (len(named) > 6), framealpha=0.7)


def heatmap(axes, named, write):
    times = sorted({t for _, values in named for t, _ in values})
    cells = [[dict(values).get(t, float("nan")) for t in times] for _, values in named]
    known = [v for row in cells for v in row if v == v]
    drawn = axes.imshow(cells, aspect="auto", cmap="RdYlGn", norm=Normalize(min(known), max(known)), interpolation="none",
                        extent=(times[0], times[-1], len(cells) - 0.5, -0.5))
    axes.set_yticks(range(len(named)), [name for name, _ in named])
    bar = axes.figure.colorbar(drawn, ax=axes, format=FuncFormatter(write))
    bar.ax.tick_params(labelsize=7)


def main():
    data, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for picture, (dashboard, titles) in PICTURES.items():
        panels = {panel["title"]: panel for panel in json.loads((DASHBOARDS / f"{dashboard}.json").read_text())["panels"]}
        answers = {(one["panel"], one["target"]): one["series"] for one in data["asked"] if one["dashboard"] == dashboard}
        figure, grid = pyplot.subplots(2, 2, figsize=(11, 6.5), layout="constrained")
        for axes, title in zip(grid.flat, titles, strict=True):
            draw(axes, panels[title], answers, data["start"])
        file = folder / f"{picture}.png"
        figure.savefig(file, dpi=90)
        pyplot.close(figure)
        print(f"{file}: {file.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
