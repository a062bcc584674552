"""Requests of many kinds at once, until somebody says stop."""
import json
import random
import threading

import httpx

from deployment import PATIENCE

AT_ONCE = 4
OPENINGS = ["What is 2718 + 3141?", "Sort these numbers: 3 1 2.", "Spell it backwards: millrace."]


class Traffic:
    """Against each of `addresses`. Use as a context manager: it ends when its block does."""

    def __init__(self, addresses):
        self.stopped = threading.Event()
        self.failed = []
        self.clients = [threading.Thread(target=self._client, args=(address, seed), daemon=True)
                        for address in addresses for seed in range(AT_ONCE)]

    def __enter__(self):
        for client in self.clients:
            client.start()
        return self

    def __exit__(self, *error):
        self.stopped.set()
        for client in self.clients:
            client.join(PATIENCE)
        if error[0] is None:
            assert not self.failed, self.failed[0]

    def _client(self, address, seed):
        rng = random.Random(seed)
        with httpx.Client(base_url=f"http://{address}/v1", timeout=PATIENCE) as client:
            while not self.stopped.is_set():
                try:
                    rng.choice(KINDS)(client, rng)
                except Exception as failure:  # told by the thread that waits
                    self.failed.append(failure)
                    return


def expect(status, answer):
    assert answer.status_code == status, answer.text


def chat(client, rng):
    messages = [{"role": "user", "content": rng.choice(OPENINGS)}]
    expect(200, client.post("/chat/completions", json={"messages": messages, "max_tokens": 48, "temperature": 0}))


def long_prompt(client, rng):
    """Several pages, half of them seen before."""
    known = [10 + i % 1900 for i in range(256)]
    prompt = known[: rng.choice([128, 256])] + [rng.randrange(10, 2000) for _ in range(rng.choice([64, 200, 400]))]
    expect(200, client.post("/completions", json={"prompt": prompt, "max_tokens": 32, "ignore_eos": True}))


def short_prompt(client, rng):
    prompt = [rng.randrange(10, 2000) for _ in range(8)]
    expect(200, client.post("/completions", json={"prompt": prompt, "max_tokens": 16, "n": 2, "ignore_eos": True}))


def stream(client, rng):
    prompt = [rng.randrange(10, 2000) for _ in range(100)]
    body = {"prompt": prompt, "max_tokens": 64, "stream": True, "ignore_eos": True, "temperature": 0.8}
    with client.stream("POST", "/completions", json=body) as answer:
        lines = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    assert lines[-1]["choices"][0]["finish_reason"] == "length"


def hang_up(client, rng):
    """In the middle of an answer."""
    body = {"prompt": [rng.randrange(10, 2000) for _ in range(80)], "max_tokens": 200, "stream": True, "ignore_eos": True}
    with client.stream("POST", "/completions", json=body) as answer:
        next(answer.iter_lines())


def wrong(client, _rng):
    expect(400, client.post("/completions", json={"prompt": "x", "max_tokens": -1}))


KINDS = [chat, chat, long_prompt, long_prompt, short_prompt, stream, stream, hang_up, wrong]
