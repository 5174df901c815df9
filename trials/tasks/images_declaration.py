"""An images task as the user declares it, checked before any file is opened.

    task: {kind: images, train: mnist/train.parquet, test: mnist/test.parquet, augment: {shift: 2}}

| key          | what it says                                                                  | default          |
|--------------|-------------------------------------------------------------------------------|------------------|
| `kind`       | `images`                                                                      |                  |
| `train`      | a Parquet file (.parquet, .pq), one image a row                               |                  |
| `test`       | a file of the same columns that holds the test rows                           | rows of `train`  |
| `image`      | the column of images: `struct<bytes: binary, path: string>`, or bytes alone   | `image`          |
| `label`      | the column of classes: whole numbers or text                                  | `label`          |
| `rows`       | at most so many rows of each file, chosen by `split_seed`                     | all              |
| `augment`    | `{flip: true, shift: 2}`: how train images vary from step to step             | not at all       |
| `splits`     | fractions of the rows of `train`; splits not named share the rest             | .4, .2, .2, .2   |
| `split_seed` | the seed of the splits, which is not the search's                             | 0                |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from search_spaces.faults import unknown
from trials.tasks.declaration import TASK_KINDS, fractions_of, is_whole, locate
from trials.tasks.splitting import DEFAULT_FRACTIONS
from trials.tasks.task import Augment

KEYS = ("kind", "train", "test", "image", "label", "rows", "augment", "splits", "split_seed")
SUFFIXES = (".parquet", ".pq")
AUGMENT_KEYS = ("flip", "shift")


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """The declaration's values; a file that is absent or faulty is None, and so is the name of a column that is faulty;
    anything else faulty has its default."""

    train: Path | None = None
    test: Path | None = None
    image: str | None = "image"
    label: str | None = "label"
    rows: int | None = None
    augment: Augment = field(default_factory=Augment)
    fractions: Mapping[str, float] = field(default_factory=lambda: DEFAULT_FRACTIONS)
    split_seed: int = 0


def parse(data: Mapping[str, object], root: Path | None) -> tuple[Declaration, list[str]]:
    """The declaration in `data`, and every fault of it. `root` is where relative paths are looked for."""
    given = {key: value for key, value in data.items() if value is not None}
    faults = [unknown("task", key, KEYS) for key in data if key not in KEYS]
    if "kind" not in given:
        faults.append("task.kind: is missing; images are declared with `kind: images`.")
    elif given["kind"] != "images":
        faults.append(unknown("task.kind", given["kind"], TASK_KINDS, "kind of task"))
    good: dict[str, object] = {}
    for key, (holds, rule) in _RULES.items():
        if key not in given:
            continue
        if holds(given[key]):
            good[key] = given[key]
        else:
            faults.append(f"task.{key}: must be {rule}, but got {given[key]!r}.")
    if "train" not in given:
        faults.append("task.train: is missing; name a Parquet file of images.")
    paths: dict[str, Path | None] = {}
    for key in [key for key in ("train", "test") if key in good]:
        paths[key], found = locate(f"task.{key}", Path(str(good[key])).expanduser(), root, SUFFIXES)
        faults += found
    augment, found = _augment(given.get("augment", {}))
    fractions, more = fractions_of(given.get("splits", {}), "test" if "test" in given else None)
    for key in [key for key in ("image", "label") if key in given and key not in good]:
        good[key] = None
    return Declaration(
        train=paths.get("train"),
        test=paths.get("test"),
        augment=augment,
        fractions=fractions,
        **{key: good[key] for key in ("image", "label", "rows", "split_seed") if key in good},  # type: ignore[arg-type]
    ), faults + found + more


def _augment(data: object) -> tuple[Augment, list[str]]:
    if not isinstance(data, Mapping):
        return Augment(), [f"task.augment: must be a mapping such as {{flip: true, shift: 2}}, but got {data!r}."]
    given = {key: value for key, value in data.items() if value is not None}
    faults = [unknown("task.augment", key, AUGMENT_KEYS) for key in data if key not in AUGMENT_KEYS]
    flip, shift = given.get("flip", False), given.get("shift", 0)
    if not isinstance(flip, bool):
        faults.append(f"task.augment.flip: must be true or false, but got {flip!r}.")
    if not is_whole(shift) or shift < 0:
        faults.append(f"task.augment.shift: must be a whole number of pixels, at least 0, but got {shift!r}.")
    return (Augment() if faults else Augment(flip=flip, shift=shift)), faults


def _is_path(value: object) -> bool:
    return isinstance(value, str | Path) and str(value) != ""


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


_RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "train": (_is_path, "a file's path"),
    "test": (_is_path, "a file's path"),
    "image": (_is_name, "a column's name"),
    "label": (_is_name, "a column's name"),
    "rows": (lambda v: is_whole(v) and v >= 1, "a whole number of at least 1"),  # type: ignore[operator]
    "split_seed": (
        lambda v: is_whole(v) and 0 <= v < 2**32,  # type: ignore[operator]
        "a whole number from 0 to 4294967295",
    ),
}
