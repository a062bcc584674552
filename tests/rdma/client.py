"""Asks a deployment again and again; run by guest a, and by serving.py for what is right.

    client.py HTTP METRICS     METRICS: of the decode worker

The answers must be those in $OUT/right.json. Then, ROUNDS times, the prefill worker's network is cut while it sends pages.
What was seen goes to $OUT/seen.json.
"""
import http.client
import json
import os
import random
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

# Longer than anything takes on an emulated processor, unless it hangs.
PATIENCE = 240
# Three or four tokens a second are computed there.
LENGTHS = [20, 65, 130]
TOKENS = 12


def prompt(length, seed):
    return [random.Random(seed * 1000 + length).randrange(10, 2000) for _ in range(length)]


def get(url):
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.netloc, timeout=PATIENCE)
    connection.request("GET", at.path)
    return connection.getresponse().read().decode()


def ask(base, prompt, salt):
    """Tokens, or the status of an error."""
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=PATIENCE)
    connection.request("POST", "/v1/completions", json.dumps({
        "model": "tiny-r1", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "logprobs": 0,
        "return_tokens_as_token_ids": True, "cache_salt": salt}), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    body = json.loads(answer.read())
    return body["choices"][0]["logprobs"]["tokens"] if answer.status == 200 else answer.status


def total(metrics, name, **labels):
    found = 0.0
    for line in get(metrics).splitlines():
        if line.startswith(name) and all(f'{key}="{value}"' in line for key, value in labels.items()):
            found += float(line.rsplit(" ", 1)[1])
    return found


def answers(base, salt):
    return {str(length): ask(base, prompt(length, 1), salt) for length in LENGTHS}


def check(base, right, salt):
    """All answers, asked for again where there was none: a slow machine may be too slow for a deadline."""
    for length in LENGTHS:
        for again in range(5):
            got = ask(base, prompt(length, 1), f"{salt} {again}")
            if isinstance(got, list):
                break
        assert got == right[str(length)], f"{salt}, {length} tokens: {got}"


def until(what, done, patience=PATIENCE):
    began = time.monotonic()
    while True:
        try:
            if done():
                return time.monotonic() - began
        except OSError:
            pass
        if time.monotonic() - began > patience:
            raise SystemExit(f"never: {what}")
        time.sleep(0.2)


def cut(base, metrics, out, round_, right):
    """Cuts the network in the middle of a transfer; gives how long the client waited and what for."""
    before = total(metrics, "millrace_transfer_bytes_total")
    began = time.monotonic()
    (out / f"cut.{round_}").touch()
    got = ask(base, prompt(LENGTHS[1], 1), f"cut {round_}")
    waited = time.monotonic() - began
    until("the network to be back", lambda: (out / f"healed.{round_}").exists())
    healed = time.monotonic()
    tries = 0
    while ask(base, prompt(LENGTHS[0], 1), f"healed {round_} {tries}") != right[str(LENGTHS[0])]:
        tries += 1
        if time.monotonic() - healed > PATIENCE:
            raise SystemExit("never: right answers again")
        time.sleep(0.5)
    recovered = time.monotonic() - healed
    until("all pages to come back", lambda: total(metrics, "millrace_leases_active") == 0)
    assert got == right[str(LENGTHS[1])] or isinstance(got, int), f"wrong tokens: {got}"
    moved = total(metrics, "millrace_transfer_bytes_total") - before
    print(f"cut {round_}: {'answered' if isinstance(got, list) else f'status {got}'} after {waited:.1f} s, "
          f"right again {recovered:.1f} s after the network ({moved:.0f} bytes)", flush=True)
    return waited, recovered


def main(base, metrics):
    out, rounds = Path(os.environ["OUT"]), int(os.environ.get("ROUNDS", "0"))
    until("a deployment that answers", lambda: isinstance(ask(base, prompt(3, 0), "ready"), list))
    right = json.loads((out / "right.json").read_text())
    check(base, right, "first")
    moved = total(metrics, "millrace_transfer_bytes_total", transport="nixl")
    cuts = [cut(base, metrics, out, round_, right) for round_ in range(1, rounds + 1)]
    check(base, right, "last")
    dropped = total(metrics, "millrace_leases_total", state="dropped")
    (out / "seen.json").write_text(json.dumps({"bytes": moved, "cuts": cuts, "dropped leases": dropped}))


if __name__ == "__main__":
    main(*sys.argv[1:])
