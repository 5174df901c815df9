"""Benchmarks of relaxed architectures: what is compared is the same function, and every figure is counted."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import elastic, elastic_cases, elastic_graphs, elastic_strides, elastic_tables, strides, timing
from search_spaces import Topology
from search_spaces.graph_networks import Cell, Fabric, Graphon
from search_spaces.networks import MLP, ConvNet, Residual
from search_spaces.width import gates_of

ROOT = Path(__file__).resolve().parents[1]

# -- elastic width -----------------------------------------------------------------------------------------------------

SMALL_STRIDES = elastic_strides.StrideScale(
    multiplier=1 / 64,
    bundle_multiplier=1 / 64,
    width=2,
    image=(3, 16, 16),
    batch=2,
    kinds=("shrink", "spectral"),
    strides=(2.0, 1.5),
    bundle=(2.5, 1.5, 1.2),
    bundle_kinds=("resize",),
    ways=("grouped", "unfolded"),
    repeats=1,
    bundle_repeats=1,
    least=0.0,
)
SMALL_GRAPHS = elastic_graphs.GraphScale(
    networks=(
        (Cell(cells=2, width=4), Topology(nodes=2, operations=("conv3", "skip")), (2, 8, 8)),
        (Fabric(width=4), Topology(kind="fabric", layers=2, scales=2, operations=("conv1", "skip")), (2, 8, 8)),
        (Graphon(width=4), Topology(kind="graphon", nodes=3, operations=("linear", "skip")), (5,)),
    ),
    batch=4,
    lanes=2,
    repeats=1,
    least=0.0,
)
SMALL = elastic.Scale(
    networks=(MLP(layers=1, width=6), ConvNet(layers=2, width=4), Residual(stages=1, blocks=1, width=4)),
    images=((2, 8, 8),),
    lane_image=(1, 8, 8),
    shares=(0.5,),
    lanes=(1, 2),
    repeats=2,
    lane_repeats=1,
    patience=100.0,
    strides=SMALL_STRIDES,
    graphs=SMALL_GRAPHS,
    batch=4,
    least=0.0,
)


@pytest.mark.long
def test_the_elastic_report_has_every_case_and_foretells_every_byte(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(elastic, "keep_freed_memory", lambda: True)  # it would hold for the tests that follow
    found = json.loads(json.dumps(elastic.report(SMALL, torch.device("cpu"))))
    names = ["mlp 2x8x8", "convnet 2x8x8", "residual 2x8x8"]
    for key in ("gates", "gates_memory_kept"):
        forms = [(row["case"], row["form"]) for row in found[key]]
        assert forms == [(n, f) for n in names for f in ("module", "dense" if n == names[0] else "per_lane")]
        assert all(row["ratio"] > 0 and row["met"] == (row["ratio"] <= found["gate_goal"]) for row in found[key])
    assert [row["case"] for row in found["sizes"]] == names
    for row in found["sizes"]:
        assert row["plain_parameter_bytes"] == row["plain_parameter_bytes_foretold"] < row["relaxed_parameter_bytes"]
        assert row["plain_activation_bytes"] == row["plain_activation_bytes_foretold"] < row["relaxed_activation_bytes"]
        assert row["forward_flops_ratio"] > 1
    assert {(row["case"], row["way"]) for row in found["lanes"]} == {
        *(("mlp 1x8x8", way) for way in ("dense", "per_lane")),
        *((f"{kind} 1x8x8", way) for kind in ("convnet", "residual") for way in ("per_lane", "grouped", "unfolded")),
    }
    for row in found["lanes"] + found["lanes_memory_kept"]:
        assert row["ratio_to_one"] > 0
        assert row["share_of_matmul"] > 0
    assert len(found["strides"]) == 2 * len(SMALL_STRIDES.kinds) * len(SMALL_STRIDES.strides)
    assert len(found["bundles"]) == 2 * len(SMALL_STRIDES.ways)
    assert len(found["graphs"]) == 2 * len(SMALL_GRAPHS.networks)
    text = elastic_tables.tables(found)
    assert "gated / plain, memory kept" in text
    assert "unshrunk / plain" in text
    assert "relaxed / rounded" in text


@pytest.mark.slow
def test_a_part_is_measured_alone(monkeypatch):
    monkeypatch.setattr(elastic, "keep_freed_memory", lambda: True)
    scale = dataclasses.replace(SMALL, graphs=dataclasses.replace(SMALL_GRAPHS, networks=SMALL_GRAPHS.networks[2:]))
    found = elastic.report(scale, torch.device("cpu"), ("graphs",))
    assert [row["way"] for row in found["graphs"]] == ["per_lane", "grouped"]
    assert not {"gates", "sizes", "lanes", "strides", "bundles"} & set(found)
    assert elastic_tables.tables(found).count("## ") == 1


@pytest.mark.slow
def test_a_column_of_lanes_ends_where_time_does():
    case = elastic_cases.Case(network=MLP(layers=1, width=4), shape=(3,), batch=2, device=torch.device("cpu"))
    rows = elastic.lanes(case, dataclasses.replace(SMALL, patience=0.0), peak_gflops=1.0)
    assert [row["stopped"] for row in rows] == ["time"] * 4
    assert "stopped: over 0 s a step" in "".join(elastic_tables.lane_tables(rows, 0.0))


def test_gated_and_plain_networks_that_are_compared_are_the_same_function():
    for network in SMALL.networks:
        case = elastic_cases.Case(network=network, shape=(1, 8, 8), batch=4, device=torch.device("cpu"))
        x, _ = case.rows
        whole = {name: float(n) for name, n in case.maxima.items()}
        torch.testing.assert_close(case.relaxed(whole).eval()(x), case.plain(case.maxima).eval()(x))


# -- elastic strides and graphs ----------------------------------------------------------------------------------------


def strided_cases(kinds):
    return list(elastic_strides.cases(SMALL_STRIDES, kinds, SMALL_STRIDES.multiplier, torch.device("cpu")))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shrink", "resize", "spectral"])
def test_plain_cropped_and_unshrunk_maps_are_the_same_function_at_whole_strides(kind):
    for case in strided_cases([kind]):
        x, _ = case.rows
        plain = elastic_strides.striding(case, "per_lane", [2]).predict(x)
        for room in (1, 2):
            shrunk = elastic_strides.bundle(case, "per_lane", [2.0], [room]).predict(x)
            torch.testing.assert_close(shrunk, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_flops_of_each_form_are_those_that_its_costs_foretell():
    for case in strided_cases(SMALL_STRIDES.kinds):
        for s in SMALL_STRIDES.strides:
            row = elastic_strides.forms(case, s, SMALL_STRIDES)
            foretold = {"plain": (row["nearest"], False), "cropped": (row["room"], True), "unshrunk": (1, True)}
            for name, (stride, relaxed) in foretold.items():
                expected = elastic_strides.foretold_flops(case, stride, relaxed=relaxed)
                # the matrices of a spectral stride are products themselves, which the costs leave out
                assert row[f"{name}_flops"] == pytest.approx(expected, rel=0.05 if row["kind"] == "spectral" else 1e-9)
                assert row[f"{name}_flops_ratio"] == row[f"{name}_flops"] / row["plain_flops"] >= 1
            assert (row["room"] == 1) == (row["cropped_ms"] == row["unshrunk_ms"])


def test_unshrunk_maps_of_a_resnet18_are_20_times_the_flops():
    shrinking = strided_cases(["shrink"])[1]
    wide = {name: 64 * 2 ** int(name.split(".")[1]) for name in shrinking.network.widths}
    case = dataclasses.replace(shrinking, shape=(3, 32, 32))

    def flops(stride, relaxed):
        return case.costs.training_flops({**elastic_strides.laid(case, stride), **wide}, relaxed)

    # convolutions by hand, in units of one of stage 0; the matrices of strides come on top
    stage, stem = 2 + 3 * 4 + 2 / 9, 3 / 64
    by_hand = (stem + 4 + stage * (1 + 4 + 16)) / (stem + 4 + 3 * stage / 4)
    assert by_hand < flops(1, True) / flops(2, False) < 1.02 * by_hand
    assert 20 < by_hand < 21
    assert flops(2, True) / flops(2, False) < 1.4


def test_bundles_by_stride_hold_every_lane_as_it_is_in_one_bundle():
    case = strided_cases(["resize"])[0]
    mixed, apart = (elastic_strides.bundle(case, "grouped", *lanes) for lanes in (([2.5, 1.5], [2, 1]), ([2.5], [2])))
    assert mixed.sizes[0] != apart.sizes[0]
    x, _ = case.rows
    torch.testing.assert_close(mixed.predict(x)[0], apart.predict(x)[0], rtol=1e-4, atol=1e-5)
    row = elastic_strides.bundles(case, "grouped", SMALL_STRIDES)
    each = {room: elastic_strides.foretold_flops(case, room, relaxed=True) for room in (1, 2)}
    assert row["bundled_flops_gain"] == pytest.approx(3 * each[1] / (each[2] + 2 * each[1]))
    assert row["striding_flops_gain"] >= row["bundled_flops_gain"] > 1


@pytest.mark.slow
def test_graphs_are_compared_with_networks_of_as_many_parameters():
    for network, topology, shape in SMALL_GRAPHS.networks:
        case = elastic_graphs.case_of(network, topology, shape, SMALL_GRAPHS.batch, torch.device("cpu"))
        every = dict.fromkeys([elastic_graphs.TOPOLOGY], tuple(range(len(topology.units))))
        relaxed = case.costs.parameters(case.network.laid([{**case.maxima, **every}[g] for g in case.network.gates]))
        for way, lanes in (("per_lane", 1), ("grouped", SMALL_GRAPHS.lanes)):
            row = elastic_graphs.graph(case, way, SMALL_GRAPHS)
            assert row["ungraded_parameters"] == relaxed >= row["rounded_parameters"]
            assert row["residual_parameters"] == pytest.approx(float(relaxed), rel=0.2)
            assert row["flops_over_ungraded"] == 1.0 <= row["flops_over_rounded"]
            assert row["kept"] <= row["units"] == len(topology.useful)
            step = elastic_cases.lane_step(elastic_graphs.relaxed(case, "per_lane", 1), case)
            assert row["relaxed_flops"] == lanes * elastic_cases.executed_flops(step)


def test_the_ratio_is_the_median_of_the_rounds_own():
    assert timing.ratio({"a": [1.0, 20.0, 3.0], "b": [1.0, 10.0, 1.0]}, "a", "b") == 2.0
    calls = []
    found = timing.rounds({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=2, least=0.0)
    assert {name: len(times) for name, times in found.items()} == {"a": 2, "b": 2}
    assert calls[4:] == ["b", "a", "a", "b"]


# -- kinds of stride ---------------------------------------------------------------------------------------------------

FEW = strides.Scale(starts=((1, 2, 1), (2, 1, 3)), epochs=2, retrainings=1, width=2, repeats=1, rows=64)


@pytest.mark.long
def test_a_kind_of_stride_is_measured_lane_by_lane():
    row = strides.measured(strides.load("uci/digits-images"), "resize", FEW)
    assert row.kind == "resize"
    for scores in (row.real, row.rounded, row.retrained, row.strided, row.as_dear):
        assert len(scores) == 2
        assert all(0 <= score <= 1 for score in scores)
    starts = [list(map(float, lane)) for lane in FEW.starts]
    assert all(1 <= s <= strides.HIGH for lane in row.ended for s in lane)
    assert [list(lane) for lane in row.ended] != starts
    # only a shrinking stride is jittered
    assert row.escaped == row.escaped_jittered == strides.escape_rates(starts, row.ended)[0]
    assert row.whole_kflops > 0
    assert row.forward_kflops > 0
    assert 0 < row.live_ratio < row.executed_ratio
    assert row.seconds_ratio > 0
    assert "| resize | " in strides.table([row])


@pytest.mark.slow
def test_slopes_beside_a_whole_stride_are_those_of_the_lane_there():
    task, few = strides.load("uci/digits-images"), dataclasses.replace(FEW, epochs=1)
    plan = strides.plan_of(task, "shrink", few, 0, moves=False)
    left, right = strides.slopes(plan, few)
    assert left.shape == right.shape == (2, 3)
    run = strides.run_of(dataclasses.replace(plan, realise="fractional"), few.starts)
    strides.trained(run)
    roomy = run.architecture.widths.coordinates_KP.clone()
    roomy[:, 3:] = 1.0
    run.architecture.widths.set(roomy)
    run.architecture.regate(1.0)  # maps with room for every stride
    x, y = (part.double() for part in run.data.batch(torch.arange(few.rows)))
    for lane, starts in enumerate(few.starts):
        module = run.program.module(lane).double().train()
        for g, s in enumerate(starts):
            for found, side in ((left, -strides.ASIDE), (right, strides.ASIDE))[s == 1 :]:
                gates, losses = gates_of(module), []
                for change in (side - 1e-6, side + 1e-6):  # relus make kinks nearby
                    for i, own in enumerate(starts):
                        gates[f"stride.{i}"].m = torch.tensor([own + change * (i == g)], dtype=torch.float64)
                    with torch.no_grad():
                        losses.append(float(torch.nn.functional.cross_entropy(module(x), y)))
                assert found[lane, g] == pytest.approx((losses[1] - losses[0]) / 2e-6, rel=1e-3, abs=1e-4)


def test_a_stride_has_escaped_where_it_ends_far_from_its_start():
    starts, ends = [[1.0, 2.0], [3.0, 2.0]], [[1.3, 2.25], [2.7, 1.0]]
    assert strides.escape_rates(starts, ends) == (2 / 3, 1.0)


def test_the_kind_of_stride_is_chosen_by_retraining_then_escape_then_flops():
    facts = {field.name: 0.5 for field in dataclasses.fields(strides.Row)}

    def row(kind, retrained, **own):
        dear = {"as_dear": (0.5,) * len(retrained)}
        return strides.Row(**{**facts, **dear, "kind": kind, "retrained": retrained, "live_ratio": 1.0, **own})

    good, noisy, bad = (0.9, 0.92, 0.91, 0.9), (0.93, 0.88, 0.93, 0.86), (0.8, 0.83, 0.8, 0.82)
    rows = [row("shrink", good), row("resize", noisy, live_ratio=0.5), row("spectral", bad, escaped=1.0)]
    assert strides.winner(rows) == ("resize", "live FLOPs")  # as good, as free, and cheaper
    assert strides.winner([rows[0], row("resize", noisy, escaped=0.7), rows[2]]) == ("resize", "escape rate")
    assert strides.winner([rows[0], rows[2]]) == ("shrink", "accuracy at equal FLOPs")
    dearly = row("resize", tuple(a + 0.03 for a in good), as_dear=tuple(a + 0.05 for a in good))
    assert strides.winner([row("shrink", good, as_dear=good), dearly]) == ("shrink", "accuracy at equal FLOPs")


# -- the whole program -------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_elastic_report(tmp_path):
    command = [sys.executable, "-m", "benchmarks.elastic", "--quick", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["quick"] is True
    assert {row["lanes"] for row in found["lanes"]} == set(elastic.QUICK.lanes)
    assert "## Materialised / relaxed" in done.stdout
    assert "## Graphs, a training step" in done.stdout
