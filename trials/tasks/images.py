"""A task of labelled images, decoded once: declared, read, split, and measured for its mean and spread.

    >>> task = load({"kind": "images", "train": "mnist/train.parquet", "test": "mnist/test.parquet"}, None)
    >>> task.shape, task.train.x.shape, task.train.x.dtype
    ((1, 28, 28), (30000, 784), dtype('uint8'))

Pixels stay bytes, channel by channel; `trials.pixels` makes numbers of them where they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from search_spaces.faults import Invalid
from trials.tasks.encode import listed
from trials.tasks.image_files import Pixels, Source, decode, read
from trials.tasks.images_declaration import Declaration, parse
from trials.tasks.splitting import deal
from trials.tasks.task import Split, Task

_LEVELS = np.arange(256, dtype=np.float64)
_PIECE = 4096  # rows counted at a time: counting needs eight times their bytes


def load(data: Mapping[str, object], root: Path | None) -> Task:
    """The declared task; relative paths are looked for in the working directory, then in `root`.

    Raises:
        Invalid: with the faults of the declaration, of the files, their labels and their images, as far as each can be
            known.
    """
    declared, faults = parse(data, root)
    train, test, found = _sources(declared)
    faults += found
    pixels = test_pixels = None
    rows = np.empty(0, np.int64)
    if train is not None:
        rows = _chosen(train, declared)
        pixels, found = decode(train, rows) if train.image else (None, [])
        faults += found
    test_rows = np.empty(0, np.int64)
    if test is not None:
        test_rows = _chosen(test, declared)
        test_pixels, found = decode(test, test_rows, pixels.shape if pixels else None) if test.image else (None, [])
        faults += found
    parts: dict[str, np.ndarray] = {}
    if train is not None and train.codes is not None:
        parts = deal(train.codes[rows], declared.fractions, declared.split_seed)
        faults += _part_faults(parts)
    if pixels is not None:
        faults += _augment_faults(declared, pixels)
    if faults or train is None or train.codes is None or pixels is None:
        raise Invalid(faults)
    codes = train.codes[rows]
    splits = {part: Split(x=pixels.x[places], y=codes[places]) for part, places in parts.items()}
    if test is not None and test.codes is not None and test_pixels is not None:
        splits["test"] = Split(x=test_pixels.x, y=_recoded(test, train)[test_rows])
    offset, scale = moments(splits["train"].x, pixels.shape[0])
    return Task(
        name=_name(train.path),
        kind="classification",
        outputs=len(train.classes),
        train=splits["train"],
        outer=splits["outer"],
        selection=splits["selection"],
        test=splits["test"],
        features=(),
        classes=train.classes,
        notes=_notes(train, rows, test, test_rows, splits),
        shape=pixels.shape,
        offset=offset,
        scale=scale,
        augment=declared.augment,
    )


def moments(x_RD: np.ndarray, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of bytes; a channel that never varies has 1 for the latter."""
    counts = np.zeros((channels, 256))
    for begin in range(0, len(x_RD), _PIECE):
        x_RCP = x_RD[begin : begin + _PIECE].reshape(-1, channels, x_RD.shape[1] // channels)
        for channel in range(channels):
            counts[channel] += np.bincount(x_RCP[:, channel].reshape(-1), minlength=256)
    shares = counts / counts.sum(axis=1, keepdims=True)
    means = shares @ _LEVELS
    spreads = np.sqrt((shares * (_LEVELS - means[:, None]) ** 2).sum(axis=1))
    varied = (counts > 0).sum(axis=1) > 1
    return tuple(means.tolist()), tuple(np.where(varied, spreads, 1.0).tolist())


def _sources(declared: Declaration) -> tuple[Source | None, Source | None, list[str]]:
    train = test = None
    faults: list[str] = []
    if declared.train is not None:
        train, faults = read("task.train", declared.train, image=declared.image, label=declared.label)
        if train is not None and train.codes is not None and len(train.classes) < 2:
            only = train.classes[0]
            faults.append(f"task.train: needs two classes or more, but every label is {only!r}; name another column.")
    if declared.test is not None:
        names = train.names if train else ()
        test, found = read("task.test", declared.test, image=declared.image, label=declared.label, names=names)
        faults += found
    if train is not None and test is not None and train.codes is not None and test.codes is not None:
        here = {test.classes[code] for code in np.unique(test.codes)}
        if foreign := sorted(here - {*train.classes}):
            faults.append(
                f"task.test: every class must be among those of `train` ({listed(train.classes)}), "
                f"but there is also {listed(foreign)}; relabel or drop such rows."
            )
    return train, test, faults


def _chosen(source: Source, declared: Declaration) -> np.ndarray:
    """The rows of a file that are used, sorted."""
    if declared.rows is None or declared.rows >= source.rows:
        return np.arange(source.rows)
    # the legacy generator's stream is frozen for good, as that of the splits
    chosen = np.random.RandomState(declared.split_seed).permutation(source.rows)[: declared.rows]
    return np.sort(chosen)


def _recoded(test: Source, train: Source) -> np.ndarray:
    """The test rows' classes as codes of the train file's."""
    places = {name: code for code, name in enumerate(train.classes)}
    codes: np.ndarray = np.array([places.get(name, -1) for name in test.classes], dtype=np.int64)[test.codes]
    return codes


def _part_faults(parts: Mapping[str, np.ndarray]) -> list[str]:
    rows = sum(len(part) for part in parts.values())
    return [
        f"task.splits.{name}: every split needs a row or more, but of {rows} rows it gets none; "
        "bring more rows, or raise its fraction."
        for name, part in parts.items()
        if not len(part)
    ]


def _augment_faults(declared: Declaration, pixels: Pixels) -> list[str]:
    _, height, width = pixels.shape
    most = min(height, width) // 2
    if declared.augment.shift <= most:
        return []
    rule = f"must be at most half of the shorter side, {most} pixels of {min(height, width)}"
    return [f"task.augment.shift: {rule}, but got {declared.augment.shift}; lower it."]


def _notes(
    train: Source, rows: np.ndarray, test: Source | None, test_rows: np.ndarray, splits: Mapping[str, Split]
) -> tuple[str, ...]:
    notes = [
        f"{len(used)} of the {source.rows} rows of `{source.where[5:]}` are used, as `rows` says."
        for source, used in ((train, rows), (test, test_rows))
        if source is not None and len(used) < source.rows
    ]
    seen = np.bincount(splits["train"].y, minlength=len(train.classes))
    if absent := [name for name, count in zip(train.classes, seen, strict=True) if not count]:
        notes.append(f"Classes without a train row, which cannot be learned: {listed(absent)}.")
    return tuple(notes)


def _name(path: Path) -> str:
    """What a file is called; of many a set, the folder alone says which it is."""
    return path.absolute().parent.name if path.stem == "train" else path.stem
