"""A Ray cluster of one's own: it listens on this machine alone, wants its token, and is gone with its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_cases import ROOT, until

from service.executors.ray_cluster import Head, Node, NotStarted, node_here

pytestmark = pytest.mark.slow

OWNER = """
import sys
from service.executors.ray_cluster import Head
head = Head(cpus=1)
print(head.address, head._nodes[0].directory, head.environment["RAY_AUTH_TOKEN_PATH"], flush=True)
sys.stdin.read()
"""
CLIENT = """
from service.controller import SearchFailed
from service.executors.ray_connection import connect
try:
    connect(1)
except SearchFailed as error:
    print(error)
"""


def below(pid: int) -> set[int]:
    """Living processes that this one, or a process of it, started."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state not in "ZX":
                parents[int(entry.name)] = int(parent)
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def living(pids: set[int]) -> set[int]:
    found = set()
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.add(pid)
        except OSError:
            continue
    return found


def listening(pids: set[int]) -> set[str]:
    """The addresses, as the kernel writes them, on which those processes listen."""
    inodes = set()
    for pid in pids:
        try:
            links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        inodes |= {link[8:-1] for link in links if link.startswith("socket:[")}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {fields[1].partition(":")[0] for fields in lines if fields[3] == "0A" and fields[9] in inodes}


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    before = below(os.getpid())
    with Head(cpus=1, gpus=0) as head:
        yield head
    assert not below(os.getpid()) - before
    assert not head.alive


def test_it_listens_on_this_machine_alone(head):
    assert head.address.startswith("127.0.0.1:")
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    assert listening(below(os.getpid()))
    assert listening(below(os.getpid())) <= loopback


def test_its_token_is_its_owners_alone(head):
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text()) >= 40
    assert token.read_text() not in str(head.environment)


def test_a_client_with_another_token_is_refused_in_plain_words(head):
    environment = {**os.environ, **head.environment, "RAY_AUTH_TOKEN": "a guess"}
    argv = [sys.executable, "-c", CLIENT]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert "refuses us: its token is missing or another one; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH" in (
        done.stdout
    )
    assert "Traceback" not in done.stderr


def test_a_node_is_killed_with_all_its_processes_and_no_others(head):
    before = below(os.getpid())
    node = head.join(cpus=1)
    theirs = below(os.getpid()) - before
    assert len(theirs) >= 3
    node.kill()
    assert not living(theirs)
    assert living(before) == before
    assert head.alive
    assert not node.alive
    assert not node.directory.exists()
    node.kill()  # twice is as good as once


def test_nothing_outlives_a_killed_owner():
    argv = [sys.executable, "-c", OWNER]
    owner = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        address, *places = owner.stdout.readline().decode().split()
        assert address.startswith("127.0.0.1:")
        assert all(Path(place).exists() for place in places)
        theirs = below(owner.pid)
        assert len(theirs) >= 4
    finally:
        owner.kill()
        owner.communicate()
    until(lambda: not living(theirs), 20)
    assert not any(Path(place).exists() for place in places)
    assert not Path(places[1]).parent.exists()


def test_a_node_of_this_machine_is_found(head, monkeypatch):
    assert node_here()
    monkeypatch.setattr("service.executors.ray_cluster._commands", lambda: iter([["/bin/sh", "raylet"], [""]]))
    assert not node_here()


def test_nothing_outlives_a_killed_keeper(head):
    before = below(os.getpid())
    node = head.join(cpus=1)
    theirs = below(os.getpid()) - before
    (keeper,) = (pid for pid in theirs if b"ray_cluster.py" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(keeper, signal.SIGKILL)
    until(lambda: not node.alive, 20)
    until(lambda: not living(theirs), 60)  # Ray's agents look after their parents only now and then
    node.kill()


def test_a_node_that_cannot_start_says_what_ray_said():
    began = time.monotonic()
    node = Node(["--head", "--port=0", "--no-such-option"], dict(os.environ))
    with pytest.raises(NotStarted, match=r"(?i)no such option"):
        node.address(120)
    assert time.monotonic() - began < 100  # it was not waited for in vain
    assert not node.directory.exists()
