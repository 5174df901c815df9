"""What every bundle of a search shares: the problem, how it is trained and what is asked of it. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from search_spaces import Point, Space
from search_spaces.cost import COST_METRICS, Costs
from search_spaces.networks import MLP, Network, Own
from search_spaces.rounding import excess, round_within
from trials.hypergradients.method import Method
from trials.tasks import Augment, Task
from trials.training import Training, rate_of

Schedule = tuple[tuple[float, float], ...]  # (share of the training, value from there on)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A fused search has a `task` and a `network`; a search over plain Python has an `objective` instead.

    `metric` and `mode` say what a trial's value is; `bounds` maps a cost to its greatest value, `penalty` to
    what each unit of it adds to the value; `evaluations` is how
    often a training is measured on the split `scored`, the end included; `way` is how lanes of networks other than
    multi-layer perceptrons run (`trials.training.WAYS`). `schedules` maps rates to the values that they have from some
    share of the training on, whatever a point says.
    """

    space: Space
    training: Training = field(default_factory=Training)
    task: Task | None = None
    network: Network | None = None
    objective: Callable[[Any], Any] | None = None
    method: Method = field(default_factory=Method)
    metric: str = "val_error"
    mode: str = "min"
    bounds: Mapping[str, float] = field(default_factory=dict)
    penalty: Mapping[str, float] = field(default_factory=dict)
    seeds: int = 1
    realise: str = "auto"
    way: str = "per_lane"
    evaluations: int = 4
    scored: str = "selection"
    seed: int = 0
    schedules: Mapping[str, Schedule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.network is not None:
            object.__setattr__(self, "network", self.network.within(self.space))

    @property
    def costs(self) -> Costs:
        """The network's costs as a function of its gates' sizes."""
        assert self.network is not None
        assert self.task is not None
        return self.network.costs(self.task.shape, self.task.outputs)

    def priced(self, sizes: Mapping[str, Any]) -> dict[str, float]:
        """What a network of these sizes, by gate, costs, as metrics are called: `flops` is what a trial spends."""
        costs = self.costs.of(sizes)
        return {COST_METRICS[name]: float(cost) for name, cost in costs.items()}

    def priced_together(self, sizes: Mapping[str, Any], networks: int) -> list[dict[str, float]]:
        """The same of several networks at once; `sizes` are arrays, one number a network."""
        found = {
            COST_METRICS[name]: np.broadcast_to(cost, networks).tolist() for name, cost in self.costs.of(sizes).items()
        }
        return [dict(zip(found, map(float, each), strict=True)) for each in zip(*found.values(), strict=True)]

    def worth(self, metrics: Mapping[str, float], sizes: Mapping[str, Any]) -> float:
        """The value of a network of these sizes, by gate, that has these metrics: the objective's metric and its
        penalty; NaN where the metric was not measured."""
        return self.valued(metrics, self.priced(sizes))

    def valued(self, metrics: Mapping[str, float], costs: Mapping[str, float]) -> float:
        """The same of a network that costs so much, as `priced` says it."""
        value = {**metrics, **costs}.get(self.metric, math.nan) if metrics else math.nan
        penalty = sum(weight * costs[COST_METRICS[name]] for name, weight in self.penalty.items())
        return value + (penalty if self.mode == "min" else -penalty)

    @property
    def padded(self) -> bool:
        """Whether all lanes of a bundle are laid out alike, padded to powers of two."""
        if self.way == "per_lane" or (isinstance(self.network, Own) and self.network.alone):
            return False
        return self.augmented or not isinstance(self.network, MLP | None)

    def laid(self, point: Point) -> dict[str, Any]:
        """The sizes at which a trial at `point` executes at most, as costs know them."""
        network = self.network
        assert network is not None
        if sizes := self.shape_class(point):
            return network.laid(sizes)
        if not self.fractional:
            return network.laid(list(network.whole_sizes(self.rounded(point)).values()))
        return network.laid(
            [self._most(gate, n) for gate, n in zip(network.gates, network.maxima(self.space), strict=True)]
        )

    def _most(self, gate: str, maximum: int) -> int:
        """What a lane of real sizes may come to at most: all units, and the least stride."""
        assert self.network is not None
        if self.network.role(gate) != "stride":
            return maximum
        return max(1, int(self.network.ends(self.space)[1][gate]))  # type: ignore[arg-type]

    def shape_class(self, point: Point) -> tuple[int, ...]:
        """The sizes that a bundle of such points is laid out at, where it is padded; () where each lane has its own.
        Lanes of one bundle have the same whole strides, or room for the least that a gradient can come to; every lane
        has all units of a topology."""
        if not self.padded:
            return ()
        network = self.network
        assert network is not None
        whole = self.fractional or (isinstance(network, Own) and network.whole)
        sizes, found = network.whole_sizes(self.rounded(point)), list[int]()
        for gate, most in zip(network.gates, network.maxima(self.space), strict=True):
            role, size = network.role(gate), sizes[gate]
            if role == "topology" or self.fractional or (whole and role == "width"):
                found.append(self._most(gate, most))
            else:
                assert isinstance(size, int)
                found.append(size if role == "stride" else min(1 << max(size - 1, 0).bit_length(), most))
        return tuple(found)

    def uses(self, name: str) -> bool:
        """Whether a training has a hyperparameter other than at its neutral 0, or one of its layers has its own."""
        own = any(rate_of(other) == name for other in self.space.coordinates)
        return own or getattr(self.training, name) != 0

    @property
    def augmented(self) -> bool:
        """Whether train images vary from step to step."""
        return self.task is not None and self.task.augment != Augment()

    @property
    def gradient(self) -> bool:
        """Whether a gradient moves the architecture or rates."""
        return self.method.kind != "none" and bool(self.space.moved())

    @property
    def moved_rates(self) -> tuple[str, ...]:
        """The inner optimiser's hyperparameters that a gradient moves."""
        moved = self.space.moved()
        return tuple(name for name in moved if rate_of(name))

    @property
    def moves_sizes(self) -> bool:
        """Whether a gradient moves the architecture, and not rates alone."""
        return self.gradient and len(self.moved_rates) < len(self.space.moved())

    @property
    def grows_by_gradient(self) -> bool:
        """Whether new units ask for a gradient of their own at every move."""
        return self.network is not None and self.network.growth == "gradmax"

    @property
    def fractional(self) -> bool:
        """Whether lanes train at their real sizes rather than the rounded ones."""
        return self.moves_sizes if self.realise == "auto" else self.realise == "fractional"

    @property
    def train_splits(self) -> tuple[str, ...]:
        """The splits that the weights see; an arm whose gradient reads the outer split must not train on it."""
        return ("train",) if self.method.split == "outer" else ("train", "outer")

    def rounded(self, point: Point) -> Point:
        """The point with whole sizes that meet the bounds."""
        if self.network is None or self.task is None:
            return dict(point)
        costs = self.costs if self.bounds else Costs(())  # which nobody asks without bounds
        return round_within(self.network, point, self.bounds, costs, self.space)

    def excess(self, point: Point) -> float:
        """By what share the rounded network at `point` overshoots the bounds; at most 0 when it meets them all."""
        if self.network is None or self.task is None or not self.bounds:
            return 0.0
        return excess(self.network, self.network.rounded(point), self.bounds, self.costs)
