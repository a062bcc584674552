"""A Prometheus of the test's own: scrapes what it is told to, evaluates the chart's rules, and answers queries."""
import json
import math
import signal
import subprocess

import httpx

from deployment import PATIENCE, REPOSITORY, wait_for
from etcd import free_port

ALERTS = REPOSITORY / "charts/millrace/alerts"
# Scrapes and evaluations, in seconds: a test has no minutes to wait for.
INTERVAL = 1


class Prometheus:
    """`pods`: (namespace, pod, port, other labels) each, what a PodMonitor would find. `features`: of Prometheus' own that it
    has only if asked. Use as a context manager."""

    def __init__(self, folder, pods, *features):
        self.folder = folder
        # Labels are made as the Prometheus operator makes them for a PodMonitor: of what discovery says of a pod.
        targets = [{"targets": [f"127.0.0.1:{port}"],
                    "labels": {"__meta_kubernetes_namespace": namespace, "__meta_kubernetes_pod_name": pod,
                               "__meta_kubernetes_pod_container_name": "millrace"}}
                   for namespace, pod, port in pods]
        relabel = [{"source_labels": [f"__meta_kubernetes_{of}"], "target_label": label}
                   for of, label in (("namespace", "namespace"), ("pod_name", "pod"), ("pod_container_name", "container"))]
        (folder / "prometheus.yaml").write_text(json.dumps({  # which YAML reads, too
            "global": {"scrape_interval": f"{INTERVAL}s", "scrape_timeout": f"{INTERVAL}s", "evaluation_interval": f"{INTERVAL}s"},
            "rule_files": [f"{ALERTS}/*.yaml"],
            "scrape_configs": [{"job_name": "millrace", "static_configs": targets, "relabel_configs": relabel}]}))
        self.address = f"127.0.0.1:{free_port()}"
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address={self.address}", "--log.level=warn", *(f"--enable-feature={one}" for one in features)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(folder / "log", "w"))
        self.client = httpx.Client(base_url=f"http://{self.address}", timeout=PATIENCE)
        try:
            wait_for(self.ready, "Prometheus")
        except BaseException:
            self.process.kill()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def ready(self):
        assert self.process.poll() is None, (self.folder / "log").read_text()
        return self.client.get("/-/ready").status_code == 200

    def api(self, path, **parameters):
        """The data of an answer; an error of the query's is an assertion that fails with its words."""
        answer = self.client.post(path, data=parameters).json()
        assert answer["status"] == "success", f"{answer.get('error')}: {parameters.get('query')}"
        return answer["data"]

    def targets(self):
        return self.client.get("/api/v1/targets").json()["data"]["activeTargets"]

    def now(self, query):
        """Labels, as sorted pairs without the name -> value, where that is finite."""
        found = self.api("/api/v1/query", query=query)["result"]
        named = ((tuple(sorted((k, v) for k, v in one["metric"].items() if k != "__name__")), float(one["value"][1])) for one in found)
        return {labels: value for labels, value in named if math.isfinite(value)}

    def range(self, query, start, end, step=INTERVAL):
        """Series: (labels, [(time, value)]) of finite values alone; those that have none are left out."""
        found = self.api("/api/v1/query_range", query=query, start=start, end=end, step=step)["result"]
        series = ((one["metric"], [(t, float(v)) for t, v in one["values"] if math.isfinite(float(v))]) for one in found)
        return [(labels, values) for labels, values in series if values]

    def rules(self):
        """Of all groups."""
        groups = self.client.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]
