"""Does it matter how widths are chosen? Thirteen ways under bounds on the FLOPs of a network, at equal compute.

    python examples/width_study.py --pictures demo             # about 20 minutes on one core
    python examples/width_study.py --quick                     # half a minute: digits, one bound, two seeds

Two hidden layers on UCI digits and, where CONTINUA_DATA has MNIST, on a part of it. Each arm may execute the FLOPs of
ten trainings of the widest network, whatever it spends them on: small networks, wide ones with gates, or pruning.

    uniform            one width for both layers, as wide as the bound allows; TPE chooses the learning rate
    tpe                TPE chooses both widths and the learning rate
    bilevel MEMBERSHIP a gradient on held-out rows moves the widths; the learning rate is one of a small set, the start
                       the uniform network first and random ones then
    descent band       the same on the training loss
    no move            the same rates and starts, their widths left where they are: what the gradients must beat
    magnitude, bn gamma, elbo    read off trainings of the widest network (`width_baselines.py`), each then trained anew

The best by selection error is rounded within the bound and trained from scratch, with fresh seeds, on all but selection
and test rows; its mean test error is the arm's score. Two more tables say what there is to gain, by retraining along
the bound, and whether the scores of relaxed networks rank networks as retraining does.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from width_baselines import KINDS, read_off, widest_flops
from width_tables import Run, Split, as_markdown, draw, ranked

from search_spaces import Invalid, Point, Space
from search_spaces.networks import MLP
from service.progress import best_of
from service.samplers import History, ListedSampler, Sampler, make_sampler
from service.samplers.contract import Known
from service.samplers.random import draw as random_point
from trials.hypergradients.method import Method
from trials.ledger import most_flops
from trials.noise import fold
from trials.plan import Plan
from trials.records import Bundle, Outcome, Trial
from trials.tasks import Task, load
from trials.train import Trainer, threads
from trials.training import Training

LOW, HIGH = 2, 64  # units of a layer
GENERATION = 16  # points that a search asks for at a time, and lanes of a bundle
GATES = ("width.0", "width.1")
MEMBERSHIPS = ("interval", "band", "nested", "support", "fuzzy", "concrete")
GRADIENTS = {**{f"bilevel {m}": ("bilevel", m) for m in MEMBERSHIPS}, "descent band": ("descent", "band")}
ARMS = ("uniform", "tpe", "no move", *GRADIENTS, *KINDS)
MNIST = {"kind": "images", "train": "mnist/train.parquet", "test": "mnist/test.parquet", "rows": 6000}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One task and how much is spent on it. `rates` are the small set of learning rates, between whose
    ends the samplers search; `trainings` of the widest network are an arm's budget."""

    name: str
    task: str
    bounds: tuple[int, ...]
    epochs: int
    rates: tuple[float, ...]
    trainings: int = 10
    retrainings: int = 8


DIGITS = Setting(
    name="digits",
    task="uci/digits",
    bounds=(1500, 3000, 8000),
    epochs=20,
    rates=(0.03, 0.06, 0.12),
)
PIXELS = Setting(
    name="MNIST",
    task=json.dumps(MNIST),
    bounds=(16_000, 25_000, 50_000),
    epochs=4,
    rates=(0.01, 0.02, 0.04),
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What an arm ends with: widths within the bound and a rate, the selection error that chose them, what becoming
    whole cost in it, and the compute."""

    arm: str
    widths: tuple[int, ...]
    lr: float
    chosen: float
    gap: float
    trials: int
    spent: float


# -- one arm -----------------------------------------------------------------------------------------------------------


@functools.cache
def task_of(declared: str) -> Task:
    """The task, loaded once a process."""
    return load(json.loads(declared) if declared.startswith("{") else declared)


def plan_of(setting: Setting, seed: int, bound: int | None = None, **changes: Any) -> Plan:
    """The problem all arms share: both widths and the learning rate."""
    width, low, high = {"type": "width", "low": LOW, "high": HIGH}, min(setting.rates), max(setting.rates)
    space = {**dict.fromkeys(GATES, width), "lr": {"type": "float", "low": low, "high": high, "log": True}}
    plan = Plan(
        space=Space.from_dict(space),
        training=Training(momentum=0.9, epochs=setting.epochs),
        task=task_of(setting.task),
        network=MLP(layers=2),
        bounds={} if bound is None else {"flops": bound},
        seed=seed,
    )
    return replace(plan, **changes)


def point_of(widths: Sequence[float], lr: float) -> Point:
    return {**dict(zip(GATES, map(float, widths), strict=True)), "lr": float(lr)}


def uniform_width(plan: Plan) -> int:
    """The largest width that the bound allows both layers."""
    return max(n for n in range(LOW, HIGH + 1) if plan.excess(point_of((n, n), 0.1)) <= 0)


def trained(plan: Plan, points: Sequence[Point], first: int = 0, trainer: Trainer | None = None) -> list[Outcome]:
    """Train points side by side; their numbers count from `first`."""
    found: list[Outcome] = []
    for i in range(0, len(points), GENERATION):
        some = enumerate(points[i : i + GENERATION], first + i)
        trials = tuple(Trial(search_id="study", number=number, point=point, seed=plan.seed) for number, point in some)
        bundle = Bundle(search_id="study", id=f"b{first + i}", generation=0, trials=trials)
        found += [record for record in (trainer or Trainer(plan)).train(bundle) if isinstance(record, Outcome)]
    return found


def search(plan: Plan, sampler: Sampler, budget: float) -> list[Outcome]:
    """Ask, train and tell until the next point could overrun the budget of executed FLOPs."""
    outcomes: list[Outcome] = []
    infeasible: list[Point] = []
    trainer, left = Trainer(plan), budget
    for generation in itertools.count():
        known = [Known(number=o.number, point=o.point, value=o.value, failed=o.value is None) for o in outcomes]
        asked = sampler.ask(History(trials=known, infeasible=infeasible), GENERATION, generation)
        infeasible += asked.infeasible
        costs = itertools.accumulate(most_flops(plan, point) for point in asked.points)
        points = [point for point, cost in zip(asked.points, costs, strict=True) if cost <= left]
        if not points:
            break
        new = trained(plan, points, len(outcomes), trainer)
        outcomes += new
        left -= sum(o.spent.executed_flops for o in new)
    return outcomes


def found_by_search(arm: str, setting: Setting, bound: int, seed: int, budget: float) -> Found:
    """The uniform width, TPE, or widths that a gradient moves."""
    plan = plan_of(setting, seed, bound)
    uniform = uniform_width(plan)
    sampler: Sampler
    if arm in ("no move", *GRADIENTS):
        sampler = ListedSampler(list(starts(plan, setting.rates, uniform, seed)))
    else:
        if arm == "uniform":
            rate = {"lr": plan.space.to_dict()["lr"]}
            plan = replace(plan, space=Space.from_dict(rate), network=MLP(layers=2, width=uniform))
        sampler = make_sampler("tpe", plan.space, seed=seed, excess=plan.excess)
    if arm in GRADIENTS:
        kind, membership = GRADIENTS[arm]
        moved = {n: {**p, "moved_by": "gradient"} if n in GATES else p for n, p in plan.space.to_dict().items()}
        method = Method(kind=kind, warmup=20)
        network = MLP(layers=2, membership=membership)
        plan = replace(plan, space=Space.from_dict(moved), method=method, network=network)
    outcomes = search(plan, sampler, budget)
    best = best_of(outcomes, "min")
    assert best is not None, f"every training of {arm} diverged"
    assert plan.network is not None
    return Found(
        arm=arm,
        widths=tuple(int(n) for n in plan.network.sizes(best.rounded)),
        lr=float(best.point["lr"] or 0.0),
        chosen=best.metrics["val_error"],
        gap=best.metrics["discretisation_gap"],
        trials=len(outcomes),
        spent=sum(o.spent.executed_flops for o in outcomes),
    )


def starts(plan: Plan, rates: Sequence[float], uniform: int, seed: int) -> Iterator[Point]:
    """Where gradients begin: at the uniform network with each rate, then at random ones."""
    rng = np.random.default_rng(fold(seed, "starts"))
    for number, lr in zip(range(200), itertools.cycle(rates), strict=False):
        widths = point_of((uniform, uniform), lr) if number < len(rates) else random_point(plan.space, rng, plan.excess)
        yield {**widths, "lr": lr}


def found_by_reading(arm: str, setting: Setting, bound: int, seed: int, budget: float) -> Found:
    """Widths read off trainings of the widest network, each then trained anew; the best of them."""
    plan = plan_of(setting, seed, bound)
    widest = widest_flops(plan)
    # a training costs at most three forward passes of all its rows, and no network costs more than the bound
    steps = plan.training.steps(len(task_of(setting.task).rows(*plan.train_splits)))
    again = bound * (3 * plan.training.batch_size * steps + plan.evaluations * len(task_of(setting.task).selection))
    rates = list(itertools.islice(itertools.cycle(setting.rates), max(1, int(budget / (widest + again)))))
    reads = read_off(plan, arm, rates, uniform_width(plan))
    outcomes = trained(plan, [point_of(read.widths, lr) for read, lr in zip(reads, rates, strict=True)])
    best = best_of(outcomes, "min")
    assert best is not None, f"every training of {arm} diverged"
    return Found(
        arm=arm,
        widths=reads[best.number].widths,
        lr=rates[best.number],
        chosen=best.metrics["val_error"],
        gap=reads[best.number].gap,
        trials=len(rates),
        spent=widest * len(rates) + sum(o.spent.executed_flops for o in outcomes),
    )


# -- the study ---------------------------------------------------------------------------------------------------------


def compared(setting: Setting, bound: int, seed: int) -> list[Run]:
    """All arms under one bound with one search seed, retrained beside each other."""
    with threads(1):
        budget = setting.trainings * widest_flops(plan_of(setting, seed))
        find = {arm: found_by_reading if arm in KINDS else found_by_search for arm in ARMS}
        found = [find[arm](arm, setting, bound, seed, budget) for arm in ARMS]
        plan = plan_of(setting, seed, bound)
        network = plan.network
        assert network is not None
        errors = retrained(plan, [point_of(one.widths, one.lr) for one in found], setting.retrainings)
    return [
        Run(
            setting=setting.name,
            bound=bound,
            seed=seed,
            test_error=error,
            flops=plan.priced(network.named(one.widths))["forward_flops"],
            budget=budget,
            **asdict(one),
        )
        for one, error in zip(found, errors, strict=True)
    ]


def retrained(plan: Plan, points: Sequence[Point], times: int) -> list[float]:
    """Mean test error of each point's rounded network, trained from scratch with fresh seeds."""
    errors = []
    for r in range(times):
        fresh = replace(plan, scored="test", metric="test_error", evaluations=1, seed=fold(plan.seed, "again", r) >> 2)
        errors.append([o.metrics.get("test_error", 1.0) for o in trained(fresh, points)])
    return [float(mean) for mean in np.mean(errors, axis=0)]


def along(setting: Setting, bound: int, count: int) -> list[Split]:
    """Networks that fill the bound, from the widest second layer to the widest first one, each at its best rate."""
    with threads(1):
        plan = plan_of(setting, 0, bound)

        def widest(fits: Callable[[int], tuple[int, int]]) -> int:
            return max((n for n in range(LOW, HIGH + 1) if plan.excess(point_of(fits(n), 0.1)) <= 0), default=LOW)

        ends = widest(lambda n: (n, HIGH)), widest(lambda n: (n, LOW))
        firsts = sorted({uniform_width(plan), *(round(n) for n in np.geomspace(*ends, count))})
        splits = [(a, widest(lambda n, a=a: (a, n))) for a in firsts]  # type: ignore[misc]
        points = [(split, lr) for split in splits for lr in setting.rates]
        errors = retrained(plan, [point_of(*point) for point in points], 2 * setting.retrainings)
    best = {
        split: min(error for (own, _), error in zip(points, errors, strict=True) if own == split) for split in splits
    }
    return [Split(setting=setting.name, bound=bound, widths=split, test_error=error) for split, error in best.items()]


def scored(setting: Setting, count: int, seed: int = 0) -> dict[str, list[float]]:
    """Selection errors of random points, relaxed by each gate and rounded, and the test errors of them retrained."""
    with threads(1):
        plan = plan_of(setting, seed)
        rng = np.random.default_rng(fold(seed, "random points"))
        points = [plan.space.sample(rng) for _ in range(count)]
        gates = {
            "interval": {"membership": "interval"},
            "band, t = 0.3": {"membership": "band", "tau": 0.3},
            "band, t = 0.05": {"membership": "band", "tau": 0.05},
        }
        found = {"rounded": errors_of(plan, points)}
        for name, gate in gates.items():
            network = MLP(layers=2, **gate)  # type: ignore[arg-type]
            found[name] = errors_of(replace(plan, realise="fractional", network=network), points)
        found["retrained"] = retrained(plan, points, setting.retrainings)
    return found


def errors_of(plan: Plan, points: Sequence[Point]) -> list[float]:
    return [1.0 if o.value is None else o.value for o in trained(plan, points)]


def study(
    settings: Sequence[Setting],
    *,
    seeds: int,
    points: int,
    splits: int = 7,
    each: Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[Any]] = itertools.starmap,
) -> tuple[list[Run], list[Split], dict[str, dict[str, list[float]]]]:
    """Every run of every arm, networks along every bound, and the scores of random points; `each` calls a function with
    many arguments, one after the other or side by side."""
    bounds = [(setting, bound) for setting in settings for bound in setting.bounds]
    jobs = [(setting, bound, seed) for setting, bound in bounds for seed in range(seeds)]
    runs: list[Run] = []
    for job, done in zip(jobs, each(compared, jobs), strict=True):
        runs += done
        print(f"{job[0].name}, {job[1]} FLOPs, seed {job[2]}", file=sys.stderr, flush=True)
    filled = [split for found in each(along, [(*pair, splits) for pair in bounds]) for split in found]
    scores = dict(zip((s.name for s in settings), each(scored, [(s, points) for s in settings]), strict=True))
    return runs, filled, scores


def side_by_side(workers: int) -> Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[Any]]:
    """Calls in so many processes of one thread each, their results in order."""

    def each(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            yield from pool.map(function, *zip(*arguments, strict=True))

    return each


def settings_of(quick: bool) -> list[Setting]:
    """What is studied here: MNIST only where it is."""
    if quick:
        return [replace(DIGITS, bounds=(3000,), trainings=4, retrainings=3)]
    try:
        task_of(PIXELS.task)
    except Invalid:
        place = os.environ.get("CONTINUA_DATA") or "which is not set"
        print(f"MNIST is not below CONTINUA_DATA ({place}): the study is of digits alone.", file=sys.stderr)
        return [DIGITS]
    return [DIGITS, PIXELS]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, print its tables, and write what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="digits, one bound, two seeds, 20 points")
    parser.add_argument("--seeds", type=int, default=None, help="search seeds (default: 10)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--json", type=Path, help="write every run here")
    parser.add_argument("--pictures", type=Path, help="draw width_study.png in this directory")
    given = parser.parse_args(arguments)
    began, settings = time.perf_counter(), settings_of(given.quick)
    seeds = given.seeds or (2 if given.quick else 10)
    each = side_by_side(given.workers) if given.workers > 1 else itertools.starmap
    runs, splits, scores = study(settings, seeds=seeds, points=20 if given.quick else 128, each=each)
    seconds = time.perf_counter() - began
    machine = f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {given.workers} process(es)"
    print(as_markdown(runs, splits, scores) + f"\n{machine}, {seconds:.0f} s.")
    if given.json:
        document: Mapping[str, Any] = {
            "machine": machine,
            "seconds": seconds,
            "runs": [asdict(run) for run in runs],
            "splits": [asdict(split) for split in splits],
            "ranking": {name: ranked(found) for name, found in scores.items()},
            "scores": scores,
        }
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    if given.pictures:
        given.pictures.mkdir(parents=True, exist_ok=True)
        draw(runs, given.pictures / "width_study.png")


if __name__ == "__main__":
    main()
