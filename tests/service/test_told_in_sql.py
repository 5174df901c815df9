"""What SQL says of a search is what its controller knows of it, whatever its workers went through."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from search_spaces import Space
from service.budgets import Budgets
from service.controller import Controller, Done
from service.samplers import make_sampler
from trials.plan import Plan
from trials.query import query
from trials.records import Bundle, Ending, Outcome, Trial
from trials.store import SearchStore, Store

SPACE = Space.from_dict(
    {"x": {"type": "float", "low": 0, "high": 1}, "kind": {"type": "choice", "options": ["a", "b"]}}
)
PLAN = Plan(space=SPACE, objective=lambda trial: 0.0, metric="value")

#: (bundle, trial) -> facts of its outcome; None: the worker dies while it trains
Fate = Callable[[Bundle, Trial], dict[str, Any] | None]


def complete(trial: Trial) -> dict[str, Any]:
    return {"ending": Ending.COMPLETE, "value": float(trial.point["x"]), "step": 10}  # type: ignore[arg-type]


def eventful(bundle: Bundle, trial: Trial) -> dict[str, Any] | None:
    full = len(bundle.trials) > 1
    if trial.number == 2:
        return None
    if trial.number == 13 or (trial.number in (4, 9, 15) and full):
        return {"ending": Ending.OOM}
    if trial.number in (7, 11):
        return {"ending": Ending.NAN if trial.number == 7 else Ending.ERROR, "step": 10}
    return complete(trial)


def only_alone(bundle: Bundle, trial: Trial) -> dict[str, Any]:
    """No two trials fit into the memory together: whole bundles fail."""
    return {"ending": Ending.OOM} if len(bundle.trials) > 1 else complete(trial)


def train(search: SearchStore, bundle: Bundle, fate: Fate) -> list[Outcome] | None:
    """One attempt, closed; None when its worker died on the way."""
    writer, outcomes = search.attempt_writer(bundle.id, bundle.attempt), []
    for trial in bundle.trials:
        facts = fate(bundle, trial)
        if facts is None:
            return None
        who: dict[str, Any] = {"trial_id": trial.id, "number": trial.number, "point": trial.point}
        outcomes.append(Outcome(**who, bundle_id=bundle.id, attempt=bundle.attempt, **facts))
        writer.append(outcomes[-1])
    writer.close()
    return outcomes


def search_through(search: SearchStore, fate: Fate, epoch: int = 1) -> Controller:
    sampler = make_sampler("random", SPACE, seed=0)
    writer, goal = search.log_writer(epoch), Budgets(trials=18)
    controller = Controller(search, writer, PLAN, sampler, budgets=goal, batch=6, lanes=4)
    for worker in map(str, itertools.count()):
        bundle = controller.pull(worker)
        if isinstance(bundle, Done):
            break
        if bundle is not None and (outcomes := train(search, bundle, fate)) is not None:
            controller.finish(bundle, outcomes)
        elif bundle is not None:
            controller.lost(worker)
    controller.close()
    return controller


def in_sql(store: Store) -> dict[int, tuple[Any, ...]]:
    rows = query(store, "SELECT number, asked, ending, value FROM trials ORDER BY number").to_pylist()
    return {row["number"]: (json.loads(row["asked"]), row["ending"], row["value"]) for row in rows}


@pytest.mark.parametrize(
    ("fate", "endings"),
    [
        (eventful, {"complete": 14, "preempted": 1, "oom": 1, "nan": 1, "error": 1}),
        (only_alone, {"complete": 18}),
    ],
)
def test_sql_tells_what_the_controller_knows(store: Store, fate: Fate, endings: dict[str, int]) -> None:
    search = store.create("s", {"name": "s"})
    controller = search_through(search, fate)
    assert controller.progress().endings == endings
    known = {n: (o.point, o.ending.value, o.value) for n, o in controller._told.items()}
    assert in_sql(store) == known
    replayed = search_through(search, fate, epoch=2)  # nothing is left to do
    assert {n: (o.point, o.ending.value, o.value) for n, o in replayed._told.items()} == known
    assert in_sql(store) == known
    best = query(store, "SELECT number FROM trials ORDER BY value NULLS LAST LIMIT 1").to_pylist()
    assert controller.progress().best is not None
    assert best[0]["number"] == controller.progress().best.number
