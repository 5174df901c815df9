"""The example of the capacity sign flip says what ground truth 16 asks for, in both of its forms."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "examples"))  # as running a script would
capacity_sign_flip = importlib.import_module("capacity_sign_flip")


@pytest.mark.slow
def test_a_new_neuron_hurts_at_first_and_helps_in_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "flip.png"
    capacity_sign_flip.main(["--teachers", "2", "--candidates", "24", "--json", "--picture", str(picture)])
    told = json.loads(capsys.readouterr().out)
    assert told["k"] == [0, 5, 20, 50, 100, 200]
    assert told["hurts"][0] > 0.9
    assert told["hurts"][-1] < 0.05
    assert all(0 <= share <= 1 for share in told["hurts"] + told["hurts_scaled"])
    assert told["hurts_scaled"][0] < told["hurts"][0]
    assert told["gradient_says_shrink"]["fresh"] > 0.9
    for part in ("clean", "label_noise"):
        kinds = told[part]["kinds"]
        for kind in ("zero", "net2net", "gradmax"):
            assert kinds[kind]["hurts"][0] == 0
            assert kinds[kind]["largest_change_at_0"] < 1e-12
        assert kinds["fresh"]["change"][0] > 0 > kinds["fresh"]["change"][-1]
    assert told["lanes"] == 5 * 24 + 1
    # the table that is printed without --json has the same figures
    table = capacity_sign_flip.as_text(told)
    assert f"| none | fresh | {100 * told['hurts'][0]:.1f} [" in table
    assert picture.read_bytes()[:4] == b"\x89PNG"
