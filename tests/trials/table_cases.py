"""Small tables, and what every test of tables needs."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from search_spaces import Invalid
from trials.tasks import SPLITS, Task, load

UCI = Path(os.environ["CONTINUA_DATA"]) / "uci" if os.environ.get("CONTINUA_DATA") else None
INDEX: dict[str, dict[str, Any]] = yaml.safe_load((UCI / "index.yaml").read_text()) if UCI else {}
needs_data = pytest.mark.skipif(UCI is None, reason="CONTINUA_DATA does not name a directory with uci/index.yaml")


def write(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def table(path: Path | str, **keys: object) -> dict[str, object]:
    return {"kind": "table", "path": str(path), **keys}


def faults(spec: Any, **keys: Any) -> tuple[str, ...]:
    with pytest.raises(Invalid) as caught:
        load(spec, **keys)
    return caught.value.faults


def numbered(count: int, seed: int = 0) -> list[list[object]]:
    """Rows `a, b, target` whose column a is unlike in every row, so that a row can be told from its numbers."""
    rng = np.random.default_rng(seed)
    return [[float(i), float(rng.normal()), float(rng.normal())] for i in range(count)]


def original(task: Task, rows: list[list[object]], column: int = 0) -> dict[str, list[int]]:
    """The number in the file of each row of each split, found by undoing the standardisation by brute force: the row
    numbers 0..n-1 are column `column`, so its standardised values are equally spaced."""
    everything = task.rows(*SPLITS).x[:, column]
    step = (everything.max() - everything.min()) / (len(rows) - 1)
    low = everything.min()
    return {s: [round(float(v - low) / float(step)) for v in task.rows(s).x[:, column]] for s in SPLITS}
