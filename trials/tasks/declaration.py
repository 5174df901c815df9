"""A table task as the user declares it, checked before any file is opened.

    task: {kind: table, path: cars.csv, target: price, missing: "?", split_seed: 1}

| key              | what it says                                                              | default             |
|------------------|---------------------------------------------------------------------------|---------------------|
| `kind`           | `table`                                                                   |                     |
| `path`           | a CSV (.csv, .tsv) or Parquet (.parquet, .pq) file                        |                     |
| `target`         | a column's name, or its position from 0 (negative: from the end)          | the last column     |
| `header`         | whether a CSV's first row holds names                                     | inferred            |
| `missing`        | mark(s) of a missing cell, besides empty cells, NaN, NA and null          | none                |
| `missing_target` | `refuse` rows without a target, or `drop` them: that changes the problem  | `refuse`            |
| `task`           | `classification` or `regression`                                          | inferred            |
| `test_path`      | a file of the same columns that holds the test rows                       | rows of `path`      |
| `splits`         | fractions of rows; splits not named share the rest as by default          | .4, .2, .2, .2      |
| `split_seed`     | the seed of the splits, which is not the search's                         | 0                   |
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from search_spaces.faults import unknown
from search_spaces.parameters import is_real
from trials.tasks.splitting import DEFAULT_FRACTIONS

KEYS = (
    "kind",
    "path",
    "target",
    "header",
    "missing",
    "missing_target",
    "task",
    "test_path",
    "splits",
    "split_seed",
)
SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
TASK_KINDS = ("images", "table")
KINDS = ("classification", "regression")
MISSING_TARGET = ("refuse", "drop")


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """The declaration's values; one that was absent or faulty has its default. `broken` names the faulty keys."""

    path: Path | None = None
    test_path: Path | None = None
    target: str | int = -1
    header: bool | None = None
    missing: tuple[str | float, ...] = ()
    missing_target: str = "refuse"
    task: str | None = None
    fractions: Mapping[str, float] = field(default_factory=lambda: DEFAULT_FRACTIONS)
    split_seed: int = 0
    broken: frozenset[str] = frozenset()


def parse(data: Mapping[str, object], root: Path | None) -> tuple[Declaration, list[str]]:
    """The declaration in `data`, and every fault of it. `root` is where relative paths are looked for."""
    given = {key: value for key, value in data.items() if value is not None}
    faults = [unknown("task", key, KEYS) for key in data if key not in KEYS]
    broken: set[str] = set()
    good: dict[str, object] = {}

    def found(key: str, problems: list[str]) -> None:
        faults.extend(problems)
        if problems:
            broken.add(key)
        else:
            good[key] = given[key]

    if "kind" not in given:
        found("kind", ["task.kind: is missing; a file is declared with `kind: table`."])
    elif given["kind"] != "table":
        found("kind", [unknown("task.kind", given["kind"], TASK_KINDS, "kind of task")])
    for key, (holds, rule) in _RULES.items():
        if key in given:
            found(key, [] if holds(given[key]) else [f"task.{key}: must be {rule}, but got {given[key]!r}."])
    for key, names in (("missing_target", MISSING_TARGET), ("task", KINDS)):
        if key in given:
            found(key, [] if given[key] in names else [unknown(f"task.{key}", given[key], names, "value")])
    if "path" not in given:
        found("path", ["task.path: is missing; name a CSV or Parquet file."])
    paths: dict[str, Path] = {}
    for key in [key for key in ("path", "test_path") if key in good]:
        path, problems = locate(f"task.{key}", Path(str(good[key])).expanduser(), root)
        found(key, problems)
        if path is not None:
            paths[key] = path
    if "header" in good and is_parquet(paths.get("path")):
        found("header", ["task.header: a Parquet file carries its columns' names; drop `header`."])
    fractions, problems = fractions_of(given.get("splits", {}), "test_path" if "test_path" in given else None)
    faults.extend(problems)
    marks = good.get("missing", ())
    declaration = Declaration(
        path=paths.get("path"),
        test_path=paths.get("test_path"),
        missing=tuple(marks) if isinstance(marks, list | tuple) else (marks,),  # type: ignore[arg-type]
        fractions=fractions,
        broken=frozenset(broken),
        **{key: good[key] for key in ("target", "header", "missing_target", "task", "split_seed") if key in good},  # type: ignore[arg-type]
    )
    return declaration, faults


def is_whole(value: object) -> bool:
    """Whether a value is a whole number: a switch is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_mark(value: object) -> bool:
    return isinstance(value, str) or is_real(value)


_RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "path": (lambda v: isinstance(v, str | Path) and str(v) != "", "a file's path"),
    "test_path": (lambda v: isinstance(v, str | Path) and str(v) != "", "a file's path"),
    "target": (
        lambda v: is_whole(v) or (isinstance(v, str) and v != ""),
        "a column's name or its position counted from 0",
    ),
    "header": (lambda v: isinstance(v, bool), "true or false"),
    "missing": (
        lambda v: _is_mark(v) or (isinstance(v, list | tuple) and all(_is_mark(mark) for mark in v)),
        "a mark (text or a number) or a list of marks",
    ),
    "split_seed": (
        lambda v: is_whole(v) and 0 <= v < 2**32,  # type: ignore[operator]
        "a whole number from 0 to 4294967295",
    ),
}


def is_parquet(path: Path | None) -> bool:
    """Whether a file carries its columns' names and types with it."""
    return path is not None and path.suffix.lower() in (".parquet", ".pq")


def locate(
    where: str, path: Path, root: Path | None, suffixes: Sequence[str] = SUFFIXES
) -> tuple[Path | None, list[str]]:
    """The file that a declaration names: `path` as it is, else below `root` (by default, below `CONTINUA_DATA`)."""
    if path.suffix.lower() not in suffixes:
        ends = ", ".join(suffixes)
        return None, [f"{where}: must end in one of {ends}, but got {str(path)!r}; convert or rename it."]
    if root is None and os.environ.get("CONTINUA_DATA"):
        root = Path(os.environ["CONTINUA_DATA"])
    places = [path] if root is None or path.is_absolute() else [path, root / path]
    for place in places:
        try:
            if place.is_file():
                return place, []
            if place.is_dir():
                return None, [f"{where}: must be a file, but {str(place)!r} is a directory; name a file in it."]
        except OSError as error:
            return None, [f"{where}: {str(place)!r} cannot be looked at: {error.strerror}; mend its permissions."]
    looked = " or ".join(repr(str(place.absolute())) for place in places)
    way_out = "give an absolute path, or set CONTINUA_DATA to the directory of your data"
    return None, [f"{where}: must be a file that exists, but there is no {looked}; {way_out}."]


def fractions_of(splits: object, test_file: str | None) -> tuple[dict[str, float], list[str]]:
    """The fractions of the rows of the main file, summing to 1; with a test file there is no `test` among them.
    `test_file` is the key that names it, where the declaration does."""
    names = [name for name in DEFAULT_FRACTIONS if not (test_file and name == "test")]
    total = sum(DEFAULT_FRACTIONS[name] for name in names)
    default = {name: DEFAULT_FRACTIONS[name] / total for name in names}
    if not isinstance(splits, Mapping):
        return default, [f"task.splits: must be a mapping of fractions such as {{train: 0.5}}, but got {splits!r}."]
    given = {key: value for key, value in splits.items() if value is not None}
    faults = []
    for key, value in given.items():
        if test_file and key == "test":
            faults.append(f"task.splits.test: the test rows come from `{test_file}`; drop one of the two.")
        elif key not in names:
            faults.append(unknown("task.splits", key, names, "split"))
        elif not is_real(value) or not 0 < value < 1:
            faults.append(f"task.splits.{key}: must be a fraction between 0 and 1, but got {value!r}.")
    if faults:
        return default, faults
    rest = [name for name in names if name not in given]
    left = 1.0 - math.fsum(given.values())
    if left < -1e-9 or (rest and left <= 1e-9):
        needs = f"leave some for {', '.join(rest)}" if rest else "sum to 1"
        return default, [f"task.splits: the fractions must {needs}, but those given sum to {1.0 - left:g}."]
    if not rest and not test_file and left > 1e-9:
        return default, [f"task.splits: all four fractions must sum to 1, but got {1.0 - left:g}; raise or drop one."]
    share = left / sum(default[name] for name in rest) if rest else 0.0
    filled = {name: float(given[name]) if name in given else default[name] * share for name in names}
    total = math.fsum(filled.values())
    return {name: value / total for name, value in filled.items()}, []
