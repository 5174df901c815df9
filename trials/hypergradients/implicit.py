"""The derivative of a training that has come to rest, by the implicit function theorem (Lorraine et al. 2020, section
3; Pedregosa 2016, algorithm 1). It takes no training step, and what it costs does not grow with the steps taken.

    >>> Implicit(solver="neumann", terms=20).derivative(inner, state, h_KP, [batch], outer)
    >>> Implicit(solver="cg", terms=20, damping=1e-3).derivative(inner, state, h_KP, [batch], outer)

At rest the force F(w, h) vanishes, so dw/dh = -(dF/dw)^-1 dF/dh. With J = dF/dw and v = dL/dw the derivative is
dL/dh - u dF/dh, where (J' + damping) u = v, lane by lane:

    neumann   u = A sum_{j < terms} (I - (J' + damping) A)^j v, with A the rates of `rates` (Lorraine et al. 2020,
              algorithm 3). At rest under plain SGD that is `Unrolled(through=terms)`.
    cg        conjugate gradients (Nocedal and Wright 2006, algorithms 5.2 and 7.2). A lane that is done freezes; one
              that meets a direction without curvature keeps what it had before and says so. J must be symmetric.

A weight that rests has no part in the equation. How a minimum was reached leaves no trace in it.

Legend of shape suffixes: K lanes, P coordinates that move, T the flat buffer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from search_spaces.faults import Invalid, unknown
from trials.hypergradients.cost import POWER
from trials.hypergradients.inner import Batch, Derivative, Inner, State, pulled
from trials.hypergradients.unrolled import outer_pull
from trials.optimisers import Rule

SOLVERS = ("neumann", "cg")


@dataclass(frozen=True, kw_only=True)
class Solved(Derivative):
    """`residual_K` is how much of the equation is left, |v - (J' + damping) u| / |v|; `flat_K` marks the lanes that
    stopped early, at a direction without positive curvature: they are at no minimum, or need more damping."""

    residual_K: Tensor
    flat_K: Tensor

    def told(self) -> dict[str, Tensor]:
        return {"residual": self.residual_K, "flat": self.flat_K.to(self.residual_K)}


@dataclass(frozen=True, kw_only=True)
class Implicit:
    """`terms` products with the Jacobian, all on one graph of the force.

    Raises:
        Invalid: a field is out of its range.
    """

    solver: str = "neumann"
    terms: int = 20
    damping: float = 0.0

    def __post_init__(self) -> None:
        found = [] if self.solver in SOLVERS else [unknown("implicit.solver", self.solver, SOLVERS, "solver")]
        if self.terms < 1:
            found.append(f"implicit.terms: must be a whole number of at least 1, but got {self.terms!r}.")
        if not self.damping >= 0:
            found.append(f"implicit.damping: must be a number of at least 0, but got {self.damping!r}.")
        if found:
            raise Invalid(found)

    def derivative(self, inner: Inner, state: State, h_KP: Tensor, batches: Sequence[Batch], outer: Batch) -> Solved:
        """d(loss on the outer batch)/dh where training on the one batch of `batches` rests.

        A lane with a number that is not finite has NaN for a derivative, and no other lane has.

        Raises:
            Invalid: not one batch, or conjugate gradients for a learner other than back-propagation.
        """
        found = [_CG] if self.solver == "cg" and inner.feedback is not None else []
        if len(batches) != 1:
            found.append(f"implicit: solves on one train batch, but got {len(batches)}; join them into one.")
        if found:
            raise Invalid(found)
        h_KP, lanes = h_KP.detach(), len(h_KP)
        direct_KP, v_T = outer_pull(inner, state, h_KP, outer)
        with torch.enable_grad():
            weights_T, leaf_KP = state.weights_T.detach().requires_grad_(), h_KP.clone().requires_grad_()
            force_T = inner.force(weights_T, leaf_KP, batches[0])
        system = _System(inner, weights_T, force_T, inner.hyper(h_KP), lanes, self.damping)
        v_T = torch.where(system.moves_T, v_T, 0.0)
        if self.solver == "cg":
            u_T, left_T, flat_K = _conjugate(system, v_T, self.terms)
        else:
            u_T, left_T, flat_K = _neumann(system, v_T, self.terms)
        (through_KP,) = pulled([force_T], [leaf_KP], [u_T])
        size_K, left_K = system.norm(v_T), system.norm(left_T)
        # of a lane that is broken some numbers may still look sound: none of them is a derivative
        sound_K = (system.norm(force_T.detach()) + system.norm(u_T) + left_K).isfinite()
        gradient_KP = torch.where(sound_K.to(direct_KP.device)[:, None], direct_KP - through_KP, torch.nan)
        residual_K = torch.where(size_K == 0, 0.0, left_K / size_K)
        return Solved(gradient_KP=gradient_KP, residual_K=residual_K, flat_K=flat_K)


def rates(rule: Rule, hyper: Mapping[str, Tensor]) -> Tensor:
    """The steps [T] that gradient descent on the same loss may take wherever this rule is stable: its rates. Heavy-ball
    momentum mu is stable up to a curvature of 2 (1 + mu) / lr (Polyak 1964), gradient descent only up to 2 / lr."""
    if rule.kind == "sgd" and "momentum" in rule.uses and not rule.nesterov:
        return hyper["lr"] / (1 + hyper["momentum"])
    return hyper["lr"]


_CG = (
    "search.hypergradient.solver: 'cg' needs a symmetric Jacobian, which only back-propagation has, but got learner "
    "'feedback'; take 'neumann'."
)


class _System:
    """The lanes' equations (J' + damping) u = v, over the weights that move."""

    def __init__(
        self,
        inner: Inner,
        weights_T: Tensor,
        force_T: Tensor,
        hyper: Mapping[str, Tensor],
        lanes: int,
        damping: float,
    ) -> None:
        self.inner, self.lanes, self.damping = inner, lanes, damping
        self.weights_T, self.force_T, self.hyper = weights_T, force_T, hyper
        self.moves_T = hyper["lr"] != 0

    def times(self, u_T: Tensor) -> Tensor:
        (product_T,) = pulled([self.force_T], [self.weights_T], [u_T], keep=True)
        return torch.where(self.moves_T, product_T, 0.0) + self.damping * u_T

    def dot(self, a_T: Tensor, b_T: Tensor) -> Tensor:
        return self.inner.dot(a_T, b_T, self.lanes)

    def norm(self, a_T: Tensor) -> Tensor:
        return self.dot(a_T, a_T).sqrt()

    def rates(self, v_T: Tensor) -> Tensor:
        """Adam's rate is a length, not a step down a gradient: it says nothing of the curvature."""
        return rates(self.inner.rule, self.hyper) if self.inner.rule.kind == "sgd" else _safe_rates(self, v_T)


def _neumann(system: _System, v_T: Tensor, terms: int) -> tuple[Tensor, Tensor, Tensor]:
    """(u, what is left of v, no lane)."""
    u_T, left_T, rate_T = torch.zeros_like(v_T), v_T, system.rates(v_T)
    for _ in range(terms):
        step_T = rate_T * left_T
        u_T, left_T = u_T + step_T, left_T - system.times(step_T)
    return u_T, left_T, torch.zeros_like(system.norm(v_T)) > 0


def _safe_rates(system: _System, v_T: Tensor) -> Tensor:
    """One over the norm of each lane's matrix where v reaches, by the power method: an estimate from below, of which
    the series bears half."""
    steepest_K, along_T = torch.zeros_like(system.norm(v_T)), v_T
    for _ in range(POWER):
        length_K = system.norm(along_T)
        along_T = along_T / system.inner.spread(torch.where(length_K == 0, 1.0, length_K))
        along_T = system.times(along_T)
        steepest_K = torch.maximum(steepest_K, system.norm(along_T))
    return system.inner.spread(torch.where(steepest_K == 0, 0.0, 1 / steepest_K))


def _conjugate(system: _System, v_T: Tensor, terms: int) -> tuple[Tensor, Tensor, Tensor]:
    """(u, what is left of v, lanes that met a flat direction). Comparisons are put so that a lane of NaN goes on."""
    spread, eps = system.inner.spread, torch.finfo(v_T.dtype).eps
    u_T, left_T, along_T = torch.zeros_like(v_T), v_T, v_T
    square_K = system.dot(v_T, v_T)
    goal_K, steepest_K = square_K * eps**2, torch.zeros_like(square_K)
    done_K, flat_K = square_K <= 0, steepest_K > 0
    for _ in range(terms):
        product_T = system.times(along_T)
        curvature_K = system.dot(along_T, product_T)
        slope_K = curvature_K / system.dot(along_T, along_T)
        steepest_K = torch.maximum(steepest_K, slope_K)
        flat_K = flat_K | (~done_K & (slope_K <= eps * steepest_K))
        done_K = done_K | flat_K
        step_T = spread(torch.where(done_K, 0.0, square_K / curvature_K))
        u_T, left_T = u_T + step_T * along_T, left_T - step_T * product_T
        before_K, square_K = square_K, system.dot(left_T, left_T)
        done_K = done_K | (square_K <= goal_K)
        along_T = torch.where(spread(done_K), along_T, left_T + spread(square_K / before_K) * along_T)
    return u_T, left_T, flat_K
