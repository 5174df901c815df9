"""Estimates of dC / d log z from values, against losses whose slopes are known in closed form or by quadrature.

Legend of shape suffixes: P points, N pairs, Z sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from search_spaces import Invalid
from trials.capacity.slopes import (
    Loss,
    PersistentES,
    Slope,
    central_differences,
    centred_ranks,
    evolution_strategies,
    whole,
)

SEEN: list[tuple[np.ndarray, np.ndarray]] = []


def of_theta(f: Callable[[np.ndarray], np.ndarray]) -> Loss:
    """A loss of log sizes [P, Z] as one of sizes, which remembers what it was asked."""

    def loss(sizes_PZ: np.ndarray, numbers_P: np.ndarray) -> np.ndarray:
        SEEN.append((sizes_PZ, numbers_P))
        return f(np.log(sizes_PZ))

    return loss


A = np.array([[2.0, 0.5], [0.5, 1.0]])
CENTRE, LINEAR = np.array([2.0, 3.0]), np.array([0.3, -0.7])


def quadratic(theta_PZ: np.ndarray) -> np.ndarray:
    d_PZ = theta_PZ - CENTRE
    return np.asarray(0.5 * np.einsum("pi,ij,pj->p", d_PZ, A, d_PZ) + theta_PZ @ LINEAR)


def close(found: Slope, truth: np.ndarray, errors: float = 4.0) -> None:
    """Within so many standard errors, which must be small enough to say something."""
    assert (np.abs(found.gradient_Z - truth) < errors * found.error_Z).all(), (found.gradient_Z, truth, found.error_Z)
    assert (found.error_Z < 0.1 * np.abs(truth).max()).all()


# -- evolution strategies ----------------------------------------------------------------------------------------------


def test_they_are_unbiased_on_a_quadratic() -> None:
    theta = np.array([1.7, 3.4])
    for seed in range(3):
        found = evolution_strategies(of_theta(quadratic), theta, sigma=0.3, pairs=4000, seed=seed, rounding="none")
        close(found, A @ (theta - CENTRE) + LINEAR)


def test_their_standard_error_is_that_of_theory() -> None:
    """On a linear loss b'theta a sample is (b'e) e, whose i-th variance is |b|^2 + b_i^2."""
    found = evolution_strategies(
        of_theta(lambda theta: theta @ LINEAR), np.ones(2), sigma=0.3, pairs=20_000, seed=0, rounding="none"
    )
    theory = np.sqrt((LINEAR @ LINEAR + LINEAR**2) / 20_000)
    np.testing.assert_allclose(found.error_Z, theory, rtol=0.05)


def test_what_they_estimate_of_a_cubic_is_the_slope_of_its_mean() -> None:
    """E (theta + sigma e)^3 = theta^3 + 3 theta sigma^2: its slope is 3 theta^2 + 3 sigma^2, not 3 theta^2."""
    found = evolution_strategies(
        of_theta(lambda theta: theta[:, 0] ** 3), np.array([0.5]), sigma=0.5, pairs=20_000, seed=1, rounding="none"
    )
    close(found, np.array([3 * 0.25 + 3 * 0.25]))
    assert abs(found.gradient_Z[0] - 0.75) > 10 * found.error_Z[0]


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_of_whole_sizes_they_estimate_the_slope_of_the_rounded_mean(rounding: str) -> None:
    """By quadrature over e; the loss 1 / z is asked at whole sizes alone."""
    log_n, sigma = math.log(3.3), 0.3

    def smoothed(theta: float) -> float:
        e = np.linspace(-8, 8, 400_001)
        n = np.exp(theta + sigma * e)
        low = np.maximum(np.floor(n), 1)
        value = (
            1 / np.maximum(np.floor(n + 0.5), 1)
            if rounding == "nearest"
            else np.where(n < 1, 1.0, (1 - (n - low)) / low + (n - low) / (low + 1))
        )
        return float((value * np.exp(-(e**2) / 2)).sum() * (e[1] - e[0]) / math.sqrt(2 * math.pi))

    truth = (smoothed(log_n + 1e-3) - smoothed(log_n - 1e-3)) / 2e-3
    SEEN.clear()
    found = evolution_strategies(
        of_theta(lambda theta: np.exp(-theta[:, 0])),
        np.array([log_n]),
        sigma=sigma,
        pairs=40_000,
        seed=2,
        rounding=rounding,
    )
    assert (SEEN[0][0] == SEEN[0][0].round()).all()
    close(found, np.array([truth]))


def test_both_ends_of_a_pair_share_their_random_numbers() -> None:
    """Each pair has one number, and the ends lie on either side of theta at the same distance."""
    SEEN.clear()
    evolution_strategies(of_theta(quadratic), np.array([1.0, 2.0]), sigma=0.1, pairs=3, seed=0, rounding="none")
    sizes_PZ, numbers_P = SEEN[0]
    assert numbers_P.tolist() == [0, 1, 2, 0, 1, 2]
    np.testing.assert_allclose(np.log(sizes_PZ[:3]) + np.log(sizes_PZ[3:]), [[2.0, 4.0]] * 3)


def test_noise_that_a_pair_shares_costs_nothing() -> None:
    noise = np.random.default_rng(0).normal(0, 100, 50)

    def loss(sizes_PZ: np.ndarray, numbers_P: np.ndarray) -> np.ndarray:
        return np.asarray(quadratic(np.log(sizes_PZ)) + noise[numbers_P])

    noisy = evolution_strategies(loss, np.ones(2), sigma=0.2, pairs=50, seed=0, rounding="none")
    clean = evolution_strategies(of_theta(quadratic), np.ones(2), sigma=0.2, pairs=50, seed=0, rounding="none")
    np.testing.assert_allclose(noisy.gradient_Z, clean.gradient_Z, atol=1e-9)


def test_ranks_are_centred_shared_and_put_failures_last() -> None:
    assert centred_ranks(np.array([3.0, 1.0, 2.0])).tolist() == [0.5, -0.5, 0.0]
    assert centred_ranks(np.array([5.0, 5.0, 1.0])).tolist() == [0.25, 0.25, -0.5]
    assert centred_ranks(np.array([math.nan, 1.0, 2.0])).tolist() == [0.5, -0.5, 0.0]
    assert centred_ranks(np.array([math.nan, math.inf])).tolist() == [0.0, 0.0]
    assert centred_ranks(np.array([7.0])).tolist() == [-0.5]


def test_ranked_slopes_know_order_alone_and_point_uphill() -> None:
    def slope(f: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return evolution_strategies(
            of_theta(f), np.array([3.0, 4.0]), sigma=0.2, pairs=100, seed=0, rounding="none", ranked=True
        ).gradient_Z

    plain = slope(quadratic)
    np.testing.assert_array_equal(plain, slope(lambda theta: np.exp(3 * quadratic(theta))))
    uphill = A @ (np.array([3.0, 4.0]) - CENTRE) + LINEAR
    assert plain @ uphill > 0.95 * np.linalg.norm(plain) * np.linalg.norm(uphill)


def test_rounding_to_whole_sizes() -> None:
    sizes = np.array([[0.2, 1.49, 2.5, 7.999]])
    assert whole(sizes).tolist() == [[1, 1, 3, 8]]
    assert whole(sizes, "none").tolist() == sizes.tolist()
    uniform = np.random.default_rng(0).random((20_000, 1))
    found = whole(np.full((20_000, 1), 2.3), "stochastic", uniform)
    assert set(found.ravel().tolist()) == {2.0, 3.0}
    assert found.mean() == pytest.approx(2.3, abs=4 * math.sqrt(0.21 / 20_000))


# -- differences -------------------------------------------------------------------------------------------------------


def test_central_differences_are_exact_to_second_order() -> None:
    """(theta + h)^3 - (theta - h)^3 over 2h is 3 theta^2 + h^2; a quadratic has no such term."""
    theta = np.array([1.2, 0.4])
    found = central_differences(of_theta(lambda t: (t**3).sum(1)), theta, step=0.1)
    np.testing.assert_allclose(found.gradient_Z, 3 * theta**2 + 0.01, rtol=1e-12)
    np.testing.assert_allclose(
        central_differences(of_theta(quadratic), theta, step=0.3).gradient_Z, A @ (theta - CENTRE) + LINEAR
    )


def test_each_repeat_of_differences_has_its_own_random_numbers() -> None:
    SEEN.clear()
    found = central_differences(of_theta(quadratic), np.zeros(2), step=0.1, repeats=3)
    assert len(SEEN) == 1
    assert SEEN[0][1].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found.samples_NZ.shape == (3, 2)
    np.testing.assert_allclose(found.error_Z, 0.0, atol=1e-12)


# -- persistent evolution strategies -----------------------------------------------------------------------------------

DECAY, DRIVE, TARGET, FIRST = 0.9, 0.2, 1.5, 0.3
PIECES, STEPS = 4, 3


class Walk:
    """s <- 0.9 s + 0.2 theta, and the loss (s - 1.5)^2 / 2 at the end of a piece: quadratic in all perturbations."""

    def __init__(self, particles: int, state: float = FIRST) -> None:
        self.state_P = np.full(particles, state)

    def advance(self, sizes_PZ: np.ndarray, steps: int) -> np.ndarray:
        for _ in range(steps):
            self.state_P = DECAY * self.state_P + DRIVE * np.log(sizes_PZ[:, 0])
        return np.asarray(0.5 * (self.state_P - TARGET) ** 2)


def walked(theta: float, steps: int) -> tuple[float, float]:
    """The state after so many steps and its slope in theta, in closed form."""
    grown = DRIVE * (1 - DECAY**steps) / (1 - DECAY)
    return DECAY**steps * FIRST + grown * theta, grown


THETA = np.array([0.8])


def test_persistent_strategies_know_the_whole_way() -> None:
    pairs = 40_000
    pes = PersistentES(Walk(2 * pairs), sigma=0.1, pairs=pairs, seed=0, rounding="none")
    for piece in range(1, PIECES + 1):
        state, slope = walked(THETA[0], piece * STEPS)
        close(pes.step(THETA, STEPS), np.array([(state - TARGET) * slope]))


def test_their_sum_is_the_strategy_over_the_whole_horizon() -> None:
    pairs = 40_000

    def horizon(sizes_PZ: np.ndarray, _: np.ndarray) -> np.ndarray:
        walk = Walk(len(sizes_PZ))
        return np.sum([walk.advance(sizes_PZ, STEPS) for _ in range(PIECES)], 0)

    over_all = evolution_strategies(horizon, THETA, sigma=0.1, pairs=pairs, seed=5, rounding="none")
    pes = PersistentES(Walk(2 * pairs), sigma=0.1, pairs=pairs, seed=6, rounding="none")
    samples = np.sum([pes.step(THETA, STEPS).samples_NZ for _ in range(PIECES)], 0)
    summed = Slope.of(samples)
    error = math.hypot(summed.error_Z[0], over_all.error_Z[0])
    assert abs(summed.gradient_Z[0] - over_all.gradient_Z[0]) < 4 * error < 0.1 * abs(over_all.gradient_Z[0])


def test_truncated_strategies_keep_only_the_share_of_their_own_piece() -> None:
    """Started from the unperturbed state, piece t sees (s - c) times the slope of a single piece: a known bias, and
    nothing of the earlier ones. In the first piece there is none to miss."""
    pairs = 20_000
    for piece in range(1, PIECES + 1):
        before, _ = walked(THETA[0], (piece - 1) * STEPS)

        def truncated(sizes_PZ: np.ndarray, _: np.ndarray, before: float = before) -> np.ndarray:
            return Walk(len(sizes_PZ), before).advance(sizes_PZ, STEPS)

        found = evolution_strategies(truncated, THETA, sigma=0.1, pairs=pairs, seed=piece, rounding="none")
        state, whole_slope = walked(THETA[0], piece * STEPS)
        own_slope = DRIVE * (1 - DECAY**STEPS) / (1 - DECAY)
        close(found, np.array([(state - TARGET) * own_slope]))
        if piece > 1:
            assert abs(found.gradient_Z[0] - (state - TARGET) * whole_slope) > 10 * found.error_Z[0]


def test_a_single_piece_is_plain_evolution_strategies() -> None:
    pes = PersistentES(Walk(40), sigma=0.1, pairs=20, seed=3, rounding="none")

    def loss(sizes_PZ: np.ndarray, _: np.ndarray) -> np.ndarray:
        return Walk(len(sizes_PZ)).advance(sizes_PZ, 5)

    plain = evolution_strategies(loss, THETA, sigma=0.1, pairs=20, seed=3, rounding="none")
    np.testing.assert_array_equal(pes.step(THETA, 5).samples_NZ, plain.samples_NZ)


def test_faults_are_told_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        evolution_strategies(of_theta(quadratic), np.ones(2), sigma=0.0, pairs=0, seed=0, rounding="nearst")
    assert len(caught.value.faults) == 3
    assert "Did you mean 'nearest'" in str(caught.value)
    with pytest.raises(Invalid, match="step: must be a positive number"):
        central_differences(of_theta(quadratic), np.ones(2), step=-0.1)
    with pytest.raises(Invalid, match="rounding"):
        PersistentES(Walk(2), sigma=0.1, pairs=1, seed=0, rounding="stochastic")
