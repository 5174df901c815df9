"""Which tasks there are: five classic tables by name, and any table or images of the user's own.

>>> load("uci/iris").kind
'classification'
>>> load({"kind": "table", "path": "cars.csv", "target": "price", "missing": "?"}).kind
'regression'
>>> load("cars.csv").notes   # everything inferred
>>> load({"kind": "images", "train": "mnist/train.parquet", "test": "mnist/test.parquet"}).shape
(1, 28, 28)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from search_spaces.faults import Invalid, unknown
from trials.tasks import bundled, images, tables
from trials.tasks.declaration import KINDS, SUFFIXES
from trials.tasks.task import Task

_WAYS = "a name such as 'uci/digits', or a mapping {kind: table, path: FILE} or {kind: images, train: FILE}"


def known() -> tuple[str, ...]:
    """The names that `load` accepts as text."""
    return tuple(sorted(bundled.LOADERS))


def load(spec: str | Mapping[str, object], *, data: Path | None = None) -> Task:
    """The task that `spec` names or declares (the keys of a declaration: `trials/tasks/declaration.py`,
    `trials/tasks/images_declaration.py`).

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
        return images.load(spec, data) if _of_images(spec) else tables.load(spec, data)
    if isinstance(spec, str):
        raise Invalid([unknown("task", spec, [*known(), "a path that ends in .csv, .tsv or .parquet"], "task")])
    raise Invalid([f"task: must be {_WAYS}, but got {spec!r}."])


def kind_of(spec: str | Mapping[str, object]) -> str | None:
    """The kind of a task where its name or declaration says it, without its data; None where only they can."""
    if isinstance(spec, str):
        return bundled.LOADERS[spec][1] if spec in bundled.LOADERS else None
    if _of_images(spec):
        return "classification"
    return str(spec["task"]) if spec.get("task") in KINDS else None


def _of_images(spec: Mapping[str, object]) -> bool:
    return spec.get("kind") == "images" or ("train" in spec and spec.get("kind") != "table")
