"""Does local search find width? Every inner-loop gradient method from a start too narrow, under a bound on FLOPs.

    python examples/local_search_stalls.py --picture docs/local_search.png     # 15 to 20 minutes on one core
    python examples/local_search_stalls.py --quick                             # under a minute: 4 seeds, few epochs

UCI digits, two hidden layers of 4 units each, of a range of 2 to 64, under a bound that 32 and 32 units just meet. A
gradient moves both widths while the weights train (`trials.hypergradients`), by Adam, one move every 10 steps. The
seeds are lanes of one bundle. Each method is tried at the same few outer learning rates, and shown at the one with the
least mean selection error; nothing else is tuned.

    descent, bilevel, bilevel second      on the loss of now, and one step ahead
    unrolled, forward, reversible         through all steps since the last move, by three ways to the same derivative
    truncated                             through the last half of them
    implicit, hypernet                    at where training would come to rest

each with the memberships `band` and `interval`, and `interval` with units grown by GradMax. To compare with:

    none       the widths stay where they begin
    noise      the same moves by the same optimiser under the same bound, of random numbers for a gradient: what moving
               alone comes to, for there is more room above the start than below
    capacity   descent on C_k, the loss of networks trained 200 steps from scratch (`trials.capacity`)
    widest     the largest width that the bound allows both layers

Where a run ended is rounded within the bound and trained from scratch, three times with fresh seeds, on all but
selection and test rows: the mean test error is the run's.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
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
from local_search_tables import NONE, WIDEST, Run, as_markdown, chosen, draw, verdicts
from torch import Tensor

from search_spaces import Point, Space
from search_spaces.networks import MLP
from trials.capacity import CapacityDescent
from trials.capacity.losses import capacity_loss
from trials.hypergradients.method import Method
from trials.hypergradients.moves import Moves
from trials.noise import fold, normal
from trials.plan import Plan
from trials.records import Bundle, Outcome, Report, Trial
from trials.tasks import Task, load
from trials.train import Trainer, threads
from trials.training import Training

LOW, START, HIGH = 2, 4, 64  # units of a layer
BOUND = 6784  # FLOPs of a forward pass with 32 and 32 units
GATES = ("width.0", "width.1")
EVERY, RETRAININGS, SEED = 10, 3, 0
METHODS: dict[str, dict[str, Any]] = {
    "descent": {"kind": "descent"},
    "bilevel": {"kind": "bilevel"},
    "bilevel second": {"kind": "bilevel", "order": "second"},
    "unrolled": {"kind": "unrolled"},
    "truncated": {"kind": "truncated", "horizon": EVERY // 2},
    "forward": {"kind": "forward"},
    "reversible": {"kind": "reversible"},
    "implicit": {"kind": "implicit"},
    "hypernet": {"kind": "hypernet"},
}
MEMBERSHIPS: dict[str, dict[str, str]] = {
    "band": {"membership": "band"},
    "interval": {"membership": "interval"},
    "interval gradmax": {"membership": "interval", "growth": "gradmax"},
}
Starts = Sequence[tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How much is spent: `warmup` steps come before the first move; `rates` are the outer learning rates, in units of a
    width's log range; `batches`, `pairs` and `k` those of the descent on C_k."""

    seeds: int = 12
    epochs: int = 30
    warmup: int = 50
    rates: tuple[float, ...] = (0.02, 0.05, 0.1)
    batches: int = 12
    pairs: int = 8
    k: int = 200


@dataclass(frozen=True, kw_only=True)
class Job:
    """One arm at one outer learning rate, all seeds."""

    setting: Setting
    method: str
    membership: str = ""
    lr: float = 0.0


# -- the problem -------------------------------------------------------------------------------------------------------


@functools.cache
def digits() -> Task:
    """The task, loaded once a process."""
    return load("uci/digits")


def plan_of(setting: Setting, **changes: Any) -> Plan:
    """The problem all arms share, with widths that nothing moves."""
    plan = Plan(
        space=Space.from_dict({gate: {"type": "width", "low": LOW, "high": HIGH} for gate in GATES}),
        training=Training(lr=0.05, momentum=0.9, batch_size=32, epochs=setting.epochs),
        task=digits(),
        network=MLP(layers=2, activation="tanh"),
        bounds={"flops": BOUND},
        evaluations=1,
        seed=SEED,
    )
    return replace(plan, **changes)


def moving(plan: Plan, method: Method, membership: Mapping[str, str]) -> Plan:
    """The same with widths that a gradient moves."""
    moved = {name: {**p, "moved_by": "gradient"} for name, p in plan.space.to_dict().items()}
    network = MLP(layers=2, activation="tanh", **membership)  # type: ignore[arg-type]
    return replace(plan, space=Space.from_dict(moved), network=network, method=method)


def point_of(widths: Sequence[float]) -> Point:
    return dict(zip(GATES, map(float, widths), strict=True))


def starts(setting: Setting) -> Starts:
    """Where the seeds begin: beside the whole width, for there an interval's derivative jumps; rounded they are it."""
    rng = np.random.default_rng(fold(SEED, "starts"))
    return [tuple(START + rng.uniform(-0.5, 0.5, len(GATES))) for _ in range(setting.seeds)]


def trained(plan: Plan, points: Starts) -> list[tuple[Outcome, list[float]]]:
    """Train points as lanes of one bundle; seed i is trial i, so arms share initialisations and data orders. With
    each outcome goes the geometric mean of its widths, wherever it was looked at on the way."""
    trials = tuple(Trial(search_id="s", number=i, point=point_of(w), seed=plan.seed) for i, w in enumerate(points))
    bundle = Bundle(search_id="s", id="b0", generation=0, trials=trials)
    outcomes, paths = list[Outcome](), {trial.id: list[float]() for trial in trials}
    for record in Trainer(plan).train(bundle):
        if isinstance(record, Outcome):
            outcomes.append(record)
        elif isinstance(record, Report) and record.architecture:
            paths[record.trial_id].append(math.exp(np.mean(np.log([record.architecture[gate] for gate in GATES]))))
    if broken := next((outcome.error for outcome in outcomes if outcome.ending == "error"), None):
        raise RuntimeError(broken)
    return [(outcome, paths[outcome.trial_id]) for outcome in outcomes]


def retrained(setting: Setting, widths: Starts) -> list[float]:
    """Mean test error of whole widths trained from scratch with fresh seeds, the same ones for every arm."""
    errors = []
    for r in range(RETRAININGS):
        fresh = plan_of(setting, scored="test", metric="test_error", seed=fold(SEED, "again", r) >> 2)
        errors.append([outcome.metrics.get("test_error", 1.0) for outcome, _ in trained(fresh, widths)])
    return [float(mean) for mean in np.mean(errors, axis=0)]


# -- where an arm ends -------------------------------------------------------------------------------------------------


def moved(job: Job) -> list[Run]:
    """Widths that a gradient moves while the weights train."""
    method = Method(**METHODS[job.method], lr=job.lr, every=EVERY, warmup=job.setting.warmup)
    plan = moving(plan_of(job.setting), method, MEMBERSHIPS[job.membership])
    return _runs(job, trained(plan, starts(job.setting)))


def still(job: Job, ends: Starts, spent: float = 0.0) -> list[Run]:
    """Widths that were found elsewhere and are trained as they are, rounded; finding them `spent` FLOPs a run."""
    return _runs(job, trained(plan_of(job.setting), ends), ends, spent)


def _runs(
    job: Job, found: Sequence[tuple[Outcome, list[float]]], ends: Starts | None = None, spent: float = 0.0
) -> list[Run]:
    plan = plan_of(job.setting)
    return [
        Run(
            method=job.method,
            membership=job.membership,
            lr=job.lr,
            seed=seed,
            start=tuple(start),
            ended=tuple(float(outcome.point[gate] or 0.0) for gate in GATES) if ends is None else tuple(ends[seed]),
            path=tuple(path),
            widths=tuple(int(outcome.rounded[gate] or 0) for gate in GATES),
            filled=1.0 + plan.excess(outcome.rounded),
            chosen=1.0 if outcome.value is None else outcome.value,
            gap=outcome.metrics.get("discretisation_gap", math.nan),
            clipped=outcome.metrics.get("clipped", 0.0),
            ending=str(outcome.ending),
            plain=outcome.spent.flops,
            spent=outcome.spent.executed_flops + spent,
        )
        for seed, (start, (outcome, path)) in enumerate(zip(starts(job.setting), found, strict=True))
    ]


def drifted(job: Job) -> list[Run]:
    """Widths that go where random numbers send them, by as many moves as a bilevel gradient makes."""
    method = Method(kind="bilevel", lr=job.lr, every=EVERY, warmup=job.setting.warmup)
    plan = moving(plan_of(job.setting), method, MEMBERSHIPS["band"])
    begin_KG = torch.tensor(starts(job.setting), dtype=torch.float64)

    def cost(n_KG: Tensor) -> Mapping[str, Tensor]:
        return {"flops": torch.as_tensor(plan.costs.flops(dict(zip(GATES, n_KG.unbind(1), strict=True))))}

    moves = Moves(method, [(LOW, HIGH, True)] * len(GATES), begin_KG, plan.bounds, cost)
    for step in method.moves(plan.training.steps(len(digits().rows(*plan.train_splits).y))):
        noise_KG = normal(fold(SEED, "noise", step), *begin_KG.shape).double()
        moves.step(noise_KG / moves.units())
    ends = [tuple(float(n) for n in row) for row in moves.n_KG]
    return still(job, ends)


def by_capacity(job: Job) -> list[Run]:
    """Widths by evolution strategies on C_k, from the same starts."""
    setting, plan, ends, spent = job.setting, plan_of(job.setting), [], 0.0
    network = MLP(layers=2, activation="tanh")
    for seed, start in enumerate(starts(setting)):
        search = CapacityDescent(
            [LOW] * len(GATES),
            [HIGH] * len(GATES),
            start=start,
            excess=lambda widths: plan.excess(point_of(widths.tolist())),
            pairs=setting.pairs,
            lr=job.lr * math.log(HIGH / LOW),
            seed=seed,
        )
        for batch in range(setting.batches):
            points = [point_of(widths) for widths in search.ask().tolist()]
            numbers = [batch * setting.pairs + i for i in range(setting.pairs)] * 2
            found = capacity_loss(
                network, digits(), points, setting.k, 1, training=plan.training, numbers=numbers, seed=seed
            )
            search.tell(found.estimate_P)
            spent += float(found.flops_P.sum())
        ends.append(tuple(float(n) for n in search.recommend()))
    return still(job, ends, spent / setting.seeds)


def widest(plan: Plan) -> int:
    """The largest width that the bound allows both layers."""
    return max(n for n in range(LOW, HIGH + 1) if plan.excess(point_of((n, n))) <= 0)


def run(job: Job) -> list[Run]:
    """All seeds of a job."""
    with threads(1):
        match job.method:
            case "none":
                return still(job, starts(job.setting))
            case "widest":
                return still(job, [(widest(plan_of(job.setting)),) * len(GATES)] * job.setting.seeds)
            case "noise":
                return drifted(job)
            case "capacity":
                return by_capacity(job)
        return moved(job)


# -- the study ---------------------------------------------------------------------------------------------------------


def jobs_of(setting: Setting) -> list[Job]:
    """Every arm at every outer rate; the costly descent on C_k at the middle one only."""
    middle = setting.rates[len(setting.rates) // 2]
    found = [Job(setting=setting, method=NONE), Job(setting=setting, method=WIDEST)]
    found += [Job(setting=setting, method="noise", lr=lr) for lr in setting.rates]
    found += [Job(setting=setting, method="capacity", lr=middle)]
    arms = itertools.product(MEMBERSHIPS, METHODS, setting.rates)
    return found + [Job(setting=setting, method=method, membership=m, lr=lr) for m, method, lr in arms]


def study(
    setting: Setting, each: Callable[[Callable[[Job], list[Run]], Sequence[Job]], Iterator[list[Run]]] = map
) -> tuple[list[Run], list[Run]]:
    """The runs of each arm at its best rate, retrained, and those of all rates as they ended."""
    jobs, tried = jobs_of(setting), list[Run]()
    for job, runs in zip(jobs, each(run, jobs), strict=True):
        tried += runs
        print(f"{job.membership} {job.method} at {job.lr:g}".strip(), file=sys.stderr, flush=True)
    final: list[Run] = []
    for own in chosen(tried).values():
        with threads(1):
            errors = retrained(setting, [r.widths for r in own])
        final += [replace(r, test_error=error) for r, error in zip(own, errors, strict=True)]
    return final, tried


def side_by_side(workers: int) -> Callable[[Callable[[Job], list[Run]], Sequence[Job]], Iterator[list[Run]]]:
    """Jobs in so many processes of one thread each, in order."""

    def each(function: Callable[[Job], list[Run]], jobs: Sequence[Job]) -> Iterator[list[Run]]:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            yield from pool.map(function, jobs)

    return each


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, print its tables, and write what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="4 seeds, 6 epochs, one outer learning rate")
    parser.add_argument("--seeds", type=int, help="seeds of every arm (default: 12)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--json", nargs="?", const="-", help="print one JSON object, or write it to this file")
    parser.add_argument("--picture", type=Path, help="draw where the widths ended and what they are worth")
    given = parser.parse_args(arguments)
    small = Setting(seeds=4, epochs=6, rates=(0.05,), batches=2, pairs=4, k=50)
    setting = small if given.quick else Setting()
    setting = replace(setting, seeds=given.seeds or setting.seeds)
    began = time.perf_counter()
    final, tried = study(setting, side_by_side(given.workers) if given.workers > 1 else map)
    seconds = time.perf_counter() - began
    facts = {"setting": asdict(setting), "bound": BOUND, "torch": torch.__version__, "seconds": seconds}
    runs = {"runs": [asdict(run) for run in final], "tried": [asdict(run) for run in tried]}
    document = {**facts, "verdicts": verdicts(final), **runs}
    if given.json == "-":
        print(json.dumps(document))
    else:
        print(as_markdown(final, tried))
        print(f"\n{setting.seeds} seeds, {setting.epochs} epochs, torch {torch.__version__}: {seconds:.0f} s.")
    if given.json and given.json != "-":
        Path(given.json).write_text(json.dumps(document, indent=1) + "\n")
    if given.picture:
        draw(final, given.picture, f"Two layers of {START} units, under {BOUND:,} FLOPs, {setting.seeds} seeds")


if __name__ == "__main__":
    main()
