"""Reports and outcomes as rows of Arrow tables, and plain data as JSON text, both exact.

One schema holds both records, `record` says which; what a record does not have is null. Each metric is a float64
column `metric.<name>`, each number of a live architecture `arch.<name>`: null where it was not measured, which is not
NaN. The prefix keeps a metric named `step` apart from the step; `expose` drops it wherever the plain name is free.

JSON has no NaN: `to_json` writes the three numbers that are not finite as text and marks text that looks like them:

    >>> to_json({"loss": float("nan"), "note": "NaN"})
    '{"loss": "NaN", "note": "\\'NaN"}'
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trials.records import Ending, Outcome, Report, Spent

METRIC, ARCHITECTURE = "metric.", "arch."
REPORT, OUTCOME = "report", "outcome"

SCHEMA = pa.schema(
    [
        ("record", pa.string()),
        ("search_id", pa.string()),
        ("trial_id", pa.string()),
        ("number", pa.int64()),
        ("bundle_id", pa.string()),
        ("attempt", pa.int64()),
        ("ending", pa.string()),
        ("value", pa.float64()),
        ("step", pa.int64()),
        ("flops", pa.float64()),
        ("executed_flops", pa.float64()),
        ("device_seconds", pa.float64()),
        ("started", pa.float64()),  # Unix seconds
        ("ended", pa.float64()),
        ("point", pa.string()),  # JSON
        ("rounded", pa.string()),  # JSON
        ("worker", pa.string()),
        ("checkpoint", pa.string()),
        ("error", pa.string()),
        ("said", pa.string()),
    ]
)
FIXED = tuple(SCHEMA.names)
_FIXED = frozenset(FIXED)
_ENDINGS = {ending.value: ending for ending in Ending}  # calling the enumeration takes ten times as long
REPORTS = ("search_id", "trial_id", "bundle_id", "attempt", "step", "flops", "executed_flops", "device_seconds")

_LOOKS_LIKE_A_NUMBER = re.compile(r"'*(NaN|-?Infinity)")


def report_row(search_id: str, report: Report) -> dict[str, Any]:
    """A report's columns."""
    return {
        "record": REPORT,
        "search_id": search_id,
        "trial_id": report.trial_id,
        "bundle_id": report.bundle_id,
        "attempt": report.attempt,
        "step": int(report.step),
        **_spent(report.spent),
        **{METRIC + name: float(value) for name, value in report.metrics.items()},
        **{ARCHITECTURE + name: float(value) for name, value in report.architecture.items()},
    }


def outcome_row(search_id: str, outcome: Outcome) -> dict[str, Any]:
    """An outcome's columns."""
    return {
        "record": OUTCOME,
        "search_id": search_id,
        "trial_id": outcome.trial_id,
        "number": int(outcome.number),
        "bundle_id": outcome.bundle_id,
        "attempt": outcome.attempt,
        "ending": Ending(outcome.ending).value,
        "value": None if outcome.value is None else float(outcome.value),
        "step": int(outcome.step),
        **_spent(outcome.spent),
        "started": float(outcome.started),
        "ended": float(outcome.ended),
        "point": to_json(outcome.point),
        "rounded": to_json(outcome.rounded),
        "worker": _storable(outcome.worker),
        "checkpoint": outcome.checkpoint,
        "error": None if outcome.error is None else _storable(outcome.error),
        "said": None if outcome.said is None else _storable(outcome.said),
        **{METRIC + name: float(value) for name, value in outcome.metrics.items()},
    }


def _spent(spent: Spent) -> dict[str, float]:
    return {
        "flops": float(spent.flops),
        "executed_flops": float(spent.executed_flops),
        "device_seconds": float(spent.device_s),
    }


def _storable(text: str) -> str:
    """A traceback may quote bytes that are no text; UTF-8 cannot hold those."""
    return text.encode("utf-8", "backslashreplace").decode()


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as one table: the fixed columns, then metrics and architecture as they first appear."""
    measured = dict.fromkeys(name for row in rows for name in row if name not in _FIXED)
    schema = pa.schema([*SCHEMA, *((name, pa.float64()) for name in measured)])
    columns = [
        pa.array([row.get(name) for row in rows], kind) for name, kind in zip(schema.names, schema.types, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def joined(tables: Iterable[pa.Table]) -> pa.Table:
    """Tables under one another; a column that only some have is null in the others."""
    # Promoting compares every schema with every other's; runs of equal schemas go ten times faster without it.
    plain = (table.replace_schema_metadata(None) for table in tables)
    runs = [pa.concat_tables(list(run)) for _, run in itertools.groupby(plain, key=lambda table: table.schema)]
    return pa.concat_tables([SCHEMA.empty_table(), *runs], promote_options="default").combine_chunks()


@functools.cache
def none() -> pa.Table:
    """No rows; the same table every time."""
    return joined([])


def measured(names: Iterable[str], *prefixes: str) -> list[str]:
    """Those of `names` that hold a metric (or an architecture's number)."""
    return [name for name in names if name.startswith(prefixes or (METRIC, ARCHITECTURE))]


def expose(table: pa.Table) -> pa.Table:
    """The table with each metric under its plain name, where no other column has that name (SQL ignores case)."""
    taken = {name.casefold() for name in table.column_names}
    names = []
    for name in table.column_names:
        plain = name.removeprefix(METRIC)
        if plain != name and plain.casefold() not in taken and not plain.startswith((METRIC, ARCHITECTURE)):
            taken.add(plain.casefold())
            name = plain
        names.append(name)
    return table.rename_columns(names)


def only(record: str, table: pa.Table) -> pa.Table:
    """The rows of one kind of record."""
    return table.filter(pc.equal(table["record"], record)).combine_chunks()


def reports_of(table: pa.Table) -> pa.Table:
    """A table of report rows as it is shown: their own columns, metrics under plain names."""
    return expose(table.select([*REPORTS, *measured(table.column_names)]))


def outcomes_of(table: pa.Table) -> list[Outcome]:
    """The outcomes in a table of rows; reports are passed over."""
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    metrics = {name.removeprefix(METRIC): columns[name] for name in measured(columns, METRIC)}
    points, rounded = (all_from_json(columns[name]) for name in ("point", "rounded"))
    return [
        Outcome(
            trial_id=columns["trial_id"][i],
            number=columns["number"][i],
            bundle_id=columns["bundle_id"][i],
            attempt=columns["attempt"][i],
            ending=_ENDINGS[columns["ending"][i]],
            point=points[i],
            value=columns["value"][i],
            metrics={name: column[i] for name, column in metrics.items() if column[i] is not None},
            rounded=rounded[i],
            step=columns["step"][i],
            spent=Spent(
                flops=columns["flops"][i],
                executed_flops=columns["executed_flops"][i],
                device_s=columns["device_seconds"][i],
            ),
            started=columns["started"][i],
            ended=columns["ended"][i],
            worker=columns["worker"][i],
            checkpoint=columns["checkpoint"][i],
            error=columns["error"][i],
            said=columns["said"][i],
        )
        for i, record in enumerate(columns["record"])
        if record == OUTCOME
    ]


def to_json(value: object) -> str:
    """Valid JSON that `from_json` reads back to an equal value (tuples as lists, every NaN as the same NaN)."""
    text = json.dumps(value, default=_mapping)
    # The C encoder is many times faster than a walk in Python, and hardly any value needs the walk.
    if "NaN" in text or "Infinity" in text:
        text = json.dumps(_marked(value), default=_mapping, allow_nan=False)
    return text


def from_json(text: str) -> Any:
    """The value that `to_json` wrote."""
    value = json.loads(text)
    return _unmarked(value) if "NaN" in text or "Infinity" in text else value


def all_from_json(texts: Sequence[str | None]) -> list[Any]:
    """The values that `to_json` wrote, None for None; of many texts in a third of the time that each alone takes."""
    value: list[Any] = from_json(f"[{','.join('null' if text is None else text for text in texts)}]")
    return value


def _mapping(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"only plain data can be stored as JSON, but got {value!r}")


def _marked(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str) and _LOOKS_LIKE_A_NUMBER.fullmatch(value):
        return "'" + value
    if isinstance(value, Mapping):
        return {key: _marked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(item) for item in value]
    return value


def _unmarked(value: Any) -> Any:
    if isinstance(value, str) and _LOOKS_LIKE_A_NUMBER.fullmatch(value):
        return value[1:] if value.startswith("'") else float(value)
    if isinstance(value, dict):
        return {key: _unmarked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unmarked(item) for item in value]
    return value
