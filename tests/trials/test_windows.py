"""Methods that take training steps themselves, inside a run: stops, time, statistics of norms, conditional rates."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from search_spaces import Space
from search_spaces.networks import MLP, ConvNet, Network, Residual
from trials.fused import FusedRun
from trials.hypergradients import Method
from trials.ledger import most_flops
from trials.plan import Plan
from trials.records import Bundle, Ending, Outcome, Report, Trial
from trials.tasks import load
from trials.train import Trainer
from trials.training import Training

RATE = {"type": "float", "low": 1e-3, "high": 1.0, "log": True, "moved_by": "gradient"}
WINDOWED = {
    "unrolled": Method(kind="unrolled"),
    "checkpoints": Method(kind="unrolled", checkpoints=True),
    "forward": Method(kind="forward"),
    "reversible": Method(kind="reversible"),
}


def plan_of(network: Network, space: dict[str, Any], method: Method, **facts: Any) -> Plan:
    task = load("uci/digits" if isinstance(network, MLP) else "uci/digits-images")
    training = facts.pop("training", Training(batch_size=64, epochs=2, momentum=0.9))
    return Plan(space=Space.from_dict(space), task=task, network=network, training=training, method=method, **facts)


def bundle(*points: dict[str, Any], **facts: Any) -> Bundle:
    trials = tuple(Trial(search_id="s", number=i, point=point) for i, point in enumerate(points))
    return Bundle(search_id="s", id="b", generation=0, trials=trials, **facts)


def trained(plan: Plan, *points: dict[str, Any], **facts: Any) -> list[Report | Outcome]:
    return list(Trainer(plan).train(bundle(*points, **facts)))


def outcomes(records: list[Report | Outcome]) -> list[Outcome]:
    return [record for record in records if isinstance(record, Outcome)]


@pytest.mark.slow
@pytest.mark.parametrize("every", [7, 22])
def test_a_window_that_leads_beyond_several_stops_is_reported_once(every: int) -> None:
    plan = plan_of(Residual(stages=1, width=4), {"lr": RATE}, Method(kind="unrolled", every=every, warmup=0))
    records = trained(plan, {"lr": 0.05})
    steps = [record.step for record in records if isinstance(record, Report)]
    assert steps == sorted(set(steps))
    assert steps[-1] == records[-1].step == plan.training.steps(len(plan.task.train))  # type: ignore[union-attr]
    assert records[-1].spent.executed_flops <= most_flops(plan, {"lr": 0.05})


@pytest.mark.slow
@pytest.mark.parametrize("name", WINDOWED)
def test_norms_remember_each_batch_once(name: str) -> None:
    """At an outer rate of 0 a method's own steps are the plain ones, and so are the statistics that they leave."""
    network, point = ConvNet(layers=1, width=4), {"lr": 0.05}

    def statistics(method: Method) -> dict[str, torch.Tensor]:
        plan = plan_of(network, {"lr": RATE}, method, way="unfolded")
        run = FusedRun(plan, bundle(point, {"lr": 0.02}), Trainer(plan).rows, torch.device("cpu"))
        order, outer = run._order(run.data, "order"), run._order(run.outer, "outer order")
        done = 0
        with torch.no_grad():
            while done < 12:
                done += run._advance(done, order, outer)
        return {path: b for path, b in run.program.buffers.items() if "running" in path}  # type: ignore[attr-defined]

    plain = statistics(Method(kind="unrolled", every=99, warmup=99))
    found = statistics(replace(WINDOWED[name], every=6, warmup=0, lr=0.0))
    assert plain
    for path, values in plain.items():
        torch.testing.assert_close(found[path], values, rtol=1e-3, atol=1e-4)


def test_a_window_ends_when_time_is_up() -> None:
    method = Method(kind="unrolled", every=4000, warmup=0)
    plan = plan_of(MLP(layers=1), {"lr": RATE}, method, training=Training(batch_size=16, epochs=200))
    assert plan.method.moves(plan.training.steps(1077))
    (found,) = outcomes(trained(plan, {"lr": 0.05}, seconds=0.2))
    assert found.ending is Ending.CANCELLED
    assert found.spent.device_s < 20  # the whole window takes minutes


def test_rates_that_do_not_exist_at_a_point_neither_move_nor_are_told() -> None:
    space = {
        "optimizer": {"type": "choice", "options": ["sgd", "adam"]},
        "lr": RATE,
        "momentum": {"type": "float", "low": 0.1, "high": 0.9, "moved_by": "gradient", "when": {"optimizer": "sgd"}},
        "lr.0": {**RATE, "when": {"optimizer": "sgd"}},
    }
    plan = plan_of(MLP(layers=1, width=8), space, Method(kind="unrolled", every=5, warmup=5))
    sgd = outcomes(trained(plan, {"optimizer": "sgd", "lr": 0.05, "momentum": 0.5, "lr.0": 0.02}))[0]
    adam = outcomes(trained(plan, {"optimizer": "adam", "lr": 0.01}))[0]
    assert [o.ending for o in (sgd, adam)] == [Ending.COMPLETE] * 2, (sgd.error, adam.error)
    assert set(sgd.point) == set(space)
    assert set(adam.point) == {"optimizer", "lr"}
    assert adam.point["lr"] != 0.01


def test_a_rate_that_does_not_move_keeps_every_bit() -> None:
    plan = plan_of(MLP(layers=1, width=8), {"lr": RATE}, Method(kind="unrolled", every=5, warmup=5, lr=0.0))
    assert outcomes(trained(plan, {"lr": 0.05}))[0].point == {"lr": 0.05}


def test_a_hypernet_tries_nothing_outside_the_range() -> None:
    """A stride beside its least, a dropout beside its greatest, a width at a far scale."""
    method = Method(kind="hypernet", every=3, warmup=2, scale=0.3)
    strides = {"stride.0": {"type": "stride", "low": 1, "high": 3, "moved_by": "gradient"}}
    found = outcomes(
        trained(plan_of(ConvNet(layers=1, width=4), strides, method), {"stride.0": 1.05}, {"stride.0": 2.0})
    )
    others = {
        "width.0": {"type": "width", "low": 4, "high": 64, "moved_by": "gradient"},
        "dropout": {"type": "float", "low": 0.01, "high": 0.99, "moved_by": "gradient"},
    }
    plan = plan_of(MLP(layers=1), others, method)
    found += outcomes(trained(plan, {"width.0": 4.5, "dropout": 0.1}, {"width.0": 30.0, "dropout": 0.9}))
    assert [o.ending for o in found] == [Ending.COMPLETE] * 4, [o.error for o in found]
    assert all(math.isfinite(float(value)) for o in found for value in o.point.values())  # type: ignore[arg-type]


def test_the_last_move_of_a_falling_schedule_moves() -> None:
    """The schedule falls over the moves, so that the last, which was paid for like the others, has a length."""
    method = Method(kind="unrolled", every=11, warmup=0, schedule="linear", optimizer="sgd", lr=1.0, clip=0.01)
    plan = plan_of(MLP(layers=1, width=8), {"lr": RATE}, method, training=Training(batch_size=64, epochs=2))
    reports = [r for r in trained(plan, {"lr": 0.05}) if isinstance(r, Report)]
    path = [0.05, *(r.architecture["lr"] for r in reports)]
    jumps = [abs(math.log(b / a)) / math.log(1000) for a, b in itertools.pairwise(path) if a != b]
    assert jumps == pytest.approx([0.01, 0.005], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("membership", "activation"), [("band", "silu"), ("fuzzy", "relu"), ("nested", "tanh")])
def test_lanes_laid_out_alike_are_themselves_alone(membership: str, activation: str) -> None:
    """In batches of 32 and 64, for which torch multiplies a single pair of matrices otherwise than several."""
    width = {"type": "width", "low": 2, "high": 7, "moved_by": "gradient"}
    points = [{"width.0": 3.3 + k, "width.1": 5.6 - k} for k in range(3)]
    for batch in (32, 64):
        plan = plan_of(
            MLP(layers=2, membership=membership, activation=activation),
            {"width.0": width, "width.1": width},
            Method(kind="unrolled", every=4, warmup=2),
            training=Training(batch_size=batch, epochs=1, momentum=0.9, lr=0.02),
        )
        company = outcomes(trained(plan, *points))[0]
        alone = outcomes(trained(plan, points[0]))[0]
        assert (alone.point, alone.value) == (company.point, company.value)
