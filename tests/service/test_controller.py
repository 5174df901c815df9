"""The controller, with workers made up in memory and a real store: who is asked what, told what, and when it ends.

The sampler here derives each point from everything it is shown, so that any difference in what it knows is seen in the
points; a trial's value is a function of its point, so that any trial taken twice or mixed up is seen in the values.
"""

from __future__ import annotations

import itertools
import math
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from controller_cases import PLAN, SPACE, Crew, Seeing, controlled, events, final, points_of, value_of
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import Point
from service.budgets import Budgets
from service.controller import MAX_RETRIES, Done
from service.progress import best_of
from service.samplers import Asked, History, ListedSampler, RandomSampler
from trials.ledger import most_flops
from trials.query import query
from trials.records import Bundle, Ending, Outcome
from trials.store import Conflict, Held, SearchStore, Store


@pytest.fixture
def search(store: Store) -> SearchStore:
    return store.create("s", {"name": "s"})


# -- generations -------------------------------------------------------------------------------------------------------


def asked_when(
    store: Store, name: str, perturbed: int | None = None, lot: int = 0, **changes: Any
) -> list[list[Point]]:
    search = store.create(name, {})
    crew = Crew(controlled(search, **changes), workers=changes.pop("workers", 2), lot=random.Random(lot))
    batch = crew.controller.batch
    crew.value = lambda number, point: value_of(point) + (number // batch == perturbed)
    crew.run()
    return points_of(search)


def test_a_generation_knows_the_outcomes_of_generations_two_before_and_no_others(store):
    plain = asked_when(store, "plain")
    assert [len(points) for points in plain] == [4] * 6
    for perturbed in range(6):
        other = asked_when(store, f"p{perturbed}", perturbed, lot=perturbed)
        assert other[: perturbed + 2] == plain[: perturbed + 2]
        assert all(a != b for a, b in zip(other[perturbed + 2 :], plain[perturbed + 2 :], strict=True))


@pytest.mark.parametrize(("workers", "lanes", "lot"), [(1, 1, 1), (1, 8, 2), (2, 3, 3), (5, 2, 4), (9, 4, 5)])
def test_workers_lanes_and_timing_decide_nothing(store, workers, lanes, lot):
    search = store.create("other", {})
    Crew(controlled(search, lanes=lanes), workers=workers, lot=random.Random(lot)).run()
    assert points_of(search) == asked_when(store, "one")
    assert [o.value for o in sorted(search.outcomes(), key=lambda o: o.number)] == [
        value_of(point) for points in points_of(search) for point in points
    ]


def test_a_failed_trial_is_told_as_failed(store):
    shown: list[History] = []

    class Recording(Seeing):
        def ask(self, history: History, n: int, generation: int) -> Asked:
            shown.append(replace(history, trials=list(history.trials)))
            return super().ask(history, n, generation)

    search = store.create("s", {})
    endings = {1: Ending.NAN, 2: Ending.ERROR, 3: Ending.PRUNED}
    crew = Crew(controlled(search, sampler=Recording()), ending=lambda _, number: endings.get(number, Ending.COMPLETE))
    crew.run()
    for generation, history in enumerate(shown):
        assert [known.number for known in history.trials] == list(range(4 * generation))
        for known in history.trials:
            told = known.number < 4 * (generation - 1)
            assert known.failed == (told and known.number in endings)
            assert known.value == (value_of(known.point) if told and known.number not in endings else None)


def test_two_generations_are_in_flight_and_never_three(search):
    crew = Crew(controlled(search, lanes=1))
    bundles = [crew.controller.pull(f"w-{i}", timeout=10) for i in range(8)]
    assert crew.controller.pull("w-8", timeout=0.1) is None
    *rest, last = sorted(bundles, key=lambda b: b.generation)[:4]
    for bundle in [*sorted(bundles, key=lambda b: b.generation)[4:], *rest]:
        crew.store(bundle, crew.outcomes(bundle))
        crew.controller.finish(bundle, crew.outcomes(bundle))
    assert crew.controller.pull("w-8", timeout=0.1) is None, "one trial of the first generation still runs"
    crew.store(last, crew.outcomes(last))
    crew.controller.finish(last, crew.outcomes(last))
    assert crew.controller.pull("w-8", timeout=10).generation == 2


# -- budgets -----------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    trials=st.none() | st.integers(1, 20),
    epochs=st.none() | st.integers(1, 60),
    flops=st.none() | st.floats(5e4, 3e6),
    share=st.sampled_from([0.2, 1.0]),
    batch=st.integers(1, 7),
    workers=st.integers(1, 4),
)
def test_budgets_are_never_exceeded(trials, epochs, flops, share, batch, workers):
    budgets = Budgets(trials=trials, epochs=epochs, flops=flops)
    if budgets == Budgets():
        budgets = Budgets(trials=9)
    with tempfile.TemporaryDirectory() as directory:
        search = Store(Path(directory)).create("s", {})
        crew = Crew(controlled(search, budgets=budgets, batch=batch), workers=workers, share=share).run()
        outcomes = search.outcomes()
        progress = crew.controller.progress()
    assert progress.done
    assert progress.asked == progress.finished == len(outcomes)
    assert progress.spent.executed_flops == pytest.approx(sum(o.spent.executed_flops for o in outcomes))
    spent = progress.spent.executed_flops
    assert len(outcomes) <= (budgets.trials or math.inf)
    assert 3 * len(outcomes) <= (budgets.epochs or math.inf)
    assert spent <= (budgets.flops or math.inf)
    # and what is left has no room for one trial more, of the costliest kind that there is
    costliest = max(most_flops(PLAN, {"width.0": 12, "lr": 1.0, "batch_size": b}) for b in (16, 32))
    assert (
        len(outcomes) == budgets.trials
        or 3 * (len(outcomes) + 1) > (budgets.epochs or math.inf)
        or spent + costliest > (budgets.flops or math.inf)
    )


def test_trials_of_equal_cost_fill_a_budget_exactly(store):
    cost = most_flops(PLAN, {"width.0": 5.0, "lr": 0.1, "batch_size": 16})
    for count in (1, 7, 8, 9):
        search = store.create(f"s{count}", {})
        points = [{"width.0": 5.0, "lr": 0.1 + i / 100, "batch_size": 16} for i in range(30)]
        Crew(controlled(search, budgets=Budgets(flops=cost * (count + 0.5)), sampler=ListedSampler(points))).run()
        assert [o.point for o in sorted(search.outcomes(), key=lambda o: o.number)] == points[:count]


def test_a_sampler_without_more_points_ends_the_search(search):
    sampler = ListedSampler(RandomSampler(SPACE, seed=0).ask(History(), 6, 0).points)
    crew = Crew(controlled(search, budgets=Budgets(trials=50), sampler=sampler)).run()
    assert crew.controller.progress().done
    assert [p for generation in points_of(search) for p in generation] == sampler.points


def test_when_the_time_is_up_nothing_more_begins(search):
    crew = Crew(controlled(search, budgets=Budgets(wall_seconds=0.3), lanes=1))
    crew.held["x-0"] = crew.controller.pull("x-0", timeout=10)
    assert 0 < crew.held["x-0"].seconds <= 0.3
    time.sleep(0.35)
    crew.held["x-1"] = crew.controller.pull("x-1", timeout=1)
    assert crew.held["x-1"].seconds == 0.0  # what was asked already: its trials end as cancelled
    progress = crew.run().controller.progress()
    assert (progress.asked, progress.finished, progress.done) == (8, 8, True)
    assert controlled(search, 2, budgets=Budgets(wall_seconds=0.3)).over(), "time spent before counts"


def test_device_seconds_are_those_told_and_those_running(search):
    crew = Crew(controlled(search, budgets=Budgets(device_seconds=6.0), lanes=1), workers=1)  # half a second a trial
    crew.run()
    # twelve trials fill the budget; the generation that was open then still ends
    assert 12 <= crew.controller.progress().asked <= 12 + 2 * 4
    assert crew.controller.progress().spent.device_s == 0.5 * crew.controller.progress().finished


# -- packing -----------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(batch=st.integers(1, 20), lanes=st.integers(1, 8), seed=st.integers(0, 99))
def test_bundles_hold_equal_signatures_evenly_and_each_trial_once(batch, lanes, seed):
    with tempfile.TemporaryDirectory() as directory:
        search = Store(Path(directory)).create("s", {})
        sampler = RandomSampler(SPACE, seed=seed)
        crew = Crew(
            controlled(search, budgets=Budgets(trials=2 * batch), batch=batch, lanes=lanes, sampler=sampler)
        ).run()
        generations = points_of(search)
    assert sorted(t.number for bundle in crew.trained for t in bundle.trials) == list(range(2 * batch))
    assert len({bundle.id for bundle in crew.trained}) == len(crew.trained)
    sizes: dict[tuple[int, Any], list[int]] = {}
    for bundle in crew.trained:
        (signature,) = {t.point["batch_size"] for t in bundle.trials}
        assert {t.number // batch for t in bundle.trials} == {bundle.generation}
        assert all(t.point == generations[bundle.generation][t.number % batch] for t in bundle.trials)
        sizes.setdefault((bundle.generation, signature), []).append(len(bundle.trials))
    for found in sizes.values():
        assert max(found) <= lanes
        assert len(found) == math.ceil(sum(found) / lanes)  # no more bundles than needed
        assert max(found) - min(found) <= 1


# -- zombies -----------------------------------------------------------------------------------------------------------


def with_zombie(search: SearchStore) -> tuple[Crew, Bundle, list[Outcome]]:
    """A search whose first worker was given up and is about to come back with lies."""
    crew = Crew(controlled(search, budgets=Budgets(trials=8)))
    zombie = crew.controller.pull("w-0-1", timeout=10)
    crew.controller.lost("w-0")
    crew.run()
    return crew, zombie, [replace(o, value=-1.0) for o in crew.outcomes(zombie, "zombie")]


def test_a_zombie_changes_nothing(search):
    crew, zombie, lies = with_zombie(search)
    before, log, progress = final(search), search.log(), crew.controller.progress()
    crew.controller.finish(zombie, lies)
    crew.store(zombie, lies)  # even where it reaches the store
    crew.controller.finish(zombie, lies)
    after = crew.controller.progress()
    assert (after.best, after.endings, after.spent) == (progress.best, progress.endings, progress.spent)
    assert after.best.value == min(value for *_, value in before)
    again = controlled(search, 2, budgets=Budgets(trials=8)).progress()
    assert (again.best, again.endings, again.done) == (progress.best, progress.endings, True)
    assert search.log() == log
    assert final(search) == before


def test_a_zombie_is_not_shown(store, search):
    crew, zombie, lies = with_zombie(search)
    shown, outcomes = query(store, "SELECT number, value, bundle_id FROM trials"), search.outcomes()
    crew.store(zombie, lies)
    assert query(store, "SELECT number, value, bundle_id FROM trials").equals(shown)
    assert search.outcomes() == outcomes


def test_a_zombie_of_a_lone_trial_is_told_from_the_next_attempt(search):
    """The bundle's id is the same then, only the attempt differs."""
    controller = controlled(search, budgets=Budgets(trials=1), lanes=1, batch=1)
    crew = Crew(controller)
    zombie = controller.pull("w-0", timeout=10)
    controller.lost("w-0")
    second = controller.pull("w-1", timeout=10)
    assert (second.id, second.attempt) == (zombie.id, zombie.attempt + 1)
    controller.finish(zombie, [replace(o, value=-1.0) for o in crew.outcomes(zombie)])
    assert controller.progress().finished == 0
    crew.store(second, crew.outcomes(second))
    controller.finish(second, crew.outcomes(second))
    assert [o.value for o in search.outcomes()] == [value_of(second.trials[0].point)]


def test_one_epoch_has_one_controller(search):
    with search.lease() as first:
        with pytest.raises(Held, match="one owner at a time"):
            search.lease()
        controlled(search, first.epoch).pull("w", timeout=10)
    with pytest.raises(Conflict, match="epochs rise"):
        controlled(search, first.epoch)
    with search.lease() as second:
        assert second.epoch > first.epoch
        controlled(search, second.epoch).close()


# -- replay ------------------------------------------------------------------------------------------------------------


def prefix(search: SearchStore, root: Path, count: int, untold: str) -> SearchStore:
    """The search as it was after `count` events; what workers had begun but was not told by then is closed, begun (open
    and empty), or absent."""
    store = Store(root / f"{count}-{untold}")
    copy = store.create("s", {})
    kept = sorted((search.path / "log").iterdir())[:count]
    for path in kept:
        shutil.copy(path, copy.path / "log")
    asked = {t["number"] for event in copy.log() if event.kind == "asked" for t in event.body["trials"]}
    told = {(e.body["bundle"], e.body["attempt"]) for e in copy.log() if e.kind == "told"}
    for place in search.attempts():
        name = f"{place[0]}.{place[1]}"
        begun = {o.number for o in search.attempt_outcomes(*place)} <= asked
        if place in told or (untold == "closed" and begun):
            shutil.copytree(search.path / "metrics" / name, copy.path / "metrics" / name)
        elif untold == "begun" and begun:
            (copy.path / "metrics" / name).mkdir()
    return copy


def ending_by_company(bundle: Bundle, number: int) -> Ending:
    """Out of memory beside others, NaN and errors by number: a function of the trial and its bundle alone."""
    if number == 6 and len(bundle.trials) > 1:
        return Ending.OOM
    return {2: Ending.NAN, 9: Ending.ERROR}.get(number, Ending.COMPLETE)


def dies_by_company(bundle: Bundle) -> bool:
    return 4 in [t.number for t in bundle.trials] and len(bundle.trials) > 1


@pytest.mark.slow
@pytest.mark.parametrize("untold", ["closed", "begun", "absent"])
def test_from_every_prefix_of_the_log_the_same_trials_are_reached(search, tmp_path, untold):
    company: dict[str, Any] = {"ending": ending_by_company, "dies": dies_by_company}
    how: dict[str, Any] = {"budgets": Budgets(trials=18), "batch": 6}
    Crew(controlled(search, **how), lot=random.Random(7), **company).run()
    reached, length = final(search), len(search.log())
    assert len(reached) == 18
    assert {ending for *_, ending, _ in reached} == {Ending.COMPLETE, Ending.NAN, Ending.ERROR}
    assert {body.get("why") for body in events(search, "failed")} == {"lost", None}
    for count in range(length + 1):
        copy = prefix(search, tmp_path, count, untold)
        before = final(copy)
        controller = controlled(copy, 2, **how)
        progress = controller.progress()
        assert progress.finished >= len(before)
        Crew(controller, lot=random.Random(count), workers=3, **company).run()
        assert final(copy) == reached, f"from the first {count} events"
        assert controller.progress().done
        assert set(map(repr, before)) <= set(map(repr, reached))
        rows = query(Store(copy.path.parents[1]), "SELECT number, value FROM trials").to_pylist()
        assert [(row["number"], row["value"]) for row in rows] == [(n, v) for n, _, _, v in reached]


def test_losses_are_counted_over_controllers(search):
    for epoch in range(1, MAX_RETRIES + 2):
        controller = controlled(search, epoch, budgets=Budgets(trials=1), lanes=1, batch=1)
        assert controller.progress().finished == 0
        assert controller.pull(f"w-{epoch}", timeout=10).attempt == epoch - 1
        controller.lost(f"w-{epoch}")
    assert controller.progress().endings == {"preempted": 1}
    assert controller.progress().done


def test_a_closed_controller_hands_out_nothing_and_the_next_goes_on(search):
    crew = Crew(controlled(search)).run(until=lambda controller: controller.progress().finished >= 9)
    crew.controller.close()
    assert crew.controller.pull("w-9") is Done.DONE
    assert not crew.controller.progress().done
    worker = next(iter(crew.held), None)
    if worker:
        crew.finish(worker)  # what runs may finish
    finished = crew.controller.progress().finished
    again = controlled(search, 2)
    assert again.progress().finished == finished
    Crew(again).run()
    assert again.progress().finished == 24
    assert points_of(search) == points_of_undisturbed(search)


def points_of_undisturbed(search: SearchStore) -> list[list[Point]]:
    return asked_when(Store(search.path.parents[1]), "undisturbed")


def test_a_higher_goal_goes_on_where_a_complete_search_ended(search):
    Crew(controlled(search, budgets=Budgets(trials=12))).run()
    Crew(controlled(search, 2, budgets=Budgets(trials=24))).run()
    assert points_of(search) == points_of_undisturbed(search)


def test_wall_and_overhead_seconds_add_up_over_controllers(search):
    first = controlled(search)
    first.note("calibrated", {"device_s": 2.5, "lanes": 3})
    Crew(first).run(until=lambda controller: controller.progress().finished >= 6)
    time.sleep(0.2)
    first.note("state", {"state": "interrupted"})
    first.close()
    second = controlled(search, 2).progress()
    assert 0.2 <= second.wall_s < 10
    assert second.spent.device_s == pytest.approx(2.5 + 0.5 * second.finished)


# -- the best ----------------------------------------------------------------------------------------------------------


def outcome(number: int, value: float | None, ending: Ending = Ending.COMPLETE) -> Outcome:
    return Outcome(trial_id="t", number=number, bundle_id="b", attempt=0, ending=ending, point={}, value=value)


def test_the_best_is_the_earliest_of_the_best_complete_ones():
    found: Sequence[Outcome] = [
        outcome(5, 0.5),
        outcome(3, 0.25),
        outcome(2, 0.25),
        outcome(1, None, Ending.NAN),
        outcome(0, 0.1, Ending.PRUNED),
        outcome(4, 0.75),
        outcome(6, 0.75),
    ]
    for order in itertools.islice(itertools.permutations(found), 0, 5040, 97):
        assert best_of(order, "min").number == 2
        assert best_of(order, "max").number == 4
    assert best_of([outcome(1, None, Ending.NAN)], "min") is None


def test_progress_counts_what_happened(search):
    crew = Crew(controlled(search, lanes=1), ending=lambda _, n: Ending.NAN if n == 0 else Ending.COMPLETE)
    bundles = [crew.controller.pull(f"w-{i}", timeout=10) for i in range(5)]
    assert crew.controller.progress().running == 5
    for bundle in bundles[:3]:
        crew.store(bundle, crew.outcomes(bundle))
        crew.controller.finish(bundle, crew.outcomes(bundle))
    progress = crew.controller.progress()
    assert progress.endings == {"nan": 1, "complete": 2}
    assert (progress.asked, progress.running, progress.finished, progress.done) == (8, 2, 3, False)
    assert progress.best.value == min(value_of(t.point) for b in bundles[1:3] for t in b.trials)
