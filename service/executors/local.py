"""Worker processes on this machine, as many as are wanted at the moment, each with a pipe to the controller.

    >>> crew = LocalWorkers(controller, assignment, workers=2)
    >>> crew.run()                                # until the controller is done; from another thread meanwhile:
    >>> crew.scale(3)                             # one more starts at once
    >>> crew.scale(1)                             # the two newest leave when the bundle in hand is finished

A worker that dies (killed, out of memory, a crash in native code) is replaced and its bundle handed out again. One that
has done its job may wait in a `Bench` for the next search, which saves it the second or two that importing torch takes.
"""

from __future__ import annotations

import math
import threading
import time

from service.controller import Controller, SearchFailed
from service.executors.worker import How, Worker, attend
from service.slot import Assignment

PAUSE = 1.0  # seconds after which a process is tried again that could not be had
MOST_EARLY_DEATHS = 3  # workers in a row that die before they pull anything: the machine cannot run the search


class Bench:
    """Workers between two searches. Use as a context: at its end they are gone."""

    def __init__(self) -> None:
        self._idle: list[Worker] = []
        self._lock = threading.Lock()

    def take(self, threads: int, code: str = "") -> Worker:
        """A waiting worker, or a new one; never one that has run other code of a user's than `code`."""
        with self._lock:
            for worker in [worker for worker in self._idle if not worker.alive()]:
                self._idle.remove(worker)
                worker.end()
            for worker in self._idle:
                if worker.threads == threads and worker.code in ("", code):
                    self._idle.remove(worker)
                    return worker
        return Worker.start(threads)

    def put(self, worker: Worker) -> None:
        """A worker that waits for another job."""
        with self._lock:
            self._idle.append(worker)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        while self._idle:
            self._idle.pop().end()


class LocalWorkers:
    """The workers of one search. Those that outlive it return to `bench`, where one is given."""

    def __init__(self, controller: Controller, job: Assignment, workers: int, bench: Bench | None = None) -> None:
        self.controller, self.job, self.bench = controller, job, bench
        self._wanted = workers
        self._threads: dict[str, threading.Thread] = {}  # by the name of the worker that each attends, oldest first
        self._leaving: set[str] = set()
        self._number = 0
        self._stopping = False
        self._early_deaths = 0
        self._last_words = ""
        self._resting = -math.inf  # until then nobody is engaged
        self._refused = 0  # times in a row that there was no process to be had, and nobody at work
        self._error: BaseException | None = None

    def run(self) -> None:
        """Keep as many processes at work as are wanted until the controller is done. Raises `SearchFailed` if none can
        start, and `OSError` if this machine has no room for any, which may pass."""
        try:
            while not self._given_up():
                self._sweep()
                if not self.controller.over():
                    self._match(self._wanted)
                elif not self._threads:
                    break
                time.sleep(0.01)
        finally:
            self._stopping = self._stopping or self._given_up()
            for thread in list(self._threads.values()):
                thread.join()
            self._sweep()
        if self._error is not None:
            raise self._error
        if self._early_deaths >= MOST_EARLY_DEATHS:
            raise SearchFailed(f"no worker process could start; the last one said: {self._last_words}")

    def scale(self, workers: int) -> None:
        """So many workers from now on: more start at once, of too many the newest leave after the bundle in hand."""
        self._wanted = workers

    def live(self) -> int:
        """Workers at work, those that are leaving too."""
        return sum(thread.is_alive() for thread in list(self._threads.values()))

    def capacity(self) -> int | None:
        """Not known: this machine takes as many as are wanted."""
        return None

    def stop(self) -> None:
        """Hand out nothing more and end the workers; what they had in hand is trained again on resuming."""
        self._stopping = True
        self.controller.close()

    def shutdown(self) -> None:
        """`run` has ended every worker, so only the controller's thread is left."""
        self.controller.close()

    def _given_up(self) -> bool:
        return self._stopping or self._error is not None or self._early_deaths >= MOST_EARLY_DEATHS

    def _match(self, wanted: int) -> None:
        staying = [name for name in self._threads if name not in self._leaving]
        for name in staying[wanted:]:
            self._leaving.add(name)
            self.controller.retire(name)
        for _ in range(wanted - len(staying)):
            if time.monotonic() >= self._resting:
                self._engage()

    def _sweep(self) -> None:
        for name in [name for name, thread in self._threads.items() if not thread.is_alive()]:
            del self._threads[name]
            self._leaving.discard(name)

    def _engage(self) -> None:
        job = self.job
        try:
            worker = self.bench.take(job.threads, job.code) if self.bench else Worker.start(job.threads)
        except OSError as error:  # the machine has no process, memory or file left: those at work go on
            self._resting = time.monotonic() + PAUSE
            self._refused = 0 if self._threads else self._refused + 1
            if self._refused == MOST_EARLY_DEATHS:
                self._error = OSError(error.errno, f"no worker process can be had: {error.strerror}")
            return
        self._refused = 0
        name = f"local-{self._number}-{worker.process.pid}"
        self._number += 1
        self._threads[name] = threading.Thread(target=self._attend, args=(name, worker), name=name)
        self._threads[name].start()

    def _attend(self, name: str, worker: Worker) -> None:
        try:
            left = attend(worker, self.controller, self.job, name, stopping=lambda: self._stopping)
        except BaseException as error:
            self._error = error
            return
        if left.how is How.DONE:
            if self.bench is not None and not self._stopping:
                self.bench.put(worker)
            else:
                worker.end()
        elif left.how is How.GONE:
            self._early_deaths = 0 if left.pulled else self._early_deaths + 1
            self._last_words = left.words
