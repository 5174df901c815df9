"""What a search's log says of its past, for the controller that goes on with it.

>>> past = Past.of(search.log())
>>> past.asked[0]["trials"], past.goals
"""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from trials.goals import Goal
from trials.store import Event


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the collector of cycles, which looks at all that is read again and again: a fifth of a long replay."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def wall_seconds(events: Sequence[Event]) -> float:
    """Seconds in which somebody drove the search. Time when nobody wrote (it was paused, or its driver gone) is none.

    Each writer tells how long it had been there. Where an old log does not say it, the times of its events have to do:
    a clock that was set back between two of them adds nothing then, one that was set forward cannot be told from time.
    """
    spent, before = dict[int, float](), dict[int, float]()
    for event in events:
        wall = spent.get(event.epoch, 0.0)
        if event.elapsed is not None:
            wall = max(wall, event.elapsed)
        else:
            wall += max(0.0, event.time - before.get(event.epoch, event.time))
        spent[event.epoch], before[event.epoch] = wall, event.time
    return sum(spent.values(), 0.0)


@dataclass
class Past:
    """Decisions in the order of the log. `goals` stand with the number of generations that were asked before them;
    `failures` counts how often the search failed, `failures_before` how often before each trial was told."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    goals: list[tuple[int, Goal]] = field(default_factory=list)
    overhead_s: float = 0.0
    wall_s: float = 0.0
    attempts: Counter[str] = field(default_factory=Counter)
    losses: Counter[int] = field(default_factory=Counter)
    failures: int = 0
    failures_before: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, events: Sequence[Event]) -> Past:
        """The past in those events."""
        past = cls(wall_s=wall_seconds(events))
        for event in events:
            past._add(event.kind, event.body)
        return past

    def _add(self, kind: str, body: dict[str, Any]) -> None:
        if kind == "asked":
            # a controller whose driver was killed may have written on for a moment: a later epoch's word counts
            self.asked[body["generation"] :] = [body]
        elif kind == "goal":
            self.goals.append((len(self.asked), Goal.from_dict(body)))
        elif kind == "told":
            self.failures_before.update(dict.fromkeys(body["numbers"], self.failures))
        elif kind == "calibrated":
            self.overhead_s += body["device_s"]
        elif kind == "failed":
            if body.get("why") != "overdue":
                self.losses.update(body["numbers"])
            self.attempts[body["bundle"]] = body["attempt"] + 1  # its worker may yet begin it
        elif kind == "state" and body["state"] == "failed":
            self.failures += 1
            self.losses.clear()  # their cause is held to be mended
