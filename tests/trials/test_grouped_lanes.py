"""Grouped lanes, the form that a GPU runs, on the CPU: whatever moves them, they end where lanes at exact sizes end, go
on from each other's checkpoints, and what they have beyond their own sizes stays silent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from test_checkpoints import PLANS as ALL
from test_checkpoints import bundle_of, dense
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from search_spaces.cost import mlp_training_flops
from search_spaces.network import ACTIVATIONS
from search_spaces.networks import MLP
from trials.calibrate import _memory
from trials.fused import FusedRun
from trials.lanes import graphed, saving
from trials.lanes.dense import FUNCTION
from trials.lanes.gated import DenseProgram
from trials.noise import fold, normal, normals
from trials.plan import Plan
from trials.records import Checkpoint, Ending, Outcome, Report
from trials.resuming import picked
from trials.tasks import load
from trials.train import Trainer

NUMBERS = [0, 1, 2, 3]
CPU = torch.device("cpu")
TOLERANCE = 1e-4  # float32: sums of batched products have another order, and a move takes that further
QUICK = (
    "dense",
    "dense adamw replicates",
    "dense layer by layer dropout",
    "dense feedback",
    "dense mup schedules",
    "dense ntk",
    "dense interval bilevel",
    "dense interval hypernet",
    "dense unrolled",
    "dense reversible",
    "dense growth gradmax",
    "dense annealed nested",
)
FIXED = {
    "fixed feedback adam": dense(training={"learner": "feedback", "optimizer": "adam", "weight_decay": 0.01}),
    "fixed relu of three": dense(3, network=MLP(layers=3, activation="relu"), training={"nesterov": True}),
    "fixed tanh mup adamw": dense(
        network=MLP(layers=2, activation="tanh", parametrisation="mup"), training={"optimizer": "adamw"}
    ),
    "fixed gelu of one": dense(1, network=MLP(layers=1, activation="gelu"), training={"weight_decay": 0.1}),
    "fixed regression": dense(task=load("uci/diabetes"), metric="val_r2", mode="max"),
}
PLANS = {name: plan for name, plan in ALL.items() if name.startswith("dense")} | FIXED
CASES = [pytest.param(case, marks=() if case in (*QUICK, *FIXED) else pytest.mark.long) for case in PLANS]


def trained(plan: Plan, numbers: Sequence[int], **facts: Any) -> tuple[list[Any], list[Checkpoint]]:
    grouped = facts.pop("grouped")
    records = list(Trainer(plan, grouped=grouped).train(bundle_of(plan, numbers), **facts))
    kept = [record for record in records if isinstance(record, Checkpoint)]
    return [record for record in records if not isinstance(record, Checkpoint)], kept


def told(records: Sequence[Report | Outcome], numbers: Sequence[int] = NUMBERS, after: int = -1) -> dict[Any, Any]:
    """Every number that records say of some trials, but for what the padding executes and the clock says."""
    found: dict[Any, Any] = {}
    for record in records:
        if record.trial_id not in {f"s-t{number:06d}" for number in numbers}:
            continue
        numbers_of = {f"metric {name}": v for name, v in record.metrics.items() if name != "tape_bits"}
        numbers_of["flops"] = record.spent.flops
        if isinstance(record, Report):
            if record.step > after:
                found[record.trial_id, record.step] = {**numbers_of, **record.architecture}
        else:
            assert record.ending is Ending.COMPLETE, record.error
            point = {f"at {name}": v for name, v in record.point.items()}
            whole = {f"whole {name}": v for name, v in record.rounded.items()}
            found[record.trial_id, "end"] = {"value": record.value, **numbers_of, **point, **whole}
    return found


def assert_alike(a: dict[Any, Any], b: dict[Any, Any], tolerance: float = TOLERANCE) -> None:
    assert a.keys() == b.keys()
    for key, one in a.items():
        assert b[key] == pytest.approx(one, rel=tolerance, abs=tolerance), key


def begun(plan: Plan, numbers: Sequence[int] = NUMBERS, *, grouped: bool = True) -> FusedRun:
    run = FusedRun(plan, bundle_of(plan, numbers), Trainer(plan).rows, CPU, grouped=grouped)
    assert isinstance(run.program, DenseProgram)
    assert run.program.grouped is grouped
    return run


def silent(program: DenseProgram) -> list[Tensor]:
    """All numbers of weights, and of what an optimiser adds up, that are no lane's own."""
    own_T = program.functions().own_T
    assert own_T is not None
    sums = [buffer_T for name, buffer_T in program.stands()[1].items() if not name.startswith("power")]
    return [buffer_T[~own_T] for buffer_T in (program.stands()[0], *sums)]


# -- the same trainings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_grouped_lanes_train_as_lanes_at_exact_sizes_do(case: str) -> None:
    plan = PLANS[case]
    exact, kept = trained(plan, NUMBERS, grouped=False, checkpoint_every=0.0)
    together, kept_together = trained(plan, NUMBERS, grouped=True, checkpoint_every=0.0)
    assert_alike(told(exact), told(together))
    place, chosen = len(kept) // 2, [2, 0]
    for start, grouped in ((kept, True), (kept_together, True), (kept_together, False)):
        middle = start[place]
        rest, _ = trained(plan, chosen, grouped=grouped, start=picked(middle, chosen))
        assert_alike(told(exact, chosen, after=middle.step), told(rest, chosen, after=middle.step))


@pytest.mark.parametrize("case", CASES)
def test_checkpoints_are_of_the_same_numbers_in_either_form(case: str) -> None:
    plan = PLANS[case]
    (_, exact), (_, together) = (
        trained(plan, NUMBERS, grouped=grouped, checkpoint_every=0.0) for grouped in (False, True)
    )
    for a, b in zip(exact, together, strict=True):
        assert {name: value.shape for name, value in a.tensors.items()} == {
            name: value.shape for name, value in b.tensors.items()
        }
        torch.testing.assert_close(a.tensors["program.weights"], b.tensors["program.weights"], rtol=1e-3, atol=1e-3)
        assert torch.equal(a.tensors["program.sizes"], b.tensors["program.sizes"])


def test_in_double_precision_they_differ_by_nothing_but_rounding() -> None:
    for case in ("dense adamw replicates", "dense layer by layer dropout", "dense ntk", "dense feedback"):
        plan = PLANS[case]
        exact, together = (doubled(plan, grouped) for grouped in (False, True))
        for k, (a, b) in enumerate(zip(exact, together, strict=True)):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=f"{case}, matrix {k}")


def doubled(plan: Plan, grouped: bool) -> list[Tensor]:
    """All lanes' weights after some steps in double precision."""
    from trials.fused import lane_rule
    from trials.lanes.making import make

    bundle = bundle_of(plan, NUMBERS)
    rule, hyper = lane_rule(plan, plan.training, bundle.trials)
    points = [plan.rounded(trial.point) for trial in bundle.trials]
    who = [(0, number, 0) for number in NUMBERS]
    batch = plan.training.batch_size
    program, _ = make(plan, points, who, rule, hyper, batch, CPU, torch.float64, grouped=grouped)
    assert isinstance(program, DenseProgram)
    rows = Trainer(plan).rows("train")
    for step in range(12):
        x, y_BO = rows.batch(torch.arange(batch) + step)
        program.step(x.double(), y_BO.double())
    return [matrix for lane in range(len(NUMBERS)) for matrix in program.dense.matrices(lane)]


def test_the_same_bundle_twice_is_the_same_to_the_last_bit() -> None:
    for case in ("dense", "dense interval bilevel"):
        once, again = (told(trained(PLANS[case], NUMBERS, grouped=True)[0]) for _ in range(2))
        assert once == again


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_device_says_which_form_is_made(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    run = FusedRun(dense(), bundle_of(dense(), [0]), Trainer(dense(), device).rows, torch.device(device))
    assert isinstance(run.program, DenseProgram)
    assert run.program.grouped is (device == "cuda")


# -- what there is room for beyond a lane's own ------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_silent_units_stay_silent(case: str) -> None:
    plan = PLANS[case]
    run = begun(plan)
    assert isinstance(run.program, DenseProgram)
    list(run.records())
    for numbers in silent(run.program):
        assert not numbers.any()
    weights_T = run.program.stands()[0]
    assert weights_T.any()


def test_every_activation_is_silent_at_nothing() -> None:
    assert set(FUNCTION) == set(ACTIVATIONS)
    for function in FUNCTION.values():
        assert float(function(torch.zeros(()))) == 0.0


def test_lanes_keep_their_own_sizes() -> None:
    plan = dense(space={"width.0": {"type": "width", "low": 2, "high": 24}})
    exact, run = begun(plan, grouped=False), begun(plan)
    program = run.program
    assert isinstance(program, DenseProgram)
    assert program.sizes == exact.program.sizes
    assert len(set(program.sizes)) > 1
    room = tuple(max(layer) for layer in zip(*program.sizes, strict=True))
    assert program.executed == [room] * len(NUMBERS)
    for k, sizes in enumerate(program.dense.sizes):
        widths = [4, *sizes, 3]
        assert [tuple(m.shape) for m in program.dense.matrices(k)] == [(b, 1 + a) for a, b in pairwise(widths)]
        own, other = program.module(k), exact.program.module(k)
        for (name, a), (_, b) in zip(own.named_parameters(), other.named_parameters(), strict=True):
            assert a.shape == b.shape, name
            torch.testing.assert_close(a, b)


def test_flops_are_a_lanes_own_and_what_is_executed_is_the_padding_too() -> None:
    plan = dense()
    exact, together = (trained(plan, NUMBERS, grouped=grouped)[0] for grouped in (False, True))
    run = begun(plan)
    assert isinstance(run.program, DenseProgram)
    room = run.program.dense.room
    step = plan.training.batch_size * mlp_training_flops(4, room, 3)
    scored = 3 * len(run.scored.y_R) * run._forward_K[0]
    for a, b in zip(exact, together, strict=True):
        assert a.spent.flops == b.spent.flops
        assert a.spent.executed_flops <= b.spent.executed_flops
        if isinstance(b, Outcome):
            assert b.spent.executed_flops == pytest.approx(run.steps * step + scored)


def test_a_lane_without_finite_numbers_leaves_the_others_alone() -> None:
    """A unit that speaks not a number says so to silent ones as well, but within its lane."""
    plan = dense(training={"momentum": 0.0})
    bundle = bundle_of(plan, NUMBERS)
    bundle.trials[1].point["lr"] = 1e30
    records = [r for r in Trainer(plan, grouped=True).train(bundle) if not isinstance(r, Checkpoint)]
    endings = [record.ending for record in records if isinstance(record, Outcome)]
    assert endings == [Ending.COMPLETE, Ending.NAN, Ending.COMPLETE, Ending.COMPLETE]
    sound, _ = trained(plan, NUMBERS, grouped=True)
    others = [0, 2, 3]
    assert told([r for r in records if r.trial_id != "s-t000001"], others) == told(sound, others)


# -- laid out anew -----------------------------------------------------------------------------------------------------


def test_lanes_that_have_room_stay_in_their_buffers() -> None:
    network = MLP(layers=2, membership="interval", activation="tanh")
    plan = dense(network=network, method=PLANS["dense bilevel"].method, training={"optimizer": "adam"})
    run, twin = begun(plan), begun(plan, grouped=False)
    (grouped, exact) = (run.program, twin.program)
    assert isinstance(grouped, DenseProgram)
    assert isinstance(exact, DenseProgram)
    x, y_BO = run.data.batch(torch.arange(run.batch))
    for program in (grouped, exact):
        for _ in range(3):
            program.step(x, y_BO)
    buffers, before = grouped.buffers, list(grouped.dense.sizes)
    smaller = [(8, 16), (16, 8), (16, 24), (24, 16)]
    wider = [(8, 40), (16, 8), (16, 24), (24, 16)]
    for sizes, same in ((smaller, True), (before, True), (wider, False), ([(4, 4)] * 4, False)):
        for program in (grouped, exact):
            program.dense.resize(sizes)
        assert (grouped.buffers is buffers) is same
        buffers = grouped.buffers
        assert grouped.sizes == sizes
        for numbers in silent(grouped):
            assert not numbers.any()
        for name, value in saving.saved(exact).items():
            torch.testing.assert_close(saving.saved(grouped)[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_weights_drawn_together_are_those_drawn_one_by_one() -> None:
    keys = [fold(3, "init", number, 0, 1) for number in range(5)]
    together = normals(keys, 7, 9)
    for key, drawn in zip(keys, together, strict=True):
        torch.testing.assert_close(drawn, normal(key, 7, 9), rtol=1e-6, atol=0)


# -- steps -------------------------------------------------------------------------------------------------------------


class Replays:
    """A graph as far as anybody can tell on a CPU: it does again what was captured."""

    def __init__(self, work: Any) -> None:
        self.work, self.times = work, 0

    def replay(self) -> None:
        self.times += 1
        self.work()


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Replays]:
    """The graphs that were captured, on a CPU that takes itself for a GPU in that alone."""
    found: list[Replays] = []

    def capture(work: Any, device: torch.device) -> Replays:
        found.append(Replays(work))
        return found[-1]

    made = graphed.Steps.__init__
    monkeypatch.setattr(graphed, "captured", capture)
    monkeypatch.setattr(graphed, "aside", lambda work, device: work())
    monkeypatch.setattr(
        graphed.Steps, "__init__", lambda self, *args, **facts: made(self, *args, **{**facts, "graphed": True})
    )
    return found


@pytest.mark.parametrize("case", ["dense", "dense layer by layer dropout", "dense mup schedules", "dense descent"])
def test_a_bundle_that_is_laid_out_once_is_captured_once(case: str, captured: list[Replays]) -> None:
    """Rates, grades and noise change in place."""
    plan = PLANS[case]
    by_graph = told(trained(plan, NUMBERS, grouped=True)[0])
    assert len(captured) == 1
    assert captured[0].times == begun(plan).steps - graphed.WARM_UPS
    assert_alike(told(trained(plan, NUMBERS, grouped=False)[0]), by_graph)


class Touched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Where everything lies that operations read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, Tensor)]
        self.places |= {tensor.untyped_storage().data_ptr() for tensor in tensors}
        return found


@pytest.mark.parametrize("case", [case for case in QUICK if "interval" not in case and "growth" not in case])
def test_a_step_allocates_nothing_and_works_where_it_did_before(case: str) -> None:
    """Else a graph would go on with rates, grades or weights that are no longer those of the lanes."""
    run = begun(PLANS[case])
    x, y_BO = run.data.batch(torch.arange(run.batch))

    def touched() -> set[int]:
        found = Touched()
        with torch.no_grad(), found:
            run.program.step(x, y_BO)
        return found.places

    places = touched()
    assert touched() == places
    list(run.records())
    assert touched() == places


def test_lanes_in_other_buffers_are_captured_anew(captured: list[Replays]) -> None:
    plan = dense()
    run = begun(plan)
    assert isinstance(run.program, DenseProgram)
    order = run._order(run.data, "order")
    steps = graphed.Steps(run.program, run.data, order, graphed=True)
    for step in range(4):
        steps.train(step)
    run.program.dense.resize([(40, 40)] * 4)
    for step in range(4, 9):
        steps.train(step)
    assert [graph.times for graph in captured] == [2, 3]


def test_steps_train_on_the_batches_of_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a window of steps that somebody else took, and where a training goes on."""
    run = begun(dense())
    assert isinstance(run.program, DenseProgram)
    seen: list[Tensor] = []
    monkeypatch.setattr(DenseProgram, "step", lambda self, x, y_BO: seen.append(x.clone()))
    order = run._order(run.data, "order")
    steps = graphed.Steps(run.program, run.data, order, graphed=False)
    for step in (0, 1, 5, 6, 3):
        steps.train(step)
        assert torch.equal(seen[-1], run.data.batch(order[step])[0])


@pytest.mark.parametrize("case", ["dense", "dense adamw replicates", "dense layer by layer dropout"])
def test_nothing_in_the_loop_waits_for_the_device(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two evaluations nothing comes back from where lanes train, nor goes there after the first step."""
    run = begun(PLANS[case])
    assert isinstance(run.program, DenseProgram)
    order = run._order(run.data, "order")
    with torch.inference_mode():
        run._steps = graphed.Steps(run.program, run.data, order, graphed=False)
        run._advance(0, order, order)

        def waits(name: str) -> Any:
            def refuse(*_: Any, **__: Any) -> None:
                raise AssertionError(f"{name} waits for the device")

            return refuse

        for name in ("item", "tolist", "cpu", "nonzero", "numpy", "__bool__", "__float__", "__int__"):
            monkeypatch.setattr(Tensor, name, waits(name))
        for name in ("equal", "nonzero", "tensor"):
            monkeypatch.setattr(torch, name, waits(name))
        for step in range(1, run.steps):
            run._advance(step, order, order)


def test_evaluation_brings_everything_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(dense())
    ways, predictions = list[torch.Size](), list[int]()
    back, predict = Tensor.cpu, DenseProgram.predict

    def brought(self: Tensor) -> Tensor:
        ways.append(self.shape)
        return back(self)

    def predicted(self: DenseProgram, x: Tensor) -> Tensor:
        predictions.append(len(x))
        return predict(self, x)

    monkeypatch.setattr(Tensor, "cpu", brought)
    monkeypatch.setattr(DenseProgram, "predict", predicted)
    with torch.inference_mode():
        metrics = run._measured(None)
    assert len(ways) == 1
    assert len(predictions) == 1
    assert all(values_K.shape == (len(NUMBERS),) and math.isfinite(values_K.sum()) for values_K in metrics.values())


def test_predicting_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    program = begun(dense()).program
    x = torch.randn(9, 5)
    whole = program.predict(x)
    monkeypatch.setattr("trials.lanes.dense.AT_ONCE", 2 * 9 * max(program.executed[0]))
    torch.testing.assert_close(program.predict(x), whole)


# -- how many fit ------------------------------------------------------------------------------------------------------


def test_a_lane_on_a_gpu_wants_all_that_is_kept_of_a_weight() -> None:
    sgd, adam = dense(), dense(training={"optimizer": "adam"})
    needed = {name: _memory(plan, [{}], "cuda") for name, plan in (("sgd", sgd), ("adam", adam))}
    assert needed["adam"] > needed["sgd"] > _memory(sgd, [{}]) == _memory(adam, [{}])
    for name, plan in (("sgd", sgd), ("adam", adam)):
        run = begun(plan, [3])
        assert isinstance(run.program, DenseProgram)
        lanes, rule = run.program.dense, run.program.dense.optimiser
        kept = [lanes.weights_T, lanes.gradients_T, rule._work, *rule.state.values(), *rule.hyper.values()]
        assert sum(buffer_T.nbytes for buffer_T in kept) <= needed[name]
