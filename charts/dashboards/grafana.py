"""Grafana's dashboards as JSON, from as few words as they need: a dashboard is rows, a row is panels, a panel is
queries."""

DATASOURCE = {"type": "prometheus", "uid": "$datasource"}
WIDTH, HEIGHT = 24, 8


# ---- queries --------------------------------------------------------------------------------------

def selector(*matchers):
    return "{" + ", ".join(matchers) + "}"


OF_MODEL = ('namespace=~"$namespace"', 'model_name=~"$model"')
# The same names mean different things in a router and in a worker of either role: every query is of one of them.
ROUTER = selector(*OF_MODEL, 'role=""')
PREFILL = selector(*OF_MODEL, 'role="prefill"')
DECODE = selector(*OF_MODEL, 'role="decode"')


def also(selected, *matchers):
    """A selector with more matchers."""
    return selected[:-1] + "".join(f", {matcher}" for matcher in matchers) + "}"


def rate(metric, selected, by=""):
    return f"sum{by and f' by ({by})'} (rate({metric}{selected}[$__rate_interval]))"


def quantile(q, metric, selected, by=""):
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', selected, ', '.join(filter(None, ['le', by])))})"


def quantiles(metric, selected, *qs):
    """Targets: quantiles over all processes that are selected."""
    return [(quantile(q, metric, selected), f"p{q * 100:g}") for q in qs or (0.5, 0.9, 0.99)]


def share(part, whole):
    """Nothing instead of a division by zero where nothing happens."""
    return f"{part} / ({whole} > 0)"


# ---- panels ---------------------------------------------------------------------------------------

class Panel:
    """`targets`: (query, legend) each."""

    def __init__(self, title, description, unit, targets, kind="timeseries", width=8, stack=False, most=None):
        self.title, self.description, self.unit, self.targets = title, description, unit, targets
        self.kind, self.width, self.stack, self.most = kind, width, stack, most

    def json(self, number, x, y):
        defaults = {"unit": self.unit, "min": 0}
        if self.most is not None:
            defaults["max"] = self.most
        if self.kind == "timeseries":
            defaults["custom"] = {"fillOpacity": 30 if self.stack else 0, "showPoints": "never",
                                  "stacking": {"mode": "normal" if self.stack else "none"}}
        queries = [{"refId": chr(ord("A") + i), "datasource": DATASOURCE, "expr": expr, "legendFormat": legend}
                   for i, (expr, legend) in enumerate(self.targets)]
        if self.kind in ("stat", "table"):
            for query in queries:
                query["instant"] = True
        if self.kind == "table":
            for query in queries:
                query["format"] = "table"
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": HEIGHT},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": OPTIONS[self.kind],
            "targets": queries,
        }


# Grafana's defaults are written out where it needs a field: without `showLegend` it shows none.
OPTIONS = {
    "timeseries": {"legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
                   "tooltip": {"mode": "multi", "sort": "desc"}},
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none", "graphMode": "none"},
    "table": {"frameIndex": 0, "showHeader": True},
    # A row a series, coloured by its value.
    "heatmap": {"calculate": False, "cellGap": 0, "showValue": "never",
                "color": {"mode": "scheme", "scheme": "RdYlGn", "steps": 64, "reverse": False, "fill": "dark-orange",
                          "exponent": 0.5},
                "exemplars": {"color": "rgba(255,0,255,0.7)"}, "yAxis": {"axisPlacement": "left"}, "legend": {"show": True},
                "tooltip": {"mode": "single"}},
}


# ---- dashboards -----------------------------------------------------------------------------------

def variable(name, label, query):
    """Chosen from what Prometheus knows; all of it at first."""
    return {"name": name, "label": label, "type": "query", "datasource": DATASOURCE,
            "query": {"query": query, "refId": name}, "includeAll": True, "multi": True, "allValue": ".*",
            "current": {"text": "All", "value": "$__all"}, "refresh": 2}


def choice(name, label, values, chosen):
    """Of a few values."""
    return {"name": name, "label": label, "type": "custom", "query": ",".join(values),
            "options": [{"text": value, "value": value, "selected": value == chosen} for value in values],
            "current": {"text": chosen, "value": chosen}}


def of_models(metric="millrace_router_workers"):
    return [variable("namespace", "Namespace", f"label_values({metric}, namespace)"),
            variable("model", "Model", f'label_values({metric}{{namespace=~"$namespace"}}, model_name)')]


def dashboard(name, title, description, variables, rows):
    """`rows`: title -> panels, which are laid out from left to right."""
    panels, y = [], 0
    for row, members in rows.items():
        panels.append({"id": len(panels) + 1, "type": "row", "title": row, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}})
        x, y = 0, y + 1
        for panel in members:
            if x + panel.width > WIDTH:
                x, y = 0, y + HEIGHT
            panels.append(panel.json(len(panels) + 1, x, y))
            x += panel.width
        y += HEIGHT
    datasource = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return {
        "uid": f"millrace-{name}",
        "title": f"Millrace: {title}",
        "description": description,
        "tags": ["millrace"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [{"type": "dashboards", "title": "Millrace", "tags": ["millrace"], "asDropdown": True, "keepTime": True,
                   "includeVars": True, "targetBlank": False, "icon": "external link", "tooltip": ""}],
        "annotations": {"list": []},
        "templating": {"list": [datasource, *variables]},
        "panels": panels,
    }
