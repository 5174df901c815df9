"""Which kind of real stride is the default: shrink, resize and spectral side by side in one run.

    python -m benchmarks.strides                 # UCI digits, 16 lanes a kind: about ten minutes on one core
    python -m benchmarks.strides --task mnist    # a part of MNIST, where CONTINUA_DATA has it: longer
    python -m benchmarks.strides --quick         # less than a minute

Each kind's lanes begin at the same whole strides, spread over 1, 2 and 3, with the same weights and rows, and the
gradient of the training loss moves them (hypergradient `descent`). Measured:

    escaped     the share of strides that end more than 0.25 from where they began, begun at exactly whole ones and with
                the default jitter (which only a shrinking stride takes)
    slopes      dL/ds just left and right of the whole strides of a network trained there: `trapped` is the share that
                is below 0 on the left and above 0 on the right
    accuracy    on test rows: at the real strides, at the rounded ones, and retrained from scratch at the rounded ones,
                as the kind makes them whole and as strided convolutions, of as many channels (`strided`) and of so many
                that they have the kind's FLOPs (`as dear`)
    FLOPs       of a forward pass at the end, and of the whole training: live and executed, over those of the strided
                network; seconds of a training step likewise, in turns

The winner gains most, retrained, over strided convolutions as dear as it: a kind that keeps more cells must be worth
them. Kinds within two standard errors of it (paired, over lanes) are as good, and then the escape rate from exactly
whole strides decides, if they differ by more than 0.1, and then the live FLOPs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import timing
from benchmarks.machine import facts
from search_spaces import Point, Space
from search_spaces.extent import KINDS, least_stride
from search_spaces.networks import ConvNet
from trials.allocator import keep_freed_memory
from trials.fused import FusedRun
from trials.hypergradients.method import Method
from trials.noise import fold
from trials.plan import Plan
from trials.records import Bundle, Outcome, Trial
from trials.tasks import Task, load
from trials.train import Trainer
from trials.training import Training

STARTS = ((1, 1, 2), (2, 1, 1), (1, 2, 2), (2, 2, 1), (2, 2, 2), (3, 1, 2), (1, 3, 1), (3, 2, 3))
HIGH = 4.0  # the greatest stride
FAR = 0.25  # beyond which a stride has left
ASIDE = 0.02  # how far beside a whole stride slopes are taken
PICTURES = {"kind": "images", "train": "mnist/train.parquet", "test": "mnist/test.parquet", "rows": 3000}
TASKS: dict[str, str | Mapping[str, object]] = {"digits": "uci/digits-images", "mnist": PICTURES}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured: a lane for each of `starts`, retrained `retrainings` times. Lanes of one start differ in
    their weights."""

    starts: tuple[tuple[int, ...], ...] = STARTS
    epochs: int = 8
    retrainings: int = 2
    width: int = 8
    repeats: int = 7
    rows: int = 512  # on which slopes are taken


FULL = {"digits": Scale(), "mnist": Scale(epochs=4)}
QUICK = Scale(starts=STARTS[:4], epochs=2, retrainings=1, repeats=2)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one kind came to. Accuracies are lane by lane; `*_ratio` over the really strided network; slopes are
    [lane, stride], NaN where there is none."""

    kind: str
    escaped: float
    escaped_jittered: float
    escaped_from_one: float
    trapped: float
    right: float
    left: float
    right_of_one: float
    real: tuple[float, ...]
    rounded: tuple[float, ...]
    retrained: tuple[float, ...]
    strided: tuple[float, ...]
    as_dear: tuple[float, ...]
    ended: tuple[tuple[float, ...], ...]
    forward_kflops: float
    whole_kflops: float
    live_ratio: float
    executed_ratio: float
    seconds_ratio: float
    move_ratio: float


# -- lanes -------------------------------------------------------------------------------------------------------------


def plan_of(task: Task, kind: str, scale: Scale, seed: int, *, moves: bool, jitter: float = 0.25) -> Plan:
    """Three strided layers, after one that halves images larger than digits."""
    side = min(task.shape[1:])
    before, strides = int(side >= 16), len(scale.starts[0])
    low = least_stride(kind, side // (1 + before))
    moved = {"moved_by": "gradient"} if moves else {}
    space = {f"stride.{before + i}": {"type": "stride", "low": low, "high": HIGH, **moved} for i in range(strides)}
    return Plan(
        space=Space.from_dict(space),
        task=task,
        network=ConvNet(layers=before + strides, width=scale.width, stride=kind, jitter=jitter),
        training=Training(epochs=scale.epochs, batch_size=32, lr=0.05, momentum=0.9),
        method=Method(kind="descent", lr=0.01, every=4, warmup=40) if moves else Method(),
        metric="test_error",
        scored="test",
        evaluations=1,
        seed=seed,
    )


def points_of(plan: Plan, strides: Sequence[Sequence[float]]) -> list[Point]:
    """Lanes' points; a stride below its range begins at its least."""
    names = list(plan.space.parameters)
    low = getattr(plan.space.parameters[names[0]], "low", 1.0)
    return [{name: max(float(s), low) for name, s in zip(names, lane, strict=True)} for lane in strides]


def run_of(plan: Plan, strides: Sequence[Sequence[float]]) -> FusedRun:
    """Lanes ready to train."""
    points = points_of(plan, strides)
    trials = tuple(Trial(search_id="strides", number=i, point=p, seed=plan.seed) for i, p in enumerate(points))
    bundle = Bundle(search_id="strides", id="b", generation=0, trials=trials)
    return FusedRun(plan, bundle, Trainer(plan).rows, torch.device("cpu"))


def trained(run: FusedRun) -> list[Outcome]:
    """The lanes' outcomes."""
    outcomes = [record for record in run.records() if isinstance(record, Outcome)]
    assert all(outcome.value is not None for outcome in outcomes), "a training diverged"
    return outcomes


def ends_of(outcomes: Sequence[Outcome], names: Sequence[str], *, whole: bool = False) -> list[list[float]]:
    """Where lanes' strides ended, lane by lane."""
    points = [o.rounded if whole else o.point for o in outcomes]
    return [[float(point[name] or 0.0) for name in names] for point in points]


# -- what is measured --------------------------------------------------------------------------------------------------


def escape_rates(starts: Sequence[Sequence[float]], ends: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The share of strides that left where they began: of those begun at 2 or more, and of those begun below."""
    begun = np.asarray(starts)
    left = np.abs(np.asarray(ends) - begun) > FAR
    return float(left[begun >= 2].mean()), float(left[begun < 2].mean())


def slopes(plan: Plan, scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """dL/ds just left and just right of the whole strides of networks trained there, [lane, stride] each, on training
    rows and their batch statistics; one stride at a time leaves its place."""
    run = run_of(replace(plan, realise="fractional"), scale.starts)
    trained(run)
    assert run.architecture is not None
    widths, x_y = run.architecture.widths, run.data.batch(torch.arange(scale.rows) % len(run.data.y_R))
    at_KP, found = widths.coordinates_KP.clone(), {}
    gates = [g for g, gate in enumerate(widths.gates) if gate.role == "stride"]
    for side in (-ASIDE, ASIDE):
        columns = []
        for g in gates:
            place = widths.places[g]["n"]
            shifted_KP = at_KP.clone()
            shifted_KP[:, place] = (at_KP[:, place] + side).clamp(min=1.0)  # there is nothing left of 1
            widths.set(shifted_KP)
            run.architecture.regate(1.0)
            columns.append(widths.pull(run.program.grade_gradients(*x_y))[:, place.start].numpy())
        found[side] = np.stack(columns, 1)
    return found[-ASIDE], found[ASIDE]


def retrained(plan: Plan, strides: Sequence[Sequence[float]], scale: Scale) -> list[list[Outcome]]:
    """Trainings from scratch at whole strides, with fresh weights and orders of rows."""
    seeds = [fold(plan.seed, "again", r) >> 2 for r in range(scale.retrainings)]
    return [trained(run_of(replace(plan, seed=seed), strides)) for seed in seeds]


def widened(strided: Plan, strides: Sequence[Sequence[float]], like: Plan) -> Plan:
    """The strided plan with the fewest channels at which it costs at least what the other does, on the mean."""
    points = points_of(strided, strides)
    target, network = _mean_kflops(like, points), strided.network
    assert isinstance(network, ConvNet)
    for width in range(network.width, 64 * network.width):
        plan = replace(strided, network=replace(network, width=width))
        if _mean_kflops(plan, points) >= target:
            return plan
    raise AssertionError("more channels cost more")


def accuracies(outcomes: Sequence[Sequence[Outcome]]) -> tuple[float, ...]:
    """Lane by lane, the mean over trainings."""
    return tuple(float(np.mean([1 - (o.value or 0.0) for o in lane])) for lane in zip(*outcomes, strict=True))


def step_ratios(
    moving: Plan, ends: Sequence[Sequence[float]], strided: Plan, whole: Sequence[Sequence[float]], repeats: int
) -> tuple[float, float]:
    """Seconds of a training step of all lanes, and of one move's gradients, over those of a strided step."""
    real, plain = run_of(replace(moving, network=_unjittered(moving)), ends), run_of(strided, whole)
    x, y = real.data.batch(torch.arange(real.batch))
    works: dict[str, timing.Work] = {
        "real": lambda: real.program.step(x, y),
        "move": lambda: real.program.grade_gradients(x, y),
        "strided": lambda: plain.program.step(x, y),
    }
    found = timing.rounds(works, repeats)
    return timing.ratio(found, "real", "strided"), timing.ratio(found, "move", "strided")


def _unjittered(plan: Plan) -> ConvNet:
    assert isinstance(plan.network, ConvNet)
    return replace(plan.network, jitter=0.0)


def measured(task: Task, kind: str, scale: Scale, seed: int = 0) -> Row:
    """Everything about one kind."""
    moving, still = (plan_of(task, kind, scale, seed, moves=moves) for moves in (True, False))
    strided, names = plan_of(task, "shrink", scale, seed, moves=False), list(moving.space.parameters)
    starts = [[float(s or 0.0) for s in point.values()] for point in points_of(moving, scale.starts)]
    lanes = trained(run_of(moving, scale.starts))
    # of the three kinds only a shrinking stride is jittered: the others' lanes would be the same ones again
    exact = trained(run_of(replace(moving, network=_unjittered(moving)), scale.starts)) if kind == "shrink" else lanes
    escaped, from_one = escape_rates(starts, ends_of(exact, names))
    left, right = slopes(still, scale)
    two_sided = np.array(scale.starts) >= 2
    ends, whole = (ends_of(lanes, names, whole=rounds) for rounds in (False, True))
    again, plain, dear = (retrained(plan, whole, scale) for plan in (still, strided, widened(strided, whole, still)))
    spent = {what: np.mean([getattr(o.spent, what) for o in lanes]) for what in ("flops", "executed_flops")}
    baseline = float(np.mean([o.spent.flops for o in plain[0]]))
    step, move = step_ratios(moving, ends, strided, whole, scale.repeats)
    assert moving.network is not None
    return Row(
        kind=kind,
        escaped=escaped,
        escaped_jittered=escape_rates(starts, ends_of(lanes, names))[0],
        escaped_from_one=from_one,
        trapped=float(((left < 0) & (right > 0))[two_sided].mean()),
        left=float(left[two_sided].mean()),
        right=float(right[two_sided].mean()),
        right_of_one=float(right[~two_sided].mean()),
        real=accuracies([lanes]),
        rounded=tuple(1 - o.metrics["rounded_value"] for o in lanes),
        retrained=accuracies(again),
        strided=accuracies(plain),
        as_dear=accuracies(dear),
        ended=tuple(map(tuple, ends)),
        forward_kflops=_mean_kflops(moving, [o.point for o in lanes]),
        whole_kflops=float(np.mean([o.metrics["forward_flops"] for o in lanes])) / 1e3,
        live_ratio=float(spent["flops"]) / baseline,
        executed_ratio=float(spent["executed_flops"]) / baseline,
        seconds_ratio=step,
        move_ratio=move,
    )


def _mean_kflops(plan: Plan, points: Sequence[Point]) -> float:
    assert plan.network is not None
    return (
        float(
            np.mean([plan.priced(plan.network.named(plan.network.sizes(point)))["forward_flops"] for point in points])
        )
        / 1e3
    )


# -- what it says ------------------------------------------------------------------------------------------------------


def winner(rows: Sequence[Row]) -> tuple[str, str]:
    """The kind that the rule above chooses, and what decided."""
    best = _best(rows)
    level = [row for row in rows if row is best or _as_good(row, best)]
    if len(level) == 1:
        return best.kind, "accuracy at equal FLOPs"
    most = max(row.escaped for row in level)
    free = [row for row in level if row.escaped >= most - 0.1]
    if len(free) == 1:
        return free[0].kind, "escape rate"
    return min(free, key=lambda row: row.live_ratio).kind, "live FLOPs"


def _as_good(row: Row, best: Row) -> bool:
    mean, error = _behind(row, best)
    return mean <= 2 * error


def _best(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: float(_gains(row).mean()))


def _gains(row: Row) -> np.ndarray:
    """Retrained accuracies over those of strided convolutions as dear, lane by lane."""
    return np.subtract(row.retrained, row.as_dear)


def _behind(row: Row, best: Row) -> tuple[float, float]:
    """By how much a kind gains less than the best, lane by lane: the mean and its standard error."""
    each = np.subtract(_gains(best), _gains(row))
    return float(each.mean()), float(each.std(ddof=1) / len(each) ** 0.5)


def table(rows: Sequence[Row]) -> str:
    """One row a kind, and which one wins."""
    heads = (
        "kind | escaped from 2, 3 | jittered | from 1 | dL/ds left | right | trapped | right of 1 | accuracy, real "
        "| rounded | retrained | strided | as dear | kFLOPs | whole | live | executed | step | move"
    )
    lines = [f"| {heads} |", "|" + "---|" * (heads.count("|") + 1)]
    for row in rows:
        shares = [f"{share:.0%}" for share in (row.escaped, row.escaped_jittered, row.escaped_from_one)]
        slope = [f"{row.left:+.3f}", f"{row.right:+.3f}", f"{row.trapped:.0%}", f"{row.right_of_one:+.3f}"]
        scores = [f"{100 * np.mean(own):.1f}" for own in (row.real, row.rounded)]
        scores += [
            f"{100 * np.mean(own):.1f} ± {100 * np.std(own, ddof=1):.1f}"
            for own in (row.retrained, row.strided, row.as_dear)
        ]
        cost = [f"{row.forward_kflops:.0f}", f"{row.whole_kflops:.0f}"]
        ratios = (row.live_ratio, row.executed_ratio, row.seconds_ratio, row.move_ratio)
        lines.append(f"| {' | '.join([row.kind, *shares, *slope, *scores, *cost, *(f'{r:.2f}' for r in ratios)])} |")
    return "\n".join([*lines, "", _decision(rows)])


def _decision(rows: Sequence[Row]) -> str:
    best, (kind, why) = _best(rows), winner(rows)
    behind = []
    for row in rows:
        if row is not best:
            mean, error = _behind(row, best)
            behind.append(f"{row.kind} {100 * mean:.1f} (standard error {100 * error:.1f})")
    told = (
        f" Points gained over strided convolutions as dear, behind {best.kind}: {', '.join(behind)}." if behind else ""
    )
    return f"By the rule: {kind}, by {why}.{told}"


def main(arguments: list[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="four lanes a kind on digits, two epochs")
    parser.add_argument("--task", choices=tuple(TASKS), default="digits")
    parser.add_argument("--rounds", type=int, default=None, help="lanes that begin at each start (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there as one JSON object")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    name = "digits" if options.quick else options.task
    scale, task, rows = QUICK if options.quick else FULL[name], load(TASKS[name]), []
    scale = replace(scale, starts=scale.starts * (options.rounds or (1 if options.quick else 2)))
    for kind in KINDS:
        rows.append(measured(task, kind, scale))
        print(f"{kind} is measured", file=sys.stderr, flush=True)
    print(table(rows))
    if options.json is not None:
        kind, why = winner(rows)
        found = {"task": name, "machine": facts(), "winner": kind, "decided_by": why}
        options.json.write_text(json.dumps({**found, "rows": [asdict(row) for row in rows]}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
