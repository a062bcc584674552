"""Traffic of one domain makes some experts hot; replicas and their placement even the ranks' load out."""
import ast
import random
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployment import REPOSITORY, Deployment, wait_for
from groups import balancedness, epoch, experts, whole

sys.path.insert(0, str(REPOSITORY / "models/tiny-r1/train"))
import chat  # noqa: E402  (the model's own tasks)

AT_ONCE = 16
# Of a look at the loads, in seconds.
WINDOW = 2


def chats(count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        question, _, _ = chat.example(rng)
        yield {"messages": [{"role": "user", "content": question}], "temperature": 0}


def sources():
    return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))


def code(count, seed):
    """Stretches of Python's own library, to be gone on with."""
    rng = random.Random(seed)
    files = sources()
    for _ in range(count):
        text = rng.choice(files).read_text(errors="replace")
        start = rng.randrange(max(1, len(text) - 600))
        yield {"prompt": text[start:start + 600] or "import os", "max_tokens": 64, "temperature": 0.8, "seed": rng.randrange(2**31)}


def docs(count, seed):
    """What Python's own library says of itself."""
    rng = random.Random(seed)
    texts = []
    for file in sources():
        doc = ast.get_docstring(ast.parse(file.read_text(errors="replace")))
        if doc and len(doc) > 600:
            texts.append(doc)
    for _ in range(count):
        text = rng.choice(texts)
        start = rng.randrange(len(text) - 500)
        yield {"prompt": text[start:start + 500], "max_tokens": 64, "temperature": 0.8, "seed": rng.randrange(2**31)}


DOMAINS = {"chat": chats, "code": code, "docs": docs}


class Watch:
    """Adds up the windows of load that the router shows while traffic runs."""

    def __init__(self, deployment):
        self.deployment, self.computed, self.last = deployment, None, None

    def look(self):
        load = experts(self.deployment.http)["groups"][0]["load"]
        if load and load != self.last:
            self.last = load
            counts = load["computed"]
            self.computed = counts if self.computed is None else [
                [a + b for a, b in zip(*rows)] for rows in zip(self.computed, counts)]

    def settle(self):
        """Until the last counts have come: ranks send them once a second, each at its own time."""
        end = time.monotonic() + WINDOW + 2
        while time.monotonic() < end:
            time.sleep(WINDOW / 10)
            self.look()


def send(deployment, requests, meanwhile=lambda: None):
    def one(request):
        path = "/v1/chat/completions" if "messages" in request else "/v1/completions"
        answer = deployment.client.post(path, json=request)
        assert answer.status_code == 200, answer.text

    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = [pool.submit(one, request) for request in requests]
        while not all(future.done() for future in running):
            meanwhile()
            time.sleep(WINDOW / 10)
        for future in running:
            future.result()


def measure(ranks, redundant, domain, *flags):
    """Balancedness over the ranks under the domain's traffic, once what there is to move has moved."""
    # One window of nothing but this traffic is enough for the balancer; the measured prompts are others.
    with Deployment("--decode-ranks", str(ranks), "--redundant-experts", str(redundant), "--aggregated",
                    "--balance-interval-seconds", str(WINDOW), *flags) as deployment:
        wait_for(whole(deployment.http), "the group")
        send(deployment, DOMAINS[domain](96, seed=1))
        wait_for(whole(deployment.http), "what was planned to be adopted")
        watch = Watch(deployment)
        watch.settle()
        moved = epoch(deployment.http)
        watch.computed = None  # what came before
        send(deployment, DOMAINS[domain](192, seed=2), watch.look)
        watch.settle()
        return balancedness(watch.computed), moved - 1


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_replicas_of_hot_experts_even_the_load_out(ranks, domain):
    # A gain of 1 is more than there is: experts stay as they are.
    without, _ = measure(ranks, 0, domain, "--balance-min-gain", "1")
    with_replicas, epochs = measure(ranks, ranks, domain)
    print(f"{domain}, {ranks} ranks: balancedness {without:.3f} without replicas, {with_replicas:.3f} with {ranks} "
          f"(experts were moved {epochs} times before it was measured)")
    assert with_replicas >= 0.90
