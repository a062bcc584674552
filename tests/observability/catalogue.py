"""docs/metrics.md, read again."""
import re
from typing import NamedTuple

from deployment import REPOSITORY

PROCESSES = {
    "Every process": ("router", "prefill", "decode", "operator"),
    "Router": ("router",),
    "Prefill and decode workers": ("prefill", "decode"),
    "Prefill worker": ("prefill",),
    "Decode worker": ("decode",),
    "Operator": ("operator",),
}


class Metric(NamedTuple):
    kind: str
    # Label -> its values, or None where they are not listed.
    labels: dict


def read():
    """(process, name) -> metric."""
    found, processes = {}, ()
    for line in (REPOSITORY / "docs/metrics.md").read_text().splitlines():
        if line.startswith("## "):
            processes = PROCESSES.get(line[3:], ())
        elif processes and (cells := re.fullmatch(r"\| `(\w+)` \| (\w+) \| (.*?) \| .*", line)):
            name, kind, labels = cells.groups()
            labels = {label: set(values.split(", ")) if values else None
                      for label, values in re.findall(r"`(\w+)`(?: \(([^)]*)\))?", labels)}
            for process in processes:
                found[process, name] = Metric(kind, labels)
    return found
