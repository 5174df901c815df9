"""Worker processes on this machine, each with a pipe to the controller.

A worker that dies (killed, out of memory, a crash in native code) is replaced and its bundle handed out again. Workers
hold a lifeline to their parent: a killed driver leaves nothing behind that trains. A worker that has done its job may
wait in a `Bench` for the next search, which saves it the second or two that importing torch takes.

This file is also the worker: `python -m service.executors.local PIPE LIFELINE`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import IO, Any

from service.controller import Controller, Done, SearchFailed
from service.slot import Assignment, serve
from trials.allocator import keep_freed_memory
from trials.records import Bundle, Outcome

GRACE = 5.0  # seconds between asking a worker to end and killing it
LAST_GASP = 2.0  # seconds that a worker whose pipe has ended gets to end too, and so to say how it ended
MOST_EARLY_DEATHS = 3  # workers in a row that die before they pull anything: the machine cannot run the search


@dataclass
class Worker:
    """A worker process, its pipe, the end of its lifeline, and a file with what it says."""

    process: subprocess.Popen[bytes]
    pipe: Connection
    lifeline: int
    words: IO[bytes]
    threads: int

    @classmethod
    def start(cls, threads: int) -> Worker:
        """A new process with `threads` threads for its arithmetic."""
        ours, theirs = socket.socketpair()
        life_end, lifeline = os.pipe()
        words = tempfile.TemporaryFile()  # noqa: SIM115  (a pipe would block a worker that says much)
        process = subprocess.Popen(
            [sys.executable, "-m", "service.executors.local", str(theirs.fileno()), str(life_end)],
            pass_fds=[theirs.fileno(), life_end],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
            start_new_session=True,  # Ctrl-C is the driver's to handle
        )
        theirs.close()
        os.close(life_end)
        return cls(process, Connection(ours.detach()), lifeline, words, threads)

    def end(self, deadline: float = 0.0) -> str:
        """Wait until `deadline` (monotonic) for the process to end by itself, then kill it. Returns its last words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, deadline - time.monotonic()))
        if ours := self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.words.seek(0)
        said = self.words.read().decode(errors="replace").strip()
        for close in (self.pipe.close, self.words.close, lambda: os.close(self.lifeline)):
            close()
        return f"{said[-2000:] or 'nothing'} ({'ended by its driver' if ours else _ended(self.process.returncode)})"


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


class Bench:
    """Workers between two searches. Use as a context: at its end they are gone."""

    def __init__(self) -> None:
        self._idle: list[Worker] = []

    def take(self, threads: int) -> Worker:
        """A waiting worker, or a new one."""
        for i, worker in enumerate(self._idle):
            if worker.threads == threads and worker.process.poll() is None:
                return self._idle.pop(i)
        return Worker.start(threads)

    def put(self, worker: Worker) -> None:
        """A worker that waits for another job."""
        self._idle.append(worker)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        while self._idle:
            self._idle.pop().end()


class LocalWorkers:
    """The workers of one search. Those that outlive it return to `bench`, where one is given."""

    def __init__(self, controller: Controller, job: Assignment, workers: int, bench: Bench | None = None) -> None:
        self.controller, self.job, self.workers, self.bench = controller, job, workers, bench
        self._live: dict[str, Worker] = {}
        self._lock = threading.Lock()
        self._stopping = False
        self._early_deaths = 0
        self._last_words = ""

    def run(self) -> None:
        """Keep `workers` processes at work until the controller is done. Raises `SearchFailed` if none can start."""
        threads: list[threading.Thread] = []
        number = 0
        try:
            while not self._over():
                threads = [thread for thread in threads if thread.is_alive()]
                while len(threads) < self.workers and not self._over():
                    threads.append(self._engage(number))
                    number += 1
                time.sleep(0.01)
            while not self._stopping and any(thread.is_alive() for thread in threads):
                time.sleep(0.01)
        finally:
            self._end_live()
            for thread in threads:
                thread.join()
        if self._early_deaths >= MOST_EARLY_DEATHS:
            raise SearchFailed(f"no worker process could start; the last one said: {self._last_words}")

    def stop(self) -> None:
        """Hand out nothing more and end the workers; what they had in hand is trained again on resuming."""
        self._stopping = True
        self.controller.close()

    def shutdown(self) -> None:
        """Nothing is left: `run` has ended every worker."""

    def _over(self) -> bool:
        return self._stopping or self.controller.over() or self._early_deaths >= MOST_EARLY_DEATHS

    def _end_live(self) -> None:
        with self._lock:
            live = list(self._live.values())
        for worker in live:
            worker.process.terminate()

    def _engage(self, number: int) -> threading.Thread:
        worker = self.bench.take(self.job.threads) if self.bench else Worker.start(self.job.threads)
        name = f"local-{number}-{worker.process.pid}"
        with self._lock:
            self._live[name] = worker
        thread = threading.Thread(target=self._attend, args=(name, worker), name=name)
        thread.start()
        return thread

    def _attend(self, name: str, worker: Worker) -> None:
        """Answer one worker's calls until it is done or gone."""
        pulled = done = False
        try:
            worker.pipe.send((self.job, name))
            while not done:
                verb, args = worker.pipe.recv()
                if verb == "pull":
                    pulled = True
                    answer = self.controller.pull(*args)
                    worker.pipe.send(answer)
                    done = isinstance(answer, Done)
                else:
                    self.controller.finish(*args)
                    worker.pipe.send(None)
        except (EOFError, OSError):
            pass
        with self._lock:
            del self._live[name]
        if done and self.bench is not None and not self._stopping:
            self.bench.put(worker)
            return
        patience = GRACE if self._stopping else 0.0 if done else LAST_GASP
        said = worker.end(time.monotonic() + patience)
        if not done:
            self._early_deaths = 0 if pulled else self._early_deaths + 1
            self._last_words = said
            if not self._stopping:
                self.controller.lost(name, said)


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


def _hang_on(life_end: int) -> None:
    """End at once when the parent is gone: the read returns when the kernel closes the other end."""
    os.read(life_end, 1)
    os._exit(1)


def main(pipe_fd: int, life_end: int) -> None:
    """A worker process: one job after the other."""
    threading.Thread(target=_hang_on, args=(life_end,), daemon=True).start()
    keep_freed_memory()  # a convolution's buffers are large; a fifth of a step can be spent on getting them back
    pipe = Connection(pipe_fd)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            job, name = pipe.recv()
            search, trainer = job.open()
            serve(_Piped(pipe), search, trainer, name)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
