"""Specs of networks that are graphs: what may be wrong with a topology, each fault once and by its own name."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest

from search_spaces import Invalid, Space, Topology
from search_spaces.drawing import node_name
from search_spaces.graph_networks import Cell, Fabric, Graphon
from service import networks
from service.cli import main
from service.driver import resume
from service.graph_rules import MOST_OPERATIONS, size_faults
from service.spec import SearchSpec, check

GRAPHON = {"type": "topology", "kind": "graphon", "nodes": 3, "coefficients": 2, "operations": ["conv1", "skip"]}
LR = {"type": "float", "low": 0.01, "high": 1.0, "log": True}


def spec(topology: Any = GRAPHON, *, network: Any = None, space: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "task": "uci/digits-images",
        "network": network or {"kind": "graphon", "width": 4},
        "space": {"topology": topology, "lr": LR, **(space or {})},
        "budget": {"trials": 2},
        **more,
    }


def faults_of(data: dict[str, Any]) -> list[str]:
    with pytest.raises(Invalid) as caught:
        SearchSpec.from_dict(data)
    return list(caught.value.faults)


def test_a_faulty_topology_is_not_missing_too_and_hides_no_other_fault():
    data = spec({**GRAPHON, "nodes": 0}, space={"width.7": {"type": "width", "low": 1, "high": 4}})
    nodes, width = faults_of(data)
    assert nodes == "space.topology.nodes: must be a whole number of at least 1, but got 0."
    assert width.startswith("space.width.7: unknown gate of this graphon 'width.7'.")
    woven = {"type": "topology", "kind": "fabric", "layers": 0, "operations": ["conv1"]}
    (layers,) = faults_of(
        spec(woven, network={"kind": "fabric"}, space={"width.5": {"type": "width", "low": 1, "high": 4}})
    )
    assert layers.startswith("space.topology.layers: must be a whole number")


def test_a_topology_by_another_name_is_told_the_right_one():
    data = spec(space={"topolgy": GRAPHON})
    del data["space"]["topology"]
    (fault,) = faults_of(data)
    assert fault == "space.topolgy: unknown topology of a graphon 'topolgy'. Did you mean 'topology'? Known: topology."
    del data["space"]["topolgy"]
    assert faults_of(data) == [
        "space.topology: is missing, but a graphon is a graph; add {type: topology, kind: graphon}."
    ]


@pytest.mark.parametrize(("given", "shown"), [("conv1", "conv1"), ("fast", "conv3"), ({"conv1": 1}, "conv3")])
def test_operations_are_a_list(given, shown):
    (fault,) = faults_of(spec({**GRAPHON, "operations": given}))
    assert fault == (f"space.topology.operations: must be a list of operations, such as [{shown}], but got {given!r}.")


def test_keys_of_another_kind_of_topology_are_faults():
    free = {"type": "topology", "nodes": 3, "coefficients": 6, "scales": 2, "operations": ["conv1"]}
    assert faults_of(spec(free, network={"kind": "cell"})) == [
        f"space.topology.{key}: belongs to kind {kind}, but this topology is free, which is given by nodes; "
        "drop it, or take another kind."
        for key, kind in (("coefficients", "graphon"), ("scales", "fabric"))
    ]
    woven = {"type": "topology", "kind": "fabric", "nodes": 3, "operations": ["conv1"]}
    (fault,) = faults_of(spec(woven, network={"kind": "fabric"}))
    assert "space.topology.nodes: belongs to kind free or graphon, but this topology is fabric" in fault


@pytest.mark.parametrize("key", ["entropy", "sparsity"])
def test_what_presses_on_a_topology_needs_one_that_moves(key):
    search = {"hypergradient": {"kind": "bilevel", key: 0.25}}
    width = {"width.0": {"type": "width", "low": 2, "high": 4, "moved_by": "gradient"}}
    (fault,) = faults_of(spec(space=width, search=search))
    assert fault == (
        f"search.hypergradient.{key}: presses on a topology while a gradient moves it, but got 0.25 and no topology "
        "that one moves; give topology `moved_by: gradient`, or drop it."
    )
    bare = {"task": "uci/iris", "network": {"kind": "mlp", "layers": 1}, "budget": {"trials": 1}, "space": width}
    (fault,) = faults_of({**bare, "search": search})
    assert fault.endswith("no topology that one moves; drop it.")
    SearchSpec.from_dict(spec({**GRAPHON, "moved_by": "gradient"}, search=search))


@pytest.mark.parametrize(
    ("topology", "search"),
    [({"layers": 2, "scales": 2}, {}), ({}, {"hypergradient": {"kind": "none", "entropy": 0.1, "sparsity": 0.0}})],
)
def test_a_stored_spec_with_keys_that_did_nothing_is_still_resumed_and_its_best_found(topology, search, store):
    """They were once allowed; a new spec with them is refused."""
    data = spec(
        {**GRAPHON, "nodes": 1, **topology},
        search=search,
        training={"epochs": 1, "batch_size": 256},
        resources={"workers": 1, "lanes": 2, "way": "per_lane"},
    )
    assert faults_of(data)
    data["objective"] = {"metric": "val_error", "mode": "min"}
    store.create("old", {"name": "old", "labels": {}, "spec": data, "directory": "/"})
    assert resume(store, "old", executor="here").state == "complete"
    assert networks.best_of(store.search("old")).trial.number in (0, 1)


# -- how large a graph may be ------------------------------------------------------------------------------------------


def graph(**keys: Any) -> Space:
    return Space({"topology": Topology(**keys)})


@pytest.mark.parametrize(
    ("network", "keys", "made", "way"),
    [
        (Graphon(), {"kind": "graphon", "nodes": 200, "operations": ("conv1", "skip")}, 40200, "to at most 27."),
        (Cell(cells=8), {"nodes": 30, "operations": ("conv1", "zero")}, 3720, "lower `nodes` to at most 13."),
        (Cell(cells=900), {"nodes": 2, "operations": ("conv1",)}, 2700, "lower network.cells."),
        (
            Fabric(),
            {"kind": "fabric", "layers": 99, "scales": 4, "operations": ("conv1",)},
            990,
            "`layers` or `scales`",
        ),
        (Graphon(), {"kind": "graphon", "nodes": 10**9, "operations": ("skip",)}, 500000000500000000, "at most 39"),
    ],
)
def test_a_graph_too_large_to_build_is_told_what_fits(network, keys, made, way):
    (fault,) = size_faults(network, graph(**keys))
    assert f"at most {MOST_OPERATIONS} operations" in fault
    assert f"make {made};" in fault
    assert way in fault


def test_the_largest_graph_that_fits_is_accepted_and_counted_as_it_is_built():
    operations = ("conv1", "skip", "zero")
    fits = graph(kind="graphon", nodes=27, operations=operations)
    assert not size_faults(Graphon(), fits)
    assert size_faults(Graphon(), graph(kind="graphon", nodes=28, operations=operations))
    assert len(fits.parameters["topology"].useful) == 27 * 28 // 2 * 2
    darts = graph(nodes=4, operations=("conv1", "conv3", "conv5", "separable", "max_pool", "avg_pool", "skip"))
    assert not size_faults(Cell(cells=8), darts)


def test_a_graph_of_ten_thousand_nodes_is_refused_at_once():
    began = time.monotonic()
    with pytest.raises(Invalid, match="lower `nodes` to at most 27"):
        check(spec({**GRAPHON, "nodes": 10_000}, constraints={"parameters": {"max": 10}}))
    assert time.monotonic() - began < 60


# -- bounds that nothing can meet --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "space", "bound", "advice"),
    [
        ({"kind": "mlp"}, {"width.0": {"type": "width", "low": 2, "high": 9}}, "parameters",
         ", or lower the `low` of width.0, or lower network.width."),
        ({"kind": "mlp"}, {"lr": LR}, "parameters", ", or lower network.width."),
        ({"kind": "mlp", "layers": 1}, {"width.0": {"type": "width", "low": 1, "high": 9}}, "parameters", "raise it."),
        ({"kind": "residual"}, {"stride.1": {"type": "stride", "low": 1, "high": 3},
                                "depth.0": {"type": "depth", "low": 0, "high": 1},
                                "depth.1": {"type": "depth", "low": 0.5, "high": 1}}, "flops",
         ", or lower the `low` of depth.1, or raise the `high` of stride.1, or lower network.width."),
    ],
)  # fmt: skip
def test_advice_on_a_bound_names_what_the_space_has(network, space, bound, advice):
    data = {**spec(network=network), "space": space, "constraints": {bound: {"max": 5}}}
    with pytest.raises(Invalid) as caught:
        check(data)
    (fault,) = caught.value.faults
    assert fault.endswith(advice)


def test_what_a_dry_run_counts_has_its_plural(tmp_path, capsys):
    topology = {**GRAPHON, "nodes": 1}
    (tmp_path / "graph.json").write_text(json.dumps(spec(topology)))
    for batch, points in ((1, "1 point"), (2, "2 points")):
        assert main(["run", str(tmp_path / "graph.json"), "--dry-run", "--set", f"search={{batch: {batch}}}"]) == 0
        out = capsys.readouterr().out
        assert f"# a generation: {points}\n" in out
        assert "# smallest network: width.0 4, topology 1 edge; " in out
        assert "# largest network: width.0 4, topology 2 edges; " in out


def test_a_topology_s_numbers_are_those_that_the_manual_says():
    """docs/spec.md, under `space`."""
    free = Topology(nodes=2, operations=("conv3", "skip"))
    told = [(edge.source, edge.target, operation) for edge, operation in free.units]
    assert told == [(i, j, o) for i, j in ((0, 1), (0, 2), (1, 2)) for o in ("conv3", "skip")]
    woven = Topology(kind="fabric", layers=2, scales=2, operations=("conv3", "skip"))
    ends = [(node_name(woven, edge.source), node_name(woven, edge.target)) for edge, _ in woven.units]
    assert ends[:5] == [("l0s0", "l1s0")] * 2 + [("l0s0", "l1s1")] * 2 + [("l0s1", "l1s0")]
    assert list(woven.coordinates("topology"))[:2] == ["topology.0", "topology.1"]
    smooth = Topology(kind="graphon", nodes=3, coefficients=4, operations=("conv3", "skip"))
    numbers = [0.5] * 8
    numbers[4 + 3] = 0.75  # the term (1, 1) of the second operation's kernel
    for (edge, operation), grade in zip(smooth.units, smooth.grades(numbers), strict=True):
        u, v = ((node + 0.5) / 4 for node in (edge.source, edge.target))
        term = math.cos(math.pi * u) * math.cos(math.pi * v)
        f = 8 * (0.75 - 0.5) * term if operation == "skip" else 0.0
        assert grade == pytest.approx(1 / (1 + math.exp(-f)))
