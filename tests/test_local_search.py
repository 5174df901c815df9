"""The study of local search: every method at every rate is there, within the bound, and what is printed follows."""

import importlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from search_spaces.cost import mlp_flops
from trials.hypergradients.method import KINDS

sys.path.append(str(Path(__file__).parent.parent / "examples"))  # as running the script would
stalls, tables = map(importlib.import_module, ("local_search_stalls", "local_search_tables"))

TINY = stalls.Setting(seeds=2, epochs=3, rates=(0.02, 0.1), batches=1, pairs=2, k=5)


def job(method, membership="", lr=0.1):
    return stalls.Job(setting=TINY, method=method, membership=membership, lr=lr)


def test_every_kind_of_hypergradient_is_an_arm():
    assert {options["kind"] for options in stalls.METHODS.values()} == set(KINDS) - {"none"}
    arms = {(j.membership, j.method) for j in stalls.jobs_of(TINY)}
    assert {(m, method) for m in stalls.MEMBERSHIPS for method in stalls.METHODS} < arms
    assert {("", "none"), ("", "noise"), ("", "capacity"), ("", "widest")} < arms


def test_what_does_not_move_stays_at_the_start_and_the_widest_fills_the_bound():
    assert mlp_flops(64, (32, 32), 10) == stalls.BOUND < mlp_flops(64, (33, 33), 10)
    none, widest = (stalls.run(job(method, lr=0.0)) for method in ("none", "widest"))
    assert [(r.widths, r.ended) for r in none] == [((4, 4), r.start) for r in none]
    assert [(r.widths, r.filled) for r in widest] == [((32, 32), 1.0)] * 2
    assert tables.shares(none) == (0.0, 1.0, 0.0)
    assert tables.shares(widest) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("method", ["noise", "capacity", "bilevel", "unrolled"])
def test_moved_widths_leave_the_start_and_meet_the_bound(method):
    runs = stalls.run(job(method, "interval" if method in stalls.METHODS else ""))
    assert [run.seed for run in runs] == [0, 1]
    for run in runs:
        assert run.ended != run.start
        assert all(isinstance(n, int) and 2 <= n <= 64 for n in run.widths)
        assert mlp_flops(64, run.widths, 10) == pytest.approx(run.filled * stalls.BOUND)
        assert run.filled <= 1.0
        assert 0 <= run.chosen <= 1
        assert run.spent > run.plain > 0


def test_unrolled_forward_and_reversible_are_the_same_derivative():
    first, *others = (stalls.run(job(method, "band")) for method in ("unrolled", "forward", "reversible"))
    for other in others:
        np.testing.assert_allclose([r.ended for r in other], [r.ended for r in first], rtol=1e-2)


def test_runs_of_the_same_job_are_the_same():
    assert stalls.run(job("noise")) == stalls.run(job("noise"))


def test_each_arm_is_shown_at_the_rate_of_the_least_selection_error_and_compared_seed_by_seed():
    base = replace(stalls.run(job("none", lr=0.0))[0], ended=(8.0, 8.0), start=(4.0, 4.0))
    assert base.log_ratio == pytest.approx(math.log(2))
    tried = [replace(base, seed=seed, lr=lr, chosen=lr) for lr in (0.1, 0.02) for seed in range(3)]
    (own,) = tables.chosen(tried).values()
    assert [(r.lr, r.seed) for r in own] == [(0.02, 0), (0.02, 1), (0.02, 2)]
    a, b = ([replace(base, test_error=error + less) for error in (0.1, 0.2, 0.3)] for less in (0.0, 0.05))
    found = tables.less(a, b)
    assert (found.mean, found.low, found.high) == pytest.approx((-0.05, -0.05, -0.05))
    assert (found.words, tables.less(b, a).words, tables.less(a, a).words) == ("better", "worse", "not told apart")


def test_how_much_still_moved_in_the_last_third():
    base = stalls.run(job("none", lr=0.0))[0]
    assert base.late == 1.0
    assert replace(base, path=(4.0, 4.0, 5.0, 6.0, 9.0, 12.0)).late == 2.0


@pytest.mark.long
def test_the_quick_study_prints_its_tables_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stalls, "MEMBERSHIPS", {"band": stalls.MEMBERSHIPS["band"]})
    found, picture = tmp_path / "found.json", tmp_path / "found.png"
    stalls.main(["--quick", "--seeds", "2", "--json", str(found), "--picture", str(picture)])
    document, text = json.loads(found.read_text()), capsys.readouterr().out
    assert len(document["runs"]) == 2 * (4 + len(stalls.METHODS))
    assert all(0 <= run["test_error"] <= 1 for run in document["runs"])
    for method in ("none", *stalls.METHODS):
        assert f"| {method} |" in text
    assert all(words in text for words in document["verdicts"])
    assert picture.read_bytes()[:4] == b"\x89PNG"
