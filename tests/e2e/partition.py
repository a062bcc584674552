"""Cutting processes of one machine off from each other: a network namespace whose packet filter drops what it is told to.

A test runs its own file again in a new namespace (`in_namespace(__file__)`); there `ready()` comes first.
"""
import shutil
import subprocess
import sys


def impossible():
    """Why there can be no namespaces here; empty if there can."""
    for tool in ("unshare", "ip", "nft"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    tried = subprocess.run(["unshare", "--net", "nft", "list", "ruleset"], capture_output=True, text=True)
    return tried.stderr.strip() if tried.returncode else ""


def in_namespace(file):
    command = ["unshare", "--net", "--kill-child", sys.executable, file]
    ended = subprocess.run(command, capture_output=True, text=True)
    print(ended.stdout, end="")
    assert ended.returncode == 0, ended.stderr


def ready():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    nft("add table inet cut")
    nft("add chain inet cut input { type filter hook input priority 0; }")


def nft(command):
    subprocess.run(["nft", command], check=True)


def drop(what):
    nft(f"add rule inet cut input {what} drop")


def heal():
    nft("flush chain inet cut input")
