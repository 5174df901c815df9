"""Memberships against their definitions: one-sided derivatives, finite differences, sums, limits, vmap.

Those that draw noise have more tests in test_random_memberships.py.

Legend of shape suffixes: N indices.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import jacrev, vmap

from search_spaces.membership import MEMBERSHIPS, annealed, band, fuzzy, grades, interval, support

N = 6
SUMMING = ("interval", "support", "support_nodes", "fuzzy")  # the real size is the sum of the grades
EDGED = ("interval", "fuzzy")  # grades have kinks at whole sizes


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


@pytest.mark.parametrize(("n", "tau"), [(50.0, 0.3), (80.0, 0.1), (31.5, 0.2)])
def test_far_from_the_maximum_a_band_sums_to_the_mean_of_a_log_logistic(n: float, tau: float) -> None:
    """n is its median; the integral of the grades over all k is n pi t / sin(pi t)."""
    assert float(band(double(n), 200_000, tau).sum()) == pytest.approx(
        n * math.pi * tau / math.sin(math.pi * tau), rel=1e-4
    )


# -- every kind --------------------------------------------------------------------------------------------------------


def noise_of(kind: str, maximum: int, seed: int = 0) -> Tensor | None:
    draws = MEMBERSHIPS[kind].draws(maximum)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(draws, generator=generator, dtype=torch.float64) * 0.98 + 0.01 if draws else None


def taus_of(kind: str) -> tuple[float, float]:
    return MEMBERSHIPS[kind].temperature or (1.0, 1.0)


kinds = st.sampled_from(sorted(MEMBERSHIPS))
maxima = st.integers(1, 40)
shares = st.floats(0, 1)


@given(kinds, maxima, shares, shares, st.integers(0, 9))
def test_grades_begin_at_a_real_size_and_lie_between_0_and_1(
    kind: str, maximum: int, place: float, share: float, seed: int
) -> None:
    m, tau, n = MEMBERSHIPS[kind], annealed(*taus_of(kind), share), 0.5 + place * (maximum - 0.5)
    parameters = m.start(double(n), maximum, tau)
    assert ("n" in parameters) == m.sized
    assert float(m.size(parameters, maximum, tau)) == pytest.approx(n, rel=1e-9)
    for noise in (None, noise_of(kind, maximum, seed)):
        m_N = m.grades(parameters, maximum, tau, noise)
        assert m_N.shape == (maximum,)
        assert ((m_N >= 0) & (m_N <= 1)).all()
        if kind in SUMMING:
            assert float(m_N.sum()) == pytest.approx(n, rel=1e-9)
    assert torch.equal(grades(kind, double(n), maximum, tau), m.grades(parameters, maximum, tau, None))
    assert (grades(kind, double(n), maximum, tau).diff() <= 0).all()  # they all begin as prefixes


@given(kinds, st.integers(2, 12), shares, shares, st.booleans())
def test_gradients_by_every_parameter_equal_finite_differences(
    kind: str, maximum: int, place: float, share: float, noisy: bool
) -> None:
    """Of a sum of the grades with weights of its own, so that no cancellation hides a fault."""
    m, tau, n = MEMBERSHIPS[kind], annealed(*taus_of(kind), share), 0.5 + place * (maximum - 0.5)
    noise = noise_of(kind, maximum) if noisy else None
    weights_N = torch.linspace(1.0, 3.0, maximum, dtype=torch.float64).cos()
    parameters = m.start(double(n), maximum, tau)
    keys, h = list(parameters), 1e-6
    flat = torch.cat([parameters[key].reshape(-1) for key in keys])

    def value(flat: Tensor) -> Tensor:
        parts = flat.split([parameters[key].numel() for key in keys])
        own = {key: part.reshape(parameters[key].shape) for key, part in zip(keys, parts, strict=True)}
        return m.grades(own, maximum, tau, noise)

    m_N = value(flat)
    around = [value(flat + side * h * e) for e in torch.eye(len(flat), dtype=flat.dtype) for side in (1, -1)]
    moved = [(m_N == end).tolist() == (other == end).tolist() for other in around for end in (0.0, 1.0)]
    assume(all(moved))  # no kink between
    by_hand = [float(((up - down) * weights_N).sum()) / (2 * h) for up, down in zip(*[iter(around)] * 2, strict=True)]
    gradient = jacrev(lambda flat: (value(flat) * weights_N).sum())(flat)
    assert gradient.tolist() == pytest.approx(by_hand, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", MEMBERSHIPS)
def test_vmap_equals_the_loop(kind: str) -> None:
    """Grades, sizes, starts and derivatives: to the last bit, but for the products of a support's cosines."""
    m, tau = MEMBERSHIPS[kind], taus_of(kind)[0]
    sizes = torch.tensor([0.5, 1.0, 2.25, 5.0, 6.0], dtype=torch.float64)
    noise = noise_of(kind, N)

    def lane(n: Tensor) -> Tensor:
        parameters = m.start(n, N, tau)
        return torch.cat([m.grades(parameters, N, tau, noise), m.size(parameters, N, tau).unsqueeze(-1)])

    def lanes_of(own: dict[str, Tensor]) -> Tensor:
        return m.grades(own, N, tau, noise)

    stacked = vmap(lane)(sizes)
    parameters = m.start(sizes, N, tau)
    slopes = vmap(jacrev(lanes_of))(parameters)
    together = m.grades(parameters, N, tau, None if noise is None else noise.expand(5, -1))
    tolerance = 1e-14 if kind == "support" else 0.0
    for k, n in enumerate(sizes):
        torch.testing.assert_close(stacked[k], lane(n), rtol=0, atol=tolerance)
        torch.testing.assert_close(together[k], stacked[k, :N], rtol=0, atol=tolerance)
        alone = jacrev(lanes_of)({key: value[k] for key, value in parameters.items()})
        for key, slope in alone.items():
            torch.testing.assert_close(slopes[key][k], slope, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("kind", MEMBERSHIPS)
def test_one_lane_without_a_number_leaves_its_neighbours_alone(kind: str) -> None:
    m, tau = MEMBERSHIPS[kind], taus_of(kind)[0]
    parameters = m.start(torch.tensor([2.25, 3.5, 5.0], dtype=torch.float64), N, tau)
    sound = m.grades(parameters, N, tau, None)
    broken = {key: value.clone() for key, value in parameters.items()}
    for value in broken.values():
        value[1] = math.nan
    assert torch.equal(m.grades(broken, N, tau, None)[[0, 2]], sound[[0, 2]])


@pytest.mark.parametrize("maximum", [1, 2, 4, 6, 32])
@pytest.mark.parametrize("kind", EDGED)
def test_no_whole_size_is_a_trap(kind: str, maximum: int) -> None:
    """At each temperature the grades' sum follows n at every whole size, the greatest included."""
    for tau in taus_of(kind):
        for n in range(maximum + 1):
            slope_N = jacrev(lambda size, tau=tau: grades(kind, size, maximum, tau))(double(float(n)))
            parameters = MEMBERSHIPS[kind].start(double(float(n)), maximum, tau)
            other = n - 1e-7 if n == maximum else n + 1e-7
            beside = MEMBERSHIPS[kind].grades({**parameters, "n": double(other)}, maximum, tau, None)
            by_hand = (beside - grades(kind, double(float(n)), maximum, tau)) / (other - n)
            assert slope_N.sum().item() == pytest.approx(1.0, rel=1e-12)
            assert slope_N.tolist() == pytest.approx(by_hand.tolist(), abs=1e-6)


@pytest.mark.parametrize("kind", EDGED)
def test_beyond_the_maximum_every_unit_is_a_whole_member_and_nothing_pulls(kind: str) -> None:
    for tau in taus_of(kind):
        assert grades(kind, double(N + 0.5), N, tau).tolist() == [1.0] * N
        assert not jacrev(lambda n, tau=tau: grades(kind, n, N, tau))(double(N + 0.5)).any()


# -- the capped simplex and the support --------------------------------------------------------------------------------


@given(st.lists(st.floats(-4, 4), min_size=2, max_size=20), st.floats(0.01, 0.99))
def test_in_the_capped_simplex_grades_sum_to_n_and_those_inside_share_its_growth(z: list[float], place: float) -> None:
    """sum m = n and dm_I/dn = 1/|I| over those strictly between 0 and 1; it is the projection of z - 1/2 there."""
    z_N, n = torch.tensor(z, dtype=torch.float64), double(place * len(z))
    m_N = fuzzy(z_N, n)
    inside = (m_N > 1e-9) & (m_N < 1 - 1e-9)
    near = inside != ((m_N > 0) & (m_N < 1))
    assume(inside.any() and not near.any())
    assert float(m_N.sum()) == pytest.approx(float(n), rel=1e-12)
    slope_N = jacrev(lambda size: fuzzy(z_N, size))(n)
    assert slope_N.tolist() == pytest.approx((inside.double() / inside.sum()).tolist(), abs=1e-12)
    tau_I = (z_N - m_N)[inside]
    assert float(tau_I.max() - tau_I.min()) < 1e-12  # one threshold
    assert (z_N[m_N == 1] >= tau_I.max() + 1 - 1e-12).all()
    assert (z_N[m_N == 0] <= tau_I.min() + 1e-12).all()
    matrix_II = jacrev(lambda z: fuzzy(z, n))(z_N)[inside][:, inside]
    count = int(inside.sum())
    want_II = torch.eye(count, dtype=torch.float64) - 1 / count
    torch.testing.assert_close(matrix_II, want_II, rtol=0, atol=1e-12)


def test_equal_scores_have_equal_grades() -> None:
    assert fuzzy(torch.zeros(8, dtype=torch.float64), double(3.0)).tolist() == pytest.approx([3 / 8] * 8, rel=1e-12)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=12), st.floats(1.0, 300.0))
def test_a_support_is_its_definition_and_becomes_the_indicator(f: list[float], kappa: float) -> None:
    f_N = torch.tensor(f, dtype=torch.float64)
    want = [1 / (1 + math.exp(-kappa * value)) if kappa * value > -700 else 0.0 for value in f]
    assert support(f_N, kappa).tolist() == pytest.approx(want, rel=1e-12, abs=1e-300)
    sure = f_N.abs() > 1e-3
    assert torch.equal(support(f_N, 1e5)[sure].round(), (f_N[sure] > 0).double())


# -- annealing ---------------------------------------------------------------------------------------------------------


@given(st.floats(1e-3, 10), st.floats(1e-3, 10), shares, shares)
def test_annealing_is_geometric_and_stays_between_its_ends(start: float, end: float, a: float, b: float) -> None:
    assert annealed(start, end, 0.0) == start
    assert annealed(start, end, 1.0) == pytest.approx(end, rel=1e-12)
    assert annealed(start, end, -1.0) == start
    assert annealed(start, end, 2.0) == annealed(start, end, 1.0)
    middle = annealed(start, end, (a + b) / 2)
    assert middle**2 == pytest.approx(annealed(start, end, a) * annealed(start, end, b), rel=1e-9)


@pytest.mark.parametrize("kind", [kind for kind, m in MEMBERSHIPS.items() if m.temperature and kind != "nested"])
def test_annealing_makes_grades_surer(kind: str) -> None:
    """Units that are neither in nor out: fewer at the end of each kind's own range than at its beginning."""
    doubt = []
    for tau in taus_of(kind):
        m_N = grades(kind, double(12.5), 32, tau)
        doubt.append(float((m_N * (1 - m_N)).sum()))
    assert doubt[1] < 0.5 * doubt[0]


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="unknown membership 'bnad'; known: interval, band"):
        grades("bnad", double(1.0), N)
