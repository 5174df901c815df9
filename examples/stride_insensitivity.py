"""Does it matter at which strides a gradient begins? Fixed and learnable strides from good and poor starts.

    python examples/stride_insensitivity.py --workers 2 --out demo    # a quarter of an hour on two cores
    python examples/stride_insensitivity.py --quick                   # UCI digits: half a minute

DiffStride (Riad et al. 2022, table 1) claims that fixed strides need a search and learnable ones do not: between a good
and a poor setting a ResNet-18 of fixed strides loses 1.5 to 1.9 points of test accuracy on CIFAR-10, a learnable one
nothing. Here a small convnet with three strided layers is trained from five settings of initial strides. Their
products differ, from 3 to 64: among settings of one product fixed strides differ too little to be good and poor.

    fixed            really strided convolutions, whole strides
    shrink           strides moved by the gradient of the training loss from the same start, by linear interpolation
    resize           the same, band-limited
    spectral         the same, DiffStride's own way; begins no lower than the least stride that it can move from
    fixed resize,    those two left at their whole strides: what is due to how a map is made smaller, which keeps more
    fixed spectral   cells than a strided convolution, and not to the movement

An arm's insensitivity is its spread: the mean test accuracy of its best setting less that of its worst.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window, no display

import numpy as np
import torch
from matplotlib.figure import Figure

from search_spaces import Invalid, Space
from search_spaces.extent import least_stride
from search_spaces.networks import ConvNet
from trials.allocator import keep_freed_memory
from trials.fused import FusedRun
from trials.hypergradients.method import Method
from trials.plan import Plan
from trials.records import Bundle, Outcome, Trial
from trials.tasks import Task, load
from trials.train import Trainer, threads
from trials.training import Training

ARMS = ("fixed", "fixed resize", "fixed spectral", "shrink", "resize", "spectral")
SETTINGS = ((1, 1, 3), (3, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4))
HIGH = 5.0  # the greatest stride
COLOURS = {"fixed": "0.35", "shrink": "tab:blue", "resize": "tab:orange", "spectral": "tab:green"}
RESAMPLES = 4000
DIGITS = "digits"
FILES = {name: {part: f"{name}/{part}.parquet" for part in ("train", "test")} for name in ("mnist", "cifar10")}
Strides = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training. `rows` of the task's train and test files, 0 for all."""

    task: str
    rows: int
    epochs: int
    width: int
    device: str
    arm: str
    start: Strides
    seed: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of a training: test accuracies at its real strides and at the rounded ones, where the strides ended,
    FLOPs of a forward pass there (real and rounded), the seconds that it took."""

    arm: str
    start: Strides
    seed: int
    accuracy: float
    rounded: float
    ended: tuple[float, ...]
    flops: float
    rounded_flops: float
    seconds: float


# -- one training ------------------------------------------------------------------------------------------------------


def task_of(name: str, rows: int) -> Task:
    """The task; images of 8 x 8 are bundled, others lie below CONTINUA_DATA."""
    if name == DIGITS:
        return load("uci/digits-images")
    return load({"kind": "images", **FILES[name], **({"rows": rows} if rows else {})})


def plan_of(job: Job) -> tuple[Plan, dict[str, float]]:
    """The problem and the point at which the training begins. Images larger than digits are halved once, by a layer
    before the strided ones."""
    task = task_of(job.task, job.rows)
    side = min(task.shape[1:])
    before = int(side >= 16)
    moves = not job.arm.startswith("fixed")
    kind = "shrink" if job.arm == "fixed" else job.arm.removeprefix("fixed ")
    low = least_stride(kind, side // (1 + before)) if moves else 1.0
    space: dict[str, dict[str, Any]] = {}
    for i, s in enumerate(job.start):
        moved = {"moved_by": "gradient", "start": max(float(s), low)} if moves else {}
        space[f"stride.{before + i}"] = {"type": "stride", "low": low, "high": HIGH, **moved}
    plan = Plan(
        space=Space.from_dict(space),
        task=task,
        network=ConvNet(layers=before + len(job.start), width=job.width, stride=kind),
        training=Training(epochs=job.epochs, batch_size=32, lr=0.05, momentum=0.9),
        method=Method(kind="descent", lr=0.01, every=4, warmup=40) if moves else Method(),
        metric="test_error",
        scored="test",
        evaluations=1,
        seed=job.seed,
    )
    return plan, {name: max(float(s), low) for name, s in zip(space, job.start, strict=True)}


def train(job: Job) -> Run:
    """Train once and measure on the test rows."""
    keep_freed_memory()
    with threads(1):
        plan, point = plan_of(job)
        assert plan.network is not None
        trial = Trial(search_id="strides", number=0, point=dict(point), seed=job.seed)
        bundle = Bundle(search_id="strides", id="b", generation=0, trials=(trial,))
        run = FusedRun(plan, bundle, Trainer(plan, job.device).rows, torch.device(job.device))
        outcome = next(record for record in run.records() if isinstance(record, Outcome))
        if outcome.value is None:
            raise SystemExit(f"{job.arm} from {name_of(job.start)}, seed {job.seed}: {outcome.ending}")
    sizes = plan.network.sizes(outcome.point)
    return Run(
        arm=job.arm,
        start=job.start,
        seed=job.seed,
        accuracy=1 - outcome.value,
        rounded=1 - outcome.metrics["rounded_value"],
        ended=tuple(float(outcome.point[name] or 0.0) for name in point),
        flops=plan.priced(plan.network.named(sizes))["forward_flops"],
        rounded_flops=outcome.metrics["forward_flops"],
        seconds=outcome.spent.device_s,
    )


def study(jobs: Sequence[Job], each: Callable[[Sequence[Job]], Iterator[Run]]) -> list[Run]:
    """All runs, told as they come."""
    runs = []
    for run in each(jobs):
        runs.append(run)
        ended = ", ".join(f"{s:.2f}" for s in run.ended)
        text = f"{run.arm} from {name_of(run.start)}, seed {run.seed}: {100 * run.accuracy:.1f}%, ended at {ended}"
        print(f"{text} ({run.seconds:.0f} s)", file=sys.stderr, flush=True)
    return runs


def name_of(start: Strides) -> str:
    return ", ".join(map(str, start))


# -- what it says ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How much an arm's accuracy depends on its start: best setting less worst, the standard deviation over settings,
    both of the means over seeds; and by how much the spread of what it is compared with is larger, with a 95%
    interval."""

    spread: float
    deviation: float
    less: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """Whether it depends less on the start than fixed strides do; one seed tells nothing."""
        if self.low == self.high:
            return "not told apart"
        return "smaller" if self.low > 0 else "larger" if self.high < 0 else "not told apart"


def by_setting(runs: Sequence[Run], arm: str, what: str = "accuracy") -> np.ndarray:
    """Values of an arm, a row a setting and a column a seed."""
    starts, seeds = dict.fromkeys(run.start for run in runs), sorted({run.seed for run in runs})
    own = {(run.start, run.seed): getattr(run, what) for run in runs if run.arm == arm}
    return np.array([[own[start, seed] for seed in seeds] for start in starts], dtype=float)


def spread_of(values: np.ndarray) -> np.ndarray:
    """Best setting less worst, of the means over seeds; values are [..., settings, seeds]."""
    means: np.ndarray = values.mean(-1)
    return np.asarray(means.max(-1) - means.min(-1))


def insensitivity(runs: Sequence[Run], what: str = "accuracy", base: str = "fixed") -> dict[str, Spread]:
    """The spread of every arm against that of one; seeds are resampled, the same ones for both arms."""
    fixed, found = by_setting(runs, base, what), {}
    count = fixed.shape[1]
    picks = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    for arm in dict.fromkeys(run.arm for run in runs):
        own = by_setting(runs, arm, what)
        drawn = spread_of(np.moveaxis(fixed[:, picks], 1, 0)) - spread_of(np.moveaxis(own[:, picks], 1, 0))
        low, high = np.quantile(drawn, (0.025, 0.975))
        found[arm] = Spread(
            spread=float(spread_of(own)),
            deviation=float(own.mean(1).std(ddof=1)) if len(own) > 1 else 0.0,
            less=float(spread_of(fixed) - spread_of(own)),
            low=float(low),
            high=float(high),
        )
    return found


def verdict(runs: Sequence[Run]) -> str:
    """What came out, in words."""
    found, fixed = insensitivity(runs), 100 * by_setting(runs, "fixed").mean(1)
    lines = [f"From the best start to the worst, fixed strides range over {np.ptp(fixed):.1f} points."]
    moved = [arm for arm in found if not arm.startswith("fixed")]
    for arm in moved:
        best = 100 * by_setting(runs, arm).mean(1).max()
        ends = f"its best start reaches {best:.1f}%, that of fixed strides {fixed.max():.1f}%"
        lines.append(f"With {arm} it is {100 * found[arm].spread:.1f}, {_less(found[arm])}; {ends}.")
        if f"fixed {arm}" in found:
            still = insensitivity(runs, base=f"fixed {arm}")[arm]
            range_over = f"its strides left in place range over {100 * found[f'fixed {arm}'].spread:.1f}"
            lines.append(f"But {range_over}, against which movement takes {_less(still)}.")
    shown = [arm for arm in moved if found[arm].words == "smaller"]
    gone = [arm for arm in shown if found[arm].spread <= found["fixed"].spread / 5]
    if gone:
        lines.append(f"The claim holds here for {' and '.join(gone)}: at most a fifth of the dependence is left.")
    elif shown:
        lines.append(f"The claim holds in part: {' and '.join(shown)} depend less on the start, but they do depend.")
    else:
        lines.append("The claim is not reproduced here.")
    return " ".join(lines)


def _less(found: Spread) -> str:
    return f"{100 * found.less:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}] less ({found.words})"


def as_markdown(runs: Sequence[Run]) -> str:
    """The table of settings, that of spreads, and the verdict."""
    lines = [
        "| initial strides | arm | test accuracy % | at rounded strides % | ended at | kFLOPs | rounded kFLOPs | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for start, arm in itertools.product(dict.fromkeys(r.start for r in runs), dict.fromkeys(r.arm for r in runs)):
        own = [run for run in runs if (run.start, run.arm) == (start, arm)]
        real, rounded = (_spelt([getattr(r, what) for r in own]) for what in ("accuracy", "rounded"))
        ended = ", ".join(f"{np.mean(s):.2f}" for s in zip(*(r.ended for r in own), strict=True))
        flops, whole = (np.mean([getattr(r, what) for r in own]) / 1e3 for what in ("flops", "rounded_flops"))
        took = np.mean([r.seconds for r in own])
        cells = [name_of(start), arm, real, rounded, ended, f"{flops:.0f}", f"{whole:.0f}", f"{took:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| arm | mean % | spread, points | sd over settings | less than fixed | | rounded: mean % | spread |",
        "|---|---|---|---|---|---|---|---|",
    ]
    at_whole = insensitivity(runs, "rounded")
    for arm, found in insensitivity(runs).items():
        less = f"{100 * found.less:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}] | {found.words}"
        cells = [arm, f"{100 * by_setting(runs, arm).mean():.1f}", f"{100 * found.spread:.1f}"]
        cells += [f"{100 * found.deviation:.1f}", "|" if arm == "fixed" else less]
        cells += [f"{100 * by_setting(runs, arm, 'rounded').mean():.1f}", f"{100 * at_whole[arm].spread:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", verdict(runs)])


def _spelt(values: Sequence[float]) -> str:
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1) if len(values) > 1 else 0.0:.1f}"


def draw(runs: Sequence[Run], path: Path, title: str) -> None:
    """Accuracy by initial strides, a line an arm; the settings in the order of what fixed strides reach."""
    starts = list(dict.fromkeys(run.start for run in runs))
    order = np.argsort(-by_setting(runs, "fixed").mean(1))
    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2, sharey=True), ("accuracy", "rounded"), strict=True):
        arms = [arm for arm in dict.fromkeys(run.arm for run in runs) if what == "accuracy" or arm in COLOURS]
        for i, arm in enumerate(arms):
            values = 100 * by_setting(runs, arm, what)[order]
            deviation = values.std(1, ddof=1) if values.shape[1] > 1 else np.zeros(len(values))
            x = np.arange(len(order)) + 0.07 * (i - len(arms) / 2)  # beside each other, that bars can be told apart
            colour, line = COLOURS[arm.split()[-1]], ":" if " " in arm else "-"
            axes.plot(x, values, ".", color=colour, alpha=0.35, ms=5)
            axes.errorbar(x, values.mean(1), deviation, color=colour, ls=line, label=arm, marker="o", ms=5, capsize=3)
        axes.set_title(
            "at the strides where it ended" if what == "accuracy" else "rounded, with the weights as they are"
        )
        axes.set_xticks(range(len(order)), [name_of(starts[i]) for i in order])
        axes.set_xlabel("initial strides, from good to poor where they stay fixed")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylim(top=min(figure.axes[0].get_ylim()[1], 101))
    figure.axes[0].set_ylabel("test accuracy, % (mean ± sd over seeds)")
    figure.axes[0].legend(frameon=False, loc="lower left")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


# -- the program -------------------------------------------------------------------------------------------------------


def one_by_one(jobs: Sequence[Job]) -> Iterator[Run]:
    return map(train, jobs)


def side_by_side(workers: int) -> Callable[[Sequence[Job]], Iterator[Run]]:
    """Trainings in so many processes of one thread each, in order."""

    def each(jobs: Sequence[Job]) -> Iterator[Run]:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            yield from pool.map(train, jobs)

    return each


def found_task(asked: str, rows: int) -> str:
    """The task asked for, or digits where its files are not there."""
    try:
        task_of(asked, rows)
    except Invalid:
        place = os.environ.get("CONTINUA_DATA") or "which is not set"
        print(f"{asked} is not below CONTINUA_DATA ({place}): UCI digits of 8 x 8 stand in for it.", file=sys.stderr)
        return DIGITS
    return asked


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, print its tables, and write what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="UCI digits, three settings, two seeds, few epochs")
    parser.add_argument("--task", choices=(*FILES, DIGITS), default="mnist")
    parser.add_argument("--rows", type=int, default=4000, help="of its train and test files; 0: all (default: 4000)")
    parser.add_argument("--seeds", type=int, default=None, help="seeds of every setting (default: 3)")
    parser.add_argument("--epochs", type=int, default=None, help="default: 4 (digits: 12)")
    parser.add_argument("--width", type=int, default=8, help="channels of every layer (default: 8)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--json", type=Path, help="write every run here")
    parser.add_argument("--out", type=Path, help="write stride_insensitivity.md and .png in this directory")
    given = parser.parse_args(arguments)
    began, task = time.perf_counter(), DIGITS if given.quick else found_task(given.task, given.rows)
    epochs = given.epochs or (2 if given.quick else 12 if task == DIGITS else 4)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    jobs = [
        Job(
            task=task, rows=given.rows, epochs=epochs, width=given.width, device=device, arm=arm, start=start, seed=seed
        )
        for seed in range(given.seeds or (2 if given.quick else 3))
        for start in (SETTINGS[:3] if given.quick else SETTINGS)
        for arm in ARMS
    ]
    runs = study(jobs, side_by_side(given.workers) if given.workers > 1 else one_by_one)
    seconds = time.perf_counter() - began
    facts = f"{task}, {epochs} epochs, {len({r.seed for r in runs})} seeds, {device}, torch {torch.__version__}"
    text = f"{as_markdown(runs)}\n\n{facts}: {seconds:.0f} s."
    print(text)
    if given.json:
        found = {arm: {**asdict(own), "words": own.words} for arm, own in insensitivity(runs).items()}
        document = {"facts": facts, "seconds": seconds, "insensitivity": found, "runs": [asdict(run) for run in runs]}
        given.json.write_text(json.dumps({**document, "verdict": verdict(runs)}, indent=1) + "\n")
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "stride_insensitivity.md").write_text(text + "\n")
        draw(runs, given.out / "stride_insensitivity.png", f"{task}: does the start of the strides matter?")


if __name__ == "__main__":
    main()
