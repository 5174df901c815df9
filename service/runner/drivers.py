"""Driver processes as their runner sees them: `drive` on the other end of two pipes.

    >>> driver = Driver.start("local", news=event.set)          # seconds before it is ready
    >>> driver.begin({"search": "digits-3fa2b1", "store": "runs", ...}, log=Path("runs/.../driver.log"))
    >>> driver.progress, driver.over, driver.ended

What a driver and the user's code in it say on stderr is kept in a file beside the search, the last megabyte or two.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from service.runner.fence import DRIVE

COMMAND = (sys.executable, "-u", "-m", DRIVE)
LOG_BYTES = 1 << 20  # of one file of what a driver says; the one before it is kept
SECRETS = ("CONTINUA_BOARD", "CONTINUA_TOKEN", "CONTINUA_TOKEN_FILE")
WORDS = 2000  # bytes of what it said last that a failure quotes


class Driver:
    """One driver process, in a session of its own. `news` is called, from another thread, whenever it said something
    or ended.

    `progress` is what it last said of that; `heard` when it last said anything (monotonic); `over` whether the process
    is gone; `ended` what it said of its end, None if it died without a word.
    """

    def __init__(self, process: subprocess.Popen[bytes], news: Callable[[], None]) -> None:
        self.process, self._news = process, news
        self.ready = self.over = self.begun = False
        self.progress: Mapping[str, Any] = {}
        self.ended: Mapping[str, Any] | None = None
        self.heard = time.monotonic()
        self._words = b""
        self._log: Path | None = None
        self._reaping, self._ours = threading.Lock(), False
        self._listeners = [
            threading.Thread(target=listen, name=name, daemon=True)
            for name, listen in (("words", self._take_words), ("driver", self._read))
        ]
        for thread in (*self._listeners, threading.Thread(target=self._reap, name="reaper", daemon=True)):
            thread.start()

    @classmethod
    def start(cls, executor: str, *, news: Callable[[], None], environment: Mapping[str, str] | None = None) -> Driver:
        """A new process, which gets ready by itself."""
        process = subprocess.Popen(
            [*COMMAND, executor],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**_harmless(os.environ), **(environment or {})},
            start_new_session=True,  # Ctrl-C is the runner's to handle, and whatever it started ends with it
        )
        return cls(process, news)

    def begin(self, order: Mapping[str, Any], log: Path) -> None:
        """Drive that search; it need not be ready yet."""
        self.begun, self.heard, self._log = True, time.monotonic(), log
        self.tell(**order)

    def tell(self, **order: Any) -> None:
        """One more line of orders; one that is gone does not mind."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()

    def kill(self) -> None:
        """End it and what it started, at once."""
        self._ours = True
        self._end()

    def _end(self) -> None:
        with self._reaping:
            if self.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def how(self) -> str:
        """How a process that said nothing of its end came to it, and what it said last."""
        said = self._words.decode(errors="replace").strip().rpartition("\n")[2]
        ended = "by its runner" if self._ours else _code(self.process.returncode)
        return f"its driver ended ({ended}); it last said: {said or 'nothing'}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            for line in pipe:
                with contextlib.suppress(ValueError):
                    self._take(json.loads(line))

    def _reap(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(ChildProcessError):  # `kill` was first
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)  # its number stays its group's until then
        self._end()
        for thread in self._listeners:
            thread.join(1.0)  # what the user's code forked and left may hold on to a pipe for ever
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.over = True
        self._news()

    def _take(self, message: Mapping[str, Any]) -> None:
        self.heard = time.monotonic()
        self.ready = self.ready or bool(message.get("ready"))
        self.progress = message.get("progress", self.progress)
        if "ended" in message:
            self.ended = message
        self._news()

    def _take_words(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as pipe:
            while said := os.read(pipe.fileno(), 1 << 16):
                self._words = (self._words + said)[-WORDS:]
                if self._log is not None:
                    with contextlib.suppress(OSError):  # a full disk is no reason to end a search here
                        _append(self._log, said)


def _harmless(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what opens the board and the API: the user's code runs in drivers and workers."""
    return {name: value for name, value in environment.items() if name not in SECRETS}


def _append(log: Path, said: bytes) -> None:
    with log.open("ab") as file:
        file.write(said)
        size = file.tell()
    if size > LOG_BYTES:
        log.replace(log.with_name(log.name + ".1"))


def _code(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    memory = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
    try:
        return f"killed by {signal.Signals(-code).name}{memory}"
    except ValueError:  # most real-time signals have none
        return f"killed by signal {-code}"
