"""Uniform on each parameter's own scale, by rejection under bounds (Bergstra and Bengio 2012)."""

from __future__ import annotations

import numpy as np

from search_spaces import Point, Space
from service.samplers.contract import Asked, Excess, History, NoRoom, always_feasible
from trials.noise import fold

TRIES = 20_000


class RandomSampler:
    """Independent draws."""

    def __init__(self, space: Space, *, seed: int, excess: Excess = always_feasible) -> None:
        self.space, self.seed, self.excess = space, seed, excess

    def ask(self, history: History, n: int, generation: int) -> Asked:
        rng = np.random.default_rng(fold(self.seed, "random", generation))
        return Asked(points=[draw(self.space, rng, self.excess) for _ in range(n)])


def draw(space: Space, rng: np.random.Generator, excess: Excess) -> Point:
    """The first draw that meets the bounds. Raises `NoRoom` after 20,000 that do not."""
    for _ in range(TRIES):
        point = space.sample(rng)
        if excess(point) <= 0:
            return point
    raise NoRoom(
        f"search: {TRIES} random points all broke a bound of `constraints`; raise it or lower the space's ranges."
    )
