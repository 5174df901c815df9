"""What a runner does with how its drivers end: the board is real, the drivers are `runner_stub`."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runner_cases import Place, until

from service.board import Job, Unreachable
from service.goal import Edit, change
from service.runner import charge, drivers, runner
from service.runner.runner import Runner
from trials import layout
from trials.store import SearchStore

STUB = Path(__file__).with_name("runner_stub.py")
Starting = Callable[..., tuple[Runner, list[str]]]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def start(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Starting]:
    """Starts runners in threads; at the end they hand back, and their drivers are gone."""
    monkeypatch.setattr(drivers, "COMMAND", (sys.executable, "-S", "-u", str(STUB)))
    monkeypatch.setattr(charge, "FIRST_DELAY", 0.02)
    stop, threads = threading.Event(), []

    def go(board: Any = None, stop: threading.Event = stop, **options: Any) -> tuple[Runner, list[str]]:
        said: list[str] = []
        cache = place.path / "cache"
        options = {"name": "one", "ttl": 1.5, "grace": 2.0, "say": said.append, "cache": cache, **options}
        made = Runner(place.store, board or place.board, **options)
        threads.append(thread := threading.Thread(target=made.run, args=(stop,)))
        thread.start()
        return made, said

    yield go
    stop.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    place.board.close()


def stubbed(place: Place, name: str, does: Any, **job: Any) -> SearchStore:
    return place.submit_spec(name, {"stub": does}, **job)


def runs(search: SearchStore) -> int:
    path = search.path / "runs"
    return len(path.read_text().split()) if path.exists() else 0


# -- how a search ends -------------------------------------------------------------------------------------------------


def test_a_complete_search_is_told_with_its_last_progress(place, start):
    search = stubbed(place, "a", "complete")
    _, said = start()
    job = place.until(search, "complete")
    assert job.progress["best"] == {"number": 1, "value": 0.5, "point": {"x": 0.25}}
    assert job.progress["finished"] == 3
    assert (job.runner, job.why, job.failures) == ("", "", 0)
    until(lambda: "a: complete" in said)
    assert runs(search) == 1
    assert "does complete" in layout.driver_log(search.path).read_text()


def test_a_search_that_cannot_be_run_fails_with_its_faults(place, start):
    search = stubbed(place, "a", {"ended": "failed", "why": "task: no such file.\nspace.x: too low.", "goal": 0})
    start()
    job = place.until(search, "failed")
    assert job.why == "task: no such file.\nspace.x: too low."
    assert runs(search) == 1


def test_a_driver_that_dies_is_tried_again_and_in_the_end_its_last_words_are_why(place, start):
    search = stubbed(place, "a", "crash")
    _, said = start()
    job = place.until(search, "failed")
    assert runs(search) == charge.MAX_FAILURES == 5
    assert "exit code 3" in job.why
    assert "no engine here" in job.why
    delays = [line.partition(" for ")[2].partition(" s:")[0] for line in said if "handed back" in line]
    assert delays == ["0.02", "0.04", "0.08", "0.16"]
    place.edit(search, "resume")  # a person has mended it, and it is tried as often again
    until(lambda: runs(search) == 10)
    place.until(search, "failed")


@pytest.mark.long
def test_drivers_that_get_trials_done_before_they_die_fail_nothing(place, start):
    search = stubbed(place, "a", "killed")
    start()
    until(lambda: runs(search) == 7)
    job = place.board.get("a")
    assert job.failures == 0
    assert not job.over


@pytest.mark.parametrize(("verb", "state"), [("pause", "paused"), ("stop", "stopped"), ("cancel", "cancelled")])
def test_a_goal_that_only_the_driver_saw_comes_to_the_board(place, start, monkeypatch, verb, state):
    """Whoever changed it died before the board was told, and the driver followed the store."""
    monkeypatch.setattr(runner, "rebuild", lambda *_, **__: 0)
    search = stubbed(place, "a", {"ended": state, "why": "", "goal": 1})
    change(search, Edit(verb=verb), by="ada")
    start()
    job = place.until(search, state)
    assert job.goal == 1
    time.sleep(0.3)
    assert place.status(search) == state
    assert runs(search) == 1


def test_what_the_store_has_comes_to_a_board_that_was_lost(place, start):
    search = place.submit_spec("a", {"stub": "complete"}, {"owner": "ada"}, posted=False)
    start()
    until(lambda: place.board.list())
    assert place.until(search, "complete").owner == "ada"


def test_a_goal_that_moved_on_is_worked_for(place, start):
    search = stubbed(place, "a", {"ended": "complete", "why": "", "goal": 0})
    change(search, Edit(verb="scale", workers=3), by="ada")
    start()
    until(lambda: runs(search) >= 2)  # what ended was version 0, what is wanted is version 1
    assert place.board.get("a").workers == 3


def damaged(place: Place, search: SearchStore, *verbs: str) -> None:
    """Goals of which the last cannot be read any more, though the board knows it."""
    for verb in verbs:
        place.edit(search, verb, **({"workers": 3} if verb == "scale" else {}))
    path = layout.goals(search.path) / layout.goal_name(len(verbs))
    path.write_bytes(path.read_bytes()[:-9])
    assert search.goal_version() == place.board.get(search.id).goal == len(verbs)


@pytest.mark.parametrize("ended", ["complete", "failed"])
def test_a_search_whose_last_goal_is_damaged_ends_where_the_one_before_is_met(place, start, ended):
    search = stubbed(place, "a", {"ended": ended, "why": "", "goal": 1})
    damaged(place, search, "scale", "scale")
    start()
    place.until(search, ended)
    assert runs(search) == 1


def test_a_resumption_that_is_damaged_is_told_and_not_tried_all_the_time(place, start):
    search = stubbed(place, "a", {"ended": "paused", "why": "", "goal": 1})
    damaged(place, search, "pause", "resume")
    start()
    job = until(lambda: (found := place.board.get("a")).why and found)
    assert "version 2 of its goal cannot be read" in job.why
    assert job.waits > charge.LONGEST_DELAY / 2
    assert (runs(search), job.failures) == (1, 0)


def test_what_the_store_lacks_is_failed(place, start):
    place.board.post(Job(id="stray"))
    start()
    job = until(lambda: (found := place.board.get("stray")).over and found)
    assert job.over == "failed"
    assert "no search 'stray'" in job.why


# -- leases ------------------------------------------------------------------------------------------------------------


def waits(place: Place, search: SearchStore) -> Job:
    """The job, once its driver is at work."""
    return until(lambda: (job := place.board.get(search.id)).progress.get("finished") and job)


def test_a_lease_is_kept_while_the_driver_works(place, start):
    search = stubbed(place, "a", "wait")
    start()
    job = waits(place, search)
    time.sleep(2.0)  # longer than it holds without a renewal
    later = place.board.get("a")
    assert later.leased
    assert later.epoch == job.epoch
    assert later.beat > job.beat


def test_a_lost_lease_ends_the_driver_and_nothing_is_told(place, start):
    search = stubbed(place, "a", "wait")
    _, said = start(searches=1)
    job = waits(place, search)
    pid = int((search.path / "runs").read_text())
    place.board.fail("a", job.epoch, delay=0.0, blame=False)
    taken = until(lambda: place.board.claim("other", 60.0), 1.0)
    until(lambda: any("lost" in line for line in said))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    after = place.board.get("a")
    assert (after.runner, after.epoch, after.failures, after.why) == ("other", taken.epoch, 0, "")


def test_a_stop_hands_back_at_once(place, start):
    searches = [stubbed(place, "a", "wait"), stubbed(place, "b", "deaf")]
    stop = threading.Event()
    start(stop=stop)
    for search in searches:
        waits(place, search)
    stop.set()
    place.until(searches[0], "queued", patience=10)
    place.until(searches[1], "queued", patience=10)  # it did not listen, and was killed
    for search in searches:
        job = place.board.get(search.id)
        assert (job.failures, job.why, job.over) == (0, "", "")


class Flaky:
    """A board that does not answer while it is `down`."""

    def __init__(self, board: Any) -> None:
        self._board, self.down = board, False

    def __getattr__(self, name: str) -> Any:
        if self.down:
            raise Unreachable("board: does not answer; it is tried again.")
        return getattr(self._board, name)


def test_drivers_work_on_while_the_board_does_not_answer(place, start):
    search, board = stubbed(place, "a", "wait"), Flaky(place.board)
    _, said = start(board, ttl=8.0)
    job = waits(place, search)
    board.down = True
    until(lambda: any("waiting" in line for line in said))
    time.sleep(0.5)
    board.down = False
    until(lambda: place.board.get("a").beat > job.beat + 1)
    assert runs(search) == 1
    assert "going on" in said
    assert place.board.get("a").epoch == job.epoch


@pytest.mark.slow
def test_a_board_that_forgets_everything_or_is_away_beyond_the_lease_ends_no_driver(place, start):
    search, board = stubbed(place, "a", "wait"), Flaky(place.board)
    _, said = start(board)
    job = waits(place, search)
    board.down = True
    time.sleep(2.5)  # longer than the lease holds
    assert not place.board.get("a").leased
    board.down = False
    until(lambda: place.board.get("a").leased and any("claimed again" in line for line in said))
    assert place.board.get("a").epoch > job.epoch
    with sqlite3.connect(place.url.removeprefix("sqlite://")) as raw:
        for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if name != "sqlite_sequence":
                raw.execute(f'DELETE FROM "{name}"')
    until(lambda: sum("claimed again" in line for line in said) == 2)
    assert place.board.get("a").leased
    assert runs(search) == 1, "the driver that was at work went on"


def test_idle_runners_have_the_first_choice(place, start):
    start(name="one")
    start(name="two")
    searches = [stubbed(place, name, "wait") for name in "abcd"]
    for search in searches:
        waits(place, search)
    assert {place.board.get(search.id).runner for search in searches} == {"one", "two"}


def test_a_driver_does_not_see_what_opens_the_board(place, start, monkeypatch):
    monkeypatch.setenv("CONTINUA_BOARD", "redis://:password@elsewhere")
    monkeypatch.setenv("CONTINUA_TOKEN", "secret")
    search = stubbed(place, "a", "wait")
    start()
    waits(place, search)
    environment = Path(f"/proc/{(search.path / 'runs').read_text().strip()}/environ").read_bytes()
    assert b"CONTINUA_STORE" in environment or b"PATH=" in environment
    assert b"password" not in environment
    assert b"secret" not in environment


def test_an_ending_is_told_once_the_board_answers(place, start):
    search, board = stubbed(place, "a", "wait"), Flaky(place.board)
    _, said = start(board, ttl=8.0)
    job = waits(place, search)
    board.down = True
    until(lambda: any("waiting" in line for line in said))
    os.kill(int((search.path / "runs").read_text()), 9)
    time.sleep(0.3)
    board.down = False
    until(lambda: runs(search) == 2)
    assert place.board.get("a").epoch > job.epoch


def test_a_search_that_is_run_by_hand_is_left_alone(place, start):
    search = stubbed(place, "a", "complete")
    with search.lease():
        start()
        job = until(lambda: (found := place.board.get("a")).why and found)
    assert f"process {os.getpid()} " in job.why
    assert (job.failures, job.status) == (0, "queued")
    assert job.waits > 0
    assert runs(search) == 0


# -- slots -------------------------------------------------------------------------------------------------------------


def test_slots_follow_priority_quota_and_goal(place, start):
    searches = [
        stubbed(place, "a", "wait", workers=9, priority=10, owner="ada"),
        stubbed(place, "b", "wait", workers=9, priority=20, owner="bob"),
    ]
    start(slots=6, quotas={"bob": 3})

    def slots() -> list[int]:
        return [place.board.get(search.id).progress.get("slots") for search in searches]

    until(lambda: slots() == [3, 3])
    place.edit(searches[0], "scale", workers=1)
    until(lambda: slots() == [1, 3])
    place.edit(searches[0], "scale", workers=4)
    until(lambda: slots() == [3, 3])


def test_a_quota_is_an_owners_whatever_the_runners(place, start):
    """Two machines of six cores each, one search of the owner on either."""
    searches = [stubbed(place, name, "wait", workers=9, owner="bob") for name in ("a", "b")]
    for name in ("one", "two"):
        start(name=name, slots=6, searches=1, quotas={"bob": 5})

    def slots() -> list[int]:
        return [place.board.get(search.id).progress.get("slots") for search in searches]

    until(lambda: slots() == [3, 2])
    assert {place.board.get(search.id).runner for search in searches} == {"one", "two"}
    place.edit(searches[0], "scale", workers=1)
    until(lambda: slots() == [1, 4])


def test_at_most_so_many_searches_at_once(place, start):
    searches = [stubbed(place, name, "wait") for name in ("a", "b", "c")]
    start(searches=2)
    for search in searches[:2]:
        waits(place, search)
    time.sleep(0.5)
    assert place.status(searches[2]) == "queued"


# -- drivers -----------------------------------------------------------------------------------------------------------


def test_a_driver_that_says_nothing_is_ended(place, start, monkeypatch):
    monkeypatch.setattr(runner, "SILENCE", 0.5)
    monkeypatch.setattr(runner, "TELL", 0.1)
    search = stubbed(place, "a", "wait")
    _, said = start()
    waits(place, search)
    os.kill(int((search.path / "runs").read_text()), 19)
    until(lambda: runs(search) == 2)
    assert any("said nothing" in line for line in said)


def test_what_a_driver_says_is_kept_within_bounds(place, start):
    search = stubbed(place, "a", "talks")
    start()
    place.until(search, "complete")
    log = layout.driver_log(search.path)
    sizes = [path.stat().st_size for path in (log, log.with_name(log.name + ".1")) if path.exists()]
    assert 1_000_000 < sum(sizes) < 2 * drivers.LOG_BYTES + 400_000
