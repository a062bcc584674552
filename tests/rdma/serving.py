"""Prefill in one virtual machine, decode in another, pages by RDMA verbs between them (Soft-RoCE).

    tests/run rdma

The answers must be those of one worker on this machine, and the devices' own counters must show that the pages went
through them. Then the network is cut ROUNDS times (default 20) while pages are on their way: no client hangs, no answer
is wrong, no lease is lost.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(REPOSITORY / "tests/e2e"))

import client  # noqa: E402
from deployment import BINARY, Deployment  # noqa: E402

ROUNDS = os.environ.get("ROUNDS", "20")
CUT_SECONDS = "4"
VERBS = "/usr/lib/x86_64-linux-gnu/libibverbs.so.1"


def counters(out, when, role):
    return {name: int(value) for name, value in
            (line.split(":") for line in (out / f"{when}.{role}").read_text().split())}


def main():
    with Deployment("--aggregated") as lone:
        right = client.answers(f"http://{lone.http}", "reference")
    work = Path(os.environ.get("WORK") or tempfile.mkdtemp(prefix="millrace-rdma-"))
    out = work / "out"
    out.mkdir(parents=True, exist_ok=True)
    (out / "right.json").write_text(json.dumps(right))
    (out / "environment").write_text("".join(f"export {name}='{value}'\n" for name, value in {
        "MILLRACE": Path(BINARY).resolve(), "MODEL": REPOSITORY / "models/tiny-r1", "PYTHON": sys.executable,
        "TESTS": REPOSITORY / "tests", "ROUNDS": ROUNDS, "CUT_SECONDS": CUT_SECONDS, "VERBS": VERBS,
        "LD_LIBRARY_PATH": os.environ["LD_LIBRARY_PATH"], "NIXL_PLUGIN_DIR": os.environ["NIXL_PLUGIN_DIR"]}.items()))
    ended = subprocess.run([HERE / "guests", HERE / "in-guest"], env=os.environ | {"WORK": str(work)})
    for name in ("probe.b", "client.log"):
        if (out / name).exists():
            print(f"--- {name}\n{(out / name).read_text()}", end="")
    if ended.returncode != 0:
        for name in ("router.log", "decode.log", "prefill.log"):
            if (out / name).exists():
                print(f"--- {name}\n{(out / name).read_text()[-3000:]}", end="")
        return 1
    result = json.loads((out / "seen.json").read_text())
    assert result["dropped leases"] == 0
    sent = {role: counters(out, "after", role)["sent_pkts"] - counters(out, "before", role)["sent_pkts"] for role in "ab"}
    # Packets of at most 4096 bytes carry the pages from b to a.
    assert sent["b"] * 4096 > result["bytes"] > 0, (sent, result["bytes"])
    waits, recoveries = zip(*result["cuts"]) if result["cuts"] else ((0,), (0,))
    print(f"answers right; {result['bytes']:.0f} bytes of pages by verbs before the cuts, {sent['b']} packets from the "
          f"prefill worker's device in all; {len(result['cuts'])} cuts: clients waited at most {max(waits):.1f} s, right "
          f"answers again at most {max(recoveries):.1f} s after the network")
    return 0


if __name__ == "__main__":
    sys.exit(main())
