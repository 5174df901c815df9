"""How many trials a second the service trains on two cores, beside what else could run the same trials.

    python benchmarks/throughput.py [--json] [--quick]

One fixed list of points (`benchmarks.job`) is replayed by every system in turn, each in processes of its own with one
thread a worker: the service with local workers and on Ray, Ray Tune with OptunaSearch, Optuna in two processes, and two
processes of hand-written numpy. Then come trials that do nothing, samplers apart, and lane counts. `--quick` trains
fewer points, once; its rates are rough.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a file, from anywhere

from benchmarks import job
from benchmarks.machine import Memory, Others, facts
from benchmarks.rates import agreement, steady, whole
from benchmarks.rivals import Trained

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 2
PATIENCE = 400.0  # seconds for one measurement
ORCHESTRATION_GOAL_MS = 1.0
OURS, BAR, RIVAL = "continua_local", "numpy_pair", "ray_optuna"
DISTURBED = 0.15  # cores that others may use before the table warns
SYSTEMS = {
    "numpy_pair": "hand-written numpy, 2 processes",
    "continua_local": "continua, 2 local workers",
    "continua_ray": "continua on Ray, 2 slots",
    "optuna_pair": "Optuna and torch, 2 processes",
    "ray_optuna": "Ray Tune + OptunaSearch and torch",
}
THREADS = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is run: (points, rounds) of each system, trials that do nothing, and the rest."""

    systems: dict[str, tuple[int, int]]
    empty: dict[str, int]
    sampler: dict[str, int]
    lanes: dict[str, Any]


FULL = Scale(
    systems={
        "numpy_pair": (256, 4),
        "continua_local": (256, 4),
        "continua_ray": (256, 2),
        "optuna_pair": (64, 1),
        "ray_optuna": (64, 1),
    },
    empty={"local-1": 256, "local-64": 4096, "ray-1": 256, "ray-64": 4096, "ray_optuna": 48},
    sampler={"trials": 256, "long": 2000},
    lanes={"lanes": [1, 4, 8, 16, 64], "points": 64, "repeats": 4, "epochs": job.EPOCHS},
)
QUICK = Scale(
    systems={name: (8, 1) if name in ("optuna_pair", "ray_optuna") else (32, 1) for name in SYSTEMS},
    empty={"local-1": 32, "local-64": 256, "ray-1": 32, "ray-64": 256, "ray_optuna": 4},
    sampler={"trials": 32, "long": 128},
    lanes={"lanes": [1, 4, 8, 16, 64], "points": 64, "repeats": 1, "epochs": 2},
)


class Failed(RuntimeError):
    """A measurement ended in an error; the message is the end of what it said."""


def alone(name: str, arguments: dict[str, Any]) -> tuple[Any, float, Memory]:
    """Run a measurement in a process of its own: what it found, seconds from its start to its end, and its memory."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        answer, said = Path(directory) / "answer.json", Path(directory) / "said"
        command = [sys.executable, "-m", "benchmarks.alone", name, json.dumps(arguments), str(answer)]
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, **THREADS, "PYTHONPATH": paths}
        began = time.perf_counter()
        with said.open("wb") as output:
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            with Memory(process.pid) as memory:
                try:
                    code: int | None = process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    code = None
                finally:
                    if process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)
                        process.wait()
        seconds = time.perf_counter() - began
        if code != 0:
            how = f"took over {PATIENCE:g} s" if code is None else f"ended with exit code {code}"
            raise Failed(f"{name}: {how}; it said: {said.read_text(errors='replace')[-3000:]}")
        return json.loads(answer.read_text()), seconds, memory


# -- systems -----------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Replays:
    """The rounds of one system."""

    points: int
    rounds: list[list[Trained]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    others: list[Others] = field(default_factory=list)

    def add(self, name: str, path: Path) -> None:
        """One more round."""
        with Others() as others:
            found, seconds, memory = alone(name, {"path": str(path), "count": self.points, "workers": WORKERS})
        self.rounds.append([Trained(**trial) for trial in found])
        self.seconds.append(seconds)
        self.memory.append(memory)
        self.others.append(others)

    def figures(self) -> dict[str, Any]:
        """What the rounds show by themselves. The mean cost tells whether a shorter list is as dear as a longer."""
        rates = [steady(trained) for trained in self.rounds]
        cost = sum(job.flops(point) for point in job.points(self.points)) / self.points
        return {
            "points": self.points,
            "trials": [len(trained) for trained in self.rounds],
            "workers": [len({t.worker for t in trained}) for trained in self.rounds],
            "trials_per_s": median(rates),
            "trials_per_s_of_rounds": rates,
            "whole_trials_per_s": median(whole(trained) for trained in self.rounds),
            "wall_s": median(self.seconds),
            "mflops_per_trial": 1e-6 * cost,
            "gflops": 1e-9 * cost * median(rates),
            "memory": {
                key: max((getattr(m, key) or 0.0 for m in self.memory), default=0.0) or None
                for key in ("together_mb", "largest_mb")
            },
        }


def replayed(scale: Scale) -> dict[str, Replays]:
    """All systems, in turn within each round, so that a change in the machine's load meets all of them."""
    runs = {name: Replays(points=points) for name, (points, _) in scale.systems.items()}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        paths = {}
        for points in {run.points for run in runs.values()}:
            paths[points] = Path(directory) / f"inputs-{points}.npz"
            job.prepare(paths[points], points)
        for number in range(max(rounds for _, rounds in scale.systems.values())):
            for name, run in runs.items():
                if number < scale.systems[name][1]:
                    _say(f"{SYSTEMS[name]}, round {number + 1}")
                    run.add(name, paths[run.points])
    return runs


def report(scale: Scale) -> dict[str, Any]:
    """Every figure."""
    found: dict[str, Any] = {"machine": facts(), "workers": WORKERS, "steps_per_trial": job.steps()}
    _say("lane counts")
    found["lanes"], _, _ = alone("lanes", scale.lanes)
    runs = replayed(scale)
    systems = {name: run.figures() for name, run in runs.items()}
    for name, figures in systems.items():
        for key, other in (("ratio_to_numpy_pair", BAR), ("ratio_to_ray_optuna", RIVAL)):
            figures[key] = figures["trials_per_s"] / systems[other]["trials_per_s"]
        figures["share_of_square_matmul"] = figures["gflops"] / (WORKERS * found["lanes"]["square_gflops"])
        figures["share_of_job_shapes"] = figures["gflops"] / (WORKERS * found["lanes"]["job_shapes_gflops"])
        figures["agreement_with_numpy_pair"] = agreement(runs[name].rounds[0], runs[BAR].rounds[0])
    found["systems"] = systems
    found["others_cores"] = max((o.cores or 0.0 for name in (BAR, OURS) for o in runs[name].others), default=0.0)
    _say("trials that do nothing")
    found["orchestration"], _, _ = alone("empty", {"counts": scale.empty, "workers": WORKERS})
    _say("samplers")
    found["samplers"], _, _ = alone("samplers", scale.sampler)
    found["goals"] = goals(found)
    return found


def goals(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the service sets itself, and whether this run met it."""
    ratio = found["systems"][OURS]["ratio_to_numpy_pair"]
    goal: dict[str, dict[str, Any]] = {
        "steady_rate_at_least_numpy_pair": {"measured": ratio, "goal": 1.0, "met": ratio >= 1.0}
    }
    for executor in ("local", "ray"):
        ms = found["orchestration"][f"{executor}-64"]["wall_ms_per_trial"]
        key = f"orchestration_ms_at_64_lanes_{executor}"
        goal[key] = {"measured": ms, "goal": ORCHESTRATION_GOAL_MS, "met": ms <= ORCHESTRATION_GOAL_MS}
    return goal


# -- output ------------------------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


def table(found: dict[str, Any]) -> str:
    """The report for people."""
    machine, lanes = found["machine"], found["lanes"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load'][0]:.1f}; Python {machine['python']}, "
        + ", ".join(f"{name} {machine[name]}" for name in ("torch", "ray", "optuna", "numpy")),
        f"One thread multiplies {lanes['square_gflops']:.0f} GFLOP/s (1024 x 1024), "
        f"{lanes['job_shapes_gflops']:.0f} GFLOP/s in the job's own shapes.",
        "",
        f"{'the same trials, two workers':34} {'trials/s':>9} {'rounds':>9} {'x numpy':>8} {'x Tune':>7} {'wall s':>7}"
        f" {'points':>7} {'of matmul':>9} {'of shapes':>9} {'MB':>6} {'|d err|':>8} {'rank':>6}",
    ]
    for name, s in found["systems"].items():
        same = s["agreement_with_numpy_pair"]
        lines.append(
            f"{SYSTEMS[name]:34} {s['trials_per_s']:9.1f} {_spread(s['trials_per_s_of_rounds']):>9} "
            f"{s['ratio_to_numpy_pair']:8.2f} "
            f"{s['ratio_to_ray_optuna']:7.1f} {s['wall_s']:7.1f} {s['points']:7d} {s['share_of_square_matmul']:9.1%} "
            f"{s['share_of_job_shapes']:9.1%} {_number(s['memory']['together_mb'], '.0f'):>6} "
            f"{_number(same['median_abs_difference'], '.4f'):>8} {_number(same['rank_correlation'], '.3f'):>6}"
        )
    shortest = min(s["points"] for s in found["systems"].values())
    costs = sorted({(s["points"], s["mflops_per_trial"]) for s in found["systems"].values()})
    lines += [
        "Rates while both workers are busy: the median of the rounds, and their spread; wall with start-up.",
        f"Slow systems replay the first {shortest} points: "
        + ", ".join(f"{points} points cost {cost:.0f} MFLOP each" for points, cost in costs)
        + ".",
        "|d err|, rank: median difference and rank correlation of the selection errors with numpy's.",
        "",
        f"{'lanes, one process':34} {'trials/s':>9} {'GFLOP/s':>8} {'of matmul':>9} {'of shapes':>9}",
    ]
    for count, figures in lanes["lanes"].items():
        lines.append(
            f"{count:>34} {figures['trials_per_s']:9.1f} {figures['gflops']:8.1f} "
            f"{figures['share_of_square_matmul']:9.1%} {figures['share_of_job_shapes']:9.1%}"
        )
    lines += ["", f"{'trials that do nothing':34} {'trials':>9} {'wall ms a trial':>16} {'worker ms a trial':>18}"]
    for name, figures in found["orchestration"].items():
        lines.append(
            f"{name:34} {figures['trials']:9d} {figures['wall_ms_per_trial']:16.2f} "
            f"{figures['worker_ms_per_trial']:18.2f}"
        )
    lines += ["", f"{'sampler':34} {'ms a point':>11} {'after':>18}"]
    for name, figures in found["samplers"].items():
        lines.append(f"{name:34} {figures['ms_per_point']:11.2f} {figures['trials']:11d} trials")
        lines.append(f"{name:34} {figures['ms_per_point_long']:11.2f} {figures['long_history']:11d} trials")
    lines.append("")
    if found["others_cores"] > DISTURBED:
        lines.append(
            f"Other processes used up to {found['others_cores']:.1f} cores meanwhile: no rate here can be trusted."
        )
    for name, goal in found["goals"].items():
        met = "met" if goal["met"] else "missed"
        lines.append(f"goal {met}: {name.replace('_', ' ')}: {goal['measured']:.2f} (goal {goal['goal']:g})")
    return "\n".join(lines)


def _spread(rates: list[float]) -> str:
    return f"{min(rates):.0f}-{max(rates):.0f}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object with every figure")
    parser.add_argument("--quick", action="store_true", help="fewer points, one round: under a minute, rough rates")
    options = parser.parse_args()
    began = time.perf_counter()
    try:
        found = report(QUICK if options.quick else FULL)
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    found |= {"quick": options.quick, "seconds": time.perf_counter() - began}
    print(json.dumps(finite(found), allow_nan=False) if options.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
