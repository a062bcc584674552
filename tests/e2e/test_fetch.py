"""`millrace fetch` as an init container runs it: killed, stopped, against S3 that checks signatures, over TLS, on
a full disk. What breaks on the way of the bytes themselves is tested beside the crate (fetch/tests)."""
import hashlib
import json
import random
import re
import signal
import subprocess
import sys

import boto3
import httpx
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from deployment import BINARY, environment, wait_for
from etcd import free_port
from files_server import FilesServer

FILES = {
    "config.json": b"{}",
    "empty.txt": b"",
    "model-00001-of-00002.safetensors": random.Random(1).randbytes(6_000_000),
    "extra/a b+c=%20é.bin": random.Random(2).randbytes(70_000),
}
LARGE = "model-00001-of-00002.safetensors"


@pytest.fixture
def model(tmp_path):
    """A folder with SHA256SUMS, made by sha256sum itself, and the checksum of that."""
    folder = tmp_path / "model"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    sums = subprocess.run("find . -type f -print0 | xargs -0 sha256sum", shell=True, cwd=folder, check=True,
                          capture_output=True).stdout
    (folder / "SHA256SUMS").write_bytes(sums)
    return folder, f"sha256:{hashlib.sha256(sums).hexdigest()}"


def command(url, checksum, to, *more):
    return [BINARY, "fetch", "--url", url, "--checksum", checksum, "--to", str(to), *more]


def clean(env=None):
    kept = {k: v for k, v in environment().items() if not k.startswith("AWS_") and "proxy" not in k.lower()}
    return kept | (env or {})


def fetch(*args, env=None):
    done = subprocess.run(command(*args), capture_output=True, text=True, timeout=120, env=clean(env))
    return done.returncode, done.stdout, done.stderr


def start(*args):
    return subprocess.Popen(command(*args), stderr=subprocess.PIPE, text=True, env=clean())


def assert_whole(to):
    for name, content in FILES.items():
        assert (to / name).read_bytes() == content, name
    assert not list(to.rglob("*.part"))


def part(to):
    return next(iter(to.glob(".millrace-fetch/*.part")), None)


def test_killed_at_any_moment_it_goes_on_where_it_was(model, tmp_path):
    folder, checksum = model
    to = tmp_path / "to"
    with FilesServer(folder, pause=0.02) as server:
        for _ in range(3):
            before = part(to).stat().st_size if part(to) else 0
            process = start(server.url, checksum, to)
            wait_for(lambda: (it := part(to)) and it.stat().st_size > before + 300_000, "some of it to come")
            process.kill()
            process.wait()
            assert not (to / LARGE).exists()
        code, out, log = fetch(server.url, checksum, to)
        assert code == 0, log
        assert "all 4 files" in out
        assert_whole(to)
        begun = [start for start in server.ranges if start > 300_000]
        assert begun == sorted(begun) and len(begun) == 3, server.ranges
    # Whole, it needs nobody.
    code, out, _ = fetch(server.url, checksum, to)
    assert code == 0 and "4 were there" in out


def test_told_to_stop_it_does_and_says_so(model, tmp_path):
    folder, checksum = model
    to = tmp_path / "to"
    with FilesServer(folder, pause=0.05) as server:
        process = start(server.url, checksum, to)
        wait_for(lambda: part(to) and part(to).stat().st_size > 0, "some of it to come")
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
        assert process.returncode == 130 and "the next run goes on" in log, log


def test_who_waits_goes_on_when_the_other_is_killed(model, tmp_path):
    folder, checksum = model
    to = tmp_path / "to"
    with FilesServer(folder, pause=0.02) as server:
        first = start(server.url, checksum, to)
        wait_for(lambda: part(to) and part(to).stat().st_size > 300_000, "some of it to come")
        second = start(server.url, checksum, to)
        assert "waiting" in second.stderr.readline()
        first.kill()
        first.wait()
        _, log = second.communicate(timeout=120)
        assert second.returncode == 0, log
    assert_whole(to)


def test_a_server_that_knows_no_ranges(model, tmp_path):
    folder, checksum = model
    to, port = tmp_path / "to", free_port()
    plain = subprocess.Popen([sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "-d", str(folder)],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        # It may not listen yet: that is what attempts are for.
        code, _, log = fetch(f"http://127.0.0.1:{port}", checksum, to)
        assert code == 0, log
        assert_whole(to)
    finally:
        plain.kill()
        plain.wait()


def test_tls_needs_an_authority_that_is_known(model, tmp_path):
    folder, checksum = model
    to, pem = tmp_path / "to", tmp_path / "server.pem"

    def openssl(*args):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *args], check=True,
                       capture_output=True, cwd=tmp_path)

    openssl("-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    openssl("-subj", "/CN=localhost", "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", "server.key", "-out", pem,
            "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE")
    pem.write_text(pem.read_text() + (tmp_path / "server.key").read_text())
    with FilesServer(folder, certificate=pem) as server:
        code, _, log = fetch(server.url, checksum, to)
        assert code == 1 and "--ca" in log and "certificate of https://localhost" in log, log
        code, _, log = fetch(server.url, checksum, to, "--ca", str(tmp_path / "ca.pem"))
        assert code == 0, log
    assert_whole(to)


def test_a_full_disk_is_said_before_the_download(model, tmp_path):
    folder, checksum = model
    to = tmp_path / "small"
    to.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", to], capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        with FilesServer(folder) as server:
            code, _, log = fetch(server.url, checksum, to)
            assert code == 1 and LARGE in log and "no space is left" in log and "6000000 more are needed" in log, log
            assert not (to / LARGE).exists()
            subprocess.run(["mount", "-o", "remount,size=30m", to], check=True)
            code, _, log = fetch(server.url, checksum, to)
            assert code == 0, log
        assert_whole(to)
    finally:
        subprocess.run(["umount", "-l", to], check=True)


@pytest.fixture(scope="module")
def s3():
    """moto's S3, which checks signatures and policies, and a user who may read the bucket `models`."""
    port = free_port()
    url, region = f"http://127.0.0.1:{port}", "eu-north-1"
    process = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean())

    def up():
        assert process.poll() is None
        try:
            return httpx.get(f"{url}/moto-api/").status_code
        except httpx.TransportError:
            return False

    try:
        wait_for(up, "moto")
        root = {"endpoint_url": url, "region_name": region, "aws_access_key_id": "x", "aws_secret_access_key": "x"}
        bucket = boto3.client("s3", **root)
        bucket.create_bucket(Bucket="models", CreateBucketConfiguration={"LocationConstraint": region})
        iam = boto3.client("iam", **root)
        iam.create_user(UserName="reader")
        policy = {"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::models/*"}]}
        iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName="reader")["AccessKey"]
        # moto takes no signature, boto3's neither, of a key that has to be encoded; the next test has those.
        plain = {name: content for name, content in FILES.items() if name.isascii()}
        for name, content in plain.items():
            bucket.put_object(Bucket="models", Key=f"r1/v2/{name}", Body=content)
        sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in plain.items()).encode()
        bucket.put_object(Bucket="models", Key="r1/v2/SHA256SUMS", Body=sums)
        httpx.post(f"{url}/moto-api/reset-auth", content="0").raise_for_status()  # from now on it asks who is there
        env = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        checksum = f"sha256:{hashlib.sha256(sums).hexdigest()}"
        yield ("s3://models/r1/v2", checksum), ("--s3-endpoint", url, "--s3-region", region), env
    finally:
        process.kill()
        process.wait()


def test_s3_takes_the_signatures_also_of_a_rest(s3, tmp_path):
    source, where, env = s3
    ours = tmp_path / "to/.millrace-fetch"
    ours.mkdir(parents=True)
    content = FILES[LARGE]
    (ours / f"{hashlib.sha256(content).hexdigest()}-1.part").write_bytes(content[:2_000_000])
    code, out, log = fetch(*source, tmp_path / "to", *where, env=env)
    assert code == 0, log
    assert "4.0 MB downloaded" in out, out
    assert (tmp_path / "to" / LARGE).read_bytes() == content


def test_s3_signatures_are_those_of_amazons_own_library(model, tmp_path):
    """Also for names that have to be encoded, where signers differ."""
    _, checksum = model
    key, secret, region = "AKIDEXAMPLE", "wJalrXUtnFEMI", "eu-north-1"
    with FilesServer(tmp_path.parent) as server:
        code, _, log = fetch(f"s3://{tmp_path.name}/model", checksum, tmp_path / "to", "--s3-endpoint", server.url,
                             "--s3-region", region, env={"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret})
        assert code == 0, log
    assert_whole(tmp_path / "to")
    assert len(server.seen) == len(FILES)  # an empty file is known without asking; and there is the list
    for path, headers in server.seen:
        headers = {name.lower(): value for name, value in headers.items()}
        signed = re.search("SignedHeaders=([^,]*)", headers["authorization"])[1].split(";")
        request = AWSRequest("GET", server.url + path, headers={name: headers[name] for name in signed if name != "host"})
        request.context["timestamp"] = headers["x-amz-date"]
        signer = S3SigV4Auth(Credentials(key, secret), "s3", region)
        expected = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
        assert headers["authorization"].endswith(f"Signature={expected}"), path


@pytest.mark.parametrize("change, says", [
    ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
    ({"AWS_ACCESS_KEY_ID": "AKIAAAAAAAAAAAAAAAAA"}, "InvalidAccessKeyId"),
    ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "none were given"),
    ({"AWS_ACCESS_KEY_ID": None}, "AWS_ACCESS_KEY_ID"),
])
def test_s3_refuses_others(s3, tmp_path, change, says):
    source, where, env = s3
    code, _, log = fetch(*source, tmp_path / "to", *where, env={k: v for k, v in (env | change).items() if v is not None})
    assert code == 1 and says in log, log
    assert not (tmp_path / "to/SHA256SUMS").exists()


def test_s3_without_the_folder(s3, tmp_path):
    (_, checksum), where, env = s3
    code, _, log = fetch("s3://models/other", checksum, tmp_path / "to", *where, env=env)
    assert code == 1 and "other/SHA256SUMS" in log, log


def test_what_is_no_checksum_is_an_error_of_the_command_line(tmp_path):
    code, _, log = fetch("http://localhost", "md5:1", tmp_path / "to")
    assert code == 2 and "sha256sum" in log, log
