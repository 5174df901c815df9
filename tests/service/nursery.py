"""Programs that start in no time: forked from one that has imported all that they would, and does nothing else.

    >>> nursery = Nursery(log, crash_points.be, "service.runner.drive")
    >>> pid = nursery.born(["api", ...])

A loop that kills what it has started hundreds of times would mostly wait for imports. What is born runs the program's
real entry point in a session of its own. Its parent is the nearest process above that adopts orphans (`adopting`), so
whoever asks can be it, and wait for it as for any child.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SOON = ("service.api.serve", "service.runner.work", "service.driver", "service.samplers.tpe", "trials.train", "pandas")
_ADOPT = 36  # PR_SET_CHILD_SUBREAPER
Be = Callable[[Sequence[str]], None]


def adopting() -> None:
    """From now on whoever is orphaned below this process is a child of it."""
    assert ctypes.CDLL(None, use_errno=True).prctl(_ADOPT, 1, 0, 0, 0) == 0


def forking(end: socket.socket, be: Be) -> None:
    """Fork whoever is asked for, until nobody is left who could ask. Call it before there are threads."""
    while True:
        message, handles, _, _ = socket.recv_fds(end, 1 << 16, 3)
        if not message:
            return
        told, tell = os.pipe()
        if (between := os.fork()) == 0:
            if os.fork() == 0:
                os.setsid()
                os.write(tell, f"{os.getpid()}".encode())
                _live(be, json.loads(message), handles, (end.fileno(), told, tell))
            os._exit(0)
        os.waitpid(between, 0)  # now it is an orphan
        end.sendall(os.read(told, 20))
        for handle in (told, tell, *handles):
            os.close(handle)


def _live(be: Be, words: Sequence[str], handles: Sequence[int], others: Sequence[int]) -> None:
    for standard, handle in enumerate(handles):
        os.dup2(handle, standard)
    for handle in (*handles, *others):
        os.close(handle)
    code = 1
    try:
        be(words)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)


class Nursery:
    """The other end: a process that has imported everything, or with `forked` a copy of this one that has."""

    def __init__(self, end: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self._end, self._process, self._lock = end, process, threading.Lock()

    @classmethod
    def started(cls, log: Path, program: str, *words: str) -> Nursery:
        """`program` is to call `main`; `words` are for whoever looks at command lines."""
        ours, theirs = socket.socketpair()
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, program, "nursery", str(theirs.fileno()), *words],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                cwd=Path(__file__).parents[2],
            )
        theirs.close()
        return cls(ours, process)

    @classmethod
    def forked(cls, be: Be) -> Nursery:
        """A copy of this process, which becomes the parent of whoever is born. Call it before there are threads."""
        adopting()
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            forking(theirs, be)
            os._exit(0)
        theirs.close()
        return cls(ours)

    def born(self, words: Sequence[str], handles: Sequence[int]) -> int:
        """The process of whoever is born to be `words`, with those for its standard streams."""
        with self._lock:
            socket.send_fds(self._end, [json.dumps(list(words)).encode()], list(handles))
            return int(self._end.recv(20))

    def close(self) -> None:
        """Nobody more is born."""
        self._end.close()
        if self._process is not None:
            self._process.wait(30)


class Born:
    """What `subprocess.Popen` would be, with three pipes."""

    def __init__(self, nursery: Nursery, words: Sequence[str]) -> None:
        (stdin, self_in), (self_out, stdout), (self_err, stderr) = (os.pipe() for _ in range(3))
        self.returncode: int | None = None
        self.pid = nursery.born(words, (stdin, stdout, stderr))
        for handle in (stdin, stdout, stderr):
            os.close(handle)
        self.stdin: Any = io.FileIO(self_in, "w")
        self.stdout: Any = io.BufferedReader(io.FileIO(self_out))
        self.stderr: Any = io.BufferedReader(io.FileIO(self_err))

    def wait(self) -> int:
        """Its exit code, as `subprocess` counts."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


def main(end: str, be: Be) -> None:
    """The process of `Nursery.started`."""
    for name in SOON:
        importlib.import_module(name)
    adopting()
    forking(socket.socket(fileno=int(end)), be)
