"""A worker process with a pipe, and who answers it: the piece that every executor with processes is made of.

    >>> worker = Worker.start(threads=1)
    >>> left = attend(worker, controller, assignment, "local-0")         # until it is done, gone, overdue or stopped
    >>> left.how
    <How.DONE: 'done'>

The process leads a session of its own, so whatever the user's code started ends with it. It holds a lifeline to its
parent: a killed parent leaves nothing behind that trains. A bundle that takes longer than `trial_seconds` for each of
its trials ends with its worker: the group gets SIGTERM, `grace_seconds`, then SIGKILL, which nothing can ignore.

This file is also the process: `python -m service.executors.worker PIPE LIFELINE`.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, Protocol

from service.progress import Done
from service.slot import Assignment, Source, serve
from trials.allocator import keep_freed_memory
from trials.records import Bundle, Outcome
from trials.said import keep_in

LAST_GASP = 2.0  # seconds that a worker whose pipe has ended gets to end too, and so to say how it ended
LOOK = 0.25  # seconds between looks at whether a silent worker lives, is late, or is to stop
SOON = ("pandas", "sklearn.datasets")  # what the first Arrow table and the first bundled task would import


class Desk(Source, Protocol):
    """What `attend` needs of a controller."""

    def lost(self, worker: str, words: str) -> None: ...

    def overdue(self, worker: str, words: str) -> None: ...


class How(Enum):
    """How a worker left."""

    DONE = "done"  # nothing is left for it: it lives, and waits for another assignment
    GONE = "gone"  # it died; the desk has been told
    OVERDUE = "overdue"  # it was ended for its bundle took too long; the desk has been told
    STOPPED = "stopped"  # it was ended because all are to stop


@dataclass(frozen=True, kw_only=True)
class Left:
    """How a worker left, whether it ever pulled, and its last words."""

    how: How
    pulled: bool
    words: str = ""


@dataclass
class Worker:
    """A worker process, its pipe, the end of its lifeline, and a file with what it says. `code` names the user's code
    that it has run."""

    process: subprocess.Popen[bytes]
    pipe: Connection
    lifeline: int
    words: IO[bytes]
    threads: int
    code: str = ""

    @classmethod
    def start(cls, threads: int) -> Worker:
        """A new process with `threads` threads for its arithmetic."""
        with contextlib.ExitStack() as stack:
            kept = stack.enter_context(contextlib.ExitStack())  # closed where no process comes of it
            ours, theirs = socket.socketpair()
            kept.callback(ours.close)
            stack.callback(theirs.close)
            life_end, lifeline = os.pipe()
            kept.callback(os.close, lifeline)
            stack.callback(os.close, life_end)
            words = tempfile.TemporaryFile()  # noqa: SIM115  (a pipe would block a worker that says much)
            kept.callback(words.close)
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", "service.executors.worker", str(theirs.fileno()), str(life_end)],
                pass_fds=[theirs.fileno(), life_end],
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
                start_new_session=True,  # Ctrl-C is the driver's to handle
            )
            kept.pop_all()
        return cls(process, Connection(ours.detach()), lifeline, words, threads)

    def alive(self) -> bool:
        """Whether the process runs. It is not waited for, so that its number stays its group's."""
        if self.process.returncode is not None:
            return False
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:  # somebody else has waited for it
            return False

    def end(self, patience: float = 0.0, *, asked: bool = False) -> str:
        """Give the process so many seconds to end by itself (`asked`: on a SIGTERM to its group), then kill its group.
        Returns its last words."""
        ours = self.kill(patience, asked=asked)
        return self.close() + (" (ended by its driver)" if ours else f" ({_ended(self.process.returncode)})")

    def kill(self, patience: float = 0.0, *, asked: bool = False) -> bool:
        """The same, but its pipe can still be read. Returns whether the process did not end by itself."""
        ours = asked and self.alive()
        if asked:
            self._signal(signal.SIGTERM)
        deadline = time.monotonic() + patience
        while (self.alive() or (asked and self._company())) and time.monotonic() < deadline:
            time.sleep(0.005)
        ours = ours or self.alive()
        self._signal(signal.SIGKILL)  # also to what it started and left
        self.process.wait()
        return ours

    def close(self) -> str:
        """Let go of a process that has ended. Returns what it said last."""
        self.words.seek(0)
        said = self.words.read().decode(errors="replace").strip()
        for close in (self.pipe.close, self.words.close, lambda: os.close(self.lifeline)):
            close()
        return said[-2000:] or "nothing"

    def _signal(self, number: signal.Signals) -> None:
        if self.process.returncode is None:  # else its number may be somebody else's by now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def _company(self) -> bool:
        """Whether anything else in its group still runs."""
        for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
            if entry.name.isdecimal() and int(entry.name) != self.process.pid:
                with contextlib.suppress(OSError):
                    state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                    if int(group) == self.process.pid and state not in "ZX":
                        return True
        return False


def _ended(code: int) -> str:
    """How a process ended by itself or by a stranger, from its exit code."""
    if code >= 0:
        return f"exit code {code}"
    memory = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
    try:
        name = signal.Signals(-code).name
    except ValueError:  # most real-time signals have none
        name = f"signal {-code}"
    return f"killed by {name}{memory}"


# -- who answers it ----------------------------------------------------------------------------------------------------


def attend(
    worker: Worker, desk: Desk, assignment: Assignment, name: str, *, stopping: Callable[[], bool] = lambda: False
) -> Left:
    """Answer one worker's calls until it leaves. Unless it is done it has been ended when this returns, and the desk
    knows of it; whatever the desk raises ends the worker too."""
    attendance = _Attendance(worker, desk, assignment, name, stopping)
    try:
        how = attendance.run()
    except BaseException:
        worker.end()
        raise
    pulled, words = attendance.pulled, ""
    if how is How.GONE:
        words = worker.end(LAST_GASP)
        if stopping():
            how = How.STOPPED
        else:
            desk.lost(name, words)
    elif how is How.STOPPED:
        words = worker.end(assignment.grace_seconds, asked=True)
    elif how is How.OVERDUE:
        words = attendance.ended_late()
    return Left(how=how, pulled=pulled, words=words)


class _Attendance:
    def __init__(
        self, worker: Worker, desk: Desk, assignment: Assignment, name: str, stopping: Callable[[], bool]
    ) -> None:
        self.worker, self.desk, self.assignment, self.name, self.stopping = worker, desk, assignment, name, stopping
        self.pulled = False
        self.deadline = math.inf  # monotonic, of the bundle in hand

    def run(self) -> How:
        try:
            self.worker.code = self.assignment.code or self.worker.code
            self.worker.pipe.send((self.assignment, self.name))
            while True:
                if self.worker.pipe.poll(max(0.0, min(LOOK, self.deadline - time.monotonic()))):
                    if self._answer(*self.worker.pipe.recv()):
                        return How.DONE
                elif self.stopping():
                    return How.STOPPED
                elif time.monotonic() >= self.deadline:
                    return How.OVERDUE
                elif not self.worker.alive() and not self.worker.pipe.poll():  # a child of its may hold the pipe open
                    return How.GONE
        except (EOFError, OSError):
            return How.GONE

    def _answer(self, verb: str, args: tuple[Any, ...]) -> bool:
        """Whether it was told that all is done."""
        self.deadline = math.inf
        if verb in ("finish", "unwritable"):
            getattr(self.desk, verb)(*args)
            self.worker.pipe.send(None)
            return False
        self.pulled = True
        answer = self.desk.pull(*args)
        self.worker.pipe.send(answer)
        if isinstance(answer, Bundle) and self.assignment.trial_seconds is not None:
            self.deadline = time.monotonic() + self.assignment.trial_seconds * len(answer.trials)
        return isinstance(answer, Done)

    def ended_late(self) -> str:
        """End a worker whose time is over and tell the desk; but what it finished at the last moment counts."""
        self.worker.kill(self.assignment.grace_seconds, asked=True)
        with contextlib.suppress(EOFError, OSError):
            while self.worker.pipe.poll():
                verb, args = self.worker.pipe.recv()
                if verb == "finish":
                    self.desk.finish(*args)
        said = self.worker.close()
        words = f"it took longer than resources.trial_seconds={self.assignment.trial_seconds:g}; it last said: {said}"
        self.desk.overdue(self.name, words)
        return words


# -- the process -------------------------------------------------------------------------------------------------------


class _Piped:
    """The controller as a worker process sees it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def _call(self, verb: str, *args: Any) -> Any:
        self._pipe.send((verb, args))
        return self._pipe.recv()

    def pull(self, worker: str) -> Bundle | Done | None:
        answer: Bundle | Done | None = self._call("pull", worker)
        return answer

    def finish(self, bundle: Bundle, outcomes: Sequence[Outcome]) -> None:
        self._call("finish", bundle, outcomes)

    def unwritable(self, reason: str) -> None:
        self._call("unwritable", reason)


def _hang_on(life_end: int) -> None:
    """End at once, with all that was started here, when the parent is gone: the read returns when the kernel closes the
    other end."""
    os.read(life_end, 1)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def main(pipe_fd: int, life_end: int) -> None:
    """A worker process: one assignment after the other."""
    threading.Thread(target=_hang_on, args=(life_end,), daemon=True).start()
    keep_in(1)
    keep_freed_memory()  # a convolution's buffers are large; a fifth of a step can be spent on getting them back
    pipe = Connection(pipe_fd)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        for module in SOON:
            if not pipe.poll():  # nobody waits for it
                importlib.import_module(module)
        while True:
            assignment, name = pipe.recv()
            search, trainer = assignment.open()
            serve(_Piped(pipe), search, trainer, name, assignment.checkpoint_every)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
