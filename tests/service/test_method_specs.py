"""What a spec may ask of a hypergradient, each refusal in one sentence with the rule and the way out; and what runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_cases import strict

from search_spaces import Invalid
from service.cli import main
from service.compare import laid_over
from service.driver import run
from service.spec import SearchSpec, check
from trials.hypergradients.method import KINDS, Method
from trials.store import Store

GRADIENT = {"type": "width", "low": 2, "high": 16, "moved_by": "gradient"}
RATE = {"type": "float", "low": 1e-3, "high": 1.0, "log": True, "moved_by": "gradient"}
SHARE = {"type": "float", "low": 0.01, "high": 0.9, "moved_by": "gradient"}
BASE: dict[str, Any] = {
    "task": "uci/digits",
    "network": {"kind": "mlp", "layers": 2},
    "space": {"width.0": GRADIENT},
    "training": {"epochs": 2, "momentum": 0.9},
    "search": {"sampler": "random", "hypergradient": {"kind": "unrolled", "every": 5, "warmup": 5}},
    "budget": {"trials": 2},
    "resources": {"lanes": 2},
}


def kind(name: str, **options: Any) -> dict[str, Any]:
    return {"search": {"hypergradient": {"kind": name, **options}}}


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"space": {"lr": RATE}, **kind("implicit")},
        "space.lr.moved_by: implicit cannot see lr: it knows where training comes to rest, not how it gets there; take "
        "bilevel with order: second, unrolled, truncated, forward, reversible, or drop `moved_by`.",
    ),
    ({"space": {"momentum": SHARE}, **kind("hypernet")}, "space.momentum.moved_by: hypernet cannot see momentum"),
    (
        {"space": {"lr": RATE}, **kind("descent")},
        "space.lr.moved_by: descent cannot see lr: it looks at the loss",
    ),
    ({"space": {"lr.1": RATE}, **kind("bilevel")}, "space.lr.1.moved_by: bilevel cannot see lr"),
    ({"space": {"lr.3": RATE}}, "space.lr.3: the network's layers with weights are 0 to 2, but got 3; drop it."),
    ({"space": {"dropout.2": SHARE}}, "space.dropout.2: the network's hidden layers are 0 to 1, but got 2; drop it."),
    ({"space": {"dropout": {**SHARE, "low": 0.0}}}, "space.dropout.low: the spread of dropout has no slope at 0"),
    (
        {"space": {"beta1": SHARE}},
        "space.beta1.moved_by: sgd reads lr, momentum, weight_decay, dropout, and",
    ),
    ({"training": {"dropout": 1.0}}, "training.dropout: `0 <= dropout <= 0.999999` must hold, but got 1.0."),
    ({"training": {"learner": "hebb"}}, "training.learner: unknown learner 'hebb'"),
    (
        {"training": {"momentum": 0.0}, **kind("reversible")},
        "search.hypergradient: 'reversible' reverses SGD with momentum, but got optimizer=sgd, momentum=0",
    ),
    ({"training": {"nesterov": True}, **kind("reversible")}, "'reversible' reverses SGD with momentum, but got"),
    (
        {"training": {"optimizer": "adamw", "weight_decay": 0.1}, **kind("implicit")},
        "search.hypergradient: 'implicit' needs to know where training comes to rest, and with adamw's decoupled",
    ),
    (
        {"training": {"learner": "feedback"}, **kind("implicit", solver="cg")},
        "search.hypergradient: 'implicit': conjugate gradients need a symmetric Jacobian",
    ),
    (kind("truncated", horizon=9, every=5), "search.hypergradient.horizon: must be at most `every`"),
    (kind("descent", horizon=3), "search.hypergradient.horizon: is an option of truncated, but got kind='descent'"),
    (kind("implicit", solver="lu"), "search.hypergradient.solver: unknown solver 'lu'"),
    (kind("unrolled", checkpoints=1), "search.hypergradient.checkpoints: must be true or false, but got 1."),
    (kind("unrolled", ends="wrap"), "search.hypergradient.ends: unknown ends 'wrap'"),
    (kind("hypernet", scale=0), "search.hypergradient.scale: must be a number above 0, but got 0."),
    (
        kind("unrolled", every=10**9),
        "search.hypergradient.every: going through 1000000000 steps of 4 trainings at a time (workers, lanes",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED, ids=[s[:60] for _, s in REFUSED])
def test_each_refusal_says_why(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Invalid) as caught:
        check(laid_over(BASE, changes))
    told = [fault for fault in caught.value.faults if sentence in fault]
    assert len(told) == 1, caught.value.faults
    assert len(caught.value.faults) == 1, "one mistake, one sentence"


def test_a_window_too_long_for_memory_names_the_lighter_ways() -> None:
    with pytest.raises(Invalid) as caught:
        check(laid_over(BASE, kind("unrolled", every=200_000)))
    (told,) = caught.value.faults
    assert "take checkpoints: true (about " in told
    assert " or kind: reversible (about " in told


def test_networks_other_than_perceptrons_have_no_dropout_and_no_feedback() -> None:
    own = {
        "task": "uci/digits-images",
        "network": {"kind": "convnet", "layers": 2},
        "training": {"learner": "feedback"},
    }
    with pytest.raises(Invalid) as caught:
        check(laid_over({**BASE, "network": own.pop("network")}, {**own, "space": {"dropout": SHARE, "lr.0": RATE}}))
    faults = "\n".join(caught.value.faults)
    assert "space.dropout: only multi-layer perceptrons (kind: mlp) have dropout, but got convnet; drop it." in faults
    assert "space.lr.0: only multi-layer perceptrons (kind: mlp) have lr of single layers" in faults
    assert "training.learner: 'feedback' teaches multi-layer perceptrons" in faults


def test_the_section_reads_back_what_it_wrote() -> None:
    for name in KINDS:
        if name != "none":
            spec = SearchSpec.from_dict(laid_over(BASE, {"search": {"hypergradient": Method(kind=name).to_dict()}}))
            assert SearchSpec.from_dict(spec.to_dict()).search.hypergradient == Method(kind=name)


RATES = {
    name: [rate for rate in ("lr", "momentum", "weight_decay") if rate in k.sees and name != "bilevel"]
    for name, k in KINDS.items()
    if name != "none"
}


@pytest.mark.parametrize("name", RATES)
def test_every_kind_runs_from_its_spec_and_reports_where_it_went(name: str, tmp_path: Path) -> None:
    """A hybrid too: the sampler chooses where rates begin, and the gradient moves them where it can see them."""
    space = {rate: {**(RATE if rate == "lr" else SHARE), "high": 0.5} for rate in RATES[name]}
    changes = {"space": space, "search": {"hypergradient": {"kind": name, "every": 5, "warmup": 5}}}
    spec, task = check(laid_over(BASE, changes))
    result = run(spec, task, Store(tmp_path), executor="here")
    assert result.state == "complete"
    search = Store(tmp_path).search(result.search_id)
    outcomes = search.outcomes()
    assert len(outcomes) == 2
    asked = {t["number"]: t["point"] for e in search.log() if e.kind == "asked" for t in e.body["trials"]}
    for outcome in outcomes:
        assert outcome.ending == "complete", outcome.error
        assert set(outcome.point) == {"width.0", *space}
        assert all(outcome.point[n] != asked[outcome.number][n] for n in outcome.point)
    reports = search.reports_table()
    assert {f"arch.{n}" for n in ("width.0", *space)} <= set(reports.column_names)


@pytest.mark.slow
def test_the_sampler_chooses_where_a_moved_rate_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(laid_over(BASE, {"space": {"lr": RATE}, "training": {"epochs": 4}})))
    assert main(["run", str(path), "--store", str(tmp_path / "store"), "-o", "json"]) == 0
    best = strict(capsys.readouterr().out)["best"]
    assert best["asked"]["lr"] != best["point"]["lr"]
    assert 1e-3 <= best["point"]["lr"] <= 1.0
