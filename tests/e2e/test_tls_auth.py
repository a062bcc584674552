"""A router with TLS and API keys, started as a pod starts it, and the clients that people use."""
import json
import os
import ssl
import subprocess
import threading
from contextlib import ExitStack

import httpx
import openai
import pytest

from deployment import BINARY, PATIENCE, body, environment, parse, wait_for

QUESTION, ANSWER = "What is 2718 + 3141?", "5859"


class Process:
    """A subcommand with its log in JSON. Use as a context manager."""

    def __init__(self, *args):
        self.process = subprocess.Popen(
            [BINARY, *args, "--log-format", "json", "--drain-seconds", "20"], stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, env=environment() | {"RUST_LOG": "debug"})
        self.log = []
        self._reader = threading.Thread(target=lambda: self.log.extend(iter(self.process.stderr.readline, "")), daemon=True)
        self._reader.start()

    def logged(self, message):
        """The first line that says `message`."""
        def found():
            assert self.process.poll() is None, "".join(self.log)
            return next((line for line in map(json.loads, list(self.log)) if line.get("message") == message), None)
        return wait_for(found, message)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(PATIENCE)


class Authority:
    """Certificates for `localhost`, by openssl."""

    def __init__(self, folder):
        self.folder, self.cert = folder, folder / "ca.crt"
        self._openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                      "-subj", "/CN=tests", "-keyout", "ca.key", "-out", "ca.crt")

    def _openssl(self, *args):
        subprocess.run(["openssl", *args], cwd=self.folder, check=True, capture_output=True)

    def issue(self, serial):
        """A new pair, as a Secret of type kubernetes.io/tls holds it."""
        self._openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost",
                      "-keyout", "tls.key", "-out", "tls.csr")
        (self.folder / "names").write_text("subjectAltName=DNS:localhost")
        self._openssl("x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-days", "1",
                      "-set_serial", str(serial), "-extfile", "names", "-out", "tls.crt")
        return {name: (self.folder / name).read_text() for name in ("tls.crt", "tls.key")}


class Volume:
    """A folder as the kubelet mounts a Secret: files are links into `..data`, which is replaced as a whole."""

    def __init__(self, folder, files):
        self.folder, self.versions = folder, 0
        folder.mkdir()
        self.replace(files)
        for name in files:
            (folder / name).symlink_to(f"..data/{name}")

    def replace(self, files):
        self.versions += 1
        version = self.folder / f"..version_{self.versions}"
        version.mkdir()
        for name, content in files.items():
            (version / name).write_text(content)
        (self.folder / "..data_tmp").symlink_to(version.name)
        os.replace(self.folder / "..data_tmp", self.folder / "..data")


class Front:
    """A router with everything on, one prefill and one decode worker."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "authority").mkdir()
        self.authority = Authority(folder / "authority")
        self.certificates = Volume(folder / "tls", self.authority.issue(1))
        self.keys = Volume(folder / "keys", {"alice": "key-of-alice\n", "bob": "key-of-bob\n"})

    def __enter__(self):
        with ExitStack() as stack:
            any_port = "127.0.0.1:0"
            self.router = stack.enter_context(Process(
                "router", "--http", any_port, "--grpc", any_port, "--workers", any_port, "--probe", any_port,
                "--tls-cert", str(self.folder / "tls/tls.crt"), "--tls-key", str(self.folder / "tls/tls.key"),
                "--api-keys", str(self.folder / "keys"), "--served-model-name", "tiny", "--served-model-name", "org/tiny,third"))
            serving = self.router.logged("serving")
            self.http, self.grpc = (f"https://localhost:{serving[port].rsplit(':', 1)[1]}" for port in ("http", "grpc"))
            self.probe = f"http://{serving['probe']}"
            for role in ("prefill", "decode"):
                stack.enter_context(Process(role, "--router", serving["workers"], "--served-model-name", "tiny,org/tiny"))
            wait_for(lambda: httpx.get(f"{self.probe}/ready").status_code == 200, "the router to be ready")
            self.trust = ssl.create_default_context(cafile=self.authority.cert)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        self.stack.__exit__(*error)
        if error[0] is not None:
            print("".join(self.router.log[-100:]))

    def openai(self, key="key-of-alice"):
        http = httpx.Client(verify=self.trust, timeout=PATIENCE)
        return openai.OpenAI(base_url=f"{self.http}/v1", api_key=key, max_retries=0, timeout=PATIENCE, http_client=http)

    def total(self, name, **labels):
        samples = parse(httpx.get(f"{self.probe}/metrics").text)
        return sum(value for sample, with_labels, value in samples if sample == name and labels.items() <= with_labels.items())

    def serial(self):
        """Of the certificate that a new connection is shown."""
        host, port = self.http.removeprefix("https://").split(":")
        with httpx.Client(verify=self.trust) as client, client.stream("GET", f"https://{host}:{port}/health") as answer:
            shown = answer.extensions["network_stream"].get_extra_info("ssl_object").getpeercert()
        return int(shown["serialNumber"], 16)

    def run(self, *args, key="key-of-alice", **env):
        """A command of ours as a client."""
        env = {"MILLRACE_CA": str(self.authority.cert), "MILLRACE_API_KEY": key} | env
        env = {name: value for name, value in env.items() if value}
        return subprocess.run([BINARY, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE,
                              env=environment() | env)


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    with Front(tmp_path_factory.mktemp("front")) as front:
        yield front


def test_openais_client_chats_over_tls_with_a_key(front):
    client = front.openai()
    assert [model.id for model in client.models.list()] == ["tiny", "org/tiny", "third"]
    for model in ("tiny", "org/tiny", "third"):
        assert client.models.retrieve(model).id == model
        answer = client.chat.completions.create(model=model, temperature=0, messages=[{"role": "user", "content": QUESTION}])
        assert (answer.model, answer.choices[0].message.content.strip()) == ("tiny", ANSWER)
    stream = client.chat.completions.create(model="tiny", temperature=0, stream=True, messages=[{"role": "user", "content": QUESTION}])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream).strip() == ANSWER


def test_without_a_key_nothing_but_probes(front):
    for key in ("key-of-mallory", "key-of-alic"):
        with pytest.raises(openai.AuthenticationError) as refused:
            front.openai(key).models.list()
        assert refused.value.code == "invalid_api_key" and refused.value.response.headers["www-authenticate"].startswith("Bearer ")
    with httpx.Client(base_url=front.http, verify=front.trust, timeout=PATIENCE) as client:
        assert client.post("/v1/chat/completions", json=body(QUESTION)).status_code == 401
        assert client.get("/experts").status_code == 401
        assert [client.get(path).status_code for path in ("/health", "/ready", "/metrics")] == [200, 200, 200]
    assert [httpx.get(front.probe + path).status_code for path in ("/health", "/ready", "/metrics", "/v1/models")] == [200, 200, 200, 404]
    # Who does not know the authority does not connect; who speaks no TLS is not answered.
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{front.http}/health")
    with pytest.raises(httpx.HTTPError):
        httpx.get(front.http.replace("https", "http") + "/health")


def test_our_own_clients(front):
    chat = ("chat", "--grpc", front.grpc, "--temperature", "0", QUESTION)
    done = front.run(*chat)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{ANSWER}\n", "")
    done = front.run("bench", "--grpc", front.grpc, "--requests", "2", "--prompt-tokens", "8", "--output-tokens", "4")
    assert done.returncode == 0 and "2 requests" in done.stdout, done.stderr
    done = front.run("experts", "--http", front.http, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["groups"] == [], done.stderr
    for args in (chat, ("bench", "--grpc", front.grpc, "--requests", "1"), ("experts", "--http", front.http)):
        for key in ("", "key-of-mallory"):
            done = front.run(*args, key=key)
            assert done.returncode == 1 and "--api-key" in done.stderr and "mallory" not in done.stderr, done.stderr
            assert len(done.stderr.splitlines()) == 1
        # Not trusted, and not spoken to in plain.
        assert "ertificate" in front.run(*args, MILLRACE_CA="").stderr
        plain = [arg.replace("https://", "") for arg in args]
        done = front.run(*plain)
        assert done.returncode == 1 and "https://" in done.stderr, done.stderr


def test_certificates_and_keys_are_replaced_under_load(front):
    stop, failures, answers = threading.Event(), [], []

    def ask():
        with front.openai("key-of-bob") as client:
            while not stop.is_set():
                try:
                    answers.append(client.completions.create(model="tiny", prompt="Hello", max_tokens=4).id)
                except openai.OpenAIError as error:
                    failures.append(repr(error))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert front.serial() == 1
        broken = front.total("millrace_router_reloads_total", result="error")
        front.certificates.replace({"tls.crt": "broken", "tls.key": "broken"})
        front.keys.replace({"alice": "", "bob": ""})
        # Both were looked at.
        for what in ("certificates", "api_keys"):
            wait_for(lambda: front.total("millrace_router_reloads_total", result="error", what=what) > 0, f"a look at {what}")
        assert front.total("millrace_router_reloads_total", result="error") >= broken + 2 and front.serial() == 1
        front.certificates.replace(front.authority.issue(2))
        front.keys.replace({"alice": "new-key-of-alice\n", "bob": "key-of-bob\n"})
        wait_for(lambda: front.serial() == 2, "the renewed certificate")
        wait_for(lambda: front.total("millrace_router_reloads_total", result="ok", what="api_keys") > 0, "the new keys")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert answers and not failures, failures
    assert len(list(front.openai("new-key-of-alice").models.list())) == 3
    with pytest.raises(openai.AuthenticationError):
        front.openai("key-of-alice").models.list()
    log = "".join(front.router.log)
    assert "api_keys" in log and "certificates" in log
    assert not any(key in log for key in ("key-of-alice", "key-of-bob", "key-of-mallory"))


def test_a_router_without_what_it_needs_does_not_start(tmp_path):
    def start(*args):
        done = subprocess.run([BINARY, "router", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--workers", "127.0.0.1:0", *args],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, env=environment())
        assert done.returncode != 0
        return done.stderr
    (tmp_path / "empty").write_text("# nobody\n")
    assert "no API keys" in start("--api-keys", str(tmp_path / "empty"))
    assert "--tls-key" in start("--tls-cert", str(tmp_path / "empty"))
    error = start("--tls-cert", str(tmp_path / "empty"), "--tls-key", str(tmp_path / "empty"))
    assert "no certificate" in error and str(tmp_path / "empty") in error
