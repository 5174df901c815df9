"""Worker slots as Ray Tune trials: Tune places and replaces them, each pulls bundles from the controller.

One Tune trial is one slot, not one trial of the search: a slot pulls a bundle in milliseconds, where a Tune trial
costs a tenth of a second or more. `SlotSearcher` yields a new slot whenever fewer live than are wanted, so a slot that
died is replaced and the number of workers can change while the search runs. The only file that imports ray.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints a box to stdout whatever the verbosity
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "16")  # Tune would otherwise bring up one slot at a time

import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher

from service.controller import Controller, Done, Progress, SearchFailed
from service.slot import Assignment, serve
from trials.allocator import keep_freed_memory
from trials.records import Bundle, Outcome

MOST_EARLY_DEATHS = 5  # slots in a row that end in an error before a bundle is finished
GRACE = 10.0  # seconds that running bundles get after a stop


def end_with_node() -> None:
    """From now on this process ends within a second of its node's manager, its parent: a killed driver leaves nothing
    behind that trains, and Ray's own notice does not always reach a busy actor."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="node", daemon=True).start()


class ControllerActor:
    """The controller in a process of its own, so that slots on any node reach it."""

    def __init__(self, make: Callable[[], Controller]) -> None:
        end_with_node()
        self._controller = make()

    def pull(self, worker: str) -> Bundle | Done | None:
        return self._controller.pull(worker)

    def finish(self, bundle: Bundle, outcomes: Sequence[Outcome]) -> None:
        self._controller.finish(bundle, outcomes)

    def lost(self, worker: str) -> None:
        self._controller.lost(worker)

    def close(self) -> None:
        self._controller.close()

    def note(self, kind: str, body: dict[str, Any]) -> None:
        self._controller.note(kind, body)

    def progress(self) -> Progress:
        return self._controller.progress()


class RemoteController:
    """The actor's verbs as plain calls, for slots and for the driver."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def pull(self, worker: str) -> Bundle | Done | None:
        answer: Bundle | Done | None = ray.get(self.actor.pull.remote(worker))
        return answer

    def finish(self, bundle: Bundle, outcomes: Sequence[Outcome]) -> None:
        ray.get(self.actor.finish.remote(bundle, outcomes))

    def lost(self, worker: str) -> None:
        ray.get(self.actor.lost.remote(worker))

    def close(self) -> None:
        ray.get(self.actor.close.remote())

    def note(self, kind: str, body: dict[str, Any]) -> None:
        ray.get(self.actor.note.remote(kind, body))

    def progress(self) -> Progress:
        progress: Progress = ray.get(self.actor.progress.remote())
        return progress


def slot(config: dict[str, Any], actor: Any = None, job: Assignment | None = None) -> None:
    """The trainable: one worker slot, from its first bundle to its last."""
    assert job is not None
    end_with_node()
    keep_freed_memory()
    search, trainer = job.open()
    serve(RemoteController(actor), search, trainer, f"ray-{config['slot']}-{os.getpid()}")


class SlotSearcher(Searcher):
    """Proposes a slot while fewer live than are wanted. Tune calls it with keywords, from its own thread."""

    def __init__(self, controller: RemoteController, wanted: Callable[[], int]) -> None:
        super().__init__(metric="unused", mode="min")
        self.controller, self.wanted = controller, wanted
        self.live: dict[str, int] = {}
        self.slots = 0
        self.deaths = 0
        self.finished_before = -1
        self.over = False

    def suggest(self, trial_id: str) -> Any:
        progress = self.controller.progress()
        if self.over or progress.done or progress.failure or self.deaths >= MOST_EARLY_DEATHS:
            return Searcher.FINISHED
        if progress.finished > self.finished_before:
            self.finished_before, self.deaths = progress.finished, 0
        if len(self.live) >= self.wanted():
            return None
        self.live[trial_id] = self.slots
        self.slots += 1
        return {"slot": self.live[trial_id]}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self.live.pop(trial_id, None)
        if error and number is not None:
            self.deaths += 1
            self.controller.lost(f"ray-{number}")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Tune is the executor, never the memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Silence(TrialProgressCallback):
    """In place of Tune's own, which prints a line a slot whatever the verbosity."""

    def _print(self, msg: str) -> None:
        """Nothing."""


class RayWorkers:
    """Runs a search on Ray: started here, or the cluster that RAY_ADDRESS names."""

    def __init__(self, make: Callable[[], Controller], job: Assignment, workers: int, cpus: float, gpus: float) -> None:
        self.job, self.workers, self.cpus, self.gpus = job, workers, cpus, gpus
        self._started = not ray.is_initialized()
        if self._started:
            _start_ray(math.ceil(workers * cpus))
        actor: Any = ray.remote(ControllerActor)
        self.controller = RemoteController(actor.options(num_cpus=0, max_concurrency=2 * workers + 8).remote(make))
        self.controller.progress()  # a controller that cannot be made says so here
        self._searcher = SlotSearcher(self.controller, lambda: self.workers)
        self._error: BaseException | None = None

    def run(self) -> None:
        """Returns when the controller is done or `stop` was called. Raises `SearchFailed` if slots keep dying."""
        fit = threading.Thread(target=self._fit, name="tune", daemon=True)
        fit.start()
        while fit.is_alive() and not self._searcher.over:
            fit.join(0.1)
        if self._searcher.over:
            fit.join(GRACE)
        if self._searcher.deaths >= MOST_EARLY_DEATHS:
            raise SearchFailed(f"{MOST_EARLY_DEATHS} worker slots in a row died; Ray's worker logs say why")
        if self._error is not None:
            raise SearchFailed(f"Ray Tune failed: {self._error}") from self._error

    def stop(self) -> None:
        """No new bundles; those running have `GRACE` seconds."""
        self._searcher.over = True
        with contextlib.suppress(Exception):
            self.controller.close()

    def shutdown(self) -> None:
        """End the actor, and Ray where it was started here."""
        with contextlib.suppress(Exception):
            ray.kill(self.controller.actor)
        if self._started:
            ray.shutdown()

    def _fit(self) -> None:
        trainable = tune.with_parameters(slot, actor=self.controller.actor, job=self.job)
        trainable = tune.with_resources(trainable, {"cpu": self.cpus, "gpu": self.gpus})
        slots = tune.TuneConfig(search_alg=self._searcher, num_samples=-1, trial_dirname_creator=_name)
        with tempfile.TemporaryDirectory(prefix="continua-tune-") as directory:
            try:
                tune.Tuner(
                    trainable,
                    tune_config=slots,
                    run_config=tune.RunConfig(
                        name=f"continua-{uuid4().hex[:12]}",
                        storage_path=directory,
                        verbose=0,
                        callbacks=[_Silence()],
                    ),
                ).fit()
            except Exception as error:
                self._error = error


def _name(trial: Any) -> str:
    return str(trial.trial_id)


def _start_ray(cpus: int) -> None:
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if "RAY_ADDRESS" in os.environ:
        ray.init(**quiet)
    else:
        ray.init(num_cpus=max(cpus, os.cpu_count() or 1), **quiet)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
