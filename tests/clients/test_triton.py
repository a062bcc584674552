"""Triton's own gRPC client against KServe v2. Answers are checked: tiny-r1 can add."""
import json
import queue

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from served import MODEL

# What the chat template makes of a question; the tokenizer puts the first token before it.
PROMPT = "<｜User｜>What is 12 + 30?<｜Assistant｜><think>\n"
GREEDY = {"temperature": 0, "max_tokens": 200}


@pytest.fixture()
def client(server):
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


def tensor(name, values, datatype):
    values = np.asarray(values, dtype=np.object_ if datatype == "BYTES" else None)
    if datatype != "BYTES":
        values = values.astype({"BOOL": bool, "INT32": np.int32, "INT64": np.int64}[datatype])
    result = triton.InferInput(name, list(values.shape), datatype)
    result.set_data_from_numpy(values)
    return result


def inputs(prompt=PROMPT, sampling=GREEDY, exclude=True, stream=None):
    result = [tensor("text_input", [prompt.encode()], "BYTES")]
    if sampling is not None:
        result.append(tensor("sampling_parameters", [json.dumps(sampling).encode()], "BYTES"))
    if exclude is not None:
        result.append(tensor("exclude_input_in_output", [exclude], "BOOL"))
    if stream is not None:
        result.append(tensor("stream", [stream], "BOOL"))
    return result


def text(result):
    return result.as_numpy("text_output")[0].decode()


def test_live_and_ready(client):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
    assert not client.is_model_ready("gpt-9")


def test_metadata(client):
    assert client.get_server_metadata().name == "millrace"
    model = client.get_model_metadata(MODEL)
    assert model.name == MODEL and len(model.versions) == 1
    shapes = {it.name: (it.datatype, list(it.shape)) for it in model.inputs}
    assert shapes["text_input"] == ("BYTES", [1]) and shapes["input_ids"] == ("INT64", [-1])
    assert {"text_output", "token_ids", "finish_reason"} <= {it.name for it in model.outputs}
    assert client.is_model_ready(MODEL, model.versions[0])


def test_infer(client):
    result = client.infer(MODEL, inputs(), request_id="7")
    assert text(result).endswith("</think>\n\n42")
    assert result.as_numpy("finish_reason").tolist() == [b"stop"]
    assert result.as_numpy("token_ids").dtype == np.int64
    assert result.get_response().id == "7"


def test_the_prompt_comes_first_unless_excluded(client):
    answer = text(client.infer(MODEL, inputs()))
    assert text(client.infer(MODEL, inputs(exclude=None))) == PROMPT + answer
    assert text(client.infer(MODEL, inputs(exclude=False))) == PROMPT + answer


def test_input_ids(client, server):
    ids = server.chat_tokens("What is 12 + 30?")
    expected = text(client.infer(MODEL, inputs()))
    for values, datatype in [(ids, "INT64"), ([ids], "INT64"), (ids, "INT32")]:
        given = [tensor("input_ids", values, datatype), *inputs()[1:]]
        assert text(client.infer(MODEL, given)) == expected


def test_parameters_and_outputs(client):
    outputs = [triton.InferRequestedOutput(name) for name in ("text_output", "num_input_tokens", "num_output_tokens")]
    result = client.infer(MODEL, inputs(sampling=None), outputs=outputs,
                          parameters={"temperature": 0.0, "max_tokens": 5, "ignore_eos": True})
    assert result.as_numpy("num_output_tokens").tolist() == [5]
    assert result.as_numpy("num_input_tokens")[0] > 5
    assert result.as_numpy("finish_reason") is None
    # Numbers as text, as in Triton's examples; and two choices.
    two = client.infer(MODEL, inputs(sampling={"temperature": "1", "seed": "3", "n": "2", "max_tokens": "4"}))
    assert two.as_numpy("text_output").shape == (2,)


class Stream:
    """The responses of a stream, as they come."""

    def __init__(self, client):
        self.client, self.responses = client, queue.Queue()

    def __enter__(self):
        self.client.start_stream(lambda result, error: self.responses.put((result, error)))
        return self

    def __exit__(self, *_):
        self.client.stop_stream()

    def next(self):
        return self.responses.get(timeout=120)


def is_final(result):
    return result.get_response().parameters["triton_final_response"].bool_param


def test_a_stream(client):
    expected = text(client.infer(MODEL, inputs()))
    with Stream(client) as stream:
        client.async_stream_infer(MODEL, inputs(stream=True), request_id="a", enable_empty_final_response=True)
        pieces, final = [], False
        while not final:
            result, error = stream.next()
            assert error is None and result.get_response().id == "a"
            pieces.append(text(result))
            final = is_final(result)
        assert "".join(pieces) == expected and len(pieces) > 10
        # Without streaming there is one response on the same stream.
        client.async_stream_infer(MODEL, inputs(stream=False), request_id="b")
        result, error = stream.next()
        assert error is None and is_final(result) and text(result) == expected


def test_many_requests_on_a_stream(client):
    numbers = range(21, 27)
    with Stream(client) as stream:
        for number in numbers:
            prompt = f"<｜User｜>What is {number} + 30?<｜Assistant｜><think>\n"
            client.async_stream_infer(MODEL, inputs(prompt, stream=True), request_id=str(number))
        texts, open_requests = {str(number): "" for number in numbers}, len(numbers)
        while open_requests:
            result, error = stream.next()
            assert error is None
            texts[result.get_response().id] += text(result)
            open_requests -= is_final(result)
    assert all(texts[str(number)].endswith(f"\n\n{number + 30}") for number in numbers)


def test_a_failed_request_leaves_the_stream_open(client):
    with Stream(client) as stream:
        client.async_stream_infer("gpt-9", inputs(stream=True))
        _, error = stream.next()
        assert "gpt-9" in error.message()
        client.async_stream_infer(MODEL, [tensor("text_input", [7], "INT32")])
        _, error = stream.next()
        assert "text_input" in error.message() and "INT32" in error.message()
        client.async_stream_infer(MODEL, inputs(exclude=False, stream=True))
        _, error = stream.next()
        assert "exclude_input_in_output" in error.message()
        client.async_stream_infer(MODEL, inputs(stream=False))
        result, error = stream.next()
        assert error is None and text(result).endswith("42")


def test_a_stream_cancelled_by_its_client(client):
    responses = queue.Queue()
    client.start_stream(lambda result, error: responses.put((result, error)))
    sampling = {"temperature": 0, "max_tokens": 2000, "ignore_eos": True}
    client.async_stream_infer(MODEL, inputs(sampling=sampling, stream=True))
    assert responses.get(timeout=120)[1] is None
    client.stop_stream(cancel_requests=True)
    assert text(client.infer(MODEL, inputs())).endswith("42")


@pytest.mark.parametrize("given, message", [
    ([], "no prompt"),
    ([tensor("text_input", [b"a", b"b"], "BYTES")], "[2] must be [1]"),
    ([tensor("text_input", [b"\xff"], "BYTES")], "not UTF-8"),
    ([tensor("input_ids", [-1], "INT64")], "no token id"),
    ([tensor("input_ids", [99_999_999], "INT64")], "vocabulary"),
    ([*inputs(), tensor("colour", [1], "INT32")], "colour"),
    (inputs(sampling={"temprature": 1}), "temprature"),
    (inputs(sampling={"temperature": -1}), "temperature"),
    (inputs(stream=True), "ModelStreamInfer"),
])
def test_what_is_wrong_is_said(client, given, message):
    with pytest.raises(InferenceServerException) as caught:
        client.infer(MODEL, given)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT" and message in caught.value.message()


def test_an_unknown_model(client):
    with pytest.raises(InferenceServerException) as caught:
        client.infer("gpt-9", inputs())
    assert caught.value.status() == "StatusCode.NOT_FOUND"
