import sys
from pathlib import Path

for other in ("e2e", "traces"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / other))
import time  # noqa: E402

import pytest  # noqa: E402

from collector import Collector  # noqa: E402
from deployment import Deployment, wait_for  # noqa: E402
from groups import whole  # noqa: E402
from prometheus import Prometheus  # noqa: E402
from traffic import Traffic  # noqa: E402

# Of load, in seconds: some windows of rates.
LOAD = 40


class Watched:
    """Deployments under load, and the Prometheus that scraped them from `start` to `end`. `native` did so, too, for native
    histograms; `collector` was told of the requests' traces."""

    def __init__(self, deployments, prometheus, native, collector, start):
        self.deployments, self.prometheus, self.native, self.collector = deployments, prometheus, native, collector
        self.start, self.end = start, time.time()

    def range(self, query):
        return self.prometheus.range(query, self.start, self.end)


@pytest.fixture(scope="session")
def watched(tmp_path_factory):
    with Collector(tmp_path_factory.mktemp("collector")) as collector:
        yield from load(tmp_path_factory, collector)


def load(tmp_path_factory, collector):
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.endpoint}"}
    # Short prompts are computed where they are decoded, longer ones are not: both ways have metrics.
    with (Deployment("--local-prefill-tokens", "16", env=env) as split,
          Deployment("--decode-ranks", "2", "--redundant-experts", "8", "--balance-interval-seconds", "2",
                     "--balance-min-gain", "0", "--local-prefill-tokens", "0", env=env) as group):
        wait_for(whole(group.http), "the group to be whole")
        deployments = {"split": split, "group": group}
        pods = [(namespace, process, url.rsplit(":", 1)[1].removesuffix("/metrics"))
                for namespace, deployment in deployments.items() for process, url in deployment.metrics_urls.items()]
        with (Prometheus(tmp_path_factory.mktemp("prometheus"), pods, "exemplar-storage") as prometheus,
              Prometheus(tmp_path_factory.mktemp("native"), pods, "exemplar-storage", "native-histograms") as native):
            for one in (prometheus, native):
                wait_for(lambda: len(up := one.targets()) == len(pods) and all(t["health"] == "up" for t in up),
                         "every process to be scraped")
            start = time.time()
            with Traffic([split.http, group.http]):
                time.sleep(LOAD)
                seen = Watched(deployments, prometheus, native, collector, start)
            yield seen
