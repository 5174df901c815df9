"""Columns of a table as the float32 rows of a network: fitted on the train rows, applied to all.

    >>> encoded, faults = encode(table, range(3), train)
    >>> encoded.features
    ('doors', 'make=alfa', 'make=saab', 'make=(missing)')

A column is one of numbers where every train cell is a number: gaps get the train rows' median, then it is standardised
by the train rows' mean and standard deviation. Any other column is one of text: each value of the train rows gets a
column of zeros and ones, the most frequent ones where there are more than `MAX_CATEGORIES`, and the rest share one; a
gap is a value too. Dropped are columns that are constant on the train rows, text in which nearly every value is
different, and unnamed row numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from trials.tasks.table import Array, Table, numbers, texts
from trials.tasks.task import FARTHEST

MAX_CATEGORIES = 64
NEARLY_ALL = 0.9  # of a text column's values are different: it names the row, and says nothing of others
LARGEST = float(np.finfo(np.float32).max)
SMALLEST = 1e-150  # a spread below has a variance below what float64 can hold
MISSING = "(missing)"


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Every row of the table, [rows, features] float32, with the columns' names and what was done to get there."""

    x: np.ndarray
    features: tuple[str, ...]
    notes: tuple[str, ...]


class _Log:
    """What happened to which column, told as one sentence each."""

    def __init__(self) -> None:
        self.columns: dict[str, list[str]] = {}

    def add(self, sentence: str, column: str) -> None:
        self.columns.setdefault(sentence, []).append(column)

    def notes(self) -> tuple[str, ...]:
        return tuple(f"{sentence}: {listed(columns)}." for sentence, columns in self.columns.items())


def encode(table: Table, positions: Iterable[int], train: np.ndarray) -> tuple[Encoded, list[str]]:
    """The columns at `positions`, fitted on the rows `train`. The one fault there can be: no column is usable."""
    log = _Log()
    quantities: dict[str, np.ndarray] = {}
    categories: dict[str, np.ndarray] = {}
    for name, column in ((table.names[i], table.columns[i]) for i in positions):
        values = _quantity(name, column, train, log)
        if values is None:
            _take_category(name, texts(column), train, categories, log)
        elif name in table.unnamed and len(train) > 1 and np.ptp(values[train] - train) == 0:
            log.add("Unnamed columns that count the rows are dropped", name)
        else:
            _take_quantity(name, values, train, quantities, log)
    blocks: list[np.ndarray] = []
    features: list[str] = []
    if quantities:
        blocks.append(_standardised(np.stack(list(quantities.values()), axis=1), train))
        features += quantities
    if categories:
        block, names = _indicators(list(categories), np.stack(list(categories.values()), axis=1), train)
        blocks.append(block)
        features += names
    x = np.concatenate(blocks, axis=1) if blocks else np.empty((table.rows, 0), np.float32)
    faults = [] if blocks else [_no_column(log.notes())]
    return Encoded(x=x, features=tuple(features), notes=log.notes()), faults


def listed(items: Sequence[object], most: int = 8) -> str:
    """Some names, and how many more there are."""
    shown = ", ".join(str(item) for item in items[:most])
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")


def finite(values: np.ndarray) -> np.ndarray:
    """Where float32 can hold a value; elsewhere it is NaN, infinite or too large."""
    usable: np.ndarray = np.abs(values) <= LARGEST
    return usable


def constant(values: np.ndarray) -> bool:
    """Whether float64 cannot tell the values' standard deviation from zero."""
    spread = float(values.max()) - float(values.min())
    return bool(spread <= 10 * np.finfo(np.float64).eps * float(np.abs(values).max()) or spread < SMALLEST)


def _no_column(notes: Sequence[str]) -> str:
    why = " ".join(notes) or "there is none besides the target."
    return f"task.path: needs at least one usable column besides the target, but got none. {why}"


def _quantity(name: str, column: Array, train: np.ndarray, log: _Log) -> np.ndarray | None:
    """A column's numbers, NaN for gaps; None where a train cell is text."""
    values, wrong = numbers(column)
    if wrong[train].any():
        if len(words := {str(column[int(i)]) for i in train[wrong[train]]}) == 1 and wrong[train].mean() < 0.5:
            log.add(
                f"Columns of numbers but for {words.pop()!r} are taken for text; say `missing` if it marks a gap", name
            )
        return None
    if wrong.any():
        log.add("Text outside the train rows of columns that hold numbers there counts as missing", name)
    usable = finite(values)
    if (~usable & ~np.isnan(values)).any():
        log.add("Infinite numbers count as missing", name)
    return np.where(usable, values, np.nan)


def _take_quantity(name: str, values: np.ndarray, train: np.ndarray, into: dict[str, np.ndarray], log: _Log) -> None:
    there = values[train][~np.isnan(values[train])]
    if len(there) == 0:
        log.add("Columns without a value on the train rows are dropped", name)
    elif constant(there):
        log.add("Columns that are constant on the train rows are dropped", name)
    else:
        if np.isnan(values).any():
            log.add("Gaps are filled with the median of the train rows", f"{name} ({np.isnan(values).sum()})")
        into[name] = values


def _take_category(name: str, values: np.ndarray, train: np.ndarray, into: dict[str, np.ndarray], log: _Log) -> None:
    there = [value for value in values[train] if value is not None]
    different = len({*there})
    values_and_gap = different + (len(there) < len(train))
    if values_and_gap < 2:
        log.add("Columns that are constant on the train rows are dropped", name)
    elif different > 2 and different > NEARLY_ALL * len(there):
        log.add("Text columns in which nearly every value is different are dropped", name)
    else:
        if values_and_gap > MAX_CATEGORIES:
            log.add(f"Text columns keep their {MAX_CATEGORIES - 1} most frequent values, the others share one", name)
        gaps = np.array([value is None for value in values])
        if gaps.any():
            log.add("Gaps in text columns are a value of their own", f"{name} ({gaps.sum()})")
        into[name] = np.where(gaps, MISSING, values)


def _standardised(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    # scikit-learn takes a second to import, and whoever only asks which tasks there are shall not wait for it
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(SimpleImputer(strategy="median"), StandardScaler()).fit(values[train])
    scaled: np.ndarray = np.clip(pipeline.transform(values), -FARTHEST, FARTHEST).astype(np.float32)
    return scaled


def _indicators(names: list[str], values: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, list[str]]:
    from sklearn.preprocessing import OneHotEncoder

    encoder = OneHotEncoder(
        handle_unknown="infrequent_if_exist",
        max_categories=MAX_CATEGORIES,
        sparse_output=False,
        dtype=np.float32,
        feature_name_combiner=lambda name, value: f"{name}={'(other)' if value == 'infrequent_sklearn' else value}",
    ).fit(values[train])
    return encoder.transform(values), [str(name) for name in encoder.get_feature_names_out(names)]
