"""Searches and their log: made whole or not at all, in order, through failing disks and kills at any moment."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store_cases import closed, fail_fsync, keep_what_fails, outcome, segments_of

from search_spaces.faults import Invalid
from trials.store import Conflict, Damaged, NotFound, SearchStore, Store


@pytest.fixture
def search(tmp_path: Path) -> SearchStore:
    return Store(tmp_path).create("s", {"name": "digits"})


# -- searches ------------------------------------------------------------------------------------------------------


def test_searches_are_made_listed_and_found(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "store")
    spec = {"name": "digits", "space": {"lr": {"low": 1e-3, "high": math.inf}}, "note": "NaN"}
    store.create("digits-2", spec)
    store.create("digits-1", {})
    again = Store.open_for_reading(tmp_path / "deep" / "store")
    assert again.searches() == ["digits-1", "digits-2"]
    assert again.search("digits-2").spec() == spec
    assert json.loads((again.search("digits-2").path / "spec.json").read_text())["name"] == "digits"


def test_a_taken_id_is_refused_and_the_search_untouched(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create("s", {"a": 1}).log_writer(1).append("state", {"state": "done"})
    with pytest.raises(Invalid, match="used once, but 's' is taken"):
        store.create("s", {"a": 2})
    assert store.search("s").spec() == {"a": 1}
    assert len(store.search("s").log()) == 1
    assert os.listdir(tmp_path / "searches") == ["s"]


@pytest.mark.parametrize("name", ["", ".", "..", "../s", "a/b", ".hidden", "a\0b", "a b", "x" * 200, "<script>", "é"])
def test_names_are_never_paths(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    with pytest.raises(Invalid, match="must begin with a letter or digit"):
        store.create(name, {})
    with pytest.raises(NotFound):
        store.search(name)
    with pytest.raises(Invalid, match="must begin with a letter or digit"):
        store.create("s", {}).attempt_writer(name, 0)


def test_an_unknown_search_names_the_nearest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create("digits-width", {})
    with pytest.raises(NotFound, match="Did you mean 'digits-width'"):
        store.search("digit-width")


def test_a_root_that_cannot_be_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for make in (Store, Store.open_for_reading):
        with pytest.raises(Invalid, match="must be a directory"):
            make(tmp_path / "file")
    with pytest.raises(Invalid, match="must be writable"):
        Store(tmp_path / "file" / "below")
    assert Store.open_for_reading(tmp_path / "nowhere").searches() == []
    assert not (tmp_path / "nowhere").exists()


def test_a_search_is_created_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    nth, failures = 0, 0
    while not store.searches():
        nth += 1
        with monkeypatch.context() as patch:
            calls = fail_fsync(patch, nth)
            try:
                store.create("s", {"a": 1})
            except OSError:
                failures += 1
                assert os.listdir(tmp_path / "searches") == []
    assert failures == len(calls) == 3  # spec.json, the directory it is in, the directory of searches
    assert store.search("s").spec() == {"a": 1}


def test_a_broken_spec_is_damage(search: SearchStore) -> None:
    (search.path / "spec.json").write_text('{"name": ')
    with pytest.raises(Damaged, match=r"spec\.json"):
        search.spec()


# -- the log -------------------------------------------------------------------------------------------------------


def test_events_come_back_in_the_order_of_writing_whatever_the_clock_says(
    search: SearchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([5_000_000_000, 1_000_000_000, 9_123_456_789, 3_000_000_000])
    monkeypatch.setattr(time, "time_ns", lambda: next(times))
    first = search.log_writer(1)
    made = [first.append("goal", {"trials": 3})]
    made += first.append_many([("asked", {"x": [1, 2.5, None, True, "é\ud800"]}), ("told", {"y": {"z": math.inf}})])
    second = search.log_writer(12)
    made += [second.append("state", {"state": "done"}), *second.append_many([]), second.append("goal", {})]
    assert search.log() == made
    assert [(e.epoch, e.n, e.seq) for e in made] == [(1, 0, 0), (1, 1, 1), (1, 1, 2), (12, 0, 0), (12, 1, 1)]
    assert [e.time for e in made] == [5.0, 1.0, 1.0, 9.123456, 3.0]


def test_an_epoch_has_one_writer(search: SearchStore) -> None:
    search.log_writer(2).append("goal", {})
    for epoch in (0, 1, 2):
        with pytest.raises(Conflict, match="epochs rise"):
            search.log_writer(epoch)
    search.log_writer(3).append("goal", {})


def test_a_failed_append_is_not_there_and_may_be_tried_again(
    search: SearchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = search.log_writer(1)
    kept = [log.append("goal", {"n": 0})]
    for nth in (1, 2):
        with monkeypatch.context() as patch:
            fail_fsync(patch, nth)
            with pytest.raises(OSError, match="Input/output"):
                log.append("goal", {"n": nth})
        assert search.log() == kept
        kept.append(log.append("goal", {"n": nth}))
    assert search.log() == kept
    assert [event.seq for event in kept] == [0, 1, 2]
    assert len({event.n for event in kept}) == 3


def test_a_given_up_segment_that_a_power_cut_brings_back_is_no_event(
    search: SearchStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = search.log_writer(1)
    kept = [log.append("goal", {"n": 0})]
    given_up = keep_what_fails(search.path / "log", monkeypatch, tmp_path)
    with pytest.raises(OSError, match="directory"):
        log.append_many([("goal", {"n": 1}), ("goal", {"n": 2})])
    monkeypatch.undo()
    kept.append(log.append("goal", {"n": 1}))
    shutil.copy(given_up[0], search.path / "log")
    assert search.log() == kept
    kept.append(search.log_writer(2).append("goal", {"n": 3}))
    assert search.log() == kept


def test_damage_in_the_log_costs_that_segment_alone(search: SearchStore) -> None:
    log = search.log_writer(1)
    events = [log.append("goal", {"n": n}) for n in range(3)]
    path = segments_of(search, "log")[1]
    whole = path.read_bytes()
    fresh = Store(search.path.parents[1]).search("s")
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place])
        assert fresh.log() == [events[0], events[2]]
        assert [damage.path for damage in fresh.damaged] == [path]
    path.write_bytes(whole)
    assert fresh.log() == events
    assert fresh.damaged == []


def test_files_of_others_in_the_directories_are_passed_over(search: SearchStore) -> None:
    event = search.log_writer(1).append("goal", {})
    closed(search, outcome(0))
    for name in ("log/.x.tmp", "log/notes.txt", "metrics/b0.0/README", "metrics/.DS_Store", "log/1-x.arrow"):
        (search.path / name).write_text("hello")
    (search.path / "quarantine").mkdir()
    assert search.log() == [event]
    assert search.outcomes() == [outcome(0)]
    assert search.verify() == []


CRASHING = """
import sys
from trials.records import Ending, Outcome
from trials.store import Store
search = Store(sys.argv[1]).search("s")
k = int(sys.argv[2])
log = search.log_writer(k + 1)
i = 0
while True:
    log.append_many([("goal", {"k": k, "i": i}), ("goal", {"k": k, "i": i + 1})])
    writer = search.attempt_writer(f"b{k}", i)
    writer.append(Outcome(trial_id="t", number=i, bundle_id=f"b{k}", attempt=i, ending=Ending.NAN, point={}))
    writer.close()
    i += 2
    print(i, flush=True)
"""


@pytest.mark.slow
def test_what_was_acknowledged_outlives_a_kill_at_any_moment(tmp_path: Path, search: SearchStore) -> None:
    rng = random.Random(0)
    acknowledged = []
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    for k in range(6):
        command = [sys.executable, "-c", CRASHING, str(tmp_path), str(k)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            said = [process.stdout.readline()]
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
            said += process.stdout.read().splitlines()
        acknowledged.append(int([line for line in said if line.strip()][-1]))
    events = search.log()
    for k, count in enumerate(acknowledged):
        seen = [event.body["i"] for event in events if event.body["k"] == k]
        assert seen == list(range(len(seen)))
        assert count <= len(seen) <= count + 2
        numbers = [o.number for o in search.outcomes(closed_only=False) if o.bundle_id == f"b{k}"]
        assert numbers == list(range(0, len(numbers) * 2, 2))
        assert count <= len(numbers) * 2 <= count + 2
    assert search.verify() == []
    assert max(acknowledged) > 4
