"""What must hold of a search whatever befell it: an oracle of what was acknowledged, against log, store and progress.

>>> truth = Truth(search, budget={"trials": 8})
>>> truth.acked[3] = outcome                      # `finish` has returned
>>> truth.holds()
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from controller_cases import SPACE
from machine_cases import Process

from search_spaces import Point, Space
from service.controller import MAX_RETRIES, Progress
from service.progress import stored
from trials.records import Ending, Outcome
from trials.store import Event, SearchStore

NONE = (math.inf, -1)  # the best of no trials
Told = Mapping[int, Outcome]


@dataclass(eq=False)
class Truth:
    """What is known of a search by who asked for it, and by what was acknowledged to its workers."""

    search: SearchStore  # a reader of its own
    budget: dict[str, float]
    state: str = "run"
    workers: int = 2
    space: dict[str, Any] = field(default_factory=SPACE.to_dict)
    version: int = 0
    acked: dict[int, Outcome] = field(default_factory=dict)
    closed: dict[tuple[str, int], list[Outcome]] = field(default_factory=dict)
    reports: int = 0  # that are durable
    alone: Counter[int] = field(default_factory=Counter)  # how often the machine failed a trial that was alone
    asked: int = 0
    finished: int = 0
    best: tuple[float, int] = NONE
    process: Process | None = None  # the last that had its controller
    looked: str = ""  # what it was like when it was looked at last

    @property
    def driven(self) -> bool:
        """Whether a driver is at work."""
        return self.process is not None and self.process.live

    def progress(self) -> Progress:
        """What its controller says, or the store where nobody drives it."""
        if self.process is not None and self.process.live:
            return self.process.controller.progress()
        return stored(self.search)

    def seen(self) -> str:
        """All that anybody may see of it."""
        return repr((self.search.log(), replace(self.progress(), wall_s=0.0)))

    def holds(self) -> None:
        """Raises AssertionError where something that must hold does not."""
        files = sorted((place, sorted(names)) for place, _, names in os.walk(self.search.path))
        known = (self.acked, sorted(self.closed), self.reports, self.budget, self.version)
        looks = repr((files, known, self.driven and replace(self.progress(), wall_s=0.0)))
        if looks == self.looked:
            return
        self.looked = looks
        events = self.search.log()
        told, points = told_by(self.search, events), asked_by(events)
        self._keeps_what_was_acknowledged(told, points)
        self._is_within_its_budget(events, told, points)
        self._never_goes_back(told, points)
        self._is_said_as_it_is(events, told, points)

    def _keeps_what_was_acknowledged(self, told: Told, points: list[Point]) -> None:
        for number, outcome in self.acked.items():
            assert same(told.get(number), outcome), "an acknowledged result is lost"
        for place, outcomes in self.closed.items():
            assert same(self.search.attempt_outcomes(*place), outcomes)
        for number, outcome in told.items():
            assert outcome.point == points[number]
            known = self.closed.get((outcome.bundle_id, outcome.attempt))
            if known is None:
                assert outcome.ending is Ending.PREEMPTED
            else:
                assert any(same(outcome, one) for one in known)
        assert self.search.report_rows(every_attempt=True).num_rows == self.reports
        stands = {outcome.number: outcome for outcome in self.search.outcomes()}
        assert all(same(stands.get(number), outcome) for number, outcome in told.items())

    def _is_within_its_budget(self, events: list[Event], told: Told, points: list[Point]) -> None:
        assert len(points) <= self.budget["trials"]
        assert sum(outcome.spent.executed_flops for outcome in told.values()) <= self.budget.get("flops", math.inf)
        if not any(event.kind == "state" and event.body["state"] == "failed" for event in events):
            assert all(count <= MAX_RETRIES + 1 for count in self.alone.values())

    def _never_goes_back(self, told: Told, points: list[Point]) -> None:
        finished = sum(not outcome.ending.retried for outcome in told.values())
        best = best_of(told)
        assert len(points) >= self.asked
        assert finished >= self.finished
        assert best <= self.best
        self.asked, self.finished, self.best = len(points), finished, best

    def _is_said_as_it_is(self, events: list[Event], told: Told, points: list[Point]) -> None:
        said, counts = self.progress(), dict(told)
        if not self.driven:  # then what is closed and not told yet counts too: the next controller tells it
            closed = {o.number: o for o in self.search.outcomes() if o.number not in told}
            for outcome in closed.values():
                assert not outcome.ending.retried
                assert any(same(outcome, one) for one in self.closed[outcome.bundle_id, outcome.attempt])
            counts |= closed
        endings = Counter(outcome.ending.value for outcome in counts.values())
        for ending in Ending:
            count, seen = endings[ending.value], said.endings.get(ending.value, 0)
            assert seen == count or (ending.retried and self.driven and seen < count)  # it is trained again
        if said.finished == len(counts):
            assert math.isclose(said.spent.device_s, sum(o.spent.device_s for o in counts.values()))
            assert math.isclose(said.spent.executed_flops, sum(o.spent.executed_flops for o in counts.values()))
        best = best_of(counts)
        assert (said.best and (said.best.value, said.best.number)) == (None if best == NONE else best)
        assert said.asked == len(points)
        adopted = [event.body for event in events if event.kind == "goal"]
        assert said.goal >= max((body["version"] for body in adopted), default=0)
        if said.goal == self.version:
            assert (said.budgets.trials, said.budgets.flops) == (self.budget["trials"], self.budget.get("flops"))


def best_of(told: Told) -> tuple[float, int]:
    """The best value and its trial's number; among equals the first asked."""
    done = [(o.value, o.number) for o in told.values() if o.ending is Ending.COMPLETE and o.value is not None]
    assert all(math.isfinite(value) for value, _ in done)
    return min(done, default=NONE)


def same(one: Any, other: Any) -> bool:
    """Equal, NaN and all."""
    return repr(one) == repr(other)


def told_by(search: SearchStore, events: list[Event]) -> dict[int, Outcome]:
    """What was told of each trial: once, but for those that the machine failed."""
    told: dict[int, Outcome] = {}
    for event in events:
        if event.kind == "told":
            outcomes = {o.number: o for o in search.attempt_outcomes(event.body["bundle"], event.body["attempt"])}
            for number in event.body["numbers"]:
                assert number not in told or told[number].ending.retried, "it was told twice"
                told[number] = outcomes[number]
    return told


def asked_by(events: list[Event]) -> list[Point]:
    """The points of all trials, each of which lies in the space that was wanted when it was asked."""
    points: list[Point] = []
    space, generations = SPACE, 0
    for event in events:
        if event.kind == "goal" and event.body["space"] is not None:
            space = Space.from_dict(event.body["space"])
        elif event.kind == "asked":
            assert event.body["generation"] == generations
            generations += 1
            for trial in event.body["trials"]:
                assert trial["number"] == len(points)
                assert not space.faults(trial["point"])
                points.append(trial["point"])
    return points
