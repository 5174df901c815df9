"""The benchmarks do the work they claim: rivals train what we train, padded lanes equal exact ones, rates add up."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import (
    elastic,
    elastic_cases,
    elastic_graphs,
    elastic_strides,
    elastic_tables,
    grouped,
    job,
    rates,
    strides,
    throughput,
    timing,
)
from benchmarks.machine import Others, _busy_seconds, job_shapes_gflops
from benchmarks.rivals import Inputs, Trained, error_rate, evaluation_steps, numpy_pair, torch_plain
from search_spaces import Topology
from search_spaces.graph_networks import Cell, Fabric, Graphon
from search_spaces.networks import MLP, ConvNet, Residual
from search_spaces.width import gates_of
from trials.records import Bundle, Outcome, Trial
from trials.train import Trainer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def inputs():
    return Inputs(arrays=job.inputs(6, epochs=1))


# -- the fixed job -----------------------------------------------------------------------------------------------------


def test_the_list_is_fixed():
    digest = hashlib.sha256(json.dumps(job.points()).encode()).hexdigest()[:16]
    assert digest == "ffa2b17e0dc2b6b6"


def test_points_lie_in_the_space_and_begin_again_beyond_the_list():
    space = job.plan().space
    points = job.points()
    assert len(points) == job.COUNT == 256
    assert not [fault for point in points for fault in space.faults(point)]
    assert len({json.dumps(point) for point in points}) == 256
    assert job.points(258)[256:] == points[:2]
    # widths are log-uniform: a fifth of the range's logarithm on either side of its ends holds a fifth of the points
    place = np.log([point["width.0"] / 4 for point in points]) / np.log(32)
    assert abs((place < 0.2).mean() - 0.2) < 0.1
    assert abs((place > 0.8).mean() - 0.2) < 0.1


def test_flops_are_those_that_the_trainer_counts():
    point = job.points(1)[0]
    trial = Trial(search_id="s", number=0, point=point)
    records = Trainer(job.plan(epochs=1)).train(Bundle(search_id="s", id="b", generation=0, trials=(trial,)))
    (outcome,) = (record for record in records if isinstance(record, Outcome))
    assert job.flops(point, epochs=1) == outcome.spent.flops


# -- rivals ------------------------------------------------------------------------------------------------------------


def test_numpy_gradient_is_autograd_s():
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape).astype(np.float32) * 0.3 for shape in ((7, 5), (6, 7), (4, 6))]
    x, y = rng.standard_normal((16, 5)).astype(np.float32), rng.integers(0, 4, 16)
    network = numpy_pair.Network(weights, 16)
    for matrix in network.weights:
        matrix[:, 0] = rng.standard_normal(len(matrix)) * 0.1
    network.gradient(numpy_pair.with_ones(x), np.eye(4, dtype=np.float32)[y] / np.float32(16))
    model = torch_plain.model_of([torch.from_numpy(w) for w in weights])
    linears = [layer for layer in model if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        for layer, matrix in zip(linears, network.weights, strict=True):
            layer.bias.copy_(torch.from_numpy(matrix[:, 0].copy()))
    torch.nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
    for layer, gradient in zip(linears, network.gradients, strict=True):
        np.testing.assert_allclose(gradient[:, 1:], layer.weight.grad, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(gradient[:, 0], layer.bias.grad, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(network.predict(numpy_pair.with_ones(x)), model(torch.from_numpy(x)).detach(), atol=1e-5)


def test_numpy_torch_and_lanes_train_the_same(inputs):
    shared, data = numpy_pair.prepared(inputs), torch_plain.Data.of(inputs)
    trials = tuple(Trial(search_id="s", number=n, point=point) for n, point in enumerate(job.points(6)))
    records = Trainer(job.plan(epochs=1)).train(Bundle(search_id="s", id="b", generation=0, trials=trials))
    ours = {r.number: r.metrics["val_error"] for r in records if isinstance(r, Outcome)}
    group = grouped.Group(grouped.Data("cpu", epochs=1), list(enumerate(job.points(6))), (0, 0), grouped=False)
    grouped.Program([group], graphed=False).train()
    for number in range(6):
        error, network = numpy_pair.train(shared, number)
        torch_error, model = torch_plain.train(data, number)
        linears = [layer for layer in model if isinstance(layer, torch.nn.Linear)]
        lanes = group.lanes.matrices(number)
        for matrix, layer, lane, initial in zip(network.weights, linears, lanes, inputs.weights(number), strict=True):
            np.testing.assert_allclose(matrix[:, 1:], layer.weight.detach(), rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(matrix, lane, rtol=1e-3, atol=1e-4)
            assert np.abs(matrix[:, 1:] - initial).max() > 1e-3  # it did train
        assert abs(error - torch_error) <= 2 / len(inputs["selection_y"])
        assert abs(error - ours[number]) <= 2 / len(inputs["selection_y"])


def test_evaluations_are_even_and_include_the_last_step():
    assert evaluation_steps(337) == {85, 169, 253, 337}
    assert max(evaluation_steps(2)) == 2


def test_error_rate():
    logits = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [5.0, 1.0]])
    assert error_rate(logits, np.array([1, 0, 0, 0])) == 0.25
    assert math.isnan(error_rate(np.array([[np.nan, 1.0]]), np.array([0])))


def test_a_system_replays_in_processes_of_its_own(tmp_path, inputs):
    job.prepare(tmp_path / "inputs.npz", 6, epochs=1)
    found, seconds, memory = throughput.alone(
        "numpy_pair", {"path": str(tmp_path / "inputs.npz"), "count": 6, "workers": 2}
    )
    trained = {trial["number"]: trial for trial in found}
    assert sorted(trained) == list(range(6))
    shared = numpy_pair.prepared(inputs)
    for number, trial in trained.items():
        assert trial["val_error"] == numpy_pair.train(shared, number)[0]
        assert 0 < trial["ended"] - trial["started"] < seconds
    assert memory.largest_mb is None or 10 < memory.largest_mb < 1000


def test_a_measurement_that_fails_says_why(tmp_path):
    with pytest.raises(throughput.Failed, match="numpy_pair: ended with exit code 1"):
        throughput.alone("numpy_pair", {"path": str(tmp_path / "none.npz"), "count": 1, "workers": 1})


# -- rates -------------------------------------------------------------------------------------------------------------


def trained(number, started, ended, worker="a", error=0.0):
    return Trained(number=number, val_error=error, started=started, ended=ended, worker=worker)


def test_the_steady_rate_counts_trials_while_all_workers_work():
    # a: 0-2, 2-4, 4-6; b begins at 1 and ends at 5: between 1 and 5 a does 2 trials' worth and b its two
    trials = [trained(0, 0, 2), trained(1, 2, 4), trained(2, 4, 6), trained(3, 1, 3, "b"), trained(4, 3, 5, "b")]
    assert rates.steady(trials) == pytest.approx(4 / 4)
    assert rates.whole(trials) == pytest.approx(5 / 6)
    # pauses between trials count
    assert rates.steady([trained(0, 0, 1), trained(1, 3, 4)]) == pytest.approx(2 / 4)
    # a bundle's trials share its time
    assert rates.steady([trained(n, 0, 2) for n in range(8)]) == pytest.approx(4.0)
    # workers that never overlap: the whole
    assert rates.steady([trained(0, 0, 1), trained(1, 2, 4, "b")]) == pytest.approx(2 / 4)


def test_agreement_compares_common_trials():
    ours = [trained(n, 0, 1, error=e) for n, e in enumerate([0.1, 0.2, 0.3, math.nan, 0.9])]
    theirs = [trained(n, 0, 1, error=e) for n, e in enumerate([0.1, 0.25, 0.5, 0.4])]
    found = rates.agreement(ours, theirs)
    assert found["trials"] == 4
    assert found["not_finite"] == [1, 0]
    assert found["median_abs_difference"] == pytest.approx(0.05)
    assert found["equal_share"] == pytest.approx(1 / 3)
    assert found["rank_correlation"] == pytest.approx(1.0)


def test_rank_correlation_is_scipy_s():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 10, 60) / 10
    b = a + rng.integers(-3, 4, 60) / 10
    assert rates.rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert rates.rank_correlation(np.ones(4), np.arange(4.0)) is None


def test_json_has_no_numbers_that_json_lacks():
    assert throughput.finite({"a": [1.0, math.nan], "b": {"c": math.inf}}) == {"a": [1.0, None], "b": {"c": None}}


def test_the_rate_of_the_job_s_shapes_is_a_rate():
    torch.set_num_threads(1)
    assert 0.01 < job_shapes_gflops([(64, 20, 30, 10)], 64, repeats=1) < 10_000


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux counts busy seconds there")
def test_our_work_is_not_others():
    spin = "import time\nwhile time.process_time() < 0.5: pass"
    busy, began = _busy_seconds(), time.perf_counter()
    with Others() as others:
        subprocess.run([sys.executable, "-c", spin], check=True)
    assert others.cores is not None
    everyone = _busy_seconds() - busy
    assert others.cores * (time.perf_counter() - began) < everyone - 0.3  # half a second of it was ours


# -- lanes padded to shape classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "classes", "expected"),
    [
        ((4, 5), "powers", (4, 8)),
        ((1, 128), "powers", (4, 128)),
        ((64, 65), "powers", (64, 128)),
        ((4, 70), "one", (128, 128)),
    ],
)
def test_shape_classes(sizes, classes, expected):
    assert grouped.padded(sizes, classes) == expected


@pytest.mark.parametrize("classes", grouped.CLASSES)
def test_padded_groups_train_as_exact_lanes_do(classes):
    torch.set_num_threads(1)
    data, points = grouped.Data("cpu", epochs=2), job.points(10)
    exact = grouped.Group(data, list(enumerate(points)), (0, 0), grouped=False)
    expected = grouped.Program([exact], graphed=False).train()
    groups = grouped.groups_of(data, len(points), classes)
    assert len(groups) == len({grouped.padded(grouped.widths(point), classes) for point in points})
    errors = grouped.Program(groups, graphed=False).train()
    for group in groups:
        for lane, number in enumerate(group.numbers):
            for padded, own in zip(group.lanes.matrices(lane), exact.lanes.matrices(number), strict=True):
                rows, columns = own.shape
                torch.testing.assert_close(padded[:rows, :columns], own, rtol=1e-3, atol=1e-4)
                assert not padded[rows:].any()
                assert not padded[:, columns:].any()
            assert errors[number] == pytest.approx(expected[number], abs=2 / len(data.selection.y_R))


def test_a_program_rewinds():
    data = grouped.Data("cpu", epochs=1)
    program = grouped.Program(grouped.groups_of(data, 3, "powers"), graphed=False)
    first = program.train()
    weights = [group.lanes.weights_T.clone() for group in program.groups]
    assert program.train() == first
    for group, weights_T in zip(program.groups, weights, strict=True):
        assert torch.equal(group.lanes.weights_T, weights_T)
        assert not torch.equal(group._begin_T, weights_T)


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


def test_a_part_is_measured_alone(monkeypatch):
    monkeypatch.setattr(elastic, "keep_freed_memory", lambda: True)
    scale = dataclasses.replace(SMALL, graphs=dataclasses.replace(SMALL_GRAPHS, networks=SMALL_GRAPHS.networks[2:]))
    found = elastic.report(scale, torch.device("cpu"), ("graphs",))
    assert [row["way"] for row in found["graphs"]] == ["per_lane", "grouped"]
    assert not {"gates", "sizes", "lanes", "strides", "bundles"} & set(found)
    assert elastic_tables.tables(found).count("## ") == 1


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


@pytest.mark.parametrize("kind", ["shrink", "resize", "spectral"])
def test_plain_cropped_and_unshrunk_maps_are_the_same_function_at_whole_strides(kind):
    for case in strided_cases([kind]):
        x, _ = case.rows
        plain = elastic_strides.striding(case, "per_lane", [2]).predict(x)
        for room in (1, 2):
            shrunk = elastic_strides.bundle(case, "per_lane", [2.0], [room]).predict(x)
            torch.testing.assert_close(shrunk, plain, rtol=1e-3, atol=1e-4)


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


def test_a_kind_of_stride_is_measured_lane_by_lane():
    row = strides.measured(strides.load("uci/digits-images"), "resize", FEW)
    assert row.kind == "resize"
    for scores in (row.real, row.rounded, row.retrained, row.strided, row.as_it_was):
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
        return strides.Row(**{**facts, "kind": kind, "retrained": retrained, "live_ratio": 1.0, **own})

    good, noisy, bad = (0.9, 0.92, 0.91, 0.9), (0.93, 0.88, 0.93, 0.86), (0.8, 0.83, 0.8, 0.82)
    rows = [row("shrink", good), row("resize", noisy, live_ratio=0.5), row("spectral", bad, escaped=1.0)]
    assert strides.winner(rows) == ("resize", "live FLOPs")  # as good, as free, and cheaper
    assert strides.winner([rows[0], row("resize", noisy, escaped=0.7), rows[2]]) == ("resize", "escape rate")
    assert strides.winner([rows[0], rows[2]]) == ("shrink", "retrained accuracy")


# -- whole programs ----------------------------------------------------------------------------------------------------


def ran(*arguments):
    done = subprocess.run([sys.executable, *arguments], cwd="/", capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_unknown_device_is_a_usage_error():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--device", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "it sees none" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_gpu_report_on_a_cpu():
    found = ran(str(ROOT / "benchmarks/gpu.py"), "--quick", "--json", "--device", "cpu", "--processes", "2")
    assert found["graphs"] is False
    assert found["agreement_with_cpu"]["median_abs_difference"] < 0.01
    assert set(found["ratios"]) == {"single_torch", "single_eager", "cpu_processes"}
    assert all(ratio > 0 for ratio in found["ratios"].values())


@pytest.mark.long
def test_throughput_report():
    found = ran(str(ROOT / "benchmarks/throughput.py"), "--quick", "--json")
    assert set(found["systems"]) == set(throughput.SYSTEMS)
    for name, figures in found["systems"].items():
        assert figures["trials"] == [throughput.QUICK.systems[name][0]]
        assert figures["agreement_with_numpy_pair"]["trials"] == figures["points"]
        assert figures["agreement_with_numpy_pair"]["median_abs_difference"] < 0.01
        assert figures["agreement_with_numpy_pair"]["rank_correlation"] > 0.9
    assert set(found["orchestration"]) == set(throughput.FULL.empty)
    assert set(found["lanes"]["lanes"]) == {"1", "4", "8", "16", "64"}
    assert found["systems"]["ray_optuna"]["ratio_to_ray_optuna"] == 1.0
    assert all(isinstance(goal["met"], bool) for goal in found["goals"].values())
    assert "goal" in throughput.table(found)


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
