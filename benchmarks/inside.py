"""Where the service's own time goes: orchestration of trials that do nothing, samplers, and lane counts."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from benchmarks import job, ours
from benchmarks.machine import best_of, job_shapes_gflops, square_gflops
from benchmarks.rivals import ray_optuna
from search_spaces import Space
from service.executors.local import Bench
from service.samplers import History, make_sampler
from service.samplers.contract import Known
from trials.records import Bundle, Trial
from trials.train import Trainer

ASKED = 16  # points of a generation


def empty_trials(counts: dict[str, int], workers: int) -> dict[str, dict[str, float]]:
    """Milliseconds per trial that does nothing: wall time from the first beginning to the last end over all trials.

    `counts` maps `local-LANES`, `ray-LANES` or `ray_optuna` to a number of trials.
    """
    found = {}
    kinds = {name: name.partition("-") for name in counts}
    with Bench() as bench:
        for name, (kind, _, lanes) in kinds.items():
            if kind == "local":
                found[name] = _per_trial(ours.empty("local", counts[name], int(lanes), workers, bench), workers)
    with ray_optuna.cluster(workers):
        for name, (kind, _, lanes) in kinds.items():
            if kind == "ray":
                found[name] = _per_trial(ours.empty("ray", counts[name], int(lanes), workers), workers)
            elif kind == "ray_optuna":
                found[name] = _per_trial(ray_optuna.empty(counts[name]), workers)
    return {name: found[name] for name in counts}


def _per_trial(times: list[tuple[float, float]], workers: int) -> dict[str, float]:
    span = max(ended for _, ended in times) - min(started for started, _ in times)
    per_trial = 1e3 * span / len(times)
    return {"trials": len(times), "wall_ms_per_trial": per_trial, "worker_ms_per_trial": workers * per_trial}


def sampler_times(trials: int, long: int) -> dict[str, dict[str, float]]:
    """Milliseconds that a sampler needs per point: over a whole search of `trials`, and at a history of `long`."""
    space = Space.from_dict(job.SPACE)
    rng = np.random.default_rng(0)
    found = {}
    for kind in ("random", "tpe"):
        sampler = make_sampler(kind, space, seed=0)
        sampler.ask(History(), 1, 0)  # imports
        known: list[Known] = []
        began = time.perf_counter()
        for generation in range(trials // ASKED):
            asked = sampler.ask(History(trials=known), ASKED, generation)
            known += [_known(len(known) + i, point) for i, point in enumerate(asked.points)]
        whole = time.perf_counter() - began
        known = [_known(number, space.sample(rng)) for number in range(long)]
        began = time.perf_counter()
        sampler.ask(History(trials=known), ASKED, long // ASKED)
        at_long = time.perf_counter() - began
        found[kind] = {
            "trials": len(known[:trials]),
            "ms_per_point": 1e3 * whole / trials,
            "long_history": long,
            "ms_per_point_long": 1e3 * at_long / ASKED,
        }
    return found


def _known(number: int, point: dict[str, Any]) -> Known:
    return Known(number=number, point=point, value=abs(float(np.log10(point["lr"])) + 1.0))


def lane_counts(lanes: list[int], points: int, repeats: int, epochs: int) -> dict[str, Any]:
    """Trials per second of one process at several lane counts, packed as the controller packs, and what its matrix
    products alone could reach on one thread. Fewer `epochs` than the job's count as a part of a trial."""
    torch.set_num_threads(1)
    plan, chosen = job.plan(epochs), job.points(points)
    trainer = Trainer(plan)
    trials = [Trial(search_id="lanes", number=number, point=point) for number, point in enumerate(chosen)]
    trials.sort(key=lambda trial: -job.flops(trial.point))
    work = sum(job.flops(point, epochs) for point in chosen)
    networks = [(job.task().inputs, p["width.0"], p["width.1"], job.task().outputs) for p in chosen]
    square, shapes = square_gflops(), job_shapes_gflops(networks, job.BATCH)
    list(trainer.train(Bundle(search_id="lanes", id="warm", generation=0, trials=tuple(trials[:2]))))
    found = {}
    for count in lanes:
        bundles = [tuple(trials[i :: -(-points // count)]) for i in range(-(-points // count))]

        def train(bundles: list[tuple[Trial, ...]] = bundles) -> None:
            for bundle in bundles:
                for _ in trainer.train(Bundle(search_id="lanes", id="b", generation=0, trials=bundle)):
                    pass

        seconds = best_of(repeats, train)
        gflops = 1e-9 * work / seconds
        found[str(count)] = {
            "trials_per_s": points / seconds * epochs / job.EPOCHS,
            "gflops": gflops,
            "share_of_square_matmul": gflops / square,
            "share_of_job_shapes": gflops / shapes,
        }
    return {"points": points, "square_gflops": square, "job_shapes_gflops": shapes, "lanes": found}
