"""An etcd of a test's own, which it may kill, start again and compact."""
import base64
import signal
import socket
import subprocess

import httpx

from deployment import PATIENCE, wait_for


def free_port():
    with socket.socket() as any_:
        any_.bind(("127.0.0.1", 0))
        return any_.getsockname()[1]


class Etcd:
    """One server on free ports, with its data in `folder`. Use as a context manager."""

    def __init__(self, folder):
        self.folder = folder
        self.client, self.peer = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.process = None
        self.start()

    def start(self):
        # The same ports every time: routers know them.
        client, peer = f"http://{self.client}", f"http://{self.peer}"
        self.process = subprocess.Popen(
            ["etcd", "--data-dir", str(self.folder / "data"), "--logger", "zap", "--log-level", "error",
             "--listen-client-urls", client, "--advertise-client-urls", client,
             "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
             # Made for machines apart, its patience with a leader is a second; here there is one server.
             "--heartbeat-interval", "20", "--election-timeout", "200"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(self.folder / "log", "a"))
        wait_for(self.healthy, "etcd")

    def healthy(self):
        assert self.process.poll() is None, (self.folder / "log").read_text()
        return httpx.get(f"http://{self.client}/health", timeout=PATIENCE).json().get("health") == "true"

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)

    def restart(self):
        self.kill()
        self.start()

    def call(self, method, **fields):
        answer = httpx.post(f"http://{self.client}/v3/{method}", json=fields, timeout=PATIENCE)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def revision(self):
        return int(self.call("kv/range", key=encode("/"))["header"]["revision"])

    def compact(self):
        """Forgets everything but the present: who watches from before must look again."""
        self.call("kv/compaction", revision=self.revision(), physical=True)

    def keys(self):
        answer = self.call("kv/range", key=encode("/"), range_end=encode("0"))
        return {base64.b64decode(kv["key"]).decode(): base64.b64decode(kv.get("value", "")) for kv in answer.get("kvs", [])}

    def expire_leases(self):
        """Revokes every lease, as if nobody had kept it alive in time."""
        for lease in self.call("kv/lease/leases").get("leases", []):
            self.call("kv/lease/revoke", ID=lease["ID"])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


def encode(text):
    return base64.b64encode(text.encode()).decode()
