"""OpenAI's own Python package against the HTTP API. Answers are checked: tiny-r1 can add."""
import asyncio

import httpx
import openai
import pytest

from served import MODEL

QUESTION = "What is 12 + 30?"
# </think> is one ordinary token (the model's card).
END_OF_THINKING = 2047


@pytest.fixture(scope="module")
def client(server):
    # Retries would hide errors.
    with openai.OpenAI(base_url=f"http://{server.http}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        yield client


def user(text):
    return [{"role": "user", "content": text}]


def chat(client, text=QUESTION, **more):
    return client.chat.completions.create(model=MODEL, messages=user(text), **{"temperature": 0} | more)


def complete(client, prompt, **more):
    return client.completions.create(model=MODEL, prompt=prompt, **{"temperature": 0} | more)


# ---- models ---------------------------------------------------------------------------------------


def test_models(client):
    listed = client.models.list().data
    assert [model.id for model in listed] == [MODEL]
    model = client.models.retrieve(MODEL)
    assert model == listed[0]
    assert model.object == "model" and model.created > 0 and model.max_model_len == 4096


# ---- chat -----------------------------------------------------------------------------------------


def test_chat(client):
    answer = chat(client)
    assert answer.object == "chat.completion" and answer.model == MODEL and answer.id.startswith("chatcmpl-")
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content.strip() == "42"
    assert "12 + 30" in choice.message.reasoning_content and "</think>" not in choice.message.reasoning_content
    assert choice.finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 <= answer.usage.prompt_tokens_details.cached_tokens <= answer.usage.prompt_tokens


def test_chat_streamed(client):
    whole = chat(client)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert deltas[0].role == "assistant"
    content = "".join(delta.content or "" for delta in deltas)
    reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert content == whole.choices[0].message.content
    assert reasoning == whole.choices[0].message.reasoning_content
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_in_every_chunk(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [chunk.usage.completion_tokens for chunk in chat(client, stream=True, stream_options=options)]
    assert counts == sorted(counts) and counts[-1] > 0


def test_conversation(client):
    messages = [{"role": "system", "content": "You are a helpful assistant."}, *user("Who are you?")]
    first = client.chat.completions.create(model=MODEL, messages=messages, temperature=0).choices[0].message
    assert first.content.strip() == "I am tiny-r1, a very small language model with the DeepSeek-V3 architecture."
    # The client gives back what it got, thinking included; and content may be a list of parts.
    messages += [first.model_dump(exclude_none=True), {"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    second = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    assert second.choices[0].message.content.strip() == "42"


def test_chat_logprobs(client):
    answer = chat(client, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        ranked = [top.logprob for top in token.top_logprobs]
        assert ranked == sorted(ranked, reverse=True)
        # Greedy: the chosen token is the most probable.
        assert token.logprob == ranked[0] and token.token == token.top_logprobs[0].token
        assert bytes(token.bytes).decode(errors="replace") == token.token
    text = b"".join(bytes(token.bytes) for token in tokens).decode()
    assert answer.choices[0].message.content.strip() in text


def test_chat_without_thinking_shown(client):
    message = chat(client, extra_body={"include_reasoning": False}).choices[0].message
    assert message.content.strip() == "42" and not hasattr(message, "reasoning_content")


def test_limits_of_an_answer(client):
    cut = chat(client, max_completion_tokens=5)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 5
    on = chat(client, "Hello!", max_tokens=64, extra_body={"ignore_eos": True})
    assert on.choices[0].finish_reason == "length" and on.usage.completion_tokens == 64


def test_stops(client):
    text = chat(client, stop=["carry"]).choices[0]
    assert text.finish_reason == "stop" and text.stop_reason == "carry"
    assert "carry" not in text.message.reasoning_content and text.message.content == ""
    kept = chat(client, stop="carry", extra_body={"include_stop_str_in_output": True}).choices[0]
    assert kept.message.reasoning_content == text.message.reasoning_content + "carry"
    token = chat(client, extra_body={"stop_token_ids": [END_OF_THINKING]}).choices[0]
    assert token.finish_reason == "stop" and token.stop_reason == END_OF_THINKING and token.message.content == ""


def test_many_at_once(server):
    async def ask_all():
        async with openai.AsyncOpenAI(base_url=f"http://{server.http}/v1", api_key="unused", max_retries=0, timeout=300) as client:
            async def ask(a, b):
                answer = await client.chat.completions.create(model=MODEL, messages=user(f"What is {a} + {b}?"), temperature=0)
                return answer.choices[0].message.content.strip()
            return await asyncio.gather(*(ask(a, 30) for a in range(11, 19)))
    assert asyncio.run(ask_all()) == [str(a + 30) for a in range(11, 19)]


def test_a_stream_closed_early(client):
    stream = chat(client, "Hello!", stream=True, max_tokens=2000, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    assert chat(client).choices[0].message.content.strip() == "42"


# ---- sampling -------------------------------------------------------------------------------------


def test_a_seed_is_reproducible(client):
    def draw(seed, n):
        answer = complete(client, "The", temperature=1, seed=seed, n=n, max_tokens=24)
        assert [choice.index for choice in answer.choices] == list(range(n))
        assert answer.usage.completion_tokens <= 24 * n
        return [choice.text for choice in answer.choices]

    first = draw(7, 2)
    assert draw(7, 2) == first
    assert first[0] != first[1]
    assert draw(7, 1) == first[:1]
    assert draw(8, 1) != first[:1]


def test_n_choices_of_a_chat(client):
    answer = chat(client, n=2, temperature=0.6, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.message.content.strip() for choice in answer.choices] == ["42", "42"]
    texts = {0: "", 1: ""}
    for chunk in chat(client, n=2, temperature=0.6, seed=1, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {choice.index: choice.message.content for choice in answer.choices}


def test_vllms_extensions(client, server):
    [token] = server.tokenize(prompt="7", add_special_tokens=False)
    biased = complete(client, "The", max_tokens=4, logit_bias={str(token): 100})
    assert biased.choices[0].text == "7777"
    # One token to choose from is greedy, whatever the temperature.
    greedy = complete(client, "The", max_tokens=16).choices[0].text
    assert complete(client, "The", max_tokens=16, temperature=1, extra_body={"top_k": 1}).choices[0].text == greedy
    assert complete(client, "The", max_tokens=16, temperature=1, extra_body={"min_p": 1}).choices[0].text == greedy
    repeated = complete(client, "The", max_tokens=16, extra_body={"repetition_penalty": 2, "min_tokens": 16})
    assert repeated.choices[0].text != greedy and repeated.usage.completion_tokens == 16


# ---- completions ----------------------------------------------------------------------------------


def test_completion_of_token_ids(client, server):
    prompt = server.chat_tokens(QUESTION)
    answer = complete(client, prompt, max_tokens=200)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert answer.choices[0].text.endswith("</think>\n\n42")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == len(prompt)


def test_completions_of_many_prompts(client, server):
    questions = {"What is 12 + 30?": "42", "What is 12 + 31?": "43"}
    prompts = [server.chat_tokens(question) for question in questions]
    answer = complete(client, prompts, max_tokens=200, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice, expected in zip(answer.choices, ["42", "42", "43", "43"]):
        assert choice.text.endswith(f"\n\n{expected}")
    assert answer.usage.prompt_tokens == sum(map(len, prompts))
    texts = complete(client, ["One", "Two"], echo=True, max_tokens=4).choices
    assert texts[0].text.startswith("One") and texts[1].text.startswith("Two")


def test_completion_defaults_to_16_tokens(client):
    assert complete(client, "The", extra_body={"ignore_eos": True}).usage.completion_tokens == 16


def test_completion_streamed(client):
    whole = complete(client, "The", max_tokens=24)
    chunks = list(complete(client, "The", max_tokens=24, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_completion_logprobs(client):
    answer = complete(client, "The", max_tokens=8, logprobs=2)
    logprobs, text = answer.choices[0].logprobs, answer.choices[0].text
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == answer.usage.completion_tokens
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        assert logprob <= 0 and len(top) >= 1 and top[token] == logprob == max(top.values())
    for token, offset in zip(logprobs.tokens, logprobs.text_offset):
        assert text[offset:].startswith(token) or "\ufffd" in token
    ids = complete(client, "The", max_tokens=8, logprobs=0, extra_body={"return_tokens_as_token_ids": True})
    assert all(token.startswith("token_id:") for token in ids.choices[0].logprobs.tokens)


def test_echo_scores_the_prompt(client):
    prompt = "The quick brown fox"
    answer = complete(client, prompt, echo=True, logprobs=1, max_tokens=0)
    choice = answer.choices[0]
    assert choice.text == prompt and choice.finish_reason == "length"
    tokens, scores = choice.logprobs.tokens, choice.logprobs.token_logprobs
    assert len(tokens) == len(scores) == answer.usage.prompt_tokens
    assert scores[0] is None and all(score <= 0 for score in scores[1:])
    # The first token opens the text without being part of it.
    assert "".join(tokens[1:]) == prompt and choice.logprobs.text_offset[:2] == [0, 0]


def test_scores_agree_with_those_of_the_generation(client, server):
    prompt = server.chat_tokens(QUESTION)
    extra = {"return_token_ids": True}
    generated = complete(client, prompt, max_tokens=20, logprobs=0, extra_body=extra).choices[0]
    scored = complete(client, prompt + generated.token_ids, echo=True, max_tokens=0, logprobs=0).choices[0]
    pairs = zip(generated.logprobs.token_logprobs, scored.logprobs.token_logprobs[len(prompt):])
    assert max(abs(a - b) for a, b in pairs) < 1e-2


# ---- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("more, param", [
    ({"temperature": -1}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1_000_000}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"logprobs": True, "top_logprobs": 99}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages[0].content[0]"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"extra_body": {"seed": "seven"}}, "seed"),
    ({"extra_body": {"stop_token_ids": [99_999_999]}}, "stop_token_ids"),
])
def test_bad_requests_name_the_field(client, more, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": user("x")} | more)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error" and caught.value.message


def test_bad_completions(client):
    for more, param in [({"suffix": "x"}, "suffix"), ({"prompt": [1, 99_999_999]}, "prompt"), ({"prompt": []}, "prompt"),
                        ({"prompt": list(range(10)) * 1000}, "prompt"), ({"best_of": 3}, "best_of")]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**{"model": MODEL, "prompt": "x"} | more)
        assert caught.value.param == param, more


def test_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=user("x"))
    assert caught.value.code == "model_not_found" and MODEL in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="x")


def test_a_request_id_is_given_back(client):
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=user("Hi"), max_tokens=1, extra_headers={"x-request-id": "clients-test-1"})
    assert raw.headers["x-request-id"] == "clients-test-1" and raw.parse().id == "chatcmpl-clients-test-1"


@pytest.mark.parametrize("content, headers, status", [
    (b"{\"messages\": [}", {"content-type": "application/json"}, 400),
    (b"\xff\xfe", {"content-type": "application/json"}, 400),
    (b"{}", {"content-type": "text/plain"}, 415),
    (b"x" * (20 << 20), {"content-type": "application/json"}, 413),
])
def test_bodies_that_no_client_package_sends(server, content, headers, status):
    response = httpx.post(f"http://{server.http}/v1/chat/completions", content=content, headers=headers)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
