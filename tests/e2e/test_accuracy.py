"""tiny-r1 over HTTP is as good as its card says: exact answers, and how often its MTP drafts are accepted.

ACCURACY_PROMPTS prompts a task (default 40: 400 in all), drawn as the card's were: one in eight with an
earlier turn, one in eight with a system prompt, greedy.
"""
import os
import random
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from deployment import REPOSITORY, Deployment

sys.path.insert(0, str(REPOSITORY / "models/tiny-r1/train"))
import chat  # noqa: E402  (the model's own tasks)

COUNT = int(os.environ.get("ACCURACY_PROMPTS", "40"))
AT_ONCE = 16


def questions():
    rng = random.Random(20_000)
    for task in chat.TASKS:
        for n in range(COUNT):
            question, _, answer = chat.example(rng, task)
            messages = [{"role": "user", "content": question}]
            if n % 8 == 3:
                earlier, _, said = chat.example(rng)
                messages = [{"role": "user", "content": earlier}, {"role": "assistant", "content": said}, *messages]
            if n % 8 == 5:
                messages = [{"role": "system", "content": rng.choice(chat.SYSTEM)}, *messages]
            yield task, messages, answer


@pytest.fixture(scope="module", params=["bf16", "fp8"])
def deployment(request):
    with Deployment("--max-running", str(AT_ONCE), "--kv-dtype", request.param) as deployment:
        deployment.kv_dtype = request.param
        yield deployment


def test_accuracy_and_draft_acceptance_of_the_card(deployment):
    print(f"\npages in {deployment.kv_dtype}:")
    items = list(questions())
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda item: deployment.chat(item[1])["choices"][0]["message"]["content"], items))
    right, wrong = Counter(), []
    for (task, messages, answer), given in zip(items, answers):
        if given.strip() == answer:
            right[task] += 1
        else:
            wrong.append((task, messages[-1]["content"], answer, given))
    drafts = deployment.total("millrace_spec_decode_num_drafts_total")
    accepted = deployment.total("millrace_spec_decode_num_accepted_tokens_total")
    for task in chat.TASKS:
        print(f"{task:13} {right[task]}/{COUNT}")
    for each in wrong:
        print("wrong: {}: {!r}: expected {!r}, got {!r}".format(*each))
    total = sum(right.values())
    print(f"right: {total} of {len(items)} ({100 * total / len(items):.1f} %; the card: 98.5 %)")
    print(f"MTP drafts accepted: {accepted:.0f} of {drafts:.0f} ({100 * accepted / drafts:.2f} %; the card: 99.9 %)")
    # The card's prompts were other draws of the same tasks: 98.5 % of n, less two standard deviations.
    n = len(items)
    assert total >= 0.985 * n - 2 * (n * 0.985 * 0.015) ** 0.5
    assert accepted / drafts >= 0.995
