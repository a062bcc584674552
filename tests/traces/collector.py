"""OpenTelemetry's collector, which writes down the spans that it is sent."""
import json
import os
import socket
import subprocess
import time
from dataclasses import dataclass, field

PATIENCE = 60

CONFIG = """
receivers:
  otlp: {{protocols: {{grpc: {{endpoint: "{endpoint}"}}}}}}
exporters:
  file: {{path: "{path}", flush_interval: 100ms}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    traces: {{receivers: [otlp], exporters: [file]}}
"""

KINDS = {1: "internal", 2: "server", 3: "client"}


@dataclass
class Span:
    trace: str
    id: str
    parent: str
    name: str
    kind: str
    service: str
    instance: str
    start: int
    end: int
    attributes: dict
    error: str
    children: list = field(default_factory=list)

    def child(self, name, kind=None):
        """The only one of that name."""
        found = self.all(name, kind)
        assert len(found) == 1, f"{self.name} has {len(found)} children {name}, of {[c.name for c in self.children]}"
        return found[0]

    def all(self, name, kind=None):
        return [c for c in self.children if c.name == name and kind in (None, c.kind)]


class Collector:
    """Use as a context manager."""

    def __init__(self, folder):
        binary = os.environ.get("OTEL_COLLECTOR")
        assert binary, "OTEL_COLLECTOR names no collector; `tests/run` builds one for the parts that need it"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.endpoint = "127.0.0.1:%d" % free.getsockname()[1]
        self.path = folder / "spans.json"
        config = folder / "collector.yaml"
        config.write_text(CONFIG.format(endpoint=self.endpoint, path=self.path))
        self.log = (folder / "collector.log").open("w+")
        self.process = subprocess.Popen([binary, "--config", config], stdout=self.log, stderr=self.log)
        try:
            wait_for(self._listens, "the collector")
        except BaseException:
            self.process.kill()
            raise

    def _listens(self):
        if self.process.poll() is not None:
            self.log.seek(0)
            raise AssertionError(f"the collector ended with {self.process.returncode}:\n{self.log.read()}")
        host, port = self.endpoint.split(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(PATIENCE)
        self.log.close()

    def spans(self):
        found = []
        lines = self.path.read_text().split("\n") if self.path.exists() else [""]
        for line in lines[:-1]:  # the last is empty, or being written
            for of_resource in json.loads(line).get("resourceSpans", []):
                resource = attributes(of_resource["resource"])
                for of_scope in of_resource["scopeSpans"]:
                    found += [span(told, resource) for told in of_scope["spans"]]
        return found

    def trace(self, id, complete):
        """The trace's roots, each with its children, once `complete` says of all its spans that it is."""
        spans = []

        def there():
            spans[:] = [s for s in self.spans() if s.trace == id]
            return complete(spans)
        wait_for(there, f"a whole trace {id}", lambda: [(s.service, s.name) for s in spans])
        known = {s.id: s for s in spans}
        for s in sorted(spans, key=lambda s: s.start):
            if s.parent in known:
                known[s.parent].children.append(s)
        return [s for s in spans if s.parent not in known]


def wait_for(done, what, state=lambda: ""):
    given_up = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < given_up, f"waited in vain for {what}: {state()}"
        time.sleep(0.05)


def span(told, resource):
    return Span(
        told["traceId"], told["spanId"], told.get("parentSpanId", ""), told["name"], KINDS[told["kind"]],
        resource["service.name"], resource["service.instance.id"], int(told["startTimeUnixNano"]),
        int(told["endTimeUnixNano"]), attributes(told), told.get("status", {}).get("message", ""))


def attributes(of):
    return {a["key"]: plain(a["value"]) for a in of.get("attributes", [])}


def plain(value):
    [(kind, value)] = value.items()
    if kind == "arrayValue":
        return [plain(v) for v in value["values"]]
    return int(value) if kind == "intValue" else value
