"""The service at work on the fixed job, and on trials that do nothing.

Searches are run as a user's are (calibration, store, generations), except that a list replaces the sampler.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import job
from benchmarks.rivals import Trained
from service.driver import Executor, run
from service.executors.local import Bench
from service.samplers import ListedSampler
from service.spec import check
from trials.records import Outcome
from trials.store import Store

ROOT = Path(__file__).resolve().parents[1]
GENERATION = 16  # what `batch: auto` gives a search of 256 trials


def replay(executor: Executor, path: Path, count: int, workers: int) -> list[Trained]:
    """The first `count` points; the inputs at `path` are the rivals', ours come from the task itself."""
    spec = {
        "name": "job",
        "task": job.TASK,
        "network": job.NETWORK,
        "space": job.SPACE,
        "training": job.TRAINING,
        "search": {"sampler": "random", "batch": GENERATION},
        "budget": {"trials": count},
        "resources": {"workers": workers},
        "seed": job.SEED,
    }
    return [
        Trained(
            number=outcome.number,
            val_error=float(outcome.metrics.get("val_error", math.nan)),
            started=outcome.started,
            ended=outcome.ended,
            worker=outcome.worker,
        )
        for outcome in _outcomes(executor, spec, job.points(count))
    ]


local = partial(replay, "local")
ray = partial(replay, "ray")


def empty(
    executor: Executor, count: int, lanes: int, workers: int, bench: Bench | None = None
) -> list[tuple[float, float]]:
    """When each of `count` trials that do nothing began and ended, in bundles of `lanes`."""
    spec = {
        "name": "empty",
        "task": "benchmarks.empty:objective",
        "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
        "search": {"sampler": "random", "batch": max(GENERATION, workers * lanes)},
        "budget": {"trials": count},
        "resources": {"workers": workers, "lanes": lanes},
    }
    points = [{"x": i / count} for i in range(count)]
    return [(outcome.started, outcome.ended) for outcome in _outcomes(executor, spec, points, bench)]


def _outcomes(
    executor: Executor, data: dict[str, Any], points: list[dict[str, Any]], bench: Bench | None = None
) -> Iterator[Outcome]:
    spec, task = check(data, directory=ROOT)
    with tempfile.TemporaryDirectory(prefix="continua-benchmark-") as root:
        store = Store(root)
        result = run(spec, task, store, executor=executor, directory=ROOT, sampler=ListedSampler(points), bench=bench)
        if result.state != "complete":
            raise RuntimeError(f"the search ended as {result.state}: {result.progress.failure}")
        yield from store.search(result.search_id).outcomes()
