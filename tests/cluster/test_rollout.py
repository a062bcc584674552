"""From one revision to the next, back, and to some that cannot work, under load."""
import pytest

from deployments import never_less, routable, uids
from kubectl import condition, wait_for
from traffic import MODEL


def test_a_new_revision_takes_over(tiny, traffic):
    before = tiny.revision()
    old = uids(tiny.workers())
    with traffic(tiny), never_less(tiny, prefill=1, decode=2):
        tiny.patch({"model": {"revision": "another"}})
        wait_for("another revision", lambda: tiny.status()["revision"] != before)
        after = tiny.revision()
    assert not uids(tiny.workers()).keys() & old.keys()
    assert all(routable(pod) for pod in tiny.workers(after))
    assert not tiny.pools(revision=before)
    assert condition(tiny.get(), "Available")["status"] == "True"


@pytest.mark.parametrize("when", ["created", "routable"])
def test_reverting_midway_returns_to_the_old_pods(tiny, traffic, when):
    before = tiny.revision()
    old = uids(tiny.workers())
    with traffic(tiny), never_less(tiny, prefill=1, decode=2):
        # With nothing to take away before the new revision serves whole, both moments are midway.
        tiny.patch({"model": {"revision": f"reverted {when}"}, "rollout": {"maxSurge": "100%"}})
        new = wait_for("another revision", lambda: tiny.status()["revision"] != before and tiny.status()["revision"])
        wait_for(f"a worker of it to be {when}", lambda: any(
            when == "created" or routable(pod) for pod in tiny.workers(new)))
        kept = {name: uid for name, uid in uids(p for p in tiny.workers(before) if "deletionTimestamp" not in p["metadata"]).items()}
        tiny.patch({"model": {"revision": "another"}})
        assert tiny.wait()["revision"] == before
    now = uids(tiny.workers())
    assert kept.items() <= now.items() and len(now) == len(old)
    assert when == "routable" or now == old


@pytest.mark.parametrize("change, says", [
    ({"image": "millrace:absent", "imagePullPolicy": "IfNotPresent"}, "millrace:absent"),
    ({"model": {"source": {"builtin": None, "image": {"reference": "millrace:test", "pullPolicy": "IfNotPresent", "path": "no/model"}}}},
     "no/model"),
], ids=["image", "model path"])
def test_a_revision_that_cannot_start_takes_nothing_away(tiny, traffic, change, says):
    before = tiny.revision()
    old = uids(tiny.workers())
    with traffic(tiny), never_less(tiny, prefill=1, decode=2):
        tiny.patch(change)
        wait_for(f"its status to name {says}", lambda: tiny.status()["revision"] != before and says in tiny.told())
        # Success is not claimed while what serves is the older revision, and it does serve.
        assert condition(tiny.get(), "Available")["reason"] == "OlderServes"
        tiny.patch({"image": None, "imagePullPolicy": None, "model": {"source": {"image": None, "builtin": MODEL}}})
        assert tiny.wait()["revision"] == before
    assert uids(tiny.workers()) == old
