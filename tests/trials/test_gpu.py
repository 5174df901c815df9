"""Every kind of training on a GPU ends where the same training on the CPU ends, can be cut off there, and says when
memory ran out. Skipped where torch sees no GPU.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from test_checkpoints import PLANS, bundle_of, dense

from trials.calibrate import calibrate, fitting
from trials.fused import FusedRun
from trials.lanes import graphed
from trials.lanes.gated import DenseProgram
from trials.plan import Plan
from trials.records import Checkpoint, Ending, Outcome, Report
from trials.resuming import picked
from trials.room import free_memory
from trials.train import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
GPU = torch.device("cuda")
NUMBERS = [0, 1, 2, 3]
DRAWING = [case for case in PLANS if case.startswith("own")]  # which draw from the device's own generator


@pytest.fixture(autouse=True, scope="module")
def one_rounding() -> Iterator[None]:
    """As a worker has it (`service.planning.device_of`)."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def trained(plan: Plan, numbers: Sequence[int], device: str, **facts: Any) -> tuple[list[Any], list[Checkpoint]]:
    records = list(Trainer(plan, device).train(bundle_of(plan, numbers), **facts))
    kept = [record for record in records if isinstance(record, Checkpoint)]
    return [record for record in records if not isinstance(record, Checkpoint)], kept


def told(records: Sequence[Report | Outcome]) -> dict[str, tuple[float, dict[str, float]]]:
    """Each trial's value and where its architecture ended."""
    found: dict[str, tuple[float, dict[str, float]]] = {}
    for record in records:
        if isinstance(record, Outcome):
            assert record.ending is Ending.COMPLETE, record.error
            point = {name: float(value) for name, value in record.point.items() if isinstance(value, int | float)}
            found[record.trial_id] = (record.value or math.nan, point)
    return found


def apart(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The greatest difference of values and of coordinates, relative to those of `a` where they exceed one."""
    assert a.keys() == b.keys()
    worst = 0.0
    for trial, (value, point) in a.items():
        pairs = [(value, b[trial][0]), *((point[name], b[trial][1][name]) for name in point)]
        worst = max(worst, *(abs(x - y) / max(1.0, abs(x)) for x, y in pairs))
    return worst


@pytest.mark.parametrize("case", [case for case in PLANS if case not in DRAWING])
def test_a_gpu_trains_what_a_cpu_trains(case: str) -> None:
    plan = PLANS[case]
    on_cpu, on_gpu = (told(trained(plan, NUMBERS, device)[0]) for device in ("cpu", "cuda"))
    assert apart(on_cpu, on_gpu) < 2e-3


@pytest.mark.parametrize("case", PLANS)
def test_a_training_on_a_gpu_goes_on_from_a_checkpoint_also_on_a_cpu(case: str) -> None:
    plan = PLANS[case]
    whole, kept = trained(plan, NUMBERS, "cuda", checkpoint_every=0.0)
    middle = kept[len(kept) // 2]
    chosen = [2, 0]
    expected = {trial: found for trial, found in told(whole).items() if trial in (f"s-t{n:06d}" for n in chosen)}
    for device in ("cuda",) if case in DRAWING else ("cuda", "cpu"):
        rest, _ = trained(plan, chosen, device, start=picked(middle, chosen))
        assert apart(expected, told(rest)) < 2e-3, device


@pytest.mark.parametrize("case", [*(case for case in PLANS if case.startswith("dense")), *DRAWING])
def test_the_same_bundle_twice_is_the_same_to_the_last_bit(case: str) -> None:
    plan = PLANS[case]
    once, again = (told(trained(plan, NUMBERS, "cuda")[0]) for _ in range(2))
    if case in DRAWING:
        assert apart(once, again) < 2e-3  # layers of one's own may add up in any order
    else:
        assert once == again


# -- dense lanes on a GPU are grouped, and their step is one graph -----------------------------------------------------


@pytest.mark.parametrize("case", ["dense", "dense adamw replicates", "dense layer by layer dropout", "dense descent"])
def test_a_graph_does_what_its_steps_do(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    captured, plan = [], PLANS[case]

    def counted(*args: Any) -> graphed.Replayed:
        captured.append(graphed_before(*args))
        return captured[-1]

    graphed_before = graphed.captured
    monkeypatch.setattr(graphed, "captured", counted)
    by_graph = told(trained(plan, NUMBERS, "cuda")[0])
    assert len(captured) == 1, "laid out once, captured once"
    monkeypatch.setattr(graphed, "WARM_UPS", 10**9)
    assert told(trained(plan, NUMBERS, "cuda")[0]) == by_graph
    assert len(captured) == 1


@pytest.mark.parametrize("case", ["dense", "dense adamw replicates", "dense layer by layer dropout"])
def test_no_step_of_fixed_sizes_waits_for_the_device(case: str) -> None:
    plan = PLANS[case]
    trainer = Trainer(plan, "cuda")
    with torch.inference_mode():
        run = FusedRun(plan, bundle_of(plan, NUMBERS), trainer.rows, GPU)
        assert isinstance(run.program, DenseProgram)
        order = run._order(run.data, "order")
        run._steps = graphed.Steps(run.program, run.data, order, graphed=True)
        for step in range(5):
            run._advance(step, order, order)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls the mode a prototype
            torch.cuda.set_sync_debug_mode("error")
            try:
                for step in range(5, run.steps):
                    run._advance(step, order, order)
            finally:
                torch.cuda.set_sync_debug_mode("default")


def test_memory_that_runs_out_is_told_as_such_and_half_the_lanes_may_fit() -> None:
    wide = {f"width.{i}": {"type": "width", "low": 4096, "high": 8192} for i in range(2)}
    plan = dense(space={**wide, "lr": {"type": "float", "low": 1e-4, "high": 1e-3}})
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction(1.25 * 2**30 / total)  # a lane of 4096 x 4096 wants some 0.7 GiB
    try:
        records, _ = trained(plan, list(range(4)), "cuda")
        assert {r.ending for r in records if isinstance(r, Outcome)} == {Ending.OOM}
        lanes = 4
        while lanes > 1 and any(r.ending is Ending.OOM for r in records if isinstance(r, Outcome)):
            lanes //= 2
            records, _ = trained(plan, list(range(lanes)), "cuda")
        assert {r.ending for r in records if isinstance(r, Outcome)} == {Ending.COMPLETE}
        assert lanes < 4
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_lanes_are_as_many_as_the_gpu_has_room_for() -> None:
    plan = dense(space={f"width.{i}": {"type": "width", "low": 4096, "high": 8192} for i in range(2)})
    alone = fitting(plan, 4096, GPU)
    assert 1 < alone < 4096
    held = torch.empty(int(0.5 * free_memory(GPU)), dtype=torch.uint8, device=GPU)
    assert fitting(plan, 4096, GPU) == pytest.approx(alone / 2, rel=0.1)
    del held
    assert fitting(plan, 4096, GPU) == alone


def test_lanes_are_calibrated_on_a_gpu() -> None:
    found = calibrate(dense(), (1, 4, 16), device=GPU)
    assert found.lanes in (1, 4, 16)
