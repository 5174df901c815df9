"""Runs one search from its spec to its end, or goes on with one that was cut off.

    >>> result = run(spec, task, Store("runs"), executor="local")
    >>> result.progress.best.value

The driver holds the store's lease while it runs: a second one is refused. Whatever happens to it, what was told is in
the store, and `resume` goes on exactly as if nothing had happened.

While it runs it looks for changes of the goal, which anybody who can write to the store may make (`service.goal`): it
pauses, stops, cancels, scales, extends and narrows the search as they say.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from service.controller import Controller, Progress, SearchFailed
from service.executors import INSTALLERS, Crew
from service.executors.here import Here
from service.executors.local import Bench, LocalWorkers
from service.goal import wanted
from service.graph_rules import without_unused
from service.planning import make_controller, threads_of
from service.preparing import Prepared, prepared, prepared_anew
from service.progress import stored
from service.samplers import Sampler
from service.slot import Assignment
from service.spec import SearchSpec, check
from trials import layout
from trials.goals import Goal
from trials.store import IDLE, Conflict, SearchStore, Store
from trials.tasks import Task

Executor = Literal["local", "ray", "here"]
Watch = Callable[[Progress], None]
TICK = 0.25  # seconds between looks at the progress
LOOK = 0.5  # seconds between looks at the goal
CHECKPOINT_EVERY = 10.0  # seconds between checkpoints of lanes: what a killed worker costs at most


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended. `state` is complete, failed, interrupted (resumable), or as its goal wanted: paused, stopped or
    cancelled (resumable, once the goal is to run). `goal` is the version that it followed."""

    search_id: str
    state: str
    progress: Progress
    lanes: int
    goal: int = 0


def run(
    spec: SearchSpec,
    task: Task | Callable[..., Any],
    store: Store,
    *,
    executor: Executor = "local",
    search_id: str | None = None,
    directory: Path | None = None,
    watch: Watch | None = None,
    interrupted: threading.Event | None = None,
    labels: Mapping[str, Any] | None = None,
    sampler: Sampler | None = None,
    bench: Bench | None = None,
) -> Result:
    """Run a new search to its end.

    Args:
        watch: shown the progress a few times a second.
        interrupted: setting it stops the search, resumable.
        labels: stored beside the spec (a comparison's arm and repeat).
        sampler: asks instead of the spec's own; such a search cannot be resumed.
        bench: where local workers come from and return to.
    """
    name = search_id or layout.fresh_id(spec.name)
    versions = {library: version(library) for library in ("torch", "optuna", "pyarrow")}
    document = {
        "name": spec.name,
        "labels": dict(labels or {}),
        "replay": sampler is not None,
        "spec": spec.to_dict(),
        "directory": str(directory or Path.cwd()),
        "versions": versions,
    }
    search = store.create(name, document)
    orders = Orders(watch=watch, interrupted=interrupted)
    prepare = partial(_prepared, search, spec, task, executor, orders)
    return _drive(search, prepare, store, executor, directory, orders, sampler=sampler, bench=bench)


def resume(
    store: Store,
    search_id: str,
    *,
    executor: Executor = "local",
    watch: Watch | None = None,
    interrupted: threading.Event | None = None,
    slots: Callable[[], int | None] | None = None,
    directory: Path | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    bench: Bench | None = None,
    engaged: Callable[[Crew, int], None] | None = None,
) -> Result:
    """Go on with a search; one whose goal is not to run is left as it is.

    Args:
        slots: how many workers it may have at most, looked at again and again (None: as many as its goal wants).
        directory: where the user's own code is now (else where it was when the search was made).
        runtime_env: what Ray is to give every worker.
        bench: where local workers come from and return to.
        engaged: is told of the crew, and of the lanes of its bundles, before it begins.

    Raises:
        NotFound: there is no such search.
        Invalid: its data or code are gone.
        Held: another driver has it.
        Conflict: it replays another search's points.
    """
    search = store.search(search_id)
    document = search.spec()
    if document.get("replay"):
        raise Conflict(f"search {search_id} replays another one's points; run its comparison again instead.")
    if (goal := wanted(search)).state in IDLE:
        state = IDLE[goal.state]
        return Result(search_id=search_id, state=state, progress=stored(search), lanes=0, goal=goal.version)
    directory = directory or Path(document["directory"])
    orders = Orders(watch=watch, interrupted=interrupted, slots=slots, engaged=engaged)
    declared = without_unused(document["spec"])
    prepare: Callable[[], Prepared | None]
    if executor == "ray" and runtime_env and runtime_env.keys() & INSTALLERS:  # only there can their code be imported
        from service.executors.ray_connection import there

        anew = partial(prepared_anew, str(store.root.absolute()), search_id, declared)
        gpus = SearchSpec.from_dict(declared).resources.gpus_per_worker
        prepare = partial(there, anew, runtime_env, gpus, partial(_given_up, search, orders))
    else:
        spec, task = check(declared, directory=directory)
        prepare = partial(_prepared, search, spec, task, executor, orders)
    return _drive(search, prepare, store, executor, directory, orders, bench=bench, runtime_env=runtime_env)


def _given_up(search: SearchStore, orders: Orders) -> bool:
    return orders.interrupted.is_set() or wanted(search).state in IDLE


def _prepared(
    search: SearchStore, spec: SearchSpec, task: Task | Callable[..., Any], executor: Executor, orders: Orders
) -> Prepared:
    workers = Steering(search, orders.slots).workers() if executor == "local" else 1
    return prepared(search, spec, task, workers=max(1, workers))


class Orders:
    """What whoever started a driver tells it while it runs."""

    def __init__(
        self,
        *,
        watch: Watch | None = None,
        interrupted: threading.Event | None = None,
        slots: Callable[[], int | None] | None = None,
        engaged: Callable[[Crew, int], None] | None = None,
    ) -> None:
        self.watch = watch or (lambda _: None)
        self.interrupted = interrupted or threading.Event()
        self.slots = slots or (lambda: None)
        self.engaged = engaged or (lambda crew, lanes: None)


def _drive(
    search: SearchStore,
    prepare: Callable[[], Prepared | None],
    store: Store,
    executor: Executor,
    directory: Path | None,
    orders: Orders,
    **more: Any,
) -> Result:
    """Sit down to a search until its goal is met: what is wanted may change while it ends, when a crew that is on its
    way home cannot be called back."""
    finished = -1
    while True:
        result = _sitting(search, prepare, store, executor, directory, orders, **more)
        goal, before, finished = wanted(search), finished, result.progress.finished
        if result.state == "failed" or orders.interrupted.is_set() or goal.state != "run":
            return result
        if goal.version == result.goal and (result.state != "interrupted" or finished <= before):
            return result


def _sitting(
    search: SearchStore,
    prepare: Callable[[], Prepared | None],
    store: Store,
    executor: Executor,
    directory: Path | None,
    orders: Orders,
    *,
    sampler: Sampler | None = None,
    bench: Bench | None = None,
    runtime_env: Mapping[str, Any] | None = None,
) -> Result:
    with search.lease() as lease:
        if (ready := prepare()) is None:
            goal = wanted(search)
            state = IDLE.get(goal.state, "interrupted")
            return Result(search_id=search.id, state=state, progress=stored(search), lanes=0, goal=goal.version)
        spec, plan, lanes = ready.spec, ready.plan, ready.lanes
        where = str((directory or Path.cwd()).absolute())
        job = Assignment(
            spec=spec.to_dict(),
            store=str(store.root.absolute()),
            search_id=search.id,
            threads=threads_of(spec),
            directory=where,
            way=ready.way,
            code=where if spec.own_code else "",
            trial_seconds=spec.resources.trial_seconds,
            grace_seconds=spec.resources.grace_seconds,
            checkpoint_every=CHECKPOINT_EVERY,
        )
        make = partial(make_controller, job.store, search.id, lease.epoch, spec, plan, lanes, sampler)
        steering = Steering(search, orders.slots)
        crew = _crew(executor, make, job, spec, steering.workers(), bench, runtime_env)
        orders.engaged(crew, lanes)
        try:
            crew.controller.note("state", {"state": "running"})
            if ready.measured is not None:
                crew.controller.note("calibrated", ready.measured)
            try:
                _oversee(crew, steering, orders)
            except SearchFailed as error:
                with contextlib.suppress(Exception):  # the controller may be gone too
                    why = {"state": "failed", "why": str(error), "goal": steering.goal.version}
                    crew.controller.note("state", why)
                raise
            progress, goal = crew.controller.progress(), steering.goal
            state = _state(progress, goal)
            lasting = "interrupted" if progress.unwritable else state  # where there is room by now, it may go on
            crew.controller.note("state", {"state": lasting, "why": progress.failure, "goal": goal.version})
        finally:
            crew.shutdown()
        return Result(search_id=search.id, state=state, progress=progress, lanes=lanes, goal=goal.version)


def _state(progress: Progress, goal: Goal) -> str:
    if progress.failure:
        return "failed"
    return "complete" if progress.done else IDLE.get(goal.state, "interrupted")


def _crew(
    executor: Executor,
    make: Callable[[], Controller],
    job: Assignment,
    spec: SearchSpec,
    workers: int,
    bench: Bench | None,
    runtime_env: Mapping[str, Any] | None,
) -> Crew:
    if executor == "ray":
        from service.executors.ray_tune import RayWorkers

        own = spec.resources
        more = {} if runtime_env is None else {"runtime_env": runtime_env}
        return RayWorkers(make, job, workers, own.cpus_per_worker, own.gpus_per_worker, **more)
    if executor == "here":
        return Here(make(), job)
    return LocalWorkers(make(), job, workers, bench)


class Steering:
    """Follows the goal of a running search."""

    def __init__(self, search: SearchStore, slots: Callable[[], int | None]) -> None:
        self.search, self.slots = search, slots
        self.goal = wanted(search)
        self._adopted = self._seen = 0
        self._looked = -LOOK

    def workers(self) -> int:
        """How many are to be at work."""
        most = self.slots()
        return self.goal.workers if most is None else max(0, min(self.goal.workers, most))

    def steer(self, crew: Crew) -> None:
        """Have the crew do what is wanted now. One that was sent home goes, whatever is wanted by then, for the next
        sitting is for that; but it can be hurried."""
        self._look()
        if self.goal.version != self._adopted:
            self._adopted = self.goal.version
            crew.controller.adopt(self.goal)
            if self.goal.state == "cancel":
                crew.stop()
            elif self.goal.state != "run":
                crew.controller.drain()
        crew.scale(self.workers())

    def _look(self) -> None:
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        version = self.search.goal_version()
        if version != self._seen:
            self._seen, goal = version, wanted(self.search)
            leaving = self._adopted == self.goal.version and self.goal.state != "run"
            if not leaving or (goal.state == "cancel" and self.goal.state != "cancel"):
                self.goal = goal


def _oversee(crew: Crew, steering: Steering, orders: Orders) -> None:
    """Let the crew work in its own thread, look on, and pass on what is wanted. Raises what the crew raised."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            crew.run()
        except BaseException as error:
            raised.append(error)

    steering.steer(crew)
    thread = threading.Thread(target=work, name="crew")
    thread.start()
    try:
        while thread.is_alive():
            thread.join(TICK)
            orders.watch(crew.controller.progress())
            if orders.interrupted.is_set():
                crew.stop()
                thread.join()
            elif thread.is_alive():
                steering.steer(crew)
    except BaseException:
        with contextlib.suppress(Exception):  # whoever looks on failed, or the controller is gone: nothing may run on
            crew.stop()
        thread.join()
        if not raised:
            raise
    if raised:
        raise raised[0]
