"""Trials that go on in other attempts and other bundles have one curve each, every step of it once."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from store_cases import outcome, report

from trials.query import query
from trials.records import Start
from trials.store import SearchStore, Store

Step = tuple[int, str, int]


@pytest.fixture
def search(tmp_path: Path) -> SearchStore:
    return Store(tmp_path).create("s", {"name": "digits"})


def attempt(
    search: SearchStore,
    place: tuple[str, int],
    trials: list[int],
    steps: list[int],
    start: tuple[str, int, int] | None = None,
    *,
    ends: bool = False,
) -> None:
    """An attempt at some trials that reports at some steps; one that `ends` is closed with their outcomes."""
    told = None if start is None else Start(bundle_id=start[0], attempt=start[1], step=start[2])
    writer = search.attempt_writer(*place, start=told)
    for step in steps:
        for number in trials:
            writer.append(report(number, step, *place))
        writer.flush()
    if ends:
        for number in trials:
            writer.append(outcome(number, *place))
        writer.close()


def curve(search: SearchStore, number: int) -> list[Step]:
    """A trial's reports in the order of the table: step, bundle, attempt."""
    table = search.reports_table()
    assert table.num_rows == query(Store(search.path.parents[1]), "SELECT * FROM reports").num_rows
    found = table.select(["trial_id", "step", "bundle_id", "attempt"]).to_pylist()
    return [(r["step"], r["bundle_id"], r["attempt"]) for r in found if r["trial_id"] == f"s-t{number:06d}"]


def at(place: tuple[str, int], *steps: int) -> list[Step]:
    return [(step, *place) for step in steps]


def test_reports_after_the_checkpoint_are_not_history(search: SearchStore) -> None:
    attempt(search, ("b0", 0), [0, 1], [10, 20, 30, 40])
    attempt(search, ("b0", 1), [0, 1], [40, 50], ("b0", 0, 30), ends=True)
    for number in (0, 1):
        assert curve(search, number) == at(("b0", 0), 10, 20, 30) + at(("b0", 1), 40, 50)


def test_a_checkpoint_between_reports_keeps_those_before_it(search: SearchStore) -> None:
    """The first report alone would not say so: between them there may be none."""
    attempt(search, ("b0", 0), [0], [10, 20, 30, 40])
    attempt(search, ("b0", 1), [0], [50], ("b0", 0, 25), ends=True)
    assert curve(search, 0) == at(("b0", 0), 10, 20) + at(("b0", 1), 50)


def test_trials_that_go_on_in_other_bundles_leave_the_one_they_were_in(search: SearchStore) -> None:
    attempt(search, ("b0", 0), [0, 1, 2], [10, 20, 30])
    attempt(search, ("b1", 0), [2, 0], [30, 40], ("b0", 0, 20), ends=True)
    assert curve(search, 0) == at(("b0", 0), 10, 20) + at(("b1", 0), 30, 40)
    assert curve(search, 1) == at(("b0", 0), 10, 20, 30)  # not taken up yet
    attempt(search, ("b2", 0), [1], [20, 30], ("b0", 0, 10), ends=True)
    assert curve(search, 1) == at(("b0", 0), 10) + at(("b2", 0), 20, 30)
    assert curve(search, 2) == curve(search, 0)


def test_chains_through_several_bundles(search: SearchStore) -> None:
    attempt(search, ("b0", 0), [0, 1, 2, 3], [10, 20])
    attempt(search, ("b0", 1), [0, 1, 2, 3], [20, 30, 40], ("b0", 0, 10))
    attempt(search, ("b5", 0), [0, 1], [40, 50], ("b0", 1, 30))
    attempt(search, ("b5", 1), [0, 1], [40], ("b0", 1, 30))  # its checkpoint could not be read: from the one before
    attempt(search, ("b6", 0), [2, 3], [50], ("b0", 1, 40), ends=True)
    attempt(search, ("b9", 0), [1], [50, 60], ("b5", 1, 40), ends=True)
    before = at(("b0", 0), 10) + at(("b0", 1), 20, 30)
    assert curve(search, 0) == before + at(("b5", 1), 40)
    assert curve(search, 1) == before + at(("b5", 1), 40) + at(("b9", 0), 50, 60)
    for number in (2, 3):
        assert curve(search, number) == before + at(("b0", 1), 40) + at(("b6", 0), 50)


def test_what_was_told_counts_whoever_went_on(search: SearchStore) -> None:
    """A worker that was thought dead lived on and was told of first."""
    attempt(search, ("b0", 0), [0, 1], [10, 20, 30], ends=True)
    attempt(search, ("b1", 0), [0], [20, 30], ("b0", 0, 10), ends=True)
    attempt(search, ("b2", 0), [1], [20, 30], ("b0", 0, 10), ends=True)
    log = search.log_writer(1)
    log.append("told", {"bundle": "b0", "attempt": 0, "numbers": [0]})
    log.append("told", {"bundle": "b2", "attempt": 0, "numbers": [1]})
    assert curve(search, 0) == at(("b0", 0), 10, 20, 30)
    assert curve(search, 1) == at(("b0", 0), 10) + at(("b2", 0), 20, 30)


def test_one_that_began_anew_in_another_bundle_has_that_one_s_curve(search: SearchStore) -> None:
    attempt(search, ("b0", 0), [0, 1], [10, 20])
    attempt(search, ("b1", 0), [0], [10, 20, 30], ends=True)
    search.log_writer(1).append("told", {"bundle": "b1", "attempt": 0, "numbers": [0]})
    assert curve(search, 0) == at(("b1", 0), 10, 20, 30)
    assert curve(search, 1) == at(("b0", 0), 10, 20)


def test_an_attempt_that_has_said_nothing_yet_takes_nothing_away(search: SearchStore) -> None:
    attempt(search, ("b0", 0), [0], [10, 20])
    attempt(search, ("b0", 1), [0], [], ("b0", 0, 10))
    attempt(search, ("b1", 0), [0], [], ("b0", 0, 10))
    assert curve(search, 0) == at(("b0", 0), 10, 20)


def test_an_outcome_alone_says_where_its_trial_went_on(search: SearchStore) -> None:
    attempt(search, ("b0", 0), [0], [10, 20, 30])
    attempt(search, ("b1", 0), [0], [], ("b0", 0, 20), ends=True)
    assert curve(search, 0) == at(("b0", 0), 10, 20)


def test_a_parent_that_is_not_there_and_a_circle_are_borne(search: SearchStore) -> None:
    attempt(search, ("b0", 0), [0], [50], ("gone", 0, 40), ends=True)
    attempt(search, ("b1", 0), [1], [30], ("b2", 0, 20))
    attempt(search, ("b2", 0), [1], [20], ("b1", 0, 10))
    assert curve(search, 0) == at(("b0", 0), 50)
    assert len(curve(search, 1)) <= 2


def test_no_segment_is_read_twice_for_it(search: SearchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt(search, ("b0", 0), [0, 1], [10, 20])
    attempt(search, ("b1", 0), [0], [20], ("b0", 0, 10), ends=True)
    attempt(search, ("b2", 0), [1], [20], ("b0", 0, 10), ends=True)
    read: list[Path] = []
    real = search._reader.read

    def reading(path: Path) -> pa.Table:
        read.append(path)
        return real(path)

    monkeypatch.setattr(search._reader, "read", reading)
    search.reports_table()
    assert len(read) == len(set(read)) == 6
