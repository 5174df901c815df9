"""What the second search minimises: another function under the same name, which must never reach the first."""

from __future__ import annotations

import time
from typing import Any


def objective(trial: Any) -> float:
    """Another parabola, after half a second."""
    time.sleep(0.5)
    return float(10.0 + (trial["x"] + 0.5) ** 2)
