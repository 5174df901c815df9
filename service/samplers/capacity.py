"""Descent on C_k, the value of a network trained from scratch, over its sizes: evolution strategies as a sampler.

    >>> sampler = CapacitySampler(space, seed=0, pairs=8, sigma=0.25, lr=0.1)
    >>> asked = sampler.ask(history, n=16, generation=3)

Trials 2j and 2j + 1 are the ends of pair j, mean + sigma e and mean - sigma e; every 2 `pairs` trials are a batch. The
steps of the mean (`trials.capacity.descent`: centred ranks, Adam) follow from each batch's perturbations, which its
number gives, and its values, which the history holds: the mean is rebuilt from these alone, whatever was known when the
batch was asked. A generation of any size takes up where the last one ended, around the mean of all batches that are
told; 2 `pairs` or a multiple of it suits best.

`sigma` and `lr` are in log size. Every other number is moved with the widths, on its own scale: a learning rate in log
units too, a momentum in units of its range. Choices, and what stands under a condition, are random and alike for both
ends of a pair. Sizes beyond the bounds are scaled back (`service.samplers.numbers`); a failure is worst.

The ends of a pair have trial numbers of their own, so the initialisation differs between them; batches do not.

Legend of shape suffixes: P trials of a batch, N pairs, Z numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search_spaces import Point, Space
from service.samplers.contract import Asked, Excess, History, Known, always_feasible
from service.samplers.numbers import Numbers, recommended
from trials.capacity.descent import CapacityDescent
from trials.noise import fold


class CapacitySampler:
    """Antithetic evolution strategies in log size."""

    def __init__(
        self,
        space: Space,
        *,
        seed: int,
        mode: str = "min",
        excess: Excess = always_feasible,
        pairs: int = 8,
        sigma: float = 0.25,
        lr: float = 0.1,
    ) -> None:
        self.space, self.seed, self.mode = space, seed, mode
        self.pairs, self.sigma, self.lr = pairs, sigma, lr
        self.numbers = Numbers(space, excess)

    def ask(self, history: History, n: int, generation: int) -> Asked:
        first = len(history.trials)
        if not self.numbers.moved:
            return Asked(points=[self._perturbed(slot, np.empty(0), np.empty(0)) for slot in range(first, first + n)])
        descent = self._replayed(history.trials)
        mean_Z, points = np.log(descent.mean), []
        for slot in range(first, first + n):
            batch, place = divmod(slot, 2 * self.pairs)
            noise_Z = descent.noise(batch)[place // 2] * (1.0 if place % 2 == 0 else -1.0)
            points.append(self._perturbed(slot, mean_Z, noise_Z))
        return Asked(points=points)

    def _perturbed(self, slot: int, mean_Z: np.ndarray, noise_Z: np.ndarray) -> Point:
        pair = np.random.default_rng(fold(self.seed, "capacity pair", slot // 2))
        return self.numbers.within(mean_Z + self.sigma * noise_Z, pair)

    def mean(self, history: History) -> Point:
        """The point at the mean, without choices drawn at random: each is the middle of its list."""
        return self.numbers.point(np.log(self._replayed(history.trials).mean), self._middle())

    def recommend(self, history: History) -> Point:
        """The point that a Gaussian process over all values thinks best; see `recommended`."""
        return recommended(self.space, history, self.mode)

    # -- what the history says -----------------------------------------------------------------------------------------

    def _replayed(self, trials: Sequence[Known]) -> CapacityDescent:
        """The descent after every batch that has ended."""
        descent, size = self._begun(), 2 * self.pairs
        for begin in range(0, len(trials) - size + 1, size):
            batch = trials[begin : begin + size]
            if any(known.running for known in batch):
                break
            values_P = np.array([self._value(known) for known in batch])
            descent.descend(descent.noise(begin // size), np.concatenate([values_P[::2], values_P[1::2]]))
        return descent

    def _begun(self) -> CapacityDescent:
        """At the middle of every range, or below where a bound is in the way. Its sizes are exp(place)."""
        numbers, middle_D = self.numbers, self._middle()

        def excess(sizes_Z: np.ndarray) -> float:
            return numbers.excess(numbers.point(np.log(sizes_Z), middle_D))

        least = np.where(numbers.sizes_Z, 1.0, np.exp(numbers.lengths_Z / 2))
        return CapacityDescent(
            np.ones(len(numbers.moved)).tolist(),
            np.exp(numbers.lengths_Z).tolist(),
            excess=excess if excess(least) <= 0 else None,
            sigma=self.sigma,
            pairs=self.pairs,
            lr=self.lr,
            rounding="none",
            scaled=numbers.sizes_Z.tolist(),
            seed=fold(self.seed, "capacity"),
        )

    def _middle(self) -> np.ndarray:
        return np.full(len(self.space.coordinates), 0.5)

    def _value(self, known: Known) -> float:
        if known.failed or known.value is None:
            return float("nan")
        return known.value if self.mode == "min" else -known.value
