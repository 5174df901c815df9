"""When a search is over, and which points what is left of its budgets can buy.

>>> affordable(Budgets(flops=1e9), plan, points, flops=9e8, passes=0.0)      # the leading ones that surely fit
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any, Self

from search_spaces import Point
from trials.ledger import epochs, most_flops
from trials.plan import Plan
from trials.records import Outcome, Trial


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """When a search is over: at the first of its budgets. Trials, epochs and FLOPs are never overrun."""

    trials: int | None = None
    epochs: float | None = None
    flops: float | None = None
    device_seconds: float | None = None
    wall_seconds: float | None = None

    @classmethod
    def of(cls, budget: Mapping[str, Any]) -> Self:
        """From the plain data of a spec's section, or of a goal."""
        return cls(**{item.name: budget.get(item.name) for item in fields(cls)})


def affordable(budgets: Budgets, plan: Plan, points: Sequence[Point], *, flops: float, passes: float) -> list[Point]:
    """The leading points that fit beside `flops` and `passes` over the data, which are spent or spoken for."""
    fitting: list[Point] = []
    for point in points:
        flops += most_flops(plan, point)
        passes += epochs(plan, point)
        if flops > (budgets.flops or math.inf) or passes > (budgets.epochs or math.inf):
            break
        fitting.append(point)
    return fitting


def in_want(budgets: Budgets, plan: Plan, points: Sequence[Point]) -> str:
    """What budget would have bought the first of the points, which none after it can precede, in words."""
    words = ""
    for name, cost, budget in (("flops", most_flops, budgets.flops), ("epochs", epochs, budgets.epochs)):
        least = cost(plan, points[0])
        if budget is not None and least > budget:
            words += f"; the first of {len(points)} points needs budget.{name} of {at_least(least)}, not {budget:.4g}"
    return words


def at_least(least: float) -> str:
    """Four digits of a number, rounded up: as a budget they buy what costs so much."""
    return f"{float(Context(prec=4, rounding=ROUND_CEILING).create_decimal(Decimal(least))):.4g}"


class Bill:
    """What generations cost, at most where that is not known yet. It is added up once for those that have ended."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._generations = 0
        self._ended = (0.0, 0.0)

    def upto(
        self, generations: Sequence[Sequence[Trial]], ended: int, told: Mapping[int, Outcome]
    ) -> tuple[float, float]:
        """FLOPs and passes of `generations`, of which the first `ended` have ended, and no fewer than when it was
        asked before. What the machine lost is counted as if trained, for a resumed search trains it again."""
        for trials in generations[self._generations : ended]:
            self._ended = self._added(self._ended, trials, told)
        self._generations = ended
        bill = self._ended
        for trials in generations[ended:]:
            bill = self._added(bill, trials, {})
        return bill

    def _added(
        self, bill: tuple[float, float], trials: Sequence[Trial], told: Mapping[int, Outcome]
    ) -> tuple[float, float]:
        flops, passes = bill
        for trial in trials:
            outcome = told.get(trial.number)
            known = None if outcome is None or outcome.ending.retried else outcome
            flops += known.spent.executed_flops if known else most_flops(self._plan, trial.point)
            passes += epochs(self._plan, trial.point)
        return flops, passes
