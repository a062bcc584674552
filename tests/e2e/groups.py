"""What tests ask of expert-parallel groups: the router's /experts, and which process is which rank."""
from pathlib import Path

import httpx

from deployment import PATIENCE


def experts(http):
    """The parsed body of GET /experts."""
    answer = httpx.get(f"http://{http}/experts", timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    return answer.json()


def group(http, name="decode-0"):
    """One group of it; None before its ranks have attached."""
    return next((group for group in experts(http)["groups"] if group["group"] == name), None)


def epoch(http, name="decode-0"):
    return group(http, name)["epoch"]["number"]


def whole(http, name="decode-0"):
    """Whether every rank is a member, computes under the latest epoch, and nothing is being changed."""
    def holds():
        found = group(http, name)
        return bool(found and found["state"] == "whole" and found["plan"] is None
                    and len(found["ranks"]) == found["shape"]["ranks"]
                    and all(rank["adopted"] == found["epoch"]["number"] for rank in found["ranks"]))
    return holds


def rank_pids(parent, name="decode-0"):
    """Rank -> pid of the processes that `parent` has started for this group."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rsplit(")", 1)[1].split()[1]) != parent:
                continue
            command = (status.parent / "cmdline").read_bytes().decode().split("\0")
        except OSError:  # it has ended meanwhile
            continue
        flags = dict(zip(command, command[1:]))
        if flags.get("--group") == name:
            found[int(flags["--rank"])] = int(status.parent.name)
    return found


def balancedness(computed):
    """Of `[rank][layer]` counts: the sum of the layers' means over the sum of their highest; 1 is even."""
    layers = list(zip(*computed, strict=True))
    return sum(sum(layer) / len(layer) for layer in layers) / max(1, sum(max(layer) for layer in layers))
