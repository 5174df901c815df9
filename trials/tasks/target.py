"""The target column: whether it holds classes or quantities, and what makes it unfit to learn.

    >>> target, faults = read("price", column, table_rows=200, task=None, drop=False)
    >>> target.kind, target.notes
    ('regression', ("The target 'price' is taken for a quantity (186 different values); say `task: ...` to override.",))

Where the task is not told, text is classification, and so are whole numbers of which there are two, or at most 20 with
five rows each on average; anything else is regression. Rows without a target (missing, NaN, infinite) are refused
unless the user asks to drop them, for dropping them changes the problem.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trials.tasks.encode import constant, finite, listed
from trials.tasks.table import Array, numbers, texts

MOST_CLASSES = 20
ROWS_A_CLASS = 5


@dataclass(frozen=True, kw_only=True)
class Target:
    """`y` holds int64 codes of `classes`, or float64 quantities; `present` says which rows have one at all."""

    kind: str
    y: np.ndarray
    present: np.ndarray
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read(name: str, column: Array, *, table_rows: int, task: str | None, drop: bool) -> tuple[Target | None, list[str]]:
    """The target in `column`, whose first `table_rows` cells are of `path` and whose others are of `test_path`."""
    values, wrong = numbers(column)
    own = np.arange(len(column)) < table_rows
    textual = bool(wrong[own].any())
    present = finite(values) | wrong
    if textual:
        present = column.is_valid().to_numpy(zero_copy_only=False)
    if not present[own].any():
        return None, [f"task.target: {name!r} holds no value at all; name another column."]
    faults = []
    notes = []
    if missing := int((~present).sum()):
        if drop:
            notes.append(f"{missing} of {len(column)} rows have no target and are dropped.")
        else:
            faults.append(
                f"task.target: every row needs a target, but {missing} of {len(column)} rows of {name!r} are missing, "
                "NaN or infinite; repair them, or say `missing_target: drop`."
            )
    if not textual and wrong.any():
        example = str(column[int(np.flatnonzero(wrong)[0])])
        return None, [*faults, f"task.test_path: {name!r} must hold numbers as in `path`, but got {example!r}."]
    kind = task or _infer(values[own & present], textual)
    if task is None:
        other = "regression" if kind == "classification" else "classification"
        what = "classes" if kind == "classification" else "a quantity"
        different = len({*texts(column)[own & present]})
        notes.append(
            f"The target {name!r} is taken for {what} ({different} different values); say `task: {other}` to override."
        )
    if kind == "regression":
        target, found = _quantities(name, column, values, own & present, wrong)
    else:
        target, found = _classes(name, column, values, own, present, textual)
    faults += found
    if target is None or faults:
        return None, faults
    y, classes, more = target
    return Target(kind=kind, y=y, present=present, classes=classes, notes=(*notes, *more)), []


_Read = tuple[np.ndarray, tuple[str, ...], list[str]]


def _infer(values: np.ndarray, textual: bool) -> str:
    if textual:
        return "classification"
    different = np.unique(values)
    whole = bool((different == np.floor(different)).all())
    few = len(different) == 2 or len(different) <= min(MOST_CLASSES, len(values) / ROWS_A_CLASS)
    return "classification" if whole and few else "regression"


def _quantities(
    name: str, column: Array, values: np.ndarray, known: np.ndarray, wrong: np.ndarray
) -> tuple[_Read | None, list[str]]:
    if wrong.any():
        example = str(column[int(np.flatnonzero(wrong)[0])])
        return None, [
            f"task.target: regression needs numbers, but {name!r} holds text such as {example!r}; "
            "say `task: classification`, or list it under `missing`."
        ]
    if constant(values[known]):
        return None, [f"task.target: must vary, but {name!r} is {values[known][0]:g} in every row; name another."]
    return (values, (), []), []


def _classes(
    name: str, column: Array, values: np.ndarray, own: np.ndarray, present: np.ndarray, textual: bool
) -> tuple[_Read | None, list[str]]:
    notes: list[str] = []
    labels = texts(column) if textual else np.array([_spelt(value) for value in values], dtype=object)
    mine = {*labels[own & present]}
    foreign = {*labels[~own & present]} - mine
    # the UCI's own test files of adult end their labels in a full stop
    if foreign and all(label.rstrip(".") in mine for label in foreign):
        labels = np.array([label.rstrip(".") if label in foreign else label for label in labels], dtype=object)
        notes.append(f"Labels of the test file are read without their full stop: {listed(sorted(foreign))}.")
        foreign = set()
    faults = []
    if foreign:
        faults.append(
            f"task.test_path: every class must be among those of `path` ({listed(sorted(mine))}), "
            f"but {name!r} also holds {listed(sorted(foreign))}."
        )
    rows = int((own & present).sum())
    if len(mine) == 1:
        faults.append(f"task.target: needs two classes or more, but {name!r} is {mine.pop()!r} in every row.")
    elif 2 * len(mine) > rows:
        faults.append(
            f"task.target: {name!r} has {len(mine)} classes in {rows} rows, too few rows to learn them; "
            "say `task: regression`, or name another column."
        )
    if faults:
        return None, faults
    classes = sorted(mine) if textual else sorted(mine, key=float)
    codes = {label: code for code, label in enumerate(classes)}
    y = np.array([codes.get(label, -1) for label in labels], dtype=np.int64)
    return (y, tuple(classes), notes), []


def _spelt(value: float) -> str:
    return str(int(value)) if np.isfinite(value) and value == int(value) else repr(float(value))
