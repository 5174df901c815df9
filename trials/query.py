"""SQL over a store: one SELECT (DuckDB's dialect) over three tables, answered as an Arrow table.

    >>> query(store, "SELECT number, value, point->>'lr' AS lr FROM trials ORDER BY value LIMIT 3")

searches  `search_id, name, state, created, trials, complete, running, failed, device_seconds, flops`, and of a
          comparison's searches `comparison, arm, repeat, role` (search, retrain)
trials    one row a trial asked, its last attempt that counts: `search_id, trial_id, number, generation, bundle_id,
          attempt, ending, value, step, device_seconds, flops, executed_flops, started, ended, asked, point, rounded,
          worker, checkpoint, error`, and a column a metric. A trial that has not ended is `running`, with nulls
reports   `search_id, trial_id, bundle_id, attempt, step, flops, executed_flops, device_seconds`, a column a metric, and
          `arch.<name>` (to be quoted in SQL) a number of the live architecture

`value` is null unless the trial is complete and its value finite: DuckDB ranks NaN above every number. `asked` (the
point asked for), `point` (where it ended; the point asked for while it runs) and `rounded` are JSON text. `created`,
`started` and `ended` are Unix seconds. A metric named like another column stands under `metric.<name>`.

What may be read is only these tables: no file, no extension, no setting. It is no protection against a statement that
takes all memory or time; who runs strangers' SQL puts it in a process of its own, with limits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from search_spaces.faults import Invalid, unknown
from trials import layout, rows
from trials.records import Ending, trial_id
from trials.segments import Damaged
from trials.store import Event, SearchStore, Store

RUNNING = "running"
_LOCKS = (
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET lock_configuration = true",
)
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
    *("worker", "checkpoint", "error"),
)


def query(store: Store, sql: str) -> pa.Table:
    """The answer to one SELECT.

    Raises:
        Invalid: with what DuckDB says of the statement, or why it is not accepted.
    """
    with duckdb.connect(":memory:", config={"enable_external_access": "false"}) as connection:
        _accept(connection, sql)
        tables = _tables(store, sql)
        for name, table in tables.items():
            connection.register(name, table)
        for lock in _LOCKS:
            connection.execute(lock)
        try:
            return connection.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise Invalid([_sentence(error, tables)]) from error


def _accept(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise Invalid([_sentence(error, {})]) from error
    kinds = [statement.type for statement in statements]
    if kinds != [duckdb.StatementType.SELECT]:
        got = ", ".join(kind.name for kind in kinds) or "none"
        raise Invalid([f"sql: must be exactly one SELECT statement, but got {got}; ask one question at a time."])


def _sentence(error: duckdb.Error, tables: dict[str, pa.Table]) -> str:
    text = str(error)
    if match := re.search(r"Table with name (.+?) does not exist", text):
        return unknown("sql", match[1], tables, "table")
    columns = sorted({name for table in tables.values() for name in table.column_names})
    if match := re.search(r'(?:Referenced column|does not have a column named) "(.+?)"', text):
        return unknown("sql", match[1], columns, "column")
    return f"sql: must be a SELECT that DuckDB accepts, but got: {text.splitlines()[0]}"


def _tables(store: Store, sql: str) -> dict[str, pa.Table]:
    """The tables that the statement can mean: reports are many, so they are read only where they are named."""
    makers: dict[str, Callable[[list[SearchStore]], pa.Table]] = {
        "searches": _searches,
        "trials": _trials,
        "reports": _reports,
    }
    named = [name for name in makers if name in sql.lower()] or list(makers)
    found = [store.search(search_id) for search_id in store.searches()]
    return {name: make(found) if name in named else make([]) for name, make in makers.items()}


def _searches(found: list[SearchStore]) -> pa.Table:
    data = [_search_row(search) for search in found]
    return pa.Table.from_pylist(data, schema=_SEARCHES)


def _search_row(search: SearchStore) -> dict[str, Any]:
    events = search.log()
    trials = _trials_of(search, events)
    counts = {str(item["values"]): int(item["counts"]) for item in pc.value_counts(trials["ending"]).to_pylist()}
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
        "trials": trials.num_rows,
        "complete": complete,
        "running": running,
        "failed": trials.num_rows - complete - running,
        "device_seconds": pc.sum(trials["device_seconds"], min_count=0).as_py(),
        "flops": pc.sum(trials["flops"], min_count=0).as_py(),
        **{key: document.get("labels", {}).get(key) for key in ("comparison", "arm", "repeat", "role")},
    }


def _trials(found: list[SearchStore]) -> pa.Table:
    """The `trials` table of some searches, by search and number."""
    parts = [_trials_of(search, search.log()) for search in found]
    empty = _row_a_trial(rows.joined([]), {}, {}, "")
    return rows.expose(pa.concat_tables([empty, *parts], promote_options="default"))


def _reports(found: list[SearchStore]) -> pa.Table:
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
