"""How many trials a second fused lanes train on a GPU, beside single runs there and processes on the CPU.

    python benchmarks/gpu.py [--json] [--quick] [--device cuda|cpu] [--processes 16]

The points of the fixed job, repeated under new trial numbers, train as grouped lanes: each lane is padded with silent
units to its shape class, a class is one program of batched products, and its whole step is one CUDA graph; classes run
side by side on streams of their own. `powers` pads each width to a power of two, `one` pads all to the widest. Without
a GPU the same step runs eagerly on the CPU, and the report says so. Needs torch, not ray.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a file, from anywhere

import torch

from benchmarks import job
from benchmarks.grouped import CLASSES, Data, Group, Program, groups_of, widths
from benchmarks.machine import best_of, facts, square_gflops
from benchmarks.rates import agreement, steady
from benchmarks.rivals import Inputs, Trained, torch_plain
from trials.records import Bundle, Outcome, Trial
from trials.train import Trainer

CPU_LANES = 8  # of a bundle in a CPU process


def _program(data: Data, count: int, classes: str, *, graphed: bool) -> Program:
    return Program(groups_of(data, count, classes), graphed=graphed)


def measured(make: Callable[[], Program], trials: int, repeats: int) -> tuple[dict[str, Any], dict[int, float]]:
    """Figures of a program: set-up (capture included) apart from training; and its errors."""
    began = time.perf_counter()
    program = make()
    program.train()  # set-up ends with a first training: kernels are chosen and loaded here
    setup = time.perf_counter() - began
    found: list[dict[int, float]] = []
    seconds = best_of(repeats, lambda: found.append(program.train()))
    live = sum(job.flops(point) for point in job.points(trials)) / job.steps() * program.groups[0].data.steps
    executed = sum(group.executed_flops() for group in program.groups) * program.groups[0].data.steps
    figures = {
        "trials": trials,
        "classes": len(program.groups),
        "graphed": bool(program.graphs),
        "trials_per_s": trials / seconds,
        "train_s": seconds,
        "setup_s": setup,
        "gflops": 1e-9 * live / seconds,
        "executed_gflops": 1e-9 * executed / seconds,
    }
    if program.groups[0].data.device.type == "cuda":
        figures["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
    return figures, found[-1]


# -- what it is compared with ------------------------------------------------------------------------------------------


def singles(data: Data, count: int, repeats: int, *, graphed: bool) -> dict[str, Any]:
    """One network after the other at its exact sizes, each a program of one lane."""
    trials = list(enumerate(job.points(count)))
    began = time.perf_counter()
    programs = [Program([Group(data, [trial], widths(trial[1]))], graphed=graphed) for trial in trials]
    programs[0].train()
    setup = time.perf_counter() - began

    def train() -> None:
        for program in programs:
            program.train()

    seconds = best_of(repeats, train)
    return {"trials": count, "graphed": graphed, "trials_per_s": count / seconds, "train_s": seconds, "setup_s": setup}


def plain(data: Data, count: int, epochs: int) -> dict[str, Any]:
    """One network after the other as anybody writes it in torch."""
    torch.set_grad_enabled(True)
    rows = torch_plain.Data.of(Inputs(arrays=job.inputs(count, epochs)), data.device)
    torch_plain.train(rows, 0)
    seconds = best_of(1, lambda: [torch_plain.train(rows, number) for number in range(count)])
    torch.set_grad_enabled(False)
    return {"trials": count, "trials_per_s": count / seconds, "train_s": seconds}


def cpu_processes(processes: int, bundles: int, epochs: int) -> tuple[dict[str, Any], list[Trained]]:
    """Fused lanes at exact sizes in CPU processes of one thread each, as the service's local workers run them."""
    os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
    given = [(CPU_LANES * i, epochs) for i in range(bundles)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        trained = [trial for part in pool.imap_unordered(_bundle, given) for trial in part]
    return {"processes": processes, "trials": len(trained), "trials_per_s": steady(trained)}, trained


_trainers: dict[int, Trainer] = {}


def _bundle(given: tuple[int, int]) -> list[Trained]:
    first, epochs = given
    if epochs not in _trainers:
        torch.set_num_threads(1)
        _trainers[epochs] = Trainer(job.plan(epochs))
        _trainers[epochs].rows("train", "outer")
    points = job.points()
    trials = tuple(
        Trial(search_id="gpu", number=n, point=points[n % len(points)]) for n in range(first, first + CPU_LANES)
    )
    bundle = Bundle(search_id="gpu", id=f"b{first}", generation=0, trials=trials)
    return [
        Trained(
            number=o.number,
            val_error=float(o.metrics.get("val_error", float("nan"))),
            started=o.started,
            ended=o.ended,
            worker=str(os.getpid()),
        )
        for o in _trainers[epochs].train(bundle)
        if isinstance(o, Outcome)
    ]


# -- the report --------------------------------------------------------------------------------------------------------


def report(device: str, processes: int, *, quick: bool) -> dict[str, Any]:
    """Every figure."""
    cuda = device == "cuda"
    epochs = job.EPOCHS if cuda else 5 if not quick else 2
    counts = [1, 4, 16, 64, 256, 1024, 4096] if cuda else [1, 4, 16, 64]
    counts = [count for count in counts if not quick or count in (1, 16, 256)]
    single, repeats = (4 if quick else 16), (1 if quick else 3)
    if not cuda:
        torch.set_num_threads(1)
    data = Data(device, epochs)
    found: dict[str, Any] = {
        "machine": facts(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "graphs": cuda,
        "steps_per_trial": data.steps,
        "square_gflops": square_gflops(8192 if cuda else 1024, device=device),
        "lanes": {},
        "single": {},
    }
    errors: dict[int, float] = {}
    for classes in CLASSES:
        for count in counts:
            _say(f"{count} lanes, classes: {classes}")
            figures, errors = measured(partial(_program, data, count, classes, graphed=cuda), count, repeats)
            found["lanes"][f"{classes}-{count}"] = figures
    _say("single runs")
    found["single"]["torch"] = plain(data, single, epochs)
    found["single"]["eager"] = singles(data, single, repeats, graphed=False)
    if cuda:
        found["single"]["graphed"] = singles(data, single, repeats, graphed=True)
    _say(f"{processes} processes on the CPU")
    bundles = processes * (4 if quick else 32 if cuda else 4)
    found["cpu_processes"], trained = cpu_processes(processes, bundles, epochs)
    lanes = [Trained(number=n, val_error=e, started=0.0, ended=0.0, worker="") for n, e in errors.items()]
    found["agreement_with_cpu"] = agreement(lanes, trained)
    best = max(figures["trials_per_s"] for figures in found["lanes"].values())
    others = {**{f"single_{k}": v for k, v in found["single"].items()}, "cpu_processes": found["cpu_processes"]}
    found["best_trials_per_s"] = best
    found["ratios"] = {name: best / figures["trials_per_s"] for name, figures in others.items()}
    return found


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


def table(found: dict[str, Any]) -> str:
    """The report for people."""
    how = "each class's step is one CUDA graph" if found["graphs"] else "no GPU: eager steps on one CPU thread"
    lines = [
        f"{found['device']}, torch {found['machine']['torch']}; {how}; {found['steps_per_trial']} steps a trial; "
        f"square matmul {found['square_gflops']:.0f} GFLOP/s",
        "",
        f"{'grouped lanes':24} {'trials/s':>10} {'classes':>8} {'train s':>8} {'set-up s':>9} {'GFLOP/s':>9}"
        f" {'executed':>9} {'peak MB':>8}",
    ]
    for name, f in found["lanes"].items():
        peak = f"{f['peak_mb']:.0f}" if "peak_mb" in f else "-"
        lines.append(
            f"{name:24} {f['trials_per_s']:10.1f} {f['classes']:8d} {f['train_s']:8.3f} {f['setup_s']:9.2f} "
            f"{f['gflops']:9.1f} {f['executed_gflops']:9.1f} {peak:>8}"
        )
    lines += ["", f"{'beside them':24} {'trials/s':>10} {'best lanes are':>16}"]
    beside = {f"single_{name}": f for name, f in found["single"].items()} | {"cpu_processes": found["cpu_processes"]}
    for name, f in beside.items():
        label = f"{f['processes']} CPU processes" if "processes" in f else name.replace("_", ", ")
        lines.append(f"{label:24} {f['trials_per_s']:10.1f} {found['ratios'][name]:13.1f} x")
    same = found["agreement_with_cpu"]
    lines.append(
        f"selection errors of lanes and of CPU processes over {same['trials']} common trials: "
        f"median difference {same['median_abs_difference']}, rank correlation {same['rank_correlation']}"
    )
    return "\n".join(lines)


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object with every figure")
    parser.add_argument("--quick", action="store_true", help="fewer lane counts and points: under a minute")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cuda where there is a GPU")
    parser.add_argument("--processes", type=int, help="CPU processes to compare with (16; 2 without a GPU)")
    options = parser.parse_args()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: torch must see a GPU, but it sees none; take --device cpu")
    if options.processes is not None and options.processes < 1:
        parser.error(f"--processes: must be at least 1, but got {options.processes}")
    torch.set_grad_enabled(False)
    found = report(device, options.processes or (16 if device == "cuda" else 2), quick=options.quick)
    print(json.dumps(found | {"quick": options.quick}) if options.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
