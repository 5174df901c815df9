"""What is kept of the tables from one question to the next holds exactly as long as nothing changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trials.goals import Goal
from trials.kept import Kept
from trials.mark import TICK, Mark
from trials.query import answer, query
from trials.records import Ending, Outcome, Report
from trials.store import SearchStore, Store

ALL = {
    "searches": "SELECT * FROM searches ORDER BY search_id",
    "trials": "SELECT * FROM trials ORDER BY trial_id",
    "reports": "SELECT * FROM reports ORDER BY trial_id, step",
}


def measure(search: SearchStore, bundle: str, numbers: range, *, closed: bool = True) -> Any:
    writer = search.attempt_writer(bundle, 0)
    for number in numbers:
        trial = f"{search.id}-t{number:06d}"
        writer.append(Report(trial_id=trial, bundle_id=bundle, attempt=0, step=1, metrics={"val_error": 0.5}))
    writer.flush()
    for number in numbers:
        trial = f"{search.id}-t{number:06d}"
        facts: dict[str, Any] = {"trial_id": trial, "number": number, "point": {"lr": 0.1}, "value": number / 8}
        writer.append(Outcome(**facts, bundle_id=bundle, attempt=0, ending=Ending.COMPLETE))
    if closed:
        writer.close()
    return writer


def ask(search: SearchStore, numbers: range, epoch: int = 1) -> Any:
    log = search.log_writer(epoch)
    log.append("asked", {"generation": 0, "trials": [{"number": n, "point": {"lr": 0.1}} for n in numbers]})
    return log


def settle(search: SearchStore) -> None:
    """As if all of it had happened a while ago."""
    for path in [search.path, *search.path.rglob("*")]:
        past = path.stat().st_mtime_ns - 2 * TICK
        os.utime(path, ns=(past, past))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One search that was never started, one with a bundle told, and one with a bundle that a worker has."""
    store = Store(tmp_path)
    store.create("new-1", {"name": "new", "submitted": True})
    done = store.create("done-1", {"name": "done"})
    log = ask(done, range(2))
    measure(done, "b0", range(2))
    log.append("told", {"bundle": "b0", "attempt": 0, "numbers": [0, 1]})
    log.append("state", {"state": "complete"})
    live = store.create("live-1", {"name": "live"})
    ask(live, range(2))
    for search_id in store.searches():
        settle(store.search(search_id))
    return store


class Counted(Kept):
    """Says which searches were read."""

    def __init__(self, store: Store, most: int = 2**20) -> None:
        super().__init__(store, most)
        self.read: list[str] = []

    def _read(self, search_id: str) -> Any:
        self.read.append(search_id)
        return super()._read(search_id)

    def again(self) -> list[str]:
        """What a look reads anew."""
        self.read.clear()
        self.look()
        return self.read


def same(kept: Kept, store: Store) -> None:
    """It says what one says that has kept nothing."""
    for sql in ALL.values():
        found, expected = answer(kept, sql).table, query(store, sql)
        assert found.schema == expected.schema
        assert found.to_pylist() == expected.to_pylist()


@pytest.mark.slow
def test_what_did_not_change_is_not_read_again(store: Store) -> None:
    kept = Counted(store)
    same(kept, store)
    assert sorted(set(kept.read)) == ["done-1", "live-1", "new-1"]
    assert len(kept.read) == 3  # for three questions
    assert kept.again() == []
    tables = [kept.trials(), kept.reports()]
    assert [kept.trials(), kept.reports()] == tables
    assert kept.trials() is tables[0]
    same(kept, store)


def started(search: SearchStore) -> None:
    ask(search, range(2, 4), epoch=5)


def told(search: SearchStore) -> None:
    log = ask(search, range(2, 4), epoch=6)
    measure(search, "b9", range(2, 4))
    log.append("told", {"bundle": "b9", "attempt": 0, "numbers": [2, 3]})


def closed_untold(search: SearchStore) -> None:
    measure(search, "b8", range(2, 4))


def paused(search: SearchStore) -> None:
    search.set_goal(Goal(version=search.goal_version() + 1, state="pause"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("search_id", "change"),
    [("new-1", started), ("new-1", paused), ("done-1", told), ("live-1", told), ("live-1", closed_untold)],
)
def test_whatever_changes_is_seen_at_the_next_question(store: Store, change: Any, search_id: str) -> None:
    kept = Counted(store)
    same(kept, store)
    change(store.search(search_id))
    assert kept.again() == [search_id]
    same(kept, store)
    settle(store.search(search_id))
    kept.look()
    assert kept.again() == []
    same(kept, store)


def test_an_attempt_that_grows_is_followed_until_it_is_closed(store: Store) -> None:
    search = store.search("live-1")
    writer = measure(search, "b0", range(2), closed=False)
    settle(search)
    kept = Counted(store)
    same(kept, store)
    assert kept.again() == []
    for write in (writer.flush, writer.close):
        settled = Mark.of(search.path)
        write()
        assert not settled.holds()
        assert kept.again() == ["live-1"]
        same(kept, store)
        settle(search)
        kept.look()
    closed = "SELECT number FROM trials WHERE search_id = 'live-1' AND ending = 'complete'"
    assert answer(kept, closed).table.num_rows == 2


def test_who_drives_a_search_is_looked_at_every_time(store: Store) -> None:
    kept, search = Counted(store), store.search("live-1")
    states = "SELECT state FROM searches WHERE search_id = 'live-1'"

    def state() -> str:
        return str(answer(kept, states).table["state"][0])

    assert state() == "interrupted"
    with search.lease():
        assert state() == "running"
    assert state() == "interrupted"
    script = f"""if True:
        import os, signal, sys
        from trials.store import Store
        lease = Store({str(store.root)!r}).search("live-1").lease()
        print("held", flush=True)
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    owner = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        assert state() == "running"
    finally:
        owner.communicate()
    assert state() == "interrupted"  # what a killed owner wrote of itself is still there
    assert kept.again() == []


@pytest.mark.slow
def test_searches_come_and_go(store: Store, tmp_path: Path) -> None:
    kept = Counted(store)
    same(kept, store)
    script = f"from trials.store import Store; Store({str(store.root)!r}).create('other-1', {{'name': 'other'}})"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert kept.again() == ["other-1"]
    same(kept, store)
    store.search("done-1").path.rename(tmp_path / "away")
    same(kept, store)
    (tmp_path / "away").rename(tmp_path / "searches" / "done-1")
    same(kept, store)


def test_a_search_that_changed_this_instant_is_not_kept(store: Store) -> None:
    kept, search = Counted(store), store.search("new-1")
    kept.look()
    log = ask(search, range(1))
    for _ in range(3):
        assert kept.again() == ["new-1"]  # its directory may change again within the same tick
    log.append("state", {"state": "complete"})
    same(kept, store)


def test_no_more_is_kept_than_may_be(store: Store) -> None:
    size = query(store, ALL["trials"]).nbytes
    kept = Counted(store, most=size // 2)
    for _ in range(2):
        kept.read.clear()
        same(kept, store)
        assert kept.read
        assert sum(found.size for found in kept._known.values()) <= size // 2
        assert all(whole.nbytes <= size // 2 for _, whole in kept._whole.values())
