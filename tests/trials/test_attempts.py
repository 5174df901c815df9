"""Attempts: one writer, closed or not, which one counts, and what damage and failing disks cost."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from store_cases import closed, fail_fsync, keep_what_fails, outcome, report, segments_of

from trials import rows
from trials.records import Ending
from trials.store import Conflict, SearchStore, Store


@pytest.fixture
def search(tmp_path: Path) -> SearchStore:
    return Store(tmp_path).create("s", {"name": "digits"})


def test_only_closed_attempts_are_history(search: SearchStore) -> None:
    open_writer = search.attempt_writer("b0", 0)
    open_writer.append(outcome(0))
    open_writer.flush()
    search.attempt_writer("b0", 1)
    closed(search, outcome(1, "b1"))
    assert search.attempts() == {("b0", 0): False, ("b0", 1): False, ("b1", 0): True}
    assert search.outcomes() == [outcome(1, "b1")]
    assert search.outcomes(closed_only=False) == [outcome(0), outcome(1, "b1")]
    assert search.attempt_outcomes("b0", 0) == [outcome(0)]
    open_writer.close()
    open_writer.close()  # once more does nothing
    assert search.outcomes() == [outcome(0), outcome(1, "b1")]


def test_an_attempt_has_one_writer_once(search: SearchStore) -> None:
    writer = search.attempt_writer("b0", 0)
    for _ in range(2):
        with pytest.raises(Conflict, match="attempt 0 is there; begin the next"):
            search.attempt_writer("b0", 0)
        writer.close()
    with pytest.raises(Conflict, match="closed"):
        writer.append(outcome(0))
    assert search.attempts() == {("b0", 0): True}


def test_of_two_closed_attempts_the_told_one_counts_else_the_lowest(search: SearchStore) -> None:
    for attempt in (2, 1):
        for bundle in ("a", "b", "c.d"):
            closed(search, outcome(0, bundle, attempt))
    search.attempt_writer("b", 0)
    log = search.log_writer(1)
    assert search.counting() == {"a": 1, "b": 1, "c.d": 1}
    log.append("told", {"bundle": "b", "attempt": 2, "numbers": [0]})
    assert search.counting() == {"b": 2, "a": 1, "c.d": 1}
    log.append("told", {"bundle": "a", "attempt": 2, "numbers": [0]})
    log.append("told", {"bundle": "b", "attempt": 1, "numbers": [0]})
    log.append("told", {"bundle": "gone", "attempt": 0, "numbers": [7]})
    assert search.told() == {"a": 2, "b": 1, "gone": 0}
    assert list(search.counting().items()) == [("a", 2), ("b", 1), ("c.d", 1)]
    # one trial, told last of b.1: what else is closed of it is a bundle given up, whose worker lived on
    assert [(o.bundle_id, o.attempt) for o in search.outcomes()] == [("b", 1)]


def test_an_untold_outcome_counts_unless_it_calls_for_a_retry(search: SearchStore) -> None:
    closed(search, outcome(0, "a", 0), replace(outcome(1, "a", 0), ending=Ending.OOM, value=None))
    assert [o.number for o in search.outcomes()] == [0]
    search.log_writer(1).append("told", {"bundle": "a", "attempt": 0, "numbers": [1]})  # given up for good
    assert [o.number for o in search.outcomes()] == [0, 1]


def test_a_curve_is_that_of_the_attempt_that_counts_and_of_what_it_resumed(search: SearchStore) -> None:
    died = search.attempt_writer("b0", 0)
    for step in (10, 20, 30, 40):
        died.append(report(0, step))
    died.flush()
    closed(search, *(report(0, step, attempt=1) for step in (30, 40, 50)))  # resumed at 20
    closed(search, *(report(0, step, attempt=2) for step in (10, 20)))  # a zombie that closed too late
    restarted = search.attempt_writer("b1", 0)
    restarted.append(report(1, 10, "b1"))
    restarted.flush()
    later = search.attempt_writer("b1", 1)
    later.append(report(1, 10, "b1", 1))
    later.flush()

    def curve(every_attempt: bool = False) -> list[tuple[str, int, int]]:
        table = search.reports_table(every_attempt)
        return list(zip(*(table[name].to_pylist() for name in ("bundle_id", "attempt", "step")), strict=True))

    assert curve() == [("b0", 0, 10), ("b0", 0, 20), ("b0", 1, 30), ("b0", 1, 40), ("b0", 1, 50), ("b1", 1, 10)]
    assert len(curve(every_attempt=True)) == 11


@pytest.mark.parametrize("last", ["flush", "close"])
def test_a_failed_flush_is_not_there_and_may_be_tried_again(
    search: SearchStore, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    writer = search.attempt_writer("b0", 0)
    for nth in (1, 2):
        writer.append(outcome(nth))
        with monkeypatch.context() as patch:
            fail_fsync(patch, nth)
            with pytest.raises(OSError, match="Input/output"):
                getattr(writer, last)()
        assert segments_of(search, "metrics") == []
        assert search.attempts() == {("b0", 0): False}
    getattr(writer, last)()
    assert search.outcomes(closed_only=False) == [outcome(1), outcome(2)]
    writer.close()
    assert search.outcomes() == [outcome(1), outcome(2)]


def test_an_attempt_that_cannot_begin_may_begin_again(search: SearchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fail_fsync(patch, 1)
        with pytest.raises(OSError, match="Input/output"):
            search.attempt_writer("b0", 0)
    search.attempt_writer("b0", 0).close()
    assert search.attempts() == {("b0", 0): True}


@pytest.mark.parametrize("last", ["flush", "close"])
def test_a_given_up_part_that_a_power_cut_brings_back_counts_once(
    search: SearchStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, last: str
) -> None:
    writer = search.attempt_writer("b0", 0)
    writer.append(outcome(0))
    given_up = keep_what_fails(search.path / "metrics" / "b0.0", monkeypatch, tmp_path)
    with pytest.raises(OSError, match="directory"):
        getattr(writer, last)()
    monkeypatch.undo()
    writer.flush()
    writer.append(outcome(1))
    writer.close()
    shutil.copy(given_up[0], search.path / "metrics" / "b0.0")
    assert search.outcomes() == [outcome(0), outcome(1)]
    assert search.verify() == []


def test_a_part_that_got_lost_is_damage(search: SearchStore) -> None:
    writer = search.attempt_writer("b0", 0)
    for number in range(3):
        writer.append(outcome(number))
        writer.flush()
    writer.close()
    lost = segments_of(search, "metrics")[2]
    lost.unlink()
    assert lost.name.startswith("part-0000000001-")
    assert search.outcomes() == [outcome(0), outcome(2)]
    assert [damage.path for damage in search.damaged] == [lost]


@pytest.mark.slow
def test_every_flipped_byte_of_an_attempt_is_found_and_costs_that_segment_alone(search: SearchStore) -> None:
    writer = search.attempt_writer("b0", 0)
    writer.append(outcome(0))
    writer.flush()
    writer.append(outcome(1))
    writer.close()
    closed(search, outcome(2, "b1"))
    final, part = segments_of(search, "metrics")[:2]
    assert final.name.startswith("final")
    for path, left in ((part, [outcome(1), outcome(2, "b1")]), (final, [outcome(0), outcome(2, "b1")])):
        whole = path.read_bytes()
        for place in range(0, len(whole), 13):
            broken = bytearray(whole)
            broken[place] ^= 1 << place % 8
            path.write_bytes(broken)
            assert [damage.path for damage in search.verify()] == [path]
            assert search.outcomes() == left
        path.write_bytes(whole)
    assert search.verify() == []


def test_a_damaged_final_segment_still_closes(search: SearchStore) -> None:
    closed(search, outcome(0))
    segments_of(search, "metrics")[0].write_bytes(b"")
    assert search.attempts() == {("b0", 0): True}
    assert search.outcomes() == []
    assert len(search.damaged) == 1


def test_tables_have_their_columns_even_when_empty(search: SearchStore) -> None:
    assert search.outcomes_table().column_names == list(rows.FIXED[1:])
    assert search.reports_table().column_names == list(rows.REPORTS)
    closed(search, outcome(0, metrics={"val_error": 0.5, "value": 7.0}))
    table = search.outcomes_table()
    assert table.column_names == [*rows.FIXED[1:], "val_error", "metric.value"]
    assert table.select(["search_id", "number", "value", "metric.value"]).to_pylist() == [
        {"search_id": "s", "number": 0, "value": 0.0, "metric.value": 7.0}
    ]
