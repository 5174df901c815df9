"""Reverse mode through training (Domke 2012; Maclaurin et al. 2015, algorithm 2; Franceschi et al. 2017, RMD).

    >>> Unrolled().derivative(inner, state, h_KP, batches, outer)              # through all of the steps
    >>> Unrolled(through=5).derivative(inner, state, h_KP, batches, outer)     # through the last five
    >>> Unrolled(segments=True).derivative(...)                                # in memory for sqrt(T) steps

With s_t = Phi(s_{t-1}, h) the training's state, p_T = dL/ds_T and p_{t-1} = p_t dPhi/ds, the derivative is
dL/dh + sum_t p_t dPhi/dh. `through` = K drops all but the last K terms (truncation, Shaban et al. 2019): near a
minimum with curvature a it keeps the share 1 - (1 - lr a)^K. `segments` keeps the state at about sqrt(T) places and
takes the steps between two of them again on the way back (Chen et al. 2016, section 4): one more
pass, the same numbers.

Legend of shape suffixes: K lanes, P coordinates that move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trials.hypergradients.inner import Batch, Derivative, Inner, State, pulled


@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """Takes the training steps of the batches that it is given, and goes back through the last `through` of them. One
    that does not adopt looks ahead only: the training goes on from where it was (DARTS, Liu et al. 2019, eq. 6)."""

    through: int | None = None
    segments: bool = False
    adopts: bool = True

    def derivative(
        self, inner: Inner, state: State, h_KP: Tensor, batches: Sequence[Batch], outer: Batch
    ) -> Derivative:
        """d(loss on the outer batch)/dh after training on `batches`, and the state after them."""
        found = self._through(inner, state, h_KP, batches, outer)
        return found if self.adopts else Derivative(gradient_KP=found.gradient_KP)

    def _through(self, inner: Inner, state: State, h_KP: Tensor, batches: Sequence[Batch], outer: Batch) -> Derivative:
        h_KP = h_KP.detach()
        last = len(batches) if self.through is None else min(self.through, len(batches))
        before, traced = batches[: len(batches) - last], batches[len(batches) - last :]
        state = plain(inner, state, h_KP, before)
        if not self.segments:
            return through(inner, state, h_KP, traced, outer)[0]
        length = max(1, math.isqrt(max(last - 1, 0)) + 1)
        pieces = [traced[i : i + length] for i in range(0, last, length)]
        starts = [state]
        for piece in pieces[:-1]:
            starts.append(plain(inner, starts[-1], h_KP, piece))
        found, pull = through(inner, starts[-1], h_KP, pieces[-1] if pieces else [], outer)
        gradient_KP = found.gradient_KP
        for start, piece in zip(reversed(starts[:-1]), reversed(pieces[:-1]), strict=True):
            more_KP, pull = _back(inner.again(), start, h_KP, piece, pull)
            gradient_KP = gradient_KP + more_KP
        return Derivative(gradient_KP=gradient_KP, state=found.state)


def plain(inner: Inner, state: State, h_KP: Tensor, batches: Sequence[Batch]) -> State:
    """Training steps of which nothing is remembered."""
    for batch in batches:
        state = inner.update(state, h_KP, batch, graph=False).detached()
    return state


def outer_pull(inner: Inner, state: State, h_KP: Tensor, outer: Batch) -> tuple[Tensor, Tensor]:
    """(dL/dh, dL/dweights) of the loss on the outer batch."""
    with torch.enable_grad():
        weights_T, h_KP = state.weights_T.detach().requires_grad_(), h_KP.detach().requires_grad_()
        losses_K = inner.losses(weights_T, h_KP, outer)
    by_h_KP, by_weights_T = pulled([losses_K], [h_KP, weights_T], [torch.ones_like(losses_K)])
    return by_h_KP, by_weights_T


def through(
    inner: Inner, state: State, h_KP: Tensor, batches: Sequence[Batch], outer: Batch
) -> tuple[Derivative, list[Tensor]]:
    """Forward through training steps, the outer loss there, and back to where they began: the derivative in h, and that
    in the state before them (its weights first)."""
    start, leaf_KP, end = _traced(inner, state, h_KP, batches)
    direct_KP, by_weights_T = outer_pull(inner, end, h_KP, outer)
    pull = [by_weights_T, *(torch.zeros_like(t) for t in end.tensors()[1:])]
    if batches:
        more_KP, *pull = pulled(end.tensors(), [leaf_KP, *start.tensors()], pull)
        direct_KP = direct_KP + more_KP
    return Derivative(gradient_KP=direct_KP, state=end.detached()), pull


def _back(
    inner: Inner, state: State, h_KP: Tensor, batches: Sequence[Batch], pull: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """What some steps say of h and of the state before them, given what is said of the state after them."""
    start, leaf_KP, end = _traced(inner, state, h_KP, batches)
    by_h_KP, *by_start = pulled(end.tensors(), [leaf_KP, *start.tensors()], pull)
    return by_h_KP, by_start


def _traced(inner: Inner, state: State, h_KP: Tensor, batches: Sequence[Batch]) -> tuple[State, Tensor, State]:
    with torch.enable_grad():
        start, leaf_KP = state.detached(leaves=True), h_KP.detach().requires_grad_()
        end = start
        for batch in batches:
            end = inner.update(end, leaf_KP, batch)
    return start, leaf_KP, end
