import pytest

from deployment import Deployment


@pytest.fixture(scope="session")
def split():
    """One prefill and one decode worker, for tests that leave them as they were."""
    # Every prompt goes through the prefill worker, however short.
    with Deployment("--local-prefill-tokens", "0") as deployment:
        yield deployment


@pytest.fixture(scope="session")
def aggregated():
    with Deployment("--aggregated") as deployment:
        yield deployment
