"""What users send that cannot be served: each gets a clear error, and nothing is lost or leaked."""
import asyncio
import json
import socket

import httpx
import pytest

from deployment import body, idle, wait_for

NAN = '{"prompt": "x", "max_tokens": 1, "temperature": NaN}'
CASES = {
    # name: (path, body, status, what the message says)
    "prompt longer than the context": ("completions", {"prompt": [20] * 5000, "max_tokens": 1}, 400, "4096"),
    "empty prompt": ("completions", {"prompt": [], "max_tokens": 1}, 400, "prompt"),
    "token id out of range": ("completions", {"prompt": [2048], "max_tokens": 1}, 400, "2048"),
    "negative token id": ("completions", {"prompt": [-1], "max_tokens": 1}, 400, ""),
    "no messages": ("chat/completions", {"messages": []}, 400, "messages"),
    "unknown model": ("chat/completions", body("Hello", model="gpt-17"), 404, "gpt-17"),
    "not JSON": ("completions", b'{"prompt": ', 400, ""),
    "JSON of the wrong shape": ("chat/completions", b'{"messages": 7}', 400, ""),
    "invalid UTF-8": ("completions", b'{"prompt": "\xff\xfe", "max_tokens": 1}', 400, ""),
    "NaN": ("completions", NAN.encode(), 400, ""),
    "infinite temperature": ("completions", b'{"prompt": "x", "max_tokens": 1, "temperature": 1e99}', 400, "temperature"),
    "negative temperature": ("completions", {"prompt": "x", "temperature": -1}, 400, "temperature"),
    "top_p above 1": ("completions", {"prompt": "x", "top_p": 1.5}, 400, "top_p"),
    "max_tokens 0": ("chat/completions", body("Hello", max_tokens=0), 400, "max_tokens"),
    "too many choices": ("completions", {"prompt": "x", "n": 100000}, 400, "n"),
    "oversized body": ("completions", b'{"prompt": "' + b"a" * (64 << 20) + b'"}', 413, ""),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_requests_get_openai_errors(split, name):
    path, content, status, says = CASES[name]
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    answer = split.client.post(f"/v1/{path}", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert says in error["message"] and error["type"] and "code" in error


def test_after_all_that_it_still_serves(split):
    wait_for(lambda: idle(split), "nothing to be held")
    assert split.chat("Subtract 17 from 95.")["choices"][0]["message"]["content"].strip() == "78"


def test_a_thousand_idle_connections_are_in_nobodys_way(split):
    host, port = split.http.split(":")
    idle_connections = [socket.create_connection((host, int(port))) for _ in range(1000)]
    try:
        assert split.chat("Reverse the word stone.")["choices"][0]["message"]["content"].strip() == "enots"
    finally:
        for connection in idle_connections:
            connection.close()
    wait_for(lambda: split.total("process_open_fds", "router") < 500, "the router to close them")


def test_half_a_request_and_then_nothing(split):
    host, port = split.http.split(":")
    for part in (b"", b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(part)
    assert split.chat("Subtract 17 from 95.")["choices"][0]["message"]["content"].strip() == "78"


def test_clients_that_vanish_at_any_moment_leave_nothing_behind(split):
    async def vanish(client, delay):
        fields = {"prompt": [20] * 700, "max_tokens": 2000, "ignore_eos": True, "stream": True}
        try:
            await asyncio.wait_for(client.post("/v1/completions", json=fields), delay)
        except TimeoutError:
            pass

    async def all_of_them():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=f"http://{split.http}", timeout=None, limits=limits) as client:
            await asyncio.gather(*(vanish(client, 0.005 * n) for n in range(48)))

    asyncio.run(all_of_them())
    wait_for(lambda: idle(split), "all pages to come back")
