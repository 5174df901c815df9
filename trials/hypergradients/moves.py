"""Steps of what moves: sizes and rates in the unit cube, an outer optimiser, and dual ascent on the bounds.

    >>> moves = Moves(method, scales=[(4, 128, True)], start=n_KG, bounds=..., cost=...)
    >>> n_KG = moves.step(gradient_KG)

The Lagrangian of lane k is  L_k(n) + lambda_k g(n) + damping/2 max(0, g(n))^2  with  g(n) = cost(n) / bound - 1  for
each bound; lambda_k >= 0 climbs by dual_lr * g (Bertsekas 1982, section 2). Everything is per lane, in float64.

A parameter moves as a coordinate v of its place u in [0, 1]: v = u, cut off or turned back at the ends, or with
`ends: sigmoid` v = log(u / (1 - u)) / 4, which is as fast as u in the middle and never arrives at an end.

Legend of shape suffixes: K lanes, G gates, C bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from trials.hypergradients.method import Method

Scale = tuple[float, float, bool]  # low, high, log
INSIDE = 1e-3  # how far from an end of its range a parameter begins that never arrives there
_KEPT = {  # what lasts from move to move
    "n": "n_KG",
    "v": "_v_KG",
    "mean": "_mean_KG",
    "square": "_square_KG",
    "dual": "dual_KC",
    "clipped": "clipped_K",
}
FURTHEST = math.log(1e9 - 1) / 4  # its greatest coordinate: further on, rounding would put it at the end for good


def scheduled(schedule: str, share: float) -> float:
    """By what an outer learning rate is multiplied when that share of the training is done."""
    if schedule == "constant":
        return 1.0
    return 1.0 - share if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * share))


class Moves:
    """The architecture of K lanes on its way.

    Args:
        scales: (low, high, log) of each gate; a gate that does not move has low == high.
        start: the sizes where the lanes begin, [K, G].
        bounds: cost name -> its greatest value.
        penalty: cost name -> what each unit of it adds to the objective.
        cost: coordinates [K, G] -> cost name -> [K], differentiable.
    """

    def __init__(
        self,
        method: Method,
        scales: Sequence[Scale],
        start: Tensor,
        bounds: Mapping[str, float],
        cost: Callable[[Tensor], Mapping[str, Tensor]],
        penalty: Mapping[str, float] | None = None,
    ) -> None:
        self.method, self.bounds, self.cost, self.penalty = method, dict(bounds), cost, dict(penalty or {})
        self.scales = list(scales)
        low, high, log = zip(*scales, strict=True)
        self._low, self._high = (torch.tensor(v, dtype=torch.float64) for v in (low, high))
        self._log = torch.tensor(log)
        self._span = self._high - self._low
        self._ratio = (self._high / self._low).log()
        self._unit = torch.where(self._log, (self._high / self._low.clamp(min=1e-300)).log(), self._span)
        self._moves = self._high > self._low
        self.n_KG = start.double().clone()
        self._v_KG = self._coordinate(self.n_KG)
        self.moved, self.clipped_K = 0, torch.zeros(len(start), dtype=torch.int64)
        self._mean_KG, self._square_KG = torch.zeros_like(self.n_KG), torch.zeros_like(self.n_KG)
        self.dual_KC = torch.zeros(len(start), len(self.bounds), dtype=torch.float64)
        self._steps = 0

    def step(self, gradient_KG: Tensor, share: float = 0.0) -> Tensor:
        """Move by d(objective)/d(sizes) and return the new sizes, [K, G]; `share` of the training is done. A lane whose
        gradient is not finite rests: neither its momentum nor its multipliers move it."""
        units_KG = self.units()
        slope_KG = torch.where(self._moves, gradient_KG.double() * units_KG, 0.0)
        finite_K1 = (gradient_KG.isfinite() & slope_KG.isfinite()).all(1, keepdim=True)
        slope_KG = self._clipped(torch.where(finite_K1, slope_KG, 0.0))
        if self.bounds or self.penalty:
            by_cost_KG = self._cost_gradient(self.n_KG.clone().requires_grad_(), finite_K1)
            slope_KG = slope_KG + torch.where(finite_K1 & self._moves, by_cost_KG * units_KG, 0.0)
        self._steps += 1
        direction_KG = torch.where(finite_K1, self._direction(slope_KG), 0.0)
        v_KG = self._v_KG - self.method.lr * scheduled(self.method.schedule, share) * direction_KG
        v_KG = torch.where(v_KG.isfinite(), self._within(v_KG), self._v_KG)  # a step may overflow
        # a size that rests keeps every bit: going through the unit cube and back would round it
        self.n_KG = torch.where(v_KG != self._v_KG, self._decode(self._place(v_KG)), self.n_KG)
        self._v_KG = v_KG
        return self.n_KG

    def place(self, n_KG: Tensor) -> Tensor:
        """Put sizes where a rule of their own wants them; those that are there already keep every bit."""
        if not torch.equal(n_KG, self.n_KG):
            self._v_KG = torch.where(n_KG == self.n_KG, self._v_KG, self._coordinate(n_KG))
        self.n_KG = n_KG
        return self.n_KG

    def saved(self) -> dict[str, Tensor]:
        """All that it is after some moves, by name, [K, ...]; copies."""
        lanes = len(self.n_KG)
        found = {name: getattr(self, own).clone() for name, own in _KEPT.items()}
        return {**found, "moved": torch.full((lanes,), self.moved), "steps": torch.full((lanes,), self._steps)}

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `saved` gave."""
        for name, own in _KEPT.items():
            setattr(self, own, state[name].clone())
        self.moved, self._steps = int(state["moved"][0]), int(state["steps"][0])

    def units(self) -> Tensor:
        """What a unit of the coordinate is of each size, where it is now: dn/dv, [K, G]."""
        per_KG = torch.where(self._log, self.n_KG * self._unit, self._unit)
        if self.method.ends == "sigmoid":
            u_KG = self._place(self._v_KG)
            per_KG = per_KG * 4.0 * u_KG * (1.0 - u_KG)
        return per_KG

    def room(self) -> Tensor:
        """How far each size is from the nearer end of its range, [K, G]."""
        return torch.minimum(self.n_KG - self._low, self._high - self.n_KG).clamp(min=0.0)

    def _clipped(self, slope_KG: Tensor) -> Tensor:
        self.moved += 1
        if not self.method.clip:
            return slope_KG
        length_K1 = torch.linalg.vector_norm(slope_KG, dim=1, keepdim=True)
        self.clipped_K += (length_K1 > self.method.clip).squeeze(1)
        return slope_KG * torch.div(self.method.clip, length_K1.clamp(min=self.method.clip))

    def _within(self, v_KG: Tensor) -> Tensor:
        if self.method.ends == "reflect":
            turned_KG = 1.0 - torch.abs(1.0 - torch.remainder(v_KG, 2.0))  # at 0 and at 1, as often as it takes
            v_KG = torch.where((v_KG < 0.0) | (v_KG > 1.0), turned_KG, v_KG)  # what is inside keeps every bit
        return v_KG.clamp(-FURTHEST, FURTHEST) if self.method.ends == "sigmoid" else v_KG.clamp(0.0, 1.0)

    def _coordinate(self, n_KG: Tensor) -> Tensor:
        u_KG = self._encode(n_KG)
        return _logit(u_KG.clamp(INSIDE, 1.0 - INSIDE)) / 4.0 if self.method.ends == "sigmoid" else u_KG

    def _place(self, v_KG: Tensor) -> Tensor:
        return 0.5 + 0.5 * torch.tanh(2.0 * v_KG) if self.method.ends == "sigmoid" else v_KG

    def _direction(self, slope_KG: Tensor) -> Tensor:
        if self.method.optimizer == "sgd":
            return slope_KG
        self._mean_KG = 0.9 * self._mean_KG + 0.1 * slope_KG
        self._square_KG = 0.99 * self._square_KG + 0.01 * slope_KG**2
        mean_KG = self._mean_KG / (1 - 0.9**self._steps)
        return mean_KG / ((self._square_KG / (1 - 0.99**self._steps)).sqrt() + 1e-12)

    def _cost_gradient(self, n_KG: Tensor, finite_K1: Tensor) -> Tensor:
        """d(penalty + multipliers on the bounds)/d(sizes); the multipliers climb, but of lanes that rest."""
        costs = self.cost(n_KG)
        total_K = sum((weight * costs[name] for name, weight in self.penalty.items()), n_KG.new_zeros(len(n_KG)))
        if self.bounds:
            excess_KC = torch.stack([costs[name] / bound - 1.0 for name, bound in self.bounds.items()], 1)
            with torch.no_grad():
                dual_KC = (self.dual_KC + self.method.dual_lr * excess_KC).clamp(min=0.0)
                self.dual_KC = torch.where(finite_K1, dual_KC, self.dual_KC)
                pull_KC = self.dual_KC + self.method.damping * excess_KC.clamp(min=0.0)
            total_K = total_K + (pull_KC * excess_KC).sum(1)
        if not total_K.requires_grad:
            return torch.zeros_like(n_KG)  # a network whose costs do not depend on its sizes
        (gradient_KG,) = torch.autograd.grad(total_K.sum(), n_KG)
        return gradient_KG

    def _encode(self, n_KG: Tensor) -> Tensor:
        span, ratio = self._span.clamp(min=1e-300), self._ratio.clamp(min=1e-300)
        return torch.where(self._log, (n_KG / self._low).log() / ratio, (n_KG - self._low) / span).clamp(0.0, 1.0)

    def _decode(self, u_KG: Tensor) -> Tensor:
        value = torch.where(
            self._log,
            self._low * (u_KG * self._ratio).exp(),
            self._low + u_KG * self._span,
        )
        return torch.minimum(torch.maximum(value, self._low), self._high)


def _logit(u_KG: Tensor) -> Tensor:
    """Like `torch.tanh` above and unlike torch's logit and sigmoid, the same bits wherever in a tensor a lane is."""
    return torch.log(u_KG / (1.0 - u_KG))
