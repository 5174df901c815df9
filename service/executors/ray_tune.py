"""Worker slots as Ray Tune trials: Tune places and replaces them, each pulls bundles from the controller.

    >>> crew = RayWorkers(make, assignment, workers=2, cpus=1, gpus=0)     # on the cluster that RAY_ADDRESS names
    >>> crew.run()                                                         # and from another thread meanwhile:
    >>> crew.scale(8)                    # as many as there is room for; a node that joins later is used too

One Tune trial is one slot, not one trial of the search: a slot pulls a bundle in milliseconds, where a Tune trial
costs a tenth of a second or more. `SlotSearcher` yields a new slot whenever fewer live than are wanted, so a slot that
died is replaced and the number of workers can change while the search runs.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints a box to stdout whatever the verbosity
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "16")  # Tune would otherwise bring up one slot at a time
os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # a slot works where the user's code lies

import ray
from ray import tune
from ray.exceptions import (
    ActorUnavailableError,
    RayActorError,
    RpcError,
    RuntimeEnvSetupError,
)
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from service.controller import Controller, Done, Progress, SearchFailed
from service.executors.ray_connection import UNFIT, hired
from service.executors.ray_host import Left, end_with_parent
from service.executors.worker import How, Worker, attend
from service.slot import Assignment, serve
from trials.allocator import keep_freed_memory
from trials.goals import Goal
from trials.records import Bundle, Outcome

MOST_EARLY_DEATHS = 3  # slots in a row that end in an error before they pull anything
NOTICE = 20.0  # seconds within which Ray notices that a node is gone, and so explains such deaths
GRACE = 10.0  # seconds that running bundles get after a stop
IDLE = 0.25  # seconds before a slot for which there is nothing asks again


class ControllerGone(RuntimeError):
    """The process of the controller ended. Nothing is lost: the search can be resumed from its log."""


class ClusterLost(ConnectionError):
    """The cluster does not answer any more. Nothing is lost: the search can be resumed where there is one."""


class RemoteController:
    """The host's verbs as plain calls, for slots and for the driver."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def _call(self, verb: str, *args: Any) -> Any:
        try:
            return ray.get(getattr(self.actor, verb).remote(*args))
        except (ActorUnavailableError, RpcError) as error:
            said = f"{error}".partition("\n")[0]
            raise ClusterLost(f"the Ray cluster does not answer any more ({said}); resume the search.") from None
        except RayActorError as error:
            raise ControllerGone(
                f"the process of the search's controller ended ({error}); resume the search."
            ) from None

    def begin(self, make: Callable[[], Controller]) -> None:
        self._call("begin", make)

    def pull(self, worker: str) -> Bundle | Done | None:
        asked = time.monotonic()
        answer: Bundle | Done | None = self._call("pull", worker)
        if answer is None and time.monotonic() - asked < IDLE:
            time.sleep(IDLE)
        return answer

    def finish(self, bundle: Bundle, outcomes: Sequence[Outcome]) -> None:
        self._call("finish", bundle, outcomes)

    def lost(self, worker: str, words: str = "") -> None:
        self._call("lost", worker, words)

    def overdue(self, worker: str, words: str = "") -> None:
        self._call("overdue", worker, words)

    def unwritable(self, reason: str) -> None:
        self._call("unwritable", reason)

    def say(self, slot: str, words: str) -> None:
        self._call("say", slot, words)

    def gone(self, slot: str) -> Left:
        left: Left = self._call("gone", slot)
        return left

    def retire(self, worker: str) -> None:
        self._call("retire", worker)

    def adopt(self, goal: Goal) -> None:
        self._call("adopt", goal)

    def drain(self) -> None:
        self._call("drain")

    def close(self) -> None:
        self._call("close")

    def note(self, kind: str, body: dict[str, Any]) -> None:
        self._call("note", kind, body)

    def over(self) -> bool:
        return bool(self._call("over"))

    def live(self) -> int:
        return int(self._call("live"))

    def progress(self) -> Progress:
        progress: Progress = self._call("progress")
        return progress


# -- a slot ------------------------------------------------------------------------------------------------------------


def slot(config: dict[str, Any], actor: Any = None, job: Assignment | None = None) -> None:
    """The trainable: one worker slot, from its first bundle to its last."""
    assert job is not None
    end_with_parent()
    name, controller = f"ray-{config['slot']}", RemoteController(actor)
    job = job if job.directory else replace(job, directory=str(Path.cwd()))
    if job.trial_seconds is not None:
        _in_child(name, controller, job)
        return
    keep_freed_memory()
    try:
        search, trainer = job.open()
    except Exception:
        controller.say(name, traceback.format_exc())
        raise
    serve(controller, search, trainer, f"{name}-{os.getpid()}", job.checkpoint_every)


def _in_child(name: str, controller: RemoteController, job: Assignment) -> None:
    """Have a process that can be killed do the work, and another when it was."""
    early_deaths = 0
    while early_deaths < MOST_EARLY_DEATHS:
        worker = Worker.start(job.threads)
        left = attend(worker, controller, job, f"{name}-{worker.process.pid}")
        if left.how is How.DONE:
            worker.end()
            return
        early_deaths = 0 if left.pulled else early_deaths + 1
    controller.say(name, left.words)
    raise RuntimeError(f"no worker process could start; the last one said: {left.words}")


# -- what Tune asks ----------------------------------------------------------------------------------------------------


@dataclass
class _Slot:
    number: int
    nodes_lost: int  # when it was proposed
    leaving: bool = False

    @property
    def name(self) -> str:
        return f"ray-{self.number}"


@dataclass(frozen=True, kw_only=True)
class _EarlyDeath:
    at: float
    nodes_lost: int
    words: str


class SlotSearcher(Searcher):
    """Proposes a slot while fewer live than are wanted. Tune calls it with keywords, from its own thread."""

    def __init__(self, controller: RemoteController, workers: int) -> None:
        super().__init__(metric="unused", mode="min")
        self.controller, self.wanted = controller, workers
        self.live: dict[str, _Slot] = {}  # by Tune's trial, oldest first; among them those that wait for room
        self.over = False
        self.why = ""  # it cannot go on
        self._number = 0
        self._early: list[_EarlyDeath] = []

    def suggest(self, trial_id: str) -> Any:
        if self.over or self.why or self.controller.over():
            return Searcher.FINISHED
        if sum(not slot.leaving for slot in self.live.values()) >= self.wanted:
            return None
        self.live[trial_id] = _Slot(self._number, _nodes_lost())
        self._number += 1
        return {"slot": self.live[trial_id].number}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        slot = self.live.pop(trial_id, None)
        if slot is None or not error:
            return
        left = self.controller.gone(slot.name)
        if left.pulled:
            self._early.clear()
        else:
            self._early.append(_EarlyDeath(at=time.monotonic(), nodes_lost=slot.nodes_lost, words=left.words))
            self._consider()

    def surplus(self) -> Iterator[tuple[str, _Slot]]:
        """The newest slots beyond those wanted; each is given once."""
        staying = [(trial_id, slot) for trial_id, slot in self.live.items() if not slot.leaving]
        for trial_id, slot in reversed(staying[self.wanted :]):
            slot.leaving = True
            yield trial_id, slot

    def _consider(self) -> None:
        """Give up where slots keep dying for no reason but their own. What a lost node took along does not count."""
        lost = _nodes_lost()
        self._early = [death for death in self._early if death.nodes_lost == lost]
        if len(self._early) < MOST_EARLY_DEATHS:
            return
        said = self._early[-1].words.strip()
        if said:
            self.why = f"no worker slot could start; the last one said: {said[-2000:]}"
        elif time.monotonic() - self._early[0].at > NOTICE:
            self.why = f"{len(self._early)} worker slots in a row died before they began; Ray's worker logs say why"

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Tune is the executor, never the memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Withdrawal(FIFOScheduler):
    """Tune's own order, and several times a second a look at which slots are to leave."""

    def __init__(self, searcher: SlotSearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.searcher = searcher

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        for trial_id, slot in list(self.searcher.surplus()):
            trial = next((t for t in tune_controller.get_trials() if t.trial_id == trial_id), None)
            if trial is not None and trial.status == "PENDING":  # it waits for room and holds nothing
                tune_controller.stop_trial(trial)
            else:
                self.searcher.controller.retire(slot.name)
        return super().choose_trial_to_run(tune_controller)


class _Silence(TrialProgressCallback):
    """In place of Tune's own, which prints a line a slot whatever the verbosity."""

    def _print(self, msg: str) -> None:
        """Nothing."""


# -- the crew ----------------------------------------------------------------------------------------------------------


class RayWorkers:
    """Runs a search on Ray: started here, or the cluster that RAY_ADDRESS names.

    Args:
        runtime_env: what every worker is given, in Ray's words: `working_dir`, a directory with the user's code, which
            is then also where they work, and `pip` or `uv`, what it requires.

    Raises:
        ConnectionError: the cluster cannot be reached.
        SearchFailed: it refuses us, or what the code requires cannot be installed.
    """

    def __init__(
        self,
        make: Callable[[], Controller],
        job: Assignment,
        workers: int,
        cpus: float,
        gpus: float,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        self.cpus, self.gpus = cpus, gpus
        self.job = replace(job, directory="") if runtime_env and "working_dir" in runtime_env else job
        self._error: BaseException | None = None
        actor, self._started = hired(workers, cpus, runtime_env)
        self.controller = RemoteController(actor)
        try:
            self.controller.begin(make)
        except BaseException as error:
            self.shutdown()
            if isinstance(error, RuntimeEnvSetupError):
                raise SearchFailed(UNFIT.format(error=error)) from None
            raise
        self._searcher = SlotSearcher(self.controller, workers)

    def run(self) -> None:
        """Returns when the controller is done or `stop` was called. Raises `SearchFailed` if slots keep dying."""
        fit = threading.Thread(target=self._fit, name="tune", daemon=True)
        fit.start()
        while fit.is_alive() and not self._searcher.over:
            fit.join(0.1)
        if self._searcher.over:
            fit.join(GRACE)
            return
        if isinstance(self._error, ControllerGone | ClusterLost):
            raise self._error
        if self._searcher.why or self._error is not None:
            self.controller.over()  # raises where the cluster is what failed
        if self._searcher.why:
            raise SearchFailed(self._searcher.why)
        if self._error is not None:
            raise SearchFailed(f"Ray Tune failed: {self._error}") from self._error

    def scale(self, workers: int) -> None:
        """So many slots from now on: more as there is room, of too many the newest leave after the bundle in hand."""
        self._searcher.wanted = workers

    def live(self) -> int:
        """Slots at work, those that are leaving too, and none that wait for room or still start."""
        return self.controller.live()

    def capacity(self) -> int | None:
        """Slots that the cluster's nodes have room for, whoever uses it now."""
        return sum((room(node["Resources"], self.cpus, self.gpus) for node in _nodes() if node["Alive"]), start=0)

    def stop(self) -> None:
        """No new bundles; those running have `GRACE` seconds."""
        self._searcher.over = True
        with contextlib.suppress(Exception):
            self.controller.close()

    def shutdown(self) -> None:
        """End the controller's process, and Ray or our part in it where that was begun here."""
        with contextlib.suppress(Exception):
            ray.kill(self.controller.actor)
        if self._started:
            ray.shutdown()

    def _fit(self) -> None:
        name = f"continua-{uuid4().hex[:12]}"
        trainable = tune.with_parameters(slot, actor=self.controller.actor, job=self.job)
        trainable = tune.with_resources(trainable, {"cpu": self.cpus, "gpu": self.gpus})
        slots = tune.TuneConfig(
            search_alg=self._searcher,
            scheduler=_Withdrawal(self._searcher),
            num_samples=-1,
            trial_dirname_creator=_name,
        )
        with tempfile.TemporaryDirectory(prefix="continua-tune-", ignore_cleanup_errors=True) as directory:
            run = tune.RunConfig(name=name, storage_path=directory, verbose=0, callbacks=[_Silence()])
            try:
                tune.Tuner(trainable, tune_config=slots, run_config=run).fit()
            except Exception as error:
                self._error = error


def _name(trial: Any) -> str:
    return str(trial.trial_id)


def room(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Slots that a node with such resources has room for. A fraction of a GPU is always of one.

    >>> room({"CPU": 8, "GPU": 2}, cpus=1, gpus=0.4)
    4
    """
    rooms = []
    if cpus:
        rooms.append(math.floor(resources.get("CPU", 0) / cpus + 1e-9))
    if 0 < gpus < 1:
        rooms.append(math.floor(resources.get("GPU", 0)) * math.floor(1 / gpus + 1e-9))
    elif gpus:
        rooms.append(math.floor(resources.get("GPU", 0) / gpus))
    return min(rooms, default=0)


def _nodes() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return found


def _nodes_lost() -> int:
    return sum(not node["Alive"] for node in _nodes())
