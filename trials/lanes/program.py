"""What every program of lanes can do, whatever it is made of: the contract between a run and its lanes.

    dense     multi-layer perceptrons at exact sizes, gradients by hand      (`dense.py`, gated by `gated.py`)
    per_lane  any module, one lane after the other at its own sizes          (`looped.py`)
    grouped   any module under vmap; a convolution of lanes is a grouped one (`vmapped.py`)
    unfolded  any module under vmap; a convolution is unfold and a product   (`vmapped.py`)

Legend of shape suffixes: K lanes, G gates, N units of a gate, B batch, O outputs, R rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from search_spaces.network import Size
from trials.optimisers import Rule

Identity = tuple[int, int, int]  # search seed, trial number, replicate


class Program(Protocol):
    """K lanes that train together."""

    @property
    def sizes(self) -> list[tuple[Size, ...]]:
        """Each lane's sizes as laid out."""

    @property
    def executed(self) -> list[tuple[Size, ...]]:
        """The sizes at which each lane is computed, which its FLOPs follow: those of `sizes`, or of what holds it."""

    @property
    def in_place(self) -> bool:
        """Whether strides are in place: convolutions run at every cell before the map shrinks."""

    def attach(self, rule: Rule, hyper: Mapping[str, Tensor]) -> None:
        """Begin an optimiser with each lane's own hyperparameters, name -> [K]."""

    def retune(self, hyper: Mapping[str, Tensor]) -> None:
        """Other hyperparameters from the coming step on, name -> [K]."""

    def functions(self) -> Functions:
        """The lanes, as they are laid out now, as functions of their weights and grades."""

    def stands(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The flat buffer of all weights, [T], and those of the optimiser's state: to be read and to be written to."""

    def by_lane(self, buffer: Tensor) -> Tensor:
        """Each lane's own numbers of a buffer that is laid out as the weights are, [T, ...] -> [K, M, ...], 0 beyond
        its own: the same in whatever company it is laid out."""

    def take(self, rows: Tensor, buffer: Tensor) -> None:
        """Put what `by_lane` gave back into a buffer as it is laid out now."""

    def memory(self) -> dict[str, Tensor]:
        """What lanes are beside weights, optimiser state, grades and rates, by name, [K, ...]; copies."""

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        """Put back what `memory` gave."""

    def again(self, sizes: Sequence[tuple[Size, ...]]) -> None:
        """Lay fresh lanes out at `sizes`, for others that are put back into them: no unit of theirs is new."""

    def regate(
        self,
        grades: Sequence[Tensor],
        reach: Sequence[tuple[Size, ...]],
        live: Tensor,
        batch: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Take new grades ([K, N] a gate), laying lanes out for `reach` units; `live` are the real sizes [K, G].
        `batch` is what gradients at new units are taken on, where growth asks for them."""

    def sample(self, grades: Sequence[Tensor]) -> None:
        """Take random grades for the coming step, [K, N] a gate ([K, N, B] where each row has its own): members stay
        members."""

    def step(self, x: Tensor, y_BO: Tensor) -> None:
        """One training step; x is [B, ...] for all lanes or [K, B, ...] when each has its own."""

    def grade_gradients(self, x: Tensor, y_BO: Tensor) -> list[Tensor]:
        """d(lane loss on this batch)/d(grade), [K, N] a gate; nothing else changes."""

    @property
    def normed(self) -> bool:
        """Whether lanes have batch norms with running statistics."""

    def recalibrate(self, batches: Sequence[Tensor]) -> None:
        """Batch norms take their statistics anew: the average over these batches, with weights and grades as they are.
        Running ones lag behind weights that still move fast, and know nothing of sizes that have just been rounded."""

    def predict(self, x: Tensor) -> Tensor:
        """Every lane's outputs, [K, O, R]."""

    def module(self, lane: int) -> nn.Module:
        """A lane as a module of its own, with held gates where it has any; weights are copies."""


class Batch(NamedTuple):
    """What a step of `Functions` reads: inputs, targets, and the number of the step. In one that `remembers`, batch
    norms take the batch into their running statistics; one that `trains` has the noise of dropout."""

    x: Tensor
    y_BO: Tensor
    step: int = 0
    remembers: bool = False
    trains: bool = False


@dataclass(frozen=True, kw_only=True)
class Functions:
    """Lanes as differentiable functions of the flat buffer of all their weights, in no particular order, and of grades,
    as `sample` takes them.

    `losses(weights_T, grades, batch)` are [K], `feedback` the direction [T] of a learner other than back-propagation.
    `lane_T` says whose each weight is, `layer_T` of which layer (None where rates go by lane alone), `rates_T` by how
    much its learning rate differs from its lane's, 0 where it rests; `own_T` which are numbers of a lane's own (None:
    all that matter), for grouped lanes have others beside them that are silent; `sums` is each lane's sum [K] of
    numbers [T], in an order of its own, where there is one.
    """

    lane_T: Tensor
    rates_T: Tensor
    losses: Callable[[Tensor, Sequence[Tensor], Batch], Tensor]
    feedback: Callable[[Tensor, Sequence[Tensor], Batch], Tensor] | None = None
    layer_T: Tensor | None = None
    own_T: Tensor | None = None
    sums: Callable[[Tensor], Tensor] | None = None

    @property
    def whose_T(self) -> Tensor:
        """Whose each weight is, -1 where it is nobody's own."""
        return self.lane_T if self.own_T is None else torch.where(self.own_T, self.lane_T, -1)

    def spread(self, name: str, hyper: Mapping[str, Tensor]) -> Tensor:
        """A hyperparameter at each weight, [T]: its lane's, or its layer's own where that has one."""
        return spread(name, hyper, self.lane_T, self.layer_T)


def spread(name: str, hyper: Mapping[str, Tensor], lane_T: Tensor, layer_T: Tensor | None) -> Tensor:
    """A hyperparameter of lanes, [K], and those of single layers, `name.0`, at each weight, [T]."""
    found_T = hyper[name][lane_T]
    for own, values_K in hyper.items():
        base, _, layer = own.partition(".")
        if base == name and layer and layer_T is not None:
            found_T = torch.where(layer_T == int(layer), values_K[lane_T], found_T)
    return found_T


def loss_of(kind: str, outputs_BO: Tensor, y_BO: Tensor) -> Tensor:
    """The loss of one lane: cross-entropy with target probabilities, or half the squared error summed over outputs."""
    if kind == "cross_entropy":
        return functional.cross_entropy(outputs_BO, y_BO)
    return 0.5 * (outputs_BO - y_BO).square().sum(1).mean()


def in_chunks(x: Tensor, rows: int = 1024) -> Sequence[Tensor]:
    """Rows in pieces that fit a cache, so that predicting many never needs much memory."""
    return torch.split(x, rows)


def norms_of(module: nn.Module) -> list[_BatchNorm]:
    """The batch norms that remember; frozen ones, which their owner keeps in evaluation mode, have done so before."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None and m.training]


@contextlib.contextmanager
def anew(module: nn.Module) -> Iterator[None]:
    """Passes after which batch norms remember the average of these alone; one that no pass reaches, what it knew."""
    norms = norms_of(module)
    before = [(norm.momentum, {name: b.clone() for name, b in norm.named_buffers(recurse=False)}) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, (momentum, buffers) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if not norm.num_batches_tracked:
                for name, buffer in buffers.items():
                    getattr(norm, name).copy_(buffer)


@contextlib.contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """A pass in which batch norms see their batch but remember nothing of it."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    before = [(m.momentum, None if m.num_batches_tracked is None else m.num_batches_tracked.clone()) for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if tracked is not None:
                norm.num_batches_tracked = tracked
