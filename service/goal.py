"""Changing what is wanted of a search (pause, resume, stop, cancel, scale, extend, narrow, prioritise), all checked.

    >>> goal = wanted(search)                                     # the latest version; 0 is the spec's own
    >>> change(search, Edit(verb="scale", workers=3), by="ada")   # version + 1, durable on return
    >>> change(search, Edit(verb="extend", budget={"trials": 512}), if_version=1)     # Conflict where it is another

A change is a file of the store (`trials.goals`), so it needs no server, and no board that is lost can take it along.
The driver at work looks for it; one that is to come reads it. No torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from search_spaces import Space
from search_spaces.faults import Invalid, unknown
from service.board.contract import PRIORITIES
from service.spec import Budget
from trials.goals import STATES, Goal
from trials.store import OVER, Conflict, SearchStore

VERBS = ("pause", "resume", "stop", "cancel", "scale", "extend", "narrow", "prioritise")
TAKES_UP = ("resume", "extend")  # verbs that give a search to whoever may run it
MOST_WORKERS = 100_000
_STATES = {"pause": "pause", "resume": "run", "stop": "stop", "cancel": "cancel"}
_FIELDS = {"scale": "workers", "extend": "budget", "narrow": "space", "prioritise": "priority"}
_AT_WORK = ("pause", "stop", "cancel", "scale", "prioritise")  # what makes no sense once a search is over
_REPLAYED = ("capacity", "cmaes")  # samplers that rebuild their steps from all points, in the ranges of the spec


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One change. `scale` takes `workers`; `extend` a `budget`, of which every part is the new total, or text such as
    "+64" for so much more; `narrow` a `space`: for each parameter that changes, the keys that change; `prioritise` a
    `priority`."""

    verb: str
    workers: int | None = None
    budget: Mapping[str, float | str] | None = None
    space: Mapping[str, Any] | None = None
    priority: int | None = None

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """An edit from plain data. Raises `Invalid` with all its faults."""
        known = [item.name for item in fields(cls)]
        if not isinstance(data, Mapping):
            raise Invalid([f"goal: must be a mapping such as {{verb: scale, workers: 3}}, but got {data!r}."])
        if faults := [unknown("goal", key, known) for key in data if key not in known]:
            raise Invalid(faults)
        edit = cls(**{"verb": "", **data})
        if faults := edit.faults():
            raise Invalid(faults)
        return edit

    def faults(self) -> list[str]:
        """What is wrong with the edit itself, whatever the search."""
        if self.verb not in VERBS:
            return [unknown("goal.verb", self.verb, VERBS, "verb")]
        needed = _FIELDS.get(self.verb)
        found = [
            f"goal.{name}: belongs to `{verb}`, but the verb is `{self.verb}`; send it on its own."
            for verb, name in _FIELDS.items()
            if name != needed and getattr(self, name) is not None
        ]
        if needed and getattr(self, needed) is None:
            return [*found, f"goal.{needed}: `{self.verb}` needs it, but it is missing; add it."]
        if needed == "workers":
            found += _workers_faults(self.workers)
        elif needed == "priority":
            found += priority_faults("goal.priority", self.priority)
        elif needed and not (isinstance(getattr(self, needed), Mapping) and getattr(self, needed)):
            example = "{trials: 512}" if needed == "budget" else "{lr: {high: 0.1}}"
            found.append(f"goal.{needed}: must be a mapping such as {example}, but got {getattr(self, needed)!r}.")
        return found


def wanted(search: SearchStore) -> Goal:
    """What is wanted of a search now: the latest version that can be read. Raises `Damaged` without a spec."""
    found = search.goals()
    return found[-1] if found else first(search.spec())


def first(document: Mapping[str, Any]) -> Goal:
    """Version 0: what the spec says."""
    spec = document.get("spec", {})
    return Goal(workers=int(spec.get("resources", {}).get("workers", 1)), budget=dict(spec.get("budget", {})))


def change(search: SearchStore, edit: Edit, *, by: str = "", if_version: int | None = None) -> Goal:
    """Write the next version of the goal.

    Raises:
        Invalid: with every fault of the edit, or when the search is over and has nothing left to pause or to scale.
        Conflict: where the goal is not, or no longer, at `if_version`; without one, the edit is laid over whatever
            version is the latest.
    """
    if edit.verb in _AT_WORK and (state := search.state()) in OVER:
        way = "`extend` gives it more to do" if state == "complete" else "`resume` tries it again"
        raise Invalid([f"goal: the search is {state}, so there is nothing to {edit.verb}; {way}."])
    while True:
        last = search.goal_version()  # looked at first, and counting one that cannot be read: nothing is passed over
        goal = wanted(search)
        if if_version is not None and goal.version != if_version:
            raise Conflict(f"goal: is at version {goal.version}, but the edit was made for {if_version}; look again.")
        new = edited(goal, edit, search.spec().get("spec", {}), version=last + 1, by=by)
        try:
            search.set_goal(new)
            return new
        except Conflict:
            if if_version is not None:
                raise


def edited(goal: Goal, edit: Edit, spec: Mapping[str, Any], *, version: int, by: str = "") -> Goal:
    """The goal after an edit. Raises `Invalid` with every fault."""
    if faults := edit.faults():
        raise Invalid(faults)
    new: dict[str, Any] = {**goal.to_dict(), "version": version, "verb": edit.verb, "by": by, "at": time.time()}
    if edit.verb in _STATES:
        new["state"] = _STATES[edit.verb]
    elif edit.workers is not None:
        new["workers"] = edit.workers
    elif edit.budget is not None:
        new["budget"] = extended(goal.budget, edit.budget)
        new["state"] = "run" if goal.state == "stop" else goal.state  # more of what was stopped is wanted
    elif edit.priority is not None:
        new["priority"] = edit.priority
    elif edit.space is not None:
        new["space"] = narrowed(goal.space or spec.get("space", {}), edit.space, spec)
    assert new["state"] in STATES
    return Goal(**new)


def extended(budget: Mapping[str, float], more: Mapping[str, float | str]) -> dict[str, float]:
    """A budget with some parts raised, and none lowered: what is spent cannot be taken back."""
    new, faults = dict(budget), []
    known = [item.name for item in fields(Budget)]
    for name, value in more.items():
        where = f"goal.budget.{name}"
        if name not in known:
            faults.append(unknown("goal.budget", name, known))
            continue
        total = _total(budget.get(name), value)
        if total is None:
            rule = 'must be a number, or text such as "+64" where the search has that budget already'
            faults.append(f"{where}: {rule}, but got {value!r}.")
        elif total < budget.get(name, total):
            way = "`stop` ends a search early"
            faults.append(f"{where}: can only be raised, but got {total:g}, below {budget[name]:g}; {way}.")
        elif found := Budget.value_faults("goal.budget", {**dict.fromkeys(known), name: total}):
            faults += found
        else:
            new[name] = total
    if faults:
        raise Invalid(faults)
    return new


def _total(before: float | None, value: object) -> float | None:
    if isinstance(value, str):
        if before is None or not value.startswith("+"):
            return None
        try:
            more = float(value[1:])
        except ValueError:
            return None
        whole = isinstance(before, int) and more.is_integer()
        return before + (int(more) if whole else more)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def narrowed(space: Mapping[str, Any], edit: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """A space with some ranges made narrower, as plain data; trials asked from now on lie in it."""
    sampler = spec.get("search", {}).get("sampler", {})
    kind = sampler.get("kind") if isinstance(sampler, Mapping) else sampler
    if kind in _REPLAYED:
        raise Invalid(
            [f"goal.space: the sampler {kind} rebuilds its steps in the ranges of the spec; submit a new search."]
        )
    new, faults = {name: dict(declaration) for name, declaration in space.items()}, []
    for name, changes in edit.items():
        where = f"goal.space.{name}"
        if name not in new:
            faults.append(unknown("goal.space", name, new, "parameter"))
        elif not isinstance(changes, Mapping):
            faults.append(f"{where}: must be a mapping such as {{low: 8, high: 32}}, but got {changes!r}.")
        elif new[name].get("moved_by", "search") == "gradient":
            faults.append(f"{where}: is moved by a gradient, whose range is the spec's; submit a new search.")
        else:
            faults += _narrow_faults(where, new[name], changes)
            new[name] |= changes
    if faults:
        raise Invalid(faults)
    Space.from_dict(new)
    return new


def _narrow_faults(where: str, before: Mapping[str, Any], changes: Mapping[str, Any]) -> list[str]:
    """What makes a declaration other than narrower."""
    found = []
    for key, value in changes.items():
        old = before.get(key)
        if value == old:
            continue
        if key in ("low", "high"):
            inside = isinstance(value, int | float) and (value >= old if key == "low" else value <= old)  # type: ignore[operator]
            if not inside:
                side = "at least" if key == "low" else "at most"
                found.append(f"{where}.{key}: must be {side} {old!r}, which it is now, but got {value!r}.")
        elif key == "options":
            inside = isinstance(value, list) and bool(value) and all(item in old for item in value)  # type: ignore[operator]
            if not inside:
                found.append(f"{where}.options: must be some of {old!r}, but got {value!r}.")
        else:
            found.append(f"{where}.{key}: only low, high and options can be narrowed, but got {key}={value!r}.")
    return found


def priority_faults(where: str, priority: object) -> list[str]:
    """What is wrong with a search's priority."""
    if isinstance(priority, int) and not isinstance(priority, bool) and priority in PRIORITIES:
        return []
    rule = f"must be a whole number from {PRIORITIES.start} to {PRIORITIES.stop - 1}"
    return [f"{where}: {rule}, the greater the sooner, but got {priority!r}."]


def _workers_faults(workers: object) -> list[str]:
    if isinstance(workers, int) and not isinstance(workers, bool) and 1 <= workers <= MOST_WORKERS:
        return []
    way = "; `pause` takes all of them away" if workers == 0 else ""
    return [f"goal.workers: must be a whole number from 1 to {MOST_WORKERS}, but got {workers!r}{way}."]
