"""Strangers' SQL in a process of its own, with limits, that can be killed: `trials.query` says what may be asked.

    >>> with Sandbox(Path("store")) as sandbox:
    ...     sandbox.ask("SELECT count(*) FROM trials").table

A child answers one question at a time and is kept for the next; one that met a limit is killed, and a new one started.
Its address space, processor time, files and time on the wall are limited by the system, not by DuckDB's good will.
Questions go in as lines of JSON and answers come out as Arrow, so that nothing of a child's is ever executed here.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa

from search_spaces.faults import Invalid

if TYPE_CHECKING:
    from trials.query import Answer

MIB = 1024 * 1024
_AFTER = 2.0  # seconds after which a child ends itself, should nobody be there to kill it
_START = 60.0  # seconds that a child may take to load what it needs
_READY = b"ready\n"
_QUESTIONS = 200  # after which a child is let go: memory that was used is never given back whole


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one question may take: `rows` and `size` (bytes) of the answer, which is cut there; `address_space` (bytes)
    of its process and `memory` of it for DuckDB; `cpu` and `wall` seconds; `length` of the statement; and `at_once`
    how many may be asked at the same time."""

    rows: int = 100_000
    size: int = 64 * MIB
    address_space: int = 3072 * MIB
    memory: int = 1024 * MIB
    cpu: int = 20
    wall: float = 30.0
    length: int = 100_000
    at_once: int = 2


class TooMuch(RuntimeError):
    """A question that took more than it may; it was stopped."""


class Busy(RuntimeError):
    """As many questions as may be are being answered."""


class Sandbox:
    """Answers SQL over the store at `root`. Safe from many threads."""

    def __init__(self, root: Path, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._root = root
        self._free = threading.BoundedSemaphore(self.limits.at_once)
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._closed = False

    def warm(self) -> None:
        """Starts a child, so that the next question need not wait for it."""
        with self._lock:
            if not self._idle and not self._closed:
                self._idle.append(_Child(self._root, self.limits))

    def ask(self, sql: str) -> Answer:
        """The answer to one SELECT, cut where it is longer than it may be.

        Raises:
            Invalid: as `trials.query.answer` does.
            TooMuch: when it took more memory or time than it may.
            Busy: when no child came free in time.
        """
        if len(sql) > self.limits.length:
            raise Invalid([f"sql: must be at most {self.limits.length} characters, but got {len(sql)}; shorten it."])
        if not self._free.acquire(timeout=self.limits.wall):
            raise Busy(f"sql: at most {self.limits.at_once} questions are answered at once; try again later.")
        try:
            with self._child() as child:
                return child.ask(sql)
        finally:
            self._free.release()

    @contextlib.contextmanager
    def _child(self) -> Iterator[_Child]:
        with self._lock:
            child = self._idle.pop() if self._idle else None
        if child is not None and not child.alive:
            child.kill()
            child = None
        child = child or _Child(self._root, self.limits)
        try:
            yield child
        finally:
            with self._lock:
                kept = child.alive and child.asked < _QUESTIONS and not self._idle and not self._closed
                if kept:
                    self._idle.append(child)
            if not kept:
                child.kill()
                self.warm()

    def close(self) -> None:
        """Ends what is idle."""
        with self._lock:
            children, self._idle, self._closed = self._idle, [], True
        for child in children:
            child.kill()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Child:
    """A process that answers one question after the other."""

    def __init__(self, root: Path, limits: Limits) -> None:
        self._limits = limits
        self.asked = 0
        known = {"PATH", "LANG", "LC_ALL", "TZ", "HOME"}  # and none of our secrets
        env = {name: value for name, value in os.environ.items() if name in known}
        env |= {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path), "MALLOC_ARENA_MAX": "2"}
        argv = [sys.executable, "-m", "service.sandbox", str(root.absolute()), json.dumps(asdict(limits))]
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            cwd="/",
            start_new_session=True,
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()

    def ask(self, sql: str) -> Answer:
        from trials.query import Answer

        if not self.asked:
            self._wait()
        self.asked += 1
        with self._within(self._limits.wall) as late:
            try:
                head, payload = self._exchange(sql)
            except (OSError, ValueError, EOFError):
                self.kill()
                raise TooMuch(self._why(late.is_set())) from None
        if late.is_set() or head.get("ill"):
            self.kill()
        if faults := head.get("faults"):
            raise Invalid(faults)
        if head.get("ill"):
            raise TooMuch(self._why(False))
        return Answer(table=pa.ipc.open_stream(payload).read_all(), cut=head["cut"])

    def _wait(self) -> None:
        """Until it has loaded what it needs: no question pays for that."""
        assert self._process.stdout is not None
        with self._within(_START):
            if self._process.stdout.readline() != _READY:
                self.kill()
                raise Busy("sql: the process that answers did not start in time; try again later.")

    @contextlib.contextmanager
    def _within(self, seconds: float) -> Iterator[threading.Event]:
        """Kills the process after so long; the event says that it was."""
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            yield late
        finally:
            timer.cancel()

    def _exchange(self, sql: str) -> tuple[dict[str, Any], bytes]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({"sql": sql}).encode() + b"\n")
        stdin.flush()
        head: dict[str, Any] = json.loads(stdout.readline())
        payload = stdout.read(head.get("size", 0))
        if len(payload) != head.get("size", 0):
            raise EOFError
        return head, payload

    def _why(self, late: bool) -> str:
        limits, code = self._limits, self._process.returncode
        if late or code == -signal.SIGALRM:
            got = f"{limits.wall:g} seconds"
        elif code == -signal.SIGXCPU:
            got = f"{limits.cpu} seconds of a processor"
        else:
            got = f"{limits.memory // MIB} MiB of memory"
        return f"sql: must be answered with less than {got}; ask for less, or of fewer rows."


# -- in the child ------------------------------------------------------------------------------------------------------


def main(argv: list[str]) -> None:
    """Answers the questions on stdin until it ends."""
    root, limits = Path(argv[0]), Limits(**json.loads(argv[1]))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no answer
    sys.meta_path.insert(0, _WithoutPandas())
    from trials import query
    from trials.kept import Kept
    from trials.store import Store

    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, 256)
    _limit(resource.RLIMIT_AS, limits.address_space)
    within = query.Limits(rows=limits.rows, size=limits.size, memory=limits.memory)
    kept = Kept(Store.open_for_reading(root), most=limits.memory // 16)
    out.write(_READY)
    out.flush()
    for line in sys.stdin.buffer:
        spent = resource.getrusage(resource.RUSAGE_SELF)
        used = int(spent.ru_utime + spent.ru_stime)
        resource.setrlimit(resource.RLIMIT_CPU, (used + limits.cpu + 1, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_REAL, limits.wall + _AFTER)  # not caught: the system ends us
        _answer(lambda sql: query.answer(kept, sql, within), json.loads(line)["sql"], out)
        signal.setitimer(signal.ITIMER_REAL, 0)


class _WithoutPandas:
    """Arrow loads pandas where it can, for nothing here, and its address space alone may be more than all that is
    allowed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name=name)


def _answer(ask: Any, sql: str, out: IO[bytes]) -> None:
    head: dict[str, Any]
    payload = b""
    try:
        answer = ask(sql)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, answer.table.schema) as writer:
            writer.write_table(answer.table)
        payload = sink.getvalue().to_pybytes()
        head = {"cut": answer.cut, "size": len(payload)}
    except Invalid as error:
        short = "Out of Memory" in str(error) or "malloc" in str(error)
        head = {"ill": True} if short else {"faults": list(error.faults)}
    except (MemoryError, RecursionError, pa.ArrowMemoryError):
        head = {"ill": True}
    except Exception as error:  # a file that cannot be read, say: one question's trouble
        head = {"faults": [f"sql: cannot be answered: {type(error).__name__}: {error}"[:500]]}
    out.write(json.dumps(head).encode() + b"\n" + payload)
    out.flush()


def _limit(what: int, most: int) -> None:
    resource.setrlimit(what, (most, most))


if __name__ == "__main__":
    main(sys.argv[1:])
