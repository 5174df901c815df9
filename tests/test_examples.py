"""The examples run, and say what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.cli import main
from trials.store import Store

ROOT = Path(__file__).parent.parent
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


def test_a_network_of_ones_own_has_its_three_gates_moved():
    text = run_script("own_network.py")
    for gate in ("smooth", "sharp", "mixed"):
        assert re.search(rf"{gate}: ended at \d+\.\d+, \d+ units", text), text
    parameters = int(re.search(r"(\d+) parameters", text)[1])
    assert 0 < parameters <= 600


def test_an_ordinary_network_is_made_continuous_and_comes_back_plain():
    text = run_script("make_continuous.py")
    assert "width.2.first 6.4 to 64" in text
    assert "class" in text
    assert "continua" not in text.split("as plain Python")[1].lower().replace("made-continuous", "")


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
