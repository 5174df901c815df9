"""Memberships that draw noise against their laws: published figures, closed forms, quadrature and Monte Carlo.

Legend of shape suffixes: S samples, N indices.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from torch import Tensor
from torch.func import jacrev

from search_spaces.membership import BETA, GAMMA, MEMBERSHIPS, ZETA, active, band, concrete, grades, nested

SAMPLES = 200_000
N = 12


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def uniforms(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)


def error(p: Tensor | float) -> float:
    """4.5 standard errors of the mean of SAMPLES draws in [0, 1] of mean p; the last term is for rare events."""
    return 4.5 * math.sqrt(float(p) * (1 - float(p)) / SAMPLES) + 5 / SAMPLES


# -- the hard-concrete gate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("log_alpha", "not_zero", "one"), [(0.0, 0.83182, 0.16818), (-2.0, 0.40098, 0.02663)])
def test_the_chances_of_a_hard_concrete_gate(log_alpha: float, not_zero: float, one: float) -> None:
    """P(z != 0) and P(z = 1) at beta = 2/3, zeta = 1.1, gamma = -0.1: published figures, formulas, and the sampler."""
    assert (pytest.approx(2 / 3), 1.1, -0.1) == (BETA, ZETA, GAMMA)
    a = double(log_alpha)
    assert float(active(a)) == pytest.approx(not_zero, abs=5e-6)
    formula = 1 / (1 + math.exp(-(log_alpha - BETA * math.log((1 - GAMMA) / (ZETA - 1)))))
    assert formula == pytest.approx(one, abs=5e-6)
    z_S = concrete(a, uniforms(SAMPLES))
    assert float((z_S != 0).double().mean()) == pytest.approx(not_zero, abs=error(not_zero))
    assert float((z_S == 1).double().mean()) == pytest.approx(one, abs=error(one))


@given(st.floats(-6, 6), st.floats(0.001, 0.999))
def test_a_sample_is_the_inverse_of_the_gates_distribution(log_alpha: float, u: float) -> None:
    """P(s <= x) = sigmoid(beta (log x - log(1 - x)) - log alpha) is u at noise u (Louizos et al. 2018)."""
    z = float(concrete(double(log_alpha), double(u)))
    if 0 < z < 1:
        x = (z - GAMMA) / (ZETA - GAMMA)
        cdf = 1 / (1 + math.exp(-(BETA * (math.log(x) - math.log1p(-x)) - log_alpha)))
        assert cdf == pytest.approx(u, rel=1e-9)
    threshold = 1 - float(active(double(log_alpha)))  # the noise at which the gate opens
    assert (z > 0) == (u > threshold) or abs(u - threshold) < 1e-12


@given(st.floats(-8, 8))
def test_without_noise_a_gate_is_its_stretched_sigmoid(log_alpha: float) -> None:
    want = min(max(1.2 / (1 + math.exp(-log_alpha)) - 0.1, 0.0), 1.0)
    assert float(concrete(double(log_alpha))) == pytest.approx(want, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("n", [1.0, 3.3, 9.0])
def test_the_size_of_a_concrete_membership_is_the_expected_number_of_active_units(n: float) -> None:
    """Not the sum of the grades: those of active units lie below 1."""
    m = MEMBERSHIPS["concrete"]
    parameters = m.start(double(n), N, 1.0)
    spread = {"log_alpha": parameters["log_alpha"].expand(SAMPLES, N)}
    z_SN = m.grades(spread, N, 1.0, uniforms(SAMPLES, N))
    p_N = active(parameters["log_alpha"])
    counted = (z_SN != 0).double().sum(-1)
    assert float(counted.mean()) == pytest.approx(n, abs=4.5 * math.sqrt(float((p_N * (1 - p_N)).sum()) / SAMPLES))
    assert float(z_SN.sum(-1).mean()) < n


@pytest.mark.parametrize("maximum", [6, 40, 512])
@pytest.mark.parametrize("n", [1.0, 3.0])
def test_a_narrow_concrete_membership_of_a_wide_layer_begins_with_sure_units(n: float, maximum: int) -> None:
    """Its chances are a band's, so that without noise some units speak whatever the maximum is."""
    m_N = grades("concrete", double(n), maximum)
    assert float(m_N[0]) > 0.5
    assert 0.5 * n < float(m_N.sum()) < n
    p_N = active(MEMBERSHIPS["concrete"].start(double(n), maximum, 1.0)["log_alpha"])
    odds_N = torch.log(p_N) - torch.log1p(-p_N)
    slopes = (odds_N[0] - odds_N[1:6]) / torch.log(2 * torch.arange(1, 6) + 1.0)  # log(k + 1/2) - log(1/2)
    assert slopes.tolist() == pytest.approx([1 / 0.2] * 5, rel=1e-6)


# -- nested dropout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "tau"), [(3.3, 0.3), (7.0, 0.1), (1.5, 0.05)])
def test_nested_grades_exceed_a_half_as_often_as_the_band_says(n: float, tau: float) -> None:
    """And their mean is the band's over [k, k + 1], since it is the integral of P(size > x)."""
    m_SN = nested(double(n).expand(SAMPLES), N, tau, uniforms(SAMPLES))
    p_N = band(double(n), N, tau)
    for k in range(N):
        often = float((m_SN[:, k] > 0.5).double().mean())
        assert often == pytest.approx(float(p_N[k]), abs=error(p_N[k]))

        def above(x: float) -> float:
            return 1 / (1 + (x / n) ** (1 / tau))

        mean, _ = integrate.quad(above, k, k + 1)
        assert float(m_SN[:, k].mean()) == pytest.approx(mean, abs=error(mean))


@given(st.floats(0.5, N), st.floats(0.02, 0.5), st.floats(0.01, 0.99))
def test_a_nested_sample_is_a_prefix_of_a_random_size(n: float, tau: float, u: float) -> None:
    m_N = nested(double(n), N, tau, double(u))
    size = min(n * (u / (1 - u)) ** tau, N)
    assert m_N.tolist() == pytest.approx([min(max(size - k, 0.0), 1.0) for k in range(N)], abs=1e-12)


def test_the_median_size_of_a_nested_membership_is_its_n() -> None:
    sizes_S = nested(double(4.4).expand(SAMPLES), N, 0.3, uniforms(SAMPLES)).sum(-1)
    assert float(sizes_S.median()) == pytest.approx(4.4, rel=0.01)
    assert float(nested(double(4.4), N, 0.3, double(0.5)).sum()) == pytest.approx(4.4, rel=1e-12)
    assert torch.equal(grades("nested", double(4.4), N), grades("interval", double(4.4), N))


def test_the_mean_derivative_of_nested_samples_is_that_of_their_mean() -> None:
    """So a gradient by noisy grades is unbiased: the derivative and the expectation change places."""
    n, tau = double(4.4), 0.3
    noise_S = (torch.arange(SAMPLES, dtype=torch.float64) + 0.5) / SAMPLES  # quadrature over the uniform
    slope_N = jacrev(lambda n: nested(n.expand(SAMPLES), N, tau, noise_S).mean(0))(n)

    def mean(n: float, k: int) -> float:
        return float(integrate.quad(lambda x: 1 / (1 + (x / n) ** (1 / tau)), k, k + 1, epsabs=1e-13)[0])

    by_hand = [(mean(4.4 + 1e-4, k) - mean(4.4 - 1e-4, k)) / 2e-4 for k in range(N)]
    assert slope_N.tolist() == pytest.approx(by_hand, abs=1e-4)


# -- what they share ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nested", "concrete"])
def test_how_many_numbers_are_drawn(kind: str) -> None:
    m = MEMBERSHIPS[kind]
    assert m.draws(N) == {"nested": 1, "concrete": N}[kind]
    assert [other.kind for other in MEMBERSHIPS.values() if other.draws(N)] == ["nested", "concrete"]
    parameters = m.start(torch.tensor([2.5, 4.0], dtype=torch.float64), N, 0.3)
    m_KN = m.grades(parameters, N, 0.3, uniforms(2, m.draws(N)))
    assert m_KN.shape == (2, N)
    assert not torch.equal(m_KN, m.grades(parameters, N, 0.3, uniforms(2, m.draws(N), seed=1)))
