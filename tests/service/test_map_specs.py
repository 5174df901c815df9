"""Specs with strides, depths and topologies: read, judged, and run through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from search_spaces import Invalid
from service.cli import main
from service.spec import SearchSpec, check, spec_schema
from trials.store import Store

WIDTH = {"type": "width", "low": 2, "high": 6}
STRIDE = {"type": "stride", "low": 1, "high": 3}
DEPTH = {"type": "depth", "low": 0, "high": 2}
OPTIMIZER = {"type": "choice", "options": ["sgd", "adam"]}
LR = {"type": "float", "low": 0.01, "high": 0.3, "log": True}
GRADIENT = {"moved_by": "gradient"}
MOVING = {"hypergradient": {"kind": "descent", "warmup": 2, "every": 2}}


def topology(kind: str, *operations: str, **facts: Any) -> dict[str, Any]:
    return {"type": "topology", "kind": kind, "operations": list(operations or ("conv3", "skip")), **facts}


def spec(network: dict[str, Any], space: dict[str, Any], task: str = "uci/digits-images", **further: Any) -> Any:
    return {
        "name": "maps",
        "task": task,
        "network": network,
        "space": {**space, "lr": LR},
        "training": {"epochs": 1, "batch_size": 64},
        "budget": {"trials": 3},
        "resources": {"workers": 1, "lanes": 2, "way": "per_lane"},
        **further,
    }


CONVNET = {"kind": "convnet", "layers": 2, "width": 4}
RESIDUAL = {"kind": "residual", "stages": 2, "blocks": 2, "width": 4}
SOUND: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "strides": (
        {**CONVNET, "stride": "resize", "jitter": 0.1},
        {"stride.1": STRIDE, "width.0": WIDTH},
        ("width.0", "width.1", "stride.1"),
    ),
    "spectral": (
        {**CONVNET, "stride": "spectral"},
        {"stride.0": {**STRIDE, "low": 1.2}},
        ("width.0", "width.1", "stride.0"),
    ),
    "depths": (
        RESIDUAL,
        {"depth.1": DEPTH, "stride.0": STRIDE},
        ("width.0", "width.0.0", "width.0.1", "width.1", "width.1.0", "width.1.1", "stride.0", "depth.1"),
    ),
    "cell": (
        {"kind": "cell", "cells": 2, "width": 4},
        {"topology": topology("free", nodes=2)},
        ("width.0", "width.1", "topology"),
    ),
    "graphon": ({"kind": "graphon", "width": 4}, {"topology": topology("graphon", nodes=3)}, ("width.0", "topology")),
    "fabric": (
        {"kind": "fabric", "width": 4},
        {"topology": topology("fabric", layers=2, scales=2)},
        ("width.0", "width.1", "topology"),
    ),
}


@pytest.mark.parametrize("name", list(SOUND))
def test_they_round_trip_and_match_the_schema(name: str) -> None:
    network, space, gates = SOUND[name]
    data = spec(network, space)
    read = SearchSpec.from_dict(data)
    assert read.network is not None
    assert read.network.gates == gates
    again = SearchSpec.from_dict(json.loads(json.dumps(read.to_dict())))
    assert again == read
    jsonschema.validate(data, spec_schema())
    jsonschema.validate(read.to_dict(), spec_schema())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way", "moved"),
    [*((name, "per_lane", True) for name in SOUND), *((name, "unfolded", False) for name in ("strides", "graphon"))],
)
def test_they_run_and_export(name: str, way: str, moved: bool, tmp_path: Path) -> None:
    network, space, _ = SOUND[name]
    facts = {key: {**value, **(GRADIENT if moved else {})} for key, value in space.items()}
    data = spec(network, facts, **({"search": MOVING} if moved else {}))
    data["resources"]["way"] = way
    file, store = tmp_path / "maps.json", tmp_path / "st"
    file.write_text(json.dumps(data))
    assert main(["run", str(file), "--store", str(store), "--quiet", "--executor", "here"]) == 0
    (search,) = Store.open_for_reading(store).searches()
    outcomes = list(Store.open_for_reading(store).search(search).outcomes())
    assert [outcome.error for outcome in outcomes] == [None] * 3
    for outcome in outcomes:
        for key, value in outcome.rounded.items():
            if key.startswith(("width", "stride", "depth")):
                assert isinstance(value, int)
    assert main(["best", search, "--store", str(store), "--export", str(tmp_path / "best.py")]) == 0


BAD: list[tuple[Any, str]] = [
    (
        spec({**CONVNET, "stride": "spectral"}, {"stride.0": STRIDE}),
        "space.stride.0.low: a spectral stride must be at least H / (H - R) = 1.143 (a map of side H=8, a ramp of R=1",
    ),
    (
        spec(CONVNET, {"stride.0": {**STRIDE, "high": 9}}),
        "space.stride.0.high: must be at most 8, the side of the map before it, but got 9.",
    ),
    (
        spec(CONVNET, {"stride.1": {**STRIDE, "high": 6}}),  # the first layer halves
        "space.stride.1.high: must be at most 4, the side of the map before it, but got 6.",
    ),
    (
        spec(CONVNET, {"stride.0": {**STRIDE, "low": 0.5}}),
        "space.stride.0.low: a stride below 1 would enlarge the map (`low >= 1`), but got 0.5.",
    ),
    (spec(CONVNET, {"stride.2": STRIDE}), "space.stride.2: unknown stride of this convnet 'stride.2'. Did you mean"),
    (
        spec({**CONVNET, "layers": 3}, {"stride.0": {**STRIDE, "high": 8}}),
        "space: maps must not vanish at the greatest strides, but at stride.0=8 the network fails with: Given input",
    ),
    (spec(CONVNET, {"depth.0": DEPTH}), "space.depth.0: a convnet has no depth; drop it or choose another network."),
    (spec(CONVNET, {"width.0": STRIDE}), "space.width.0: gates a layer, so its type must be width, but got stride."),
    (spec(RESIDUAL, {"stride.1": WIDTH}), "space.stride.1: strides, so its type must be stride, but got width."),
    (
        spec(RESIDUAL, {"depth.0": {**DEPTH, "high": 5}}),
        "space.depth.0.high: must be at most 2, the blocks of a stage, but got 5; raise network.blocks.",
    ),
    (
        spec(RESIDUAL, {"stride.0": STRIDE}, "uci/digits"),
        "space.stride.0: a stride moves over a map, but the task has plain rows; drop it, or take a task of images.",
    ),
    (
        spec(CONVNET, {"stride.0": STRIDE}, "uci/iris"),
        "network.kind: a convnet reads images, but the task has plain rows; take an mlp or a residual network.",
    ),
    (
        spec({**CONVNET, "stride": "shrunk"}, {}),
        "network.stride: unknown kind of stride 'shrunk'. Did you mean",
    ),
    (
        spec({**CONVNET, "jitter": 0.7}, {}),
        "network.jitter: must be a number of at least 0 and below 0.5, but got 0.7.",
    ),
    (
        spec({"kind": "graphon"}, {}),
        "space.topology: is missing, but a graphon is a graph; add {type: topology, kind: graphon}.",
    ),
    (
        spec({"kind": "fabric"}, {"topology": topology("free")}),
        "space.topology.kind: must be fabric for a fabric, but got 'free'.",
    ),
    (
        spec({"kind": "cell"}, {"topology": {"type": "topology", "operations": []}}),
        "space.topology.operations: must name at least one operation, but got ().",
    ),
    (
        spec({"kind": "cell"}, {"topology": topology("free", "zero")}),
        "space.topology.operations: nothing flows through `zero`, but got no other operation; add one.",
    ),
    (
        spec({"kind": "graphon"}, {"topology": topology("graphon", "conv3", "linear")}, "uci/digits"),
        "space.topology.operations: must be among linear, skip, zero for rows of numbers, but got 'conv3'",
    ),
    (
        spec({"kind": "fabric"}, {"topology": topology("fabric", layers=4, scales=5)}),
        "space.topology.scales: each scale halves the map, so a side of 8 allows at most 4, but got 5.",
    ),
    (
        spec(
            {"kind": "cell"},
            {"topology": topology("free", when={"optimizer": "sgd"}), "optimizer": OPTIMIZER},
        ),
        "space.topology.when: the graph of the network must always exist; drop the condition.",
    ),
    (
        spec({"kind": "cell"}, {"topology": topology("free", **GRADIENT)}),
        "space.topology.moved_by: 'gradient' needs a hypergradient, but got search.hypergradient='none'",
    ),
    (
        spec(CONVNET, {"stride.0": STRIDE}, search={"hypergradient": {"kind": "descent", "entropy": -1}}),
        "search.hypergradient.entropy: must be a number of at least 0, but got -1.",
    ),
    (
        spec({"kind": "cell", "growth": "zero"}, {"topology": topology("free")}),
        "network.growth: units of a cell begin fresh",
    ),
]


@pytest.mark.parametrize(("data", "sentence"), BAD, ids=[sentence[:60] for _, sentence in BAD])
def test_each_rule_says_so(data: Any, sentence: str) -> None:
    with pytest.raises(Invalid) as caught:
        check(data)
    assert any(sentence in fault for fault in caught.value.faults), caught.value.faults


def test_all_faults_are_told_at_once() -> None:
    data = spec(RESIDUAL, {"depth.0": {**DEPTH, "high": 5}, "stride.7": STRIDE, "width.9": WIDTH})
    with pytest.raises(Invalid) as caught:
        check(data)
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "space.stride.7",
        "space.width.9",
        "space.depth.0.high",
    ]
