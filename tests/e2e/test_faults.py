"""SIGKILL of workers under load, over and over: no client sees an error or a wrong token, nothing leaks.

FAULT_ROUNDS kills of each role (default 10: twenty in all).
"""
import asyncio
import os
import random
import signal

import openai
import pytest

from deployment import PATIENCE, Deployment, idle, wait_for

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "10"))
STREAMS = 16
TOKENS = 120


def requests():
    """Prompts of all lengths, half of them greedy and half sampled with a seed."""
    rng = random.Random(3)
    for n in range(STREAMS):
        prompt = [rng.randrange(10, 2000) for _ in range(rng.choice([3, 60, 64, 200, 600, 900]))]
        yield {"prompt": prompt, "temperature": 0 if n % 2 else 0.8, "seed": n}


class Load:
    """Sixteen concurrent streams, and what each of them has received so far."""

    def __init__(self, deployment, salt):
        # Another salt, and no prefix cache helps: prompts are prefilled in every round.
        self.salt = str(salt)
        # No retries in the client: what it sees is what the server sent.
        self.client = openai.AsyncOpenAI(base_url=f"http://{deployment.http}/v1", api_key="-", max_retries=0, timeout=PATIENCE)
        self.received = [[] for _ in range(STREAMS)]
        self.news = asyncio.Event()

    async def one(self, n, request):
        stream = await self.client.completions.create(
            model="tiny-r1", max_tokens=TOKENS, stream=True, logprobs=0,
            extra_body={"ignore_eos": True, "return_tokens_as_token_ids": True, "cache_salt": self.salt}, **request)
        async for chunk in stream:
            for choice in chunk.choices:
                self.received[n] += choice.logprobs.tokens if choice.logprobs else []
                self.news.set()

    async def run(self, disturb=None):
        async with asyncio.timeout(4 * PATIENCE), self.client:
            async with asyncio.TaskGroup() as group:
                for n, request in enumerate(requests()):
                    group.create_task(self.one(n, request))
                if disturb:
                    group.create_task(disturb)
        return self.received

    async def until(self, tokens):
        """Waits until the clients have this many tokens in all."""
        while sum(map(len, self.received)) < tokens:
            self.news.clear()
            await self.news.wait()


def run(deployment, salt):
    return asyncio.run(Load(deployment, salt).run())


def run_and_kill(deployment, role, when, rng, salt):
    async def main():
        load = Load(deployment, salt)

        async def kill():
            await load.until(when)
            os.kill(rng.choice(deployment.pids()[role]), signal.SIGKILL)

        return await load.run(kill())

    return asyncio.run(main())


def hidden(deployment):
    """Failures that the router has hidden from clients so far."""
    return sum(deployment.total(f"millrace_router_{name}_total", "router") for name in ("replays", "prefill_retries"))


def workers_up(deployment):
    return lambda: all(deployment.total("millrace_router_workers", "router", role=role) == len(pids)
                       for role, pids in deployment.pids().items() if role != "router")


@pytest.fixture(scope="module", params=["1+1", "2+2"])
def deployment(request):
    prefill, decode = request.param.split("+")
    # Small enough a pool that leaked pages would be missed soon.
    flags = ["--prefill", prefill, "--decode", decode, "--kv-pages", "400", "--local-prefill-tokens", "0"]
    with Deployment(*flags, "--max-model-len", "2048") as deployment:
        deployment.reference = run(deployment, "reference")
        assert all(len(tokens) == TOKENS for tokens in deployment.reference)
        yield deployment


def test_the_same_load_twice_gives_the_same_tokens(deployment):
    assert run(deployment, "again") == deployment.reference


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_killing_a_worker_is_not_seen_by_clients(deployment, role):
    rng = random.Random(role)
    for round_ in range((ROUNDS + 1) // 2):  # half of them on each deployment
        # Prefill matters early in the load, decode throughout.
        when = rng.randrange(1, STREAMS) if role == "prefill" else rng.randrange(1, STREAMS * TOKENS * 3 // 4)
        before = hidden(deployment)
        received = run_and_kill(deployment, role, when, rng, f"{role} {round_}")
        for n, (got, wanted) in enumerate(zip(received, deployment.reference)):
            assert got == wanted, f"round {round_}, stream {n}: killed {role} after {when} tokens"
        wait_for(workers_up(deployment), "the killed worker to be back")
        wait_for(lambda: idle(deployment), "all pages to come back")
        went_on = hidden(deployment) - before
        assert went_on > 0, "the kill came early enough to hit something"
        print(f"killed {role} after {when} tokens: 16 of 16 streams right, {went_on:.0f} sequences went on elsewhere")
