"""How many trials a second a worker of the service trains on a GPU, beside single runs there and processes on the CPU.

    python benchmarks/gpu.py [--json] [--quick] [--device cuda|cpu] [--processes 16]

The points of the fixed job, repeated under new trial numbers, train as one bundle of so many lanes, from the drawing of
its weights to its outcomes, as `trials.train.Trainer` trains them: grouped lanes, padded to the widest of the bundle,
and their step one CUDA graph. Without a GPU the same steps run as they are on the CPU, and the report says so. Needs
torch, not ray.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a file, from anywhere

import torch

from benchmarks import job
from benchmarks.machine import best_of, facts, square_gflops
from benchmarks.rates import agreement, steady
from benchmarks.rivals import Inputs, Trained, torch_plain
from trials.records import Bundle, Outcome, Trial
from trials.train import Trainer

CPU_LANES = 8  # of a bundle in a CPU process


def lanes(trainer: Trainer, count: int, repeats: int) -> tuple[dict[str, Any], list[Trained]]:
    """Figures of one bundle, and its trials. The first training of as many lanes, in which libraries choose and load
    their kernels, is told apart."""
    first = best_of(1, lambda: _trained(trainer, _bundle(count, count)))
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found: list[list[Outcome]] = []
    seconds = best_of(repeats, lambda: found.append(_trained(trainer, _bundle(0, count))))
    spent = [outcome.spent for outcome in found[-1]]
    figures = {
        "trials": count,
        "trials_per_s": count / seconds,
        "train_s": seconds,
        "first_s": first,
        "gflops": 1e-9 * sum(each.flops for each in spent) / seconds,
        "executed_gflops": 1e-9 * sum(each.executed_flops for each in spent) / seconds,
    }
    if trainer.device.type == "cuda":
        figures["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return figures, _errors(found[-1])


def _trained(trainer: Trainer, bundle: Bundle) -> list[Outcome]:
    ended = [record for record in trainer.train(bundle) if isinstance(record, Outcome)]
    assert len(ended) == len(bundle.trials), f"{len(bundle.trials)} trials must end, {len(ended)} did"
    return ended


def _errors(outcomes: list[Outcome]) -> list[Trained]:
    """What the agreement of two systems asks of their trials."""
    return [
        Trained(
            number=outcome.number,
            val_error=float(outcome.metrics.get("val_error", float("nan"))),
            started=outcome.started,
            ended=outcome.ended,
            worker=str(os.getpid()),
        )
        for outcome in outcomes
    ]


def _bundle(first: int, count: int) -> Bundle:
    points = job.points()
    trials = tuple(Trial(search_id="gpu", number=n, point=points[n % len(points)]) for n in range(first, first + count))
    return Bundle(search_id="gpu", id=f"b{first}", generation=0, trials=trials)


# -- what it is compared with ------------------------------------------------------------------------------------------


def alone(trainer: Trainer, count: int, repeats: int) -> dict[str, Any]:
    """One network after the other, each a bundle of its own."""
    _trained(trainer, _bundle(0, 1))
    seconds = best_of(repeats, lambda: [_trained(trainer, _bundle(number, 1)) for number in range(count)])
    return {"trials": count, "trials_per_s": count / seconds, "train_s": seconds}


def plain(device: str, count: int, epochs: int) -> dict[str, Any]:
    """One network after the other as anybody writes it in torch."""
    rows = torch_plain.Data.of(Inputs(arrays=job.inputs(count, epochs)), device)
    torch_plain.train(rows, 0)
    seconds = best_of(1, lambda: [torch_plain.train(rows, number) for number in range(count)])
    return {"trials": count, "trials_per_s": count / seconds, "train_s": seconds}


def cpu_processes(processes: int, bundles: int, epochs: int) -> tuple[dict[str, Any], list[Trained]]:
    """Fused lanes at exact sizes in CPU processes of one thread each, as the service's local workers run them."""
    os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
    given = [(CPU_LANES * i, epochs) for i in range(bundles)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        trained = [trial for part in pool.imap_unordered(_in_a_process, given) for trial in part]
    return {"processes": processes, "trials": len(trained), "trials_per_s": steady(trained)}, trained


_trainers: dict[int, Trainer] = {}


def _in_a_process(given: tuple[int, int]) -> list[Trained]:
    first, epochs = given
    if epochs not in _trainers:
        torch.set_num_threads(1)
        _trainers[epochs] = Trainer(job.plan(epochs))
        _trainers[epochs].rows("train", "outer")
    return _errors(_trained(_trainers[epochs], _bundle(first, CPU_LANES)))


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
    trainer = Trainer(job.plan(epochs), device, grouped=True)
    found: dict[str, Any] = {
        "machine": facts(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "graphs": cuda,
        "steps_per_trial": job.steps(epochs),
        "square_gflops": square_gflops(8192 if cuda else 1024, device=device),
        "lanes": {},
        "single": {},
    }
    errors: list[Trained] = []
    for count in counts:
        _say(f"{count} lanes")
        found["lanes"][str(count)], errors = lanes(trainer, count, repeats)
    _say("single runs")
    found["single"] = {"torch": plain(device, single, epochs), "lane": alone(trainer, single, repeats)}
    _say(f"{processes} processes on the CPU")
    bundles = processes * (4 if quick else 32 if cuda else 4)
    found["cpu_processes"], trained = cpu_processes(processes, bundles, epochs)
    found["agreement_with_cpu"] = agreement(errors, trained)
    best = max(figures["trials_per_s"] for figures in found["lanes"].values())
    others = {f"single_{k}": v for k, v in found["single"].items()} | {"cpu_processes": found["cpu_processes"]}
    found["best_trials_per_s"] = best
    found["ratios"] = {name: best / figures["trials_per_s"] for name, figures in others.items()}
    return found


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


LABELS = {"single_torch": "single, torch", "single_lane": "single, a bundle each"}


def table(found: dict[str, Any]) -> str:
    """The report for people."""
    how = "a bundle's step is one CUDA graph" if found["graphs"] else "no GPU: steps as they are on one CPU thread"
    lines = [
        f"{found['device']}, torch {found['machine']['torch']}; {how}; {found['steps_per_trial']} steps a trial; "
        f"square matmul {found['square_gflops']:.0f} GFLOP/s",
        "",
        f"{'lanes of a bundle':24} {'trials/s':>10} {'train s':>8} {'first s':>8} {'GFLOP/s':>9} {'executed':>9}"
        f" {'peak MB':>8}",
    ]
    for name, f in found["lanes"].items():
        peak = f"{f['peak_mb']:.0f}" if "peak_mb" in f else "-"
        lines.append(
            f"{name:24} {f['trials_per_s']:10.1f} {f['train_s']:8.3f} {f['first_s']:8.2f} "
            f"{f['gflops']:9.1f} {f['executed_gflops']:9.1f} {peak:>8}"
        )
    lines += ["", f"{'beside them':24} {'trials/s':>10} {'best lanes are':>16}"]
    beside = {f"single_{name}": f for name, f in found["single"].items()} | {"cpu_processes": found["cpu_processes"]}
    for name, f in beside.items():
        label = LABELS.get(name) or f"{f['processes']} CPU processes"
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
    found = report(device, options.processes or (16 if device == "cuda" else 2), quick=options.quick)
    print(json.dumps(found | {"quick": options.quick}) if options.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
