"""Which tasks there are: five classic tables by name, and any table of the user's by a mapping or a file's name.

>>> load("uci/iris").kind
'classification'
>>> load({"kind": "table", "path": "cars.csv", "target": "price", "missing": "?"}).kind
'regression'
>>> load("cars.csv").notes   # everything inferred
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from search_spaces.faults import Invalid, unknown
from trials.tasks import bundled, tables
from trials.tasks.declaration import SUFFIXES
from trials.tasks.task import Task


def known() -> tuple[str, ...]:
    """The names that `load` accepts as text."""
    return tuple(sorted(bundled.LOADERS))


def load(spec: str | Mapping[str, object], *, data: Path | None = None) -> Task:
    """The task that `spec` names or declares (the keys of a declaration: `trials/tasks/declaration.py`).

    A relative path is looked for in the working directory first, then in `data`; where `data` is not given, in the
    directory that the environment variable `CONTINUA_DATA` names.

    Raises:
        Invalid: with every fault of the declaration and of its files that can be known together.
    """
    if isinstance(spec, str) and spec in bundled.LOADERS:
        return bundled.load(spec)
    if isinstance(spec, str) and spec.lower().endswith(SUFFIXES):
        spec = {"kind": "table", "path": spec}
    if isinstance(spec, Mapping):
        return tables.load(spec, data)
    if isinstance(spec, str):
        raise Invalid([unknown("task", spec, [*known(), "a path that ends in .csv, .tsv or .parquet"], "task")])
    raise Invalid(
        [f"task: must be a name such as 'uci/digits' or a mapping {{kind: table, path: FILE}}, but got {spec!r}."]
    )
