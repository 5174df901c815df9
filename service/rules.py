"""Rules between the sections of a spec, and between a spec and its task.

>>> task_kind_faults({"task": "uci/digits", "network": None})
['network: is missing, but a task of data trains one; add {kind: mlp, layers: 2}.']
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from search_spaces.cost import COST_METRICS
from search_spaces.faults import unknown
from search_spaces.networks import Network, Own
from search_spaces.parameters import Width
from service.graph_rules import network_faults, pressure_faults
from service.method_rules import memory_faults, moved_faults, rate_faults, training_faults, varied_faults
from service.show import counted
from trials.hypergradients.memory import physical_memory
from trials.training import LANE, STRUCTURAL, Training, rate_of, space_faults

if TYPE_CHECKING:
    from search_spaces import Space
    from trials.tasks import Task

#: what `Task.metrics` offers, known without loading a task
METRICS = {
    "classification": {"val_error": "min", "val_loss": "min", "val_accuracy": "max"},
    "regression": {"val_mse": "min", "val_loss": "min", "val_r2": "max"},
}
_ENDS = {"low": "lower", "high": "raise"}  # of a size's range, and which way it is cheaper
_PYTHON = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_python(task: object) -> bool:
    """Whether a task is a plain Python objective, `module:function`."""
    return isinstance(task, str) and _PYTHON.fullmatch(task) is not None


def task_kind_faults(values: Mapping[str, Any]) -> list[str]:
    """What a plain Python objective must not have, and a task of data must."""
    task, faults = values.get("task"), []
    if task is None:
        return []
    if not is_python(task):
        if "network" in values and values["network"] is None:
            faults.append("network: is missing, but a task of data trains one; add {kind: mlp, layers: 2}.")
        metric, known = (
            getattr(values.get("objective"), "metric", "auto"),
            [*(n for kind in METRICS.values() for n in kind), *COST_METRICS.values()],
        )
        if metric not in ("auto", *known):
            faults.append(unknown("objective.metric", metric, dict.fromkeys(known), "metric"))
        return faults
    if values.get("network") is not None:
        faults.append(
            f"network: a plain Python objective has no network of ours, but got {task!r} and a network; drop one."
        )
    if values.get("training", Training()) != Training():
        faults.append(
            f"training: a plain Python objective trains by itself, but got {task!r} and a training; drop one."
        )
    if getattr(values.get("objective"), "penalty", None):
        faults.append(f"objective.penalty: prices a network's cost, but the task {task!r} has none; drop it.")
    if values.get("constraints"):
        faults.append(f"constraints: bound the cost of a network, but the task {task!r} has none; drop them.")
    if (budget := values.get("budget")) and not (budget.trials or budget.device_seconds or budget.wall_seconds):
        faults.append("budget: a plain Python objective spends no epochs or flops; add trials or wall_seconds.")
    return faults


def between_faults(values: Mapping[str, Any], *, whole: bool, faulty: Collection[str] = ()) -> list[str]:
    """Rules between the space and the other sections; `whole`: no parameter was left out for a fault of its own, as
    those named `faulty` were."""
    space, network, task = values["space"], values.get("network"), values.get("task")
    faults = []
    if not is_python(task):
        faults += space_faults(space)
        if network is None or (isinstance(network, Own) and not network.found):
            return faults  # a network of the user's own is judged when it is resolved
        network = network.within(space)
        taken = [gate for gate in network.gates if gate in (*LANE, *STRUCTURAL, "activation")]
        faults += [
            f"network: the gate {gate!r} has the name of a training parameter; call it otherwise." for gate in taken
        ]
        faults += network_faults(network, space, faulty) if not taken else []
        known = [*network.offers, *(["activation"] if network.owns("activation") else []), *LANE, *STRUCTURAL]
        faults += [
            unknown(f"space.{name}", name, known, "parameter (nothing uses it)")
            for name, parameter in space.parameters.items()
            if parameter.type in ("float", "int", "choice") and name not in known and not rate_of(name)
        ]
        faults += rate_faults(values.get("training"), space, network)
    if "search" not in values:
        return faults
    gates = () if network is None else network.gates
    method = values["search"].hypergradient
    moved = [name for name, p in space.parameters.items() if getattr(p, "moved_by", "sampler") == "gradient"]
    faults += moved_faults(method, moved, gates, trains=network is not None)
    faults += training_faults(method, values.get("training"), space, network)
    faults += pressure_faults(method, space) if whole else []
    if method.kind != "none" and whole and not any(name in gates or rate_of(name) for name in moved):
        rates = {} if network is None else space.parameters
        able = [*gates, *(r for r, p in rates.items() if rate_of(r) and p.movable and method.blind(r) is None)]
        way = f"give one of {', '.join(able)} `moved_by: gradient`" if able else "set it to none"
        faults.append(f"search.hypergradient: {method.kind!r} needs a parameter that it moves, but got none; {way}.")
    kind = "none" if moved and all(rate_of(name) for name in moved) else method.kind
    if kind != "none" and values.get("realise") == "rounded":
        faults.append("realise: a gradient moves fractional sizes, but got 'rounded'; take auto or fractional.")
    return faults


def data_faults(values: Mapping[str, Any], task: Task) -> list[str]:
    """Rules between the spec and its task's data: the metric, and bounds that some point must be able to meet."""
    metrics, objective = METRICS[task.kind], values.get("objective")
    elsewhere = [name for kind in METRICS.values() for name in kind if name not in metrics]
    faults = []
    if objective is not None and objective.metric in elsewhere:
        faults.append(unknown("objective.metric", objective.metric, metrics, f"metric of a {task.kind} task"))
    network, space, bounds = values.get("network"), values.get("space"), values.get("constraints")
    if not isinstance(network, Network) or network.faults():
        return faults
    network = network if space is None else network.within(space)
    faults += network.shape_faults(task.shape, space)
    if faults or space is None or network.space_faults(space):
        return faults
    if "stride" in map(network.role, network.gates):
        from search_spaces.realise import map_faults  # torch, which declarations do without

        faults += map_faults(network, task.shape, task.outputs, space)
    faults += varied_faults(values, task, network, space)
    goes = "search" in values and values["search"].hypergradient.kind != "none"
    if not faults and goes and not getattr(values.get("resources"), "gpus_per_worker", 0):
        faults += memory_faults(values, task, network, space, physical_memory())
    if faults or not bounds or "topology" in map(network.role, network.gates):  # whose cheapest graph is not known
        return faults
    costs = network.costs(task.shape, task.outputs).of(_least_sizes(values, network))
    for name, bound in bounds.items():
        if costs[name] > bound.max:
            faults.append(
                f"constraints.{name}.max: even the smallest network of the space has {name}={costs[name]:g}, but got "
                f"max={bound.max:g}; raise it{_cheaper(network, space, name)}."
            )
    return faults


def _cheaper(network: Network, space: Space, cost: str) -> str:
    """What of the space, or else of the network, could make the smallest network cheaper, in words."""
    ends = {"width": ("low", 1.0), "depth": ("low", 0.0)} | ({} if cost == "parameters" else {"stride": ("high", None)})
    found: dict[str, list[str]] = {}
    for name, parameter in space.parameters.items():
        end, least = ends.get(network.offers.get(name, ""), ("", None))
        if end and (least is None or getattr(parameter, end) > least):
            found.setdefault(end, []).append(name)
    ways = [f"{verb} the `{end}` of {' or '.join(found[end])}" for end, verb in _ENDS.items() if end in found]
    silent = [gate for gate in network.widths if gate not in space.parameters]
    if silent and network.width > 1 and not isinstance(network, Own):
        ways.append("lower network.width")
    return "".join(f", or {way}" for way in ways)


def _least_sizes(values: Mapping[str, Any], network: Network) -> dict[str, Any]:
    """The cheapest sizes that the network can have as it is trained, by gate."""
    realise, point = values.get("realise", "auto"), network.ends(values["space"])[0]
    moves = "search" not in values or values["search"].hypergradient.kind != "none"
    rounds = realise == "rounded" or (realise == "auto" and not moves)
    return network.named(network.sizes(network.rounded(point) if rounds else point), whole=rounds)


def spec_notes(spec: Any, task: Any) -> list[str]:
    """What a checked spec does without saying so, in a sentence each."""
    network, method = spec.network, spec.search.hypergradient
    notes = []
    metric, mode = spec.objective.metric, spec.objective.mode
    better = mode if spec.python else METRICS[task.kind].get(metric, "min")
    if mode != better:
        notes.append(f"objective: {metric} is better the other way, but mode={mode} was asked for")
    if isinstance(network, Own):
        kept = {"width": "unit", "depth": "block"}
        notes += [
            f"network: the space has no {gate.role} `{gate.name}`, so that gate "
            + (
                f"keeps all of its {counted(gate.maximum, kept[gate.role])}"
                if gate.role in kept
                else "stays where it is"
            )
            for gate in network.found
            if gate.name not in spec.space.parameters
        ]
    if network is None or spec.python:
        return notes
    rows = len(task.train) + (0 if method.split == "outer" else len(task.outer))
    structural = {"batch_size", "epochs"} & set(spec.space.parameters)
    steps = spec.training.steps(rows)
    if method.kind != "none" and not structural and not method.moves(steps):
        window = f", every={method.every}" if method.window else ""
        notes.append(
            f"search.hypergradient: a training has {steps} steps and warmup={method.warmup}{window}, so nothing moves"
        )
    soft = network.membership in ("band", "concrete") or network.membership == "auto"  # of a width that moves: a band
    grows = any(isinstance(p, Width) and p.moved_by == "gradient" for p in spec.space.parameters.values())
    if method.kind != "none" and network.growth != "fresh" and soft and grows:
        notes.append(
            f"network.growth: every unit of a {'band' if network.membership == 'auto' else network.membership} has a "
            f"grade above 0 from the start, so none begins by {network.growth!r}; take membership: interval"
        )
    if "batch_size" not in structural and spec.training.batch_size > rows:
        notes.append(f"training.batch_size: {spec.training.batch_size} is more than the {rows} rows; each is repeated")
    return notes
