"""Reading a CSV or Parquet file into columns of text or of numbers, nothing inferred beyond the header.

    >>> table, faults = read("task.path", Path("cars.csv"), header=None, target="price", marks=("?",))
    >>> table.names
    ('make', 'doors', 'price')

A CSV's cells stay text, trimmed of blanks: whether a column holds numbers is decided on the train rows (`encode.py`),
so that no other row can change how the train rows are seen. A missing cell is a null.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from search_spaces.faults import unknown
from trials.tasks.declaration import is_parquet

Array: TypeAlias = Any  # a pyarrow array, of strings or of float64: pyarrow has no types of its own

BLANK = ("", "nan", "NaN", "NAN", "NA", "N/A", "null", "NULL")
_NUMBER = r"^[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[iI][nN][fF]([iI][nN][iI][tT][yY])?)$"
_BROKEN = (pa.ArrowException, OSError, UnicodeError, csv.Error)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns of equal length. `names` are unique; `repeated` are names that the file gives more than once, `unnamed`
    the made-up names of columns to which its header gives none."""

    names: tuple[str, ...]
    columns: tuple[Array, ...]
    header: bool = True
    repeated: frozenset[str] = frozenset()
    unnamed: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    def find(self, target: str | int) -> tuple[int | None, list[str]]:
        """The position of the target column."""
        if isinstance(target, int):
            if -len(self.names) <= target < len(self.names):
                return target % len(self.names), []
            return None, [
                f"task.target: must be a position from {-len(self.names)} to {len(self.names) - 1}, for the table has "
                f"{len(self.names)} columns, but got {target}."
            ]
        if target in self.repeated:
            return None, [f"task.target: {target!r} names more than one column; give the column's position instead."]
        if target in self.names:
            return self.names.index(target), []
        hint = "" if self.header else " The first row was read as data; say `header: true` if it holds names."
        return None, [unknown("task.target", target, self.names, "column") + hint]

    def followed_by(self, other: Table) -> tuple[Table | None, list[str]]:
        """This table with the rows of `other`, whose columns must be the same, if perhaps in another order."""
        order = list(range(len(other.names)))
        if self.header and other.header:
            if Counter(self.names) != Counter(other.names):
                lacks, adds = sorted({*self.names} - {*other.names}), sorted({*other.names} - {*self.names})
                return None, [
                    "task.test_path: must have the columns of `path`, but "
                    f"lacks {', '.join(lacks) or 'none'} and adds {', '.join(adds) or 'none'}."
                ]
            order = [other.names.index(name) for name in self.names]
        elif len(self.names) != len(other.names):
            return None, [
                f"task.test_path: must have as many columns as `path` ({len(self.names)}), but has {len(other.names)}."
            ]
        columns = tuple(_joined(mine, other.columns[i]) for mine, i in zip(self.columns, order, strict=True))
        return replace(self, columns=columns), []


def read(
    where: str, path: Path, *, header: bool | None, target: str | int, marks: tuple[str | float, ...]
) -> tuple[Table | None, list[str]]:
    """The table in a file. `header=None` infers whether a CSV's first row holds names; `marks` are missing cells."""
    try:
        table = _read_parquet(path) if is_parquet(path) else _read_csv(path, header, target, marks)
    except _BROKEN as error:
        reason = " ".join(str(error).split())
        return None, [f"{where}: {str(path)!r} cannot be read: {reason[:300]}"]
    if table.rows == 0:
        return None, [f"{where}: needs rows of data, but {str(path)!r} has none."]
    return replace(table, columns=tuple(_without_marks(column, marks) for column in table.columns)), []


def numbers(column: Array) -> tuple[np.ndarray, np.ndarray]:
    """A column's values as float64 (NaN where missing or no number) and where it holds text that is no number."""
    if pa.types.is_float64(column.type):
        return column.to_numpy(zero_copy_only=False), np.zeros(len(column), bool)
    fits = pc.match_substring_regex(column, _NUMBER).fill_null(False)
    # not every pyarrow we allow reads a leading plus
    digits = pc.if_else(fits, pc.replace_substring_regex(column, r"^\+", ""), pa.scalar(None, pa.string()))
    wrong = pc.and_(pc.invert(fits), column.is_valid())
    return pc.cast(digits, pa.float64()).to_numpy(zero_copy_only=False), wrong.to_numpy(zero_copy_only=False)


def texts(column: Array) -> np.ndarray:
    """A column's cells as an object array of text, None where missing."""
    return np.array(pc.cast(column, pa.string()).to_pylist(), dtype=object)


def _read_parquet(path: Path) -> Table:
    with pa.parquet.ParquetFile(path) as file:
        data = file.read()
    plain = [_plain(column) for column in data.columns]
    names, repeated, unnamed = _names(["" if name.startswith("__index_level_") else name for name in data.column_names])
    foreign = [name for name, column in zip(names, plain, strict=True) if column is None]
    notes = (f"Columns that hold neither numbers, text nor times count as empty: {', '.join(foreign)}.",)
    # they keep their places, by which a target may be named
    columns = tuple(pa.nulls(data.num_rows, pa.float64()) if column is None else column for column in plain)
    return Table(names=names, columns=columns, repeated=repeated, unnamed=unnamed, notes=notes if foreign else ())


def _plain(column: Any) -> Array | None:
    """A Parquet column as strings or float64; None for nested and binary ones."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        column = column.cast(pa.string())
    elif pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        column = column.cast(pa.int32() if kind.bit_width == 32 else pa.int64()).cast(pa.float64(), safe=False)
    elif pa.types.is_boolean(kind):
        column = column.cast(pa.int8()).cast(pa.float64())
    elif pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        column = column.cast(pa.float64(), safe=False)
    else:
        return None
    return column.combine_chunks()


def _read_csv(path: Path, header: bool | None, target: str | int, marks: Iterable[str | float]) -> Table:
    first, delimiter = _first_row(path)
    if not first:
        return Table(names=(), columns=())
    keys = [f"f{i}" for i in range(len(first))]
    data = pa.csv.read_csv(
        path,
        read_options=pa.csv.ReadOptions(autogenerate_column_names=True, use_threads=False),
        parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types={key: pa.string() for key in keys}, strings_can_be_null=False
        ),
    )
    columns = [pc.utf8_trim_whitespace(column.combine_chunks()) for column in data.columns]
    top = [str(column[0]) for column in columns]
    notes = []
    if delimiter != ",":
        notes.append(f"The cells are taken to be separated by {delimiter!r}, for the first row holds no comma.")
    if header is None:
        header = _looks_like_names(top, [_without_marks(column[1:], marks) for column in columns], target)
        what = "the columns' names" if header else "data"
        notes.append(f"The first row is taken for {what}; say `header: {str(not header).lower()}` if it is not.")
    names, repeated, unnamed = _names(top if header else [""] * len(top))
    return Table(
        names=names,
        columns=tuple(column[1:] if header else column for column in columns),
        header=header,
        repeated=repeated,
        unnamed=unnamed if header else frozenset(),
        notes=tuple(notes),
    )


def _first_row(path: Path) -> tuple[list[str], str]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        line = next((line for line in file if line.strip()), "")
        file.seek(0)
        candidates = "\t,;" if path.suffix.lower() == ".tsv" else ",;\t"
        delimiter = next((mark for mark in candidates if mark in line), candidates[0])
        return next((row for row in csv.reader(file, delimiter=delimiter) if row), []), delimiter


def _looks_like_names(top: list[str], below: list[Array], target: str | int) -> bool:
    """Whether the first row holds names: it says the target's, or it has no number while some column below it has
    nothing else; in a table of text alone, if none of its cells stands again in its column."""
    if isinstance(target, str) and target in top:
        return True
    if np.isfinite(numbers(pa.array(top))[0]).any():
        return False
    if not len(below[0]):
        return True
    if any(column.null_count < len(column) and not numbers(column)[1].any() for column in below):
        return True
    return len({*top}) == len(top) and not any(
        pc.index(column, cell).as_py() >= 0 for cell, column in zip(top, below, strict=True)
    )


def _names(given: list[str]) -> tuple[tuple[str, ...], frozenset[str], frozenset[str]]:
    """Unique names, those given more than once, and those made up for columns without one."""
    repeated = frozenset(name for name, count in Counter(given).items() if name and count > 1)
    taken = {*given}
    names: list[str] = []
    unnamed: set[str] = set()
    for i, name in enumerate(given):
        unique = name or f"column_{i}"
        while unique in names or (unique != name and unique in taken):
            unique += f".{i}"
        names.append(unique)
        if not name:
            unnamed.add(unique)
    return tuple(names), repeated, frozenset(unnamed)


def _without_marks(column: Array, marks: Iterable[str | float]) -> Array:
    """The column with nulls for missing cells. A mark that is a number stands for every cell equal to it."""
    words = [str(mark).strip() for mark in marks]
    values = numbers(pa.array(words, pa.string()))[0]
    cells, _ = numbers(column)
    gone = pa.array(np.isin(cells, values[~np.isnan(values)]))
    if pa.types.is_float64(column.type):
        gone = pc.or_(gone, pa.array(np.isnan(cells)))
    else:
        column = pc.utf8_trim_whitespace(column)
        gone = pc.or_(gone, pc.is_in(column, value_set=pa.array([*BLANK, *words])))
    return pc.if_else(gone, pa.scalar(None, column.type), column)


def _joined(a: Array, b: Array) -> Array:
    if a.type != b.type:
        a, b = pc.cast(a, pa.string()), pc.cast(b, pa.string())
    return pa.concat_arrays([a, b])
