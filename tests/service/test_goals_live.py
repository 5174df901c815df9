"""Goals that change while a driver is at work on real processes: scale, pause, stop, cancel, extend and narrow."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from service.driver import Result, resume, run
from service.executors.local import Bench
from service.goal import Edit, change
from service.spec import check
from service.summary import summary
from trials.records import Ending
from trials.store import SearchStore, Store

pytestmark = pytest.mark.slow

OBJECTIVE = """
import os
import subprocess
import time

def quick(trial):
    return (trial["x"] - 0.3) ** 2

def slow(trial):
    time.sleep(0.05)
    return quick(trial)

def endless(trial):
    time.sleep(600)

def long(trial):
    time.sleep(2.0)
    return quick(trial)

def talkative(trial):
    print("trial", trial.number)
    subprocess.run(["echo", "and its child"], check=True)
    return quick(trial)
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "live_objective.py").write_text(OBJECTIVE)
    return tmp_path / "code"


def spec_of(objective: str = "slow", trials: int = 400, **resources: Any) -> dict[str, Any]:
    return {
        "task": f"live_objective:{objective}",
        "space": {"x": {"type": "float", "low": 0, "high": 1}},
        "search": {"sampler": {"kind": "tpe", "startup": 4}, "batch": 4},
        "budget": {"trials": trials},
        "resources": {"workers": 1, "lanes": 1, **resources},
    }


@dataclass
class Driving:
    """A driver in a thread of its own."""

    store: Store
    drive: Callable[[], Result]
    results: list[Result] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.results.append(self.drive())
        except BaseException as error:
            self.errors.append(error)

    @property
    def search(self) -> SearchStore:
        return until(lambda: "live" in self.store.searches() and self.store.search("live"))

    def result(self) -> Result:
        self.thread.join(60)
        assert not self.thread.is_alive(), "it runs on and on"
        if self.errors:
            raise self.errors[0]
        return self.results[0]


@pytest.fixture
def driving(store: Store, code: Path) -> Iterator[Callable[..., Driving]]:
    """Start a new search, or (without a spec) go on with it."""
    begun: list[Driving] = []
    stop = threading.Event()

    def start(spec: dict[str, Any] | None = None, **more: Any) -> Driving:
        def drive() -> Result:
            if spec is None:
                return resume(store, "live", directory=code, interrupted=stop, **more)
            parsed, task = check(spec, directory=code)
            return run(parsed, task, store, search_id="live", directory=code, interrupted=stop, **more)

        begun.append(Driving(store, drive))
        return begun[-1]

    yield start
    stop.set()
    for one in begun:
        one.thread.join(30)


def until(happened: Callable[[], Any], patience: float = 60.0) -> Any:
    deadline = time.monotonic() + patience
    while not (found := happened()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


def workers() -> set[int]:
    """Worker processes of this one that live."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if int(parent) == os.getpid() and state not in "ZX" and b"service.executors.worker" in command:
                found.add(int(entry.name))
    return found


def told(search: SearchStore) -> int:
    return len(search.outcomes())


def right(search: SearchStore) -> None:
    outcomes = search.outcomes()
    assert sorted(o.number for o in outcomes) == list(range(len(outcomes)))
    assert all(o.ending is Ending.COMPLETE and o.value == (float(o.point["x"]) - 0.3) ** 2 for o in outcomes)


def points_of(search: SearchStore) -> list[Any]:
    return [t["point"] for event in search.log() if event.kind == "asked" for t in event.body["trials"]]


def straight(code: Path, tmp_path: Path, trials: int) -> list[Any]:
    """The points of a search that nobody touched."""
    store = Store(tmp_path / "straight")
    parsed, task = check(spec_of("quick", trials), directory=code)
    return points_of(store.search(run(parsed, task, store, executor="here", directory=code).search_id))


# -- scale and stop ----------------------------------------------------------------------------------------------------


def test_a_search_grows_and_shrinks_while_it_runs_and_is_stopped(driving):
    one = driving(spec_of())
    until(lambda: told(one.search) >= 2)
    first = workers()
    assert len(first) == 1
    change(one.search, Edit(verb="scale", workers=3))
    grown = until(lambda: len(now := workers()) == 3 and now)
    assert first < grown, "who was at work stays"
    until(lambda: len({o.worker for o in one.search.outcomes()}) == 3)
    change(one.search, Edit(verb="scale", workers=1))
    assert until(lambda: len(now := workers()) == 1 and now) == first, "the newest leave"
    before = told(one.search)
    until(lambda: told(one.search) > before + 1)
    change(one.search, Edit(verb="stop"))
    result = one.result()
    assert (result.state, result.goal) == ("stopped", 3)
    assert not workers()
    right(one.search)
    assert result.progress.running == 0, "what ran was finished"
    assert one.search.state() == "stopped"
    found = summary(one.search)
    assert (found["workers"], found["goal_version"], found["state"]) == (1, 3, "stopped")
    assert not [event for event in one.search.log() if event.kind == "failed"]


@pytest.mark.long
def test_slots_bound_the_workers(driving):
    """Whoever starts a driver may have less room than its goal wants."""
    slots = [1]
    one = driving(spec_of(workers=2))
    until(lambda: told(one.search) >= 1)
    change(one.search, Edit(verb="pause"))
    one.result()
    change(one.search, Edit(verb="resume"))
    two = driving(slots=lambda: slots[0])
    since = told(one.search)
    until(lambda: told(one.search) > since + 2)
    assert len(workers()) == 1
    slots[0] = 5
    until(lambda: len(workers()) == 2)
    slots[0] = 0
    until(lambda: not workers())
    assert two.thread.is_alive(), "it waits for room"
    change(one.search, Edit(verb="stop"))
    assert two.result().state == "stopped"


# -- pause, resume, cancel ---------------------------------------------------------------------------------------------


def test_a_paused_search_waits_and_goes_on_as_if_nothing_had_been(driving, code, tmp_path):
    one = driving(spec_of(trials=24))
    until(lambda: told(one.search) >= 5)
    change(one.search, Edit(verb="pause"))
    result = one.result()
    assert (result.state, result.goal, one.search.state()) == ("paused", 1, "paused")
    assert 5 <= told(one.search) < 24
    assert result.progress.running == 0
    assert not workers()
    log = one.search.log()
    again = driving().result()
    assert (again.state, again.goal, again.progress.finished) == ("paused", 1, told(one.search))
    assert one.search.log() == log, "nobody wanted it to go on"
    change(one.search, Edit(verb="resume"))
    assert one.search.state() == "interrupted"
    result = driving().result()
    assert (result.state, result.goal) == ("complete", 2)
    right(one.search)
    assert points_of(one.search) == straight(code, tmp_path, 24)


def test_a_cancelled_search_ends_what_runs(driving):
    one = driving(spec_of("endless", 4))
    until(workers)
    until(lambda: one.search.attempts())
    change(one.search, Edit(verb="cancel"))
    result = one.result()
    assert (result.state, one.search.state()) == ("cancelled", "cancelled")
    assert not workers()
    assert told(one.search) == 0


@pytest.mark.parametrize("verb", ["pause", "cancel"])
def test_a_search_that_is_resumed_before_its_crew_has_left_goes_on(driving, verb):
    one = driving(spec_of("long", 3))
    until(lambda: one.search.attempts())
    change(one.search, Edit(verb=verb))
    until(lambda: any(event.kind == "goal" for event in one.search.log()))  # the crew is on its way home
    change(one.search, Edit(verb="resume"))
    result = one.result()
    assert (result.state, result.goal) == ("complete", 2)
    assert told(one.search) == 3
    right(one.search)
    states = [event.body["state"] for event in one.search.log() if event.kind == "state"]
    assert states == ["running", {"pause": "paused", "cancel": "cancelled"}[verb], "running", "complete"]


def test_a_crew_that_takes_its_time_to_leave_can_be_hurried(driving):
    one = driving(spec_of("endless", 2))
    until(lambda: one.search.attempts())
    change(one.search, Edit(verb="pause"))
    until(lambda: any(event.kind == "goal" for event in one.search.log()))
    change(one.search, Edit(verb="cancel"))
    assert one.result().state == "cancelled"


# -- extend and narrow -------------------------------------------------------------------------------------------------


def test_a_complete_search_that_is_extended_knows_what_it_knew(driving, code, tmp_path):
    one = driving(spec_of("quick", 12), executor="here")
    assert one.result().state == "complete"
    change(one.search, Edit(verb="extend", budget={"trials": "+12"}))
    result = driving(executor="here").result()
    assert (result.state, result.goal, result.progress.finished) == ("complete", 1, 24)
    assert summary(one.search)["goal"]["trials"] == 24
    assert points_of(one.search) == straight(code, tmp_path, 24)


def test_a_running_search_is_extended_and_narrowed(driving):
    one = driving(spec_of(trials=60), executor="here")
    until(lambda: told(one.search) >= 2)
    change(one.search, Edit(verb="narrow", space={"x": {"high": 0.5}}))
    change(one.search, Edit(verb="extend", budget={"trials": "+4"}))
    result = one.result()
    assert (result.state, result.progress.finished) == ("complete", 64)
    right(one.search)
    kinds = [event.kind for event in one.search.log()]
    since = max(i for i, kind in enumerate(kinds) if kind == "goal")
    later = [t["point"]["x"] for e in one.search.log()[since:] if e.kind == "asked" for t in e.body["trials"]]
    assert len(later) > 8
    assert max(later) <= 0.5
    assert max(point["x"] for point in points_of(one.search)) > 0.5, "or the test shows nothing"


def test_an_extension_that_comes_as_the_search_ends_is_not_missed(store, code):
    """Its workers have left already when the goal changes."""
    parsed, task = check(spec_of("quick", 8), directory=code)
    seen: list[int] = []

    def watch(progress: Any) -> None:
        if progress.done and not seen:
            seen.append(progress.finished)
            change(store.search("live"), Edit(verb="extend", budget={"trials": 12}))

    result = run(parsed, task, store, executor="here", search_id="live", directory=code, watch=watch)
    assert seen == [8]
    assert (result.state, result.progress.finished, result.goal) == ("complete", 12, 1)
    states = [event.body for event in store.search("live").log() if event.kind == "state"]
    assert states[-1] == {"state": "complete", "why": None, "goal": 1}


# -- what belongs to workers -------------------------------------------------------------------------------------------


def test_a_worker_that_ran_one_user_s_code_runs_no_other_s(store, code, tmp_path):
    with Bench() as bench:
        for directory in (code, tmp_path / "other"):
            directory.mkdir(exist_ok=True)
            (directory / "live_objective.py").write_text(OBJECTIVE)
            parsed, task = check(spec_of("quick", 2), directory=directory)
            run(parsed, task, store, directory=directory, bench=bench)
        first, second = ({o.worker for o in store.search(name).outcomes()} for name in store.searches())
        assert first.isdisjoint(second)
        assert len({worker.rpartition("-")[2] for worker in first | second}) == 2
        parsed, task = check(spec_of("quick", 2), directory=code)
        again = run(parsed, task, store, directory=code, bench=bench)
        pids = {o.worker.rpartition("-")[2] for o in store.search(again.search_id).outcomes()}
        assert pids <= {worker.rpartition("-")[2] for worker in first | second}


@pytest.mark.parametrize("executor", ["here", "local"])
def test_what_a_trial_printed_is_told_with_it(driving, executor):
    one = driving(spec_of("talkative", 3), executor=executor)
    assert one.result().state == "complete"
    said = {o.number: o.said for o in one.search.outcomes()}
    child = "and its child\n" if executor == "local" else ""
    assert said == {number: f"trial {number}\n{child}" for number in range(3)}
