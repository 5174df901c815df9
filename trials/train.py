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
import hashlib
import inspect
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from search_spaces.networks import Own
from trials.allocator import give_back
from trials.batches import Rows
from trials.fused import FusedRun
from trials.lanes.making import is_dense
from trials.objective import call_objective
from trials.plan import Plan
from trials.records import Bundle, Checkpoint, Ending, Outcome, Report, outcome_of
from trials.resuming import fits, spent_before
from trials.room import out_of_memory


class Trainer:
    """Trains bundles of one search; made once per worker, so that data are prepared once. `grouped` says whether dense
    lanes run as batched products at the sizes of the widest (None: on a GPU)."""

    def __init__(self, plan: Plan, device: torch.device | str = "cpu", *, grouped: bool | None = None) -> None:
        self.plan, self.device, self.grouped = plan, torch.device(device), grouped
        self.code = code_of(plan)
        self._splits: dict[tuple[str, ...], Rows] = {}

    def train(
        self,
        bundle: Bundle,
        *,
        worker: str = "",
        start: Checkpoint | None = None,
        checkpoint_every: float | None = None,
    ) -> Iterator[Report | Outcome | Checkpoint]:
        """Records of the bundle: reports as they come, then one outcome per trial. Never raises for a trial's fault.

        Between steps of a fused bundle comes a checkpoint whenever `checkpoint_every` seconds have passed since the
        last (None: never); from one of them, as `start`, the bundle goes on as if it had not been cut off. What a trial
        had cost by then is part of what it costs; the bundle's own `seconds` are those of this attempt.

        Raises:
            ValueError: `start` is not of the bundle's trials, in their order.
        """
        started = time.time()
        if self.plan.objective is not None:
            yield from call_objective(self.plan, bundle, worker)
            return
        if start is not None:
            fits(start, bundle)
        try:
            # without a name for the run, its tensors go with its frames where memory ends
            for record in FusedRun(
                self.plan, bundle, self.rows, self.device, worker, start, grouped=self.grouped
            ).records(checkpoint_every):
                yield replace(record, code=self.code) if isinstance(record, Checkpoint) else record
        except Exception as error:
            ending = Ending.ERROR
            if out_of_memory(error):
                ending = Ending.OOM
                traceback.clear_frames(error.__traceback__)  # or its tensors would live as long as it is told of
                give_back()
            yield from failures(bundle, ending, error, started, worker, start)

    def rows(self, *splits: str) -> Rows:
        """Splits joined and on the device, prepared once."""
        if splits not in self._splits:
            assert self.plan.task is not None
            dense = is_dense(self.plan)
            self._splits[splits] = Rows.of(self.plan.task, *splits, dense=dense, device=self.device)
        return self._splits[splits]


def code_of(plan: Plan) -> str:
    """The digest of the file that the user's own network comes from, as it is when a trainer is made; "" for one of
    ours. What other code has trained is nothing to go on from."""
    if not isinstance(plan.network, Own) or plan.network.factory is None:
        return ""
    try:
        return hashlib.sha256(Path(inspect.getfile(plan.network.factory)).read_bytes()).hexdigest()
    except (TypeError, OSError):  # it was made on the fly
        return ""


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


def failures(
    bundle: Bundle,
    ending: Ending,
    error: BaseException,
    started: float,
    worker: str = "",
    start: Checkpoint | None = None,
) -> Iterator[Outcome]:
    """One outcome per trial of a bundle that ended as a whole, after it had gone on from `start`."""
    tail = "".join(traceback.format_exception(error))[-2000:]
    facts = {"ended": time.time(), "worker": worker, "error": tail}
    for i, trial in enumerate(bundle.trials):
        yield outcome_of(trial, bundle, ending, started=started, spent=spent_before(start, i), **facts)
