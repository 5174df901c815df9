"""The fixed job: 256 points of a small network on the digits data, the same in every system that is measured.

    >>> points(2)[0]
    {'width.0': 20, 'width.1': 14, 'lr': 0.007127, 'momentum': 0.5548}

`inputs` makes plain arrays of all that a training needs (rows, the data order of every step, initial weights), so that
a system that knows nothing of continua does the very same work.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from search_spaces import Space
from search_spaces.cost import mlp_training_flops
from search_spaces.networks import MLP
from trials.noise import data_order, fold, normal
from trials.plan import Plan
from trials.tasks import Task, load
from trials.training import Training

SEED = 0
COUNT = 256
BATCH = 64
EPOCHS = 20
EVALUATIONS = 4  # of the selection rows, evenly over the training
WIDTHS = (4, 128)
LR = (1e-3, 1.0)
MOMENTUM = (0.0, 0.95)

TASK = "uci/digits"
NETWORK = {"kind": "mlp", "layers": 2}
TRAINING = {"optimizer": "sgd", "batch_size": BATCH, "epochs": EPOCHS}
SPACE: dict[str, dict[str, Any]] = {
    "width.0": {"type": "width", "low": WIDTHS[0], "high": WIDTHS[1]},
    "width.1": {"type": "width", "low": WIDTHS[0], "high": WIDTHS[1]},
    "lr": {"type": "float", "low": LR[0], "high": LR[1], "log": True},
    "momentum": {"type": "float", "low": MOMENTUM[0], "high": MOMENTUM[1]},
}


def points(count: int = COUNT) -> list[dict[str, Any]]:
    """The first `count` points, log-uniform in widths and learning rate; beyond `COUNT` the list begins again."""
    raw = np.random.PCG64(SEED).random_raw(4 * COUNT).reshape(COUNT, 4)  # raw bits never change between releases
    u = raw.astype(np.float64) * 2.0**-64
    drawn = [
        {
            "width.0": round(_between(WIDTHS, a)),
            "width.1": round(_between(WIDTHS, b)),
            "lr": float(f"{_between(LR, c):.4g}"),
            "momentum": float(f"{MOMENTUM[1] * d:.4g}"),
        }
        for a, b, c, d in u.tolist()
    ]
    return [dict(drawn[i % COUNT]) for i in range(count)]


def _between(ends: tuple[float, float], u: float) -> float:
    return float(ends[0] * (ends[1] / ends[0]) ** u)


@cache
def task() -> Task:
    """The digits, loaded once."""
    return load(TASK)


def plan(epochs: int = EPOCHS) -> Plan:
    """What a trainer needs of the job."""
    training = Training(optimizer="sgd", batch_size=BATCH, epochs=epochs)
    space, network = Space.from_dict(SPACE), MLP(layers=2)
    return Plan(space=space, training=training, task=task(), network=network, evaluations=EVALUATIONS, seed=SEED)


def steps(epochs: int = EPOCHS) -> int:
    """Optimiser steps of one training."""
    return Training(batch_size=BATCH, epochs=epochs).steps(len(task().rows("train", "outer").y))


def flops(point: dict[str, Any], epochs: int = EPOCHS) -> float:
    """FLOPs of one training at the network's own sizes."""
    sizes = (point["width.0"], point["width.1"])
    return float(steps(epochs) * BATCH * mlp_training_flops(task().inputs, sizes, task().outputs))


def inputs(count: int, epochs: int = EPOCHS) -> dict[str, np.ndarray]:
    """All that the trainings of the first `count` points need, as plain arrays.

    `x`, `y` are the training rows, `selection_x`, `selection_y` those that errors are measured on, `order` [steps,
    batch] the rows of every step, `widths` [count, 2], `lr`, `momentum` [count] the points, and `weights.N.I` [out, in]
    the initial weights of trial N's layer I (biases begin at zero).
    """
    train, selection = task().rows("train", "outer"), task().rows("selection")
    found = points(count)
    arrays = {
        "x": train.x,
        "y": train.y,
        "selection_x": selection.x,
        "selection_y": selection.y,
        "order": data_order(SEED, len(train.y), BATCH, steps(epochs)),
        "widths": np.array([[p["width.0"], p["width.1"]] for p in found]),
        "lr": np.array([p["lr"] for p in found]),
        "momentum": np.array([p["momentum"] for p in found]),
    }
    for number, point in enumerate(found):
        sizes = (task().inputs, point["width.0"], point["width.1"], task().outputs)
        for i, (fan_in, units) in enumerate(pairwise(sizes)):
            drawn = normal(fold(SEED, "init", number, 0, i), units, fan_in).numpy()
            arrays[f"weights.{number}.{i}"] = (drawn * np.float32((2.0 / fan_in) ** 0.5)).astype(np.float32)
    return arrays


def prepare(path: Path, count: int, epochs: int = EPOCHS) -> None:
    """Write `inputs` to a file that `numpy.load` reads."""
    np.savez(path, **inputs(count, epochs))  # type: ignore[arg-type]
