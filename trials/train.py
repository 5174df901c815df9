"""`train(bundle)`: many trials as one program, as a generator of records that does no I/O.

    >>> trainer = Trainer(plan)
    >>> for record in trainer.train(bundle):
    ...     attempt.append(record)

A bundle's trials share a signature; each has `plan.seeds` lanes (replicates), and its metrics are their means. The data
order of a step is a function of (search seed, step), weights begin as a function of (search seed, trial number,
replicate): a trial's result does not depend on its bundle.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Iterator

import torch

from trials.batches import Rows
from trials.fused import FusedRun
from trials.lanes.making import is_dense
from trials.objective import call_objective
from trials.plan import Plan
from trials.records import Bundle, Ending, Outcome, Report, outcome_of


class Trainer:
    """Trains bundles of one search; made once per worker, so that data are prepared once."""

    def __init__(self, plan: Plan, device: torch.device | str = "cpu") -> None:
        self.plan, self.device = plan, torch.device(device)
        self._splits: dict[tuple[str, ...], Rows] = {}

    def train(self, bundle: Bundle, *, worker: str = "") -> Iterator[Report | Outcome]:
        """Records of the bundle: reports as they come, then one outcome per trial. Never raises for a trial's fault."""
        started = time.time()
        if self.plan.objective is not None:
            yield from call_objective(self.plan, bundle, worker)
            return
        try:
            yield from FusedRun(self.plan, bundle, self.rows, self.device, worker).records()
        except Exception as error:
            yield from failures(bundle, Ending.OOM if out_of_memory(error) else Ending.ERROR, error, started, worker)

    def rows(self, *splits: str) -> Rows:
        """Splits joined and on the device, prepared once."""
        if splits not in self._splits:
            assert self.plan.task is not None
            dense = is_dense(self.plan)
            self._splits[splits] = Rows.of(self.plan.task, *splits, dense=dense, device=self.device)
        return self._splits[splits]


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Arithmetic on that many threads: one for small matrices, where several mostly wait for each other. Results are
    repeatable for a fixed number only."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch has a type for it on GPUs only."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def failures(
    bundle: Bundle, ending: Ending, error: BaseException, started: float, worker: str = ""
) -> Iterator[Outcome]:
    """One outcome per trial of a bundle that ended as a whole."""
    tail = "".join(traceback.format_exception(error))[-2000:]
    facts = {"started": started, "ended": time.time(), "worker": worker, "error": tail}
    yield from (outcome_of(trial, bundle, ending, **facts) for trial in bundle.trials)
