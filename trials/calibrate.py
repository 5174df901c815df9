"""How many lanes a bundle should have on this machine: measured, not guessed; one lane is an answer too.

    >>> calibrate(plan, most=64).lanes
    16

The candidates train the same few steps of the same random points; the fastest per lane wins, and among those within 3%
of it the smallest, which leaves more bundles to share out. Lane counts whose memory would not fit are not tried.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from search_spaces import Point
from trials.plan import Plan
from trials.records import Bundle, Trial
from trials.train import Trainer

CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STEPS = 40  # timed steps of each candidate
PATIENCE = 2  # candidates in a row that must be slower before the search for a better one ends
SLACK = 1.03
MEMORY_SHARE = 0.5  # of what is free


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The chosen lane count, seconds per lane and step of each candidate, and what the measuring cost."""

    lanes: int
    seconds: dict[int, float]
    device_s: float


def calibrate(plan: Plan, *, most: int, device: torch.device | str = "cpu") -> Calibration:
    """Measures lane counts up to `most` (trials of a bundle, replicates counted within each)."""
    began = time.perf_counter()
    if plan.objective is not None or plan.task is None:
        return Calibration(
            lanes=max(1, min(most, 64)), seconds={}, device_s=0.0
        )  # a sequence of calls: nothing to fuse
    rng = np.random.default_rng(0)
    points = [plan.space.sample(rng) for _ in range(max(c for c in CANDIDATES if c <= max(most, 1)))]
    signature = plan.space.signature(points[0])
    points = [
        {**point, **dict(signature)} if not plan.space.faults({**point, **dict(signature)}) else points[0]
        for point in points
    ]
    short = _shortened(plan, STEPS)
    trainer = Trainer(short, device)
    free, seconds, worse = _free_memory(torch.device(device)), {}, 0
    for lanes in CANDIDATES:
        if lanes > most or _memory(plan, points[:lanes]) > MEMORY_SHARE * free or worse >= PATIENCE:
            break
        seconds[lanes] = _timed(trainer, points, lanes)
        worse = worse + 1 if seconds[lanes] > min(seconds.values()) else 0
    best = min(seconds.values(), default=0.0)
    chosen = next((lanes for lanes, s in seconds.items() if s <= SLACK * best), 1)
    return Calibration(lanes=chosen, seconds=seconds, device_s=time.perf_counter() - began)


def _shortened(plan: Plan, steps: int) -> Plan:
    assert plan.task is not None
    rows = len(plan.task.rows(*plan.train_splits).y)
    epochs = max(1, round(steps * plan.training.batch_size / rows))
    return replace(plan, training=replace(plan.training, epochs=epochs), evaluations=1)


def _timed(trainer: Trainer, points: Sequence[Point], lanes: int) -> float:
    """Seconds per lane of one short training, the better of two, over the same points whatever the lane count."""
    groups = [points[i : i + lanes] for i in range(0, min(len(points), max(lanes, 16)), lanes)]
    found = []
    for _ in range(2):
        began = time.perf_counter()
        for group in groups:
            trials = tuple(Trial(search_id="calibration", number=i, point=p) for i, p in enumerate(group))
            for _ in trainer.train(Bundle(search_id="calibration", id="c", generation=0, trials=trials)):
                pass
        found.append((time.perf_counter() - began) / sum(map(len, groups)))
    return min(found)


def _memory(plan: Plan, points: Sequence[Point]) -> float:
    """Bytes that a bundle of these points needs, roughly from above."""
    assert plan.network is not None
    assert plan.task is not None
    sizes = plan.network.maxima(plan.space)
    weights = float(plan.network.costs(sizes, plan.task.inputs, plan.task.outputs)["parameters"])
    activations = 4.0 * sum(sizes) * plan.training.batch_size
    return 4.0 * len(points) * plan.seeds * (10.0 * weights + activations)


def _free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as lines:
            found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        return float(found["MemAvailable"])
    except (OSError, KeyError):
        return 4e9
