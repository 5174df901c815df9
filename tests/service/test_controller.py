"""The controller, with workers made up in memory and a real store: who is asked what, told what, and when it ends.

The sampler here derives each point from everything it is shown, so that any difference in what it knows is seen in the
points; a trial's value is a function of its point, so that any trial taken twice or mixed up is seen in the values.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import Point, Space
from search_spaces.networks import MLP
from service.controller import EQUAL_ERRORS, MAX_RETRIES, Controller, Done, Goal, best_of
from service.samplers import Asked, History, ListedSampler, NoRoom, RandomSampler, Sampler
from trials.ledger import most_flops
from trials.plan import Plan
from trials.query import query
from trials.records import Bundle, Ending, Outcome, Spent
from trials.store import Conflict, Held, SearchStore, Store
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


@pytest.fixture
def search(store: Store) -> SearchStore:
    return store.create("s", {"name": "s"})


def controlled(search: SearchStore, epoch: int = 1, **changes: Any) -> Controller:
    settings: dict[str, Any] = {"goal": Goal(trials=24), "batch": 4, "lanes": 3, "sampler": Seeing(), **changes}
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
    goal = Goal(trials=trials, epochs=epochs, flops=flops)
    if goal == Goal():
        goal = Goal(trials=9)
    with tempfile.TemporaryDirectory() as directory:
        search = Store(Path(directory)).create("s", {})
        crew = Crew(controlled(search, goal=goal, batch=batch), workers=workers, share=share).run()
        outcomes = search.outcomes()
        progress = crew.controller.progress()
    assert progress.done
    assert progress.asked == progress.finished == len(outcomes)
    assert progress.spent.executed_flops == pytest.approx(sum(o.spent.executed_flops for o in outcomes))
    spent = progress.spent.executed_flops
    assert len(outcomes) <= (goal.trials or math.inf)
    assert 3 * len(outcomes) <= (goal.epochs or math.inf)
    assert spent <= (goal.flops or math.inf)
    # and what is left has no room for one trial more, of the costliest kind that there is
    costliest = max(most_flops(PLAN, {"width.0": 12, "lr": 1.0, "batch_size": b}) for b in (16, 32))
    assert (
        len(outcomes) == goal.trials
        or 3 * (len(outcomes) + 1) > (goal.epochs or math.inf)
        or spent + costliest > (goal.flops or math.inf)
    )


def test_trials_of_equal_cost_fill_a_budget_exactly(store):
    cost = most_flops(PLAN, {"width.0": 5.0, "lr": 0.1, "batch_size": 16})
    for count in (1, 7, 8, 9):
        search = store.create(f"s{count}", {})
        points = [{"width.0": 5.0, "lr": 0.1 + i / 100, "batch_size": 16} for i in range(30)]
        Crew(controlled(search, goal=Goal(flops=cost * (count + 0.5)), sampler=ListedSampler(points))).run()
        assert [o.point for o in sorted(search.outcomes(), key=lambda o: o.number)] == points[:count]


def test_a_sampler_without_more_points_ends_the_search(search):
    sampler = ListedSampler(RandomSampler(SPACE, seed=0).ask(History(), 6, 0).points)
    crew = Crew(controlled(search, goal=Goal(trials=50), sampler=sampler)).run()
    assert crew.controller.progress().done
    assert [p for generation in points_of(search) for p in generation] == sampler.points


def test_when_the_time_is_up_nothing_more_begins(search):
    crew = Crew(controlled(search, goal=Goal(wall_seconds=0.3), lanes=1))
    crew.held["x-0"] = crew.controller.pull("x-0", timeout=10)
    assert 0 < crew.held["x-0"].seconds <= 0.3
    time.sleep(0.35)
    crew.held["x-1"] = crew.controller.pull("x-1", timeout=1)
    assert crew.held["x-1"].seconds == 0.0  # what was asked already: its trials end as cancelled
    progress = crew.run().controller.progress()
    assert (progress.asked, progress.finished, progress.done) == (8, 8, True)
    assert controlled(search, 2, goal=Goal(wall_seconds=0.3)).over(), "time spent before counts"


def test_device_seconds_are_those_told_and_those_running(search):
    crew = Crew(controlled(search, goal=Goal(device_seconds=6.0), lanes=1), workers=1)  # half a second a trial
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
        crew = Crew(controlled(search, goal=Goal(trials=2 * batch), batch=batch, lanes=lanes, sampler=sampler)).run()
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


# -- lost workers, memory, errors --------------------------------------------------------------------------------------


def test_a_lost_workers_bundle_is_halved_until_one_trial_alone_is_to_blame(store):
    search = store.create("s", {})
    points = [{"width.0": 4.0 + i, "lr": 0.1, "batch_size": 16} for i in range(4)]
    goal, sampler = Goal(trials=4), ListedSampler(points)
    crew = Crew(
        controlled(search, goal=goal, lanes=4, sampler=sampler), dies=lambda b: 2 in [t.number for t in b.trials]
    )
    crew.run()
    tried = Counter(tuple(t.number for t in bundle.trials) for bundle in crew.trained)
    assert tried == {(0, 1, 2, 3): 1, (0, 1): 1, (2, 3): 1, (2,): MAX_RETRIES - 1, (3,): 1}
    endings = {o.number: o.ending for o in search.outcomes()}
    assert endings == {0: "complete", 1: "complete", 2: "preempted", 3: "complete"}
    (lost,) = (o for o in search.outcomes() if o.number == 2)
    assert lost.error == f"its worker died {MAX_RETRIES + 1} times while training it"
    assert lost.value is None
    assert lost.point == points[2]
    assert crew.controller.progress().done
    rows = query(store, "SELECT number, ending, value FROM trials").to_pylist()
    assert [(row["number"], row["ending"], row["value"]) for row in rows] == [
        (n, str(endings[n]), None if n == 2 else value_of(points[n])) for n in range(4)
    ]


def test_halves_go_before_what_waits(search):
    points = [{"width.0": 4.0 + i, "lr": 0.1, "batch_size": 16} for i in range(24)]
    controller = controlled(search, lanes=4, sampler=ListedSampler(points))
    bundle = controller.pull("a-1", timeout=10)
    controller.lost("a-1")
    found = [controller.pull(f"b-{i}", timeout=1) for i in range(2)]
    assert sorted(t.number for b in found for t in b.trials) == [t.number for t in bundle.trials]


def test_a_worker_is_named_in_full_or_by_a_leading_part_and_no_other_is_meant(search):
    controller = controlled(search, lanes=1)
    for worker in ("ray-1-77", "ray-11-78", "ray-2-79"):
        assert controller.pull(worker, timeout=10) is not None
    controller.lost("ray-1")
    assert controller.progress().running == 2
    controller.lost("ray-3")
    assert controller.progress().running == 2
    controller.lost("ray-11-78")
    assert controller.progress().running == 1


def test_the_last_pull_of_a_lost_worker_takes_no_bundle_with_it(search):
    """It still waits in the controller when the death is noticed: a bundle given to it would never come back."""
    crew = Crew(controlled(search, lanes=1))
    bundles = [crew.controller.pull(f"w-{i}-1", timeout=10) for i in range(8)]
    answers: list[Any] = []
    waiting = threading.Thread(target=lambda: answers.append(crew.controller.pull("w-9-1", timeout=10)))
    waiting.start()
    time.sleep(0.1)
    crew.controller.lost("w-9")
    for bundle in bundles:
        crew.store(bundle, crew.outcomes(bundle))
        crew.controller.finish(bundle, crew.outcomes(bundle))
    waiting.join()
    assert answers == [Done.DONE]
    assert crew.run().controller.progress().finished == 24


def test_a_bundle_out_of_memory_is_halved_and_its_other_trials_are_kept(store, search):
    """Trials 1 and 2 need more than half of a bundle's memory: they fit beside nobody else, and then they do."""
    points = [{"width.0": 4.0 + i, "lr": 0.1, "batch_size": 16} for i in range(4)]

    def ending(bundle: Bundle, number: int) -> Ending:
        return Ending.OOM if number in (1, 2) and len(bundle.trials) > 1 else Ending.COMPLETE

    crew = Crew(controlled(search, goal=Goal(trials=4), lanes=4, sampler=ListedSampler(points)), ending=ending)
    crew.run()
    assert Counter(tuple(t.number for t in b.trials) for b in crew.trained) == {(0, 1, 2, 3): 1, (1,): 1, (2,): 1}
    assert [(n, v) for n, _, _, v in final(search)] == [(n, value_of(p)) for n, p in enumerate(points)]
    rows = query(store, "SELECT number, value FROM trials").to_pylist()
    assert [(row["number"], row["value"]) for row in rows] == [(n, value_of(p)) for n, p in enumerate(points)]
    assert events(search, "failed") == [{"bundle": crew.trained[0].id, "attempt": 0, "numbers": [1, 2]}]


def test_memory_that_never_suffices_ends_as_out_of_memory(search):
    crew = Crew(controlled(search, goal=Goal(trials=5)), ending=lambda b, n: Ending.OOM if n == 3 else Ending.COMPLETE)
    crew.run()
    tries = sum(3 in [t.number for t in b.trials] for b in crew.trained)
    assert MAX_RETRIES < tries <= MAX_RETRIES + 3
    assert {o.number: o.ending for o in search.outcomes()} == {
        n: Ending.OOM if n == 3 else Ending.COMPLETE for n in range(5)
    }


def test_a_run_of_equal_errors_stops_the_search_and_it_can_be_resumed(search):
    goal = Goal(trials=100)
    crew = Crew(controlled(search, goal=goal), workers=1, ending=lambda *_: Ending.ERROR).run()
    progress = crew.controller.progress()
    assert EQUAL_ERRORS <= progress.finished < EQUAL_ERRORS + 3
    assert not progress.done
    assert progress.failure == (
        "the last 16 trials all ended in the same error: ValueError: no Mend its cause, then resume the search."
    )
    again = Crew(controlled(search, 2, goal=goal)).run().controller.progress()
    assert again.failure is None
    assert again.endings == {"error": progress.finished, "complete": 100 - progress.finished}


def test_errors_between_successes_stop_nothing(search):
    ending = lambda _, number: Ending.COMPLETE if number % 10 == 0 else Ending.ERROR  # noqa: E731
    crew = Crew(controlled(search, goal=Goal(trials=60), batch=10, lanes=1), workers=1, ending=ending).run()
    assert crew.controller.progress().done
    assert crew.controller.progress().failure is None


def test_a_sampler_that_fails_ends_the_search_with_its_words(store):
    class Failing(Seeing):
        def __init__(self, error: Exception) -> None:
            self.error, self.space = error, SPACE

        def ask(self, history: History, n: int, generation: int) -> Asked:
            if generation == 2:
                raise self.error
            return super().ask(history, n, generation)

    failures = {}
    for name, error in {"room": NoRoom("search: no room."), "bug": KeyError("x")}.items():
        crew = Crew(controlled(store.create(name, {}), sampler=Failing(error))).run()
        failures[name] = crew.controller.progress().failure
        assert not crew.controller.progress().done
        assert crew.controller.over()
    assert failures == {"room": "search: no room.", "bug": "the sampler failed: KeyError('x')"}


def test_a_store_that_cannot_be_written_ends_the_search_and_acknowledges_nothing(search):
    crew = Crew(controlled(search, lanes=1))
    bundle = crew.controller.pull("w-0", timeout=10)
    crew.store(bundle, crew.outcomes(bundle))
    crew.controller.pull("w-1", timeout=10)
    away = search.path / "away"
    (search.path / "log").rename(away)
    crew.controller.finish(bundle, crew.outcomes(bundle))
    progress = crew.controller.progress()
    assert "the store cannot be written" in progress.failure
    assert progress.finished == 0
    assert crew.controller.pull("w-1") is Done.DONE
    away.rename(search.path / "log")
    again = controlled(search, 2)  # what the worker made durable is told by the next controller
    assert again.progress().finished == 1
    assert Crew(again).run().controller.progress().done


# -- zombies -----------------------------------------------------------------------------------------------------------


def with_zombie(search: SearchStore) -> tuple[Crew, Bundle, list[Outcome]]:
    """A search whose first worker was given up and is about to come back with lies."""
    crew = Crew(controlled(search, goal=Goal(trials=8)))
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
    again = controlled(search, 2, goal=Goal(trials=8)).progress()
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
    controller = controlled(search, goal=Goal(trials=1), lanes=1, batch=1)
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


@pytest.mark.parametrize("untold", ["closed", "begun", "absent"])
def test_from_every_prefix_of_the_log_the_same_trials_are_reached(search, tmp_path, untold):
    company: dict[str, Any] = {"ending": ending_by_company, "dies": dies_by_company}
    how: dict[str, Any] = {"goal": Goal(trials=18), "batch": 6}
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
        controller = controlled(search, epoch, goal=Goal(trials=1), lanes=1, batch=1)
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
    Crew(controlled(search, goal=Goal(trials=12))).run()
    Crew(controlled(search, 2, goal=Goal(trials=24))).run()
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
