"""What has to be known before a search can be driven: its plan, how many lanes a bundle has, and how they run.

    >>> ready = prepared(search, *check(document["spec"]))
    >>> ready.lanes, ready.way
    (16, "per_lane")

It is the one part of driving that calls the user's own code. Where that needs packages which only a Ray runtime
environment has, a process there prepares (`service.executors.ray_connection.there`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from search_spaces.networks import Own
from service.planning import device_of, plan_of, threads_of
from service.spec import SearchSpec, check
from trials.calibrate import CANDIDATES, calibrate, fitting, is_plain
from trials.plan import Plan
from trials.store import SearchStore, Store
from trials.tasks import Task
from trials.train import threads
from trials.training import WAYS


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A spec without `auto`s and its plan, which calls no code of the user's and can go where that cannot be imported;
    lanes of a bundle, the way that they run, and the event that records the measuring, where there was one."""

    spec: SearchSpec
    plan: Plan
    lanes: int
    way: str
    measured: dict[str, Any] | None


def prepared(search: SearchStore, spec: SearchSpec, task: Task | Callable[..., Any], *, workers: int = 1) -> Prepared:
    """Here and now. So many `workers` will share this machine's memory; those with a part of a GPU share that, too."""
    gpus = spec.resources.gpus_per_worker
    sharing = max(workers, math.floor(1 / gpus) if 0 < gpus < 1 else 1)
    with threads(threads_of(spec)):
        lanes, way, measured = _lanes(search, spec, plan_of(spec, task), sharing)
    plan = plan_of(spec, task, way)
    network = plan.network.abroad() if isinstance(plan.network, Own) else plan.network
    bare = replace(plan, objective=None, network=network)
    if bare.network is not None:
        _ = bare.costs  # torch.fx traces one network at a time in a process: here, before there are threads
    return Prepared(spec=spec, plan=bare, lanes=lanes, way=way, measured=measured)


def prepared_anew(root: str, search_id: str, declared: Mapping[str, Any]) -> Prepared:
    """In a process that knows nothing yet but works where the user's code lies. Raises `Invalid` as `check` does."""
    spec, task = check(declared, directory=Path.cwd())
    made = prepared(Store.open_for_reading(root).search(search_id), spec, task)
    return replace(made, spec=_abroad(made.spec))


def _abroad(spec: SearchSpec) -> SearchSpec:
    return replace(spec, network=spec.network.abroad()) if isinstance(spec.network, Own) else spec


def _lanes(
    search: SearchStore, spec: SearchSpec, plan: Plan, sharing: int = 1
) -> tuple[int, str, dict[str, Any] | None]:
    """The lane count and the way: the spec's, those measured before, or measured now (with the event that records
    them); never more lanes than there is memory for where so many workers are sharing it."""
    own = spec.resources
    ways = WAYS if own.way == "auto" else (own.way,)
    if own.trial_seconds is not None and is_plain(plan):
        return 1, plan.way, None  # one that hangs costs no other
    if isinstance(own.lanes, int) and (len(ways) == 1 or is_plain(plan)):
        return fitting(plan, own.lanes, device_of(spec), sharing), plan.way, None
    for event in search.log():
        if event.kind == "calibrated":
            # there may be less memory by now
            lanes = fitting(plan, int(event.body["lanes"]), device_of(spec), sharing)
            return lanes, str(event.body.get("way", plan.way)), None
    most = -(-spec.batch_size() // own.workers)  # more would leave a worker without a bundle
    counts = (own.lanes,) if isinstance(own.lanes, int) else tuple(n for n in CANDIDATES if n <= max(most, 1))
    found = calibrate(plan, counts, ways, device=device_of(spec), workers=sharing)
    seconds = {way: {str(lanes): s for lanes, s in times.items()} for way, times in found.seconds.items()}
    return found.lanes, found.way, {**asdict(found), "seconds": seconds}
