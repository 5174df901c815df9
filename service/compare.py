"""Comparisons: several arms on one problem at equal budgets, repeated over search seeds, retrained, and judged.

    name: digits-width
    base: {task: uci/digits, network: {kind: mlp}, space: {...}, budget: {flops: 5.0e10}}
    arms:
      tpe:     {search: {sampler: tpe}}
      widest:  {sizes: widest, search: {sampler: tpe}}
      bilevel: {space: {width.0: {moved_by: gradient}}, search: {hypergradient: bilevel}}
      control: {replay: bilevel, search: {hypergradient: {lr: 0}}}
    repeats: 5
    retrain: 3

An arm is the base spec with its own keys laid over it. `sizes: widest` fixes all widths at the largest common one that
the bounds allow. `replay: ARM` asks that arm's points again, trial by trial: a paired control, which is not judged.
Each repeat is a search with its own seed, shared by its arms; arms run one at a time, so that device seconds compare.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from search_spaces import Invalid, Width
from search_spaces.faults import unknown
from search_spaces.networks import Own
from service.driver import Executor, Result, run
from service.executors.local import Bench
from service.planning import device_of, plan_of, threads_of
from service.samplers import ListedSampler, Sampler
from service.spec import SearchSpec, check
from trials.records import Outcome
from trials.retrain import retrain, schedules_of
from trials.store import Store
from trials.tasks import Task
from trials.train import threads

KEYS = ("name", "base", "arms", "repeats", "retrain")
Watch = Callable[[str, Any], None]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to search: its name, its spec, and the arm whose points it replays, if any."""

    name: str
    spec: SearchSpec
    replay: str | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared: arms on one task, `repeats` search seeds, `retrain` retrainings of each search's best."""

    name: str
    task: Task
    arms: tuple[Arm, ...]
    repeats: int
    retrain: int
    directory: Path

    @property
    def judged(self) -> list[str]:
        """The arms that compete."""
        return [arm.name for arm in self.arms if arm.replay is None]


def read_comparison(data: object, directory: Path) -> Comparison:
    """A comparison from plain data. Raises `Invalid` with every fault of every arm."""
    if not isinstance(data, Mapping):
        raise Invalid([f"comparison: must be a mapping of {', '.join(KEYS)}, but got {data!r}."])
    faults = [unknown("comparison", key, KEYS) for key in data if key not in KEYS]
    base, arms = data.get("base"), data.get("arms")
    if not isinstance(base, Mapping):
        faults.append(f"base: must be a spec, as `run` takes it, but got {base!r}.")
    if not isinstance(arms, Mapping) or len(arms) < 2:
        faults.append(f"arms: must map at least two names to what they change in the base, but got {arms!r}.")
    for key in ("repeats", "retrain"):
        value = data.get(key, 3)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            faults.append(f"{key}: must be a whole number of at least 1, but got {value!r}.")
    if faults:
        raise Invalid(faults)
    assert isinstance(base, Mapping)
    assert isinstance(arms, Mapping)
    read: list[Arm] = []
    task: Task | None = None
    for name, changes in arms.items():
        try:
            arm, task = _read_arm(str(name), base, changes, arms, directory)
            read.append(arm)
        except Invalid as error:
            faults += [fault if fault in faults else f"arms.{name}: {fault}" for fault in error.faults]
    if faults:
        raise Invalid(list(dict.fromkeys(faults)))
    assert task is not None
    return Comparison(
        name=str(data.get("name", "comparison")),
        task=task,
        arms=tuple(read),
        repeats=int(data.get("repeats", 3)),
        retrain=int(data.get("retrain", 3)),
        directory=directory,
    )


def _read_arm(
    name: str, base: Mapping[str, Any], changes: object, arms: Mapping[str, Any], directory: Path
) -> tuple[Arm, Task]:
    if not isinstance(changes, Mapping):
        raise Invalid([f"must be a mapping of what it changes in the base, but got {changes!r}."])
    own = dict(changes)
    sizes, replay = own.pop("sizes", None), own.pop("replay", None)
    if replay is not None and (replay not in arms or replay == name):
        raise Invalid([unknown("replay", replay, [arm for arm in arms if arm != name], "arm")])
    if replay is not None:
        own = laid_over(arms[replay], own)
    if sizes not in (None, "widest"):
        raise Invalid([f"sizes: must be 'widest' or absent, but got {sizes!r}."])
    spec, task = check(laid_over(base, {"name": name, **own}), directory=directory)
    if not isinstance(task, Task):
        raise Invalid(["task: a comparison needs a fused task, whose networks can be retrained."])
    return Arm(name=name, spec=_widest(spec, task, directory) if sizes else spec, replay=replay), task


def laid_over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` in place of what they name; mappings merge, all else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, str) and key in ("hypergradient", "sampler") and isinstance(value, Mapping):
            old = {"kind": old}
        merged[key] = laid_over(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _widest(spec: SearchSpec, task: Task, directory: Path) -> SearchSpec:
    """The spec with every width fixed at the largest common one that its range and the bounds allow."""
    assert spec.network is not None
    widths = [p for p in spec.space.parameters.values() if isinstance(p, Width)]
    plan = plan_of(spec, task)
    if isinstance(spec.network, Own):
        raise Invalid(["sizes: 'widest' needs a network of ours; write the widths of your own into an arm's space."])
    top = min((int(p.high) for p in widths), default=spec.network.width)
    fitting = [n for n in range(1, top + 1) if plan.excess(dict.fromkeys(spec.network.widths, n)) <= 0]
    if not fitting:
        raise Invalid(["sizes: no uniform width meets the bounds; raise them."])
    data = spec.to_dict()
    data["space"] = {n: p for n, p in data["space"].items() if n not in spec.network.widths}
    data["network"] = {**data["network"], "width": fitting[-1]}
    return check(data, directory=directory)[0]


# -- running ---------------------------------------------------------------------------------------------------------


def compare(
    comparison: Comparison,
    store: Store,
    *,
    executor: Executor = "local",
    watch: Watch | None = None,
    interrupted: threading.Event | None = None,
) -> str:
    """Run every arm of every repeat, retrain each best, and return the comparison's id in the store."""
    identity = f"{comparison.name}-{secrets.token_hex(3)}"
    stop = interrupted or threading.Event()
    with Bench() as bench:
        for repeat in range(comparison.repeats):
            asked: dict[str, Sampler] = {}
            for arm in comparison.arms:
                if stop.is_set():
                    return identity
                spec = _reseeded(arm.spec, repeat)
                labels = {"comparison": identity, "arm": arm.name, "repeat": repeat, "role": "search"}
                result = run(
                    spec,
                    comparison.task,
                    store,
                    executor=executor,
                    search_id=f"{identity}-{arm.name}-{repeat}",
                    directory=comparison.directory,
                    watch=partial(watch, f"{arm.name}, repeat {repeat}") if watch else None,
                    interrupted=stop,
                    labels=labels,
                    sampler=asked.get(arm.replay or ""),
                    bench=bench,
                )
                asked[arm.name] = _replayed(store, result)
                if arm.replay is None and result.progress.best is not None and result.state == "complete":
                    again = {**labels, "role": "retrain", "retrain_of": result.search_id}
                    _retrain_best(comparison, store, spec, result.progress.best, again)
    return identity


def _reseeded(spec: SearchSpec, repeat: int) -> SearchSpec:
    return replace(spec, seed=spec.seed + repeat)


def _replayed(store: Store, result: Result) -> ListedSampler:
    points = [
        trial["point"]
        for event in store.search(result.search_id).log()
        if event.kind == "asked"
        for trial in event.body["trials"]
    ]
    return ListedSampler(points)


def _retrain_best(
    comparison: Comparison, store: Store, spec: SearchSpec, best: Outcome, labels: Mapping[str, Any]
) -> None:
    search_id = f"{labels['comparison']}-{labels['arm']}-{labels['repeat']}-retrain"
    document = {"name": f"{spec.name} retrained", "labels": dict(labels), "spec": spec.to_dict()}
    search = store.create(search_id, json.loads(json.dumps({**document, "directory": str(comparison.directory)})))
    with threads(threads_of(spec)):
        plan = plan_of(spec, comparison.task)
        plan = replace(plan, schedules=schedules_of(store.search(labels["retrain_of"]), plan, best.number))
        retrain(search, plan, [best.point], comparison.retrain, device_of(spec))
