"""Training a bundle: the same trial in any company, equal to a plain loop in torch; its cost, its limits, its ends.

Legend of shape suffixes: B batch, I inputs, R rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, log_loss, r2_score
from torch.nn import functional

from search_spaces import Point, Space
from search_spaces.mlp import plain_mlp
from search_spaces.networks import MLP, Residual
from trials.hypergradients import Method
from trials.ledger import epochs, most_flops
from trials.noise import data_order, fold, normal
from trials.plan import Plan
from trials.records import Bundle, Ending, Outcome, Report, Spent, Trial
from trials.tasks import Task, load
from trials.train import Trainer
from trials.training import WAYS, Training

task = cache(load)
METRIC = {"classification": "val_loss", "regression": "val_mse"}
ARMS: dict[str, dict[str, Any]] = {
    "black box": {},
    "fractional": {"realise": "fractional"},
    "descent": {"method": Method(kind="descent", warmup=3, every=2)},
    "bilevel": {"method": Method(kind="bilevel", warmup=3, every=2)},
    "bounded": {"method": Method(kind="bilevel", warmup=0, every=3), "bounds": {"parameters": 120.0}},
    "interval": {
        "method": Method(kind="descent", warmup=0, every=1, lr=0.3),
        "network": MLP(layers=2, membership="interval"),
    },
}


def plan_of(name: str = "uci/iris", **changes: Any) -> Plan:
    moved = {"moved_by": "gradient"} if changes.get("method", Method()).kind != "none" else {}
    width = {"type": "width", "low": 1, "high": 24, **moved}
    space = {
        "width.0": width,
        "width.1": width,
        "lr": {"type": "float", "low": 0.01, "high": 0.3, "log": True},
        "momentum": {"type": "float", "low": 0.0, "high": 0.9},
    }
    facts: dict[str, Any] = {
        "space": Space.from_dict(space),
        "training": Training(epochs=5, batch_size=16),
        "task": task(name),
        "network": MLP(layers=2),
        "metric": METRIC[task(name).kind],
        "seed": 11,
    }
    return Plan(**{**facts, **changes})


def points(plan: Plan, count: int, seed: int = 0) -> list[Point]:
    rng = np.random.default_rng(seed)
    return [plan.space.sample(rng) for _ in range(count)]


def bundle(trials: Sequence[tuple[int, Point]], **facts: Any) -> Bundle:
    made = tuple(Trial(search_id="s", number=number, point=point) for number, point in trials)
    return Bundle(search_id="s", id="b", generation=0, trials=made, **facts)


def train(plan: Plan, trials: Sequence[tuple[int, Point]], **facts: Any) -> dict[int, Outcome]:
    records = Trainer(plan).train(bundle(trials, **facts))
    return {record.number: record for record in records if isinstance(record, Outcome)}


def result(outcome: Outcome) -> tuple[Any, ...]:
    """All that must not depend on a trial's company."""
    spent = outcome.spent.flops, outcome.spent.executed_flops
    return outcome.ending, outcome.value, outcome.metrics, outcome.point, outcome.rounded, outcome.step, spent


# -- a trial and its company -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", list(ARMS))
@pytest.mark.parametrize(("name", "seeds"), [("uci/iris", 1), ("uci/diabetes", 2), ("uci/digits", 1)])
def test_a_trial_is_bitwise_the_same_in_any_bundle_and_order(arm: str, name: str, seeds: int) -> None:
    plan = plan_of(name, seeds=seeds, **ARMS[arm])
    plan = replace(plan, training=replace(plan.training, epochs=1 if name == "uci/digits" else 4))
    numbered = list(enumerate(points(plan, 5)))
    together = {number: result(o) for number, o in train(plan, numbered).items()}
    assert all(facts[0] is Ending.COMPLETE for facts in together.values())
    for company in ([0], [3], [4, 3, 2, 1, 0], [2, 4], [1, 3, 0]):
        for number, outcome in train(plan, [numbered[i] for i in company]).items():
            assert result(outcome) == together[number], (company, number)


def test_a_trial_depends_on_the_searchs_seed_and_on_its_own_number() -> None:
    plan = plan_of()
    (point,) = points(plan, 1)
    found = {train(p, [(number, point)])[number].value for p in (plan, replace(plan, seed=12)) for number in (0, 1)}
    assert len(found) == 4


@pytest.mark.parametrize("poison", [1e30, 1e4])
@pytest.mark.parametrize("arm", ["black box", "descent"])
def test_a_lane_that_diverges_ends_as_nan_and_leaves_the_others_bitwise_alone(arm: str, poison: float) -> None:
    plan = plan_of("uci/diabetes", **ARMS[arm])
    numbered = list(enumerate(points(plan, 4)))
    sound = train(plan, numbered)
    numbered[2] = (2, {**numbered[2][1], "lr": poison})
    poisoned = train(plan, numbered)
    assert poisoned[2].ending is Ending.NAN
    assert poisoned[2].value is None
    assert math.isnan(poisoned[2].metrics["val_loss"])
    for number in (0, 1, 3):
        assert result(poisoned[number]) == result(sound[number])


def test_one_replicate_that_diverges_takes_its_trial_along() -> None:
    """A mean over what is left would flatter it. At this rate some initialisations survive and others do not."""
    plan = plan_of("uci/diabetes")
    plan = replace(plan, training=replace(plan.training, epochs=2), seeds=3)
    rates = np.geomspace(0.3, 3.0, 40)
    numbered = [(i, {"width.0": 20.0, "width.1": 20.0, "lr": lr, "momentum": 0.0}) for i, lr in enumerate(rates)]
    alone = train(replace(plan, seeds=1), numbered)
    three = train(plan, numbered)
    finite = [sum(math.isfinite(o.metrics["val_loss"]) for o in outcomes.values()) for outcomes in (alone, three)]
    assert 0 < finite[1] < finite[0] < 40
    assert all((o.ending is Ending.NAN) == (not math.isfinite(o.metrics["val_mse"])) for o in three.values())


# -- an independent truth ----------------------------------------------------------------------------------------------


def by_hand(plan: Plan, number: int, replicate: int, point: Point) -> dict[str, float]:
    """The same training by torch's own modules, optimiser and losses, one row order, one network."""
    assert plan.task is not None
    data, training = plan.task.rows("train", "outer"), plan.training
    widths = [plan.task.inputs, *(int(float(point[f"width.{i}"]) + 0.5) for i in range(2)), plan.task.outputs]
    weights = [
        normal(fold(plan.seed, "init", number, replicate, i), b, a) * math.sqrt(2 / a)
        for i, (a, b) in enumerate(pairwise(widths))
    ]
    network = plain_mlp(weights, [torch.zeros(b) for b in widths[1:]])
    optimiser = torch.optim.SGD(network.parameters(), lr=float(point["lr"]), momentum=float(point["momentum"]))
    steps = training.epochs * len(data) // training.batch_size
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    for rows in data_order(plan.seed, len(data), training.batch_size, steps):
        out = network(x[rows])
        if plan.task.kind == "classification":
            loss = functional.cross_entropy(out, y[rows])
        else:
            loss = 0.5 * functional.mse_loss(out[:, 0], y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        out = network(torch.from_numpy(plan.task.selection.x))
    truth = plan.task.selection.y
    if plan.task.kind == "classification":
        accuracy = accuracy_score(truth, out.argmax(1))
        loss = log_loss(truth, out.double().softmax(1), labels=range(plan.task.outputs))
        return {"val_error": 1 - accuracy, "val_accuracy": accuracy, "val_loss": loss}
    mse = float(((out[:, 0].numpy() - truth) ** 2).mean())
    return {"val_mse": mse, "val_loss": mse / 2, "val_r2": r2_score(truth, out[:, 0])}


@pytest.mark.parametrize("name", ["uci/iris", "uci/diabetes", "uci/digits"])
def test_training_equals_a_plain_loop_and_replicates_are_its_mean(name: str) -> None:
    plan = plan_of(name, seeds=2)
    plan = replace(plan, training=replace(plan.training, epochs=1 if name == "uci/digits" else 5))
    chosen = points(plan, 2)
    for number, outcome in train(plan, list(enumerate(chosen))).items():
        alone = [by_hand(plan, number, replicate, chosen[number]) for replicate in range(2)]
        for metric in alone[0]:
            assert outcome.metrics[metric] == pytest.approx(np.mean([a[metric] for a in alone]), rel=2e-4, abs=2e-4)
        assert alone[0] != alone[1]
        assert outcome.value == outcome.metrics[plan.metric]


@pytest.mark.long
def test_other_layings_of_the_same_networks_are_equal_in_distribution() -> None:
    """Gated lanes at whole sizes against plain ones: sums run in another order, so bits differ, the law must not.

    200 seeds each, not shared; then the shared ones, which have not had the time to part.
    """
    plan = plan_of("uci/iris")
    plan = replace(plan, training=replace(plan.training, epochs=3), evaluations=1)
    point: Point = {"width.0": 6.0, "width.1": 5.0, "lr": 0.1, "momentum": 0.5}
    gated = replace(plan, realise="fractional")

    def losses(p: Plan, numbers: range) -> list[float]:
        found = train(p, [(number, point) for number in numbers])
        return [float(found[number].metrics["val_loss"]) for number in numbers]

    plain, other = losses(plan, range(200)), losses(gated, range(200, 400))
    assert stats.ks_2samp(plain, other).pvalue > 0.01
    assert stats.ks_2samp(plain, [loss * 1.2 for loss in other]).pvalue < 0.01  # the test has the power to fail
    assert losses(gated, range(20)) == pytest.approx(plain[:20], rel=1e-3)


# -- the ledger --------------------------------------------------------------------------------------------------------


def training_flops(inputs: int, sizes: Sequence[float], outputs: int) -> float:
    widths = [inputs, *sizes, outputs]
    forward = sum(2 * a * b for a, b in pairwise(widths))
    return 3 * forward - 2 * widths[0] * widths[1]


@settings(max_examples=8)
@given(
    st.sampled_from(list(ARMS)), st.integers(0, 99), st.sampled_from([8, 16, 50]), st.integers(1, 4), st.integers(1, 2)
)
def test_the_ledger_counts_every_pass_and_never_more_than_was_foreseen(
    arm: str, seed: int, batch: int, passes: int, seeds: int
) -> None:
    plan = plan_of(seeds=seeds, training=Training(epochs=passes, batch_size=batch), evaluations=3, **ARMS[arm])
    data: Task = task("uci/iris")
    rows = len(data.train) + (0 if plan.method.kind == "bilevel" else len(data.outer))
    steps = max(1, passes * rows // batch)
    for number, outcome in train(plan, list(enumerate(points(plan, 3, seed)))).items():
        assert outcome.step == steps
        spent, most = outcome.spent, most_flops(plan, points(plan, 3, seed)[number])
        assert spent.flops <= spent.executed_flops <= most * (1 + 1e-12)
        sizes = [float(outcome.rounded[f"width.{i}"]) for i in range(2)]
        if plan.gradient:
            continue
        if arm == "fractional":
            sizes = [float(outcome.point[f"width.{i}"]) for i in range(2)]
        live = seeds * steps * batch * training_flops(data.inputs, sizes, data.outputs)
        assert spent.flops == pytest.approx(live, rel=1e-12)
        if arm == "black box":
            widths = [data.inputs, *sizes, data.outputs]
            forward = sum(2 * a * b for a, b in pairwise(widths))
            measured = seeds * len(data.selection) * forward * min(3, steps)
            assert spent.executed_flops == pytest.approx(live + measured, rel=1e-12)
            assert spent.executed_flops == pytest.approx(most, rel=1e-12)


def test_epochs_are_known_before_training() -> None:
    space = Space.from_dict({"epochs": {"type": "int", "low": 1, "high": 9}})
    plan = plan_of(space=space, seeds=3)
    assert epochs(plan, {"epochs": 7}) == 21
    assert epochs(replace(plan, task=None, objective=lambda trial: 0.0), {"epochs": 7}) == 0


def test_device_seconds_are_shared_out() -> None:
    outcomes = train(plan_of(), list(enumerate(points(plan_of(), 4))))
    whole = max(o.ended for o in outcomes.values()) - min(o.started for o in outcomes.values())
    shared = sum(o.spent.device_s for o in outcomes.values())
    assert 0.5 * whole < shared <= 1.05 * whole + 0.01


def test_reports_come_at_even_steps_the_last_included() -> None:
    plan = plan_of(evaluations=4)
    records = list(Trainer(plan).train(bundle(list(enumerate(points(plan, 2)))), worker="w"))
    reports = [r for r in records if isinstance(r, Report) and r.trial_id == "s-t000001"]
    steps = plan.training.steps(len(plan.task.rows("train", "outer")))
    assert [r.step for r in reports] == [math.ceil(i * steps / 4) for i in range(1, 5)]
    assert [r.spent.flops for r in reports] == pytest.approx(
        [r.step * reports[0].spent.flops / reports[0].step for r in reports]
    )
    assert isinstance(records[-1], Outcome)
    outcome = records[-1]
    own = {"rounded_value", "discretisation_gap", "parameters", "forward_flops", "activation_bytes"}
    assert {name: value for name, value in outcome.metrics.items() if name not in own} == reports[-1].metrics
    assert own <= set(outcome.metrics)
    assert (outcome.worker, outcome.bundle_id, outcome.attempt) == ("w", "b", 0)


# -- ends --------------------------------------------------------------------------------------------------------------


def test_a_network_that_does_not_fit_ends_its_bundle_as_oom() -> None:
    space = Space.from_dict({"lr": {"type": "float", "low": 0.01, "high": 0.3}})
    plan = plan_of(space=space, network=MLP(layers=1, width=10**13))
    outcomes = train(plan, [(0, {"lr": 0.1}), (1, {"lr": 0.2})])
    assert [o.ending for o in outcomes.values()] == [Ending.OOM] * 2
    assert all(o.value is None and "allocate" in str(o.error) for o in outcomes.values())


class Broken(MLP):
    """A network whose code fails."""

    def sizes(self, point: Any) -> tuple[float, ...]:
        raise ZeroDivisionError(f"no size at {sorted(point)}")


def test_an_exception_is_an_error_with_the_end_of_its_traceback() -> None:
    plan = plan_of()
    outcomes = train(replace(plan, network=Broken(layers=2)), list(enumerate(points(plan, 3))))
    assert len(outcomes) == 3
    for outcome in outcomes.values():
        assert outcome.ending is Ending.ERROR
        assert str(outcome.error).strip().endswith("no size at ['lr', 'momentum', 'width.0', 'width.1']")
        assert outcome.point == points(plan, 3)[outcome.number]


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["black box", "bilevel"])
def test_time_that_is_up_ends_as_cancelled(arm: str) -> None:
    plan = plan_of(**ARMS[arm])
    plan = replace(plan, training=replace(plan.training, epochs=3_000, batch_size=8))
    numbered = list(enumerate(points(plan, 2)))
    for seconds in (0.0, 2.0):
        for outcome in train(plan, numbered, seconds=seconds).values():
            assert outcome.ending is Ending.CANCELLED
            assert outcome.value is None
            assert outcome.ended - outcome.started < seconds + 2.0
            assert (outcome.step > 0) == (seconds > 0)
            assert (outcome.spent.flops > 0) == (seconds > 0)


# -- plain Python ------------------------------------------------------------------------------------------------------


def python_plan(objective: Callable[[Any], Any]) -> Plan:
    space = Space.from_dict({"x": {"type": "float", "low": 0, "high": 1}})
    return Plan(space=space, objective=objective, metric="value", seed=4)


def called(objective: Callable[[Any], Any], xs: Sequence[float] = (0.25,), **facts: Any) -> list[Report | Outcome]:
    return list(Trainer(python_plan(objective)).train(bundle([(i, {"x": x}) for i, x in enumerate(xs)], **facts)))


def test_an_objective_reports_and_returns() -> None:
    def objective(trial: Any) -> float:
        for step in (1, 5):
            trial.report(step, loss=trial["x"] / step)
        return trial["x"] + trial.number

    first, second, outcome, *others = called(objective, (0.25, 0.5))
    assert (first.step, first.metrics, second.step, second.metrics) == (1, {"loss": 0.25}, 5, {"loss": 0.05})
    assert (outcome.ending, outcome.value, outcome.step, outcome.metrics) == (Ending.COMPLETE, 0.25, 5, {"value": 0.25})
    assert others[-1].value == 1.5
    assert outcome.rounded == outcome.point == {"x": 0.25}


def test_an_objective_may_return_several_metrics_and_numpy_numbers() -> None:
    (outcome,) = called(lambda trial: {"value": np.float32(0.5), "size": torch.tensor(3)})
    assert (outcome.value, outcome.metrics) == (0.5, {"value": 0.5, "size": 3.0})


def exits(_: Any) -> None:
    raise SystemExit("enough")


@pytest.mark.parametrize(
    ("objective", "ending", "words"),
    [
        (
            lambda t: {"vlaue": 1.0},
            Ending.ERROR,
            "the objective returned ['vlaue'], but the search needs 'value' among",
        ),
        (lambda t: "0.5", Ending.ERROR, "must return a number or a mapping of numbers, but returned '0.5'"),
        (lambda t: None, Ending.ERROR, "must return a number or a mapping of numbers, but returned None"),
        (lambda t: True, Ending.ERROR, "must return a number or a mapping of numbers, but returned True"),
        (lambda t: {"value": "x"}, Ending.ERROR, "could not convert string to float"),
        (lambda t: t["y"], Ending.ERROR, "no parameter 'y' at this point; there are x"),
        (lambda t: t.report(1, loss="high"), Ending.ERROR, "could not convert string to float"),
        (lambda t: 1 / 0, Ending.ERROR, "ZeroDivisionError"),
        (lambda t: bytearray(1 << 62), Ending.OOM, "MemoryError"),
        (exits, Ending.ERROR, "SystemExit: enough"),
        (lambda t: math.nan, Ending.NAN, None),
        (lambda t: {"value": -math.inf}, Ending.NAN, None),
    ],
)
def test_how_an_objective_ends(objective: Callable[[Any], Any], ending: Ending, words: str | None) -> None:
    """Each ends its own trial alone: the next one runs."""
    ran: list[float] = []

    def first_only(trial: Any) -> Any:
        ran.append(trial["x"])
        return objective(trial) if trial.number == 0 else 0.0

    bad, good = (r for r in called(first_only, (0.25, 0.5)) if isinstance(r, Outcome))
    assert (bad.ending, bad.value) == (ending, None)
    assert (bad.error is None) == (words is None)
    assert words is None or words in str(bad.error)
    assert len(str(bad.error)) <= 2000
    assert (good.ending, good.value) == (Ending.COMPLETE, 0.0)
    assert ran == [0.25, 0.5]


def test_reports_before_an_exception_are_kept() -> None:
    def objective(trial: Any) -> None:
        trial.report(3, loss=1.0)
        raise ValueError("later")

    report, outcome = called(objective)
    assert (report.step, outcome.step, outcome.ending) == (3, 3, Ending.ERROR)


def test_an_objective_cannot_change_the_trials_point() -> None:
    def objective(trial: Any) -> float:
        trial.point["x"] = 9.0
        return 0.0

    (outcome,) = called(objective)
    assert outcome.point == {"x": 0.25}


def test_objectives_that_no_time_is_left_for_are_cancelled() -> None:
    def slow(clock: Iterator[float]) -> Callable[[Any], float]:
        import time

        def objective(_: Any) -> float:
            time.sleep(next(clock))
            return 0.0

        return objective

    found = called(slow(iter([0.15, 0.0, 0.0])), (0.1, 0.2, 0.3), seconds=0.1)
    assert [o.ending for o in found] == [Ending.COMPLETE, Ending.CANCELLED, Ending.CANCELLED]
    assert found[1].spent == Spent()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["none", "bilevel"])
def test_other_networks_execute_no_more_than_was_foreseen(way: str, kind: str) -> None:
    """Rounded or moved by a gradient, padded or not; what a bundle of one shape class executes is its classes' cost."""
    width = {"type": "width", "low": 2, "high": 12, **({"moved_by": "gradient"} if kind != "none" else {})}
    plan = plan_of(
        space=Space.from_dict({"width.0": width, "width.0.0": width}),
        network=Residual(stages=1),
        training=Training(epochs=2, batch_size=16),
        method=Method(kind=kind, warmup=2, every=2),
        way=way,
    )
    trials = [(i, {"width.0": a, "width.0.0": b}) for i, (a, b) in enumerate([(5.2, 7.0), (8.0, 6.4)])]
    assert plan.shape_class(trials[0][1]) == plan.shape_class(trials[1][1])
    for outcome in Trainer(plan).train(bundle(trials)):
        if isinstance(outcome, Outcome):
            assert outcome.error is None
            foreseen = most_flops(plan, trials[outcome.number][1])
            assert 0 < outcome.spent.flops < outcome.spent.executed_flops <= foreseen * (1 + 1e-12)
            if way != "per_lane":
                assert outcome.spent.executed_flops == pytest.approx(foreseen, rel=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("way", WAYS)
def test_moved_lanes_of_other_networks_do_not_depend_on_their_neighbours(way: str, optimizer: str) -> None:
    """A unit that begins to speak has the state of one that never did, wherever its lane was laid out before."""
    width = {"type": "width", "low": 2, "high": 24, "moved_by": "gradient"}
    plan = plan_of(
        space=Space.from_dict({"width.0": width, "width.0.0": width}),
        network=Residual(stages=1, membership="interval"),
        training=Training(optimizer=optimizer, lr=0.02, momentum=0.5, weight_decay=0.01, epochs=6, batch_size=16),
        method=Method(kind="bilevel", warmup=2, every=2, lr=0.1),
        way=way,
    )
    first = (0, {"width.0": 4.4, "width.0.0": 6.7})
    alone, beside = (
        next(record for record in Trainer(plan).train(bundle(points)) if isinstance(record, Outcome))
        for points in ([first], [first, (1, {"width.0": 22.0, "width.0.0": 20.5})])
    )
    assert alone.error is None
    for name, value in alone.point.items():
        assert beside.point[name] == pytest.approx(value, rel=1e-3)
    assert beside.value == pytest.approx(alone.value, rel=1e-3)
    if way == "per_lane":
        assert (beside.point, beside.value) == (alone.point, alone.value)
