"""Closed attempts on their way into the log: those that arrive while others are being written are written together.

>>> arrivals = Arrivals(pen, take_in)         # take_in(group) writes a group down in one piece
>>> arrivals.put(bundle, outcomes)            # it is written down when this returns

So slots that finish at the same moment wait for a disk once, not one after the other.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trials.records import Bundle, Outcome


@dataclass(eq=False)
class Arrived:
    """A closed attempt. `taken`: it was in a group that was taken in; `error`: what that raised."""

    bundle: Bundle
    outcomes: Sequence[Outcome]
    taken: bool = False
    error: Exception | None = None


class Arrivals:
    """Safe from any thread; `take_in` is called by one at a time, which holds `pen`."""

    def __init__(self, pen: threading.RLock, take_in: Callable[[Sequence[Arrived]], None]) -> None:
        self._pen, self._take_in = pen, take_in
        self._waiting: deque[Arrived] = deque()

    def __len__(self) -> int:
        """Those that wait to be taken in."""
        return len(self._waiting)

    def put(self, bundle: Bundle, outcomes: Sequence[Outcome]) -> None:
        """Wait until it is taken in, in the order of arrival. Raises what `take_in` raised for its group."""
        arrived = Arrived(bundle, outcomes)
        self._waiting.append(arrived)
        with self._pen:
            if not arrived.taken:
                self._take_all()
            if arrived.error is not None:
                raise arrived.error

    def _take_all(self) -> None:
        group = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            self._take_in(group)
        except Exception as error:
            for arrived in group:
                arrived.error = error
        finally:
            for arrived in group:
                arrived.taken = True


def events_of(bundle: Bundle, again: Sequence[int], told: Sequence[Outcome]) -> list[tuple[str, dict[str, Any]]]:
    """The events that say what was decided of an attempt: which trials are trained again, and which are told."""
    attempt = {"bundle": bundle.id, "attempt": bundle.attempt}
    events: list[tuple[str, dict[str, Any]]] = []
    if again:
        events.append(("failed", {**attempt, "numbers": list(again)}))
    if told or again:  # where nothing is told of it, it must not pass for one yet to be told
        events.append(("told", {**attempt, "numbers": [outcome.number for outcome in told]}))
    return events
