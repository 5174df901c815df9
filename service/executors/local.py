"""Worker processes on this machine, each with a pipe to the controller.

A worker that dies (killed, out of memory, a crash in native code) is replaced and its bundle handed out again. Workers
die with their parent, so a killed driver leaves nothing behind that trains.

This file is also the worker: `python -m service.executors.local FD`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import IO, Any

from service.controller import Controller, Done, SearchFailed
from service.slot import Job, serve
from trials.records import Bundle, Outcome

GRACE = 5.0  # seconds between asking a worker to end and killing it
MOST_EARLY_DEATHS = 3  # workers in a row that die before they pull anything: the machine cannot run the search


class LocalWorkers:
    """`run` returns when the controller is done; `stop` may be called from a signal handler's thread."""

    def __init__(self, controller: Controller, job: Job, workers: int) -> None:
        self.controller, self.job, self.workers = controller, job, workers
        self._live: dict[str, subprocess.Popen[bytes]] = {}
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
                    # started from this thread: a worker is killed when the thread that started it ends
                    threads.append(self._start(number))
                    number += 1
                time.sleep(0.02)
            while not self._stopping and any(thread.is_alive() for thread in threads):
                time.sleep(0.02)
        finally:
            self.stop()
            for thread in threads:
                thread.join()
        if self._early_deaths >= MOST_EARLY_DEATHS:
            raise SearchFailed(f"no worker process could start; the last one said: {self._last_words}")

    def _over(self) -> bool:
        progress = self.controller.progress()
        return self._stopping or progress.done or bool(progress.failure) or self._early_deaths >= MOST_EARLY_DEATHS

    def stop(self) -> None:
        """End every worker: ask, wait, kill."""
        self._stopping = True
        self.controller.close()
        with self._lock:
            live = list(self._live.values())
        for process in live:
            process.terminate()
        deadline = time.monotonic() + GRACE
        for process in live:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            if process.poll() is None:
                process.kill()
                process.wait()

    def shutdown(self) -> None:
        """Nothing is left: `run` has ended every worker."""

    def _start(self, number: int) -> threading.Thread:
        words = tempfile.TemporaryFile()  # noqa: SIM115  (a pipe would block a worker that says much)
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.job.threads), "MKL_NUM_THREADS": str(self.job.threads)}
        process = subprocess.Popen(
            [sys.executable, "-m", "service.executors.local", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C is the driver's to handle
        )
        theirs.close()
        name = f"local-{number}-{process.pid}"
        with self._lock:
            self._live[name] = process
        thread = threading.Thread(target=self._attend, args=(name, process, Connection(ours.detach()), words))
        thread.start()
        return thread

    def _attend(self, name: str, process: subprocess.Popen[bytes], pipe: Connection, words: IO[bytes]) -> None:
        """Answer one worker's calls until it is gone."""
        pulled = False
        try:
            pipe.send((self.job, name))
            while True:
                verb, args = pipe.recv()
                if verb == "pull":
                    pulled = True
                    pipe.send(self.controller.pull(*args))
                else:
                    self.controller.finish(*args)
                    pipe.send(None)
        except (EOFError, OSError):
            pass
        finally:
            pipe.close()
            process.wait()
            words.seek(0)
            said = words.read().decode(errors="replace").strip()
            words.close()
            with self._lock:
                del self._live[name]
            self._early_deaths = 0 if pulled else self._early_deaths + 1
            self._last_words = said[-2000:] or f"nothing (exit code {process.returncode})"
            if not self._stopping:
                self.controller.lost(name)


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


def _die_with_parent() -> None:
    """Linux: SIGKILL when the parent's thread ends. Elsewhere the closed pipe ends the worker after its bundle."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


def main(fd: int) -> None:
    """A worker process."""
    _die_with_parent()
    pipe = Connection(fd)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        job, name = pipe.recv()
        search, trainer = job.open()
        serve(_Piped(pipe), search, trainer, name)


if __name__ == "__main__":
    main(int(sys.argv[1]))
