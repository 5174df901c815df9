"""How far a search is, and the answer when nothing is left to do: what controllers tell workers and drivers.

>>> stored(search).finished          # the same from the store alone, for a search that nobody drives
48
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
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
    """How far a search is; `goal` is the version of its goal that is followed. `unwritable`: it failed for want of a
    store to write to, which may pass."""

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
    unwritable: bool = False

    @property
    def finished(self) -> int:
        """Trials that ended, however."""
        return sum(self.endings.values())


def stored(search: SearchStore) -> Progress:
    """The progress of a search that nobody drives, under the goal that it has now."""
    past, goal = Past.of(search.log()), wanted(search)
    tally = Tally(search.spec()["spec"].get("objective", {}).get("mode", "min"), search.outcomes())
    return Progress(
        asked=sum(len(body["trials"]) for body in past.asked),
        endings=dict(tally.endings),
        running=0,
        best=tally.best,
        spent=tally.spent(past.overhead_s),
        wall_s=past.wall_s,
        budgets=Budgets.of(goal.budget),
        done=False,
        failure=None,
        goal=goal.version,
    )


class Tally:
    """What outcomes come to, kept up as each is added: how they ended, what they spent, the best, the last error.

    Costs are added up in the order of adding, so that the same outcomes in the same order are the same numbers.
    """

    def __init__(self, mode: str, outcomes: Iterable[Outcome] = ()) -> None:
        self.endings: Counter[str] = Counter()
        self.best: Outcome | None = None
        self.device_s = 0.0
        self._flops = self._executed = 0.0
        self._mode = mode
        self._rank: tuple[float, int] | None = None  # of the best
        self._failed: Outcome | None = None
        for outcome in outcomes:
            self.add(outcome)

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self.endings[outcome.ending.value] += 1
        self.device_s += outcome.spent.device_s
        self._flops += outcome.spent.flops
        self._executed += outcome.spent.executed_flops
        rank = _rank(outcome, self._mode)
        if rank is not None and (self._rank is None or rank < self._rank):
            self.best, self._rank = outcome, rank
        if outcome.error:
            self._failed = outcome

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.endings.values())

    def spent(self, overhead_s: float) -> Spent:
        """What all of them cost, and `overhead_s` seconds of the device beside."""
        return Spent(flops=self._flops, executed_flops=self._executed, device_s=overhead_s + self.device_s)

    def fruitless(self) -> str | None:
        """Why they came to nothing; None where one of them is complete."""
        if self.endings[Ending.COMPLETE.value]:
            return None
        told = ", ".join(f"{count} {ending}" for ending, count in sorted(self.endings.items()) if count)
        error = f"; trial {self._failed.number}: {last_line(self._failed)}" if self._failed else ""
        return f"of its {self.count} trials none is complete ({told}){error}"


def best_of(outcomes: Sequence[Outcome], mode: str) -> Outcome | None:
    """The complete outcome with the best value; the earliest asked among equals."""
    ranked = [(rank, outcome) for outcome in outcomes if (rank := _rank(outcome, mode)) is not None]
    return min(ranked, key=lambda each: each[0])[1] if ranked else None


def _rank(outcome: Outcome, mode: str) -> tuple[float, int] | None:
    """The lowest is the best; None where it is not complete."""
    if outcome.ending is not Ending.COMPLETE or outcome.value is None:
        return None
    return (outcome.value if mode == "min" else -outcome.value, outcome.number)


def cause(outcome: Outcome) -> str | None:
    """What went wrong, in words that are equal where the cause is; None where nothing did."""
    if outcome.ending is Ending.PREEMPTED:
        return "its worker died"  # of many, each may have had other last words
    if outcome.ending is Ending.TIMEOUT:
        return "it took too long"
    return last_line(outcome) or None if outcome.ending is Ending.ERROR else None


def last_line(outcome: Outcome) -> str:
    """The line of an outcome's error where the cause stands: the last, but before what one that took too long said."""
    lines = (outcome.error or "").strip().split("\n")
    return lines[0 if outcome.ending is Ending.TIMEOUT else -1]
