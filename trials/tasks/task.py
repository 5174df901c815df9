"""What a task is: four splits of rows that are numbers, and what can be measured on them.

    >>> task.rows("train", "outer").x.shape   # what a black-box arm may train on
    (90, 4)
    >>> task.metrics()
    {'val_error': 'min', 'val_loss': 'min', 'val_accuracy': 'max'}

Weights see `train`; gradients of hyperparameters see `outer`; arms choose by `selection`; `test` is read once, by the
report. Whatever was fitted to the data (fills, scales, categories) was fitted to the train rows alone. Rows of images
stay bytes, and are normalised where they are used (`trials.pixels`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from search_spaces.faults import Invalid, unknown

SPLITS = ("train", "outer", "selection", "test")

FARTHEST = 1e6  # standard deviations; what lies beyond is set to it, or float32 arithmetic would overflow

METRICS: dict[str, dict[str, str]] = {
    "classification": {"val_error": "min", "val_loss": "min", "val_accuracy": "max"},
    "regression": {"val_mse": "min", "val_loss": "min", "val_r2": "max"},
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Rows that belong together: `x` float32 [rows, features], or uint8 [rows, C * H * W] for images, C-contiguous;
    `y` [rows], int64 codes of classes, or float32 standardised by the mean and standard deviation of the train rows."""

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How train images vary from step to step: mirrored left to right half of the time, and moved by whole pixels, up
    to `shift` each way and axis, over a background of the mean."""

    flip: bool = False
    shift: int = 0


@dataclass(frozen=True, kw_only=True)
class Task:
    """Data in four disjoint splits. `y * target_scale[1] + target_scale[0]` gives a regression target in its own
    units; `notes` says in one sentence each what was inferred, filled or dropped.

    `shape` is that of one row: (features,), or (C, H, W) for images, which have no named features. Channel c of an
    image is read as `(byte - offset[c]) / scale[c]`: the mean and standard deviation of the train rows, 0 to 255.
    """

    name: str
    kind: str  # classification | regression
    outputs: int  # the number of classes, or 1
    train: Split
    outer: Split
    selection: Split
    test: Split
    features: tuple[str, ...]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    target_scale: tuple[float, float] = (0.0, 1.0)
    shape: tuple[int, ...] = ()  # () stands for (features,)
    offset: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    augment: Augment = Augment()

    def __post_init__(self) -> None:
        if not self.shape:
            object.__setattr__(self, "shape", (len(self.features),))

    @property
    def inputs(self) -> int:
        """The number of columns of `x`."""
        return math.prod(self.shape)

    def rows(self, *splits: str) -> Split:
        """The rows of the named splits, one after the other.

        Raises:
            Invalid: when a name is none of `SPLITS`, or none is given.
        """
        if faults := [unknown("task.rows", name, SPLITS, "split") for name in splits if name not in SPLITS]:
            raise Invalid(faults)
        if not splits:
            raise Invalid([f"task.rows: needs at least one split, but got none; name some of {', '.join(SPLITS)}."])
        parts: list[Split] = [getattr(self, name) for name in splits]
        if len(parts) == 1:
            return parts[0]
        return Split(x=np.concatenate([part.x for part in parts]), y=np.concatenate([part.y for part in parts]))

    def metrics(self) -> dict[str, str]:
        """The metrics that can be measured on the selection rows, each with the direction in which it is better.
        `val_loss` is the cross-entropy, or half of `val_mse` (which is in standardised units)."""
        return dict(METRICS[self.kind])


def assemble(
    *,
    name: str,
    kind: str,
    x: np.ndarray,
    y: np.ndarray,
    parts: Mapping[str, np.ndarray],
    features: tuple[str, ...],
    classes: tuple[str, ...],
    notes: tuple[str, ...],
) -> Task:
    """A task from the encoded rows `x`, the targets `y` in their own units (or codes), and each split's row numbers."""
    x = np.asarray(x, dtype=np.float32)
    scale = (0.0, 1.0)
    if kind == "regression":
        train = y[parts["train"]].astype(np.float64)
        scale = (float(train.mean()), float(train.std()))
        y = np.clip((y - scale[0]) / scale[1], -FARTHEST, FARTHEST).astype(np.float32)
    splits = {part: Split(x=np.ascontiguousarray(x[rows]), y=y[rows].copy()) for part, rows in parts.items()}
    return Task(
        name=name,
        kind=kind,
        outputs=len(classes) if kind == "classification" else 1,
        train=splits["train"],
        outer=splits["outer"],
        selection=splits["selection"],
        test=splits["test"],
        features=features,
        classes=classes,
        notes=notes,
        target_scale=scale,
    )
