"""Samplers choose points. A sampler is a pure function of what it is shown: the same history gives the same points.

    >>> sampler = make_sampler("tpe", space, seed=0, mode="min")
    >>> asked = sampler.ask(history, n=16, generation=3)

Importing this package loads neither torch nor optuna: what asks with more than numpy is imported when it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces import Space
from service.samplers.contract import Asked, Excess, History, NoRoom, Sampler, always_feasible
from service.samplers.listed import ListedSampler
from service.samplers.random import RandomSampler

SAMPLERS = ("random", "tpe", "cmaes", "capacity")


def make_sampler(
    kind: str,
    space: Space,
    *,
    seed: int,
    mode: str = "min",
    excess: Excess = always_feasible,
    options: Mapping[str, Any] | None = None,
) -> Sampler:
    """The sampler called `kind`, with `options` from the spec."""
    if kind == "random":
        return RandomSampler(space, seed=seed, excess=excess)
    if kind == "tpe":
        from service.samplers.tpe import TPESampler

        return TPESampler(space, seed=seed, mode=mode, excess=excess, **(options or {}))
    if kind == "cmaes":
        from service.samplers.cmaes import CMAESSampler

        return CMAESSampler(space, seed=seed, mode=mode, excess=excess, **(options or {}))
    if kind == "capacity":
        from service.samplers.capacity import CapacitySampler

        return CapacitySampler(space, seed=seed, mode=mode, excess=excess, **(options or {}))
    raise ValueError(f"unknown sampler {kind!r}; known: {', '.join(SAMPLERS)}")


__all__ = [
    "SAMPLERS",
    "Asked",
    "History",
    "ListedSampler",
    "NoRoom",
    "RandomSampler",
    "Sampler",
    "make_sampler",
]
