"""The three tables that SQL is asked over, as Arrow tables made from the store; no database is needed for them.

    >>> trials([store.search("digits-3fa2b1")]).column_names[:3]
    ['search_id', 'trial_id', 'number']

`trials.query` says what their columns mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trials import layout, rows
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
    data = [_search_row(search) for search in found]
    return pa.Table.from_pylist(data, schema=_SEARCHES)


def _search_row(search: SearchStore) -> dict[str, Any]:
    events = search.log()
    ended = _trials_of(search, events)
    counts = {str(item["values"]): int(item["counts"]) for item in pc.value_counts(ended["ending"]).to_pylist()}
    try:
        document = search.spec()
    except Damaged:
        document = {}
    complete, running = counts.get(Ending.COMPLETE, 0), counts.get(RUNNING, 0)
    return {
        "search_id": search.id,
        "name": str(document.get("name", search.id)),
        "state": search.state(events),
        "created": events[0].time if events else layout.spec(search.path).stat().st_mtime,
        "trials": ended.num_rows,
        "complete": complete,
        "running": running,
        "failed": ended.num_rows - complete - running,
        "device_seconds": pc.sum(ended["device_seconds"], min_count=0).as_py(),
        "flops": pc.sum(ended["flops"], min_count=0).as_py(),
        **{key: document.get("labels", {}).get(key) for key in ("comparison", "arm", "repeat", "role")},
    }


def trials(found: Sequence[SearchStore]) -> pa.Table:
    """The `trials` table of some searches, by search and number."""
    parts = [_trials_of(search, search.log()) for search in found]
    empty = _row_a_trial(rows.joined([]), {}, {}, "")
    return rows.expose(pa.concat_tables([empty, *parts], promote_options="default"))


def reports(found: Sequence[SearchStore]) -> pa.Table:
    """The `reports` table of some searches."""
    return rows.reports_of(rows.joined(search.report_rows() for search in found))


def _trials_of(search: SearchStore, events: list[Event]) -> pa.Table:
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
