"""What a controller keeps up instead of counting it again: the same numbers as counting, whatever happened."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from controller_cases import PLAN, SPACE, Crew, Seeing, controlled
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import Point, Space
from service.budgets import Bill, Budgets
from service.progress import Tally, best_of, stored
from service.samplers import Asked, History
from service.shown import Shown
from trials.goals import Goal
from trials.ledger import epochs, most_flops
from trials.records import Ending, Outcome, Spent, Trial
from trials.store import SearchStore, Store

costs = st.floats(0.0, 1e12)
some = st.lists(
    st.tuples(st.sampled_from(Ending), st.none() | st.floats(-5.0, 5.0), costs, st.none() | st.just("a\nb: c")),
    max_size=30,
)


def outcome(number: int, ending: Ending, value: float | None, cost: float, error: str | None) -> Outcome:
    spent = Spent(flops=cost, executed_flops=2 * cost, device_s=cost / 3)
    facts: dict[str, Any] = {"value": value if ending is Ending.COMPLETE else None, "spent": spent, "error": error}
    return Outcome(trial_id="t", number=number, bundle_id="b", attempt=0, ending=ending, point={}, **facts)


@given(some=some, mode=st.sampled_from(["min", "max"]), seed=st.integers(0, 9))
def test_a_tally_is_what_counting_gives(some, mode, seed):
    outcomes = [outcome(number, *facts) for number, facts in enumerate(some)]
    random.Random(seed).shuffle(outcomes)
    tally = Tally(mode, outcomes)
    assert tally.count == len(outcomes)
    assert tally.best == best_of(outcomes, mode)
    total = sum((o.spent for o in outcomes), Spent())
    assert tally.spent(0.0) == total, "added up in that order, to the last bit"
    assert tally.spent(7.0).device_s == 7.0 + total.device_s
    assert dict(tally.endings) == {e: n for e in Ending if (n := sum(o.ending is e for o in outcomes))}
    if any(o.ending is Ending.COMPLETE for o in outcomes):
        assert tally.fruitless() is None
    elif failed := [o for o in outcomes if o.error]:
        last = failed[-1]
        line = "a" if last.ending is Ending.TIMEOUT else "b: c"
        assert str(tally.fruitless()).endswith(f"; trial {last.number}: {line}")


# -- what samplers are shown, and what generations cost ----------------------------------------------------------------


def generations_of(count: int, size: int, seed: int) -> tuple[list[list[Trial]], dict[int, Outcome], list[Point]]:
    rng, draws = random.Random(seed), Seeing().ask(History(), count * size, 0).points
    trials = [Trial(search_id="s", number=i, point={**p, "lr": rng.uniform(0.01, 1)}) for i, p in enumerate(draws)]
    told = {}
    for trial in trials:
        ending = rng.choice([Ending.COMPLETE, Ending.COMPLETE, Ending.NAN, Ending.PREEMPTED])
        found = outcome(trial.number, ending, rng.random(), rng.uniform(1, 1e6), None)
        told[trial.number] = replace(found, point=trial.point)
    return [trials[i : i + size] for i in range(0, len(trials), size)], told, [{"lr": rng.random()} for _ in range(9)]


def shown_anew(generations: Any, ended: int, told: Any, infeasible: Any, space: Space | None) -> tuple[Any, Any]:
    known = []
    for g, trials in enumerate(generations):
        for trial in trials:
            found = told[trial.number] if g < ended else None
            failed = found is not None and found.ending is not Ending.COMPLETE
            if space is None or not space.faults(trial.point):
                known.append((trial.number, trial.point, found.value if found else None, failed, g))
    return known, [point for point in infeasible if space is None or not space.faults(point)]


@settings(max_examples=20)
@given(size=st.integers(1, 5), seed=st.integers(0, 99), narrowed=st.integers(0, 7))
def test_what_is_shown_and_billed_is_what_looking_at_all_of_it_gives(size, seed, narrowed):
    generations, told, infeasible = generations_of(8, size, seed)
    narrow = Space.from_dict({**SPACE.to_dict(), "lr": {"type": "float", "low": 0.1, "high": 0.6, "log": True}})
    shown, bill = Shown(), Bill(PLAN)
    for generation in range(9):
        ended, space = max(generation - 1, 0), narrow if generation > narrowed else None
        before = generations[:generation]
        history = shown.history(before, ended=ended, told=told, infeasible=infeasible[:generation], space=space)
        known = [(k.number, k.point, k.value, k.failed, k.generation) for k in history.trials]
        assert (known, list(history.infeasible)) == shown_anew(before, ended, told, infeasible[:generation], space)
        flops = passes = 0.0
        for trial in [trial for trials in before for trial in trials]:
            found = told[trial.number] if trial in [t for ts in before[:ended] for t in ts] else None
            lost = found is None or found.ending.retried
            flops += most_flops(PLAN, trial.point) if lost else found.spent.executed_flops
            passes += epochs(PLAN, trial.point)
        for _ in range(2):  # whoever asks twice pays once
            assert bill.upto(before, ended, told) == (flops, passes)


# -- in a controller ---------------------------------------------------------------------------------------------------


@pytest.fixture
def search(store: Store) -> SearchStore:
    return store.create("s", {"name": "s", "spec": {"budget": {"trials": 20}}})


def test_the_same_numbers_live_replayed_and_stored(search):
    endings = {2: Ending.NAN, 5: Ending.ERROR, 7: Ending.OOM}
    crew = Crew(
        controlled(search, budgets=Budgets(trials=20)),
        workers=3,
        share=0.123456789,
        ending=lambda bundle, number: endings.get(number, Ending.COMPLETE) if len(bundle.trials) > 1 else Ending.ERROR,
    ).run()
    crew.controller.note("calibrated", {"device_s": 0.1})
    again = controlled(search, 2, budgets=Budgets(trials=20)).progress()
    live, kept = crew.controller.progress(), stored(search)
    for other in (again, kept):
        assert (other.endings, other.spent, other.best) == (live.endings, live.spent, live.best)
        assert (other.asked, other.finished) == (20, 20)
    assert live.spent.executed_flops == sum(o.spent.executed_flops for o in search.outcomes())


def test_a_sampler_sees_no_more_after_a_narrower_goal_than_what_lies_in_it(search):
    seen: list[History] = []

    class Watching(Seeing):
        def ask(self, history: History, n: int, generation: int) -> Asked:
            seen.append(history)
            return super().ask(history, n, generation)

    narrow = {**SPACE.to_dict(), "width.0": {"type": "width", "low": 4, "high": 6}}
    crew = Crew(controlled(search, sampler=Watching(), narrow=lambda space: Watching(space)))
    crew.run(until=lambda controller: controller.progress().finished >= 8)
    crew.controller.adopt(Goal(version=1, budget={"trials": 24}, space=narrow))
    crew.run()
    assert len(seen[0].trials) == 0
    inside = [known for known in seen[-1].trials if 4 <= known.point["width.0"] <= 6]
    assert list(seen[-1].trials) == inside
    assert len(inside) < 20
