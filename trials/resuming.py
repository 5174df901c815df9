"""A fused run after some steps as a checkpoint, and a run that goes on from one: with the same trials, some of them, or
beside others, bitwise as if it had never been cut off.

    >>> checkpoint = checkpoint_of(run)              # copies, on the CPU
    >>> FusedRun(plan, bundle, rows, device, start=picked(checkpoint, [3, 7])).records()

Data order and noise are functions of the step, so a run is what its lanes are and what was counted of them:

    program.*     weights, optimiser state, sizes as laid out, running statistics     (`trials.lanes.saving`)
    rates.*       the hyperparameters, as schedules and moves have left them
    widths.*      the architecture; outer.* its optimiser and its multipliers; method.* what a method remembers; told.*
                  what the last derivative told
    run.*         FLOPs, executed FLOPs, seconds so far, when the trial began, moves made

Every tensor has the lanes on its first axis: trial by trial, replicate by replicate.

Legend of shape suffixes: K lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trials.checkpoints import picked
from trials.hypergradients.hypernet import Hypernet
from trials.lanes import saving
from trials.records import Bundle, Checkpoint, Spent

if TYPE_CHECKING:
    from trials.fused import FusedRun

__all__ = ["checkpoint_of", "fits", "picked", "resume", "spent_before"]


def checkpoint_of(run: FusedRun) -> Checkpoint:
    """The run as it is between two steps."""
    lanes, trials = len(run.lanes), range(len(run.bundle.trials))
    rates = run.hyper if run.architecture is None else run.architecture.hyper
    spent = [run.spent(i).device_s for i in trials]
    found: dict[str, Tensor] = {f"program.{name}": value for name, value in saving.saved(run.program).items()}
    found |= {f"rates.{name}": value_K.clone() for name, value_K in rates.items()}
    found |= {f"told.{name}": value_K.clone() for name, value_K in run.told.items()}
    if run.architecture is not None:
        found |= run.architecture.saved()
    if isinstance(run.method, Hypernet):
        found |= {f"method.{name}": value for name, value in run.method.saved(run.program.by_lane, lanes).items()}
    found |= {
        "run.flops": torch.from_numpy(run.flops_K.copy()),
        "run.executed_flops": torch.from_numpy(run.executed_K.copy()),
        "run.device_seconds": _by_lane(spent, run.plan.seeds),
        "run.started": _by_lane(run.started, run.plan.seeds),
        "run.made": torch.full((lanes,), run.made),
    }
    return Checkpoint(
        bundle_id=run.bundle.id,
        attempt=run.bundle.attempt,
        step=run.done,
        trials=tuple(trial.number for trial in run.bundle.trials),
        tensors={name: value.cpu().contiguous() for name, value in found.items()},
    )


def resume(run: FusedRun, start: Checkpoint) -> None:
    """A run that has not begun goes on from a checkpoint of its trials."""
    state = start.tensors
    lanes, rates = saving.part(state, "program"), saving.part(state, "rates")
    run.hyper = {name: rates[name].clone() for name in run.hyper}
    run.program.retune(run.hyper)
    if run.architecture is None:
        saving.begin(run.program, lanes)
    else:
        run.architecture.resume(state, lanes, run.hyper)
    if isinstance(run.method, Hypernet):
        run.method.resume(saving.part(state, "method"), run.program.take, run.program.stands()[0])
    run.told = {name: value_K.to(run.device) for name, value_K in saving.part(state, "told").items()}
    run.flops_K = state["run.flops"].numpy().copy()
    run.executed_K = state["run.executed_flops"].numpy().copy()
    run.earlier_s = state["run.device_seconds"][:: run.plan.seeds].tolist()
    run.started = state["run.started"][:: run.plan.seeds].tolist()
    run.made, run.done = int(state["run.made"][0]), start.step


def fits(start: Checkpoint, bundle: Bundle) -> None:
    """Raises ValueError unless a checkpoint is of the bundle's trials, in their order."""
    if (numbers := tuple(trial.number for trial in bundle.trials)) != start.trials:
        rule = "goes on from a checkpoint of its own trials, in its order"
        raise ValueError(f"bundle {bundle.id}: {rule}, but its trials are {numbers}, the checkpoint's {start.trials}")


def spent_before(start: Checkpoint | None, i: int) -> Spent:
    """What a trial had cost when it was cut off."""
    if start is None:
        return Spent()
    seeds = len(start.tensors["run.flops"]) // len(start.trials)
    own = slice(i * seeds, (i + 1) * seeds)
    return Spent(
        flops=float(start.tensors["run.flops"][own].sum()),
        executed_flops=float(start.tensors["run.executed_flops"][own].sum()),
        device_s=float(start.tensors["run.device_seconds"][i * seeds]),
    )


def _by_lane(values: Sequence[float], seeds: int) -> Tensor:
    """Each trial's number at all its lanes."""
    return torch.tensor(values, dtype=torch.float64).repeat_interleave(seeds)
