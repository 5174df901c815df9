"""The service's processes, as the benchmarks start them: an API on a store of its own, runners beside it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]


def resident_mb(pid: int) -> float:
    """Memory that a process has in RAM."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Server:
    """`continua serve` on a free port, with its store, tokens and log under `directory`. Use as a context."""

    def __init__(self, directory: Path, environment: Mapping[str, str] | None = None) -> None:
        self.directory, self.store = directory, directory / "store"
        self.environment = {
            **os.environ,
            "CONTINUA_STORE": str(self.store),
            "XDG_CONFIG_HOME": str(directory / "config"),
            "XDG_CACHE_HOME": str(directory / "cache"),
            "PYTHONPATH": str(ROOT),
            **(environment or {}),
        }
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.running: list[subprocess.Popen[bytes]] = []
        self.process = self.start("serve", "--port", str(port))

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Another command of ours beside the API, ended with it."""
        with open(self.directory / f"{arguments[0]}.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    @property
    def token(self) -> str:
        """That of whoever started it."""
        return (self.directory / "config/continua/token").read_text().strip()

    @property
    def headers(self) -> dict[str, str]:
        """What a client must say."""
        return {"Authorization": f"Bearer {self.token}"}

    def client(self) -> httpx.Client:
        """A client with one connection."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=120)

    def __enter__(self) -> Server:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/healthz").status_code == 200:
                    return self
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.__exit__()
                raise RuntimeError(f"the API did not come up: {(self.directory / 'serve.log').read_text()[-2000:]}")
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.running):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
