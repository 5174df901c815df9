"""A search's best network: trained once more for its weights, exported, drawn, or retrained from scratch and stored.

>>> export_best(search, Path("best.pt2"))
>>> draw_best(search, Path("best.png"))
>>> retrain_best(store, search, 3)
"""

from __future__ import annotations

import json
import math
import secrets
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from search_spaces.faults import Invalid
from search_spaces.materialise import MaskedExport
from service.graph_rules import without_unused
from service.planning import device_of, plan_of, threads_of
from service.spec import SearchSpec, check
from service.summary import best_trial
from trials.plan import Plan
from trials.records import Trial
from trials.reproduce import reproduce
from trials.retrain import retrain, schedules_of
from trials.store import SearchStore, Store
from trials.tasks import Task
from trials.train import threads

_REPLICATES = "the trial's scores are means of {} replicates; the network written is the first one's"
CLOSE = 0.02  # how far a value measured anew may lie from the one stored: another machine rounds otherwise


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best trial of a search, and the plan that trained it."""

    found: dict[str, Any]
    plan: Plan
    spec: SearchSpec
    directory: Path

    @property
    def trial(self) -> Trial:
        """The trial as it was asked."""
        return Trial(search_id=self.found["search_id"], number=self.found["trial"], point=self.found["asked"])


def best_of(search: SearchStore) -> Best:
    """The best trial of a search over networks of ours. Raises `Invalid` for a plain Python objective."""
    found, document = best_trial(search), search.spec()
    directory = Path(document["directory"])
    spec, task = check(without_unused(document["spec"]), directory=directory)
    if not isinstance(task, Task):
        raise Invalid([f"best: the task {spec.task!r} is a plain Python objective, which has no network of ours."])
    ways = [event.body.get("way") for event in search.log() if event.kind == "calibrated"]
    return Best(
        found=found,
        plan=plan_of(spec, task, ways[-1] or "per_lane" if ways else "per_lane"),
        spec=spec,
        directory=directory,
    )


def export_best(search: SearchStore, path: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Train the best trial once more and write its plain network to `path` (.pt2, .onnx or .py).

    Returns:
        `path`, the trial, `value` and `rounded_value` measured anew, how inputs are scaled, and notes.

    Raises:
        Invalid: when the path is none, or the training did not come to the value stored.
    """
    from search_spaces.export import export, path_faults

    if faults := path_faults(path, overwrite=overwrite):
        raise Invalid(faults)
    best = best_of(search)
    with threads(threads_of(best.spec)), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", MaskedExport)
        again = reproduce(best.plan, best.trial, device_of(best.spec))
    value, stored = again.outcome.value, best.found["value"]
    if value is None or not math.isclose(value, stored, rel_tol=CLOSE, abs_tol=CLOSE):
        raise Invalid(
            [
                f"best: trial {best.trial.number} must train to the value stored, {stored:.6g}, but came to {value}; "
                "another machine, torch or data gives another training. Retrain it: --retrain 3."
            ]
        )
    export(again.network, again.example, path, overwrite=overwrite)
    task = best.plan.task
    assert task is not None
    reads: dict[str, Any] = {"shape": list(task.shape)}
    if task.offset:
        reads |= {"offset": list(task.offset), "scale": list(task.scale)}
    return {
        "path": str(path),
        "trial": best.trial.number,
        "value": value,
        "rounded_value": again.value,
        "parameters": sum(p.numel() for p in again.network.parameters()),
        "reads": reads,
        "notes": [
            *(str(warning.message) for warning in told if warning.category is MaskedExport),
            *([_REPLICATES.format(best.plan.seeds)] if best.plan.seeds > 1 else []),
        ],
    }


def draw_best(search: SearchStore, path: Path, *, overwrite: bool = False) -> None:
    """Draw the graph of the best trial's rounded network to `path` (.png or .svg).

    Raises:
        Invalid: when the path is none, or the network has no graph.
    """
    from search_spaces.drawing import draw, path_faults

    if faults := path_faults(path, overwrite=overwrite):
        raise Invalid(faults)
    best = best_of(search)
    network = best.plan.network
    assert network is not None
    sizes = network.whole_sizes(best.found["rounded"])
    graphs = [(topology, sizes[gate]) for gate in network.gates if (topology := network.topology_of(gate)) is not None]
    if len(graphs) != 1:
        many = "has no topology" if not graphs else f"has {len(graphs)} topologies, which are no one picture"
        raise Invalid([f"draw: {network.words} {many}; draw that of a cell, graphon or fabric."])
    ((topology, kept),) = graphs
    assert isinstance(kept, tuple)
    grades = [float(unit in kept) for unit in range(len(topology.units))]
    draw(topology, grades, path, title=f"{search.id}, trial {best.trial.number}")


def retrain_best(store: Store, search: SearchStore, seeds: int) -> str:
    """Retrain the best trial's rounded network from scratch, `seeds` times, scored on the test split; the id of the
    search that the retrainings are stored as."""
    best = best_of(search)
    name = f"{search.id[:100]}-retrain-{secrets.token_hex(3)}"
    labels = {**search.spec().get("labels", {}), "role": "retrain", "retrain_of": search.id}
    document = {"name": f"{best.spec.name} retrained", "labels": labels, "spec": best.spec.to_dict()}
    made = store.create(name, json.loads(json.dumps({**document, "directory": str(best.directory)})))
    with threads(threads_of(best.spec)):
        plan = replace(best.plan, schedules=schedules_of(search, best.plan, best.trial.number))
        retrain(made, plan, [best.found["point"]], seeds, device_of(best.spec))
    return name


def make_of_best(
    root: Path,
    search: SearchStore,
    say: Callable[[str], None],
    *,
    retrain: int | None,
    export: Path | None,
    draw: Path | None,
    overwrite: bool,
) -> dict[str, Any]:
    """Make of the best trial what a command asks for, the quickest first; returns what was `drawn` and `exported`."""
    made: dict[str, Any] = {}
    if draw is not None:
        draw_best(search, draw, overwrite=overwrite)
        made["drawn"] = str(draw)
        say(f"drawn: {draw}")
    if retrain is not None:
        say(f"retrained: {retrain_best(Store(root), search, retrain)}")
    if export is not None:
        made["exported"] = export_best(search, export, overwrite=overwrite)
        for note in made["exported"]["notes"]:
            say(f"note: {note}")
    return made
