"""Reverse mode through training that remembers next to nothing: the steps are undone, bit for bit
(Maclaurin, Duvenaud, Adams 2015, "Gradient-based hyperparameter optimization through reversible learning").

    >>> found = Reversible().derivative(inner, state, h_KP, batches, outer)
    >>> found.bits_per_weight_step                              # 0.16 for a momentum of 0.9 and 1000 steps

A step of SGD with momentum,

    v' = beta v + g(w, h) + decay w        w' = w - lr v'

is undone by w = w' + lr v' and v = (v' - g - decay w) / beta. In floating point that goes astray in a few steps: each
division by beta blows the roundings up. Here weights and velocities are integers (`fixed_point`): what is added is
rounded once, alike both ways, and what the product with beta loses is kept, -log2(beta) bits a weight-step and a head
of 64 bits a weight. So no step is held in memory, and where the training ends differs from `unrolled` by about 1e-9.
The price is each direction once more.

A lane one of whose numbers is not finite or leaves the range of +-131072 ends as NaN, it alone.

Legend of shape suffixes: K lanes, P coordinates that move, T the flat buffer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from search_spaces.faults import Invalid
from trials.hypergradients.fixed_point import UNIT, Tape, bounded, quantised
from trials.hypergradients.inner import Batch, Derivative, Inner, State, pulled
from trials.hypergradients.unrolled import outer_pull
from trials.optimisers import Rule


@dataclass(frozen=True, kw_only=True)
class Rewound(Derivative):
    """A derivative, and what remembering the way back took: bits in memory, and the least that it could have been,
    the mean of -log2(momentum); both for each weight and step."""

    bits_per_weight_step: float
    information: float

    def told(self) -> dict[str, Tensor]:
        return {"tape_bits": torch.full((len(self.gradient_KP),), self.bits_per_weight_step)}


@dataclass(frozen=True, kw_only=True)
class Reversible:
    """Takes the training steps of the batches that it is given, and undoes them one by one.

    Raises:
        Invalid: the rule is not SGD with plain momentum.
        RuntimeError: a direction came out otherwise the second time.
    """

    def derivative(self, inner: Inner, state: State, h_KP: Tensor, batches: Sequence[Batch], outer: Batch) -> Rewound:
        """d(loss on the outer batch)/dh after training on `batches`, and the state after them."""
        if found := faults(inner.rule):
            raise Invalid(found)
        course = Course(inner, state, h_KP)
        for batch in batches:
            course.step(batch)
        bits, end, lost_K = course.tape.bits, course.state(), course.lost_K()
        gradient_KP, by_weights_T = outer_pull(inner, end, h_KP, outer)
        pull = Pull(course, by_weights_T)
        for batch in reversed(batches):
            gradient_KP = gradient_KP + pull.back(batch)
        if not course.stands_at(state, lost_K):
            raise RuntimeError(
                "reversible: undoing the steps must lead to where they began, but a direction came out otherwise the "
                "second time. Draw what is random with the batch and use deterministic kernels, or choose 'unrolled'."
            )
        gradient_KP = gradient_KP + pull.by_hyper()
        weights = max(1, state.weights_T.numel())
        return Rewound(
            gradient_KP=torch.where(lost_K.to(gradient_KP.device)[:, None], torch.nan, gradient_KP),
            state=end,
            bits_per_weight_step=bits / (weights * max(1, len(batches))),
            information=course.tape.information / weights,
        )


def faults(rule: Rule) -> list[str]:
    """What keeps a rule's steps from being undone."""
    if rule.kind == "sgd" and "momentum" in rule.uses and not rule.nesterov:
        return []
    got = rule.kind if rule.kind != "sgd" else "sgd with nesterov" if rule.nesterov else "sgd without momentum"
    return [
        "search.hypergradient.kind: 'reversible' undoes the steps of sgd with plain momentum and no others, but got "
        f"{got}. Train by sgd with a momentum and without nesterov, or choose 'unrolled'."
    ]


class Course:
    """A training in integers, that goes both ways: weights and velocities are multiples of `UNIT`."""

    def __init__(self, inner: Inner, state: State, h_KP: Tensor) -> None:
        self.inner, self.h_KP, self.dtype = inner, h_KP.detach(), state.weights_T.dtype
        with torch.no_grad():
            hyper = _spread(inner.hyper(self.h_KP), state.weights_T)
        self.lr_T, beta_T = hyper["lr"], hyper["momentum"].double()
        self.decay_T = hyper["weight_decay"] if "weight_decay" in inner.rule.uses else None
        self.lost_T = ~((beta_T >= 0) & (beta_T <= 1))  # numbers that have left the integers
        self.tape = Tape(torch.where(self.lost_T, 1.0, beta_T))
        self._w_T, self._v_T = _integers(state, self.lost_T)

    def step(self, batch: Batch) -> None:
        """One training step."""
        push_T = self._push(self._direction(batch, self.inner)[2])
        self._v_T = bounded(self.tape.times(self._v_T).add_(push_T), self.lost_T)
        self._w_T = bounded(self._w_T.sub_(self._move()), self.lost_T)

    def undo(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """One step back; the direction that was taken there, as a function of the weights and of h, and those."""
        self._w_T.add_(self._move())
        weights_T, h_KP, direction_T = self._direction(batch, self.inner.again())
        self._v_T = self.tape.undo(self._v_T.sub_(self._push(direction_T)))
        return weights_T, h_KP, direction_T

    def velocity(self) -> Tensor:
        """The velocities as they are."""
        return self._v_T.double().mul_(UNIT).to(self.dtype)

    def lost_K(self) -> Tensor:
        """Which lanes have a number that left the integers."""
        count_K = torch.zeros(len(self.h_KP), dtype=torch.long, device=self.lost_T.device)
        return count_K.index_add_(0, self.inner.lane_T, self.lost_T.long()) > 0

    def state(self) -> State:
        """Where the training stands; NaN in lanes that are lost."""
        lost_T = self.inner.spread(self.lost_K())
        weights_T, velocity_T = (
            torch.where(lost_T, torch.nan, integers_T.double() * UNIT).to(self.dtype)
            for integers_T in (self._w_T, self._v_T)
        )
        return State(weights_T=weights_T, slots={"velocity": velocity_T})

    def stands_at(self, state: State, lost_K: Tensor) -> bool:
        """Whether every lane that is not lost has the integers of a state."""
        lost_T = self.inner.spread(lost_K)
        w_T, v_T = _integers(state, lost_T.clone())
        return bool((lost_T | ((self._w_T == w_T) & (self._v_T == v_T))).all())

    def _direction(self, batch: Batch, inner: Inner) -> tuple[Tensor, Tensor, Tensor]:
        # with a graph on both ways: without one, a kernel of other rounding might be chosen
        with torch.enable_grad():
            weights_T = self._w_T.double().mul_(UNIT).to(self.dtype).requires_grad_()
            h_KP = self.h_KP.clone().requires_grad_()
            return weights_T, h_KP, inner.direction(weights_T, h_KP, batch)

    def _push(self, direction_T: Tensor) -> Tensor:
        """What a step adds to the velocities."""
        # a product and a sum, never fused: each is then rounded alike wherever in the buffer a weight lies
        push_T = direction_T.detach().to(torch.float64, copy=True).div_(UNIT)
        if self.decay_T is not None:
            push_T += self._w_T.double().mul_(self.decay_T)
        return quantised(push_T, self.lost_T)

    def _move(self) -> Tensor:
        """What a step takes from the weights."""
        return quantised(self._v_T.double().mul_(self.lr_T), self.lost_T)


class Pull:
    """What the outer loss says of a state, on its way back along the steps (algorithm 2 of the paper)."""

    def __init__(self, course: Course, by_weights_T: Tensor) -> None:
        self._course = course
        self._lr_T, self._beta_T = course.lr_T.to(by_weights_T), course.tape.beta_T.to(by_weights_T)
        self._decay_T = by_weights_T.new_zeros(()) if course.decay_T is None else course.decay_T.to(by_weights_T)
        # both change in place
        self._by_w_T, self._by_v_T = by_weights_T.contiguous(), torch.zeros_like(by_weights_T)
        self._by = {name: torch.zeros_like(by_weights_T) for name in course.inner.rule.uses}

    def back(self, batch: Batch) -> Tensor:
        """Over one step; what it says of h through the direction, [K, P]."""
        self._by["lr"] -= self._course.velocity() * self._by_w_T
        by_v_T = self._by_v_T.sub_(self._lr_T * self._by_w_T)
        weights_T, h_KP, direction_T = self._course.undo(batch)
        self._by["momentum"] += self._course.velocity() * by_v_T
        if "weight_decay" in self._by:
            self._by["weight_decay"] += weights_T.detach() * by_v_T
        by_h_KP, by_w_T = pulled([direction_T], [h_KP, weights_T], [by_v_T])
        self._by_w_T.add_(self._decay_T * by_v_T).add_(by_w_T)
        by_v_T.mul_(self._beta_T)
        return by_h_KP

    def by_hyper(self) -> Tensor:
        """What all of the steps said of h through the optimiser's hyperparameters, [K, P]."""
        inner, leaf_KP = self._course.inner, self._course.h_KP.clone().requires_grad_()
        with torch.enable_grad():
            hyper = _spread(inner.hyper(leaf_KP), self._by_w_T)
        (by_h_KP,) = pulled(
            [hyper[name] for name in self._by], [leaf_KP], [t.to(hyper[n]) for n, t in self._by.items()]
        )
        return by_h_KP


def _spread(hyper: Mapping[str, Tensor], like_T: Tensor) -> dict[str, Tensor]:
    return {name: value.broadcast_to(like_T.shape) for name, value in hyper.items()}


def _integers(state: State, lost_T: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and velocities, rounded."""
    weights_T, velocity_T = state.weights_T.detach().double(), state.slots["velocity"].detach().double()
    return quantised(weights_T / UNIT, lost_T), quantised(velocity_T / UNIT, lost_T)
