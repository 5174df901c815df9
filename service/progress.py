"""How far a search is, and the answer when nothing is left to do: what controllers tell workers and drivers.

>>> stored(search).finished          # the same from the store alone, for a search that nobody drives
48
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from service.budgets import Budgets
from service.goal import wanted
from service.replay import Past
from trials.records import Ending, Outcome, Spent
from trials.store import SearchStore


class Done(Enum):
    """The answer to a pull when no bundle will come any more."""

    DONE = "done"


DONE = Done.DONE


class SearchFailed(RuntimeError):
    """The search cannot go on; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a search is; `goal` is the version of its goal that is followed."""

    asked: int
    endings: dict[str, int]
    running: int
    best: Outcome | None
    spent: Spent
    wall_s: float
    budgets: Budgets
    done: bool
    failure: str | None
    goal: int = 0

    @property
    def finished(self) -> int:
        """Trials that ended, however."""
        return sum(self.endings.values())


def stored(search: SearchStore) -> Progress:
    """The progress of a search that nobody drives, under the goal that it has now."""
    past, goal = Past.of(search.log()), wanted(search)
    outcomes = search.outcomes()
    return Progress(
        asked=sum(len(body["trials"]) for body in past.asked),
        endings=dict(Counter(outcome.ending.value for outcome in outcomes)),
        running=0,
        best=best_of(outcomes, search.spec()["spec"].get("objective", {}).get("mode", "min")),
        spent=sum((outcome.spent for outcome in outcomes), Spent(device_s=past.overhead_s)),
        wall_s=past.wall_s,
        budgets=Budgets.of(goal.budget),
        done=False,
        failure=None,
        goal=goal.version,
    )


def best_of(outcomes: Sequence[Outcome], mode: str) -> Outcome | None:
    """The complete outcome with the best value; the earliest asked among equals."""
    sign = 1.0 if mode == "min" else -1.0
    complete = [o for o in outcomes if o.ending is Ending.COMPLETE and o.value is not None]
    return min(complete, key=lambda o: (sign * (o.value or 0.0), o.number), default=None)


def last_line(outcome: Outcome) -> str:
    """The end of an outcome's error, where the cause stands."""
    return (outcome.error or "").strip().rpartition("\n")[2]
