"""Clocks that are set while a search runs: what is spent is told by one that nobody sets, and order by sequence.

Here the clock of the wall jumps by a day either way, or stands an hour behind on the machine that resumes a search; the
other one only goes on.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from controller_cases import Crew, controlled, events, final

from service.board import Job, LeaseLost
from service.board.sqlite import SQLiteBoard
from service.budgets import Budgets
from service.controller import DONE, MAX_RETRIES
from service.progress import stored
from service.replay import Past, wall_seconds
from service.summary import summary
from trials import layout, log, segments
from trials.records import Ending
from trials.store import SearchStore, Store

DAY = 86_400.0
JUMPS = pytest.mark.parametrize("jump", [DAY, -DAY], ids=["forward", "back"])


class Clocks:
    """The clock of the wall, which can be set, and the one that only goes on. Both go on with the real ones too."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.set_by = self.passed = 0.0
        wall, steady = time.time, time.monotonic
        patch.setattr(time, "time", lambda: wall() + self.set_by + self.passed)
        patch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))
        patch.setattr(time, "monotonic", lambda: steady() + self.passed)

    def jumps(self, seconds: float) -> None:
        self.set_by += seconds

    def passes(self, seconds: float) -> None:
        self.passed += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


@pytest.fixture
def search(store: Store) -> SearchStore:
    spec = {"objective": {"mode": "min"}, "budget": {"trials": 24}}
    return store.create("s", {"name": "s", "spec": spec})


# -- what is spent -----------------------------------------------------------------------------------------------------


@JUMPS
def test_a_jump_while_it_runs_neither_takes_nor_gives_time_on_the_wall(search, clocks, jump):
    how: dict[str, Any] = {"budgets": Budgets(wall_seconds=100.0), "lanes": 1}
    crew = Crew(controlled(search, **how))
    clocks.passes(30.0)
    crew.run(until=lambda controller: controller.progress().finished >= 3)
    clocks.jumps(jump)
    bundle = crew.controller.pull("w-8", timeout=10)
    assert 60.0 < bundle.seconds <= 70.0
    assert 30.0 <= crew.controller.progress().wall_s < 40.0
    clocks.passes(71.0)
    assert crew.controller.pull("w-9", timeout=10).seconds == 0.0, "asked already, but its time is up"


@JUMPS
def test_a_jump_takes_and_gives_no_seconds_of_the_device(search, clocks, jump):
    crew = Crew(controlled(search, budgets=Budgets(device_seconds=100.0), lanes=1))
    assert crew.controller.pull("w-0", timeout=10).seconds == pytest.approx(100.0, abs=5.0)
    clocks.passes(20.0)
    clocks.jumps(jump)
    assert crew.controller.pull("w-1", timeout=10).seconds == pytest.approx(40.0, abs=5.0)  # two share 80


@JUMPS
def test_a_search_whose_clock_jumped_is_resumed_with_the_time_that_it_has_left(search, clocks, jump):
    how: dict[str, Any] = {"budgets": Budgets(wall_seconds=100.0), "lanes": 1}
    first = Crew(controlled(search, **how))
    first.controller.note("state", {"state": "running"})
    clocks.passes(30.0)
    first.run(until=lambda controller: controller.progress().finished >= 3)
    clocks.jumps(jump)
    clocks.passes(10.0)
    first.run(until=lambda controller: controller.progress().finished >= 6)
    spent = first.controller.progress().wall_s
    first.controller.close()
    clocks.passes(500.0)  # nobody drives it
    again = controlled(search, 2, **how)
    assert not again.over()
    assert 40.0 <= again.progress().wall_s <= spent + 5.0
    assert 50.0 < again.pull("w-9", timeout=10).seconds <= 60.0
    for said in (Past.of(search.log()).wall_s, stored(search).wall_s, summary(search)["spent"]["wall_seconds"]):
        assert 40.0 <= said <= spent + 5.0


def test_the_time_that_was_up_stays_up_on_a_machine_whose_clock_is_behind(search, clocks):
    how: dict[str, Any] = {"budgets": Budgets(wall_seconds=100.0), "lanes": 1}
    crew = Crew(controlled(search, **how))
    clocks.passes(60.0)
    crew.run(until=lambda controller: controller.progress().finished >= 3)
    crew.controller.close()
    clocks.jumps(-3600.0)
    crew = Crew(controlled(search, 2, **how))
    clocks.passes(30.0)
    crew.run(until=lambda controller: controller.progress().finished >= 6)
    crew.controller.close()
    again = controlled(search, 3, **how)
    assert again.pull("w-9", timeout=10).seconds == pytest.approx(10.0, abs=5.0)
    clocks.passes(10.0)
    again.note("state", {"state": "interrupted"})
    again.close()
    last = controlled(search, 4, **how)
    last.drain()
    assert last.pull("w-9", timeout=10) is DONE
    assert last.progress().wall_s >= 100.0


@JUMPS
def test_a_trial_that_no_worker_tells_of_did_not_end_before_it_began(search, clocks, jump):
    controller = controlled(search, budgets=Budgets(trials=1), lanes=1)
    for i in range(MAX_RETRIES + 1):
        assert controller.pull(f"w-{i}", timeout=10).trials
        clocks.passes(7.0)
        clocks.jumps(jump)
        controller.lost(f"w-{i}")
    (outcome,) = search.outcomes()
    assert outcome.ending is Ending.PREEMPTED
    assert outcome.ended - outcome.started == pytest.approx(7.0, abs=5.0)


# -- logs that tell no more than times ---------------------------------------------------------------------------------


def older(search: SearchStore, epoch: int, times: list[float]) -> None:
    """A log as it was before writers told how long they had been there."""
    schema = log.SCHEMA.remove(log.SCHEMA.get_field_index("elapsed"))
    for n, at in enumerate(times):
        row = {"epoch": epoch, "n": n, "seq": n, "time": int(at * 1e6), "kind": "state", "body": '{"state": "running"}'}
        table = pa.Table.from_pylist([row], schema=schema)
        segments.write(layout.log(search.path), layout.log_stem(epoch, n), table)


def test_an_older_log_is_read_and_its_times_stand_for_what_was_spent(search):
    older(search, 1, [1000.0, 1010.0, 1025.0])
    older(search, 2, [500.0, 505.0])  # on a machine whose clock is behind
    assert [event.elapsed for event in search.log()] == [None] * 5
    assert [event.time for event in search.log()] == [1000.0, 1010.0, 1025.0, 500.0, 505.0]
    assert wall_seconds(search.log()) == 30.0


def test_a_clock_that_was_set_back_adds_nothing_in_an_older_log(search):
    older(search, 1, [1000.0, 1010.0, 1010.0 - DAY, 1020.0 - DAY])
    assert wall_seconds(search.log()) == 20.0


def test_an_older_log_goes_on_with_what_writers_tell(search, clocks):
    older(search, 1, [1000.0, 1010.0])
    controller = controlled(search, 2, budgets=Budgets(wall_seconds=100.0))
    clocks.passes(20.0)
    clocks.jumps(DAY)
    controller.note("state", {"state": "interrupted"})
    controller.close()
    assert 30.0 <= wall_seconds(search.log()) < 35.0
    tail = log.LogTail(layout.log(search.path), segments.Reader().read)
    assert {(e.epoch, e.seq, e.elapsed) for e in tail.new()} == {(e.epoch, e.seq, e.elapsed) for e in search.log()}


# -- order, and leases -------------------------------------------------------------------------------------------------


def test_what_comes_later_counts_though_its_time_is_earlier(search, clocks):
    crew = Crew(controlled(search))
    crew.run(until=lambda controller: controller.progress().finished >= 6)
    crew.controller.note("state", {"state": "failed", "why": "a reason", "goal": 0})
    crew.controller.close()
    clocks.jumps(-DAY)
    again = Crew(controlled(search, 2)).run()
    again.controller.note("state", {"state": "complete", "goal": 0})
    again.controller.close()
    times = [event.time for event in search.log()]
    assert times != sorted(times)
    assert search.state() == "complete"
    assert len(final(search)) == 24
    assert [body["state"] for body in events(search, "state")] == ["failed", "complete"]


@JUMPS
def test_a_jump_ends_no_lease_and_gives_no_epoch_again(tmp_path: Path, clocks, jump):
    board = SQLiteBoard(tmp_path / "board.sqlite")
    board.post(Job(id="a"))
    first = board.claim("r", 60.0)
    clocks.jumps(jump)
    assert board.claim("s", 60.0) is None
    assert board.renew("a", first.epoch, 60.0).leased
    board.fail("a", first.epoch)
    second = board.claim("s", 60.0)
    assert second.epoch > first.epoch
    with pytest.raises(LeaseLost):
        board.renew("a", first.epoch, 60.0)
    board.close()
