"""What a method costs: every pass is charged, and what is charged is what torch's own counter counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from search_spaces import Space
from search_spaces.networks import MLP, Network, Residual
from trials.fused import FusedRun
from trials.hypergradients import Method
from trials.ledger import most_flops
from trials.plan import Plan
from trials.records import Bundle, Outcome, Trial
from trials.tasks import load
from trials.train import Trainer
from trials.training import Training

WIDTH = {"type": "width", "low": 4, "high": 16, "moved_by": "gradient"}
RATE = {"type": "float", "low": 1e-3, "high": 1.0, "log": True, "moved_by": "gradient"}
METHODS: dict[str, tuple[Method, bool]] = {  # and whether it sees the rate
    "descent": (Method(kind="descent"), False),
    "bilevel": (Method(kind="bilevel"), False),
    "second": (Method(kind="bilevel", order="second"), True),
    "unrolled": (Method(kind="unrolled"), True),
    "checkpoints": (Method(kind="unrolled", checkpoints=True), True),
    "truncated": (Method(kind="truncated", horizon=2), True),
    "forward": (Method(kind="forward"), True),
    "reversible": (Method(kind="reversible"), True),
    "neumann": (Method(kind="implicit", terms=5), False),
    "cg": (Method(kind="implicit", solver="cg", terms=5), False),
    "hypernet": (Method(kind="hypernet"), False),
}


def plan_of(method: Method, rate: bool, network: Network | None = None) -> tuple[Plan, list[dict[str, float]]]:
    mlp = network is None
    space: dict[str, Any] = {"width.0": WIDTH} if mlp else {"depth.0": {**WIDTH, "type": "depth", "low": 0, "high": 2}}
    space["lr"] = RATE if rate else {**RATE, "moved_by": "sampler"}
    plan = Plan(
        space=Space.from_dict(space),
        task=load("uci/digits" if mlp else "uci/digits-images"),
        network=network or MLP(layers=2),
        training=Training(batch_size=64, epochs=2, momentum=0.9),
        method=Method(**{**method.to_dict(), "every": 6, "warmup": 2}),
        evaluations=1,
    )
    return plan, [{"width.0" if mlp else "depth.0": 6.5 if mlp else 1.2, "lr": 0.02 * (k + 1)} for k in range(3)]


def trained(plan: Plan, points: list[dict[str, float]]) -> tuple[list[Outcome], float]:
    """Outcomes, and all FLOPs that torch saw."""
    trials = tuple(Trial(search_id="s", number=k, point=dict(point)) for k, point in enumerate(points))
    bundle = Bundle(search_id="s", id="b", generation=0, trials=trials)
    with FlopCounterMode(display=False) as counter:
        records = list(Trainer(plan).train(bundle))
    return [r for r in records if isinstance(r, Outcome)], float(counter.get_total_flops())


DEEP = Residual(stages=1, width=4)
QUICK = ("descent", "checkpoints", "reversible")  # of the deep one
NETWORKS = [(name, None) for name in METHODS] + [(name, DEEP) for name in QUICK]
NETWORKS += [pytest.param(name, DEEP, marks=pytest.mark.long) for name in METHODS if name not in QUICK]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "network"), NETWORKS)
def test_what_is_charged_is_what_is_counted(name: str, network: Network | None) -> None:
    plan, points = plan_of(*METHODS[name], network)
    outcomes, counted = trained(plan, points)
    assert all(o.ending == "complete" for o in outcomes), outcomes[0].error
    charged = sum(o.spent.executed_flops for o in outcomes)
    free = 0.05 if network is None else 1e-3  # dense lanes multiply by biases too, and nobody is charged for that
    assert (1 - free) * counted <= charged
    assert charged <= 1.2 * counted
    assert all(o.spent.executed_flops <= most_flops(plan, p) for o, p in zip(outcomes, points, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_training_has_as_many_steps_and_its_flops_whatever_moves_it(name: str) -> None:
    """A method that trains takes the run's own steps: what the network is trained by is charged once."""
    method, rate = METHODS[name]
    plan, points = plan_of(Method(**{**method.to_dict(), "lr": 0.0}), rate)
    still, _ = plan_of(Method(kind=method.kind if method.direct else "bilevel", lr=0.0), False)
    outcomes, expected = trained(plan, points)[0], trained(still, points)[0]
    assert [o.step for o in outcomes] == [o.step for o in expected]
    assert [o.spent.flops for o in outcomes] == pytest.approx([o.spent.flops for o in expected], rel=1e-9)


def test_moves_are_made_when_the_method_says() -> None:
    method = Method(kind="unrolled", every=6, warmup=2)
    assert method.moves(20) == [8, 14, 20]
    assert Method(kind="bilevel", every=6, warmup=2).moves(20) == [2, 8, 14]
    plan, points = plan_of(method, True)
    run_ = FusedRun(
        plan,
        Bundle(search_id="s", id="b", generation=0, trials=(Trial(search_id="s", number=0, point=points[0]),)),
        Trainer(plan).rows,
        torch.device("cpu"),
    )
    list(run_.records())
    assert run_.architecture is not None
    assert run_.architecture.moves is not None
    assert run_.architecture.moves.moved == len(plan.method.moves(run_.steps)) > 1
