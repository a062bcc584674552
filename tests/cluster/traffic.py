"""Continuous load through the router's Service, every answer of which is known."""
import asyncio
import json
import random
import threading
import time

import httpx

import cluster  # noqa: F401  (it says where the next one is)
import chat  # the model's own tasks
from kubectl import PATIENCE

MODEL = "tiny-r1"


def questions():
    """Sums, and every second time a stream that goes on past its answer: long enough to be hit by something."""
    rng = random.Random(11)
    for n in range(12):
        question, _, answer = chat.example(rng, "add")
        yield question, answer, {"ignore_eos": True, "max_tokens": 250} if n % 2 else {}


QUESTIONS = list(questions())


class Refused(Exception):
    """The answer is an error."""


class Cut(Exception):
    """The stream ended before its end."""


async def ask(client, base, n):
    """The whole answer to question `n`: reasoning, content and why it ended."""
    question, _, fields = QUESTIONS[n]
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "temperature": 0, "stream": True, **fields}
    reasoning, content, reason = [], [], None
    async with client.stream("POST", f"{base}/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise Refused(f"{answer.status_code}: {(await answer.aread()).decode()}")
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                return "".join(reasoning), "".join(content), reason
            if line.startswith("data: "):
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise Refused(line)
                for choice in chunk["choices"]:
                    reasoning.append(choice["delta"].get("reasoning_content") or "")
                    content.append(choice["delta"].get("content") or "")
                    reason = choice.get("finish_reason") or reason
    raise Cut("the stream ended early")


def first_answer(base, model=MODEL):
    """The first question's content, asked without streaming."""
    answer = httpx.post(f"{base}/v1/chat/completions", timeout=PATIENCE, json={
        "model": model, "temperature": 0, "messages": [{"role": "user", "content": QUESTIONS[0][0]}]}).json()
    return answer["choices"][0]["message"]["content"]


def new_client():
    # A connection a request: each goes wherever the Service sends it now, and none is asked to use a
    # connection that its server is just closing.
    return httpx.AsyncClient(timeout=PATIENCE, limits=httpx.Limits(max_keepalive_connections=0))


def record(base):
    """Asks everything once, and makes sure that sums come out right: the reference of all later answers."""
    async def main():
        async with new_client() as client:
            return [await ask(client, base, n) for n in range(len(QUESTIONS))]

    answers = asyncio.run(main())
    right = sum(answer == content.strip() for (_, answer, more), (_, content, _) in zip(QUESTIONS, answers) if not more)
    assert right >= len(QUESTIONS) // 2 - 1, answers
    return answers


class Traffic(threading.Thread):
    """Load while its block runs. At the end, every request must have got the reference's answer.

    `streams` ask one question after another. With `rate` so many questions a second are asked instead, at random
    times and whether or not others have been answered: streams ask the more the faster they are served.

    `resend`: what a client does whose router dies is not the router's to do. Then a request whose
    connection breaks is sent again; how often is in `resent`.
    """

    def __init__(self, base, reference, streams=4, rate=None, resend=False):
        super().__init__(daemon=True)
        self.base, self.reference, self.streams, self.rate, self.resend = base, reference, streams, rate, resend
        self.over = threading.Event()
        self.asked, self.answered, self.resent, self.failures, self.crashed = 0, 0, 0, [], None

    def __enter__(self):
        self.start()
        try:
            self.more()
        except BaseException:
            self.over.set()
            raise
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.more()
        finally:
            self.over.set()
            self.join()
        if kind is None:
            self.check()
            print(f"{self.answered} requests answered, all of them right; {self.resent} sent again")

    def check(self):
        assert self.crashed is None, self.crashed
        assert not self.failures, f"{len(self.failures)} of {self.answered} requests failed:\n" + "\n".join(self.failures[:10])

    def more(self, patience=PATIENCE):
        """Waits until every stream, or somebody, has had an answer to something that was asked after now."""
        wanted = self.asked + 1 if self.rate else self.answered + 2 * self.streams
        end = time.monotonic() + patience
        while self.answered < wanted:
            self.check()
            assert time.monotonic() < end, f"no answers for {patience} s"
            time.sleep(0.05)

    def run(self):
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self.crashed = error
            raise

    async def _main(self):
        async with new_client() as client, asyncio.TaskGroup() as group:
            if self.rate:
                rng = random.Random(0)
                while not self.over.is_set():
                    group.create_task(self._question(client, rng.randrange(len(QUESTIONS))))
                    await asyncio.sleep(rng.expovariate(self.rate))
            else:
                for stream in range(self.streams):
                    group.create_task(self._stream(client, stream))

    async def _stream(self, client, stream):
        rng = random.Random(stream)
        while not self.over.is_set():
            await self._question(client, rng.randrange(len(QUESTIONS)))
            # Room for everything else on a small machine.
            await asyncio.sleep(0.05)

    async def _question(self, client, n):
        self.asked += 1
        begun = time.strftime("%H:%M:%S")
        while True:
            try:
                answer = await ask(client, self.base, n)
            except (httpx.TransportError, Cut, Refused) as error:
                if self.resend and not isinstance(error, Refused):
                    self.resent += 1
                    await asyncio.sleep(0.1)
                    continue
                answer = f"{type(error).__name__} {error}"
            break
        if answer != self.reference[n]:
            self.failures.append(f"{begun} to {time.strftime('%H:%M:%S')}: {QUESTIONS[n][0]!r}: {answer!r}")
        self.answered += 1
