"""Rules between a hypergradient and what it is asked to move, or to go through.

>>> moved_faults(Method(kind="implicit"), ["lr"], gates=())
['space.lr.moved_by: implicit cannot see lr: it knows where training comes to rest, not how it gets there; take ...']
"""

from __future__ import annotations

from collections.abc import Collection

from search_spaces import Space
from search_spaces.networks import MLP, Network
from search_spaces.parameters import Choice
from trials.hypergradients.method import KINDS, RATES, Method
from trials.training import Training


def moved_faults(method: Method, moved: Collection[str], gates: Collection[str]) -> list[str]:
    """What a gradient cannot move at all, and what this one cannot see."""
    methods = " or ".join(name for name in KINDS if name != "none")
    faults = []
    for name in moved:
        where = f"space.{name}.moved_by"
        if name not in gates and name not in RATES:
            own = f"gates of the network ({', '.join(gates) or 'it has none'}) and rates ({', '.join(RATES)})"
            faults.append(f"{where}: only the {own} can be moved by a gradient; drop it.")
        elif method.kind == "none":
            faults.append(
                f"{where}: 'gradient' needs a hypergradient, but got search.hypergradient='none'; "
                f"set it to {methods}, or drop `moved_by`."
            )
        elif name in RATES and (why := method.blind(name)):
            faults.append(f"{where}: {why}")
    return faults


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
        momentum = "momentum" in space.parameters or training.momentum > 0
        if optimizers != ["sgd"] or any(nesterovs) or not momentum:
            faults.append(
                f"{where} reverses SGD with momentum, but got optimizer={' or '.join(map(str, optimizers))}, "
                f"momentum={training.momentum:g}, nesterov={any(nesterovs)}; set optimizer: sgd, momentum: 0.9, "
                "nesterov: false, or take unrolled with checkpoints: true."
            )
    decays = "weight_decay" in space.parameters or training.weight_decay > 0
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


def _values(space: Space, name: str, fixed: object) -> list[object]:
    """What a structural hyperparameter can be in a search."""
    parameter = space.parameters.get(name)
    return list(parameter.options) if isinstance(parameter, Choice) else [fixed]
