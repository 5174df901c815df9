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
