"""The server under test as these tests see it."""
from typing import NamedTuple

import httpx

MODEL = "tiny-r1"


class Server(NamedTuple):
    http: str
    grpc: str

    def tokenize(self, **what):
        """Token ids of `prompt="..."` or `messages=[...]`."""
        response = httpx.post(f"http://{self.http}/tokenize", json=what)
        response.raise_for_status()
        return response.json()["tokens"]

    def chat_tokens(self, question):
        """The prompt that the chat template makes of a question: it ends where thinking starts."""
        return self.tokenize(messages=[{"role": "user", "content": question}])
