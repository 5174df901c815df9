"""One measurement in a process of its own, so that start-up and memory are its own too.

`python -m benchmarks.alone NAME ARGUMENTS ANSWER` runs the function of that name with a JSON object of arguments, and
writes what it returns to a file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

MEASUREMENTS = {
    "continua_local": "benchmarks.ours:local",
    "continua_ray": "benchmarks.ours:ray",
    "numpy_pair": "benchmarks.rivals.numpy_pair:replay",
    "optuna_pair": "benchmarks.rivals.optuna_pair:replay",
    "ray_optuna": "benchmarks.rivals.ray_optuna:replay",
    "empty": "benchmarks.inside:empty_trials",
    "lanes": "benchmarks.inside:lane_counts",
    "samplers": "benchmarks.inside:sampler_times",
}


def measurement(name: str) -> Callable[..., Any]:
    """The function of that name; imports its module."""
    module, _, attribute = MEASUREMENTS[name].partition(":")
    found: Callable[..., Any] = getattr(import_module(module), attribute)
    return found


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"cannot write {type(value).__name__}")


def main(name: str, arguments: str, answer: str) -> None:
    """The process."""
    given = json.loads(arguments)
    if "path" in given:
        given["path"] = Path(given["path"])
    Path(answer).write_text(json.dumps(measurement(name)(**given), default=_plain))


if __name__ == "__main__":
    main(*sys.argv[1:])
