"""`millrace up` as a program: starting, failing to start, restarting what crashed, ending."""
import os
import signal
import socket
import subprocess
import time

import pytest

from deployment import BINARY, Deployment, environment, wait_for


FREE = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie has ended, even if nobody has waited for it.
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"


def none_left(pids):
    return lambda: not any(alive(pid) for pid in pids)


def fails(*args):
    """Runs `millrace up ARGS`, which must fail with one line on standard error; gives that line."""
    done = subprocess.run([BINARY, "up", *args], capture_output=True, text=True, timeout=120, env=environment())
    assert done.returncode == 1, done
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        return [int(child) for child in children.read().split()]


def children(deployment):
    return children_of(deployment.process.pid)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_and_leaves_no_process(how):
    with Deployment() as deployment:
        pids = children(deployment)
        assert len(pids) == 3
        deployment.chat("Hello")
        assert deployment.stop(how) == 0
        assert none_left(pids)()


def test_a_signal_while_it_starts_ends_it_cleanly():
    process = subprocess.Popen([BINARY, "up", *FREE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    wait_for(lambda: len(children_of(process.pid)) == 3 or process.poll() is not None, "the children to start")
    pids = children_of(process.pid)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert none_left(pids)()


def test_killing_it_takes_the_children_along():
    with Deployment() as deployment:
        pids = children(deployment)
        deployment.stop(signal.SIGKILL)
        wait_for(none_left(pids), "the children to end")


def test_a_running_answer_is_finished_before_it_ends():
    with Deployment() as deployment:
        fields = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True, "temperature": 0}
        with deployment.client.stream("POST", "/v1/completions", json=fields) as answer:
            lines = answer.iter_lines()
            next(lines)
            deployment.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert deployment.wait() == 0


def test_a_second_signal_ends_it_at_once():
    with Deployment() as deployment:
        pids = children(deployment)
        fields = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True, "temperature": 0}
        with deployment.client.stream("POST", "/v1/completions", json=fields) as answer:
            next(answer.iter_lines())
            deployment.process.send_signal(signal.SIGINT)
            wait_for(lambda: "stopping" in "".join(deployment.log), "the first signal to be seen")
            assert deployment.stop(signal.SIGINT) == 130
        assert none_left(pids)()


@pytest.mark.parametrize("role", ["prefill", "decode", "router"])
def test_a_crashed_process_is_started_again(role):
    with Deployment("--local-prefill-tokens", "0") as deployment:
        [old] = deployment.pids()[role]
        os.kill(old, signal.SIGKILL)
        wait_for(lambda: deployment.pids().get(role, [old]) != [old], f"a new {role}")
        log = lambda: "".join(deployment.log)
        wait_for(lambda: "was killed (SIGKILL); starting it again" in log(), "word of the crash")
        if role != "router":
            wait_for(lambda: f"{role}-0 is back" in log(), "word of the recovery")

        def answers():
            try:
                return deployment.chat("What is 2718 + 3141?")["choices"][0]["message"]["content"].strip() == "5859"
            except Exception:
                if role == "router":  # the front door itself was away; workers come back to it
                    time.sleep(0.2)
                    return False
                raise

        wait_for(answers, "an answer")


def test_a_taken_port_is_one_clear_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = "127.0.0.1:%d" % taken.getsockname()[1]
        assert f"--http {address} is in use" in fails("--http", address, "--grpc", "127.0.0.1:0")
        assert f"--grpc {address} is in use" in fails("--grpc", address, "--http", "127.0.0.1:0")


def test_a_bad_model_folder_is_one_clear_line(tmp_path):
    assert str(tmp_path / "nowhere") in fails("--model", str(tmp_path / "nowhere"), *FREE)
    (tmp_path / "config.json").write_text('{"architectures": ["ElizaForCausalLM"]}')
    assert "ElizaForCausalLM" in fails("--model", str(tmp_path), *FREE)


def test_what_only_a_worker_can_refuse_is_one_clear_line():
    assert "--kv-pages" in fails("--kv-pages", "1", *FREE)


def test_flags_that_make_no_sense_are_refused():
    assert "--decode 0" in fails("--decode", "0", *FREE)
    done = subprocess.run([BINARY, "up", "--threads", "0"], capture_output=True, text=True, env=environment())
    assert done.returncode == 2 and "at least 1" in done.stderr
