"""An objective that does nothing, so that all its time is orchestration: `task: benchmarks.empty:objective`."""

from __future__ import annotations

from typing import Any


def objective(trial: Any) -> float:
    """Returns at once."""
    return float(trial["x"])
