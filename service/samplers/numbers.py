"""The numbers of a space that an evolution strategy moves, each on its own scale, and how a point meets the bounds.

    >>> numbers = Numbers(space, excess)
    >>> numbers.within(numbers.lengths_Z / 2, np.random.default_rng(0))     # the middle of every range, or smaller

A number's *place* is its distance from the least of its range: in natural log units where the range is logarithmic, in
units of the range where it is not. Choices, and what exists only under a condition, are no numbers here: they are drawn
at random. A point that breaks a bound has its widths and depths scaled back together, as little as it takes.

Legend of shape suffixes: Z numbers, D coordinates of the space, E points that were evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from search_spaces import Choice, Point, Space, Value
from search_spaces.parameters import Depth, Parameter, Width
from search_spaces.space import fixed_start
from service.samplers.contract import Excess, History, always_feasible
from service.samplers.random import draw
from trials.capacity.descent import NEWEST, posterior_mean, scaled_back


class Numbers:
    """The numbers that are moved. `lengths_Z`: how far each range reaches; `sizes_Z`: which ones the bounds scale."""

    def __init__(self, space: Space, excess: Excess = always_feasible) -> None:
        self.space, self.excess = space, excess
        self.moved: dict[str, Parameter] = {
            name: p for name, p in space.searched().items() if not isinstance(p, Choice) and not p.when
        }
        self.lengths_Z = np.array([_length(p) for p in self.moved.values()])
        self.sizes_Z = np.array([isinstance(p, Width | Depth) for p in self.moved.values()], dtype=bool)

    def places(self, point: Mapping[str, Value]) -> np.ndarray:
        """Where a point's numbers stand, [Z]."""
        return np.asarray(np.array([p.encode(point[name]) for name, p in self.moved.items()]) * self.lengths_Z)

    def point(self, places_Z: np.ndarray, rest_D: np.ndarray) -> Point:
        """The point at these places; all else is where `rest_D`, in the unit cube, says."""
        inside_Z = np.clip(places_Z, 0.0, self.lengths_Z) / np.where(self.lengths_Z > 0, self.lengths_Z, 1.0)
        given = {name: p.decode(float(u)) for (name, p), u in zip(self.moved.items(), inside_Z, strict=True)}
        found: Point = {}
        for (name, parameter), u in zip(self.space.coordinates.items(), rest_D, strict=True):
            if self.space.exists(name, found):
                fixed = fixed_start(parameter)
                found[name] = given.get(name, parameter.decode(float(u))) if fixed is None else fixed
        return found

    def within(self, places_Z: np.ndarray, rng: np.random.Generator) -> Point:
        """The same, all else drawn at random, scaled back to meet the bounds. Where the least sizes do not meet them, a
        random point that does. Raises `NoRoom` when none is found."""
        rest_D = rng.random(len(self.space.coordinates))
        most = float(self.lengths_Z[self.sizes_Z].max(initial=0.0)) + 1.0
        inside_Z = np.clip(places_Z, 0.0, self.lengths_Z)
        met_Z = scaled_back(
            lambda shift: inside_Z - shift * self.sizes_Z, lambda z: self.excess(self.point(z, rest_D)), most
        )
        point = self.point(met_Z, rest_D)
        return point if self.excess(point) <= 0 else draw(self.space, rng, self.excess)


def recommended(space: Space, history: History, mode: str = "min") -> Point:
    """Of the newest points with a value, that at which the posterior mean of a Gaussian process over their numbers is
    best: the best single value of a noisy objective is mostly the luckiest. Choices are not looked at.

    Raises:
        ValueError: when no point has a value.
    """
    known = [k for k in history.trials if k.value is not None and not k.failed and math.isfinite(k.value)][-NEWEST:]
    if not known:
        raise ValueError("a recommendation needs at least one trial with a value, but got none; run some first.")
    numbers, sign = Numbers(space), 1.0 if mode == "min" else -1.0
    values_E = np.array([sign * float(k.value or 0.0) for k in known])
    if not numbers.moved:
        return dict(known[int(values_E.argmin())].point)
    places_EZ = np.stack([numbers.places(k.point) for k in known])
    return dict(known[int(posterior_mean(places_EZ, values_E).argmin())].point)


def _length(parameter: Parameter) -> float:
    """The length of a range in its own scale."""
    low, high = (float(getattr(parameter, end)) for end in ("low", "high"))
    return math.log(high / low) if getattr(parameter, "log", False) else float(high > low)
