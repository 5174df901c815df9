"""The controller of a search in a process of its own, and what it knows of the slots that call it. Imports no ray.

>>> host = Host(make)                        # on Ray an actor: `make` builds the controller where it is to live
>>> host.pull("ray-3-4711")                  # slot 3, in process 4711
>>> host.gone("ray-3").pulled                # its process ended; whether it ever got so far as to pull
True
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from service.controller import Controller, Done, Progress
from trials.goals import Goal
from trials.records import Bundle, Outcome

SEATS = 48  # pulls that may wait for a bundle at once; whoever finds none free is answered at once
CALLS = 64  # calls that are answered at once: those who wait never keep out the others


@dataclass(frozen=True, kw_only=True)
class Left:
    """What is known of a slot that ended: whether it ever pulled, and what it said last."""

    pulled: bool
    words: str


class Host:
    """A controller and the roll of its slots. Safe from any thread; a worker's name is its slot's and a number."""

    _controller: Controller

    def __init__(self) -> None:
        end_with_parent()
        self._seats = threading.Semaphore(SEATS)
        self._lock = threading.Lock()
        self._pulled: set[str] = set()
        self._working: set[str] = set()
        self._words: dict[str, str] = {}

    def ready(self) -> None:
        """Be here, with what makes the controller imported."""
        importlib.import_module("service.planning")

    def begin(self, make: Callable[[], Controller]) -> None:
        self._controller = make()

    # -- what slots call ---------------------------------------------------------------------------------------------

    def pull(self, worker: str) -> Bundle | Done | None:
        slot = worker.rpartition("-")[0]
        with self._lock:
            self._pulled.add(slot)
            self._working.add(slot)
        seated = self._seats.acquire(blocking=False)
        try:
            answer = self._controller.pull(worker, timeout=1.0 if seated else 0.0)
        finally:
            if seated:
                self._seats.release()
        if isinstance(answer, Done):
            with self._lock:
                self._working.discard(slot)
        return answer

    def finish(self, bundle: Bundle, outcomes: Sequence[Outcome]) -> None:
        self._controller.finish(bundle, outcomes)

    def overdue(self, worker: str, words: str = "") -> None:
        self._controller.overdue(worker, words)

    def unwritable(self, reason: str) -> None:
        self._controller.unwritable(reason)

    def say(self, slot: str, words: str) -> None:
        """Why a slot cannot work."""
        with self._lock:
            self._words[slot] = words

    # -- what the driver calls ---------------------------------------------------------------------------------------

    def gone(self, slot: str) -> Left:
        """A slot's process ended: what it had is handed out again."""
        with self._lock:
            left = Left(pulled=slot in self._pulled, words=self._words.get(slot, ""))
            self._working.discard(slot)
        self._controller.lost(slot, left.words)
        return left

    def live(self) -> int:
        """Slots that have pulled and have not left."""
        with self._lock:
            return len(self._working)

    def lost(self, worker: str, words: str = "") -> None:
        self._controller.lost(worker, words)

    def retire(self, worker: str) -> None:
        self._controller.retire(worker)

    def adopt(self, goal: Goal) -> None:
        self._controller.adopt(goal)

    def drain(self) -> None:
        self._controller.drain()

    def close(self) -> None:
        self._controller.close()

    def over(self) -> bool:
        return self._controller.over()

    def note(self, kind: str, body: dict[str, Any]) -> None:
        self._controller.note(kind, body)

    def progress(self) -> Progress:
        return self._controller.progress()


def end_with_parent() -> None:
    """From now on this process ends within a second of its parent, on Ray its node's manager: a killed driver leaves
    nothing behind that trains, and Ray's own notice does not always reach a busy actor."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="node", daemon=True).start()
