"""Memberships against their definitions: one-sided derivatives, finite differences, sums, limits, vmap."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import jacrev, vmap

from search_spaces.membership import band, grades, interval

N = 6


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def derivative(kind: str, n: float, maximum: int = N) -> list[float]:
    return jacrev(lambda size: grades(kind, size, maximum))(double(n)).tolist()


def unit(k: int) -> list[float]:
    return [float(i == k) for i in range(N)]


@pytest.mark.parametrize("n", [0.0, 0.25, 1.0, 2.5, 5.0, 5.75, 6.0])
def test_interval_is_its_definition(n: float) -> None:
    assert interval(double(n), N).tolist() == [min(max(n - k, 0.0), 1.0) for k in range(N)]


@pytest.mark.parametrize("k", range(N))
def test_at_whole_sizes_the_right_derivative_applies(k: int) -> None:
    """The boundary unit is the one about to come: it alone feels the size, exactly as just right of it."""
    assert derivative("interval", float(k)) == unit(k)
    assert derivative("interval", k + 1e-9) == unit(k)


def test_at_the_maximum_the_left_derivative_applies() -> None:
    assert derivative("interval", float(N)) == unit(N - 1)
    assert derivative("interval", N - 1e-9) == unit(N - 1)


@given(st.sampled_from(["interval", "band"]), st.integers(0, N - 1), st.floats(0.01, 0.99))
def test_derivatives_equal_finite_differences_between_whole_sizes(kind: str, k: int, rest: float) -> None:
    n, h = k + rest, 1e-6
    difference = (grades(kind, double(n + h), N) - grades(kind, double(n - h), N)) / (2 * h)
    assert derivative(kind, n) == pytest.approx(difference.tolist(), rel=1e-6, abs=1e-8)


@given(st.floats(0, N))
def test_the_grades_of_an_interval_sum_to_the_size(n: float) -> None:
    assert float(interval(double(n), N).sum()) == pytest.approx(n, rel=1e-15, abs=1e-15)


@given(st.floats(0.5, 40), st.floats(0.02, 0.5))
def test_band_is_its_definition_and_falls_with_the_index(n: float, tau: float) -> None:
    got = band(double(n), 40, tau)
    want = [1 / (1 + math.exp(-(math.log(n) - math.log(k + 0.5)) / tau)) for k in range(40)]
    assert got.tolist() == pytest.approx(want, rel=1e-12)
    assert (got.diff() <= 0).all()


@pytest.mark.parametrize("n", [1.2, 2.6, 3.4, 5.0])
def test_a_band_becomes_a_step_as_its_temperature_falls(n: float) -> None:
    """Those below the boundary k + 1/2 = n are members: as many as the whole size nearest to n (halves up)."""
    step = [1.0 if k < math.floor(n + 0.5) else 0.0 for k in range(N)]
    distances = [(band(double(n), N, tau) - torch.tensor(step)).abs().max().item() for tau in (0.3, 0.1, 0.03, 0.003)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-4


@pytest.mark.parametrize("kind", ["interval", "band"])
def test_vmap_equals_the_loop_bitwise(kind: str) -> None:
    sizes = torch.tensor([0.5, 1.0, 2.25, 5.0, 6.0], dtype=torch.float64)
    stacked = vmap(lambda n: grades(kind, n, N))(sizes)
    slopes = vmap(jacrev(lambda n: grades(kind, n, N)))(sizes)
    for row, slope, n in zip(stacked, slopes, sizes, strict=True):
        assert torch.equal(row, grades(kind, n, N))
        assert slope.tolist() == derivative(kind, float(n))
    assert torch.equal(stacked, grades(kind, sizes, N))


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="unknown membership 'bnad'; known: interval, band"):
        grades("bnad", double(1.0), N)
