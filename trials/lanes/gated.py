"""Dense lanes whose sizes are real numbers: memberships become grades, and a gradient reaches the sizes.

    >>> lanes = GatedLanes(shape, maxima=(128, 128), membership="interval", batch=64)
    >>> lanes.begin(identities, n_KG, rule, hyper)
    >>> gradient_KG = lanes.size_gradients(x_BI, y_BO)
    >>> lanes.set(n_KG)

A lane is laid out for the units that its membership can reach now, in blocks of 8, and anew when it outgrows them or
leaves more than a block unused; so a narrow lane costs a narrow network even where its bound is wide.

Legend of shape suffixes: K lanes, G gates, B batch, I 1 + inputs, O outputs, N units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from search_spaces.membership import grades
from trials.lanes.dense import DenseLanes, DenseShape
from trials.optimisers import Rule

BLOCK = 8


class GatedLanes:
    """K multi-layer perceptrons of real sizes.

    Args:
        maxima: the greatest size of each hidden layer.
        membership: `interval` or `band` (with temperature `tau`, which the caller may anneal).
    """

    def __init__(
        self,
        shape: DenseShape,
        maxima: Sequence[int],
        batch: int,
        *,
        membership: str = "interval",
        tau: float = 0.3,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shape, self.maxima, self.batch = shape, tuple(maxima), batch
        self.membership, self.tau = membership, tau
        self._place = {"device": device, "dtype": dtype}

    def begin(
        self, identities: Sequence[tuple[int, int, int]], n_KG: Tensor, rule: Rule, hyper: Mapping[str, Tensor]
    ) -> None:
        """Fresh lanes at sizes `n_KG`, initialised at these sizes' fan-in."""
        self.n_KG = n_KG.double()
        sizes = [[self._reach(n, top, 0) for n, top in zip(lane, self.maxima, strict=True)] for lane in n_KG.tolist()]
        self.dense = DenseLanes(self.shape, sizes, self.batch, gated=True, **self._place)  # type: ignore[arg-type]
        self.dense.initialise(identities, live=n_KG.tolist())
        self.dense.attach(rule, hyper)
        self._grade()

    def set(self, n_KG: Tensor) -> None:
        """Move the lanes to other sizes."""
        self.n_KG = n_KG.double()
        sizes = [
            tuple(self._reach(n, top, now) for n, top, now in zip(lane, self.maxima, laid, strict=True))
            for lane, laid in zip(n_KG.tolist(), self.dense.sizes, strict=True)
        ]
        if sizes != self.dense.sizes:
            self.dense.resize(sizes)
        self._grade()

    def size_gradients(self, x_BI: Tensor, y_BO: Tensor) -> Tensor:
        """d(lane loss on this batch)/d(sizes), float64 [K, G]."""
        by_grade = self.dense.grade_gradients(x_BI, y_BO)
        n_KG = self.n_KG.clone().requires_grad_()
        memberships = self._memberships(n_KG)
        flat = [m for lane in memberships for m in lane]
        cotangents = [
            g.to(m) for lane, found in zip(memberships, by_grade, strict=True) for m, g in zip(lane, found, strict=True)
        ]
        (gradient_KG,) = torch.autograd.grad(flat, n_KG, cotangents)
        return gradient_KG

    def _reach(self, n: float, maximum: int, laid: int) -> int:
        """Units to lay out for size `n`, given how many are laid out now."""
        if self.membership != "interval":
            return maximum  # every unit of a band is a member
        needed = min(int(n) + 1, maximum)  # the half-open boundary unit included
        if needed <= laid <= needed + BLOCK:
            return laid
        return min(-(-needed // BLOCK) * BLOCK, maximum)

    def _memberships(self, n_KG: Tensor) -> list[list[Tensor]]:
        whole = [grades(self.membership, n_KG[:, g], top, self.tau) for g, top in enumerate(self.maxima)]
        return [
            [m_KN[k, : self.dense.sizes[k][g]] for g, m_KN in enumerate(whole)] for k in range(len(self.dense.sizes))
        ]

    def _grade(self) -> None:
        with torch.no_grad():
            self.dense.grade(
                [[m.to(self.dense.device, self.dense.dtype) for m in lane] for lane in self._memberships(self.n_KG)]
            )
