"""The slope of a noisy loss in log sizes, from values alone: evolution strategies and finite differences.

    >>> loss = objective(network, task, k=200)              # trials.capacity.losses: sizes -> C_k, by fused lanes
    >>> evolution_strategies(loss, np.log([12.0, 30.0]), sigma=0.2, pairs=32, seed=0).gradient_Z

A loss is asked for many points at once, `loss(sizes_PZ, numbers_P) -> values_P`: so it may train them together. Points
of one number must see the same random numbers (initialisation, batches): both ends of a pair, which are then compared
with little noise, have one number, and every pair its own, so that the mean over pairs is one over initialisations too.

With theta = log z and e standard normal, the estimates are of

    evolution strategies   d/dtheta E_e C(exp(theta + sigma e)), the mean over pairs of (C+ - C-) e / (2 sigma)
                           (Salimans et al. 2017, section 2, with mirrored sampling): smooth even where sizes are
                           rounded, and equal to dC/dtheta but for a term of order sigma^2 where C is smooth
    central differences    (C(exp(theta + h)) - C(exp(theta - h))) / 2h, axis by axis, at real sizes
    persistent ES          the first, of a training in pieces: particles keep their state from piece to piece and a
                           loss is weighted with the sum of all perturbations that made it (Vicol, Metz and
                           Sohl-Dickstein 2021, eq. 10 and algorithm 2); truncated ES would weight with the last alone

Everything is float64. No torch.

Legend of shape suffixes: P points, N pairs, Z sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from search_spaces.faults import Invalid, unknown

#: sizes [P, Z] and the number of each point's random numbers [P] -> values [P]
Loss: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]

ROUNDINGS = ("nearest", "stochastic", "none")


@dataclass(frozen=True, kw_only=True, eq=False)
class Slope:
    """An estimate of dC / d log z, [Z], in units of the loss per unit of log size; its standard error, [Z] (NaN of a
    single sample); and the samples whose mean it is, [N, Z]. What was computed with ranks has no units."""

    gradient_Z: np.ndarray
    error_Z: np.ndarray
    samples_NZ: np.ndarray

    @classmethod
    def of(cls, samples_NZ: np.ndarray) -> Slope:
        """The mean of independent samples."""
        count = len(samples_NZ)
        spread_Z = samples_NZ.std(0, ddof=1) / count**0.5 if count > 1 else np.full(samples_NZ.shape[1], np.nan)
        return cls(gradient_Z=samples_NZ.mean(0), error_Z=spread_Z, samples_NZ=samples_NZ)


def whole(sizes_PZ: np.ndarray, rounding: str = "nearest", uniform_PZ: np.ndarray | float = 0.5) -> np.ndarray:
    """Whole sizes of at least 1: the nearest (halves up); or `stochastic`, floor(n + u) with u uniform in [0, 1), whose
    mean is n; or, for `none`, the sizes as they are."""
    if rounding == "none":
        return sizes_PZ
    shift_PZ = 0.5 if rounding == "nearest" else uniform_PZ
    return np.maximum(np.floor(sizes_PZ + shift_PZ), 1.0)


def centred_ranks(values_P: np.ndarray) -> np.ndarray:
    """Ranks spread evenly over [-1/2, 1/2], equal values sharing their mean rank; whatever is not finite is worst
    (Salimans et al. 2017, section 2: the update is then invariant under monotone maps of the loss)."""
    finite_P = np.where(np.isfinite(values_P), values_P, np.inf)
    _, place_P, counts = np.unique(finite_P, return_inverse=True, return_counts=True)
    ranks_P = (np.cumsum(counts) - (counts + 1) / 2)[place_P]
    return np.asarray(ranks_P / max(len(finite_P) - 1, 1) - 0.5)


def pair_samples(noise_NZ: np.ndarray, plus_N: np.ndarray, minus_N: np.ndarray, sigma: float) -> np.ndarray:
    """One sample of the gradient a pair, (C+ - C-) e / (2 sigma), [N, Z]."""
    return np.asarray((plus_N - minus_N)[:, None] * noise_NZ / (2.0 * sigma))


def evolution_strategies(
    loss: Loss,
    log_sizes_Z: np.ndarray,
    *,
    sigma: float,
    pairs: int,
    seed: int,
    rounding: str = "nearest",
    ranked: bool = False,
) -> Slope:
    """d/dtheta E C(exp(theta + sigma e)) from `pairs` antithetic pairs, asked for in one call.

    Args:
        sigma: the standard deviation of perturbations, in log size. Where sizes are rounded to the nearest, it should
            reach over a unit (sigma z > 1/2), or most pairs compare a size with itself.
        rounding: of `ROUNDINGS`; `stochastic` shares its uniform numbers within a pair. The estimate is unbiased for
            the slope of the mean of the *rounded* loss.
        ranked: use centred ranks over all values for the values. It then points downhill robustly, and is no longer an
            unbiased estimate of anything; its standard error takes pairs for independent, which ranks make them not.

    Raises:
        Invalid: with every rule that the arguments break.
    """
    faults = _faults(sigma=sigma, pairs=pairs)
    if rounding not in ROUNDINGS:
        faults.append(unknown("rounding", rounding, ROUNDINGS, "rounding"))
    if faults:
        raise Invalid(faults)
    theta_Z = np.asarray(log_sizes_Z, dtype=np.float64)
    rng = np.random.default_rng([seed, 0])
    noise_NZ = rng.standard_normal((pairs, len(theta_Z)))
    uniform_NZ = rng.random(noise_NZ.shape)
    both_PZ = np.exp(np.concatenate([theta_Z + sigma * noise_NZ, theta_Z - sigma * noise_NZ]))
    sizes_PZ = whole(both_PZ, rounding, np.concatenate([uniform_NZ, uniform_NZ]))
    values_P = np.asarray(loss(sizes_PZ, np.tile(np.arange(pairs), 2)), dtype=np.float64)
    if ranked:
        values_P = centred_ranks(values_P)
    return Slope.of(pair_samples(noise_NZ, values_P[:pairs], values_P[pairs:], sigma))


def central_differences(loss: Loss, log_sizes_Z: np.ndarray, *, step: float, repeats: int = 1) -> Slope:
    """(C(exp(theta + h)) - C(exp(theta - h))) / 2h along each axis, at real sizes: the loss must know those (an
    interval or a band of units). All points, 2 Z a repeat, are asked for in one call, each repeat with random numbers
    of its own.

    Args:
        step: h, in log size. An interval's loss has kinks at whole sizes: keep both ends between two of them, or take
            what comes as the mean of the two slopes.

    Raises:
        Invalid: with every rule that the arguments break.
    """
    if faults := _faults(step=step, repeats=repeats):
        raise Invalid(faults)
    theta_Z = np.asarray(log_sizes_Z, dtype=np.float64)
    axes_ZZ = step * np.eye(len(theta_Z))
    one_PZ = np.exp(np.concatenate([theta_Z + axes_ZZ, theta_Z - axes_ZZ]))
    numbers_P = np.repeat(np.arange(repeats), len(one_PZ))
    values = np.asarray(loss(np.tile(one_PZ, (repeats, 1)), numbers_P), dtype=np.float64).reshape(repeats, 2, -1)
    return Slope.of((values[:, 0] - values[:, 1]) / (2.0 * step))


# -- long trainings, piece by piece ------------------------------------------------------------------------------------


class Particles(Protocol):
    """Trainings that go on where they are; `trials.capacity.lanes.CapacityLanes` is one."""

    def advance(self, sizes_PZ: np.ndarray, steps: int) -> np.ndarray:
        """Train each particle `steps` steps further at its sizes now; their losses then, [P]."""


class PersistentES:
    """Persistent evolution strategies over a training of many pieces.

        >>> pes = PersistentES(lanes, sigma=0.1, pairs=16, seed=0)       # lanes of 32 particles
        >>> slopes = [pes.step(theta_Z, steps=50) for _ in range(20)]    # of the loss after 50, 100, ..., 1000 steps

    The slope after piece t is of L_t, the loss at the end of that piece, along the *whole* way from the first step: the
    last one estimates dC_k/dtheta at k of all steps, the sum of all is the slope of the sum of the L_t. It equals that
    of evolution strategies over the whole horizon in expectation where L_t is at most quadratic in the perturbations,
    and up to order sigma^2 else. Its variance grows about as the number of pieces, that of each piece's loss
    aside; a theta that moves between the steps makes the early pieces' share stale, as in every online method.

    Args:
        particles: 2 `pairs` trainings, first all + ends, then all - ends; the two of a pair must share random numbers.
        rounding: `nearest` or `none`; a piece trains at such sizes.
    """

    def __init__(self, particles: Particles, *, sigma: float, pairs: int, seed: int, rounding: str = "nearest") -> None:
        faults = _faults(sigma=sigma, pairs=pairs)
        if rounding not in ("nearest", "none"):
            faults.append(unknown("rounding", rounding, ("nearest", "none"), "rounding"))
        if faults:
            raise Invalid(faults)
        self.particles, self.sigma, self.pairs, self.seed, self.rounding = particles, sigma, pairs, seed, rounding
        self.pieces = 0
        self._sum_NZ: np.ndarray | None = None

    def step(self, log_sizes_Z: np.ndarray, steps: int) -> Slope:
        """Train one piece of `steps` steps with fresh perturbations of theta; the slope of the loss at its end."""
        theta_Z = np.asarray(log_sizes_Z, dtype=np.float64)
        noise_NZ = np.random.default_rng([self.seed, self.pieces]).standard_normal((self.pairs, len(theta_Z)))
        self.pieces += 1
        self._sum_NZ = noise_NZ if self._sum_NZ is None else self._sum_NZ + noise_NZ
        both_PZ = np.concatenate([theta_Z + self.sigma * noise_NZ, theta_Z - self.sigma * noise_NZ])
        values_P = np.asarray(self.particles.advance(whole(np.exp(both_PZ), self.rounding), steps), dtype=np.float64)
        return Slope.of(pair_samples(self._sum_NZ, values_P[: self.pairs], values_P[self.pairs :], self.sigma))


def _faults(**given: float) -> list[str]:
    """Broken rules of numbers: counts are whole and at least 1, distances positive."""
    faults = []
    for name, value in given.items():
        if name in ("pairs", "repeats"):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                faults.append(f"{name}: must be a whole number of at least 1, but got {value!r}.")
        elif not (np.isfinite(value) and value > 0):
            faults.append(f"{name}: must be a positive number in log size (such as 0.1), but got {value!r}.")
    return faults
