"""Steps of the architecture: sizes in the unit cube, an outer optimiser, and dual ascent on the bounds.

    >>> moves = Moves(method, scales=[(4, 128, True)], start=n_KG, bounds=..., cost=...)
    >>> n_KG = moves.step(gradient_KG)

The Lagrangian of lane k is  L_k(n) + lambda_k g(n) + damping/2 max(0, g(n))^2  with  g(n) = cost(n) / bound - 1  for
each bound; lambda_k >= 0 climbs by dual_lr * g (Bertsekas 1982, section 2). Everything is per lane, in float64.

Legend of shape suffixes: K lanes, G gates, C bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from trials.hypergradients.method import Method

Scale = tuple[float, float, bool]  # low, high, log


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
        low, high, log = zip(*scales, strict=True)
        self._low, self._high = (torch.tensor(v, dtype=torch.float64) for v in (low, high))
        self._log = torch.tensor(log)
        self._moves = self._high > self._low
        self.n_KG = start.double().clone()
        self._u_KG = self._encode(self.n_KG)
        self._mean_KG, self._square_KG = torch.zeros_like(self.n_KG), torch.zeros_like(self.n_KG)
        self.dual_KC = torch.zeros(len(start), len(self.bounds), dtype=torch.float64)
        self._steps = 0

    def step(self, gradient_KG: Tensor) -> Tensor:
        """Move by d(objective)/d(sizes) and return the new sizes, [K, G]. A lane whose gradient is not finite rests:
        neither its momentum nor its multipliers move it."""
        n_KG = self.n_KG.clone().requires_grad_()
        finite_K1 = gradient_KG.isfinite().all(1, keepdim=True)
        total_KG = torch.where(finite_K1, gradient_KG.double() + self._cost_gradient(n_KG), 0.0)
        per_unit_KG = torch.where(
            self._log, self.n_KG * (self._high / self._low.clamp(min=1e-300)).log(), self._high - self._low
        )
        slope_KG = torch.where(self._moves, total_KG * per_unit_KG, 0.0)
        self._steps += 1
        direction_KG = torch.where(finite_K1, self._direction(slope_KG), 0.0)
        u_KG = (self._u_KG - self.method.lr * direction_KG).clamp(0.0, 1.0)
        # a size that rests keeps every bit: going through the unit cube and back would round it
        self.n_KG = torch.where(u_KG != self._u_KG, self._decode(u_KG), self.n_KG)
        self._u_KG = u_KG
        return self.n_KG

    def place(self, n_KG: Tensor) -> Tensor:
        """Put sizes where a rule of their own wants them; those that are there already keep every bit."""
        self._u_KG = torch.where(n_KG == self.n_KG, self._u_KG, self._encode(n_KG))
        self.n_KG = n_KG
        return self.n_KG

    def _direction(self, slope_KG: Tensor) -> Tensor:
        if self.method.optimizer == "sgd":
            return slope_KG
        self._mean_KG = 0.9 * self._mean_KG + 0.1 * slope_KG
        self._square_KG = 0.99 * self._square_KG + 0.01 * slope_KG**2
        mean_KG = self._mean_KG / (1 - 0.9**self._steps)
        return mean_KG / ((self._square_KG / (1 - 0.99**self._steps)).sqrt() + 1e-12)

    def _cost_gradient(self, n_KG: Tensor) -> Tensor:
        """d(penalty + multipliers on the bounds)/d(sizes); the multipliers climb."""
        if not self.bounds and not self.penalty:
            return torch.zeros_like(n_KG)
        costs = self.cost(n_KG)
        total_K = sum((weight * costs[name] for name, weight in self.penalty.items()), n_KG.new_zeros(len(n_KG)))
        if self.bounds:
            excess_KC = torch.stack([costs[name] / bound - 1.0 for name, bound in self.bounds.items()], 1)
            with torch.no_grad():
                self.dual_KC = (self.dual_KC + self.method.dual_lr * excess_KC).clamp(min=0.0)
                pull_KC = self.dual_KC + self.method.damping * excess_KC.clamp(min=0.0)
            total_K = total_K + (pull_KC * excess_KC).sum(1)
        if not total_K.requires_grad:
            return torch.zeros_like(n_KG)  # a network whose costs do not depend on its sizes
        (gradient_KG,) = torch.autograd.grad(total_K.sum(), n_KG)
        return gradient_KG

    def _encode(self, n_KG: Tensor) -> Tensor:
        span = (self._high - self._low).clamp(min=1e-300)
        ratio = (self._high / self._low).log().clamp(min=1e-300)
        return torch.where(self._log, (n_KG / self._low).log() / ratio, (n_KG - self._low) / span).clamp(0.0, 1.0)

    def _decode(self, u_KG: Tensor) -> Tensor:
        value = torch.where(
            self._log,
            self._low * (u_KG * (self._high / self._low).log()).exp(),
            self._low + u_KG * (self._high - self._low),
        )
        return torch.minimum(torch.maximum(value, self._low), self._high)
