"""The training of K lanes as a function of what moves, for derivatives through it: the loop, without its buffers.

    >>> inner = Inner(rule=rule, lane_T=lane_T, losses=losses, hyper=hyper)
    >>> state = inner.update(state, h_KP, batch)                # one training step of every lane
    >>> inner.losses(state.weights_T, h_KP, outer_batch)        # what is asked of them, [K]

All lanes' weights lie in one flat buffer, in whatever order; `lane_T` says whose each number is. Nothing else is known
of the networks, so the same methods serve a closed form and a bundle of convolutional networks. No lane's numbers reach
another's.

Legend of shape suffixes: K lanes, P coordinates that move (sizes, strides, edges; rates), T the flat buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from trials.optimisers import Rule, updated

Batch = Any  # what `losses` reads: inputs, targets and whatever is drawn for the step


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a training stands: weights [T] and the optimiser's slots, [T] each."""

    weights_T: Tensor
    slots: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def begin(cls, rule: Rule, weights_T: Tensor) -> State:
        """The state before the first step."""
        fresh = {
            s: torch.ones_like(weights_T) if s.startswith("power") else torch.zeros_like(weights_T) for s in rule.slots
        }
        return cls(weights_T=weights_T, slots=fresh)

    def tensors(self) -> list[Tensor]:
        """Weights and slots, in a fixed order."""
        return [self.weights_T, *(self.slots[name] for name in sorted(self.slots))]

    def like(self, tensors: Sequence[Tensor]) -> State:
        """A state of other tensors, in the order of `tensors()`."""
        return State(weights_T=tensors[0], slots=dict(zip(sorted(self.slots), tensors[1:], strict=True)))

    def detached(self, *, leaves: bool = False) -> State:
        """The same numbers without a history; `leaves`: as those that derivatives are asked for."""
        return self.like([t.detach().requires_grad_(leaves) for t in self.tensors()])


@dataclass(frozen=True, kw_only=True)
class Inner:
    """K trainings as functions of their weights and of what moves.

    `losses(weights_T, h_KP, batch)` are the lanes' losses, [K]; `hyper(h_KP)` the optimiser's hyperparameters, [T] each
    (a rate is 0 where a weight rests); `feedback(weights_T, h_KP, batch)` the direction [T] of a learner other than
    back-propagation; `rerun` the losses where they leave no trace outside (batch norms remember each batch once);
    `sums` each lane's sum [K] of numbers [T], where they lie so that it has an order of its own: a GPU adds up by
    `lane_T` in whatever order it comes to. All are differentiable in weights and h.
    """

    rule: Rule
    lane_T: Tensor
    losses: Callable[[Tensor, Tensor, Batch], Tensor]
    hyper: Callable[[Tensor], Mapping[str, Tensor]]
    feedback: Callable[[Tensor, Tensor, Batch], Tensor] | None = None
    rerun: Callable[[Tensor, Tensor, Batch], Tensor] | None = None
    sums: Callable[[Tensor], Tensor] | None = None

    def again(self) -> Inner:
        """The same for steps that are taken a second time."""
        return self if self.rerun is None else replace(self, losses=self.rerun, rerun=None)

    def direction(self, weights_T: Tensor, h_KP: Tensor, batch: Batch, *, graph: bool = True) -> Tensor:
        """What the learner takes for the gradient of each lane's loss in its weights, [T]."""
        if self.feedback is not None:
            return self.feedback(weights_T, h_KP, batch)
        with torch.enable_grad():
            weights_T = weights_T if weights_T.requires_grad else weights_T.detach().requires_grad_()
            return _gradient(self.losses(weights_T, h_KP, batch), weights_T, graph)

    def update(self, state: State, h_KP: Tensor, batch: Batch, *, graph: bool = True) -> State:
        """One training step."""
        direction_T = self.direction(state.weights_T, h_KP, batch, graph=graph)
        with torch.set_grad_enabled(graph):
            return self.stepped(state, h_KP, direction_T)

    def stepped(self, state: State, h_KP: Tensor, direction_T: Tensor) -> State:
        """The optimiser's step by a direction."""
        weights_T, slots = updated(self.rule, state.weights_T, state.slots, direction_T, self.hyper(h_KP))
        return State(weights_T=weights_T, slots=slots)

    def force(self, weights_T: Tensor, h_KP: Tensor, batch: Batch) -> Tensor:
        """What vanishes where a training has come to rest: the direction and the pull of weight decay, [T]. Weights
        that rest already feel none."""
        direction_T, hyper = self.direction(weights_T, h_KP, batch), self.hyper(h_KP)
        if "weight_decay" in self.rule.uses:
            direction_T = direction_T + hyper["weight_decay"] * weights_T
        return torch.where(hyper["lr"].detach() != 0, direction_T, 0.0)

    def spread(self, values_K: Tensor) -> Tensor:
        """Each lane's number at every one of its places, [T]."""
        return values_K[self.lane_T]

    def dot(self, a_T: Tensor, b_T: Tensor, lanes: int) -> Tensor:
        """Each lane's own inner product, [K]; no lane's NaN reaches another."""
        if self.sums is not None:
            return self.sums(a_T * b_T)
        return a_T.new_zeros(lanes).index_add_(0, self.lane_T, a_T * b_T)


@dataclass(frozen=True, kw_only=True)
class Derivative:
    """What a method found: d(outer loss)/dh, [K, P], and where the training stands after the steps that it took itself
    (None: it took none, and the training goes on from where it was)."""

    gradient_KP: Tensor
    state: State | None = None

    def told(self) -> dict[str, Tensor]:
        """What there is to report of how it was found, [K] each."""
        return {}


def _gradient(losses_K: Tensor, of: Tensor, graph: bool) -> Tensor:
    (found,) = torch.autograd.grad(losses_K.sum(), of, create_graph=graph, materialize_grads=True)
    return found


def pulled(
    outputs: Sequence[Tensor], of: Sequence[Tensor], by: Sequence[Tensor], *, keep: bool = False
) -> list[Tensor]:
    """Vector-Jacobian products: what `by` of the outputs says of each input; 0 where an input has no say."""
    told = [(out, v) for out, v in zip(outputs, by, strict=True) if out.requires_grad]
    if not told:
        return [torch.zeros_like(t) for t in of]
    outs, vectors = zip(*told, strict=True)
    return list(torch.autograd.grad(outs, of, vectors, retain_graph=keep, materialize_grads=True))
