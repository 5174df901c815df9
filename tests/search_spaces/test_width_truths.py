"""What is known exactly of a network whose width is a real number: derivatives by hand, the support's derivative with
its zeros, and a conservation law.

Legend of shape suffixes: B batch, D inputs, H hidden units, O outputs, N nodes of a support, Z zeros of f.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.membership import cosines, interval, nodes, support
from search_spaces.width import WidthGate

BATCH, INPUTS, HIDDEN, OUTPUTS = 16, 5, 8, 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- the width's derivative --------------------------------------------------------------------------------------------


def between(activation: nn.Module) -> tuple[nn.Sequential, WidthGate]:
    """A layer, its activation, its gate, and a layer that reads it; weights drawn anew from fixed seeds."""
    gate = WidthGate("width", HIDDEN)
    network = nn.Sequential(nn.Linear(INPUTS, HIDDEN), activation, gate, nn.Linear(HIDDEN, OUTPUTS)).double()
    with torch.no_grad():
        for seed, i in enumerate((0, 3)):
            network[i].weight.copy_(normal(*network[i].weight.shape, seed=10 + seed))
            network[i].bias.copy_(normal(*network[i].bias.shape, seed=20 + seed))
    return network, gate


@given(
    st.floats(0, HIDDEN - 0.02).map(lambda n: math.floor(n) + min(max(n % 1, 0.01), 0.99)),
    st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU]),
    st.integers(0, 5),
)
def test_the_derivative_by_a_width_is_the_boundary_units_contribution(
    n: float, activation: type[nn.Module], seed: int
) -> None:
    """dF/dgamma = (dF/dy) y_k W_k for gamma in (k, k + 1): the output's derivative, along what unit k adds to it."""
    (network, gate), k, x_BD = between(activation()), int(n), normal(BATCH, INPUTS, seed=seed)
    target_BO = normal(BATCH, OUTPUTS, seed=100 + seed)

    def loss(size: float) -> Tensor:
        gate.set(size)
        return functional.mse_loss(network(x_BD), target_BO)

    (slope,) = torch.autograd.grad(loss(n), gate.n)
    with torch.no_grad():
        y_BH = activation()(x_BD @ network[0].weight.T + network[0].bias)
        m_H = torch.tensor([min(max(n - i, 0.0), 1.0) for i in range(HIDDEN)], dtype=torch.float64)
        out_BO = (y_BH * m_H) @ network[3].weight.T
        by_out_BO = 2 * (out_BO + network[3].bias - target_BO) / out_BO.numel()
        by_hand = float((by_out_BO * y_BH[:, k : k + 1] * network[3].weight[:, k]).sum())
        difference = (loss(n + 1e-6) - loss(n - 1e-6)).item() / 2e-6
    assert float(slope) == pytest.approx(by_hand, rel=1e-10, abs=1e-13)
    assert by_hand == pytest.approx(difference, rel=1e-6, abs=1e-8)


def test_a_channel_of_images_is_a_unit_too() -> None:
    """The boundary unit's contribution, where units are feature maps and the reader is a convolution."""
    gate = WidthGate("width", HIDDEN, dim=1)
    network = nn.Sequential(nn.Conv2d(2, HIDDEN, 3, padding=1), nn.Tanh(), gate, nn.Conv2d(HIDDEN, OUTPUTS, 3)).double()
    x, n, k = normal(4, 2, 6, 6), 4.3, 4
    gate.set(n)
    out = network(x)
    (slope,) = torch.autograd.grad((out**2).sum(), gate.n)
    with torch.no_grad():
        y = torch.tanh(network[0](x))[:, k : k + 1]
        contribution = functional.conv2d(y, network[3].weight[:, k : k + 1])
    assert float(slope) == pytest.approx(float((2 * out.detach() * contribution).sum()), rel=1e-12)


# -- the support's derivative ------------------------------------------------------------------------------------------

ZEROS = np.array([0.2, 0.5, 0.9])
#: f's slope at its zeros is 2.25, -1.286 and 3, and phi y w there is these: their sum is 1, and over |f'| it is 1/2
CHARGES = np.array([0.5, 0.25, 0.25])
STEEPNESS = 75 / 7


def f(u: Tensor | float) -> Tensor | float:
    return STEEPNESS * (u - ZEROS[0]) * (u - ZEROS[1]) * (u - ZEROS[2])


def phi(u: Tensor | float) -> Tensor | float:
    """The direction in which f moves."""
    return 1 + u


def y_w(u: Tensor | float) -> Tensor | float:
    """The product of the activation function and the weight function: phi y w is CHARGES at the zeros."""
    charge = sum(
        float(c) * math.prod((u - b) / (a - b) for b in ZEROS if b != a)  # Lagrange's parabola
        for c, a in zip(CHARGES, ZEROS, strict=True)
    )
    return charge / phi(u)


def hard(eps: float) -> float:
    """J = the integral of y w over {f + eps phi > 0}, from its zeros."""

    def moved(u: float) -> float:
        return float(f(u) + eps * phi(u))

    z = [optimize.brentq(moved, float(a) - 0.05, float(a) + 0.05, xtol=1e-15) for a in ZEROS]
    inside = ((z[0], z[1]), (z[2], 1.0))
    return sum(integrate.quad(y_w, a, b, epsabs=1e-14, epsrel=1e-14)[0] for a, b in inside)


def soft_slope(kappa: float, maximum: int = 200_000) -> float:
    """d/d eps of the mean of sigmoid(kappa (f + eps phi)) y w over the nodes, by autograd."""
    u_N = nodes(maximum, torch.zeros(0, dtype=torch.float64))
    eps = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value = (support(f(u_N) + eps * phi(u_N), kappa) * y_w(u_N)).mean()
    (slope,) = torch.autograd.grad(value, eps)
    return float(slope)


def test_the_derivative_of_a_support_has_the_slope_of_f_at_its_zeros() -> None:
    """dJ = the sum over zeros z of f of phi(z) y(z) w(z) / |f'(z)|: without |f'| it would be twice what it is."""
    slopes = np.array([STEEPNESS * math.prod(a - b for b in ZEROS if b != a) for a in ZEROS])
    charges = np.array([phi(a) * y_w(a) for a in ZEROS])
    corrected, uncorrected = float((charges / abs(slopes)).sum()), float(charges.sum())
    assert corrected == pytest.approx(0.5, rel=1e-12)
    assert uncorrected == pytest.approx(1.0, rel=1e-12)
    assert (hard(1e-4) - hard(-1e-4)) / 2e-4 == pytest.approx(corrected, rel=1e-6)
    one_sided = [abs((hard(h) - hard(0)) / h - corrected) for h in (1e-2, 1e-3, 1e-4)]
    assert one_sided[0] > one_sided[1] > one_sided[2]


def test_a_soft_support_has_the_derivative_of_the_hard_one_in_the_limit() -> None:
    """Its error falls with the square of kappa."""
    errors = [abs(soft_slope(kappa) - 0.5) for kappa in (100, 200, 400, 800)]
    assert soft_slope(1000) == pytest.approx(0.5, abs=5e-5)
    assert (4 * soft_slope(1000) - soft_slope(500)) / 3 == pytest.approx(0.5, abs=2e-7)  # Richardson's extrapolation
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(4, rel=0.05)


def test_cosines_are_what_they_say_at_the_nodes() -> None:
    f_F = normal(2, 5)
    u = [(k + 0.5) / 7 for k in range(7)]
    want = [[sum(float(c) * math.cos(math.pi * j * at) for j, c in enumerate(row)) for at in u] for row in f_F]
    torch.testing.assert_close(cosines(f_F, 7), torch.tensor(want, dtype=torch.float64), rtol=1e-13, atol=1e-14)
    assert nodes(7, f_F).tolist() == pytest.approx(u, rel=1e-15)


# -- one gated unit ----------------------------------------------------------------------------------------------------

Flow = Callable[[Tensor], Tensor]


def one_unit(loss: str) -> Callable[[Tensor], Tensor]:
    """The loss as a function of (m, W): one unit of fixed activation, gated, read by W; m is its size in (0, 1)."""
    h_B, target_BO = normal(BATCH, seed=1), normal(BATCH, OUTPUTS, seed=2)

    def value(point: Tensor) -> Tensor:
        out_BO = (h_B * interval(point[0], 1)).unsqueeze(1) * point[1:]
        if loss == "mse":
            return functional.mse_loss(out_BO, target_BO)
        return functional.cross_entropy(out_BO, target_BO.argmax(1))

    return value


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_a_gate_and_its_outgoing_weights_feel_the_same_pull(loss: str) -> None:
    """m dL/dm = <W, dL/dW> for one gated unit: the loss sees their product alone."""
    for seed in range(5):
        point = torch.cat([torch.tensor([0.15 + 0.17 * seed], dtype=torch.float64), normal(OUTPUTS, seed=seed)])
        slope = torch.func.grad(one_unit(loss))(point)
        assert float(point[0] * slope[0]) == pytest.approx(float(point[1:] @ slope[1:]), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_gradient_flow_conserves_the_square_of_a_gate_less_that_of_its_weights(loss: str) -> None:
    """m^2 - ||W||^2 along the flow, by Runge-Kutta's method of fourth order: its drift falls with the step's power."""
    slope = torch.func.grad(one_unit(loss))

    def drift(steps: int, time: float = 4.0) -> float:
        point = torch.cat([torch.tensor([0.35], dtype=torch.float64), 0.4 * normal(OUTPUTS, seed=7)])
        begin, h = point, time / steps
        for _ in range(steps):
            a = -slope(point)
            b = -slope(point + h / 2 * a)
            c = -slope(point + h / 2 * b)
            d = -slope(point + h * c)
            point = point + h / 6 * (a + 2 * b + 2 * c + d)
            assert 0 < float(point[0]) < 1
        assert (point - begin).abs().max() > 0.05  # it did flow
        before, after = (float(p[0] ** 2 - (p[1:] ** 2).sum()) for p in (begin, point))
        return abs(after - before)

    assert drift(400) < 1e-11
    assert drift(8) > 8 * drift(16)
