"""Membership of an index set: a layer of maximum size N and real size n has grades m_k in [0, 1] over k = 0 .. N-1.

    >>> interval(torch.tensor(2.25), 4)
    tensor([1.0000, 1.0000, 0.2500, 0.0000])

Each membership is a function of its parameters (shape [...] or [..., N]) that is differentiable and has no control flow
that depends on data, so it runs under vmap and in a captured graph:

    interval       m_k = clip(n - k, 0, 1): the support [0, n] of a deep function machine
    band           m_k = sigmoid((log n - log(k + 1/2)) / t): a band of units in log size moves together
    nested         interval(n e^{t l}), l logistic: nested dropout (Rippel et al. 2014), whose medians follow the band
    support        m_k = sigmoid(f(u_k) / t), f a sum of cosines: variable support geometry, E(f) = {f > 0}
    support_nodes  the same, f given by its values on the nodes u_k = (k + 1/2) / N
    fuzzy          m_k = clip(z_k / t - tau, 0, 1) with tau such that the grades sum to n (the capped simplex)
    concrete       the hard-concrete gate (Louizos et al. 2018) of log_alpha_k: a sample, or its deterministic mean

t is a temperature; as it falls, grades become 0 or 1. `MEMBERSHIPS` holds each as a `Membership`: how to begin at a
real size, the grades, and the real size. The size is the sum of the grades for interval, support, support_nodes and
fuzzy. A band's is where the grades cross 1/2; they sum to about n pi t / sin(pi t) away from N. That of nested is the
median of the random size, concrete's the expected number of units that are not exactly 0.

Legend of shape suffixes: N indices, F coefficients of f.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # hard-concrete: Louizos et al. 2018, section 4.1
COSINES = 8  # coefficients of a support's f
BISECTIONS = 60
VECTORS = 32  # numbers that torch's kernels take at a time, or a divisor of these
CONCRETE_TAU = 0.2  # a concrete membership begins with the chances of a band of this temperature

Parameters = Mapping[str, Tensor]


# -- the functions -----------------------------------------------------------------------------------------------------


def interval(n: Tensor, maximum: int) -> Tensor:
    """m_k = clip(n - k, 0, 1), [...] -> [..., N].

    Half-open at whole sizes: at n = k the boundary unit is k (the right derivative), except at n = N, where it is the
    last unit (the left derivative), so that a size at its maximum can still shrink. torch.clamp would return both
    one-sided subgradients at once.
    """
    k_N = torch.arange(maximum, device=n.device, dtype=n.dtype)
    rest = n.unsqueeze(-1) - k_N
    boundary = (rest >= 0) & ((rest < 1) | ((k_N == maximum - 1) & (rest <= 1)))
    return torch.where(boundary, rest, (rest >= 1).to(n.dtype))


def band(n: Tensor, maximum: int, tau: float | Tensor = 0.3) -> Tensor:
    """m_k = sigmoid((log n - log(k + 1/2)) / tau), [...] -> [..., N], for n > 0; `tau` is a temperature in log size."""
    k_N = torch.arange(maximum, device=n.device, dtype=n.dtype)
    return _sigmoid((torch.log(n).unsqueeze(-1) - torch.log(k_N + 0.5)) / tau)


def _sigmoid(x_N: Tensor) -> Tensor:
    """torch's, [..., N]. What fills no whole vector at a tensor's end is made by a kernel that rounds otherwise, so a
    row alone would not be what it is among others: here every row is whole vectors."""
    if x_N.dim() == 0:
        return torch.sigmoid(x_N)
    return torch.sigmoid(functional.pad(x_N, (0, -x_N.shape[-1] % VECTORS)))[..., : x_N.shape[-1]]


def nested(n: Tensor, maximum: int, tau: float | Tensor, noise: Tensor) -> Tensor:
    """A random prefix: the interval of n (u / (1 - u))^tau for a uniform `noise` u of n's shape.

    Unit k's grade exceeds 1/2 with probability band(n)_k, and its mean is that of the band over [k, k + 1] (at the last
    too: what is beyond N is cut). Nested dropout whose rate follows the size, differentiable along n.
    """
    odds = torch.log(noise) - torch.log1p(-noise)
    return interval((n * torch.exp(tau * odds)).clamp(max=float(maximum)), maximum)


def support(f: Tensor, kappa: float | Tensor) -> Tensor:
    """m = sigmoid(kappa f), elementwise; as kappa grows, the indicator of E(f) = {f > 0}."""
    return _sigmoid(kappa * f)


def cosines(f_F: Tensor, maximum: int) -> Tensor:
    """f(u_k) = sum_j f_j cos(pi j u_k) on the nodes u_k = (k + 1/2) / N, [..., F] -> [..., N]."""
    j_F1 = torch.arange(f_F.shape[-1], device=f_F.device, dtype=f_F.dtype).unsqueeze(-1)
    cosines_FN = torch.cos(math.pi * j_F1 * nodes(maximum, f_F))
    # no matrix product: for one row alone torch has a kernel that rounds otherwise than that for many
    return (f_F.unsqueeze(-1) * cosines_FN).sum(-2)


def nodes(maximum: int, like: Tensor) -> Tensor:
    """u_k = (k + 1/2) / N, [N]."""
    return (torch.arange(maximum, device=like.device, dtype=like.dtype) + 0.5) / maximum


def fuzzy(z_N: Tensor, n: Tensor) -> Tensor:
    """The capped simplex: m = clip(z - tau, 0, 1) with sum m = n, [..., N], [...] -> [..., N].

    tau is found by a fixed number of bisections and one Newton step, which carries the derivatives: with I the indices
    strictly between 0 and 1, dm_I/dn = 1/|I| and dm_I/dz = 1 - 1/|I|. Where I is empty, at whole sizes, it is the unit
    about to come (the right derivative), and at n = N the last to have come (the left derivative).
    """
    with torch.no_grad():
        low, high = z_N.amin(-1, keepdim=True) - 1.0, z_N.amax(-1, keepdim=True)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            many = (z_N - middle).clamp(0.0, 1.0).sum(-1, keepdim=True) > n.unsqueeze(-1)
            low, high = torch.where(many, middle, low), torch.where(many, high, middle)
        tau = low  # where the sum still exceeds n by a rounding, so that the unit about to come is inside
        rest = z_N - tau
        last = (rest == rest.amin(-1, keepdim=True)) & (rest >= 1.0) & (n.unsqueeze(-1) == z_N.shape[-1])
        inside = ((rest > 0.0) & (rest < 1.0)) | last
        whole = ((rest >= 1.0) & ~inside).to(z_N.dtype)
        count = inside.sum(-1, keepdim=True).clamp(min=1).to(z_N.dtype)
    free = torch.where(inside, z_N - tau, whole).sum(-1, keepdim=True)
    m_N = torch.where(inside, z_N - tau - (free - n.unsqueeze(-1)) / count, whole)
    return m_N + (m_N.clamp(0.0, 1.0) - m_N).detach()  # a rounding beyond 0 or 1 must not cost the derivative


def concrete(log_alpha: Tensor, noise: Tensor | None = None) -> Tensor:
    """Hard-concrete grades, elementwise: a sample for uniform `noise`, the deterministic mean without it."""
    if noise is None:
        s = _sigmoid(log_alpha)
    else:
        s = _sigmoid((torch.log(noise) - torch.log1p(-noise) + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


def active(log_alpha: Tensor) -> Tensor:
    """P(z != 0) of a hard-concrete grade, elementwise (Louizos et al. 2018, eq. 12)."""
    return _sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


# -- memberships as values ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Membership:
    """One kind of membership.

    `start(n, N, t)` gives parameters of real size n > 0: `n` itself where a size is one of them (`sized`), numbers
    per index otherwise. `grades(parameters, N, t, noise)` are [..., N]; `noise` are uniforms in (0, 1), `draws(N)` of
    them in the last axis, or None for the deterministic grades. `size(parameters, N, t)` is the real size [...].
    `temperature` is where t begins and ends (None: there is none).
    """

    kind: str
    start: Callable[[Tensor, int, float], dict[str, Tensor]]
    grades: Callable[[Parameters, int, float, Tensor | None], Tensor]
    size: Callable[[Parameters, int, float], Tensor]
    sized: bool = True
    temperature: tuple[float, float] | None = None
    draws: Callable[[int], int] = lambda _: 0


def _root(offset_size: Callable[[Tensor], Tensor], n: Tensor, low: float, high: float) -> Tensor:
    """The offset at which a size that grows with it equals n, by bisection; n [...] -> [...]."""
    with torch.no_grad():
        a, b = torch.full_like(n, low), torch.full_like(n, high)
        for _ in range(BISECTIONS):
            middle = (a + b) / 2
            many = offset_size(middle) > n
            a, b = torch.where(many, a, middle), torch.where(many, middle, b)
        return (a + b) / 2


def _own_size(parameters: Parameters, maximum: int, t: float) -> Tensor:
    return parameters["n"]


def _start_size(n: Tensor, maximum: int, t: float) -> dict[str, Tensor]:
    return {"n": n.clone()}


def _start_nodes(n: Tensor, maximum: int, t: float) -> dict[str, Tensor]:
    u_N = nodes(maximum, n)
    c = _root(lambda c: support(c.unsqueeze(-1) - u_N, 1 / t).sum(-1), n, -20 * t - 1, 20 * t + 2)
    return {"f": c.unsqueeze(-1) - u_N}


def _start_cosines(n: Tensor, maximum: int, t: float) -> dict[str, Tensor]:
    # 1/2 - u = sum over odd j of 4 / (pi j)^2 cos(pi j u): f begins as a line that falls through zero near n / N
    line = torch.tensor([4 / (math.pi * j) ** 2 if j % 2 else 0.0 for j in range(COSINES)], dtype=n.dtype)
    line_F = line.to(n.device)
    c = _root(lambda c: support(c.unsqueeze(-1) + cosines(line_F, maximum), 1 / t).sum(-1), n, -20 * t - 2, 20 * t + 2)
    return {"f": torch.cat([c.unsqueeze(-1), line_F[1:].expand(*n.shape, COSINES - 1)], -1)}


def _start_fuzzy(n: Tensor, maximum: int, t: float) -> dict[str, Tensor]:
    falling = -torch.arange(maximum, device=n.device, dtype=n.dtype) / max(maximum / 4, 1.0)
    return {"n": n.clone(), "z": falling.expand(*n.shape, maximum).clone()}


def _start_concrete(n: Tensor, maximum: int, t: float) -> dict[str, Tensor]:
    # a slope in log size, for one in u would leave a narrow size of a wide layer without a single sure unit
    log_N = torch.log(torch.arange(maximum, device=n.device, dtype=n.dtype) + 0.5)
    c = _root(lambda c: active((c.unsqueeze(-1) - log_N) / CONCRETE_TAU).sum(-1), n, -8.0, math.log(maximum) + 8.0)
    return {"log_alpha": (c.unsqueeze(-1) - log_N) / CONCRETE_TAU}


def _nested_grades(p: Parameters, maximum: int, t: float, noise: Tensor | None) -> Tensor:
    return interval(p["n"], maximum) if noise is None else nested(p["n"], maximum, t, noise.squeeze(-1))


MEMBERSHIPS: dict[str, Membership] = {
    m.kind: m
    for m in (
        Membership("interval", _start_size, lambda p, maximum, t, noise: interval(p["n"], maximum), _own_size),
        Membership(
            "band",
            _start_size,
            lambda p, maximum, t, noise: band(p["n"], maximum, t),
            _own_size,
            temperature=(0.3, 0.05),
        ),
        Membership("nested", _start_size, _nested_grades, _own_size, temperature=(0.3, 0.05), draws=lambda _: 1),
        Membership(
            "support",
            _start_cosines,
            lambda p, maximum, t, noise: support(cosines(p["f"], maximum), 1 / t),
            lambda p, maximum, t: support(cosines(p["f"], maximum), 1 / t).sum(-1),
            sized=False,
            temperature=(0.1, 0.005),
        ),
        Membership(
            "support_nodes",
            _start_nodes,
            lambda p, maximum, t, noise: support(p["f"], 1 / t),
            lambda p, maximum, t: support(p["f"], 1 / t).sum(-1),
            sized=False,
            temperature=(0.1, 0.005),
        ),
        Membership(
            "fuzzy",
            _start_fuzzy,
            lambda p, maximum, t, noise: fuzzy(p["z"] / t, p["n"]),
            _own_size,
            temperature=(1.0, 0.05),
        ),
        Membership(
            "concrete",
            _start_concrete,
            lambda p, maximum, t, noise: concrete(p["log_alpha"], noise),
            lambda p, maximum, t: active(p["log_alpha"]).sum(-1),
            sized=False,
            draws=lambda maximum: maximum,
        ),
    )
}


def grades(kind: str, n: Tensor, maximum: int, tau: float = 0.3) -> Tensor:
    """The deterministic grades with which the membership called `kind` begins at real size n, [...] -> [..., N].

    Raises:
        ValueError: for a kind that is not known.
    """
    if kind not in MEMBERSHIPS:
        raise ValueError(f"unknown membership {kind!r}; known: {', '.join(MEMBERSHIPS)}")
    membership = MEMBERSHIPS[kind]
    return membership.grades(membership.start(n, maximum, tau), maximum, tau, None)


def annealed(start: float, end: float, share: float) -> float:
    """A temperature on its way from `start` to `end`, geometric in the share of training done (0 to 1)."""
    return start * math.exp(min(max(share, 0.0), 1.0) * math.log(end / start))
