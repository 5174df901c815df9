"""What every test of the command line needs: a tiny search, and the program run in this process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from service.cli import main

IRIS = """
task: uci/iris
network: {kind: mlp, layers: 1}
space:
  width.0: {type: width, low: 2, high: 16}
  lr: {type: float, low: 1.0e-3, high: 1.0, log: true}
training: {batch_size: 32, epochs: 1}
search: {sampler: random, batch: 4}
budget: {trials: 8}
resources: {workers: 1, lanes: 4}
"""
SLOWER = ("training.epochs=300", "search.sampler={kind: tpe, startup: 4}", "budget.trials=40")
PROGRAM = [sys.executable, "-m", "service.cli"]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"}


def strict(text: str) -> Any:
    """JSON as the standard has it: no NaN."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def rows(store: Path, sql: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The answer to a query, through the program."""
    capsys.readouterr()
    assert main(["query", sql, "--store", str(store), "-o", "json"]) == 0
    found: list[dict[str, Any]] = strict(capsys.readouterr().out)
    return found


def failing(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The errors that a command says: nothing on stdout, each on a line of its own, no traceback."""
    capsys.readouterr()
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert errors
    return errors


OBJECTIVE = """
task: mine:objective
space: {x: {type: float, low: -1.0, high: 1.0}}
budget: {trials: 6}
search: {sampler: random}
"""


def python(tmp_path: Path, body: str, module: str) -> Path:
    """A spec of a plain objective with that body; each test's module has a name of its own, for Python keeps them."""
    (tmp_path / f"{module}.py").write_text(f"import math, time\nprint('loaded')\ndef objective(trial):\n    {body}\n")
    spec = tmp_path / f"{module}.yaml"
    spec.write_text(OBJECTIVE.replace("mine", module))
    return spec
