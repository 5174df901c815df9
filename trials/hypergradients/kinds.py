"""From a declared method to the derivative that it takes: one class a kind, one contract.

    >>> method_of(Method(kind="unrolled", every=20)).derivative(inner, state, h_KP, batches, outer)

`descent` and first-order `bilevel` need none of it: theirs is the derivative of the loss of now, which a program of
lanes takes by itself (`Program.grade_gradients`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from trials.hypergradients.forward import Forward
from trials.hypergradients.hypernet import Hypernet
from trials.hypergradients.implicit import Implicit
from trials.hypergradients.inner import Batch, Derivative, Inner, State
from trials.hypergradients.method import Method
from trials.hypergradients.reversible import Reversible
from trials.hypergradients.unrolled import Unrolled


class Hypergradient(Protocol):
    """d(loss on an outer batch)/d(what moves), of K trainings that stand at `state`."""

    def derivative(
        self, inner: Inner, state: State, h_KP: Tensor, batches: Sequence[Batch], outer: Batch
    ) -> Derivative:
        """The derivative [K, P] after training on `batches` from `state`, and the state after them; None where only
        the derivative is asked for and the training goes on from `state`."""


def method_of(
    method: Method,
    *,
    units: Callable[[Tensor], Tensor],
    room: Callable[[Tensor], Tensor],
    draw: Callable[[int], Tensor],
) -> Hypergradient:
    """What takes the derivative of a kind that is not direct; made for one bundle, for it may remember.

    Args:
        units: what moves [K, P] -> what a unit of the unit cube is of each number there, [K, P].
        room: what moves -> how far each number may go either way within its range, [K, P].
        draw: step -> standard normal numbers [K, P], a function of whose they are.
    """
    match method.kind:
        case "bilevel":
            return Unrolled(adopts=False)
        case "unrolled":
            return Unrolled(segments=method.checkpoints)
        case "truncated":
            return Unrolled(through=method.horizon)
        case "forward":
            return Forward()
        case "reversible":
            return Reversible()
        case "implicit":
            return Implicit(solver=method.solver, terms=method.terms, damping=method.ridge)
        case "hypernet":
            return Hypernet(scale=method.scale, units=units, room=room, draw=draw, step=method.warmup)
    raise AssertionError(f"{method.kind} has no derivative of its own")
