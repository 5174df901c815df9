"""Comparisons end to end on a tiny problem, and the verdict against scipy and by hand."""

import json
import math
import re

import numpy as np
import pytest
from cli_cases import failing
from matplotlib.figure import Figure
from scipy import stats

from search_spaces import Invalid
from service.compare import compare, laid_over, read_comparison
from service.pictures import history, trajectories
from service.planning import plan_of
from service.report import report_of, text
from service.verdict import in_words, paired
from trials.query import query
from trials.store import NotFound, Store

pytestmark = pytest.mark.slow

WIDTH = {"type": "width", "low": 2, "high": 24}
BASE = {
    "task": "uci/iris",
    "network": {"kind": "mlp", "layers": 2, "membership": "interval"},
    "space": {"width.0": WIDTH, "width.1": WIDTH, "lr": {"type": "float", "low": 0.01, "high": 1.0, "log": True}},
    "training": {"batch_size": 16, "epochs": 8},
    "constraints": {"parameters": {"max": 200}},
    "budget": {"flops": 2.0e7},
    "search": {"sampler": "random", "batch": 4},
    "resources": {"workers": 1, "lanes": 4},
}
MOVED = {"space": {"width.0": {"moved_by": "gradient"}, "width.1": {"moved_by": "gradient"}}}
ARMS = {
    "random": {},
    "widest": {"sizes": "widest"},
    "bilevel": {**MOVED, "search": {"hypergradient": {"kind": "bilevel", "warmup": 5, "every": 2}}},
    "control": {"replay": "bilevel", "search": {"hypergradient": {"lr": 0.0}}},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    path = tmp_path_factory.mktemp("comparison")
    store = Store(path / "store")
    comparison = read_comparison({"name": "tiny", "base": BASE, "arms": ARMS, "repeats": 3, "retrain": 3}, path)
    return path, store, comparison, compare(comparison, store, executor="here")


def test_arms_share_budget_and_seeds_and_every_search_completes(done):
    _, store, comparison, identity = done
    rows = query(
        store,
        f"""SELECT arm, repeat, state,
        (SELECT sum(executed_flops) FROM trials t WHERE t.search_id = s.search_id) AS spent
        FROM searches s WHERE comparison = '{identity}' AND role = 'search' ORDER BY arm, repeat""",
    ).to_pylist()
    assert [(r["arm"], r["repeat"]) for r in rows] == [(a, r) for a in sorted(ARMS) for r in range(3)]
    assert all(r["state"] == "complete" and 0 < r["spent"] <= 2.0e7 for r in rows)
    # what is left is less than the cheapest of its trials could have cost at most
    assert all(r["spent"] > 1.0e7 for r in rows if r["arm"] in ("random", "widest"))
    assert {arm.spec.seed for arm in comparison.arms} == {0}


def test_widest_is_the_widest_that_fits(done):
    _, _, comparison, _ = done
    arm = next(arm for arm in comparison.arms if arm.name == "widest")
    width = arm.spec.network.width
    inputs, outputs = comparison.task.inputs, comparison.task.outputs

    def parameters(n):
        return (inputs + 1) * n + (n + 1) * n + (n + 1) * outputs

    assert parameters(width) <= 200 < parameters(width + 1)
    assert not any(name.startswith("width") for name in arm.spec.space.parameters)
    assert plan_of(arm.spec, comparison.task).rounded({"lr": 0.1})["width.1"] == width


def test_the_control_repeats_the_moved_trials_without_moving(done):
    _, store, _, identity = done
    report = report_of(store, identity)
    moved, control = report.moved["bilevel"], report.moved["control"]
    key = ("repeat", "number", "start")
    assert [[r[k] for k in key] for r in moved] == [[r[k] for k in key] for r in control]
    assert all(r["start"] == r["end"] for r in control)
    assert sum(r["start"] != r["end"] for r in moved) > len(moved) / 2


def test_the_table_is_what_its_query_says_and_what_the_trials_say(done):
    _, store, _, identity = done
    report = report_of(store, identity)
    for again, row in zip(query(store, report.sql).to_pylist(), report.arms, strict=True):
        numbers = {key: pytest.approx(value, rel=1e-12) for key, value in row.items() if isinstance(value, float)}
        assert again == {**row, **numbers}
    for row in report.arms:
        trials = [o for repeat in range(3) for o in store.search(f"{identity}-{row['arm']}-{repeat}").outcomes()]
        assert row["trials"] == len(trials)
        assert row["executed_gflop"] == pytest.approx(sum(o.spent.executed_flops for o in trials) / 1e9)
        if row["arm"] != "control":
            scores = [
                [o.metrics["test_error"] for o in store.search(f"{identity}-{row['arm']}-{r}-retrain").outcomes()]
                for r in range(3)
            ]
            assert all(len(s) == 3 for s in scores)
            assert row["test"] == pytest.approx(np.mean(scores))
            assert row["search_sd"] == pytest.approx(np.std(np.mean(scores, 1), ddof=1))
            assert row["seed_sd"] == pytest.approx(np.mean(np.std(scores, 1, ddof=1)))
    for best in report.bests:
        assert best["parameters"] is None or best["parameters"] <= 200
        if best["arm"] == "bilevel":
            assert all(isinstance(best["rounded"][gate], int) for gate in report.gates)


def test_the_report_in_words_and_pictures(done):
    path, store, _, identity = done
    report = report_of(store, identity)
    words = text(report)
    for arm in ARMS:
        assert arm in words
    assert "Verdict:" in words
    assert json.loads(json.dumps(report.to_dict()))["verdict"] == report.verdict
    for made in (history(store, report, path / "history.png"), trajectories(store, report, path / "widths.png")):
        assert made is not None
        assert made.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


MIXED = {
    **BASE,
    "task": "uci/digits-images",
    "network": {"kind": "residual", "stages": 2, "blocks": 2, "width": 4},
    "space": {
        "width.0": {"type": "width", "low": 2, "high": 6, "moved_by": "gradient"},
        "stride.1": {"type": "stride", "low": 1, "high": 3, "moved_by": "gradient"},
        "depth.0": {"type": "depth", "low": 0, "high": 2, "moved_by": "gradient"},
        "depth.1": {"type": "depth", "low": 0, "high": 2},
    },
    "training": {"batch_size": 256, "epochs": 2},
    "search": {"sampler": "random", "batch": 2, "hypergradient": {"kind": "bilevel", "warmup": 1, "every": 1}},
    "constraints": {},
    "budget": {"trials": 2},
    "resources": {"workers": 1, "lanes": 2, "way": "per_lane"},
}


def test_sizes_of_several_kinds_are_named_and_drawn_on_their_own_scales(tmp_path, monkeypatch):
    arms = {"moved": {}, "still": {"replay": "moved", "search": {"hypergradient": {"lr": 0.0}}}}
    comparison = read_comparison({"name": "mixed", "base": MIXED, "arms": arms, "repeats": 2, "retrain": 1}, tmp_path)
    store = Store(tmp_path / "store")
    report = report_of(store, compare(comparison, store, executor="here"))
    lines = text(report).splitlines()
    named = "Sizes (width.0, stride.1, depth.0, depth.1) at the start and at the end of every moved trial"
    (at,) = (i for i, line in enumerate(lines) if line.startswith(named))
    assert len(lines[at + 3].split()) == 2 + 3 * 4 + 2  # repeat and trial, start and two ends, two values
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    trajectories(store, report, tmp_path / "widths.png")
    (figure,) = drawn
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert {title: (axes.get_yscale(), axes.get_ylabel()) for title, axes in panels.items()} == {
        "moved: width.0": ("log", "units (real)"),
        "moved: stride.1": ("linear", "stride in cells (real)"),
        "moved: depth.0": ("linear", "blocks (real)"),
    }
    for gate, axes in zip(("width.0", "stride.1", "depth.0"), panels.values(), strict=True):
        g = report.gates.index(gate)
        assert [line.get_ydata()[0] for line in axes.lines] == [trial["start"][g] for trial in report.moved["moved"]]
        assert [line.get_ydata()[-1] for line in axes.lines] == pytest.approx(
            [trial["end"][g] for trial in report.moved["moved"]], rel=1e-6
        )


def test_an_arm_whose_budget_buys_no_trial_stands_in_the_table_and_in_the_verdict(tmp_path):
    arms = {"random": {}, "again": {"search": {"batch": 2}}, "dear": {"training": {"epochs": 5000}}}
    base = {**BASE, "budget": {"flops": 5.0e6}}
    comparison = read_comparison({"name": "dear", "base": base, "arms": arms, "repeats": 3, "retrain": 2}, tmp_path)
    store = Store(tmp_path / "store")
    report = report_of(store, compare(comparison, store, executor="here"))
    assert [(row["arm"], row["trials"] > 0) for row in report.arms[-1:]] == [("dear", False)]
    assert sorted(row["arm"] for row in report.arms) == sorted(arms)
    assert {row["arm"] for row in report.bests} == {"random", "again"}
    assert list(report.absent) == ["dear"]
    why = r"no score in 3 of 3 repeats: no trial was asked, .* needs budget\.flops of (\S+), not 5e\+06"
    assert float(re.fullmatch(why, report.absent["dear"])[1]) > 5.0e6
    assert "between again, random" in report.verdict
    assert report.verdict.endswith("Not judged, for want of any score: dear.")
    assert f"dear: {report.absent['dear']}." in text(report)
    assert history(store, report, tmp_path / "history.png").stat().st_size > 0


def test_a_comparison_without_any_score_says_why(tmp_path):
    arms = {"a": {}, "b": {"search": {"batch": 2}}}
    base = {**BASE, "budget": {"flops": 1.0e3}}
    comparison = read_comparison({"name": "poor", "base": base, "arms": arms, "repeats": 1, "retrain": 2}, tmp_path)
    store = Store(tmp_path / "store")
    with pytest.raises(NotFound, match=r"no retrained network.* a: no score in 1 of 1 repeats: no trial was asked"):
        report_of(store, compare(comparison, store, executor="here"))


def test_every_fault_of_every_arm_at_once(tmp_path):
    arms = {"a": {"search": {"sampler": "tpee"}}, "b": {"sizes": "wide"}, "c": {"replay": "z"}, "d": 3}
    with pytest.raises(Invalid) as caught:
        read_comparison({"base": BASE, "arms": arms, "repeat": 2}, tmp_path)
    assert "Did you mean 'repeats'?" in caught.value.faults[0]
    with pytest.raises(Invalid) as caught:
        read_comparison({"base": BASE, "arms": arms}, tmp_path)
    faults = "\n".join(caught.value.faults)
    assert "arms.a:" in faults
    assert "Did you mean 'tpe'?" in faults
    assert "arms.b: sizes: must be 'widest'" in faults
    assert "arms.c: replay: unknown arm 'z'" in faults
    assert "arms.d: must be a mapping" in faults


def test_laying_over_merges_mappings_and_replaces_the_rest():
    base = {"search": {"sampler": "tpe", "batch": 4}, "space": {"lr": {"low": 1, "high": 2}}, "seed": 1}
    over = {"search": {"hypergradient": "bilevel"}, "space": {"lr": {"high": 3}}, "seed": 2}
    assert laid_over(base, over) == {
        "search": {"sampler": "tpe", "batch": 4, "hypergradient": "bilevel"},
        "space": {"lr": {"low": 1, "high": 3}},
        "seed": 2,
    }
    named = {"search": {"hypergradient": "bilevel"}}
    assert laid_over(named, {"search": {"hypergradient": {"lr": 0}}}) == {
        "search": {"hypergradient": {"kind": "bilevel", "lr": 0}}
    }


# -- the verdict -----------------------------------------------------------------------------------------------------


def test_pairs_are_students_t_with_holms_correction():
    rng = np.random.default_rng(0)
    scores = {arm: list(rng.normal(mean, 0.01, 8)) for arm, mean in (("a", 0.03), ("b", 0.05), ("c", 0.031))}
    found = {(p.a, p.b): p for p in paired(scores)}
    raw = {pair: stats.ttest_rel(scores[pair[0]], scores[pair[1]]) for pair in found}
    ordered = sorted(raw, key=lambda pair: raw[pair].pvalue)
    running = 0.0
    for rank, pair in enumerate(ordered):
        running = max(running, min(1.0, raw[pair].pvalue * (3 - rank)))
        assert found[pair].p == pytest.approx(running)
        interval = raw[pair].confidence_interval(0.95)
        assert (found[pair].low, found[pair].high) == pytest.approx(tuple(interval))


def test_noise_of_retraining_is_a_floor_of_the_spread():
    agreeing = {"a": [0.030, 0.031, 0.032], "b": [0.0306, 0.0316, 0.0326]}
    assert paired(agreeing)[0].shown
    assert not paired(agreeing, noise=0.002)[0].shown
    reach = paired(agreeing, noise=0.002)[0]
    assert (reach.high - reach.low) / 2 == pytest.approx(stats.t.ppf(0.975, 2) * math.sqrt(2) * 0.002 / math.sqrt(3))


def numbered(scores):
    return {arm: dict(enumerate(values)) for arm, values in scores.items()}


def test_words_for_a_difference_none_and_too_little():
    rng = np.random.default_rng(1)
    base = rng.normal(0.05, 0.01, 6)
    apart = {"a": list(base), "b": list(base + 0.02 + rng.normal(0, 1e-3, 6)), "c": list(rng.normal(0.05, 0.01, 6))}
    words = in_words(numbered(apart))
    assert "a beats b in test error by 0.0" in words
    assert "b beats a" not in words
    same = {"a": [0.05, 0.04, 0.06, 0.05], "b": [0.04, 0.05, 0.05, 0.06]}
    assert in_words(numbered(same)).startswith("No difference shown in test error between a, b")
    assert in_words(numbered({"a": [0.1, 0.2], "b": [0.1, 0.2]})).startswith("No verdict")
    assert in_words(numbered({"a": [0.1, 0.2, 0.3]})).startswith("No verdict")


def test_arms_are_paired_by_repeat_and_one_without_a_score_is_named():
    rng = np.random.default_rng(3)
    base = rng.normal(0.05, 0.02, 6)
    a, b = dict(enumerate(base)), dict(enumerate(base + 0.002 + rng.normal(0, 1e-4, 6)))
    del a[0]  # by position, what is left of a would be paired with other seeds of b
    words = in_words({"a": a, "b": b, "dear": {}})
    assert "a beats b in test error by 0.002" in words
    assert "(5 search seeds each" in words
    assert words.endswith("Not judged, for want of any score: dear.")
    assert "1 of 2 arms with scores and 6 repeats" in in_words({"a": dict(enumerate(base)), "dear": {}})


def test_false_alarms_are_as_rare_as_promised():
    """Under no difference, any pair of four arms is declared different in at most about 5% of comparisons."""
    rng = np.random.default_rng(2)
    alarms = sum(
        any(pair.shown for pair in paired({arm: list(rng.normal(0, 1, 5)) for arm in "abcd"})) for _ in range(400)
    )
    assert alarms <= stats.binom.ppf(0.999, 400, 0.05)


@pytest.mark.parametrize("command", ["show", "best"])
def test_a_comparison_shown_as_a_search_is_pointed_to_its_report(done, capsys, command):
    path, store, _, identity = done
    for word in (identity, identity[:3]):
        (error,) = failing([command, word, "--store", str(store.root)], 2, capsys)
        report = f"continua report {identity} --store {path / 'store'}"
        assert error == f"error: search: {word!r} is a comparison; see it with: {report}"
    (error,) = failing(["show", f"{identity}-random", "--store", str(store.root)], 2, capsys)
    assert "begins 3" in error  # of one arm, so a search is meant


def test_a_comparison_that_is_not_there_is_named_with_the_nearest(done):
    _, store, _, identity = done
    with pytest.raises(NotFound, match=f"Did you mean '{identity}'"):
        report_of(store, identity + "x")
