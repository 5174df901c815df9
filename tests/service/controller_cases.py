"""What every test of the controller needs: workers made up in memory over a real store.

The sampler here derives each point from everything it is shown, so that any difference in what it knows is seen in the
points; a trial's value is a function of its point, so that any trial taken twice or mixed up is seen in the values.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from search_spaces import Point, Space
from search_spaces.networks import MLP
from service.budgets import Budgets
from service.controller import Controller, Done
from service.samplers import Asked, History, RandomSampler, Sampler
from trials.ledger import most_flops
from trials.plan import Plan
from trials.records import Bundle, Ending, Outcome, Spent
from trials.store import SearchStore
from trials.tasks import load
from trials.training import Training

SPACE = Space.from_dict(
    {
        "width.0": {"type": "width", "low": 2, "high": 12},
        "lr": {"type": "float", "low": 0.01, "high": 1.0, "log": True},
        "batch_size": {"type": "choice", "options": [16, 32]},
    }
)
PLAN = Plan(space=SPACE, task=load("uci/iris"), network=MLP(layers=1), training=Training(epochs=3))


class Seeing:
    """Points drawn from a hash of all that the history holds."""

    def __init__(self, space: Space = SPACE) -> None:
        self.space = space

    def ask(self, history: History, n: int, generation: int) -> Asked:
        seen = repr(([(k.number, k.point, k.value, k.failed) for k in history.trials], list(history.infeasible)))
        draws = RandomSampler(self.space, seed=int(hashlib.sha256(seen.encode()).hexdigest()[:12], 16))
        return Asked(points=draws.ask(history, n, generation).points, infeasible=[{"lr": float(generation)}])


def value_of(point: Point) -> float:
    return math.log(float(point["lr"])) ** 2 + float(point["width.0"])


@dataclass
class Crew:
    """Workers that train nothing: who pulls and who finishes next is drawn by lot."""

    controller: Controller
    workers: int = 2
    lot: random.Random = field(default_factory=lambda: random.Random(0))
    ending: Callable[[Bundle, int], Ending] = lambda bundle, number: Ending.COMPLETE
    value: Callable[[int, Point], float] = lambda number, point: value_of(point)
    share: float = 1.0  # of the most FLOPs a trial could execute
    dies: Callable[[Bundle], bool] = lambda bundle: False
    held: dict[str, Bundle] = field(default_factory=dict)
    trained: list[Bundle] = field(default_factory=list)

    def outcomes(self, bundle: Bundle, worker: str = "") -> list[Outcome]:
        found = []
        for trial in bundle.trials:
            ending = self.ending(bundle, trial.number)
            complete = ending is Ending.COMPLETE
            found.append(
                Outcome(
                    trial_id=trial.id,
                    number=trial.number,
                    bundle_id=bundle.id,
                    attempt=bundle.attempt,
                    ending=ending,
                    point=trial.point,
                    value=self.value(trial.number, trial.point) if complete else None,
                    spent=Spent(executed_flops=self.share * most_flops(PLAN, trial.point), flops=1.0, device_s=0.5),
                    worker=worker,
                    error="Traceback ...\nValueError: no" if ending is Ending.ERROR else None,
                )
            )
        return found

    def store(self, bundle: Bundle, outcomes: Iterable[Outcome]) -> None:
        writer = self.controller.search.attempt_writer(bundle.id, bundle.attempt)
        for outcome in outcomes:
            writer.append(outcome)
        writer.close()

    def finish(self, worker: str) -> None:
        bundle = self.held.pop(worker)
        self.trained.append(bundle)
        if self.dies(bundle):
            self.controller.lost(worker)
            return
        outcomes = self.outcomes(bundle, worker)
        self.store(bundle, outcomes)
        self.controller.finish(bundle, outcomes)

    def run(self, *, until: Callable[[Controller], bool] = lambda controller: False) -> Crew:
        names = (f"w-{number}" for number in itertools.count())
        idle = [next(names) for _ in range(self.workers)]
        while not until(self.controller):
            if idle and (not self.held or self.lot.random() < 0.7):
                answer = self.controller.pull(idle[-1], timeout=0.02 if self.held else 10.0)
                if isinstance(answer, Done):
                    idle.pop()
                    continue
                if answer is not None:
                    self.held[idle.pop()] = answer
                    continue
                assert self.held, "nothing runs and nothing comes"
            if not self.held:
                break
            worker = self.lot.choice(sorted(self.held))
            died = self.dies(self.held[worker])
            self.finish(worker)
            idle.insert(0, next(names) if died else worker)
        return self


def controlled(search: SearchStore, epoch: int = 1, **changes: Any) -> Controller:
    settings: dict[str, Any] = {"budgets": Budgets(trials=24), "batch": 4, "lanes": 3, "sampler": Seeing(), **changes}
    sampler: Sampler = settings.pop("sampler")
    return Controller(search, search.log_writer(epoch), settings.pop("plan", PLAN), sampler, **settings)


def points_of(search: SearchStore) -> list[list[Point]]:
    """The points of each generation."""
    return [[t["point"] for t in event.body["trials"]] for event in search.log() if event.kind == "asked"]


def final(search: SearchStore) -> list[tuple[Any, ...]]:
    """What was told of each trial, and that it was told once."""
    found: dict[int, tuple[Any, ...]] = {}
    for body in events(search, "told"):
        outcomes = {o.number: o for o in search.attempt_outcomes(body["bundle"], body["attempt"])}
        for number in body["numbers"]:
            assert number not in found
            o = outcomes[number]
            found[number] = (number, sorted(o.point.items()), o.ending, o.value)
    return [found[number] for number in sorted(found)]


def events(search: SearchStore, kind: str) -> list[dict[str, Any]]:
    return [event.body for event in search.log() if event.kind == kind]
