"""`continua up`: the API and a runner as child processes of one that starts them in order and ends them in order.

    >>> Up(Path("runs"), "sqlite:////runs/board.sqlite", "127.0.0.1", 8642, ["--searches", "4"]).run()

While it runs, `<store>/server.json` says where the service is. A child that dies ends the other and the program (exit
1); should the program itself be killed, the kernel tells its children to end.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from search_spaces.faults import Invalid
from service.cli.app import ERROR
from service.settings import started_url, token_file
from service.show import say
from trials.segments import write_bytes
from trials.store import Conflict, Store

START = 60.0  # seconds that the API may take to answer
GRACE = 45.0  # seconds that a child may take to end in order
LOOK = 0.1
_PDEATHSIG = 1  # of Linux's prctl


class Up:
    """One service on one machine."""

    def __init__(
        self, root: Path, board: str, host: str, port: int, work: list[str], serve: Sequence[str] = ()
    ) -> None:
        self.root, self.board, self.host, self.work, self.serve = root, board, host, work, serve
        self.port = _free_port(host, port)
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        self.url = f"http://{f'[{shown}]' if ':' in shown else shown}:{self.port}"
        self._children: list[tuple[str, subprocess.Popen[bytes]]] = []

    def run(self) -> int:
        """Start it, and return the exit code once it has ended.

        Raises:
            Conflict: when a service is up on the store already.
            Invalid: when the store cannot be written to.
        """
        self.root = Store(self.root).root.absolute()
        known = started_url(self.root)
        if known is not None and _answers(known.value):
            raise Conflict(
                f"store: must be served once at a time, but {known.value} does so already; use that, or end it."
            )
        file = self.root / "server.json"
        with _signalled() as stop:
            try:
                self._start("serve", "--host", self.host, "--port", str(self.port), *self.serve)
                if not self._answered(stop):
                    return 0 if stop.is_set() else ERROR
                write_bytes(file, json.dumps({"url": self.url, "pid": os.getpid()}).encode() + b"\n", replace=True)
                self._start("work", *self.work)
                say(f"continua is up at {self.url}; store {self.root}")
                say(f"its first token is in {token_file()}, where `continua submit` looks; Ctrl-C ends it all")
                return self._attended(stop)
            finally:
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)
                self._end()

    def _start(self, name: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "service.cli", name, *arguments, "--store", str(self.root)]
        environment = {**os.environ, "CONTINUA_BOARD": self.board}  # it may hold a password: not where `ps` shows it
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            env=environment,
            start_new_session=True,  # Ctrl-C is for us, who end them in order
            preexec_fn=_die_with_parent,
        )
        self._children.append((name, child))

    def _answered(self, stop: threading.Event) -> bool:
        """Whether the API came to answer."""
        name, child = self._children[0]
        deadline = time.monotonic() + START
        while not stop.is_set():
            if child.poll() is not None:
                say(f"error: {name} ended at once (exit {child.returncode}); what it said stands above")
                return False
            if _answers(self.url):
                return True
            if time.monotonic() > deadline:
                say(f"error: {name} does not answer at {self.url} after {START:.0f} s")
                return False
            stop.wait(LOOK)
        return False

    def _attended(self, stop: threading.Event) -> int:
        """Until it is told to stop, or a child has ended by itself."""
        while not stop.wait(LOOK):
            for name, child in self._children:
                if child.poll() is not None:
                    say(f"error: {name} ended by itself (exit {child.returncode}), so all of it ends")
                    return ERROR
        say("ending: the runner hands its searches back, then the API goes")
        return 0

    def _end(self) -> None:
        """The runner first: it still needs the board, and its clients the API."""
        for name, child in reversed(self._children):
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(GRACE)
                except subprocess.TimeoutExpired:
                    say(f"warning: {name} does not end, so it is killed")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _die_with_parent() -> None:
    """In the child, before it becomes another program: SIGTERM when its parent is gone. Linux alone knows how."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def _signalled() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/healthz", timeout=2.0) as answer:
            return int(answer.status) == 200
    except (OSError, ValueError, urllib.error.URLError):
        return False


def _free_port(host: str, port: int) -> int:
    """The port, or any for 0. Raises `Conflict` where somebody listens there."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            free: int = probe.getsockname()[1]
            return free
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Conflict(f"port: must be free, but somebody listens at {host}:{port}; choose another.") from None
        raise Invalid([f"host: must be an address of this machine, but got {host!r}: {error.strerror}."]) from None
