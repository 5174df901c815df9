"""SQL over a store: one SELECT (DuckDB's dialect) over three tables, answered as an Arrow table.

    >>> query(store, "SELECT number, value, point->>'lr' AS lr FROM trials ORDER BY value LIMIT 3")

searches  `search_id, name, state, created, trials, complete, running, failed, device_seconds, flops`, and of a
          comparison's searches `comparison, arm, repeat, role` (search, retrain)
trials    one row a trial asked, its last attempt that counts: `search_id, trial_id, number, generation, bundle_id,
          attempt, ending, value, step, device_seconds, flops, executed_flops, started, ended, asked, point, rounded,
          worker, checkpoint, error, said`, and a column a metric. A trial that has not ended is `running`, with nulls
reports   `search_id, trial_id, bundle_id, attempt, step, flops, executed_flops, device_seconds`, a column a metric, and
          `arch.<name>` (to be quoted in SQL) a number of the live architecture

`value` is null unless the trial is complete and its value finite: DuckDB ranks NaN above every number. `asked` (the
point asked for), `point` (where it ended; the point asked for while it runs) and `rounded` are JSON text. `created`,
`started` and `ended` are Unix seconds. A metric named like another column stands under `metric.<name>`.

What may be named is only these tables, functions that compute on their arguments (`trials.sql_rules`), and nothing of
the machine: no file, no extension, no setting. It is no protection against a statement that takes all memory or time:
who runs strangers' SQL puts it in a process of its own, with limits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from search_spaces.faults import Invalid, unknown
from trials import sql_rules, tables
from trials.kept import Kept
from trials.store import Store

TABLES: dict[str, Callable[[Kept], pa.Table]] = {
    "searches": Kept.searches,
    "trials": Kept.trials,
    "reports": Kept.reports,
}
_NONE = {"searches": tables.searches, "trials": tables.trials, "reports": tables.reports}
_BATCH = 1024  # rows of a batch, of which the last may be one too many
_LOCKS = (
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET lock_configuration = true",
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an answer may take: `rows` and `size` (bytes in Arrow) of it, beyond which it is cut; `memory` (bytes) and
    `threads` of DuckDB's own."""

    rows: int
    size: int
    memory: int
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer; `cut` says what it was cut at (`rows` or `size`), and is empty where it is whole."""

    table: pa.Table
    cut: str = ""


def query(store: Store, sql: str) -> pa.Table:
    """The answer to one SELECT.

    Raises:
        Invalid: with what DuckDB says of the statement, or why it is not accepted.
    """
    return answer(Kept(store), sql).table


def answer(kept: Kept, sql: str, limits: Limits | None = None) -> Answer:
    """The answer to one SELECT, cut at its limits; `kept` saves reading again what the question before has read.

    Raises:
        Invalid: as `query` does; also where DuckDB's memory does not suffice.
    """
    with duckdb.connect(":memory:", config={"enable_external_access": "false"}) as connection:
        _accept(connection, sql)
        known = _tables(kept, sql)
        for name, table in known.items():
            connection.register(name, table)
        for setting in (*_bounds(limits), *_LOCKS):
            connection.execute(setting)
        try:
            result = connection.sql(sql)
            if limits is None:
                return Answer(table=result.to_arrow_table())
            return _read(result.to_arrow_reader(_BATCH), limits)
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise Invalid([_sentence(error, known)]) from error


def _bounds(limits: Limits | None) -> list[str]:
    if limits is None:
        return []
    return [
        f"SET memory_limit = '{limits.memory}B'",
        f"SET threads = {limits.threads}",
        "SET max_temp_directory_size = '0B'",
    ]


def _read(reader: pa.RecordBatchReader, limits: Limits) -> Answer:
    """What comes before a limit is met. Nothing that comes after it is worked out."""
    batches, rows, size, cut = [], 0, 0, ""
    for batch in reader:
        if rows + batch.num_rows > limits.rows:
            batch, cut = batch.slice(0, limits.rows - rows), "rows"
        if size + batch.nbytes > limits.size:
            batch, cut = batch.slice(0, _fitting(batch, limits.size - size)), "size"
        batches.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if cut:
            break
    return Answer(table=pa.Table.from_batches(batches, reader.schema), cut=cut)


def _fitting(batch: pa.RecordBatch, size: int) -> int:
    """How many of a batch's first rows take at most `size` bytes."""
    low, high = 0, batch.num_rows
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if batch.slice(0, middle).nbytes <= size else (low, middle - 1)
    return low


def _accept(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise Invalid([_sentence(error, {})]) from error
    kinds = [statement.type for statement in statements]
    if kinds != [duckdb.StatementType.SELECT]:
        got = ", ".join(kind.name for kind in kinds) or "none"
        raise Invalid([f"sql: must be exactly one SELECT statement, but got {got}; ask one question at a time."])
    try:
        found = connection.execute("SELECT json_serialize_sql(?, skip_null := true, skip_default := true)", [sql])
        ((parsed,),) = found.fetchall()
    except duckdb.Error as error:
        raise Invalid([_sentence(error, {})]) from error
    sql_rules.accept(parsed, list(TABLES))


def _sentence(error: Exception, tables: dict[str, pa.Table]) -> str:
    text = str(error)
    if match := re.search(r"Table with name (.+?) does not exist", text):
        return unknown("sql", match[1], tables, "table")
    columns = sorted({name for table in tables.values() for name in table.column_names})
    if match := re.search(r'(?:Referenced column|does not have a column named) "(.+?)"', text):
        return unknown("sql", match[1], columns, "column")
    return f"sql: must be a SELECT that DuckDB accepts, but got: {text.splitlines()[0]}"


def _tables(kept: Kept, sql: str) -> dict[str, pa.Table]:
    """The tables that the statement can mean: reports are many, so they are read only where they are named."""
    named = [name for name in TABLES if name in sql.lower()]
    if named:
        kept.look()
    return {name: make(kept) if name in named else _NONE[name]([]) for name, make in TABLES.items()}
