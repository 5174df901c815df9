"""The comparison of descent on C_k with other searches: its parts, and a quick run of the whole."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from service.samplers import History
from service.samplers.contract import Known

sys.path.append(str(Path(__file__).parent.parent / "examples"))  # as running a script would
study = importlib.import_module("capacity_descent")
tables = importlib.import_module("width_tables")

LITTLE = study.Study(seeds=2, trainings=8, again=2, steps=10)


def test_flops_are_those_of_the_costs() -> None:
    sizes = [9, 8, 7, 6, 5, 4, 10, 11]
    costs = study.NETWORK.costs(study.task().shape, study.task().outputs)
    assert study.flops(sizes) == costs.flops(study.NETWORK.named(sizes))
    assert study.excess(study.point_of([10] * 8, 0.01)) <= 0 < study.excess(study.point_of([11] * 8, 0.01))
    assert study.widths(study.uniform({"lr": 0.01})) == [10] * 8


def test_cutting_drops_the_least_units_of_all_layers_until_the_bound_is_met() -> None:
    """Six units of the third layer have small outgoing weights: they go, wherever the others end."""
    generator = torch.Generator().manual_seed(0)
    widths = [64, *[study.HIGH] * 8, 10]
    matrices = [0.5 + torch.rand(b, a + 1, generator=generator) for a, b in itertools.pairwise(widths)]
    even = study.cut(matrices)
    matrices[3][:, 1:7] *= 1e-3
    sizes = study.cut(matrices)
    assert sizes[2] <= study.HIGH - 6
    for found in (even, sizes):
        assert all(study.LOW <= n <= study.HIGH for n in found)
        assert study.flops(found) <= study.BOUND
        assert study.flops([n + 1 for n in found]) > study.BOUND


def test_the_two_ends_of_a_pair_have_the_same_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    make = study.lanes_of

    def spied(points, numbers, given, **options):
        seen.append((points, numbers))
        return make(points, numbers, given, **options)

    monkeypatch.setattr(study, "lanes_of", spied)
    found = study.searched("capacity", LITTLE)
    points, numbers = seen[0]
    assert numbers[:8] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(set(numbers)) == len(numbers) // 2
    assert [k.point for k in found.histories[0].trials] == points[:8]
    seen.clear()
    study.searched("random", LITTLE)
    assert len(set(seen[0][1])) == 16
    costs = study.NETWORK.costs(study.task().shape, study.task().outputs)
    each = [float(costs.training_flops(study.NETWORK.named(study.widths(point)))) for point in points]
    assert found.flops == pytest.approx(sum(each) * 10 * 32 / 2)


def test_the_best_value_passes_over_failures() -> None:
    trials = [
        Known(number=0, point={"lr": 1.0}, failed=True),
        Known(number=1, point={"lr": 2.0}, value=0.5),
        Known(number=2, point={"lr": 3.0}, value=0.4),
    ]
    assert study.best_of(History(trials=trials)) == {"lr": 3.0}


def test_the_verdict_says_what_was_found() -> None:
    rng = np.random.default_rng(0)

    def against(**means: float) -> dict[str, object]:
        return tables.judged({arm: mean + 0.01 * rng.standard_normal(20) for arm, mean in means.items()})

    won = study.verdict(against(cmaes=0.05, tpe=0.04))
    assert won == "Descent on C_k wins: every other arm ends with a larger test error."
    even = study.verdict(against(cmaes=0.05, tpe=0.0))
    assert "does not win: no arm is better" in even
    assert "It beats cmaes." in even
    assert "Not told apart from it: tpe" in even
    lost = study.verdict(against(cmaes=-0.05, tpe=0.05, random=0.0))
    assert "does not win: cmaes ends with a smaller one. It beats tpe. Not told apart from it: random" in lost


@pytest.mark.slow
def test_a_quick_run_tells_every_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study.main(["--quick", "--seeds", "2", "--json", "--picture", str(tmp_path / "found.png")])
    told = json.loads(capsys.readouterr().out)
    assert list(told["arms"]) == [
        "capacity",
        "capacity, its mean",
        "cmaes",
        "tpe",
        "tpe, best value",
        "random",
        "random, model",
        "uniform",
        "magnitude",
    ]
    for arm, row in told["arms"].items():
        assert len(row["test_errors"]) == len(row["widths"]) == 2
        assert all(0 <= error <= 1 for error in row["test_errors"])
        assert all(study.flops(widths) <= study.BOUND for widths in row["widths"]), arm
        assert row["trainings"] == 16
        assert ("against_capacity" in row) == (arm != "capacity")
    assert told["arms"]["magnitude"]["training_flops"] > 1.5 * told["arms"]["uniform"]["training_flops"]
    assert told["verdict"].startswith("Descent on C_k ")
    assert (tmp_path / "found.png").read_bytes()[:4] == b"\x89PNG"
    assert study.as_text(told).count("\n") == 10
