"""What a search came to, read back from the store: its state, counts, best trial and cost, as plain data.

    >>> summary(Store.open_for_reading("runs").search("digits-3fa2b1"))["trials"]
    {'complete': 255, 'nan': 1}

`run`, `show`, `best` and `list` all print from here, so that they cannot disagree. Neither torch nor DuckDB is loaded.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from search_spaces.faults import Invalid
from service.goal import wanted
from service.graphs import graphs_of, moves_of
from service.replay import wall_seconds
from service.rules import METRICS
from trials import layout, rows
from trials.goals import Goal
from trials.lease import holder
from trials.records import Ending, Outcome
from trials.store import Damaged, Event, NotFound, SearchStore, Store


class WitnessStore(Store):
    """A store for reading that remembers the searches it opened, so that what was damaged in them can be told."""

    def __init__(self, root: Any, *, reading: bool = True) -> None:
        super().__init__(root, reading=reading)
        self.opened: list[SearchStore] = []

    def search(self, search_id: str) -> SearchStore:
        self.opened.append(super().search(search_id))
        return self.opened[-1]

    def named(self, text: str) -> SearchStore:
        """The search with that id, or the one whose id begins so.

        Raises:
            Invalid: when several begin so.
            NotFound: when none does.
        """
        known = self.searches()
        found = [search_id for search_id in known if text and search_id.startswith(text)]
        found = [search_id for search_id in found if "-retrain" not in search_id.removeprefix(text)] or found
        if text in known or len(found) != 1:
            if text not in known and found:
                if comparison := self._comparison(text, found):
                    command = shlex.join(["continua", "report", comparison, "--store", str(self.root)])
                    raise Invalid([f"search: {text!r} is a comparison; see it with: {command}"])
                some = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
                raise Invalid(
                    [f"search: must begin one id, but {text!r} begins {len(found)} ({some}); write more of it."]
                )
            return self.search(text)
        return self.search(found[0])

    def _comparison(self, text: str, found: Sequence[str]) -> str:
        """The comparison that all those searches are of, where its id is or begins with the text."""
        comparison = str(_labels(super().search(found[0])).get("comparison") or "")
        ours = comparison.startswith(text) and all(search_id.startswith(f"{comparison}-") for search_id in found)
        return comparison if ours else ""


def summary(search: SearchStore, store: Store | None = None) -> dict[str, Any]:
    """Everything about a search that is known without reading its reports; from its `store` also how its best did when
    it was retrained (`best.retrained`: the mean, standard deviation and number of its test scores).

    `trials` counts ended trials by ending; `asked` counts all; `best` is None until a trial is complete, with `asked`
    and `point` (where it ended) and `rounded`; `goal` is the budget of the latest goal, of version
    `goal_version`, and `workers` how many it wants; `lanes` is how many trials a bundle may have, `packed` how many of
    the ended ones the largest had; seconds in `spent` include the measuring of lanes; `created` and `owner.since` are
    Unix seconds. A search whose `spec` is damaged has none, and no best.
    """
    events = search.log()
    ended = ended_trials(search, events)
    try:
        document = search.spec()
    except Damaged:
        document = {}
    spec = document.get("spec", {})
    objective = spec.get("objective", {})
    calibrations = [event.body for event in events if event.kind == "calibrated"]
    goal = wanted(search) if spec else Goal(workers=0)
    lanes = spec.get("resources", {}).get("lanes")
    owner = holder(layout.lease(search.path))
    asked = {t["number"]: t["point"] for e in events if e.kind == "asked" for t in e.body["trials"]}
    best, metric = best_of(ended.values(), objective.get("mode")), metric_of(objective, ended.values())
    return {
        "search_id": search.id,
        "name": document.get("name", search.id),
        "state": search.state(events),
        "why": next((e.body.get("why") for e in reversed(events) if e.kind == "state"), None),
        "owner": owner,
        "created": search.created(events, document),
        "metric": metric,
        "mode": objective.get("mode"),
        "goal": dict(goal.budget),
        "goal_version": goal.version,
        "workers": goal.workers,
        "asked": len(asked),
        "trials": dict(sorted(Counter(outcome.ending.value for outcome in ended.values()).items())),
        "best": best
        and {
            **_trial(best, asked.get(best.number, {})),
            **_graphs(spec, best, asked.get(best.number, {})),
            "retrained": retrained(store, search.id, str(metric)) if store else None,
        },
        "spent": _spent(ended.values(), events, sum(body["device_s"] for body in calibrations)),
        "lanes": lanes if isinstance(lanes, int) else calibrations[-1]["lanes"] if calibrations else None,
        "packed": max(Counter(outcome.bundle_id for outcome in ended.values()).values(), default=0),
        "labels": document.get("labels", {}),
        "spec": spec,
    }


def described(search: SearchStore, store: Store | None = None) -> dict[str, Any]:
    """The summary, and whose the search is, its priority, the whole goal (`wanted`), how the board has it (`job`: the
    store does not know), and the damaged files that were passed over."""
    whole = summary(search, store)
    try:
        document, goal = search.spec(), wanted(search).to_dict()
    except Damaged:
        document, goal = {}, None
    return {
        **whole,
        "submitter": document.get("owner", ""),
        "priority": (goal or {}).get("priority") or document.get("priority"),
        "wanted": goal,
        "job": None,
        "damaged": [{"path": str(lost.path), "reason": lost.reason} for lost in search.damaged],
    }


def ended_trials(search: SearchStore, events: Sequence[Event] | None = None) -> dict[int, Outcome]:
    """Each ended trial's outcome, by number; `events` saves reading the log."""
    found = rows.outcomes_of(search.outcome_rows(events=events))
    return {outcome.number: outcome for outcome in sorted(found, key=lambda outcome: outcome.number)}


def metric_of(objective: Mapping[str, Any], outcomes: Iterable[Outcome]) -> str | None:
    """The metric of a search; one that was left to the task is told by what was measured, `auto` until then."""
    metric = objective.get("metric")
    if metric != "auto":
        return metric
    measured = {name for outcome in outcomes for name in outcome.metrics}
    return next((first for kind in METRICS.values() if (first := next(iter(kind))) in measured), metric)


def best_of(outcomes: Any, mode: str | None) -> Outcome | None:
    """The complete outcome with the best finite value; the earliest asked among equals."""
    if mode is None:
        return None
    sign = -1.0 if mode == "max" else 1.0
    ranked = [
        (sign * outcome.value, outcome.number, outcome)
        for outcome in outcomes
        if outcome.ending is Ending.COMPLETE and outcome.value is not None and math.isfinite(outcome.value)
    ]
    return min(ranked, key=lambda item: item[:2])[2] if ranked else None


def best_trial(search: SearchStore, store: Store | None = None) -> dict[str, Any]:
    """The best trial alone, with its metrics and the parameters of its rounded network.

    Raises:
        Damaged: when the spec, which says what is better, cannot be read.
        NotFound: when no trial is complete yet.
    """
    search.spec()
    whole = summary(search, store)
    if whole["best"] is None:
        endings = ", ".join(f"{count} {ending}" for ending, count in whole["trials"].items()) or "none ended"
        raise NotFound(
            f"search {search.id}: no trial is complete, so none is best; it is {whole['state']}, of its "
            f"{whole['asked']} trials {endings}."
        )
    names = ("search_id", "name", "state", "metric", "mode")
    return {**{name: whole[name] for name in names}, **whole["best"]}


def retrained(store: Store, search_id: str, metric: str) -> dict[str, float] | None:
    """Mean, standard deviation and number of the test scores of all retrainings of a search's best that are stored."""
    name = metric.replace("val_", "test_", 1)
    again = [store.search(known) for known in store.searches() if "retrain" in known]
    values = [
        outcome.metrics[name]
        for search in again
        if _labels(search).get("retrain_of") == search_id
        for outcome in search.outcomes()
        if name in outcome.metrics
    ]
    if not values:
        return None
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else 0.0, "seeds": len(values)}


def _labels(search: SearchStore) -> dict[str, Any]:
    try:
        found: dict[str, Any] = search.spec().get("labels", {})
    except Damaged:
        return {}
    return found


def _trial(outcome: Outcome, asked: dict[str, Any]) -> dict[str, Any]:
    return {
        "trial": outcome.number,
        "trial_id": outcome.trial_id,
        "value": outcome.value,
        "rounded_value": outcome.metrics.get("rounded_value"),
        "asked": asked,
        "point": dict(outcome.point),
        "rounded": dict(outcome.rounded),
        "parameters": outcome.metrics.get("parameters"),
        "metrics": dict(outcome.metrics),
    }


def _graphs(spec: dict[str, Any], best: Outcome, asked: dict[str, Any]) -> dict[str, Any]:
    """The graphs of a trial's topologies in words, and how far a gradient moved them; nothing where it has none."""
    space, network = spec.get("space", {}), spec.get("network") or {}
    kind = network.get("kind", "") if isinstance(network, dict) else network
    graphs, moves = graphs_of(space, best.rounded), moves_of(space, asked, best, own=":" in str(kind))
    told = {"graph_moves": {name: {"start": start, "end": end} for name, (start, end) in moves.items()}}
    return {**({"graphs": graphs} if graphs else {}), **(told if moves else {})}


def _spent(outcomes: Any, events: Sequence[Event], overhead: float) -> dict[str, float]:
    costs = [outcome.spent for outcome in outcomes]
    return {
        "device_seconds": sum((cost.device_s for cost in costs), overhead),
        "flops": sum((cost.flops for cost in costs), 0.0),
        "executed_flops": sum((cost.executed_flops for cost in costs), 0.0),
        "wall_seconds": wall_seconds(events),
    }
