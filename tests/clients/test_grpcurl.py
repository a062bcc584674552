"""grpcurl, which knows our services only through reflection, against the gRPC API."""
import json
import subprocess

from served import MODEL

INFERENCE = "millrace.inference.v1.Inference"
CHAT = {"messages": [{"role": "user", "content": "What is 12 + 30?"}], "sampling": {"temperature": 0}}


def run(grpcurl, server, *args, message=None, flags=()):
    """Standard output of a call that must go well."""
    done = call(grpcurl, server, *args, message=message, flags=flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def call(grpcurl, server, *args, message=None, flags=()):
    data = [] if message is None else ["-d", json.dumps(message)]
    command = [grpcurl, "-plaintext", *flags, *data, server.grpc, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def messages(output):
    """All JSON objects of a stream's output."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(output.rstrip()):
        value, end = decoder.raw_decode(output, at)
        found.append(value)
        at = end + (len(output[end:]) - len(output[end:].lstrip()))
    return found


def test_list_and_describe(grpcurl, server):
    services = run(grpcurl, server, "list").split()
    assert {INFERENCE, "inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(services)
    assert not any("worker" in service for service in services)
    methods = run(grpcurl, server, "list", INFERENCE).split()
    assert {f"{INFERENCE}.{name}" for name in ("Generate", "Chat", "Tokenize", "Detokenize", "ListModels")} == set(methods)
    assert "rpc Chat" in run(grpcurl, server, "describe", INFERENCE)
    assert "temperature" in run(grpcurl, server, "describe", "millrace.inference.v1.SamplingParams")


def test_health(grpcurl, server):
    for service in ("", INFERENCE, "inference.GRPCInferenceService"):
        output = run(grpcurl, server, "grpc.health.v1.Health/Check", message={"service": service})
        assert json.loads(output) == {"status": "SERVING"}
    unknown = call(grpcurl, server, "grpc.health.v1.Health/Check", message={"service": "nothing"})
    assert unknown.returncode != 0 and "NotFound" in unknown.stderr


def test_models(grpcurl, server):
    [model] = json.loads(run(grpcurl, server, f"{INFERENCE}/ListModels"))["models"]
    assert model["id"] == MODEL and model["ready"] and model["maxModelLen"] == 4096


def test_chat(grpcurl, server):
    steps = messages(run(grpcurl, server, f"{INFERENCE}/Chat", message=CHAT))
    assert "".join(step.get("content", "") for step in steps).strip() == "42"
    assert "12 + 30" in "".join(step.get("reasoningContent", "") for step in steps)
    assert len({step["requestId"] for step in steps}) == 1
    finish = steps[-1]["finish"]
    assert finish["reason"] == "FINISH_REASON_STOP"
    assert finish["usage"]["completionTokens"] == sum(len(step.get("tokenIds", [])) for step in steps)


def test_generate_from_tokens(grpcurl, server):
    tokenized = json.loads(run(grpcurl, server, f"{INFERENCE}/Tokenize", message={"chat": CHAT}))
    assert tokenized["tokenIds"] == server.chat_tokens("What is 12 + 30?") and tokenized["maxModelLen"] == 4096
    request = {"tokens": {"ids": tokenized["tokenIds"]}, "sampling": {"temperature": 0, "logprobs": 1}}
    steps = messages(run(grpcurl, server, f"{INFERENCE}/Generate", message=request))
    text = "".join(step.get("text", "") for step in steps)
    assert text.endswith("</think>\n\n42")
    ids = [token for step in steps for token in step.get("tokenIds", [])]
    scored = [token for step in steps for token in step.get("logprobs", [])]
    assert [token["chosen"]["tokenId"] for token in scored] == ids
    # The end token is among the tokens and not in the text.
    back = json.loads(run(grpcurl, server, f"{INFERENCE}/Detokenize", message={"tokenIds": ids}))["text"]
    assert back.startswith(text)


def test_choices(grpcurl, server):
    request = {"text": "The", "sampling": {"n": 2, "seed": 5, "temperature": 1, "maxTokens": 8}}
    steps = messages(run(grpcurl, server, f"{INFERENCE}/Generate", message=request))
    finished = [step.get("index", 0) for step in steps if "finish" in step]
    assert sorted(finished) == [0, 1]


def test_errors_have_codes_and_details(grpcurl, server):
    bad = call(grpcurl, server, f"{INFERENCE}/Chat", message=CHAT | {"sampling": {"temperature": -1}})
    assert bad.returncode != 0
    assert "InvalidArgument" in bad.stderr and "google.rpc.BadRequest" in bad.stderr and "temperature" in bad.stderr
    unknown = call(grpcurl, server, f"{INFERENCE}/Chat", message=CHAT | {"model": "gpt-9"})
    assert "NotFound" in unknown.stderr and MODEL in unknown.stderr
    empty = call(grpcurl, server, f"{INFERENCE}/Generate", message={})
    assert "InvalidArgument" in empty.stderr


def test_a_request_id_and_a_deadline(grpcurl, server):
    steps = messages(run(grpcurl, server, f"{INFERENCE}/Chat", message=CHAT, flags=("-H", "x-request-id: grpcurl-1")))
    assert steps[0]["requestId"] == "grpcurl-1"
    # Longer than the model's whole context takes is not possible in this time.
    endless = {"text": "The", "sampling": {"maxTokens": 4000, "ignoreEos": True}}
    late = call(grpcurl, server, f"{INFERENCE}/Generate", message=endless, flags=("-max-time", "0.2"))
    assert late.returncode != 0 and "DeadlineExceeded" in late.stderr
