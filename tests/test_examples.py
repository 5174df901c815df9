"""The examples run, and say what they promise."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service.cli import main
from trials.store import Store

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "examples"))  # as running a script would
stride_insensitivity = importlib.import_module("stride_insensitivity")
needs_data = pytest.mark.skipif(
    not os.environ.get("CONTINUA_DATA"), reason="CONTINUA_DATA names no directory, so MNIST is not there"
)


def run_script(name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(ROOT / "examples" / name)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@needs_data
def test_mnist_width_meets_its_bound(tmp_path):
    small = ["--set", "task.rows=600", "--set", "budget.trials=4", "--set", "training.epochs=1"]
    fast = ["--set", "resources.lanes=2", "--set", "resources.way=per_lane", "--executor", "here"]
    spec = str(ROOT / "examples" / "mnist-width.yaml")
    assert main(["run", spec, "--store", str(tmp_path / "st"), "--quiet", *small, *fast]) == 0
    store = Store.open_for_reading(tmp_path / "st")
    (search,) = store.searches()
    outcomes = list(store.search(search).outcomes())
    assert len(outcomes) == 4
    for outcome in outcomes:
        a, b = (outcome.rounded[f"width.{i}"] for i in range(2))
        by_hand = 2 * 9 * 28 * 28 * a + 2 * 9 * 14 * 14 * a * b + 2 * b * 10
        assert outcome.metrics["forward_flops"] == by_hand <= 2e6
        assert outcome.metrics["discretisation_gap"] == 0


@pytest.mark.slow
def test_a_network_of_ones_own_has_its_three_gates_moved():
    text = run_script("own_network.py")
    for gate in ("smooth", "sharp", "mixed"):
        assert re.search(rf"{gate}: ended at \d+\.\d+, \d+ units", text), text
    parameters = int(re.search(r"(\d+) parameters", text)[1])
    assert 0 < parameters <= 600


@pytest.mark.slow
def test_an_ordinary_network_is_made_continuous_and_comes_back_plain():
    text = run_script("make_continuous.py")
    assert "width.2.first 6.4 to 64" in text
    assert "class" in text
    assert "continua" not in text.split("as plain Python")[1].lower().replace("made-continuous", "")


@pytest.mark.slow
def test_digits_conv_ends_at_real_widths_strides_and_depths(tmp_path):
    small = ["--set", "budget.trials=2", "--set", "training.epochs=2", "--executor", "here"]
    spec = str(ROOT / "examples" / "digits-conv.yaml")
    assert main(["run", spec, "--store", str(tmp_path / "st"), "--quiet", *small]) == 0
    store = Store.open_for_reading(tmp_path / "st")
    (search,) = store.searches()
    outcomes = list(store.search(search).outcomes())
    best = min(outcomes, key=lambda outcome: outcome.value)
    for name in ("width", "stride", "depth"):
        moved = {key: value for key, value in best.point.items() if key.startswith(f"{name}.")}
        assert len(moved) == 2
        assert any(value != round(value) for value in moved.values()), moved
        assert all(isinstance(best.rounded[key], int) for key in moved)
    for outcome in outcomes:
        assert outcome.metrics["forward_flops"] <= 1e6


@pytest.mark.slow
def test_digits_topology_finds_graphs_with_a_path(tmp_path, capsys):
    text = (ROOT / "examples" / "digits-topology.yaml").read_text()
    small = (
        text.replace("flops: 6.0e+10", "trials: 2")
        .replace("epochs: 6", "epochs: 1")
        .replace("retrain: 3", "retrain: 1")
    )
    assert small.count("trials: 2") == small.count("epochs: 1") == small.count("retrain: 1") == 1
    spec = tmp_path / "digits-topology.yaml"
    spec.write_text(small)
    assert main(["compare", str(spec), "--store", str(tmp_path / "st"), "--quiet"]) == 0
    told = capsys.readouterr().out
    graphs = dict(re.findall(r"^(\w+), repeat 0: (.*)$", told, re.MULTILINE))
    assert set(graphs) == {"graphon", "fabric", "gradient"}
    for arm, ends in (("graphon", ("0", "4")), ("fabric", ("l0s0", "l3s1")), ("gradient", ("l0s0", "l3s1"))):
        edges = [edge.split(" ")[:3:2] for edge in graphs[arm].split("; ")]
        reached = {ends[0]}
        for source, target in edges:  # in the order of their nodes
            if source in reached:
                reached.add(target)
        assert ends[1] in reached, graphs[arm]


# -- the study of initial strides --------------------------------------------------------------------------------------


@pytest.mark.long
def test_strides_are_trained_from_every_start_by_every_arm(tmp_path, monkeypatch, capsys):
    starts = ((1, 1, 2), (3, 2, 1))
    monkeypatch.setattr(stride_insensitivity, "SETTINGS", starts)
    monkeypatch.setattr(stride_insensitivity, "keep_freed_memory", lambda: True)  # it would hold for later tests
    found = tmp_path / "found.json"
    stride_insensitivity.main(["--quick", "--seeds", "1", "--width", "2", "--json", str(found), "--out", str(tmp_path)])
    document, text = json.loads(found.read_text()), capsys.readouterr().out
    runs = document["runs"]
    told = sorted((run["arm"], tuple(run["start"]), run["seed"]) for run in runs)
    assert told == sorted((arm, start, 0) for arm in stride_insensitivity.ARMS for start in starts)
    for run in runs:
        assert 0 <= run["accuracy"] <= 1
        assert 0 <= run["rounded"] <= 1
        if run["arm"].startswith("fixed"):
            assert run["ended"] == run["start"]
            assert (run["accuracy"], run["flops"]) == (run["rounded"], run["rounded_flops"])
        else:
            assert run["ended"] != run["start"]
            assert all(1 <= s <= stride_insensitivity.HIGH for s in run["ended"])
        if run["arm"] == "fixed":
            sides = [8]
            for s in run["start"]:
                sides.append(-(-sides[-1] // s))
            layers = 2 * 9 * 2 * sides[1] ** 2 + sum(2 * 9 * 4 * side**2 for side in sides[2:])
            assert run["flops"] == layers + 2 * 2 * 10
    assert (tmp_path / "stride_insensitivity.md").read_text().strip() == text.strip()
    assert document["verdict"] in text
    assert (tmp_path / "stride_insensitivity.png").read_bytes()[:4] == b"\x89PNG"


def runs_of(accuracies):
    """Runs from an array [setting, seed] an arm."""
    facts = {"rounded": 0.5, "ended": (1.0,), "flops": 1.0, "rounded_flops": 1.0, "seconds": 1.0}
    return [
        stride_insensitivity.Run(arm=arm, start=(i + 1,), seed=seed, accuracy=accuracy, **facts)
        for arm, values in accuracies.items()
        for i, row in enumerate(values)
        for seed, accuracy in enumerate(row)
    ]


def test_the_spread_is_that_of_the_means_over_seeds_and_fixed_strides_are_compared_with():
    fixed = np.array([[0.9, 0.92, 0.91], [0.7, 0.72, 0.71], [0.5, 0.52, 0.51]])
    even = np.array([[0.9, 0.91, 0.92], [0.91, 0.92, 0.9], [0.92, 0.9, 0.91]])
    found = stride_insensitivity.insensitivity(runs_of({"fixed": fixed, "shrink": even, "resize": fixed - 0.1}))
    assert found["fixed"].spread == pytest.approx(0.4)
    assert found["fixed"].deviation == pytest.approx(0.2)
    assert (found["fixed"].less, found["fixed"].words) == (0.0, "not told apart")
    assert found["shrink"].spread == pytest.approx(0.0)
    assert found["shrink"].less == pytest.approx(0.4)
    assert 0.37 < found["shrink"].low <= found["shrink"].high <= 0.4 + 1e-9  # a seed alone ranges over 0.02
    assert found["shrink"].words == "smaller"
    assert found["resize"].words == "not told apart"
    assert found["resize"].low == pytest.approx(0.0)
    worse = stride_insensitivity.insensitivity(runs_of({"fixed": even, "shrink": fixed}))["shrink"]
    assert (worse.words, worse.less) == ("larger", pytest.approx(-0.4))


def test_the_verdict_says_what_was_found():
    fixed = np.array([[0.9, 0.92], [0.5, 0.53]])
    for own, words in (
        (fixed[:1].repeat(2, 0), "The claim holds here for shrink"),
        ((fixed + 0.9) / 2, "The claim holds in part"),
        (fixed, "not reproduced"),
    ):
        assert words in stride_insensitivity.verdict(runs_of({"fixed": fixed, "shrink": own}))


def test_one_seed_tells_no_spreads_apart():
    found = stride_insensitivity.insensitivity(runs_of({"fixed": np.array([[0.9], [0.5]]), "shrink": np.ones((2, 1))}))
    assert found["shrink"].words == "not told apart"
