"""What panels and alerts ask Prometheus, and what can be told from the text of a query."""
import json
import re

import yaml

from deployment import REPOSITORY

# Of a histogram's series.
ENDINGS = "_(bucket|sum|count)$"
CHART = REPOSITORY / "charts/millrace"
# As Grafana fills them in: everything is chosen.
VARIABLES = {"namespace": ".*", "model": ".*", "pod": ".*", "group": ".*", "ttft": "2", "itl": "0.1", "role": "decode",
             "autoscaler": ".*", "__rate_interval": "15s"}


def panels():
    """(dashboard, panel) of every panel with queries."""
    for file in sorted(CHART.glob("dashboards/*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            if panel["type"] != "row":
                yield file.stem, panel


def variables():
    """(dashboard, query) of every variable that Prometheus fills."""
    for file in sorted(CHART.glob("dashboards/*.json")):
        for variable in json.loads(file.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                yield file.stem, variable["query"]["query"]


def rules():
    """Every rule, as it is written."""
    for file in sorted(CHART.glob("alerts/*.yaml")):
        for group in yaml.load(file.read_text(), yaml.CSafeLoader)["groups"]:
            yield from group["rules"]


def filled(query):
    """With the dashboards' variables filled in; one that is not known stays, and Prometheus will say so."""
    return re.sub(r"\$(\w+)", lambda name: VARIABLES.get(name[1], name[0]), query)


def tokens(query):
    """Strings, words, and signs, of which two make one operator."""
    return re.findall(r'"(?:[^"\\]|\\.)*"|[a-zA-Z_:][\w:]*|[\d.]+\w*|=~|!~|[=!<>]=|\s+|.', query)


COMPARISONS = {">", "<", ">=", "<=", "==", "!="}
SETS = {"and", "or", "unless"}


def operands(query):
    """The sides of the comparisons and set operators outside of calls and braces: what has to be there for an alert to be
    able to fire. Whole numbers are none."""
    parts, depth, part = [], 0, ""
    for token in tokens(query):
        depth += (token in "([{") - (token in ")]}")
        if depth == 0 and token in COMPARISONS | SETS:
            parts.append(part)
            part = ""
        else:
            part += token
    parts.append(part)
    if len(parts) == 1:
        inner = query.strip()
        return operands(inner[1:-1]) if wrapped(inner) else [inner]
    return [operand for part in parts for operand in operands(part) if not re.fullmatch(r"[\d.* ]+", operand)]


def wrapped(query):
    """Whether one pair of parentheses holds all of it."""
    if not query.startswith("("):
        return False
    depth = 0
    for i, token in enumerate(split := tokens(query)):
        depth += (token == "(") - (token == ")")
        if depth == 0:
            return i == len(split) - 1
    return False


def metrics(query):
    """Names of metrics that it asks for; of histograms without the ending. What rules record is none."""
    return {re.sub(ENDINGS, "", name) for name, _ in selected(query)}


def selected(query):
    """(series, matchers) of every selector."""
    return re.findall(r"(?<![\w:\"])((?:millrace|process)_[a-z0-9_]+)\s*(\{[^}]*\})?", query)
