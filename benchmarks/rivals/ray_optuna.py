"""Ray Tune with its OptunaSearch, set up as its documentation advises for short trials.

Actors are reused and hold the data, the automatic loggers are off, nothing is checkpointed, and a trial reports once,
at its end. The fixed points are handed to OptunaSearch as `points_to_evaluate`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.rivals import Inputs, Trained
from benchmarks.rivals.optuna_pair import point_of


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[None]:
    """Ray on this machine with `workers` CPUs, ended at the exit whatever happens."""
    os.environ.update({"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"})
    import ray

    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def tuned(trainable: Any, points: list[dict[str, Any]], trials: int) -> list[dict[str, Any]]:
    """Run `trials` trials, the given points first, one CPU each: the last report of each trial."""
    import optuna
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    space = {
        "w0": tune.lograndint(4, 129),
        "w1": tune.lograndint(4, 129),
        "lr": tune.loguniform(1e-3, 1.0),
        "momentum": tune.uniform(0.0, 0.95),
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = OptunaSearch(space, metric="val_error", mode="min", points_to_evaluate=points or None)
    config = tune.TuneConfig(search_alg=search, num_samples=trials, reuse_actors=True)
    with tempfile.TemporaryDirectory(prefix="ray-tune-") as directory:
        kept = tune.CheckpointConfig(checkpoint_at_end=False)
        run = tune.RunConfig(name="rival", storage_path=directory, checkpoint_config=kept, verbose=0)
        results = tune.Tuner(tune.with_resources(trainable, {"cpu": 1}), tune_config=config, run_config=run).fit()
        return [metrics for i in range(len(results)) if (metrics := results[i].metrics)]


def replay(path: Path, count: int, workers: int) -> list[Trained]:
    """The first `count` points on `workers` actors."""
    with cluster(workers):
        from ray import tune

        class Training(tune.Trainable):
            def setup(self, config: dict[str, Any], path: str = "") -> None:
                import torch

                from benchmarks.rivals.torch_plain import Data

                torch.set_num_threads(1)
                self.data = Data.of(Inputs.load(path))

            def reset_config(self, new_config: dict[str, Any]) -> bool:
                return True

            def step(self) -> dict[str, Any]:
                from benchmarks.rivals.torch_plain import train

                started, config = time.time(), self.config
                number = self.data.inputs.number_of((config["w0"], config["w1"]), config["lr"], config["momentum"])
                error, _ = train(self.data, number)
                facts = {"number": number, "started": started, "ended": time.time(), "worker": str(os.getpid())}
                return {"val_error": error, "facts": facts, "done": True}

        inputs = Inputs.load(path)
        points = [point_of(inputs, number) for number in range(count)]
        found = tuned(tune.with_parameters(Training, path=str(path)), points, count)
    return [Trained(**metrics["facts"], val_error=metrics["val_error"]) for metrics in found]


def empty(count: int) -> list[tuple[float, float]]:
    """When each of `count` trials that do nothing began and ended, Ray being up."""
    from ray import tune

    class Nothing(tune.Trainable):
        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def step(self) -> dict[str, Any]:
            return {"val_error": 0.0, "started": time.time(), "ended": time.time(), "done": True}

    return [(metrics["started"], metrics["ended"]) for metrics in tuned(Nothing, [], count)]
