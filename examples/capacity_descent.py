"""Does descent on C_k choose widths better than other searches? Eight hidden layers under a bound on FLOPs.

    python examples/capacity_descent.py --picture docs/capacity_descent.png    # twenty minutes on a busy core
    python examples/capacity_descent.py --quick                                # seconds: three seeds, few trainings
    python examples/capacity_descent.py --json                                 # one JSON object instead of the table

UCI digits; eight widths from 4 to 20 and the learning rate; at most 3,000 FLOPs a forward pass, which is 10 units a
layer. A value is the outer loss of a network trained 200 steps from scratch (tanh, Adam, batches of 32): one sample of
C_200. Every arm may train 96 networks, eight at a time:

    capacity      antithetic evolution strategies (`service.samplers.capacity`), both ends of a pair with the same
                  initialisation and batches
    cmaes, tpe    Optuna's, as a search has them
    random        uniform on the log scale, within the bound
    uniform       one width for all layers, as wide as the bound allows; TPE over the learning rate
    magnitude     48 trainings of the widest network, whose least units by magnitude are cut until the bound is met
                  (`width_baselines.py`), and 48 of what is left, from scratch

What is recommended of the trained networks is that at which a Gaussian process over all values expects the least loss;
random's is the best single value, as in a plain random search. More rows show other recommendations from the same
trainings. Each is trained anew from scratch, eight times with fresh seeds, on train and outer rows; the mean test error
is compared with that of `capacity` seed by seed. All seeds train as lanes of one program, an arm at a time.

Legend of shape suffixes: P points.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window, no display

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from width_tables import Versus, judged

from search_spaces import Point, Space
from search_spaces.networks import MLP
from service.samplers import History, Sampler, make_sampler
from service.samplers.capacity import CapacitySampler
from service.samplers.contract import Known
from service.samplers.numbers import recommended
from trials.capacity.lanes import CapacityLanes
from trials.tasks import Task, load
from trials.train import threads
from trials.training import Training

LAYERS, LOW, HIGH = 8, 4, 20
BOUND, STEPS, SIZE = 3000, 200, 8  # FLOPs of a forward pass, steps of a training, trainings of a generation
RATES = (0.001, 0.03)
NETWORK, TRAINING = MLP(layers=LAYERS, activation="tanh"), Training(optimizer="adam", batch_size=32)
MOST = 10**6  # numbers of random streams that a seed has
ARMS = ("capacity", "cmaes", "tpe", "random", "uniform", "magnitude")
#: other recommendations, from the trainings of these arms
OTHERS = {"capacity, its mean": "capacity", "tpe, best value": "tpe", "random, model": "random"}
COLOURS = {"better": "tab:red", "worse": "tab:green", "not shown": "0.35"}


@dataclass(frozen=True, kw_only=True)
class Study:
    """How much is done. `seeds` searches of `trainings` each, and `again` retrainings of what each recommends."""

    seeds: int
    trainings: int
    again: int
    steps: int = STEPS


@dataclass(frozen=True, kw_only=True)
class Searched:
    """An arm's searches: what each was told, and the FLOPs of all trainings of a search, on the mean."""

    histories: list[History]
    flops: float


@functools.cache
def task() -> Task:
    return load("uci/digits")


def space_of(names: Sequence[str]) -> Space:
    """Widths of these names, and the learning rate."""
    width = {"type": "width", "low": LOW, "high": HIGH}
    rate = {"type": "float", "low": RATES[0], "high": RATES[1], "log": True}
    return Space.from_dict({**dict.fromkeys(names, width), "lr": rate})


SPACE, RATE = space_of(NETWORK.gates), space_of(())


def widths(point: Point) -> list[int]:
    return [int(n) for n in NETWORK.sizes(NETWORK.rounded(point))]


def flops(sizes: Sequence[int]) -> int:
    """Of one example's forward pass, as `search_spaces.cost` counts them."""
    layers = [task().inputs, *sizes, task().outputs]
    return 2 * sum(a * b for a, b in itertools.pairwise(layers))


def excess(point: Point) -> float:
    return flops(widths(point)) / BOUND - 1


def point_of(sizes: Sequence[int], lr: float) -> Point:
    return {**dict(zip(NETWORK.gates, map(float, sizes), strict=True)), "lr": lr}


def uniform(point: Point) -> Point:
    """The point's learning rate with the largest width that the bound allows every layer."""
    most = max(n for n in range(LOW, HIGH + 1) if flops([n] * LAYERS) <= BOUND)
    return point_of([most] * LAYERS, float(point["lr"] or 0.0))


# -- trainings ---------------------------------------------------------------------------------------------------------


def lanes_of(points: Sequence[Point], numbers: Sequence[int], study: Study, **options: Any) -> CapacityLanes:
    """Trained lanes, one a point; equal numbers have the same initialisation and batches."""
    lanes = CapacityLanes(NETWORK, task(), points, 1, training=TRAINING, numbers=numbers, **options)
    lanes.train(study.steps)
    return lanes


def searched(arm: str, study: Study) -> Searched:
    """Searches of all seeds, side by side: each is told a generation before it asks for the next."""
    if arm == "magnitude":
        return pruned(study)
    if arm == "uniform":
        return told([make_sampler("tpe", RATE, seed=seed) for seed in range(study.seeds)], study, uniform)
    options = {"pairs": SIZE // 2} if arm == "capacity" else {}
    samplers = [make_sampler(arm, SPACE, seed=s, excess=excess, options=options) for s in range(study.seeds)]
    return told(samplers, study, dict, shared=2 if arm == "capacity" else 1)


def told(samplers: Sequence[Sampler], study: Study, whole: Callable[[Point], Point], shared: int = 1) -> Searched:
    """Ask, train, tell; `shared` trainings in a row have the same random numbers."""
    known: list[list[Known]] = [[] for _ in samplers]
    spent = 0.0
    for generation in range(study.trainings // SIZE):
        begin = generation * SIZE
        # a sampler knows those up to two generations back: every second one here, since all are told at once
        asked = [s.ask(History(trials=k), SIZE, 2 * generation).points for s, k in zip(samplers, known, strict=True)]
        numbers = [s * MOST + (begin + i) // shared for s in range(len(samplers)) for i in range(SIZE)]
        lanes = lanes_of([whole(point) for points in asked for point in points], numbers, study)
        values = lanes.losses_PR().reshape(len(samplers), SIZE)
        spent += float(lanes.flops_P.sum()) / len(samplers)
        for own, points, losses in zip(known, asked, values, strict=True):
            own += [known_of(begin + i, p, losses[i], 2 * generation) for i, p in enumerate(points)]
    return Searched(histories=[History(trials=own) for own in known], flops=spent)


def known_of(number: int, point: Point, value: float, generation: int) -> Known:
    failed = not np.isfinite(value)
    return Known(
        number=number, point=point, value=None if failed else float(value), failed=failed, generation=generation
    )


# -- pruning -----------------------------------------------------------------------------------------------------------


def pruned(study: Study) -> Searched:
    """Half of the trainings are of the widest network, at rates drawn at random, half of what is cut from each."""
    half = study.trainings // 2
    seeds = range(study.seeds)
    ends = [math.log(rate) for rate in RATES]
    rates = [np.exp(np.random.default_rng(seed).uniform(ends[0], ends[1], half)).tolist() for seed in seeds]
    found: list[list[Known]] = [[] for _ in seeds]
    spent = 0.0
    for begin in range(0, half, SIZE):
        places = [(s, i) for s in seeds for i in range(begin, min(begin + SIZE, half))]
        numbers = [s * MOST + i for s, i in places]
        wide = lanes_of([point_of([HIGH] * LAYERS, rates[s][i]) for s, i in places], numbers, study)
        points = [point_of(cut(wide.lanes.matrices(k)), rates[s][i]) for k, (s, i) in enumerate(places)]
        lanes = lanes_of(points, [number + half for number in numbers], study)
        spent += float(wide.flops_P.sum() + lanes.flops_P.sum()) / study.seeds
        for (s, i), point, value in zip(places, points, lanes.losses_PR()[:, 0], strict=True):
            found[s].append(known_of(i, point, value, 0))
    return Searched(histories=[History(trials=own) for own in found], flops=spent)


def cut(matrices: Sequence[Tensor]) -> list[int]:
    """Widths within the bound, the least worthy units of all layers dropped together. A unit is worth the norm of its
    incoming weights times that of its outgoing ones, over the layer's mean; matrices are [out, 1 + in]."""
    worths = [a.norm(dim=1) * b[:, 1:].norm(dim=0) for a, b in itertools.pairwise(matrices)]
    ranked = sorted((float(w), layer) for layer, own in enumerate(worths) for w in own / own.mean().clamp(min=1e-12))
    sizes = [len(own) for own in worths]
    for _, layer in ranked:
        if flops(sizes) <= BOUND:
            break
        sizes[layer] = max(sizes[layer] - 1, LOW)
    return sizes


# -- recommendations ---------------------------------------------------------------------------------------------------


def recommendations(arm: str, found: Searched) -> list[Point]:
    """Each seed's network. What uniform searched is its learning rate alone."""
    if arm in ("random", "tpe, best value"):
        return [best_of(history) for history in found.histories]
    if arm == "capacity, its mean":
        samplers = [
            CapacitySampler(SPACE, seed=seed, excess=excess, pairs=SIZE // 2) for seed in range(len(found.histories))
        ]
        return [sampler.mean(h) for sampler, h in zip(samplers, found.histories, strict=True)]
    if arm == "uniform":
        return [uniform(recommended(RATE, h)) for h in found.histories]
    return [recommended(SPACE, h) for h in found.histories]


def best_of(history: History) -> Point:
    """The point of the least value."""
    return dict(min(history.trials, key=lambda k: math.inf if k.value is None else k.value).point)


def retrained(points: Sequence[Point], study: Study) -> np.ndarray:
    """Mean test error of each network, trained anew with random numbers that no search saw, [P]. A training that
    diverged has error 1."""
    numbers = [s * MOST + MOST // 2 + r for s in range(len(points)) for r in range(study.again)]
    each = [point for point in points for _ in range(study.again)]
    lanes = lanes_of(each, numbers, study, splits=(("train", "outer"), "test"))
    return np.asarray(np.nan_to_num(lanes.measured_PR("error"), nan=1.0).reshape(len(points), -1).mean(1))


# -- what it says ------------------------------------------------------------------------------------------------------


def run(study: Study) -> dict[str, Any]:
    """Every arm: errors by seed, widths, and how it compares with `capacity`."""
    rows: dict[str, dict[str, Any]] = {}
    for arm in ARMS:
        began = time.perf_counter()
        found = searched(arm, study)
        spent = time.perf_counter() - began
        for name in (arm, *(other for other, source in OTHERS.items() if source == arm)):
            points = recommendations(name, found)
            errors_P = retrained(points, study)
            rows[name] = {
                "test_errors": errors_P.tolist(),
                "test_error": float(errors_P.mean()),
                "widths": [widths(point) for point in points],
                "lr": [float(point["lr"] or 0.0) for point in points],
                "flops": float(np.mean([flops(widths(point)) for point in points])),
                "trainings": study.trainings,
                "training_flops": found.flops,
                "seconds": spent,
            }
            print(f"{name}: {100 * errors_P.mean():.2f}% ({spent:.0f} s)", file=sys.stderr, flush=True)
    base = np.array(rows["capacity"]["test_errors"])
    against = judged({arm: np.array(row["test_errors"]) - base for arm, row in rows.items() if arm != "capacity"})
    for arm, v in against.items():
        rows[arm]["against_capacity"] = {"mean": v.mean, "low": v.low, "high": v.high, "p": v.p, "words": v.words}
    return {
        "arms": rows,
        "verdict": verdict(against),
        "bound": BOUND,
        "steps": study.steps,
        "seeds": study.seeds,
        "retrainings": study.again,
        "torch": torch.__version__,
    }


def verdict(against: dict[str, Versus]) -> str:
    """Whether `capacity` wins, in plain words; `against` are the others' errors less its own."""
    groups = {
        word: [arm for arm in ARMS if arm in against and against[arm].words == word]
        for word in ("worse", "not shown", "better")
    }
    beaten, even, ahead = groups.values()
    if not even and not ahead:
        opening = "Descent on C_k wins: every other arm ends with a larger test error."
    elif ahead:
        opening = f"Descent on C_k does not win: {', '.join(ahead)} end{'s' * (len(ahead) == 1)} with a smaller one."
    else:
        opening = "Descent on C_k does not win: no arm is better, but not all are worse."
    parts = [opening]
    if beaten and (even or ahead):
        parts.append(f"It beats {', '.join(beaten)}.")
    if even:
        reach = max(max(abs(against[arm].low), abs(against[arm].high)) for arm in even)
        unseen = f"differences up to {100 * reach:.1f} points are open"
        parts.append(f"Not told apart from it: {', '.join(even)} ({unseen}).")
    return " ".join(parts)


def as_text(told: dict[str, Any]) -> str:
    """The table; differences are of percentage points, in pairs over seeds."""
    lines = [
        "| arm | widths (mean) | FLOPs | trainings | GFLOP | test error % | less capacity's | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, row in told["arms"].items():
        sizes = " ".join(f"{n:.0f}" for n in np.mean(row["widths"], axis=0))
        spread = np.std(row["test_errors"], ddof=1) if told["seeds"] > 1 else 0.0
        v = row.get("against_capacity")
        against = f"{100 * v['mean']:+.2f} [{100 * v['low']:+.2f}, {100 * v['high']:+.2f}] | {v['p']:.3f}" if v else "|"
        lines.append(
            f"| {arm} | {sizes} | {row['flops']:,.0f} | {row['trainings']} | {row['training_flops'] / 1e9:.1f} | "
            f"{100 * row['test_error']:.2f} ± {100 * spread:.2f} | {against} |"
        )
    return "\n".join(lines)


def draw(told: dict[str, Any], path: Path) -> None:
    """Test errors, a dot a seed, and the widths that were recommended, layer by layer."""
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = told["arms"]
    for y, row in enumerate(rows.values()):
        errors = 100 * np.array(row["test_errors"])
        colour = COLOURS[row["against_capacity"]["words"]] if "against_capacity" in row else "tab:blue"
        left.plot(errors, np.full(len(errors), y), ".", color=colour, alpha=0.35, ms=5)
        reach = 1.96 * errors.std(ddof=1) / len(errors) ** 0.5 if len(errors) > 1 else 0.0
        left.errorbar(errors.mean(), y, xerr=reach, fmt="o", color=colour, ms=6, capsize=3)
    left.axvline(100 * rows["capacity"]["test_error"], color="tab:blue", lw=0.8, ls=":")
    left.set_yticks(range(len(rows)), list(rows))
    left.set_ylim(len(rows) - 0.5, -0.5)
    left.set_xlabel("test error, % (mean, 95%; green: capacity is better, red: worse)")
    for arm in ARMS:
        right.plot(range(1, LAYERS + 1), np.mean(rows[arm]["widths"], axis=0), "o-", ms=4, label=arm)
    right.set_xlabel("hidden layer")
    right.set_ylabel("units, mean over seeds")
    right.legend(frameon=False, fontsize=8, ncols=2)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Eight layers within {told['bound']:,} FLOPs: {told['seeds']} seeds")
    figure.savefig(path, dpi=110)


# -- the program -------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, and print one table or one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three seeds of 16 trainings of 60 steps")
    parser.add_argument("--seeds", type=int, default=None, help="searches of each arm (default: 20)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--picture", type=Path, help="draw it here (.png)")
    given = parser.parse_args(arguments)
    study = Study(
        seeds=given.seeds or (3 if given.quick else 20),
        trainings=16 if given.quick else 96,
        again=3 if given.quick else 8,
        steps=60 if given.quick else STEPS,
    )
    began = time.perf_counter()
    with threads(1):
        told = run(study)
    told["seconds"] = time.perf_counter() - began
    if given.json:
        print(json.dumps(told))
    else:
        print(f"{as_text(told)}\n\n{told['verdict']}\n\ntorch {told['torch']}: {told['seconds']:.0f} s.")
    if given.picture:
        draw(told, given.picture)


if __name__ == "__main__":
    main()
