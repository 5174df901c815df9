"""Attempts that finish at the same moment: written down together, in order, and none acknowledged before that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from controller_cases import Crew, controlled, events, final, points_of

from service.arrivals import Arrivals, Arrived, events_of
from service.budgets import Budgets
from service.controller import Controller, Done
from trials.log import Event, LogWriter
from trials.records import Bundle, Ending
from trials.store import SearchStore, Store


class Gate:
    """A log that is written only while it is open, and that counts what was written in one piece. What is asked
    meanwhile, by a thread of its own, is let through."""

    def __init__(self, log: LogWriter) -> None:
        self._log, self.open, self.writing = log, threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.sizes: list[int] = []

    def append_many(self, new: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Event]:
        if all(kind == "asked" for kind, _ in new):
            return self._log.append_many(new)
        self.writing.set()
        assert self.open.wait(60)
        self.sizes.append(len(new))
        if self.error is not None:
            raise self.error
        return self._log.append_many(new)

    def append(self, kind: str, body: Mapping[str, Any]) -> Event:
        return self.append_many([(kind, body)])[0]


@pytest.fixture
def search(store: Store) -> SearchStore:
    return store.create("s", {"name": "s"})


def gated(controller: Controller) -> Gate:
    controller.log = gate = Gate(controller.log)  # type: ignore[assignment]
    return gate


def soon(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def finishing(crew: Crew, bundles: Sequence[Bundle], gate: Gate) -> tuple[list[threading.Thread], list[str]]:
    """One thread a bundle: the first is being written when the others arrive, one after the other."""
    returned: list[str] = []

    def finish(bundle: Bundle) -> None:
        crew.controller.finish(bundle, crew.outcomes(bundle))
        returned.append(bundle.id)

    threads = [threading.Thread(target=finish, args=(bundle,)) for bundle in bundles]
    for number, thread in enumerate(threads):
        crew.store(bundles[number], crew.outcomes(bundles[number]))
        thread.start()
        if number == 0:
            assert gate.writing.wait(60)
        else:
            soon(lambda number=number: len(crew.controller._arrivals) == number)
    return threads, returned


def pulled(crew: Crew, count: int) -> list[Bundle]:
    bundles = [crew.controller.pull(f"w-{i}", timeout=10) for i in range(count)]
    assert all(isinstance(bundle, Bundle) for bundle in bundles)
    return bundles  # type: ignore[return-value]


def test_those_that_arrive_while_others_are_written_are_written_together_in_order(search: SearchStore) -> None:
    crew = Crew(controlled(search, lanes=1))
    bundles, gate = pulled(crew, 6), gated(crew.controller)
    threads, returned = finishing(crew, bundles, gate)
    assert returned == []
    assert crew.controller.progress().finished == 0
    gate.open.set()
    for thread in threads:
        thread.join(60)
    assert gate.sizes[:2] == [1, 5]
    assert [body["bundle"] for body in events(search, "told")] == [bundle.id for bundle in bundles]
    assert sorted(returned) == sorted(bundle.id for bundle in bundles)
    crew.run()
    assert crew.controller.progress().finished == len(final(search)) == 24
    again = controlled(search, 2)
    assert again.progress().spent == crew.controller.progress().spent


def test_whoever_pulls_waits_for_no_disk(search: SearchStore) -> None:
    crew = Crew(controlled(search, lanes=1))
    bundles, gate = pulled(crew, 3), gated(crew.controller)
    threads, _ = finishing(crew, bundles[:1], gate)
    assert isinstance(crew.controller.pull("w-7", timeout=5), Bundle)
    assert crew.controller.progress().running == 4, "what is not written down yet is still in hand"
    assert not crew.controller.over()
    gate.open.set()
    threads[0].join(60)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("a bug")])
def test_a_write_that_fails_acknowledges_none_of_its_group(search: SearchStore, error: Exception) -> None:
    crew = Crew(controlled(search, lanes=1))
    bundles, gate = pulled(crew, 4), gated(crew.controller)
    gate.error = error
    raised: list[BaseException] = []
    hook, threading.excepthook = threading.excepthook, lambda args: raised.append(args.exc_value or KeyError())
    try:
        threads, returned = finishing(crew, bundles, gate)
        gate.open.set()
        for thread in threads:
            thread.join(60)
    finally:
        threading.excepthook = hook
    assert crew.controller.progress().finished == 0
    assert events(search, "told") == []
    if isinstance(error, OSError):
        assert "No space left on device" in (crew.controller.progress().failure or "")
        assert crew.controller.pull("w-9") is Done.DONE
    else:
        assert returned == []
        assert len(raised) == 4
    crew.controller.close()
    again = controlled(search, 2)  # they are closed, and so are told by the next
    assert again.progress().finished == 4
    assert Crew(again).run().controller.progress().done


def test_an_attempt_that_was_given_up_does_not_keep_out_the_one_that_counts(search: SearchStore) -> None:
    """Both arrive in one group, the zombie first."""
    crew = Crew(controlled(search, budgets=Budgets(trials=2), batch=2, lanes=1))
    zombie, other = pulled(crew, 2)
    crew.controller.lost("w-0")
    second = crew.controller.pull("w-3", timeout=10)
    assert isinstance(second, Bundle)
    assert second.id == zombie.id
    gate = gated(crew.controller)
    lying = Crew(crew.controller, value=lambda number, point: -1.0)
    crew.store(other, crew.outcomes(other))
    crew.store(second, crew.outcomes(second))
    calls = [(other, crew), (zombie, lying), (second, crew)]
    threads = [threading.Thread(target=crew.controller.finish, args=(b, c.outcomes(b))) for b, c in calls]
    for number, thread in enumerate(threads):
        thread.start()
        assert gate.writing.wait(60)
        soon(lambda number=number: len(crew.controller._arrivals) == number)
    gate.open.set()
    for thread in threads:
        thread.join(60)
    assert gate.sizes == [1, 1]
    assert crew.controller.progress().endings == {"complete": 2}
    assert all(value != -1.0 for *_, value in final(search))


def test_many_slots_at_once_reach_the_same_trials(store: Store) -> None:
    one = store.create("one", {})
    Crew(controlled(one, budgets=Budgets(trials=48), batch=8, lanes=1)).run()
    search = store.create("many", {})
    crew = Crew(controlled(search, budgets=Budgets(trials=48), batch=8, lanes=1))

    def slot(name: str) -> None:
        while not isinstance(bundle := crew.controller.pull(name), Done):
            if bundle is not None:
                outcomes = crew.outcomes(bundle)
                crew.store(bundle, outcomes)
                crew.controller.finish(bundle, outcomes)

    threads = [threading.Thread(target=slot, args=(f"w-{i}",)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert crew.controller.progress().done
    assert points_of(search) == points_of(one)
    assert final(search) == final(one)
    assert controlled(search, 2, budgets=Budgets(trials=48)).progress().spent == crew.controller.progress().spent


def test_what_arrives_is_taken_in_once_by_one_at_a_time() -> None:
    pen, groups, inside = threading.RLock(), list[list[str]](), list[int]()

    def take_in(group: Sequence[Arrived]) -> None:
        inside.append(1)
        assert len(inside) == 1
        time.sleep(0.001)
        groups.append([arrived.bundle.id for arrived in group])
        inside.pop()

    arrivals = Arrivals(pen, take_in)
    names = [f"b{i}" for i in range(200)]
    bundles = [Bundle(search_id="s", id=name, generation=0, trials=()) for name in names]
    threads = [
        threading.Thread(target=lambda mine=bundles[i::20]: [arrivals.put(bundle, []) for bundle in mine])
        for i in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert len(groups) < len(names)
    for i in range(20):
        mine = [name for group in groups for name in group if name in names[i::20]]
        assert mine == names[i::20]


def test_what_is_trained_again_is_written_before_what_is_told(search: SearchStore) -> None:
    bundle = Bundle(search_id="s", id="b", attempt=2, generation=0, trials=())
    assert events_of(bundle, [], []) == []
    attempt = {"bundle": "b", "attempt": 2}
    assert events_of(bundle, [4], []) == [("failed", {**attempt, "numbers": [4]}), ("told", {**attempt, "numbers": []})]
    crew = Crew(controlled(search, budgets=Budgets(trials=2), batch=2, lanes=2))
    crew.ending = lambda bundle, number: Ending.OOM if len(bundle.trials) > 1 else Ending.COMPLETE
    crew.run()
    assert [event.kind for event in search.log()] == ["asked", "failed", "told", "told", "told"]
