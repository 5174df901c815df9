"""The benchmarks do the work they claim: rivals train what we train, rates add up."""

from __future__ import annotations

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
    job,
    rates,
    throughput,
)
from benchmarks.machine import Others, _busy_seconds, job_shapes_gflops
from benchmarks.rivals import Inputs, Trained, error_rate, evaluation_steps, numpy_pair, torch_plain
from trials.fused import FusedRun
from trials.lanes.gated import DenseProgram
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
    bundle = Bundle(search_id="s", id="b", generation=0, trials=trials)
    run = FusedRun(job.plan(epochs=1), bundle, Trainer(job.plan(epochs=1)).rows, torch.device("cpu"))
    list(run.records())
    assert isinstance(run.program, DenseProgram)
    for number in range(6):
        error, network = numpy_pair.train(shared, number)
        torch_error, model = torch_plain.train(data, number)
        linears = [layer for layer in model if isinstance(layer, torch.nn.Linear)]
        lanes = run.program.dense.matrices(number)
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


# -- whole programs ----------------------------------------------------------------------------------------------------


def ran(*arguments):
    done = subprocess.run([sys.executable, *arguments], cwd="/", capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
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
    assert set(found["ratios"]) == {"single_torch", "single_lane", "cpu_processes"}
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
