"""How many lanes a bundle should have on this machine, and how they run: measured, not guessed; one lane is an answer.

    >>> calibrate(plan, CANDIDATES).lanes
    16

The candidates train the same few steps of the same random points; the fastest per lane wins, and among those within 3%
of it the smallest, which leaves more bundles to share out. Lane counts whose memory would not fit are not tried
(`fitting`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from search_spaces import Point
from trials.hypergradients.memory import window_bytes
from trials.hypergradients.method import Method
from trials.lanes.making import is_dense, moving
from trials.plan import Plan
from trials.records import Bundle, Ending, Outcome, Trial
from trials.room import free_memory
from trials.tasks import Split, Task
from trials.train import Trainer
from trials.training import WAYS

CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DENSE = "dense"  # the one way of multi-layer perceptrons
STEPS = {True: 40, False: 8}  # timed steps of each candidate: of dense lanes, of others, which are slower
POINTS = {True: 16, False: 4}  # trained by every candidate, at least
PATIENCE = 2  # candidates in a row that must be slower before the search for a better one ends
SLACK = 1.03
HOPELESS = 2.0  # times the best so far, at which a way's further lane counts are not tried
MEMORY_SHARE = 0.5  # of what is free
WEIGHT = {False: 44.0, True: 72.0}  # bytes that a weight of grouped lanes takes with all that is kept of it; of Adam
FEW = 128  # rows that a candidate is measured on
AGAIN = 1.0  # seconds beyond which a candidate is not timed a second time
MOST_SECONDS = 20.0  # after which no further candidate is begun


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The chosen lane count and way, seconds per lane of each candidate (way -> lanes -> seconds), and what the
    measuring cost."""

    lanes: int
    way: str
    seconds: dict[str, dict[int, float]]
    device_s: float


def is_plain(plan: Plan) -> bool:
    """Whether there is only one way of running the plan's trials."""
    return plan.task is None or plan.objective is not None or is_dense(plan)


def calibrate(
    plan: Plan,
    counts: Sequence[int] = CANDIDATES,
    ways: Sequence[str] = WAYS,
    *,
    device: torch.device | str = "cpu",
    workers: int = 1,
) -> Calibration:
    """Measures the lane counts `counts` (trials of a bundle, replicates counted within each), in each of the `ways`;
    so many `workers` will share the device's memory."""
    began = time.perf_counter()
    if plan.objective is not None or plan.task is None:  # a sequence of calls: nothing to fuse
        return Calibration(lanes=min(max(counts), 64), way=plan.way, seconds={}, device_s=0.0)
    dense = is_dense(plan)
    most = fitting(plan, max(counts), device, workers)
    counts = [n for n in counts if n <= most] or [most]
    points = _points(plan, max(counts))
    seconds: dict[str, dict[int, float]] = {}
    for way in (plan.way,) if dense else ways:
        trainer, worse = Trainer(replace(_shortened(plan, STEPS[dense]), way=way), device), 0
        times = seconds.setdefault(DENSE if dense else way, {})
        for lanes in counts:
            late = time.perf_counter() - began > MOST_SECONDS and any(seconds.values())
            if late or worse >= PATIENCE:
                break
            times[lanes] = _timed(trainer, points, lanes, POINTS[dense])
            worse = worse + 1 if times[lanes] > min(times.values()) else 0
            least = min(s for others in seconds.values() for s in others.values())
            if times[lanes] == math.inf or times[lanes] > HOPELESS * least:
                break
    flat = [(s, lanes, way) for way, times in seconds.items() for lanes, s in times.items() if s < math.inf]
    best = min(flat, default=(0.0, 1, plan.way))
    chosen = min(((lanes, s, way) for s, lanes, way in flat if s <= SLACK * best[0]), default=(1, 0.0, plan.way))
    way = plan.way if dense else chosen[2]
    return Calibration(lanes=chosen[0], way=way, seconds=seconds, device_s=time.perf_counter() - began)


def fitting(plan: Plan, lanes: int, device: torch.device | str = "cpu", workers: int = 1) -> int:
    """So many of `lanes` as there is memory for where so many workers share it, at their widest; one at least, for
    nobody can know before it is tried. A count that a spec asks for is cut off here too."""
    if plan.objective is not None or plan.task is None:
        return lanes
    share = MEMORY_SHARE * free_memory(torch.device(device)) / workers
    most = share / _memory(plan, _points(plan, 1)[:1], device)
    return max(1, min(lanes, int(most)))


def _points(plan: Plan, most: int) -> list[Point]:
    """Random points of one signature, and of the same strides, by which lanes that really stride are bundled."""
    rng = np.random.default_rng(0)
    points = [plan.space.sample(rng) for _ in range(max(most, max(POINTS.values())))]
    signature = dict(plan.space.signature(points[0]))
    if plan.padded and not plan.fractional:
        signature |= {name: n for name, n in points[0].items() if _is_stride(plan, name)}
    alike = [{**point, **signature} for point in points]
    return [points[0] if plan.space.faults(point) else point for point in alike]


def _is_stride(plan: Plan, name: str) -> bool:
    return plan.network is not None and name in plan.network.gates and plan.network.role(name) == "stride"


def _shortened(plan: Plan, steps: int) -> Plan:
    """The plan with so many steps of training, on as many rows as they see at most."""
    assert plan.task is not None
    batch = plan.training.batch_size
    task = _fewer(plan.task, max(steps * batch, 64))
    rows = len(task.rows(*plan.train_splits).y)
    epochs = max(1, round(steps * batch / rows))
    training, method = replace(plan.training, epochs=epochs), _within(plan.method, steps)
    return replace(plan, task=task, training=training, method=method, evaluations=1)


def _within(method: Method, steps: int) -> Method:
    """The method, whose window fits into so few steps."""
    every = min(method.every, max(steps // 2, 1))
    return replace(method, warmup=0, every=every, horizon=min(method.horizon, every))


def _fewer(task: Task, rows: int) -> Task:
    def first(split: Split, most: int) -> Split:
        return Split(x=split.x[:most], y=split.y[:most])

    return replace(
        task, train=first(task.train, rows), outer=first(task.outer, rows // 4), selection=first(task.selection, FEW)
    )


def _timed(trainer: Trainer, points: Sequence[Point], lanes: int, least: int) -> float:
    """Seconds per lane of one short training, the better of two, over the same points whatever the lane count."""
    groups = [points[i : i + lanes] for i in range(0, min(len(points), max(lanes, least)), lanes)]
    found = []
    for _ in range(2):
        began = time.perf_counter()
        for group in groups:
            trials = tuple(Trial(search_id="calibration", number=i, point=p) for i, p in enumerate(group))
            bundle = Bundle(search_id="calibration", id="c", generation=0, trials=trials)
            for record in trainer.train(bundle):
                if isinstance(record, Outcome) and record.ending not in (Ending.COMPLETE, Ending.NAN):
                    return math.inf  # what fails is not fast
        found.append((time.perf_counter() - began) / sum(map(len, groups)))
        if time.perf_counter() - began > AGAIN:
            break
    return min(found)


def _memory(plan: Plan, points: Sequence[Point], device: torch.device | str = "cpu") -> float:
    """Bytes that a bundle of these points needs, roughly from above: every lane as the widest, which on a GPU it is."""
    assert plan.network is not None
    assert plan.task is not None
    dearest = plan.network.sizes(plan.network.ends(plan.space)[1])
    costs = plan.costs.of(plan.network.named(dearest))
    activations = 4.0 * float(costs["activation_bytes"]) * plan.training.batch_size
    grouped = is_dense(plan) and torch.device(device).type == "cuda"
    lane = (WEIGHT[plan.training.optimizer != "sgd"] if grouped else 40.0) * float(costs["parameters"]) + activations
    if plan.gradient:
        lane += window_bytes(
            plan.method,
            parameters=float(costs["parameters"]),
            activations=float(costs["activation_bytes"]) / 4,
            batch=plan.training.batch_size,
            adaptive=plan.training.optimizer != "sgd",
            coordinates=moving(plan, points[0]),
        )
    return len(points) * plan.seeds * lane
