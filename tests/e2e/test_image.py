"""The image's root folder, made and run without a container engine, and the Containerfile that makes the same."""
import hashlib
import json
import os
import re
import shutil
import subprocess

import pytest

from deployment import BINARY, REPOSITORY, environment

IMAGE = REPOSITORY / "image"


def run(*command, env=None, cwd=REPOSITORY):
    done = subprocess.run([str(it) for it in command], capture_output=True, text=True, cwd=cwd, timeout=300,
                          env=environment() | (env or {}))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def labels(*args, env=None):
    lines = run(IMAGE / "labels", *args, env=env).splitlines()
    return {key.removeprefix("org.opencontainers.image."): value for key, value in (line.split("=", 1) for line in lines)}


def content(folder):
    """Everything that an image layer would hold: modes, owners, times and bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        data = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        found[str(path.relative_to(folder))] = (oct(stat.st_mode), stat.st_uid, stat.st_gid, stat.st_mtime_ns, data)
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image") / "root"
    printed = run(IMAGE / "rootfs", folder, "--binary", BINARY, env={"SOURCE_DATE_EPOCH": "1700000000"})
    print(printed)  # the sizes, for -s
    yield folder, printed
    shutil.rmtree(folder)


def test_it_has_what_the_roles_need_and_says_so(root):
    folder, printed = root
    for path in ("/millrace", "/usr/bin/etcd", "/etc/ssl/certs/ca-certificates.crt", "/etc/passwd", "/licenses/millrace"):
        assert (folder / path[1:]).is_file() and f" {path}\n" in printed
    assert (folder / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert "millrace:x:65532:65532:" in (folder / "etc/passwd").read_text()
    assert re.search(r"\d MB in all", printed)
    writable = [path for path in folder.rglob("*") if path.lstat().st_mode & 0o022 and path.name != "tmp"]
    assert not writable
    assert {stat[3] for stat in content(folder).values()} == {1_700_000_000_000_000_000}


def test_it_is_the_same_each_time(root, tmp_path):
    run(IMAGE / "rootfs", tmp_path / "again", "--binary", BINARY, env={"SOURCE_DATE_EPOCH": "1700000000"})
    assert content(tmp_path / "again") == content(root[0])
    shutil.rmtree(tmp_path / "again")


def test_etcd_can_be_left_out_and_a_full_folder_is_refused(tmp_path):
    run(IMAGE / "rootfs", tmp_path / "root", "--binary", BINARY, "--etcd", "no")
    assert not (tmp_path / "root/usr/bin").exists()
    again = subprocess.run([IMAGE / "rootfs", tmp_path / "root", "--binary", BINARY], capture_output=True, text=True)
    assert again.returncode == 1 and "is not empty" in again.stderr
    shutil.rmtree(tmp_path / "root")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may chroot")
def test_it_runs_as_its_user(root):
    folder, _ = root
    command = ["chroot", "--userspec=65532:65532", folder, "/millrace"]
    assert run(*command, "--version") == run(BINARY, "--version")
    assert "--url" in run(*command, "fetch", "--help")


def test_the_labels_are_those_of_the_binary():
    facts = run(BINARY, "--version").splitlines()
    of_binary = labels("--binary", BINARY)
    assert facts[0] == f"millrace {of_binary['version']}" and facts[1] == f"revision: {of_binary['revision']}"
    of_tree = labels(env={"SOURCE_DATE_EPOCH": "0", "MILLRACE_SOURCE": "https://example.org/x"})
    assert of_tree["version"] == of_binary["version"] and of_tree["created"] == "1970-01-01T00:00:00Z"
    assert of_tree["source"] == "https://example.org/x" and of_tree.keys() >= {"title", "licenses"}


def stages():
    """As BuildKit's own parser reads the Containerfile; it fails for what BuildKit warns of."""
    if not shutil.which("go"):
        pytest.skip("needs Go")
    parsed = json.loads(run("go", "run", ".", IMAGE / "Containerfile", cwd=IMAGE / "check"))
    return {stage["Name"]: (stage["Base"], stage["Instructions"] or []) for stage in parsed}


def test_the_containerfile_parses_and_runs_the_same_script():
    found = stages()
    assert list(found) == ["builder", "content"]
    base, builder = found["builder"]
    version = re.search(r'^rust-version = "(.*)"', (REPOSITORY / "Cargo.toml").read_text(), re.M)[1]
    assert base == f"rust:{version}-bookworm"
    steps = [it for it in builder if it.startswith("RUN ")]
    assert len(steps) == 5 and "apt-get install" in steps[0]
    tools = (REPOSITORY / "tests/tools.sh").read_text()
    nixl = re.search(r'"nixl-cu12==\$version"', tools)
    version = re.search(r"local version=([0-9.]+) dir\n  dir=\"\$tools/nixl", tools)[1]
    assert nixl and steps[1].endswith(f"pip install --no-deps --target /nixl nixl-cu12=={version}"), "as the tests have it"
    compiler = re.search(r"^cuda_compiler\(\) \{\n(.*?)^\}", tools, re.M | re.S)[1]
    version = re.search(r"local version=([0-9.]+) dir\n  dir=\"\$tools/cuda", compiler)[1]
    wheels = re.findall(r'"(nvidia-[a-z-]+)==\$version\.\*"', compiler)
    assert len(wheels) == 5 and steps[2].endswith("--target /cuda " + " ".join(f'"{it}=={version}.*"' for it in wheels))
    assert steps[3].endswith("cargo build --release --locked -p millrace --features operator,nixl,cuda")
    assert steps[4].endswith("image/rootfs /rootfs --binary target/release/millrace --etcd yes --nixl /nixl")

    base, content = found["content"]
    assert base == "scratch"
    assert [it for it in content if not it.startswith(("ARG ", "LABEL "))] == [
        "COPY --from=builder /rootfs/ /",
        "ENV LD_LIBRARY_PATH=/opt/nixl/.nixl_cu12.mesonpy.libs", "ENV NIXL_PLUGIN_DIR=/opt/nixl/nixl_cu12.libs/nixl", "USER 65532:65532", 'ENTRYPOINT ["/millrace"]']
    label = next(it for it in content if it.startswith("LABEL "))
    assert set(re.findall(r"org\.opencontainers\.image\.(\w+)=", label)) == labels(env={"MILLRACE_SOURCE": "x"}).keys()
    assert not any(it.startswith("RUN ") for it in content)
