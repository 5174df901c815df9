"""Descent on noisy values of C_k by ask and tell: sizes out, values in; nothing is trained here.

    >>> descent = CapacityDescent(low=[4, 4], high=[128, 128], excess=lambda z: flops(z) / 8000 - 1, seed=0)
    >>> for _ in range(20):
    ...     sizes_PZ = descent.ask()                    # 2 * pairs whole sizes that meet the bound
    ...     descent.tell(capacity_of(sizes_PZ))         # their values, in order; NaN for a failure
    >>> descent.recommend()

Antithetic evolution strategies in log size (Salimans et al. 2017), with centred ranks and Adam (Kingma and Ba 2015) or
plain steps. The loss that is descended on is F(theta) = C(whole(bounded(exp theta))): sizes beyond the bound are scaled
back onto it by a common factor, so F is constant along the diagonal there, and a perturbation counts as it was drawn.

To wrap it as a sampler that is a pure function of its history: make one, replay a generation as `ask()` and then
`tell(values)` for each batch the history holds, and ask once more. Several batches may be asked for before the first is
told (a search that fits generation g on outcomes up to g - 2): `tell` answers the oldest one that is open.

No torch. Legend of shape suffixes: P points (2 a pair), N pairs, Z sizes, E points that were evaluated.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from search_spaces.faults import Invalid, unknown
from trials.capacity.slopes import centred_ranks, pair_samples, whole

#: by what share sizes [Z] overshoot the bound; at most 0 where they meet it
Excess: TypeAlias = Callable[[np.ndarray], float]

OPTIMIZERS = ("adam", "sgd")
NEWEST = 512  # points that the Gaussian process is fitted to at most: its cost grows with their cube
HALVINGS = 40


class CapacityDescent:
    """The state of a descent: a mean in log size, an optimiser's moments, and everything that was evaluated.

    Args:
        low, high: the range of each size, [Z]; at least 1.
        start: where the mean begins, [Z] (default: the geometric middle), scaled back where it overshoots.
        excess: the bound; None for none.
        sigma: standard deviation of perturbations, in log size.
        pairs: antithetic pairs of a batch.
        lr: step of the mean, in log size: about what Adam moves every size in one tell.
        rounding: `nearest` for whole sizes (those that still meet the bound), or `none`.
        scaled: which of the sizes [Z] the bound scales back (default: all). Others are numbers that cost nothing, such
            as a learning rate, in units of its least.

    Raises:
        Invalid: with every rule that the arguments break; among them, that the least sizes must meet the bound.
    """

    def __init__(
        self,
        low: Sequence[float],
        high: Sequence[float],
        *,
        start: Sequence[float] | None = None,
        excess: Excess | None = None,
        sigma: float = 0.25,
        pairs: int = 8,
        lr: float = 0.1,
        optimizer: str = "adam",
        rounding: str = "nearest",
        scaled: Sequence[bool] | None = None,
        seed: int = 0,
    ) -> None:
        self.low_Z, self.high_Z = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        self.excess: Excess = excess or (lambda _: 0.0)
        self.sigma, self.pairs, self.lr, self.optimizer = sigma, pairs, lr, optimizer
        self.rounding, self.seed = rounding, seed
        self.scaled_Z = np.ones(self.low_Z.shape, dtype=bool) if scaled is None else np.asarray(scaled, dtype=bool)
        if faults := self._faults(start):
            raise Invalid(faults)
        begin_Z = np.sqrt(self.low_Z * self.high_Z) if start is None else np.asarray(start, dtype=np.float64)
        self._mean_Z = np.log(self._bounded(begin_Z, rounding="none"))
        self._first_Z, self._second_Z = np.zeros_like(self.low_Z), np.zeros_like(self.low_Z)
        self._batches = self._told = 0
        self._open: deque[tuple[np.ndarray, np.ndarray]] = deque()
        self._evaluated: list[tuple[np.ndarray, float]] = []

    def _faults(self, start: Sequence[float] | None) -> list[str]:
        faults = []
        low_Z, high_Z = self.low_Z, self.high_Z
        if low_Z.ndim != 1 or low_Z.shape != high_Z.shape or not len(low_Z):
            faults.append(f"low, high: must be as many numbers, at least one, but got {low_Z!r} and {high_Z!r}.")
        elif not (np.isfinite(high_Z).all() and (low_Z >= 1).all() and (low_Z <= high_Z).all()):
            faults.append(f"low, high: `1 <= low <= high` must hold, but got {low_Z.tolist()} and {high_Z.tolist()}.")
        elif self.rounding == "nearest" and (np.ceil(low_Z) > np.floor(high_Z)).any():
            faults.append(f"low, high: a whole size must lie between, but got {low_Z.tolist()} and {high_Z.tolist()}.")
        elif self.excess(np.ceil(low_Z) if self.rounding == "nearest" else low_Z) > 0:
            faults.append(
                f"excess: the least sizes must meet the bound, but {low_Z.tolist()} overshoot it; raise the bound."
            )
        if start is not None and (np.shape(start) != low_Z.shape or not (np.asarray(start) > 0).all()):
            faults.append(f"start: must be a positive size for each of {low_Z.tolist()}, but got {list(start)}.")
        for name, value in (("sigma", self.sigma), ("lr", self.lr)):
            if not (np.isfinite(value) and value > 0):
                faults.append(f"{name}: must be a positive number, but got {value!r}.")
        if self.scaled_Z.shape != low_Z.shape:
            faults.append(f"scaled: must be a switch for each of {low_Z.tolist()}, but got {self.scaled_Z.tolist()}.")
        if self.pairs < 1:
            faults.append(f"pairs: must be a whole number of at least 1, but got {self.pairs!r}.")
        if self.optimizer not in OPTIMIZERS:
            faults.append(unknown("optimizer", self.optimizer, OPTIMIZERS, "optimizer"))
        if self.rounding not in ("nearest", "none"):
            faults.append(unknown("rounding", self.rounding, ("nearest", "none"), "rounding"))
        return faults

    # -- asking and telling --------------------------------------------------------------------------------------------

    @property
    def mean(self) -> np.ndarray:
        """The sizes at the mean, real, [Z]."""
        return np.asarray(np.exp(self._mean_Z))

    def ask(self) -> np.ndarray:
        """The next batch, [2 * pairs, Z]: row i and row pairs + i are the ends of a pair, and should be trained with
        the same random numbers. A function of the seed, how many batches were asked before, and what was told."""
        noise_NZ = self.noise(self._batches)
        self._batches += 1
        moved_PZ = self._mean_Z + self.sigma * np.concatenate([noise_NZ, -noise_NZ])
        sizes_PZ = np.stack([self._bounded(sizes_Z, self.rounding) for sizes_Z in np.exp(moved_PZ)])
        self._open.append((noise_NZ, sizes_PZ))
        return sizes_PZ.copy()

    def tell(self, values: Sequence[float] | np.ndarray) -> None:
        """The values of the oldest batch that is open, in the order of its rows; what is not finite counts as worst.

        Raises:
            Invalid: when no batch is open, or the number of values is not that of its rows.
        """
        if not self._open:
            raise Invalid(["tell: every batch was told; ask first."])
        noise_NZ, sizes_PZ = self._open[0]
        values_P = np.asarray(values, dtype=np.float64)
        if values_P.shape != (len(sizes_PZ),):
            raise Invalid([f"tell: must have {len(sizes_PZ)} values, one a row, but got shape {values_P.shape}."])
        self._open.popleft()
        self._evaluated += [(z, float(v)) for z, v in zip(sizes_PZ, values_P, strict=True) if np.isfinite(v)]
        self.descend(noise_NZ, values_P)

    def noise(self, batch: int) -> np.ndarray:
        """The perturbations of one batch, [N, Z], in units of sigma: a function of the seed and its number."""
        return np.random.default_rng([self.seed, batch]).standard_normal((self.pairs, len(self._mean_Z)))

    def descend(self, noise_NZ: np.ndarray, values_P: np.ndarray) -> None:
        """One step of the mean by the values of both ends of every pair, all + ends first: what `tell` does."""
        ranks_P = centred_ranks(values_P)
        gradient_Z = pair_samples(noise_NZ, ranks_P[: self.pairs], ranks_P[self.pairs :], self.sigma).mean(0)
        moved_Z = self._mean_Z - self.lr * self._direction(gradient_Z)
        self._mean_Z = np.log(self._bounded(np.exp(moved_Z), rounding="none"))

    def _direction(self, gradient_Z: np.ndarray) -> np.ndarray:
        self._told += 1
        if self.optimizer == "sgd":
            return gradient_Z
        self._first_Z = 0.9 * self._first_Z + 0.1 * gradient_Z
        self._second_Z = 0.99 * self._second_Z + 0.01 * gradient_Z**2
        first_Z, second_Z = self._first_Z / (1 - 0.9**self._told), self._second_Z / (1 - 0.99**self._told)
        return np.asarray(first_Z / (np.sqrt(second_Z) + 1e-12))

    def _bounded(self, sizes_Z: np.ndarray, rounding: str) -> np.ndarray:
        """Sizes in their range that meet the bound: scaled back by the common factor nearest to 1."""

        def scaled(shift: float) -> np.ndarray:
            back_Z = np.exp(-shift * self.scaled_Z)
            inside_Z = np.asarray(np.clip(sizes_Z * back_Z, self.low_Z, self.high_Z))
            if rounding == "none":
                return inside_Z
            return np.asarray(np.clip(whole(inside_Z, rounding), np.ceil(self.low_Z), np.floor(self.high_Z)))

        most = max(float(np.log(sizes_Z / self.low_Z).max()), 0.0) + 1.0  # all at their least
        return scaled_back(scaled, self.excess, most)

    # -- the answer ----------------------------------------------------------------------------------------------------

    def recommend(self) -> np.ndarray:
        """The sizes of those evaluated, [Z], at which the posterior mean of a Gaussian process over log sizes is least:
        the best single value would mostly be the luckiest one. The mean's own sizes where nothing was told.

        The process has a Matern kernel (nu = 5/2) with a length for each size and white noise, its hyperparameters at
        the maximum of the marginal likelihood (Rasmussen and Williams 2006, section 5.4), and sees the newest 512.
        """
        newest = self._evaluated[-NEWEST:]
        if not newest:
            return self._bounded(self.mean, self.rounding)
        sizes_EZ, values_E = np.stack([z for z, _ in newest]), np.array([v for _, v in newest])
        return np.asarray(sizes_EZ[int(np.argmin(posterior_mean(np.log(sizes_EZ), values_E)))].copy())


def scaled_back(scaled: Callable[[float], np.ndarray], excess: Excess, most: float) -> np.ndarray:
    """`scaled(shift)` for the least shift in [0, most] that meets the bound, by bisection; for `most` where none does.
    The bound must be easier to meet the greater the shift."""
    if excess(scaled(0.0)) <= 0:
        return scaled(0.0)
    near, far = 0.0, most
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        near, far = (near, middle) if excess(scaled(middle)) <= 0 else (middle, far)
    return scaled(far)


def posterior_mean(log_sizes_EZ: np.ndarray, values_E: np.ndarray) -> np.ndarray:
    """The posterior mean of the process that `CapacityDescent.recommend` describes, at the points it is fitted to."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    if np.ptp(values_E) == 0:
        return values_E
    lengths = np.ones(log_sizes_EZ.shape[1])
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(lengths, (0.1, 30.0), nu=2.5) + WhiteKernel(0.1, (1e-6, 10.0))
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    with warnings.catch_warnings():
        # a length or a noise at the end of its range is an answer like any other
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(log_sizes_EZ, values_E)
    return np.asarray(process.predict(log_sizes_EZ))
