"""Where the server under test is: MILLRACE_HTTP and MILLRACE_GRPC (host:port each). Without them a
`millrace up` of our own is started for the session. It serves tiny-r1."""
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

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


@pytest.fixture(scope="session")
def server():
    http, grpc = os.environ.get("MILLRACE_HTTP"), os.environ.get("MILLRACE_GRPC")
    if http and grpc:
        yield Server(http, grpc)
        return
    assert not http and not grpc, "set both MILLRACE_HTTP and MILLRACE_GRPC, or neither"
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
    from deployment import Deployment
    with Deployment() as deployment:
        yield Server(deployment.http, deployment.grpc)


@pytest.fixture(scope="session")
def grpcurl():
    path = shutil.which("grpcurl")
    assert path, "grpcurl is not on the PATH; `tests/run clients` builds it"
    return path
