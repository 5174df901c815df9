"""The benchmark of hypergradients does the work it claims, and counts every byte of it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import hypergradient_cases as cases
from benchmarks import hypergradient_memory as memory
from benchmarks import hypergradients
from trials.hypergradients.method import KINDS

ROOT = Path(__file__).resolve().parents[1]
MEGABYTE = 2**20


def test_live_bytes_are_those_of_a_known_allocation() -> None:
    def work() -> None:
        kept = torch.empty(MEGABYTE, dtype=torch.uint8)
        for _ in range(3):  # what is given back does not count twice
            torch.empty(2 * MEGABYTE, dtype=torch.uint8)
        torch.empty_like(kept)

    assert memory.live_bytes(work) == 3 * MEGABYTE
    assert memory.live_bytes(lambda: None) == 0


def test_live_bytes_see_what_a_graph_keeps() -> None:
    def work() -> None:
        x = torch.ones(MEGABYTE // 4, requires_grad=True)
        for _ in range(3):
            x = x.exp()  # keeps its result
        x.sum().backward()

    assert 4 * MEGABYTE <= memory.live_bytes(work) <= 7 * MEGABYTE


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux lets a process forget its peak")
def test_resident_bytes_are_about_those_of_a_known_allocation() -> None:
    found = memory.resident_bytes(lambda: torch.ones(64 * MEGABYTE, dtype=torch.uint8))
    assert 60 * MEGABYTE <= found <= 80 * MEGABYTE


def test_every_method_has_a_case() -> None:
    named = {cases.method_named(name, 10).kind for name in (cases.PLAIN, *cases.INSTANT, *cases.THROUGH)}
    assert named == set(KINDS)


@pytest.mark.parametrize("name", [cases.PLAIN, *cases.INSTANT, *cases.THROUGH])
def test_an_outer_step_trains_computes_a_move_and_leaves_the_sizes(name: str) -> None:
    steps = 1 if name in (cases.PLAIN, *cases.INSTANT) else 12
    case = cases.Case(name, steps=steps, lanes=2, first=3)
    before, numbers = case.run.program.stands()[0].clone(), case.run.numbers_KM.clone()
    case.outer_step()
    case.outer_step()
    assert not torch.equal(case.run.program.stands()[0], before)
    assert torch.equal(case.run.numbers_KM, numbers)
    architecture = case.run.architecture
    if name != cases.PLAIN:
        assert architecture is not None
        assert architecture.moves is not None
        assert architecture.moves.moved == 2
        assert architecture.moves._square_KG.min() > 0  # of derivatives that were not 0


def test_goals_say_what_was_met() -> None:
    found = {
        "instant": [{"method": "bilevel", "lanes": 1, "over_plain": 2.0}],
        "fused": [{"method": "unrolled", "lanes": 64, "ratio": 0.3}],
        "memory": [
            {"method": name, "steps": 1000, "live_bytes": live, "resident_bytes": live}
            for name, live in (("unrolled", 1000.0), ("unrolled checkpoints", 80.0), ("reversible", 10.0))
        ],
    }
    rows = hypergradients.goals(found)
    assert [(row["measured"], row["met"]) for row in rows] == [
        (2.0, True),
        (0.3, False),
        (0.01, True),
        (0.01, True),
        (0.125, False),
        (0.125, False),
    ]


def numbers_of(found: Any) -> Iterator[float]:
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list):
        for item in found:
            yield from numbers_of(item)
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield float(found)


@pytest.mark.long
def test_the_quick_report_has_every_figure() -> None:
    command = [sys.executable, "-m", "benchmarks.hypergradients", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["method"] for row in found["instant"]] == [cases.PLAIN, *cases.INSTANT]
    assert [row["method"] for row in found["through"]] == list(cases.THROUGH)
    assert [row["method"] for row in found["fused"]] == [cases.PLAIN, "bilevel", "unrolled"]
    assert [row["method"] for row in found["memory"]] == ["unrolled", "unrolled checkpoints", "reversible"]
    assert all(isinstance(goal["met"], bool) for goal in found["goals"])
    for part in ("instant", "through", "parts", "widths", "fused", "memory", "goals"):
        figures = list(numbers_of(found[part]))
        assert figures
        assert all(math.isfinite(figure) and figure > 0 for figure in figures)
    assert "goal | measured" in hypergradients.tables(found)
