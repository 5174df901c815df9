"""How a network is trained: the spec's `training:` section, merged with what a point says. No torch.

    >>> Training(epochs=20).at({"lr": 0.1, "momentum": 0.9}).lr
    0.1

Real hyperparameters (`LANE`) are tensors with a lane axis; the others shape the program (`STRUCTURAL`) and so belong to
a bundle's signature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from search_spaces import Space, Value
from search_spaces.faults import unknown
from search_spaces.parameters import Choice, Int, Real, is_real

OPTIMIZERS = ("sgd", "adam", "adamw")

NEAREST = 0.999999  # to 1: beyond, single precision takes it for 1

#: name -> (lowest, highest, whether the ends are allowed)
LANE: dict[str, tuple[float, float, bool]] = {
    "lr": (0.0, float("inf"), True),
    "momentum": (0.0, NEAREST, True),
    "weight_decay": (0.0, float("inf"), True),
    "beta1": (0.0, NEAREST, True),
    "beta2": (0.0, NEAREST, True),
    "dropout": (0.0, NEAREST, True),
}
LEARNERS = ("backprop", "feedback")
WAYS = ("per_lane", "grouped", "unfolded")  # of running lanes with convolutions (`trials.lanes.program`)
NORM_ROWS = 2048  # training rows whose statistics a finished network's batch norms have
STRUCTURAL = ("optimizer", "nesterov", "learner", "batch_size", "epochs")


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run. `momentum` is SGD's; `beta1`, `beta2` are Adam's; adamw's `weight_decay` is decoupled.
    `learner: feedback` teaches by direct feedback alignment. `dropout` is the rate p whose noise hidden units are
    multiplied by: normal with mean 1 and variance p / (1 - p), as Bernoulli dropout has (Srivastava et al. 2014,
    section 10), for that is smooth in p."""

    optimizer: str = "sgd"
    nesterov: bool = False
    learner: str = "backprop"
    batch_size: int = 64
    epochs: int = 20
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    dropout: float = 0.0

    def faults(self, where: str = "training") -> list[str]:
        """Broken rules of the section."""
        faults = []
        if self.optimizer not in OPTIMIZERS:
            faults.append(unknown(f"{where}.optimizer", self.optimizer, OPTIMIZERS, "optimizer"))
        if self.learner not in LEARNERS:
            faults.append(unknown(f"{where}.learner", self.learner, LEARNERS, "learner"))
        nesterov: object = self.nesterov
        if not isinstance(nesterov, bool):
            faults.append(f"{where}.nesterov: must be true or false, but got {self.nesterov!r}.")
        for key in ("batch_size", "epochs"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                faults.append(f"{where}.{key}: must be a whole number of at least 1, but got {value!r}.")
        for key in LANE:
            faults += lane_value_faults(f"{where}.{key}", key, getattr(self, key))
        return faults

    def at(self, point: Mapping[str, Value]) -> Training:
        """The training at a point of the space: its values win."""
        own = {key: value for key, value in point.items() if key in LANE or key in STRUCTURAL}
        return replace(self, **own)  # type: ignore[arg-type]

    def steps(self, rows: int) -> int:
        """Optimiser steps in all epochs; the last partial batch wraps into the next epoch."""
        return max(1, self.epochs * rows // self.batch_size)

    def norm_steps(self, rows: int) -> int:
        """Batches from which batch norms take their statistics anew before a network is measured for the last time:
        `NORM_ROWS` rows, or all of them."""
        return max(1, min(NORM_ROWS, rows, self.steps(rows) * self.batch_size) // self.batch_size)

    def to_dict(self) -> dict[str, Any]:
        """The section as plain data."""
        return asdict(self)


def rate_of(name: str) -> str | None:
    """The real hyperparameter that a name is of: `lr` itself, or one layer's own, `lr.0`; None if it is none."""
    base, _, layer = name.partition(".")
    return base if base in LANE and (name == base or (layer.isdecimal() and layer == str(int(layer)))) else None


def lane_value_faults(where: str, name: str, value: object) -> list[str]:
    """Broken rules of one real hyperparameter's value."""
    name = rate_of(name) or name
    low, high, closed = LANE[name]
    if not is_real(value):
        return [f"{where}: must be a finite number, but got {value!r}."]
    assert isinstance(value, int | float)
    inside = low <= value and (value <= high if closed else value < high)
    sign = "<=" if closed else "<"
    rule = f"`{name} >= {low:g}`" if high == float("inf") else f"`{low:g} <= {name} {sign} {high:g}`"
    return [] if inside else [f"{where}: {rule} must hold, but got {value!r}."]


def space_faults(space: Space) -> list[str]:
    """Rules between a training and the parameters of a space that stand in for it."""
    faults = []
    for name, parameter in space.parameters.items():
        where = f"space.{name}"
        if rate_of(name):
            if isinstance(parameter, Real):
                faults += lane_value_faults(f"{where}.low", name, parameter.low)
                faults += lane_value_faults(f"{where}.high", name, parameter.high)
            elif isinstance(parameter, Choice):
                faults += [f for o in parameter.options for f in lane_value_faults(f"{where}.options", name, o)]
            else:
                faults.append(f"{where}: must be a float or a choice of numbers, but got type {parameter.type}.")
        elif name in STRUCTURAL:
            values = parameter.options if isinstance(parameter, Choice) else ()
            if isinstance(parameter, Int):
                values = (parameter.low, parameter.high)
            if not values:
                faults.append(f"{where}: must be an int or a choice, but got type {parameter.type}.")
            for value in values:
                faults += replace(Training(), **{name: value}).faults("space")  # type: ignore[arg-type]
    return faults
