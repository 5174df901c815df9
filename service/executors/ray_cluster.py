"""A Ray cluster of one's own on this machine: a head node, further nodes, and nothing left when their owner is gone.

    >>> with Head(cpus=4) as head:                       # listens on 127.0.0.1 alone, and to its token
    ...     subprocess.run([...], env={**os.environ, **head.environment})     # a driver that finds it
    ...     node = head.join(cpus=2)
    ...     node.kill()                                  # as if that machine had lost its power

Each node is kept by a small process of its own that holds a lifeline to its owner and adopts whatever Ray's processes
leave behind; so ending a node ends all that it started and nothing else, which `ray stop` cannot promise.

This file is also that keeper: `python -I ray_cluster.py LIFELINE DIRECTORIES COMMAND...`. It imports no ray.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PATIENCE = 60.0  # seconds that a node gets to start
OBJECTS = 256 * 2**20  # bytes of shared memory for objects; bundles and outcomes are small
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # at 0, Ray takes 127.0.0.1 for this machine's address
_START = (  # Ray's command line, which would turn 127.0.0.1 into this machine's address on the network
    "import ray._private.services as s; s.resolve_ip_for_localhost = str; from ray.scripts.scripts import main; main()"
)


class NotStarted(RuntimeError):
    """A node did not start; the message holds what Ray said."""


class Node:
    """The processes of one Ray node. They end with `kill`, or with the process that made this object, and with them its
    directory and `others`."""

    def __init__(self, options: list[str], environment: dict[str, str], others: Sequence[Path] = ()) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="continua-ray-", dir=_short()))
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (it outlives the directory, to be told of)
        life_end, self._lifeline = os.pipe()
        gone = os.pathsep.join(map(str, (self.directory, *others)))
        command = [sys.executable, "-c", _START, "start", "--block", *options, f"--temp-dir={self.directory}"]
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", __file__, str(life_end), gone, *command],
            pass_fds=[life_end],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C is the owner's to handle
        )
        os.close(life_end)

    @property
    def alive(self) -> bool:
        """Whether the node is there, as far as this machine knows."""
        return self._keeper.poll() is None

    def address(self, patience: float = PATIENCE) -> str:
        """Where the cluster's head listens, once this node is up. Raises `NotStarted`."""
        deadline = time.monotonic() + patience
        place = self.directory / "ray_current_cluster"
        while time.monotonic() < deadline and self.alive:
            with contextlib.suppress(OSError):
                if address := place.read_text().strip():
                    return address
            time.sleep(0.02)
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip()[-2000:]
        self.kill()
        raise NotStarted(f"a Ray node did not start within {patience:g} seconds; it said: {said or 'nothing'}")

    def kill(self) -> None:
        """SIGKILL for every process of this node, and for no other; nothing of it is left on return."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        self._keeper.wait()
        self._said.close()
        shutil.rmtree(self.directory, ignore_errors=True)  # the keeper may have been killed


class Head:
    """A head node with a token of its own, and the nodes that joined it. Use as a context, or call `stop`.

    Args:
        cpus: how many to offer; those of the machine by default.
        gpus: how many to offer; those of the machine by default.
        memory: bytes to offer; what is free by default.

    Raises:
        NotStarted: with what Ray said.
    """

    def __init__(self, *, cpus: int | None = None, gpus: int | None = None, memory: int | None = None) -> None:
        self._nodes: list[Node] = []
        self._secrets = Path(tempfile.mkdtemp(prefix="continua-token-"))  # which only its owner may enter
        try:
            token = self._secrets / "token"
            token.touch(mode=0o600)
            token.write_text(secrets.token_urlsafe(32))
            self.environment = {
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(token),
                "RAY_AUTH_TOKEN": "",  # another cluster's would go before the path
                LOOPBACK: "0",
            }
            options = ["--head", "--port=0", "--include-dashboard=false", "--no-monitor"]
            self.address = self._node(options, cpus, gpus, memory, [self._secrets]).address()
            self.environment["RAY_ADDRESS"] = self.address
        except BaseException:
            self.stop()
            raise

    @property
    def alive(self) -> bool:
        """Whether the head itself is there."""
        return bool(self._nodes) and self._nodes[0].alive

    def join(self, *, cpus: int | None = None, gpus: int | None = None, memory: int | None = None) -> Node:
        """One more node on this machine. Raises `NotStarted`."""
        node = self._node([f"--address={self.address}"], cpus, gpus, memory)
        node.address()
        return node

    def stop(self) -> None:
        """End all nodes, the head last; nothing of them is left on return."""
        while self._nodes:
            self._nodes.pop().kill()
        shutil.rmtree(self._secrets, ignore_errors=True)

    def __enter__(self) -> Head:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _node(
        self,
        options: list[str],
        cpus: int | None,
        gpus: int | None,
        memory: int | None,
        others: Sequence[Path] = (),
    ) -> Node:
        wanted = {"num-cpus": cpus, "num-gpus": gpus, "memory": memory, "object-store-memory": OBJECTS}
        options = [
            *options,
            *(f"--{name}={value}" for name, value in wanted.items() if value is not None),
            "--node-ip-address=127.0.0.1",
            "--min-worker-port=0",  # any that are free
            "--max-worker-port=0",
            "--include-log-monitor=false",
            "--disable-usage-stats",
        ]
        environment = {**os.environ, **self.environment, LOOPBACK: "1"}  # else a further node is refused
        environment["RAY_health_check_period_ms"] = "1000"  # a lost node is noticed after five
        environment.pop("RAY_ADDRESS", None)
        node = Node(options, environment, others)
        self._nodes.append(node)
        return node


def node_here(patience: float = 0.0) -> bool:
    """Whether a Ray node runs on this machine, or does so within so many seconds. A driver reaches its cluster through
    one, and looks for it among the processes, as this does."""
    deadline = time.monotonic() + patience
    while not any(Path(argv[0]).name == "raylet" for argv in _commands()):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.2)
    return True


NO_NODE = (  # what to do where there is none
    "RAY_ADDRESS={address} names a cluster, but no Ray node runs on this machine, through which a driver reaches it; "
    "start one, `ray start --address={address} --num-cpus=0` if it is not to train here (deploy/runner.sh starts one "
    "beside the runner), or unset RAY_ADDRESS to have Ray on this machine alone."
)


def _commands() -> Iterator[list[str]]:
    """The command line of every process here."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # ended this instant
                yield (entry / "cmdline").read_text(errors="replace").split("\0")


def _short() -> str | None:
    """Where nodes keep their files: Ray's sockets lie deep within, and a socket's path has at most 107 characters."""
    return None if len(tempfile.gettempdir()) <= 24 else "/tmp"


# -- the keeper --------------------------------------------------------------------------------------------------------


def descendants() -> list[int]:
    """Processes that this one started, and theirs."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):  # ended this instant
                parents[int(entry)] = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return list(found - {os.getpid()})


def keep(life_end: int, directories: list[str], command: list[str]) -> None:
    """Run the command until it ends or the lifeline does, then end whatever came of it and remove the directories."""
    libc, subreaper, parent_death = ctypes.CDLL(None), 36, 1
    libc.prctl(subreaper, 1, 0, 0, 0)
    for ending in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ending, lambda *_: os.close(life_end))
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, preexec_fn=lambda: libc.prctl(parent_death, signal.SIGKILL, 0, 0, 0)
    )
    with contextlib.suppress(OSError):  # closed by a signal
        while not select.select([life_end], [], [], 0.2)[0] and not _ended(child.pid):
            pass
    while left := descendants():
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _ended(child.pid)
        time.sleep(0.01)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def _ended(child: int) -> bool:
    """Bury the dead, among them what was adopted. Returns whether the child is one of them."""
    ended = False
    with contextlib.suppress(ChildProcessError):
        while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            ended = ended or pid == child
    return ended


if __name__ == "__main__":
    keep(int(sys.argv[1]), sys.argv[2].split(os.pathsep), sys.argv[3:])
