"""A running `millrace up`, started and looked at as a user would: by its command line and its endpoints."""
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import httpx

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("MILLRACE_BIN", str(REPOSITORY / "target/release/millrace"))
# How pages are to go where a test does not say; the default of `up` if unset.
TRANSFER = os.environ.get("TRANSFER")
# What workers are to compute on where a test does not say, likewise.
DEVICE = os.environ.get("DEVICE")
# How ranks of a group are to exchange rows where a test does not say, likewise.
EXPERT_EXCHANGE = os.environ.get("EXPERT_EXCHANGE")
# How long anything may take before a test gives up on it. No test asserts that something is fast.
PATIENCE = 120


def environment():
    """The caller's, less what would change the defaults under test."""
    return {k: v for k, v in os.environ.items() if not k.startswith("MILLRACE_") and k != "RUST_LOG"}


class Deployment:
    """`millrace up ARGS` on free ports; ready once constructed. Use as a context manager."""

    def __init__(self, *args, env=None):
        command = [BINARY, "up", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", *args]
        if TRANSFER and "--transfer" not in args:
            command += ["--transfer", TRANSFER]
        if DEVICE and "--device" not in args:
            command += ["--device", DEVICE]
        if EXPERT_EXCHANGE and "--expert-exchange" not in args:
            command += ["--expert-exchange", EXPERT_EXCHANGE]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment() | (env or {}))
        self.out, self.log = [], []
        self._readers = [threading.Thread(target=self._read, args=pipe, daemon=True)
                         for pipe in ((self.process.stdout, self.out), (self.process.stderr, self.log))]
        for reader in self._readers:
            reader.start()
        try:
            wait_for(lambda: "Ctrl-C stops it" in "".join(self.out) or self.process.poll() is not None, "the endpoints")
            if self.process.poll() is not None:
                raise AssertionError(f"millrace up ended with {self.process.returncode}:\n{''.join(self.log)}")
            banner = "".join(self.out)
            self.http = re.search(r"http://(\S+)/v1 ", banner)[1]
            self.grpc = re.search(r"gRPC +(\S+)", banner)[1]
            self.metrics_urls = dict(re.findall(r"^ +(\S+) +(http://\S+/metrics)$", banner, re.M))
        except BaseException:
            self.process.kill()
            raise
        self.client = httpx.Client(base_url=f"http://{self.http}", timeout=PATIENCE)

    def _read(self, pipe, lines):
        for line in pipe:
            lines.append(line)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.client.close()
        if self.process.poll() is None:
            self.stop()
        if error[0] is not None:
            print("".join(self.log[-200:]))

    def stop(self, how=signal.SIGTERM):
        """Asks it to end; gives the exit code."""
        self.process.send_signal(how)
        return self.wait()

    def wait(self):
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        for reader in self._readers:
            reader.join(PATIENCE)
        return code

    # ---- its processes ------------------------------------------------------------------------

    def pids(self):
        """Role -> pids of the child processes, read from /proc."""
        found = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(status.read_text().rsplit(")", 1)[1].split()[1])
                command = (status.parent / "cmdline").read_bytes().split(b"\0")
            except (OSError, ValueError, IndexError):
                continue
            if parent == self.process.pid and len(command) > 1:
                found.setdefault(command[1].decode(), []).append(int(status.parent.name))
        return found

    # ---- what it serves -----------------------------------------------------------------------

    def chat(self, question, **fields):
        """A greedy answer: the parsed body of /v1/chat/completions."""
        answer = self.client.post("/v1/chat/completions", json=body(question, **fields))
        assert answer.status_code == 200, answer.text
        return answer.json()

    def tokens(self, prompt, count, **fields):
        """Greedy token ids that follow `prompt` (text or ids)."""
        answer = self.client.post("/v1/completions", json={
            "prompt": prompt, "max_tokens": count, "temperature": 0, "logprobs": 0, "ignore_eos": True,
            "return_tokens_as_token_ids": True, **fields})
        assert answer.status_code == 200, answer.text
        return [int(t.removeprefix("token_id:")) for t in answer.json()["choices"][0]["logprobs"]["tokens"]]

    def scrape(self, process):
        """The samples of one process: [(name, labels, value)].."""
        return parse(httpx.get(self.metrics_urls[process], timeout=PATIENCE).text)

    def total(self, name, *processes, **labels):
        """The sum of a metric over processes (default: all) and over labels that match."""
        found = 0.0
        for process in processes or self.metrics_urls:
            for sample, with_labels, value in self.scrape(process):
                if sample == name and labels.items() <= with_labels.items():
                    found += value
        return found


def body(question, **fields):
    messages = question if isinstance(question, list) else [{"role": "user", "content": question}]
    return {"messages": messages, "temperature": 0, **fields}


def parse(text):
    samples = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, labels, value = re.fullmatch(r"([a-zA-Z0-9_:]+)(?:\{(.*)\})? (\S+)", line).groups()
            samples.append((name, dict(re.findall(r'(\w+)="([^"]*)"', labels or "")), float(value)))
    return samples


def idle(deployment):
    """Nothing runs, waits or holds pages, on any process."""
    requests = sum(deployment.total(f"millrace_num_requests_{state}") for state in ("running", "waiting"))
    pages = sum(deployment.total("millrace_kv_pages", state=state) for state in ("used", "leased"))
    return requests + pages + deployment.total("millrace_leases_active") == 0


def wait_for(condition, what, patience=PATIENCE):
    """Polls until `condition` holds; gives its value. A process that cannot be asked just now holds nothing."""
    end = time.monotonic() + patience
    while True:
        try:
            value = condition()
        except httpx.TransportError:
            value = None
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {patience} s for {what}")
        time.sleep(0.05)
