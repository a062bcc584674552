"""`millrace chat` as a person uses it: arguments, pipes, and a terminal."""
import os
import pty
import select
import signal
import subprocess
import time

import pytest

from deployment import BINARY, PATIENCE, environment, wait_for


def chat(split, *args, **how):
    command = [BINARY, "chat", "--grpc", split.grpc, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment(), **how)


def test_one_question(split):
    done = chat(split, "--temperature", "0", "What", "is", "2718", "+", "3141?", stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (0, "5859\n", "")


def test_a_piped_question(split):
    done = chat(split, "--temperature", "0", input="Subtract 17 from 95.\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "78\n", "")


def test_errors_are_one_line_and_say_what_to_do(split):
    done = chat(split, "--model", "gpt-17", "Hello")
    assert done.returncode == 1 and "gpt-17" in done.stderr and done.stdout == ""
    done = subprocess.run([BINARY, "chat", "--grpc", "127.0.0.1:1", "Hello"], capture_output=True, text=True, env=environment())
    assert done.returncode == 1 and "millrace up" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "empty" in chat(split, input=" \n").stderr


class Terminal:
    """`millrace chat` in a pseudo-terminal."""

    def __init__(self, split, *args):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(BINARY, [BINARY, "chat", "--grpc", split.grpc, *args], environment() | {"TERM": "xterm"})
        self.seen = ""

    def read(self, wanted):
        """Reads on until `wanted` appears; gives what came before it."""
        end = time.monotonic() + PATIENCE
        while wanted not in self.seen:
            assert time.monotonic() < end, f"no {wanted!r} in {self.seen!r}"
            if select.select([self.fd], [], [], 1)[0]:
                self.seen += os.read(self.fd, 65536).decode(errors="replace")
        before, self.seen = self.seen.split(wanted, 1)
        return before

    def type(self, keys):
        os.write(self.fd, keys.encode())

    def ask(self, question):
        self.read("> ")
        self.type(question + "\r")

    def exit_code(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminal(split):
    terminal = Terminal(split, "--temperature", "0")
    yield terminal
    try:
        os.kill(terminal.pid, signal.SIGKILL)
        os.waitpid(terminal.pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def test_a_conversation(terminal):
    terminal.ask("What is 2718 + 3141?")
    thinking = terminal.read("\r\n\r\n5859\r\n")
    assert "\x1b[2m" in thinking, "thinking is dimmed"
    assert thinking.rstrip().endswith("\x1b[0m"), "the answer is not"
    terminal.ask("Reverse the word stone.")
    terminal.read("\r\n\r\nenots\r\n")
    terminal.ask("/reset")
    terminal.read("forgotten")
    terminal.ask("/nonsense")
    terminal.read("/help lists them")
    terminal.ask("/exit")
    assert terminal.exit_code() == 0


def test_ctrl_c_stops_the_answer_and_not_the_session(terminal, split):
    # Free text runs on and on under greedy decoding of this model; any answer that has begun will do.
    terminal.ask("Sort these words alphabetically: " + ", ".join(["stone", "apple", "river", "cloud", "zebra", "mango"] * 20))
    terminal.read("\x1b[2m")
    terminal.type("\x03")
    terminal.read("(stopped)")
    wait_for(lambda: split.total("millrace_num_requests_running") == 0, "the request to be cancelled")
    terminal.ask("Subtract 17 from 95.")
    terminal.read("\r\n\r\n78\r\n")
    terminal.read("> ")
    terminal.type("\x04")
    assert terminal.exit_code() == 0
