"""A worker slot: pull a bundle, train it, store its records, say so; until there is nothing left.

The whole of a worker is `serve`; executors differ only in how a slot reaches its controller.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from service.planning import device_of, plan_of
from service.progress import Done
from service.spec import check
from trials.records import Bundle, Checkpoint, Outcome
from trials.segments import FULL
from trials.store import Damaged, SearchStore, Store
from trials.train import Trainer

FLUSH_EVERY = 1.0  # seconds between durable reports of a running bundle


class Source(Protocol):
    """What a slot needs of its controller."""

    def pull(self, worker: str) -> Bundle | Done | None: ...

    def finish(self, bundle: Bundle, outcomes: Sequence[Outcome]) -> None: ...

    def unwritable(self, reason: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """All that a worker process needs to know, as plain data.

    `directory` is where the user's own modules are found, `way` how lanes with convolutions run, where the spec does
    not say it. `code` names the user's own code that is run ("": none). `trial_seconds` is what a trial may take of the
    clock (None: no limit), `grace_seconds` what a worker asked to end gets, `checkpoint_every` the seconds between
    checkpoints of lanes (None: none are made)."""

    spec: Mapping[str, Any]
    store: str
    search_id: str
    threads: int = 1
    directory: str = ""
    way: str = "per_lane"
    code: str = ""
    trial_seconds: float | None = None
    grace_seconds: float = 5.0
    checkpoint_every: float | None = 10.0

    def open(self) -> tuple[SearchStore, Trainer]:
        """The search's store and a trainer with its data loaded."""
        import torch

        torch.set_num_threads(self.threads)
        spec, task = check(self.spec, directory=Path(self.directory) if self.directory else None)
        if spec.own_code and self.directory not in sys.path:
            sys.path.insert(0, self.directory)  # the user's code may import its neighbours when it runs
        return Store.open_for_reading(self.store).search(self.search_id), Trainer(
            plan_of(spec, task, self.way), device_of(spec)
        )


def serve(
    source: Source, search: SearchStore, trainer: Trainer, worker: str, checkpoint_every: float | None = None
) -> None:
    """Train bundles until the controller is done. A bundle that a full disk has no room for is not finished, and none
    of its trials is to blame."""
    first = True
    while not isinstance(bundle := source.pull(worker), Done):
        if bundle is None:
            continue
        try:
            outcomes = train_and_store(search, trainer, bundle, worker, checkpoint_every, at_once=first)
        except OSError as error:
            if error.errno not in FULL:
                raise
            source.unwritable(error.strerror or str(error))
            continue
        source.finish(bundle, outcomes)
        first = False


def train_and_store(
    search: SearchStore,
    trainer: Trainer,
    bundle: Bundle,
    worker: str,
    checkpoint_every: float | None = None,
    *,
    at_once: bool = False,
) -> list[Outcome]:
    """One attempt, durable and closed when this returns; its first report is durable `at_once`, for somebody may wait
    to see that the search trains."""
    start = None
    if bundle.start is not None:
        with contextlib.suppress(Damaged, OSError, ValueError):  # it begins at the beginning then
            start = search.load_checkpoint(bundle.start, [trial.number for trial in bundle.trials])
        if start is not None and start.code != trainer.code:  # as it does where the code is another one by now
            start = None
    writer = search.attempt_writer(bundle.id, bundle.attempt, None if start is None else bundle.start)
    outcomes: list[Outcome] = []
    flushed = -math.inf if at_once else time.monotonic()
    for record in trainer.train(bundle, worker=worker, start=start, checkpoint_every=checkpoint_every):
        if isinstance(record, Checkpoint):
            writer.flush()  # whoever goes on from it does not report those steps again
            with contextlib.suppress(OSError):  # what would be saved is time alone, and no reason to end here
                search.save_checkpoint(record)
            flushed = time.monotonic()
            continue
        writer.append(record)
        if isinstance(record, Outcome):
            outcomes.append(record)
        elif time.monotonic() - flushed > FLUSH_EVERY:
            writer.flush()
            flushed = time.monotonic()
    writer.close()
    return outcomes
