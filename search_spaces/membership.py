"""Membership of an index set: a real size n becomes grades m_k in [0, 1] over the indices k = 0 .. N-1.

    >>> interval(torch.tensor(2.25), 4)
    tensor([1.0000, 1.0000, 0.2500, 0.0000])

Every function maps sizes [...] to grades [..., N], is differentiable in the size, and has no data-dependent control
flow, so it runs under vmap and in a captured graph.

Legend of shape suffixes: N indices.
"""

from __future__ import annotations

import torch
from torch import Tensor


def interval(n: Tensor, maximum: int) -> Tensor:
    """m_k = clip(n - k, 0, 1): the support [0, n] of a deep function machine.

    Half-open at whole sizes: at n = k the boundary unit is k (the right derivative), except at n = N, where it is the
    last unit (the left derivative), so that a size at its maximum can still shrink. torch.clamp would return both
    one-sided subgradients at once.
    """
    k_N = torch.arange(maximum, device=n.device, dtype=n.dtype)
    rest = n.unsqueeze(-1) - k_N
    boundary = (rest >= 0) & ((rest < 1) | ((k_N == maximum - 1) & (rest <= 1)))
    return torch.where(boundary, rest, (rest >= 1).to(n.dtype))


def band(n: Tensor, maximum: int, tau: float | Tensor = 0.3) -> Tensor:
    """m_k = sigmoid((log n - log(k + 1/2)) / tau): a band of units in log size moves together.

    `tau` is a temperature in log size; as it falls to 0 the grades become those of the whole size nearest to n.
    """
    k_N = torch.arange(maximum, device=n.device, dtype=n.dtype)
    return torch.sigmoid((torch.log(n).unsqueeze(-1) - torch.log(k_N + 0.5)) / tau)


def grades(kind: str, n: Tensor, maximum: int, tau: float | Tensor = 0.3) -> Tensor:
    """The grades of the membership called `kind` (`tau` is ignored by `interval`)."""
    if kind == "interval":
        return interval(n, maximum)
    if kind == "band":
        return band(n, maximum, tau)
    raise ValueError(f"unknown membership {kind!r}; known: interval, band")
