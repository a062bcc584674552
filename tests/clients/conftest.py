"""Where the server under test is: MILLRACE_HTTP and MILLRACE_GRPC (host:port each). Without them a
`millrace up` of our own is started for the session. It serves tiny-r1."""
import os
import shutil
import sys
from pathlib import Path

import pytest

from served import Server


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
