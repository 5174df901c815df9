"""What a sampler is shown and what it answers.

Bounds on the architecture are known before a trial trains, so a sampler hands out only points that meet them; those it
tried and that did not are part of its answer, are stored, and are shown to it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from search_spaces import Point

#: by what share a point overshoots the bounds; at most 0 where it meets them
Excess: TypeAlias = Callable[[Point], float]


class NoRoom(RuntimeError):
    """No point that meets the bounds was found."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """A point that was asked. `value` is None while it runs; a failure has `failed`. When it was asked, outcomes of
    generations up to two before its own were known."""

    number: int
    point: Point
    value: float | None = None
    failed: bool = False
    generation: int = 0

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.value is None and not self.failed


@dataclass(frozen=True, kw_only=True)
class History:
    """All that a generation may know: trials of earlier generations, and points that broke a bound."""

    trials: Sequence[Known] = ()
    infeasible: Sequence[Point] = ()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """New points in order, and those that were tried on the way and broke a bound."""

    points: list[Point]
    infeasible: list[Point] = field(default_factory=list)


class Sampler(Protocol):
    """Deterministic: nothing but the arguments decides the answer."""

    def ask(self, history: History, n: int, generation: int) -> Asked:
        """At most `n` points (fewer when it has no more). Raises `NoRoom`."""


def always_feasible(_: Point) -> float:
    """No bounds."""
    return 0.0
