"""A task from a user's table file: declared, read, split, then encoded, with all faults of a stage told together.

>>> load({"kind": "table", "path": "cars.csv", "target": "price", "missing": "?"}, None).kind
'regression'
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from search_spaces.faults import Invalid
from trials.tasks import target as targets
from trials.tasks.declaration import Declaration, is_parquet, parse
from trials.tasks.encode import constant, encode, listed
from trials.tasks.splitting import deal
from trials.tasks.table import Table, read
from trials.tasks.target import Target
from trials.tasks.task import Task, assemble


def load(data: Mapping[str, object], root: Path | None) -> Task:
    """The declared task; relative paths are looked for in the working directory, then in `root`.

    Raises:
        Invalid: with the faults of the declaration, of the files, and of the target, as far as each can be known.
    """
    declared, faults = parse(data, root)
    table, own_rows, found = _read(declared)
    faults += found
    if table is None:
        raise Invalid(faults)
    target, position, found = _target(declared, table, own_rows)
    faults += found
    inputs = [i for i in range(len(table.names)) if i != position]
    parts: dict[str, np.ndarray] = {}
    if target is not None and not faults:
        parts = _split(declared, target, own_rows)
        faults += _part_faults(parts, target)
    if faults or target is None or declared.path is None:
        _, found = encode(table, inputs, np.arange(own_rows))
        raise Invalid(faults + found)
    encoded, faults = encode(table, inputs, parts["train"])
    if faults:
        raise Invalid(faults)
    return assemble(
        name=declared.path.stem,
        kind=target.kind,
        x=encoded.x,
        y=target.y,
        parts=parts,
        features=encoded.features,
        classes=target.classes,
        notes=(*table.notes, *target.notes, *_rare(target, own_rows, len(declared.fractions)), *encoded.notes),
    )


def _read(declared: Declaration) -> tuple[Table | None, int, list[str]]:
    """The rows of `path` and, after them, those of `test_path`; how many the first are."""
    table = test = None
    faults: list[str] = []
    header = declared.header
    if declared.path is not None:
        table, faults = read("task.path", declared.path, header=header, target=declared.target, marks=declared.missing)
        if table is not None and header is None and not is_parquet(declared.path):
            header = table.header
    if declared.test_path is not None:
        test, found = read(
            "task.test_path", declared.test_path, header=header, target=declared.target, marks=declared.missing
        )
        faults += found
    if table is None or test is None:
        return table, table.rows if table else 0, faults
    whole, found = table.followed_by(test)
    return whole or table, table.rows, faults + found


def _target(declared: Declaration, table: Table, own_rows: int) -> tuple[Target | None, int | None, list[str]]:
    if declared.broken & {"target", "header"}:
        return None, None, []
    position, faults = table.find(declared.target)
    if position is None or declared.broken & {"task", "missing", "missing_target"}:
        return None, position, faults
    target, faults = targets.read(
        table.names[position],
        table.columns[position],
        table_rows=own_rows,
        task=declared.task,
        drop=declared.missing_target == "drop",
    )
    return target, position, faults


def _split(declared: Declaration, target: Target, own_rows: int) -> dict[str, np.ndarray]:
    """Each split's row numbers in the whole table."""
    rows = np.flatnonzero(target.present[:own_rows])
    groups = target.y[rows] if target.kind == "classification" else np.zeros(len(rows), np.int64)
    parts = {name: rows[places] for name, places in deal(groups, declared.fractions, declared.split_seed).items()}
    if "test" not in parts:
        parts["test"] = own_rows + np.flatnonzero(target.present[own_rows:])
    return parts


def _part_faults(parts: Mapping[str, np.ndarray], target: Target) -> list[str]:
    rows = sum(len(part) for part in parts.values())
    faults = [
        f"task.splits.{name}: every split needs a row or more, but of {rows} rows it gets none; "
        "bring more rows, or raise its fraction."
        for name, part in parts.items()
        if not len(part)
    ]
    if not faults and target.kind == "regression" and constant(target.y[parts["train"]]):
        faults.append(
            "task.target: must vary on the train rows, but is the same in all of them; try another `split_seed`."
        )
    return faults


def _rare(target: Target, own_rows: int, splits: int) -> list[str]:
    if target.kind == "regression":
        return []
    counts = np.bincount(target.y[:own_rows][target.present[:own_rows]])
    rare = [f"{name} ({count})" for name, count in zip(target.classes, counts, strict=True) if count < splits]
    return [f"Classes with too few rows for every split (train gets the first): {listed(rare)}."] if rare else []
