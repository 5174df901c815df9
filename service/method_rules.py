"""Rules between a hypergradient and what it is asked to move, or to go through.

>>> moved_faults(Method(kind="implicit"), ["lr"], gates=())
['space.lr.moved_by: implicit cannot see lr: it knows where training comes to rest, not how it gets there; take ...']
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from search_spaces import Space
from search_spaces.networks import MLP, Network
from search_spaces.parameters import Choice, Int
from trials.hypergradients.memory import lighter, window_bytes
from trials.hypergradients.method import KINDS, RATES, Method
from trials.training import Training, rate_of

if TYPE_CHECKING:
    from trials.tasks import Task


def moved_faults(method: Method, moved: Collection[str], gates: Collection[str], *, trains: bool = True) -> list[str]:
    """What a gradient cannot move at all, and what this one cannot see; `trains`: there is a training with rates."""
    faults = []
    for name in moved:
        where = f"space.{name}.moved_by"
        if name not in gates and not (trains and rate_of(name)):
            own = f"gates of the network ({', '.join(gates) or 'it has none'})"
            own += f" and the rates of its training ({', '.join(RATES)})" if trains else ""
            faults.append(f"{where}: only the {own} can be moved by a gradient; drop it.")
        elif method.kind == "none":
            faults.append(
                f"{where}: 'gradient' needs a hypergradient, but got search.hypergradient='none'; "
                f"set it to {' or '.join(_able(name))}, or drop `moved_by`."
            )
        elif rate_of(name) and (why := method.blind(name)):
            faults.append(f"{where}: {why}")
    return faults


def _able(name: str) -> list[str]:
    """The kinds that see a parameter."""
    kinds = {kind: Method(kind=kind, order="second" if kind == "bilevel" else "first") for kind in KINDS}
    able = [kind for kind, method in kinds.items() if kind != "none" and (not rate_of(name) or not method.blind(name))]
    return ["{kind: bilevel, order: second}" if kind == "bilevel" and rate_of(name) else kind for kind in able]


def rate_faults(training: Training | None, space: Space, network: Network) -> list[str]:
    """Rates that a network has no layer for, or no dropout; and those that the optimiser does not read."""
    training, dense, faults = training or Training(), isinstance(network, MLP), []
    for name, parameter in space.parameters.items():
        base, _, layer = name.partition(".")
        if not rate_of(name):
            continue
        where, most = f"space.{name}", network.layers - (base == "dropout") if isinstance(network, MLP) else -1
        if (layer or base == "dropout") and not dense:
            what = f"{base} of single layers" if layer else base
            faults.append(
                f"{where}: only multi-layer perceptrons (kind: mlp) have {what}, but got {network.kind}; drop it."
            )
        elif layer and int(layer) > most:
            kinds = "hidden layers" if base == "dropout" else "layers with weights"
            faults.append(f"{where}: the network's {kinds} are 0 to {most}, but got {layer}; drop it.")
        moved = getattr(parameter, "moved_by", "sampler") == "gradient"
        if moved and base == "dropout" and parameter.low <= 0:  # type: ignore[attr-defined]
            faults.append(f"{where}.low: the spread of dropout has no slope at 0 (`low > 0`), but got low=0; raise it.")
        if moved and base not in _read(training) and "optimizer" not in space.parameters:
            own = ", ".join(_read(training))
            faults.append(f"{where}.moved_by: {training.optimizer} reads {own}, and {base} moves nothing; drop it.")
    if training.dropout and not dense:
        faults.append(
            f"training.dropout: only multi-layer perceptrons (kind: mlp) have it, but got {network.kind}; drop it."
        )
    return faults


def _read(training: Training) -> tuple[str, ...]:
    """The rates that a training reads."""
    own = ("momentum",) if training.optimizer == "sgd" else ("beta1", "beta2")
    return ("lr", *own, "weight_decay", "dropout")


def training_faults(method: Method, training: Training | None, space: Space, network: Network | None) -> list[str]:
    """What a training is that this method cannot go through, and what a learner cannot teach."""
    training = training or Training()
    optimizers, learners, nesterovs = (
        _values(space, name, getattr(training, name)) for name in ("optimizer", "learner", "nesterov")
    )
    faults = []
    if "feedback" in learners and network is not None and not isinstance(network, MLP):
        faults.append(
            f"training.learner: 'feedback' teaches multi-layer perceptrons (network.kind: mlp), but got "
            f"{network.kind!r}; take backprop."
        )
    where = f"search.hypergradient: {method.kind!r}"
    if method.kind == "reversible":
        momentum = _has(space, "momentum") or training.momentum > 0
        if optimizers != ["sgd"] or any(nesterovs) or not momentum:
            faults.append(
                f"{where} reverses SGD with momentum, but got optimizer={' or '.join(map(str, optimizers))}, "
                f"momentum={training.momentum:g}, nesterov={any(nesterovs)}; set optimizer: sgd, momentum: 0.9, "
                "nesterov: false, or take unrolled with checkpoints: true."
            )
    decays = _has(space, "weight_decay") or training.weight_decay > 0
    if method.kind in ("implicit", "hypernet") and "adamw" in optimizers and decays:
        faults.append(
            f"{where} needs to know where training comes to rest, and with adamw's decoupled weight_decay that depends "
            "on how it gets there; take adam or sgd, or weight_decay: 0."
        )
    if method.kind == "implicit" and method.solver == "cg" and "feedback" in learners:
        faults.append(
            f"{where}: conjugate gradients need a symmetric Jacobian, which learner: feedback has not; take "
            "solver: neumann."
        )
    return faults


def varied_faults(values: Mapping[str, Any], task: Task, network: Network, space: Space) -> list[str]:
    """What multi-layer perceptrons have only where all lanes see the same rows: augmented images vary lane by lane."""
    training = values.get("training") or Training()
    if not isinstance(network, MLP) or task.augment == type(task.augment)():
        return []
    own = [
        f"space.{name}" for name in space.parameters if rate_of(name) and (name != rate_of(name) or name == "dropout")
    ]
    own += ["training.dropout"] if training.dropout else []
    own += ["training.learner: 'feedback'"] if "feedback" in _values(space, "learner", training.learner) else []
    return [f"{what}: is not known where images are augmented, lane by lane; drop it, or task.augment." for what in own]


def _has(space: Space, rate: str) -> bool:
    """Whether a search has a rate of its own, of all layers or of one."""
    return any(rate_of(name) == rate for name in space.parameters)


def _values(space: Space, name: str, fixed: object) -> list[object]:
    """What a structural hyperparameter can be in a search."""
    parameter = space.parameters.get(name)
    if isinstance(parameter, Int):
        return [parameter.low, parameter.high]
    return list(parameter.options) if isinstance(parameter, Choice) else [fixed]


def memory_faults(spec: Mapping[str, Any], task: Task, network: Network, space: Space, total: float) -> list[str]:
    """A window whose steps no machine like this one, with `total` bytes, can hold: how much it takes, and the ways out.

    On a cluster the workers judge for themselves.
    """
    method, training = spec["search"].hypergradient, spec.get("training") or Training()
    costs = network.costs(task.shape, task.outputs).of(network.named(network.sizes(network.ends(space)[1])))
    batch = max(int(value) for value in _values(space, "batch_size", training.batch_size))  # type: ignore[call-overload]
    sizes = {
        "parameters": float(costs["parameters"]),
        "activations": float(costs["activation_bytes"]) / 4,
        "batch": batch,
        "adaptive": any(kind != "sgd" for kind in _values(space, "optimizer", training.optimizer)),
    }
    resources, replicates = spec.get("resources"), spec.get("replicates")
    lanes = getattr(resources, "lanes", 1)
    trainings = (
        getattr(replicates, "seeds", 1) * (lanes if isinstance(lanes, int) else 1) * getattr(resources, "workers", 1)
    )
    sizes["coordinates"] = len(space.moved())

    def held(other: Method) -> float:
        return trainings * window_bytes(other, **sizes)

    if held(method) <= total:
        return []
    key = "horizon" if method.kind == "truncated" else "every"
    ways = [
        f"{'checkpoints: true' if other.checkpoints else f'kind: {other.kind}'} (about {_gigabytes(held(other))})"
        for other in lighter(method)
        if held(other) <= total
    ]
    at_once = "one training" if trainings == 1 else f"{trainings} trainings at a time (workers, lanes, replicates)"
    return [
        f"search.hypergradient.{key}: going through {getattr(method, key)} steps of {at_once} holds about "
        f"{_gigabytes(held(method))} in memory, and this machine has {_gigabytes(total)}; "
        + (f"take {' or '.join(ways)}, or " if ways else "")
        + f"lower {key}."
    ]


def _gigabytes(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB"
