"""A request's trace, from the client's span over router and workers, as a real collector is told of it."""
import os
import secrets
import signal
import sys
import threading
from pathlib import Path

import httpx
import pytest

from collector import Collector

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
from deployment import Deployment  # noqa: E402

# Long enough for a prefill worker to be asked.
QUESTION = "What is 12 + 30? " * 20


@pytest.fixture(scope="module")
def collector(tmp_path_factory):
    with Collector(tmp_path_factory.mktemp("collector")) as collector:
        yield collector


@pytest.fixture(scope="module")
def deployment(collector):
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.endpoint}", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with Deployment("--prefill", "2", "--decode", "1", env=env) as deployment:
        yield deployment


def ask(deployment, trace, **fields):
    """With a client's span in that trace; gives the span's id and the answer."""
    parent = secrets.token_hex(8)
    answer = deployment.client.post("/v1/chat/completions", headers={"traceparent": f"00-{trace}-{parent}-01"}, json={
        "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, **fields})
    return parent, answer


def ended(*names):
    """As a condition on a trace: spans of these names are there, each the process' outermost."""
    return lambda spans: all(any(s.name == name and s.kind == "server" for s in spans) for name in names)


def test_a_request_is_one_tree_over_all_processes(collector, deployment):
    trace = secrets.token_hex(16)
    parent, answer = ask(deployment, trace, max_tokens=8)
    body = answer.json()
    [root] = collector.trace(trace, ended("chat tiny-r1", "decode", "prefill"))

    assert (root.service, root.kind, root.parent) == ("millrace-router", "server", parent)
    assert root.attributes["gen_ai.operation.name"] == "chat"
    assert root.attributes["gen_ai.request.model"] == body["model"]
    assert root.attributes["gen_ai.request.max_tokens"] == 8
    assert root.attributes["gen_ai.usage.input_tokens"] == body["usage"]["prompt_tokens"]
    assert root.attributes["gen_ai.usage.output_tokens"] == body["usage"]["completion_tokens"]
    assert root.attributes["gen_ai.response.finish_reasons"] == [body["choices"][0]["finish_reason"]]
    seconds = root.attributes["gen_ai.latency.time_to_first_token"]
    assert 0 < seconds * 1e9 <= root.end - root.start
    assert root.child("queue").kind == root.child("pair").kind == "internal"

    call = root.child("decode", "client")
    decode = call.child("decode", "server")
    assert decode.service == "millrace-decode"
    assert call.attributes["millrace.decode.worker"] == decode.instance
    assert {"queue", "generate"} <= {c.name for c in decode.children}
    asked = decode.child("prefill", "client")
    prefill = asked.child("prefill", "server")
    assert prefill.service == "millrace-prefill"
    assert asked.attributes["millrace.prefill.worker"] == call.attributes["millrace.prefill.worker"] == prefill.instance
    assert {c.name for c in prefill.children} >= {"compute", "transfer"}
    assert prefill.attributes["millrace.pages"] == -(-body["usage"]["prompt_tokens"] // 64)

    # All on one machine, so by one clock: whoever works for another does so while that one waits.
    def inside(span):
        for child in span.children:
            assert span.start <= child.start <= child.end <= span.end, (span.name, child.name)
            inside(child)
    for span in (root, call, decode, asked, prefill):
        assert not span.error
    inside(decode)


def test_a_prompt_that_its_decode_worker_computes_says_so(collector, deployment):
    trace = secrets.token_hex(16)
    answer = deployment.client.post("/v1/completions", headers={"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"},
                                    json={"prompt": "1 + 1 =", "max_tokens": 2})
    assert answer.status_code == 200
    [root] = collector.trace(trace, ended("text_completion tiny-r1", "decode"))
    decode = root.child("decode", "client").child("decode", "server")
    assert decode.child("prefill").kind == "internal"


def test_a_client_without_a_trace_gets_one(collector, deployment):
    before = {s.trace for s in collector.spans()}
    deployment.chat("What is 1 + 2?", max_tokens=2)
    from collector import wait_for
    wait_for(lambda: {s.trace for s in collector.spans() if s.name.startswith("chat")} - before, "its trace")


def test_a_trace_that_is_not_sampled_is_not_recorded(collector, deployment):
    trace = secrets.token_hex(16)
    header = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-00"}
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 2}
    assert deployment.client.post("/v1/chat/completions", headers=header, json=body).status_code == 200
    seen = secrets.token_hex(16)
    ask(deployment, seen, max_tokens=2)
    collector.trace(seen, ended("chat tiny-r1", "decode", "prefill"))
    assert not [s for s in collector.spans() if s.trace == trace]


def test_what_fails_says_why_and_what_is_made_again_is_there_twice(collector, deployment):
    trace = secrets.token_hex(16)
    _, answer = ask(deployment, trace, max_tokens=100_000)
    assert answer.status_code == 400
    [root] = collector.trace(trace, ended("chat tiny-r1"))
    assert root.error and root.attributes["error.type"] == "invalid"
    assert not root.children

    # The decode worker dies in the middle: a second attempt goes on where the first stopped.
    trace = secrets.token_hex(16)
    killed = threading.Event()

    def kill(_):
        if not killed.is_set():
            killed.set()
            for pid in deployment.pids()["decode"]:
                os.kill(pid, signal.SIGKILL)
    header = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"}
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 600, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"http://{deployment.http}/v1/chat/completions", headers=header, json=body,
                      timeout=120) as stream:
        for line in stream.iter_lines():
            kill(line)
    roots = collector.trace(trace, ended("chat tiny-r1", "decode"))
    # What the worker that died was doing has no span, and the prefill that it asked for no parent.
    [root] = [r for r in roots if r.service == "millrace-router"]
    first, *others = root.all("decode", "client")
    assert first.error and first.attributes["error.type"]
    assert others and not others[-1].error
    assert not root.error
