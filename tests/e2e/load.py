"""Sixteen concurrent streams of tokens, and what each of them has received when."""
import asyncio
import random
import re
import time

import openai

from deployment import PATIENCE

STREAMS = 16
TOKENS = 120


def requests():
    """Prompts of all lengths, half of them greedy and half sampled with a seed."""
    rng = random.Random(3)
    for n in range(STREAMS):
        prompt = [rng.randrange(10, 2000) for _ in range(rng.choice([3, 60, 64, 200, 600, 900]))]
        yield {"prompt": prompt, "temperature": 0 if n % 2 else 0.8, "seed": n}


class Load:
    """One run of all requests against a deployment, or against whatever serves HTTP at `http`."""

    def __init__(self, http, salt, tokens=TOKENS, again=False):
        # Another salt, and no prefix cache helps: prompts are prefilled in every round.
        self.salt = str(salt)
        # Of each answer.
        self.tokens = tokens
        # Whether streams ask anew when their answer has ended, until somebody says no.
        self.again = again
        # No retries in the client: what it sees is what the server sent.
        self.client = openai.AsyncOpenAI(base_url=f"http://{http}/v1", api_key="-", max_retries=0, timeout=PATIENCE)
        self.asked = [0] * STREAMS
        # What logs call the requests that have no whole answer yet: now, and when the load was disturbed.
        self.open = set()
        self.open_then = set()
        # Of all answers of a stream.
        self.received = [[] for _ in range(STREAMS)]
        self.arrivals = [[] for _ in range(STREAMS)]
        self.news = asyncio.Event()

    def request_id(self, n):
        """What logs call the first request of stream `n`."""
        return f"{self.salt.replace(' ', '-')}.{n}"

    async def one(self, n, request):
        name, salt = self.request_id(n), self.salt
        if self.asked[n]:
            name, salt = f"{name}.{self.asked[n]}", f"{salt} {self.asked[n]}"
        self.asked[n] += 1
        self.open.add(name)
        stream = await self.client.completions.create(
            model="tiny-r1", max_tokens=self.tokens, stream=True, logprobs=0,
            extra_body={"ignore_eos": True, "return_tokens_as_token_ids": True, "cache_salt": salt},
            extra_headers={"x-request-id": name}, **request)
        async for chunk in stream:
            for choice in chunk.choices:
                self.received[n] += choice.logprobs.tokens if choice.logprobs else []
                self.arrivals[n].append(time.monotonic())
                self.news.set()
        self.open.remove(name)

    async def one_after_another(self, n, request):
        await self.one(n, request)
        while self.again:
            await self.one(n, request)

    async def run(self, disturb=None):
        async with asyncio.timeout(4 * PATIENCE), self.client:
            async with asyncio.TaskGroup() as group:
                for n, request in enumerate(requests()):
                    group.create_task(self.one_after_another(n, request))
                if disturb:
                    group.create_task(disturb)
        return self.received

    async def until(self, tokens):
        """Waits until the clients have this many tokens in all."""
        while sum(map(len, self.received)) < tokens:
            self.news.clear()
            await self.news.wait()

    def gaps(self):
        """The longest time between two tokens of each stream, in seconds."""
        return [max((b - a for a, b in zip(times, times[1:])), default=0.0) for times in self.arrivals]


def hidden(deployment):
    """Failures that the router has hidden from clients so far."""
    return sum(deployment.total(f"millrace_router_{name}_total", "router") for name in ("replays", "prefill_retries"))


def failed(deployment):
    """Requests of which the router's log says that a worker failed them."""
    return set(re.findall(r'request_id="([^"]+)"\}: \S+ attempt failed', "".join(deployment.log)))


def run(deployment, salt, tokens=TOKENS):
    return asyncio.run(Load(deployment.http, salt, tokens).run())


def run_and_disturb(http, salt, when, disturb, tokens=TOKENS, again=False):
    """Calls `disturb` once the clients have `when` tokens. Gives the load, whose streams have ended; with `again` they
    ask anew until then.

    It may block: every client's tokens are still there to be read after it.
    """
    async def main():
        load = Load(http, salt, tokens, again)

        async def disturb_then():
            await load.until(when)
            load.open_then = set(load.open)
            await asyncio.to_thread(disturb)
            load.again = False

        await load.run(disturb_then())
        return load

    return asyncio.run(main())


def assert_same(load, reference, what):
    """`reference` has as many tokens a stream as an answer of the load, or more."""
    received, asked, tokens = load, [1] * STREAMS, TOKENS
    if isinstance(load, Load):
        received, asked, tokens = load.received, load.asked, load.tokens
    for n, (got, wanted) in enumerate(zip(received, reference, strict=True)):
        assert got == wanted[:tokens] * asked[n], f"{what}, stream {n}"
