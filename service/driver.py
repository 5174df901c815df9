"""Runs one search from its spec to its end, or goes on with one that was cut off.

    >>> result = run(spec, task, Store("runs"), executor="local")
    >>> result.progress.best.value

The driver holds the store's lease while it runs: a second one is refused. Whatever happens to it, what was told is in
the store, and `resume` goes on exactly as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from search_spaces.networks import Own
from service.controller import Controller, Progress, SearchFailed
from service.executors import Crew
from service.executors.here import Here
from service.executors.local import Bench, LocalWorkers
from service.graph_rules import without_unused
from service.planning import budgets_of, device_of, plan_of, sampler_of, threads_of
from service.samplers import Sampler
from service.slot import Assignment
from service.spec import SearchSpec, check
from trials.calibrate import CANDIDATES, calibrate, is_plain
from trials.plan import Plan
from trials.store import Conflict, SearchStore, Store
from trials.tasks import Task
from trials.train import threads
from trials.training import WAYS

Executor = Literal["local", "ray", "here"]
Watch = Callable[[Progress], None]
TICK = 0.25  # seconds between looks at the progress


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended. `state` is complete, interrupted (resumable) or failed."""

    search_id: str
    state: str
    progress: Progress
    lanes: int


def new_search_id(name: str) -> str:
    """A fresh id: the spec's name, made fit for a file name, and six random digits."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "search"
    return f"{slug}-{secrets.token_hex(3)}"


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
    name = search_id or new_search_id(spec.name)
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
    return _drive(search, spec, task, store, executor, directory, watch, interrupted, sampler, bench)


def resume(
    store: Store,
    search_id: str,
    *,
    executor: Executor = "local",
    watch: Watch | None = None,
    interrupted: threading.Event | None = None,
) -> Result:
    """Go on with a search. Raises NotFound, Invalid (its data are gone), or Held (another driver has it)."""
    search = store.search(search_id)
    document = search.spec()
    if document.get("replay"):
        raise Conflict(f"search {search_id} replays another one's points; run its comparison again instead.")
    directory = Path(document["directory"])
    spec, task = check(without_unused(document["spec"]), directory=directory)
    return _drive(search, spec, task, store, executor, directory, watch, interrupted)


def _drive(
    search: SearchStore,
    spec: SearchSpec,
    task: Task | Callable[..., Any],
    store: Store,
    executor: Executor,
    directory: Path | None,
    watch: Watch | None,
    interrupted: threading.Event | None,
    sampler: Sampler | None = None,
    bench: Bench | None = None,
) -> Result:
    with search.lease() as lease:
        with threads(threads_of(spec)):
            lanes, way, measured = _lanes(search, spec, plan_of(spec, task))
        plan = plan_of(spec, task, way)
        job = Assignment(
            spec=spec.to_dict(),
            store=str(store.root.absolute()),
            search_id=search.id,
            threads=threads_of(spec),
            directory=str((directory or Path.cwd()).absolute()),
            way=way,
        )
        # the controller calls no code of the user's, and on Ray it lives where their module cannot be imported
        network = plan.network.abroad() if isinstance(plan.network, Own) else plan.network
        bare = replace(plan, objective=None, network=network)
        if bare.network is not None:
            _ = bare.costs  # torch.fx traces one network at a time in a process: here, before there are threads
        make = partial(make_controller, job.store, search.id, lease.epoch, spec, bare, lanes, sampler)
        crew = _crew(executor, make, job, spec, bench)
        try:
            crew.controller.note("state", {"state": "running"})
            if measured is not None:
                crew.controller.note("calibrated", measured)
            try:
                _oversee(crew, watch or (lambda _: None), interrupted or threading.Event())
            except SearchFailed as error:
                with contextlib.suppress(Exception):  # the controller may be gone too
                    crew.controller.note("state", {"state": "failed", "why": str(error)})
                raise
            progress = crew.controller.progress()
            state = "failed" if progress.failure else "complete" if progress.done else "interrupted"
            crew.controller.note("state", {"state": state, "why": progress.failure})
        finally:
            crew.shutdown()
        return Result(search_id=search.id, state=state, progress=progress, lanes=lanes)


def make_controller(
    root: str, search_id: str, epoch: int, spec: SearchSpec, plan: Plan, lanes: int, sampler: Sampler | None = None
) -> Controller:
    """The search's controller, replayed from its log; called where the controller is to live."""
    search = Store(root).search(search_id)
    return Controller(
        search,
        search.log_writer(epoch),
        plan,
        sampler or sampler_of(spec, plan),
        budgets=budgets_of(spec),
        batch=spec.batch_size(),
        lanes=lanes,
    )


def _crew(
    executor: Executor, make: Callable[[], Controller], job: Assignment, spec: SearchSpec, bench: Bench | None
) -> Crew:
    wanted = spec.resources
    if executor == "ray":
        from service.executors.ray_tune import RayWorkers

        return RayWorkers(make, job, wanted.workers, wanted.cpus_per_worker, wanted.gpus_per_worker)
    if executor == "here":
        return Here(make(), job)
    return LocalWorkers(make(), job, wanted.workers, bench)


def _oversee(crew: Crew, watch: Watch, interrupted: threading.Event) -> None:
    """Let the crew work in its own thread, look on, and pass on an interruption. Raises what the crew raised."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            crew.run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work, name="crew")
    thread.start()
    while thread.is_alive():
        thread.join(TICK)
        watch(crew.controller.progress())
        if interrupted.is_set():
            crew.stop()
            thread.join()
    if raised:
        raise raised[0]


def _lanes(search: SearchStore, spec: SearchSpec, plan: Plan) -> tuple[int, str, dict[str, Any] | None]:
    """The lane count and the way: the spec's, those measured before, or measured now (with the event that records
    them)."""
    wanted = spec.resources
    ways = WAYS if wanted.way == "auto" else (wanted.way,)
    if isinstance(wanted.lanes, int) and (len(ways) == 1 or is_plain(plan)):
        return wanted.lanes, plan.way, None
    for event in search.log():
        if event.kind == "calibrated":
            return int(event.body["lanes"]), str(event.body.get("way", plan.way)), None
    most = -(-spec.batch_size() // wanted.workers)  # more would leave a worker without a bundle
    counts = (wanted.lanes,) if isinstance(wanted.lanes, int) else tuple(n for n in CANDIDATES if n <= max(most, 1))
    found = calibrate(plan, counts, ways, device=device_of(spec))
    seconds = {way: {str(lanes): s for lanes, s in times.items()} for way, times in found.seconds.items()}
    return found.lanes, found.way, {**asdict(found), "seconds": seconds}
