"""The controller when workers die, memory runs out, errors repeat or the store fails."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from typing import Any

import pytest
from controller_cases import PLAN, SPACE, Crew, Seeing, controlled, events, final, value_of

from service.budgets import Budgets, at_least
from service.controller import EQUAL_ERRORS, MAX_RETRIES, Done
from service.samplers import Asked, History, ListedSampler, NoRoom
from trials.ledger import most_flops
from trials.query import query
from trials.records import Bundle, Ending
from trials.store import SearchStore, Store


@pytest.fixture
def search(store: Store) -> SearchStore:
    return store.create("s", {"name": "s"})


# -- lost workers, memory, errors --------------------------------------------------------------------------------------


def test_a_lost_workers_bundle_is_halved_until_one_trial_alone_is_to_blame(store):
    search = store.create("s", {})
    points = [{"width.0": 4.0 + i, "lr": 0.1, "batch_size": 16} for i in range(4)]
    budgets, sampler = Budgets(trials=4), ListedSampler(points)
    crew = Crew(
        controlled(search, budgets=budgets, lanes=4, sampler=sampler), dies=lambda b: 2 in [t.number for t in b.trials]
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

    crew = Crew(controlled(search, budgets=Budgets(trials=4), lanes=4, sampler=ListedSampler(points)), ending=ending)
    crew.run()
    assert Counter(tuple(t.number for t in b.trials) for b in crew.trained) == {(0, 1, 2, 3): 1, (1,): 1, (2,): 1}
    assert [(n, v) for n, _, _, v in final(search)] == [(n, value_of(p)) for n, p in enumerate(points)]
    rows = query(store, "SELECT number, value FROM trials").to_pylist()
    assert [(row["number"], row["value"]) for row in rows] == [(n, value_of(p)) for n, p in enumerate(points)]
    assert events(search, "failed") == [{"bundle": crew.trained[0].id, "attempt": 0, "numbers": [1, 2]}]


def test_memory_that_never_suffices_ends_as_out_of_memory(search):
    crew = Crew(
        controlled(search, budgets=Budgets(trials=5)), ending=lambda b, n: Ending.OOM if n == 3 else Ending.COMPLETE
    )
    crew.run()
    tries = sum(3 in [t.number for t in b.trials] for b in crew.trained)
    assert MAX_RETRIES < tries <= MAX_RETRIES + 3
    assert {o.number: o.ending for o in search.outcomes()} == {
        n: Ending.OOM if n == 3 else Ending.COMPLETE for n in range(5)
    }


def test_a_run_of_equal_errors_stops_the_search_and_it_can_be_resumed(search):
    budgets = Budgets(trials=100)
    crew = Crew(controlled(search, budgets=budgets), workers=1, ending=lambda *_: Ending.ERROR).run()
    progress = crew.controller.progress()
    assert EQUAL_ERRORS <= progress.finished < EQUAL_ERRORS + 3
    assert not progress.done
    assert progress.failure == (
        "the last 16 trials all ended in the same error: ValueError: no Mend its cause, then resume the search."
    )
    again = Crew(controlled(search, 2, budgets=budgets)).run().controller.progress()
    assert again.failure is None
    assert again.endings == {"error": progress.finished, "complete": 100 - progress.finished}


def test_a_run_of_trials_that_take_too_long_stops_the_search(search):
    """Each may have said something else before it was ended, and none did its work."""
    controller = controlled(search, budgets=Budgets(trials=100), lanes=1)
    ended = 0
    while isinstance(controller.pull(f"w-{ended}", timeout=10), Bundle):
        controller.overdue(f"w-{ended}", f"it took longer than trial_seconds=1; it last said: at\nstep {ended}")
        ended += 1
    assert ended == EQUAL_ERRORS
    progress = controller.progress()
    assert progress.endings == {"timeout": EQUAL_ERRORS}
    assert not progress.done
    assert progress.failure == (
        "the last 16 trials all ended in the same error: it took longer than trial_seconds=1; it last said: at "
        "Mend its cause, then resume the search."
    )
    again = Crew(controlled(search, 2, budgets=Budgets(trials=100))).run().controller.progress()
    assert again.endings == {"timeout": EQUAL_ERRORS, "complete": 100 - EQUAL_ERRORS}


def test_a_trial_that_takes_too_long_now_and_then_stops_nothing(search):
    controller = controlled(search, budgets=Budgets(trials=2 * EQUAL_ERRORS + 2), lanes=1)
    crew = Crew(controller)
    for number in range(2 * EQUAL_ERRORS + 2):
        bundle = controller.pull(f"w-{number}", timeout=10)
        if number % EQUAL_ERRORS:
            controller.overdue(f"w-{number}", "it took longer")
        else:
            crew.store(bundle, crew.outcomes(bundle))
            controller.finish(bundle, crew.outcomes(bundle))
    assert controller.pull("w", timeout=10) is Done.DONE
    assert controller.progress().failure is None


def test_errors_between_successes_stop_nothing(search):
    ending = lambda _, number: Ending.COMPLETE if number % 10 == 0 else Ending.ERROR  # noqa: E731
    crew = Crew(controlled(search, budgets=Budgets(trials=60), batch=10, lanes=1), workers=1, ending=ending).run()
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
    assert progress.unwritable
    assert progress.finished == 0
    assert crew.controller.pull("w-1") is Done.DONE
    away.rename(search.path / "log")
    again = controlled(search, 2)  # what the worker made durable is told by the next controller
    assert again.progress().finished == 1
    assert Crew(again).run().controller.progress().done


# -- searches that come to nothing, and going on with them ------------------------------------------------------------


def failed(crew: Crew) -> str:
    """Why the search failed, written down as its driver does."""
    why = crew.controller.progress().failure
    assert why is not None
    crew.controller.note("state", {"state": "failed", "why": why})
    return why


def test_a_search_whose_workers_all_die_says_so_and_trains_its_trials_again_when_resumed(search):
    budgets = Budgets(trials=3)
    crew = Crew(controlled(search, budgets=budgets), dies=lambda bundle: True).run()
    assert crew.controller.progress().endings == {"preempted": 3}
    assert re.fullmatch(
        r"of its 3 trials none is complete \(3 preempted\); trial \d: its worker died 4 times while training it",
        failed(crew),
    )
    again = controlled(search, 2, budgets=budgets)
    assert again.progress().endings == {}
    again.close()
    Crew(again).run()  # cut off before anything was told
    final_crew = Crew(controlled(search, 3, budgets=budgets)).run()
    assert final_crew.controller.progress().endings == {"complete": 3}
    assert final_crew.controller.progress().failure is None
    assert {o.number: o.value for o in search.outcomes()} == {
        t["number"]: value_of(t["point"]) for body in events(search, "asked") for t in body["trials"]
    }
    assert controlled(search, 4, budgets=budgets).progress().endings == {"complete": 3}


def test_resuming_trains_only_lost_trials_again_and_gives_each_its_tries_anew(search):
    endings = {0: Ending.COMPLETE, 1: Ending.ERROR, 2: Ending.OOM}
    budgets = Budgets(trials=3)
    crew = Crew(controlled(search, budgets=budgets, lanes=1), ending=lambda _, number: endings[number]).run()
    crew.controller.note("state", {"state": "failed", "why": "a reason"})
    again = Crew(controlled(search, 2, budgets=budgets, lanes=1), ending=lambda _, number: endings[number]).run()
    assert [t.number for b in again.trained for t in b.trials] == [2] * (MAX_RETRIES + 1)
    assert again.controller.progress().endings == {"complete": 1, "error": 1, "oom": 1}
    assert controlled(search, 3, budgets=budgets).progress().endings == {"complete": 1, "error": 1, "oom": 1}


def test_what_was_lost_stays_lost_once_the_time_is_up(search):
    """Trained again without any time, it would end as cancelled, which is never retried and does not say why."""
    how: dict[str, Any] = {"budgets": Budgets(trials=3, wall_seconds=0.5), "lanes": 1}
    crew = Crew(controlled(search, **how), dies=lambda bundle: True).run()
    time.sleep(0.6)
    failed(crew)
    again = controlled(search, 2, **how)
    assert again.pull("w-9") is Done.DONE
    assert again.progress().endings == {"preempted": 3}
    longer: dict[str, Any] = {**how, "budgets": Budgets(trials=3, wall_seconds=600)}
    assert Crew(controlled(search, 3, **longer)).run().controller.progress().endings == {"complete": 3}


def test_lost_trials_that_are_trained_again_fit_the_budget(search):
    """A lost trial has spent nothing, but may yet: what it may spend is not for later generations to buy with."""
    cost = most_flops(PLAN, {"width.0": 5.0, "lr": 0.1, "batch_size": 16})
    points = [{"width.0": 5.0, "lr": 0.1 + i / 100, "batch_size": 16} for i in range(30)]
    how: dict[str, Any] = {"budgets": Budgets(flops=12.5 * cost), "lanes": 1, "sampler": ListedSampler(points)}
    crew = Crew(controlled(search, **how), dies=lambda b: any(t.number < 6 for t in b.trials)).run()
    assert crew.controller.progress().endings == {"preempted": 6, "complete": 6}
    crew.controller.note("state", {"state": "failed", "why": "a reason"})
    again = Crew(controlled(search, 2, **how)).run().controller.progress()
    assert again.endings == {"complete": 12}
    assert again.spent.executed_flops == pytest.approx(12 * cost)


def test_a_machine_that_kills_every_worker_stops_the_search_before_it_asks_for_all(search):
    crew = Crew(controlled(search, budgets=Budgets(trials=100)), dies=lambda bundle: True).run()
    progress = crew.controller.progress()
    assert not progress.done
    assert EQUAL_ERRORS <= progress.endings["preempted"] < EQUAL_ERRORS + 3
    assert "its worker died" in failed(crew)


def test_a_budget_that_buys_no_trial_is_told_with_what_one_needs(store):
    """Points are bought in order, so it is the first that a budget must reach; and what is told does reach it."""
    points = [{"width.0": width, "lr": 0.1, "batch_size": 16} for width in (6.0, 3.0, 12.0)]
    need, sampler = at_least(most_flops(PLAN, points[0])), ListedSampler(points)
    crew = Crew(
        controlled(store.create("a", {}), budgets=Budgets(flops=1000.0, epochs=2), batch=3, sampler=sampler)
    ).run()
    assert crew.controller.progress().done
    assert failed(crew) == (
        "no trial was asked, the budget is too small for one; the first of 3 points needs budget.flops of "
        f"{need}, not 1000; the first of 3 points needs budget.epochs of 3, not 2"
    )
    crew = Crew(controlled(store.create("b", {}), budgets=Budgets(flops=float(need)), batch=3, sampler=sampler)).run()
    assert crew.controller.progress().endings == {"complete": 1}


@pytest.mark.parametrize(
    ("least", "told"), [(123449, "1.235e+05"), (123400, "1.234e+05"), (3, "3"), (9999.5, "1e+04"), (1.5e20, "1.5e+20")]
)
def test_a_budget_that_is_told_buys_what_costs_so_much(least, told):
    assert at_least(least) == told
    assert float(told) >= least


def test_a_lost_worker_s_last_words_are_told(search):
    controller = controlled(search, budgets=Budgets(trials=1), batch=1)
    for i in range(MAX_RETRIES + 1):
        assert isinstance(controller.pull(f"w-{i}", timeout=10), Bundle)
        controller.lost(f"w-{i}", "a long tale\nnothing (killed by SIGKILL)")
    (outcome,) = search.outcomes()
    assert outcome.error == "its worker died 4 times while training it; the last one said: nothing (killed by SIGKILL)"
