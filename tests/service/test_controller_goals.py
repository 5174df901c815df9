"""Goals that change while a search runs, at the controller: what is asked follows from the log alone, killed or not."""

from __future__ import annotations

import random
import shutil
import threading
import time
from dataclasses import replace

import pytest
from controller_cases import PLAN, SPACE, Crew, Seeing, controlled, events, final, points_of

from search_spaces import Space
from service.budgets import Budgets
from service.controller import Controller, Done
from service.samplers import Asked, History
from trials.goals import Goal
from trials.ledger import most_flops
from trials.records import Ending
from trials.store import SearchStore, Store

NARROW = {**SPACE.to_dict(), "width.0": {"type": "width", "low": 2, "high": 7}}
FIRST = Goal(workers=2, budget={"trials": 24})


@pytest.fixture
def search(store: Store) -> SearchStore:
    return store.create("s", {"name": "s"})


# -- the same points whoever is killed ---------------------------------------------------------------------------------


def edits() -> dict[int, Goal]:
    """By generation before which it is adopted: narrowed, paused (and resumed by whoever drives), extended."""
    narrowed = replace(FIRST, version=1, space=NARROW)
    paused = replace(narrowed, version=2, state="pause")
    extended = replace(narrowed, version=4, budget={"trials": 30})
    return {2: narrowed, 3: paused, 4: extended}


class Driven:
    """A controller whose goal changes in its sampler's sleep: just before that answers, so that its answer must be
    thrown away."""

    def __init__(self, search: SearchStore, epoch: int = 1) -> None:
        self.samplers: list[Edited] = []
        self.there = threading.Event()
        self.controller = controlled(
            search, epoch, budgets=Budgets(trials=24), sampler=self.sampler(SPACE), narrow=self.sampler
        )
        self.there.set()

    def sampler(self, space: Space) -> Edited:
        self.samplers.append(Edited(self, space))
        return self.samplers[-1]

    def edit(self, generation: int) -> None:
        assert self.there.wait(10)
        goal = edits().get(generation)
        if goal is not None and self.controller.goal.version < goal.version:
            self.controller.adopt(goal)
            if goal.state == "pause":
                self.controller.drain()


class Edited:
    """A sampler of `Driven`, and what it was shown."""

    def __init__(self, driven: Driven, space: Space) -> None:
        self.driven, self.inner, self.shown = driven, Seeing(space), list[History]()

    def ask(self, history: History, n: int, generation: int) -> Asked:
        self.shown.append(history)
        self.driven.edit(generation)
        return self.inner.ask(history, n, generation)


def edited(search: SearchStore, epoch: int, lot: int) -> Controller:
    """Driven to its end over every edit; the pause is lifted once all workers have left."""
    controller = Driven(search, epoch).controller
    if controller.goal.state == "pause":
        controller.drain()
    Crew(controller, lot=random.Random(lot)).run()
    if controller.goal.state == "pause":
        assert controller.over()
        assert not controller.progress().done
        controller.adopt(replace(edits()[3], version=3, state="run"))
        assert not controller.over()
        Crew(controller, lot=random.Random(lot)).run()
    return controller


@pytest.mark.slow
def test_a_search_whose_goal_changes_is_replayed_exactly_from_prefixes_of_its_log(search, tmp_path):
    controller = edited(search, 1, lot=5)
    assert controller.progress().done
    reached, points = final(search), points_of(search)
    assert [len(generation) for generation in points] == [4] * 7 + [2]
    assert [body["version"] for body in events(search, "goal")] == [1, 2, 3, 4]
    log = sorted((search.path / "log").iterdir())
    kinds = [event.kind for event in search.log()]
    for count in [n for n in range(len(log) + 1) if n % 4 == 0 or "goal" in kinds[max(0, n - 2) : n]]:
        copy = Store(tmp_path / str(count)).create("s", {})
        for path in log[:count]:
            shutil.copy(path, copy.path / "log")
        for body in events(copy, "told"):
            name = f"{body['bundle']}.{body['attempt']}"
            shutil.copytree(search.path / "metrics" / name, copy.path / "metrics" / name)
        again = edited(copy, 2, lot=count)
        assert again.progress().done
        assert points_of(copy) == points, f"from the first {count} events"
        assert final(copy) == reached


def test_a_narrowed_space_holds_from_the_next_generation_on_and_hides_what_lies_outside(search):
    driven = Driven(search)
    Crew(driven.controller).run()
    narrowed, points = Space.from_dict(NARROW), points_of(search)
    assert all(not narrowed.faults(point) for generation in points[2:] for point in generation)
    outside = [p for generation in points[:2] for p in generation if narrowed.faults(p)]
    assert outside, "or the test shows nothing"
    shown = [known.point for history in driven.samplers[-1].shown for known in history.trials]
    assert shown
    assert not any(point in outside for point in shown)
    assert any(point in outside for history in driven.samplers[0].shown for point in (k.point for k in history.trials))


# -- extending ---------------------------------------------------------------------------------------------------------


def test_a_complete_search_that_is_extended_goes_on_as_if_it_had_been_so_long(search, store):
    crew = Crew(controlled(search, budgets=Budgets(trials=12))).run()
    assert crew.controller.progress().done
    assert crew.controller.pull("w-9", timeout=0.1) is Done.DONE
    crew.controller.adopt(replace(FIRST, version=1))
    assert not crew.controller.over()
    assert not crew.controller.progress().done
    assert Crew(crew.controller).run().controller.progress().done
    assert crew.controller.progress().budgets == Budgets(trials=24)
    straight = store.create("straight", {})
    Crew(controlled(straight)).run()
    assert points_of(search) == points_of(straight)
    assert final(search) == final(straight)


def test_more_flops_go_on_where_no_point_could_be_bought(search):
    cost = most_flops(PLAN, {"width.0": 12, "lr": 1.0, "batch_size": 16})
    crew = Crew(controlled(search, budgets=Budgets(flops=10 * cost))).run()
    before = crew.controller.progress()
    assert before.done
    assert points_of(search)[-2:] == [[], []]
    goal = Goal(version=1, budget={"flops": 30 * cost})
    crew.controller.adopt(goal)
    after = Crew(crew.controller).run().controller.progress()
    assert after.done
    assert after.finished > before.finished
    assert after.spent.executed_flops <= 30 * cost
    resumed = controlled(search, 2, budgets=Budgets(flops=10 * cost)).progress()
    assert (resumed.done, resumed.asked, resumed.goal) == (True, after.asked, 1)


def test_an_older_goal_or_the_same_changes_nothing(search):
    controller = controlled(search)
    controller.adopt(replace(FIRST, version=3))
    controller.adopt(replace(FIRST, version=3, budget={"trials": 99}))
    controller.adopt(replace(FIRST, version=2, budget={"trials": 99}))
    assert controller.progress().budgets.trials == 24
    assert [body["version"] for body in events(search, "goal")] == [3]


def test_time_passes_only_while_somebody_drives(search):
    controller = controlled(search, budgets=Budgets(wall_seconds=30))
    controller.note("state", {"state": "running"})
    controller.drain()
    controller.note("state", {"state": "paused"})
    controller.close()
    time.sleep(0.5)
    later = controlled(search, 2, budgets=Budgets(wall_seconds=30))
    assert later.progress().wall_s < 0.4


# -- leaving -----------------------------------------------------------------------------------------------------------


def test_a_retired_worker_finishes_what_it_has_and_gets_nothing_more(search):
    crew = Crew(controlled(search, lanes=1))
    mine, others = crew.controller.pull("w-1", timeout=10), crew.controller.pull("w-2", timeout=10)
    crew.controller.retire("w-1")
    for worker, bundle in (("w-1", mine), ("w-2", others)):
        crew.store(bundle, crew.outcomes(bundle, worker))
        crew.controller.finish(bundle, crew.outcomes(bundle, worker))
    assert crew.controller.progress().finished == 2
    assert crew.controller.pull("w-1") is Done.DONE
    assert not isinstance(crew.controller.pull("w-2", timeout=10), Done)
    assert not isinstance(crew.controller.pull("w-10", timeout=10), Done), "another worker's name begins alike"
    assert not events(search, "failed")


def test_a_drained_controller_hands_out_nothing_until_it_is_to_run_again(search):
    crew = Crew(controlled(search, lanes=1))
    bundle = crew.controller.pull("w-1", timeout=10)
    crew.controller.drain()
    assert crew.controller.pull("w-2") is Done.DONE
    crew.store(bundle, crew.outcomes(bundle))
    crew.controller.finish(bundle, crew.outcomes(bundle))
    assert crew.controller.progress().finished == 1
    assert crew.controller.over()
    crew.controller.adopt(replace(FIRST, version=1))
    Crew(crew.controller).run()
    assert crew.controller.progress().done


# -- the time limit ----------------------------------------------------------------------------------------------------


def test_an_overdue_bundle_is_halved_until_one_trial_alone_times_out(search):
    crew = Crew(controlled(search, budgets=Budgets(trials=4), lanes=4, batch=4), workers=1)
    for turn in range(60):
        bundle = crew.controller.pull(f"w-{turn}", timeout=5)
        if isinstance(bundle, Done):
            break
        if 2 in [trial.number for trial in bundle.trials]:
            crew.controller.overdue(f"w-{turn}", "it took too long")
        else:
            crew.store(bundle, crew.outcomes(bundle))
            crew.controller.finish(bundle, crew.outcomes(bundle))
    outcomes = {o.number: o for o in search.outcomes()}
    assert {n for n, o in outcomes.items() if o.ending is Ending.COMPLETE} == {0, 1, 3}
    assert (outcomes[2].ending, outcomes[2].error) == (Ending.TIMEOUT, "it took too long")
    assert {body["why"] for body in events(search, "failed")} == {"overdue"}
    again = controlled(search, 2, budgets=Budgets(trials=4), lanes=4, batch=4)
    assert again.over(), "a trial that took too long is not tried again"
    assert not again._losses


def test_an_overdue_worker_that_finished_just_in_time_changes_nothing(search):
    crew = Crew(controlled(search, lanes=1))
    bundle = crew.controller.pull("w-1", timeout=10)
    crew.store(bundle, crew.outcomes(bundle))
    crew.controller.finish(bundle, crew.outcomes(bundle))
    crew.controller.overdue("w-1", "too late")
    assert [o.ending for o in search.outcomes()] == [Ending.COMPLETE]
    assert crew.controller.pull("w-1") is Done.DONE
