"""The three tables that SQL is asked over, as Arrow tables made from the store; no database is needed for them.

    >>> trials([store.search("digits-3fa2b1")]).column_names[:3]
    ['search_id', 'trial_id', 'number']

`trials.query` says what their columns mean.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trials import rows
from trials.records import Ending, trial_id
from trials.segments import Damaged
from trials.store import Event, SearchStore

RUNNING = "running"
_SEARCHES = pa.schema(
    [
        *((name, pa.string()) for name in ("search_id", "name", "state")),
        ("created", pa.float64()),
        *((name, pa.int64()) for name in ("trials", "complete", "running", "failed")),
        *((name, pa.float64()) for name in ("device_seconds", "flops")),
        *((name, pa.string()) for name in ("comparison", "arm")),
        ("repeat", pa.int64()),
        ("role", pa.string()),
    ]
)
_TRIALS = (
    *("search_id", "trial_id", "number", "generation", "bundle_id", "attempt", "ending", "value", "step"),
    *("device_seconds", "flops", "executed_flops", "started", "ended", "asked", "point", "rounded"),
    *("worker", "checkpoint", "error", "said"),
)


def searches(found: Sequence[SearchStore]) -> pa.Table:
    """The `searches` table of some searches."""
    return of_rows([{**row_of(search)[0], "state": search.state()} for search in found])


def of_rows(data: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The `searches` table of its rows."""
    return pa.Table.from_pylist(list(data), schema=_SEARCHES)


def row_of(search: SearchStore) -> tuple[dict[str, Any], pa.Table]:
    """A search's row, with the `state` that it has while nobody holds its lease; and its trials."""
    events = search.log()
    ended = _trials_of(search, events)
    counts = Counter(ended["ending"].to_pylist())
    try:
        document = search.spec()
    except Damaged:
        document = {}
    complete, running = counts[Ending.COMPLETE.value], counts[RUNNING]
    row = {
        "search_id": search.id,
        "name": str(document.get("name", search.id)),
        "state": search.idle_state(events, document),
        "created": search.created(events, document),
        "trials": ended.num_rows,
        "complete": complete,
        "running": running,
        "failed": ended.num_rows - complete - running,
        "device_seconds": pc.sum(ended["device_seconds"], min_count=0).as_py() if ended.num_rows else 0.0,
        "flops": pc.sum(ended["flops"], min_count=0).as_py() if ended.num_rows else 0.0,
        **{key: document.get("labels", {}).get(key) for key in ("comparison", "arm", "repeat", "role")},
    }
    return row, ended


def trials(found: Sequence[SearchStore]) -> pa.Table:
    """The `trials` table of some searches, by search and number."""
    return all_trials([_trials_of(search, search.log()) for search in found])


def all_trials(parts: Iterable[pa.Table]) -> pa.Table:
    """The `trials` table of the searches whose own are given."""
    # Promoting compares every schema with every other's; runs of equal schemas go ten times faster without it.
    held = (part for part in parts if part is not _none())
    runs = [pa.concat_tables(list(run)) for _, run in itertools.groupby(held, key=lambda part: part.schema)]
    return rows.expose(pa.concat_tables([_none(), *runs], promote_options="default").combine_chunks())


def reports(found: Sequence[SearchStore]) -> pa.Table:
    """The `reports` table of some searches."""
    return all_reports(search.report_rows() for search in found)


def all_reports(parts: Iterable[pa.Table]) -> pa.Table:
    """The `reports` table of the searches whose report rows are given."""
    return rows.reports_of(rows.joined(part for part in parts if part is not rows.none()))


def _trials_of(search: SearchStore, events: list[Event]) -> pa.Table:
    if not events and not search.attempts():
        return _none()
    outcomes = search.outcome_rows(events=events)
    last = {number: index for index, number in enumerate(outcomes["number"].to_pylist())}
    return _row_a_trial(outcomes, dict(_asked(events)), last, search.id)


def _asked(events: list[Event]) -> Iterator[tuple[int, tuple[int, str]]]:
    for event in events:
        if event.kind == "asked":
            for trial in event.body["trials"]:
                yield trial["number"], (event.body["generation"], rows.to_json(trial["point"]))


def _row_a_trial(
    outcomes: pa.Table, asked: dict[int, tuple[int, str]], last: dict[int, int], search_id: str
) -> pa.Table:
    """One row a trial, asked or ended: the outcome at `last[number]`, or nulls."""
    numbers = sorted(asked.keys() | last.keys())
    table = outcomes.take(pa.array([last.get(number) for number in numbers], pa.int64()))
    points = pa.array([asked[number][1] if number in asked else None for number in numbers], pa.string())
    generations = [asked[number][0] if number in asked else None for number in numbers]
    ending = table["ending"].fill_null(RUNNING)
    ranked = pc.and_(pc.equal(ending, Ending.COMPLETE.value), pc.is_finite(table["value"]))
    columns = {name: table[name] for name in table.column_names} | {
        "search_id": pa.array([search_id] * len(numbers), pa.string()),
        "trial_id": pc.coalesce(table["trial_id"], pa.array([trial_id(search_id, n) for n in numbers], pa.string())),
        "number": pa.array(numbers, pa.int64()),
        "generation": pa.array(generations, pa.int64()),
        "ending": ending,
        "value": pc.if_else(ranked, table["value"], pa.scalar(None, pa.float64())),
        "asked": points,
        "point": pc.coalesce(table["point"], points),
    }
    names = [*_TRIALS, *rows.measured(table.column_names, rows.METRIC)]
    return pa.table({name: columns[name] for name in names})


@functools.cache
def _none() -> pa.Table:
    return _row_a_trial(rows.none(), {}, {}, "")
