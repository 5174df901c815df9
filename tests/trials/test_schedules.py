"""A network is retrained with the rates going the way that they went."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from search_spaces import Space
from search_spaces.networks import MLP
from trials.fused import FusedRun
from trials.hypergradients import Method
from trials.plan import Plan
from trials.records import Bundle, Outcome, Trial
from trials.retrain import retrain, schedules_of
from trials.store import Store
from trials.tasks import load
from trials.train import Trainer
from trials.training import Training

SPACE = {"lr": {"type": "float", "low": 1e-3, "high": 1.0, "log": True}}
MOVED = {"lr": {**SPACE["lr"], "moved_by": "gradient"}}


def plan_of(space: dict, **facts: object) -> Plan:
    training = Training(batch_size=64, epochs=8, momentum=0.9)
    return Plan(
        space=Space.from_dict(space),
        task=load("uci/digits"),
        network=MLP(layers=1, width=8),
        training=training,
        **facts,
    )


def bundle(*points: dict[str, float]) -> Bundle:
    trials = tuple(Trial(search_id="s", number=i, point=point) for i, point in enumerate(points))
    return Bundle(search_id="s", id="b000000", generation=0, trials=trials)


def outcome(plan: Plan, point: dict[str, float]) -> Outcome:
    return next(r for r in Trainer(plan).train(bundle(point)) if isinstance(r, Outcome))


def test_a_schedule_of_one_value_is_that_value_and_others_are_not() -> None:
    plan = plan_of(SPACE)
    plain = outcome(plan, {"lr": 0.1})
    held = outcome(replace(plan, schedules={"lr": ((0.0, 0.1),)}), {"lr": 0.7})
    falling = outcome(replace(plan, schedules={"lr": ((0.0, 0.1), (0.5, 0.001))}), {"lr": 0.1})
    assert held.value == plain.value
    assert falling.value != plain.value


def test_it_is_in_force_from_the_step_on_that_its_share_says() -> None:
    """The weights after each step, against those of lanes retuned by hand."""
    plan = replace(plan_of(SPACE), schedules={"lr": ((0.0, 0.1), (0.25, 0.02), (0.75, 0.3))})
    run, by_hand = (
        FusedRun(p, bundle({"lr": 0.5}), Trainer(p).rows, torch.device("cpu")) for p in (plan, plan_of(SPACE))
    )
    order = run._order(run.data, "order")
    with torch.no_grad():
        for step in range(run.steps):
            rate = 0.1 if step < round(run.steps / 4) else 0.02 if step < round(run.steps * 3 / 4) else 0.3
            by_hand.program.retune({**by_hand.hyper, "lr": torch.tensor([rate], dtype=torch.float64)})
            for one in (run, by_hand):
                one._advance(step, order, order)
            assert torch.equal(run.program.stands()[0], by_hand.program.stands()[0]), step


def test_the_way_is_read_from_the_reports_and_retrained_with(tmp_path: Path) -> None:
    method = Method(kind="unrolled", every=10, warmup=10, lr=0.1)
    plan = plan_of(MOVED, method=method)
    store = Store(tmp_path)
    search = store.create("s", {})
    with search.lease() as lease:
        log = search.log_writer(lease.epoch)
        asked = [{"number": i, "point": {"lr": lr}} for i, lr in enumerate((0.02, 0.2))]
        log.append("asked", {"generation": 0, "trials": asked, "infeasible": []})
        writer = search.attempt_writer("b000000", 0)
        for record in Trainer(plan).train(bundle({"lr": 0.02}, {"lr": 0.2})):
            writer.append(record)
        writer.close()
        log.append("told", {"bundle": "b000000", "attempt": 0, "numbers": [0, 1]})
    for number, first in enumerate((0.02, 0.2)):
        path = schedules_of(search, plan, number)["lr"]
        ended = next(o for o in search.outcomes() if o.number == number).point["lr"]
        assert path[0] == (0.0, first)
        assert path[-1] == (1.0, pytest.approx(ended))
        assert len({value for _, value in path}) > 3
        assert [share for share, _ in path] == sorted(share for share, _ in path)
    made = store.create("r", {})
    schedules = {"lr": ((0.0, 0.1), (0.5, 0.01))}
    (found,) = retrain(made, replace(plan, schedules=schedules), [{"lr": 0.9}], 1)
    again = store.create("q", {})
    (other,) = retrain(again, replace(plan, schedules=schedules), [{"lr": 0.001}], 1)
    assert found.metrics["test_error"] == other.metrics["test_error"]  # the way counts, not the point


def test_nothing_is_scheduled_where_no_rate_moved(tmp_path: Path) -> None:
    search = Store(tmp_path).create("s", {})
    assert schedules_of(search, plan_of(SPACE), 0) == {}
