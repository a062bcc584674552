"""The way of a request: correct answers, through split workers, streamed and cancelled."""
import json
import os
import random
import threading
import time
from pathlib import Path

import httpx

from deployment import PATIENCE, TRANSFER, Deployment, body, idle, wait_for

QUESTIONS = {
    "What is 2718 + 3141?": "5859",
    "Subtract 17 from 95.": "78",
    "Sort these words alphabetically: stone, apple, river": "apple, river, stone",
    "Reverse the word stone.": "enots",
}


def test_answers_are_right_and_came_through_split_workers(split):
    remote, moved = (lambda: split.total("millrace_remote_prefills_total", "decode-0")), (lambda: split.total("millrace_transfer_bytes_total", transport=TRANSFER or "shm"))
    remote_before, moved_before = remote(), moved()
    for question, answer in QUESTIONS.items():
        message = split.chat(question)["choices"][0]["message"]
        assert message["content"].strip() == answer
        assert message["reasoning_content"]
    # The prompts were computed elsewhere and their pages moved.
    assert remote() - remote_before == len(QUESTIONS)
    assert moved() > moved_before


def test_aggregated_gives_the_same_tokens(split, aggregated):
    rng = random.Random(7)
    for length in (1, 2, 63, 64, 65, 300, 1000):
        prompt = [rng.randrange(10, 2000) for _ in range(length)]
        assert split.tokens(prompt, 24) == aggregated.tokens(prompt, 24), f"prompt of {length} tokens"


def test_mtp_changes_no_token(split):
    with Deployment("--no-mtp") as plain:
        for question, answer in QUESTIONS.items():
            assert plain.chat(question)["choices"] == split.chat(question)["choices"]


def test_more_workers_and_tcp_give_the_same_answers():
    with Deployment("--prefill", "2", "--decode", "2", "--transfer", "tcp", "--local-prefill-tokens", "0") as wide:
        assert {role: len(pids) for role, pids in wide.pids().items()} == {"router": 1, "prefill": 2, "decode": 2}
        for question, answer in QUESTIONS.items():
            assert wide.chat(question)["choices"][0]["message"]["content"].strip() == answer
        assert wide.total("millrace_transfer_bytes_total", transport="tcp") > 0


def test_nobody_spins_while_there_is_nothing_to_do(split):
    def ticks():
        # Time in user and in kernel mode, of each process.
        stats = {pid: Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pids in split.pids().values() for pid in pids}
        return {pid: int(fields[11]) + int(fields[12]) for pid, fields in stats.items()}
    wait_for(lambda: idle(split), "all requests to end")
    before, seconds = ticks(), 5
    time.sleep(seconds)
    after, second = ticks(), os.sysconf("SC_CLK_TCK")
    for pid, used in before.items():
        assert after[pid] - used < 0.3 * seconds * second, f"process {pid} used {(after[pid] - used) / second} s in {seconds} s of idleness"


def stream(deployment, question, **fields):
    with deployment.client.stream("POST", "/v1/chat/completions", json=body(question, stream=True, **fields)) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))


def test_a_stream_says_the_same_as_a_whole_answer(split):
    question = "What is 2718 + 3141?"
    whole = split.chat(question)
    chunks = list(stream(split, question, stream_options={"include_usage": True}))
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    message = whole["choices"][0]["message"]
    for part in ("content", "reasoning_content"):
        assert "".join(delta.get(part) or "" for delta in deltas) == message[part]
    assert len(deltas) > 5, "it came in pieces"
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_cancelled_requests_give_their_pages_back(split):
    def vanish(seed):
        # A client of its own, so that closing the response closes the connection.
        with httpx.Client(base_url=f"http://{split.http}", timeout=PATIENCE) as client:
            fields = {"prompt": [10 + seed] * 200, "max_tokens": 3000, "ignore_eos": True, "stream": True, "temperature": 0}
            with client.stream("POST", "/v1/completions", json=fields) as answer:
                next(answer.iter_lines())

    threads = [threading.Thread(target=vanish, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for(lambda: idle(split), "all pages to come back")
    assert split.chat("Subtract 17 from 95.")["choices"][0]["message"]["content"].strip() == "78"


def test_the_same_prompt_again_hits_the_prefix_cache(split):
    prompt = [random.Random(11).randrange(10, 2000) for _ in range(400)]
    cached = lambda: split.client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1, "temperature": 0}).json()["usage"]
    cached()
    assert cached()["prompt_tokens_details"]["cached_tokens"] >= 384
