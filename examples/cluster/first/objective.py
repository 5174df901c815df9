"""What the first search minimises; it sleeps where another would train."""

from __future__ import annotations

import time
from typing import Any


def objective(trial: Any) -> float:
    """A parabola, after half a second."""
    time.sleep(0.5)
    trial.report(1, loss=(trial["x"] - 0.25) ** 2)
    print(f"tried {trial['x']:.3f}")
    return float((trial["x"] - 0.25) ** 2)
