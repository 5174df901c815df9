"""Specs of networks other than the multi-layer perceptron: read, judged, run, and the user's own found and priced."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from search_spaces import Invalid
from search_spaces.networks import ConvNet, Own, Residual
from search_spaces.own import Found
from service.cli import main
from service.driver import run
from service.planning import plan_of
from service.rules import spec_notes
from service.spec import SearchSpec, check, spec_schema
from trials.records import Bundle, Outcome, Trial
from trials.reproduce import reproduce
from trials.store import Store
from trials.train import Trainer

WIDTH = {"type": "width", "low": 2, "high": 8}
OWN = """
import torch
from torch import nn
from search_spaces.width import WidthGate

class Net(nn.Module):
    def __init__(self, inputs, outputs, wide, name="second", maximum=None):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(inputs, wide), nn.Linear(wide, 6), nn.Linear(6, outputs)
        self.first, self.second = WidthGate("first", maximum or wide), WidthGate(name, 6)
    def forward(self, x):
        return self.c(self.second(torch.relu(self.b(self.first(torch.tanh(self.a(x)))))))

class Branching(Net):
    def forward(self, x):
        for _ in range(x.shape[1] // 4):  # torch.fx cannot count to what it does not know
            out = super().forward(x)
        return out

def network(shape, outputs, wide=8):
    return Net(shape[0], outputs, wide)

def twins(shape, outputs):
    return Net(shape[0], outputs, 8, name="first")

def short(shape, outputs):
    return Net(shape[0], outputs, 8, maximum=5)

def branching(shape, outputs):
    return Branching(shape[0], outputs, 8)

def dropping(shape, outputs):
    net = Net(shape[0], outputs, 8)
    net.a = nn.Sequential(net.a, nn.Dropout(0.3))
    return net

def frozen(shape, outputs):
    net = Net(shape[0], outputs, 8)
    nn.init.constant_(net.a.weight, 0.25)
    net.a.requires_grad_(False)
    return net

def gateless(shape, outputs):
    return nn.Linear(shape[0], outputs)

def wrong(shape, outputs):
    return nn.Sequential(nn.Linear(shape[0], 8), WidthGate("first", 8), nn.Linear(8, outputs + 1))

def nothing(shape, outputs):
    return None

def broken(shape, outputs):
    raise RuntimeError("no such\\nluck")
"""


def spec(**sections: Any) -> dict[str, Any]:
    data = {
        "task": "uci/iris",
        "network": {"kind": "residual", "stages": 1},
        "space": {"width.0": WIDTH, "width.0.0": WIDTH, "lr": {"type": "float", "low": 0.01, "high": 0.5, "log": True}},
        "training": {"epochs": 2, "batch_size": 32},
        "budget": {"trials": 4},
        "resources": {"workers": 1, "lanes": 2, "way": "per_lane"},
    }
    return {**data, **sections}


def own(reference: str = "mine_own:network", **sections: Any) -> dict[str, Any]:
    space = {"first": WIDTH, "second": {**WIDTH, "high": 6}, "lr": spec()["space"]["lr"]}
    return spec(**{"network": reference, "space": space, **sections})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine_own.py").write_text(OWN)
    return tmp_path


def faults(data: dict[str, Any], folder: Path | None = None) -> tuple[str, ...]:
    with pytest.raises(Invalid) as caught:
        check(data, directory=folder)
    return caught.value.faults


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "gates"),
    [
        ({"kind": "convnet", "layers": 2}, ("width.0", "width.1")),
        (
            {"kind": "convnet", "layers": 1, "kernel": 5, "norm": "none", "membership": "fuzzy", "tau": 0.5},
            ("width.0",),
        ),
        (
            {"kind": "residual", "stages": 2, "blocks": 2, "parametrisation": "mup", "growth": "gradmax"},
            ("width.0", "width.0.0", "width.0.1", "width.1", "width.1.0", "width.1.1"),
        ),
        ("mine_own:network", ()),
        ({"kind": "mine_own:network", "options": {"wide": 5}, "membership": "band"}, ()),
    ],
)
def test_networks_round_trip_and_match_the_schema(network: Any, gates: tuple[str, ...]) -> None:
    names = gates or ("first",)
    data = spec(network=network, space=dict.fromkeys(names, WIDTH))
    read = SearchSpec.from_dict(data)
    assert read.network is not None
    assert read.network.gates == gates
    again = SearchSpec.from_dict(json.loads(json.dumps(read.to_dict())))
    assert again == read
    jsonschema.validate(read.to_dict(), spec_schema())
    jsonschema.validate(data, spec_schema())


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        ({"kind": "convnet", "layers": 0}, "network.layers: must be a whole number of at least 1, but got 0."),
        ({"kind": "convnet", "layers": 2000}, "network.layers: must be at most 1000, but got 2000."),
        ({"kind": "residual", "stages": 40, "blocks": 30}, "network.stages and blocks: must be at most 1000"),
        ({"kind": "convnet", "norm": "bath"}, "network.norm: unknown norm 'bath'. Did you mean 'batch'?"),
        ({"kind": "mlp", "membership": "bend"}, "network.membership: unknown membership 'bend'. Did you mean 'band'?"),
        ({"kind": "mlp", "growth": "net3net"}, "network.growth: unknown growth 'net3net'. Did you mean 'net2net'?"),
        ({"kind": "mlp", "tau_end": 0}, "network.tau_end: must be a positive number, but got 0."),
        ({"kind": "mine_own:network", "options": 3}, "network.options: must be a mapping"),
        ({"kind": "mine_own:network", "parametrisation": "ntk"}, "ntk needs one of our networks"),
        ({"kind": "mine_own:network", "growth": "zero"}, "zero needs one of our networks"),
    ],
)
def test_each_rule_of_a_network_says_so(network: Any, sentence: str) -> None:
    with pytest.raises(Invalid) as caught:
        SearchSpec.from_dict(spec(network=network))
    assert any(sentence in fault for fault in caught.value.faults)


def test_a_convnet_needs_images() -> None:
    found = faults(spec(network={"kind": "convnet", "layers": 1}, space={"width.0": WIDTH}))
    assert found == (
        "network.kind: a convnet reads images, but the task has plain rows; take an mlp or a residual network.",
    )


def test_a_gate_that_the_network_has_not_is_named_with_its_neighbour() -> None:
    found = faults(spec(space={"width.0": WIDTH, "width.0.1": WIDTH}))
    assert found == (
        "space.width.0.1: unknown gate of this residual 'width.0.1'. Did you mean 'width.0.0'? "
        "Known: width.0, width.0.0.",
    )


def test_a_bound_below_the_smallest_network_is_refused_with_its_figure() -> None:
    (found,) = faults(spec(constraints={"activation_bytes": {"max": 20}}))
    assert found.startswith(
        "constraints.activation_bytes.max: even the smallest network of the space has activation_by"
    )


# -- the user's own ----------------------------------------------------------------------------------------------------


def test_an_own_network_is_found_with_its_gates_and_costs(folder: Path) -> None:
    checked, task = check(own(), directory=folder)
    network = checked.network
    assert isinstance(network, Own)
    assert network.found == (Found(name="first", maximum=8), Found(name="second", maximum=6))
    sizes = {"first": 5, "second": 3}
    assert network.costs(task.shape, 3).parameters(sizes) == (4 + 1) * 5 + (5 + 1) * 3 + (3 + 1) * 3
    assert checked.to_dict()["network"]["kind"] == "mine_own:network"


def test_options_reach_the_function(folder: Path) -> None:
    data = own(network={"kind": "mine_own:network", "options": {"wide": 5}})
    assert faults(data, folder) == (
        "space.first.high: must be at most the 5 units of the layer that the gate follows, but got 8; lower it, or "
        "widen the layer.",
    )


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("twins", "two gates"),
        ("short", "first"),
        ("gateless", "must have at least one gate"),
        ("wrong", "must return 3 numbers a row, but got an output of shape (2, 4)"),
        ("nothing", "nothing must return an nn.Module, but got None"),
        ("broken", "RuntimeError: no such luck"),
        ("netwerk", "unknown function of mine_own 'netwerk'. Did you mean 'network'?"),
    ],
)
def test_a_network_that_cannot_be_used_is_one_fault_beside_the_others(folder: Path, name: str, sentence: str) -> None:
    found = faults(own(f"mine_own:{name}", objective={"metric": "val_mse"}), folder)
    assert len(found) == 2
    assert sum(fault.startswith("network") and sentence in fault and "\n" not in fault for fault in found) == 1, found
    assert any(fault.startswith("objective.metric") for fault in found)


def test_a_parameter_without_a_gate_and_a_gate_without_a_parameter(folder: Path) -> None:
    """The one is a slip, the other a choice that is told."""
    lr = spec()["space"]["lr"]
    found = faults(own(space={"frist": WIDTH, "lr": lr}), folder)
    assert found == ("space.frist: unknown gate of this network 'frist'. Did you mean 'first'? Known: first, second.",)
    checked, task = check(own(space={"first": WIDTH, "lr": lr}), directory=folder)
    assert spec_notes(checked, task) == [
        "network: the space has no width `second`, so that gate keeps all of its 6 units"
    ]


@pytest.mark.parametrize(
    ("membership", "growth", "moved", "told"),
    [
        (
            "auto",
            "zero",
            True,
            ["network.growth: every unit of a band has a grade above 0 from the start, so none begins"],
        ),
        ("interval", "zero", True, []),
        ("auto", "fresh", True, []),
        ("auto", "zero", False, []),
    ],
)
def test_growth_that_has_nothing_to_do_is_told(membership: str, growth: str, moved: bool, told: list[str]) -> None:
    moving: dict[str, Any] = {"moved_by": "gradient"} if moved else {}
    checked, task = check(
        spec(
            network={"kind": "mlp", "layers": 1, "membership": membership, "growth": growth},
            space={"width.0": {**WIDTH, **moving}},
            search={"hypergradient": {"kind": "descent" if moved else "none", "warmup": 1}},
        )
    )
    found = spec_notes(checked, task)
    assert len(found) == len(told)
    assert all(note.startswith(words) for note, words in zip(found, told, strict=True))


def test_growth_is_not_said_to_do_nothing_where_only_blocks_grow() -> None:
    """Of a depth `auto` is an interval, whose blocks do begin."""
    checked, task = check(
        spec(
            network={"kind": "residual", "blocks": 2, "growth": "zero"},
            space={"width.0": WIDTH, "depth.0": {"type": "depth", "low": 0, "high": 2, "moved_by": "gradient"}},
            search={"hypergradient": {"kind": "descent", "warmup": 1}},
        )
    )
    assert spec_notes(checked, task) == []


def test_a_plan_leaves_the_users_code_at_home(folder: Path) -> None:
    """On Ray a controller lives where the user's module cannot be imported; it still rounds and prices."""
    checked, task = check(own(constraints={"parameters": {"max": 60}}), directory=folder)
    plan = plan_of(checked, task)
    assert isinstance(plan.network, Own)
    abroad = pickle.dumps(replace(plan, network=plan.network.abroad()))
    assert b"mine_own" not in abroad.replace(b"mine_own:network", b"")
    point = {"first": 7.0, "second": 5.0, "lr": 0.1}
    assert pickle.loads(abroad).rounded(point) == plan.rounded(point)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["here", "local"])
@pytest.mark.parametrize("name", ["network", "branching"])
def test_own_networks_train_traced_or_not(folder: Path, name: str, executor: Any) -> None:
    checked, task = check(own(f"mine_own:{name}"), directory=folder)
    result = run(checked, task, Store(folder / "st"), executor=executor, directory=folder)
    outcomes = list(Store.open_for_reading(folder / "st").search(result.search_id).outcomes())
    assert [o.ending for o in outcomes] == ["complete"] * 4
    assert all(isinstance(o.rounded["first"], int) for o in outcomes)
    if name == "branching":  # what cannot be traced costs what it costs whole
        assert len({o.metrics["parameters"] for o in outcomes}) == 1


def test_gradients_move_an_own_networks_widths(folder: Path) -> None:
    moved = {**WIDTH, "low": 1, "moved_by": "gradient"}
    data = own(
        space={"first": moved, "second": {**moved, "high": 6}},
        search={"hypergradient": {"kind": "bilevel", "warmup": 0}},
    )
    checked, task = check(data, directory=folder)
    result = run(checked, task, Store(folder / "st"), executor="here", directory=folder)
    search = Store.open_for_reading(folder / "st").search(result.search_id)
    asked = {t["number"]: t["point"] for e in search.log() if e.kind == "asked" for t in e.body["trials"]}
    assert all(o.point["first"] != asked[o.number]["first"] for o in search.outcomes())


def test_the_networks_are_values() -> None:
    assert ConvNet(layers=2) == ConvNet(layers=2) != ConvNet(layers=3)
    assert hash(Residual()) == hash(Residual())


def test_trainings_in_which_nothing_could_move_and_batches_beyond_the_rows_are_told(folder: Path) -> None:
    moved = {**WIDTH, "moved_by": "gradient"}
    data = spec(
        space={"width.0": moved, "width.0.0": moved},
        search={"hypergradient": {"kind": "bilevel", "warmup": 50}},
        training={"epochs": 1, "batch_size": 500},
        objective={"metric": "val_accuracy", "mode": "min"},
    )
    notes = spec_notes(*check(data, directory=folder))
    assert [note.split(":")[0] for note in notes] == ["objective", "search.hypergradient", "training.batch_size"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["per_lane", "grouped"])
def test_dropout_is_the_same_in_any_company(folder: Path, way: str) -> None:
    """It draws from its lane's own numbers, and trains lane by lane whatever the way."""
    found = []
    for lanes, executor in ((1, "here"), (4, "local")):
        resources = {"workers": 1, "lanes": lanes, "way": way}
        checked, task = check(own("mine_own:dropping", resources=resources), directory=folder)
        result = run(checked, task, Store(folder / f"st{lanes}"), executor=executor, directory=folder)  # type: ignore[arg-type]
        outcomes = Store.open_for_reading(folder / f"st{lanes}").search(result.search_id).outcomes()
        found.append([(o.number, o.ending, o.value) for o in sorted(outcomes, key=lambda o: o.number)])
    assert found[0] == found[1]
    assert {ending for _, ending, _ in found[0]} == {"complete"}


def test_frozen_layers_stay_as_they_were_made(folder: Path) -> None:
    checked, task = check(own("mine_own:frozen", training={"epochs": 1, "batch_size": 32, "lr": 0.5}), directory=folder)
    again = reproduce(
        plan_of(checked, task), Trial(search_id="s", number=0, point={"first": 8.0, "second": 6.0, "lr": 0.5})
    )
    named = dict(again.network.named_parameters())
    assert torch.equal(named["a.weight"], torch.full((8, 4), 0.25))
    assert not torch.equal(named["b.bias"], torch.zeros(6))


@pytest.mark.parametrize("way", ["per_lane", "grouped", "unfolded"])
def test_regression_trains_networks_of_one_output(way: str) -> None:
    moved = {**WIDTH, "moved_by": "gradient"}
    data = spec(
        task="uci/diabetes",
        space={"width.0": moved, "width.0.0": moved},
        search={"hypergradient": {"kind": "bilevel", "warmup": 1}},
        resources={"workers": 1, "lanes": 2, "way": way},
    )
    checked, task = check(data)
    trials = tuple(Trial(search_id="s", number=i, point={"width.0": 3.0 + i, "width.0.0": 5.0}) for i in range(2))
    bundle = Bundle(search_id="s", id="b", generation=0, trials=trials)
    outcomes = [r for r in Trainer(plan_of(checked, task)).train(bundle) if isinstance(r, Outcome)]
    assert [o.error for o in outcomes] == [None, None]
    assert all(math.isfinite(o.metrics["val_mse"]) for o in outcomes)


# -- the best network --------------------------------------------------------------------------------------------------


def test_best_is_retrained_and_shown_beside_relaxed_and_rounded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "spec.yaml").write_text(json.dumps(own(search={"hypergradient": "none"}, realise="fractional")))
    store = str(folder / "st")
    assert main(["run", str(folder / "spec.yaml"), "--store", store, "--executor", "here", "-o", "json"]) == 0
    search_id = json.loads(capsys.readouterr().out)["search_id"]
    assert main(["best", search_id, "--retrain", "3", "--store", store, "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["retrained"]["seeds"] == 3
    assert 0 <= found["retrained"]["mean"] <= 1
    assert main(["show", search_id, "--store", store]) == 0
    text = capsys.readouterr().out
    assert "relaxed " in text
    assert "rounded " in text
    assert "(3 seeds)" in text


@pytest.mark.parametrize("name", ["network", "branching"])
def test_best_is_exported_as_the_network_that_was_measured(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (folder / "spec.yaml").write_text(json.dumps(own(f"mine_own:{name}")))
    store = str(folder / "st")
    assert main(["run", str(folder / "spec.yaml"), "--store", store, "--executor", "here", "-o", "json"]) == 0
    search_id = json.loads(capsys.readouterr().out)["search_id"]
    assert main(["best", search_id, "--export", str(folder / "best.pt2"), "--store", store, "-o", "json"]) == 0
    out, err = capsys.readouterr()
    assert ("cannot be traced, so it is exported with masks" in err) == (name == "branching")
    found = json.loads(out)
    assert found["exported"]["reads"] == {"shape": [4]}
    assert (folder / "best.pt2").exists()
    assert main(["best", search_id, "--export", str(folder / "best.pt2"), "--store", store]) == 2
    assert "--overwrite" in capsys.readouterr().err
