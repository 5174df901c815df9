"""Runners with drivers that drive: searches complete to the last trial whoever is killed, stopped, or comes back late.

Runners are processes of their own, as in a service; what they share is a store and its board.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runner_cases import ROOT, Place, RunnerProcess, alive, exact, finished, offspring, runner, until

from trials import layout
from trials.lease import holder
from trials.store import SearchStore

PROGRAM = [sys.executable, "-u", "-m", "service.runner.drive", "local"]
NOISY = """
import sys
print('{"ended": "complete", "why": "printed", "goal": 7}')
sys.stdout.flush()
print("imported", sys.stdin.read() == "")

def objective(trial):
    print("trained")
    return (trial["x"] - 0.3) ** 2
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.board.close()


def owner(search: SearchStore) -> int:
    """The driver that has the search."""
    return int(until(lambda: (found := holder(layout.lease(search.path))) and found.get("pid")))


# -- the driver process ------------------------------------------------------------------------------------------------


@pytest.fixture
def drive(place: Place) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a driver, and gives it its orders."""
    started = []

    def start(search: SearchStore, **order: Any) -> subprocess.Popen[str]:
        pipe, log = subprocess.PIPE, (place.path / "stderr").open("wb")
        started.append(process := subprocess.Popen(PROGRAM, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=log, text=True))
        log.close()
        order = {"search": search.id, "store": str(place.store.root), "cache": str(place.path / "cache"), **order}
        process.stdin.write(json.dumps({"slots": None, **order}) + "\n")
        process.stdin.flush()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            pipe.close()


@pytest.mark.slow
def test_what_the_users_code_prints_stays_out_of_the_channel(place, drive):
    (place.path / "noisy_objective.py").write_text(NOISY)
    search = place.submit("noisy", trials=4, task="noisy_objective:objective")
    process = drive(search)
    said = [json.loads(line) for line in process.stdout]
    assert process.wait(10) == 0
    assert said[0] == {"ready": True}
    assert said[-1] == {"ended": "complete", "why": "", "goal": 0}
    told = [message["progress"] for message in said if "progress" in message]
    assert len(told) == len(said) - 2 - sum("alive" in message for message in said)
    last = told[-1]
    assert (last["asked"], last["finished"], last["running"], last["endings"]) == (4, 4, 0, {"complete": 4})
    best = min(search.outcomes(), key=lambda o: o.value)
    assert last["best"] == {"number": best.number, "value": best.value, "point": best.point}
    assert "imported True" in (place.path / "stderr").read_text()
    exact(search, 4)


@pytest.mark.long
def test_a_driver_ends_with_its_runner_and_so_do_its_workers(place, drive):
    search = place.submit("blocked", "blocked")
    process = drive(search)
    worker = until(lambda: offspring(process.pid))
    until(lambda: any(not closed for closed in search.attempts().values()))  # it trains
    process.stdin.close()
    assert process.wait(10) == 1
    until(lambda: not [pid for pid in worker if alive(pid)], 10)


@pytest.mark.slow
def test_every_fault_of_a_spec_is_why_it_failed(place, drive):
    broken = {
        "task": "runner_objectives:quik",
        "space": {"x": {"type": "float", "low": 2.0, "high": 1.0}},
        "budget": {"trials": 0},
    }
    process = drive(place.submit_spec("broken", broken))
    *_, last = [json.loads(line) for line in process.stdout]
    assert last["ended"] == "failed"
    assert len(last["why"].splitlines()) >= 2
    assert "space.x" in last["why"]
    assert "budget.trials" in last["why"]
    assert "Traceback" not in (place.path / "stderr").read_text()


# -- runners -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_runner_leaves_nothing_behind_and_another_goes_on(place):
    search = place.submit("sphere", trials=24)
    with runner(place, "one") as one:
        until(lambda: finished(search) >= 2)
        before = offspring(one.process.pid)
        acknowledged = {o.number: o.value for o in search.outcomes()}
        with runner(place, "two") as two:
            one.send(signal.SIGKILL)
            one.wait()
            until(lambda: not [pid for pid in before if alive(pid)], 10)
            assert not place.board.get("sphere").over, "the search ended before its runner was killed"
            place.until(search, "complete")
            assert "sphere: complete" in until(lambda: two.said() if "complete" in two.said() else "")
    exact(search, 24)
    assert acknowledged.items() <= {o.number: o.value for o in search.outcomes()}.items()


@pytest.mark.long
def test_two_runners_complete_every_search_once(place):
    trials = {f"s{i}": 4 + 3 * i for i in range(5)}
    searches = [place.submit(name, "quick", count, workers=1 + count % 2) for name, count in trials.items()]
    with runner(place, "one", searches=2) as one, runner(place, "two", searches=1) as two:
        for search in searches:
            place.until(search, "complete", patience=120)
        said = one.said() + two.said()
    for search in searches:
        exact(search, trials[search.id])
        assert len(re.findall(rf"{search.id}: complete", said)) == 1
        assert len(re.findall(rf"{search.id}: claimed", said)) == 1


@pytest.mark.long
def test_a_runner_that_is_asked_to_end_hands_back_at_once(place):
    search = place.submit("sphere", trials=30)
    with runner(place, "two", searches=1, ttl=60) as two:
        until(lambda: finished(search) >= 1)
        with runner(place, "one", ttl=60):
            two.send(signal.SIGTERM)
            assert two.wait(20) == 0
            assert "sphere: handed back" in two.said()
            place.until(search, "complete", patience=50)  # within the first lease: it was not waited for
    exact(search, 30)
    assert place.board.get("sphere").failures == 0


@pytest.mark.long
def test_a_killed_driver_is_replaced(place):
    search = place.submit("sphere", trials=30)
    with runner(place) as one:
        for least in (2, 8):
            until(lambda n=least: finished(search) >= n)
            os.kill(owner(search), signal.SIGKILL)
            until(lambda n=least: one.said().count("killed by SIGKILL") >= 1 + n // 8)
        job = place.until(search, "complete")
    exact(search, 30)
    assert job.why == ""


@pytest.mark.long
def test_a_runner_and_driver_that_come_back_late_change_nothing(place):
    search = place.submit("sphere", trials=30)
    with runner(place, "one") as one:
        until(lambda: finished(search) >= 2)
        driver = owner(search)
        one.send(signal.SIGSTOP)
        os.kill(driver, signal.SIGSTOP)
        lost = place.board.get("sphere").epoch
        with runner(place, "two") as two:
            until(lambda: owner(search) != driver)  # it was ended, for a stopped process keeps the store's lease
            until(lambda: place.board.get("sphere").progress.get("finished", 0) >= 4)
            one.send(signal.SIGCONT)
            until(lambda: "sphere: lost" in one.said())
            assert not alive(driver)
            job = place.board.get("sphere")
            assert (job.runner, job.failures, job.why) == ("two", 0, "")
            assert job.epoch > lost
            place.until(search, "complete")
            until(lambda: "sphere: complete" in two.said())
        assert "sphere: complete" not in one.said()
    exact(search, 30)


@pytest.mark.long
def test_a_search_is_paused_resumed_scaled_and_extended_while_it_runs(place):
    search = place.submit("sphere", trials=200)
    with runner(place, slots=2) as one:
        until(lambda: finished(search) >= 2)
        place.edit(search, "pause")
        job = place.until(search, "paused", patience=20)
        before = finished(search)
        assert job.progress["finished"] == before
        assert job.progress["running"] == 0
        time.sleep(1.0)
        assert finished(search) == before
        place.edit(search, "resume")
        until(lambda: finished(search) > before)
        place.edit(search, "scale", workers=5)  # of which two slots are there
        until(lambda: workers_at_once(search) == 2)
        place.edit(search, "stop")
        place.until(search, "stopped", patience=20)
        count = finished(search)
        assert count < 200
        place.edit(search, "extend", budget={"trials": 201})
        place.until(search, "running", patience=20)
        place.edit(search, "cancel")
        place.until(search, "cancelled", patience=20)
        said = one.said()
    assert "paused" in said
    assert "stopped" in said
    assert "cancelled" in said
    told = [number for e in search.log() if e.kind == "told" for number in e.body["numbers"]]
    assert len(told) == len(set(told)) >= count


@pytest.mark.long
def test_a_finished_search_that_is_extended_goes_on(place):
    search = place.submit("sphere", "quick", trials=6)
    with runner(place):
        place.until(search, "complete")
        place.edit(search, "extend", budget={"trials": 15})
        place.until(search, "queued", "running")
        place.until(search, "complete")
    exact(search, 15)


@pytest.mark.long
def test_submitted_code_is_unpacked_and_run(place):
    from service.code import packed

    source = place.path / "source"
    source.mkdir()
    (source / "zipped_objective.py").write_text("def objective(trial):\n    return (trial['x'] - 0.3) ** 2\n")
    made = packed(source)
    target = layout.code(place.store.root, made.sha256)
    target.parent.mkdir()
    target.write_bytes(made.payload)
    search = place.submit("zipped", trials=4, task="zipped_objective:objective", code=made.sha256, directory="")
    lacking = place.submit("lacking", trials=4, task="zipped_objective:objective", code="0" * 64, directory="")
    picky = place.submit("picky", "quick", trials=4, requirements=["numpy==1"])
    with runner(place, cache=str(place.path / "cache")):
        place.until(search, "complete")
        assert "submit the search again" in place.until(lacking, "failed").why
        assert "requirements" in place.until(picky, "failed").why
    exact(search, 4)


def workers_at_once(search: SearchStore) -> int:
    """How many processes trained at the moment when the last trial that ended began."""
    outcomes = search.outcomes()
    last = max(o.started for o in outcomes)
    return len({o.worker for o in outcomes if o.started <= last <= o.ended + 0.5})


@pytest.mark.long
def test_work_refuses_what_cannot_be(place):
    options = {"executor": "lokal", "searches": 0, "slots": 0, "quotas": {"ada": -1}, "ttl": 0.5, "installer": "apt"}
    made = RunnerProcess(place, "one", **options)
    assert made.wait() == 1
    for word in ("executor", "searches", "slots", "quota", "ttl", "installer"):
        assert f"{word}: must be" in made.said()


@pytest.mark.long
def test_a_runner_brings_its_own_ray_and_takes_it_along(place, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    search = place.submit("sphere", trials=12)
    with runner(place, executor="ray", ttl=10) as one:
        place.until(search, "complete")
        assert "started Ray" in one.said()
        started = offspring(one.process.pid)
    exact(search, 12)
    assert all(o.worker.startswith("ray-") for o in search.outcomes())
    until(lambda: not [pid for pid in started if alive(pid)], 20)
