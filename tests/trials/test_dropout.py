"""Dropout in fused dense lanes: hidden units times normal noise of mean 1 and variance p / (1 - p), as Bernoulli
dropout has (Srivastava et al. 2014, section 10). The same for all trials of a step, and none where a network is
measured.

Legend of shape suffixes: S steps, N units, B batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from search_spaces import Space
from search_spaces.networks import MLP
from search_spaces.width import gates_of
from trials.architecture import Architecture
from trials.fused import FusedRun, lane_rule
from trials.lanes.gated import DenseProgram
from trials.lanes.making import make
from trials.plan import Plan
from trials.records import Bundle, Outcome, Report, Trial
from trials.tasks import load
from trials.train import Trainer
from trials.training import Training

RATE = {"type": "float", "low": 0.0, "high": 0.9}
WIDTH = {"type": "width", "low": 2, "high": 30}
BATCH = 64
Point = dict[str, float]


def plan_of(space: dict[str, Any] | None = None, **facts: Any) -> Plan:
    space = {"width.0": WIDTH, "width.1": WIDTH, "dropout": RATE} if space is None else space
    told: dict[str, Any] = {
        "task": load("uci/digits"),
        "network": MLP(layers=2),
        "training": Training(batch_size=BATCH, epochs=2, lr=0.1, momentum=0.9),
        "metric": "val_loss",
        "seed": 3,
    }
    return Plan(space=Space.from_dict(space), **{**told, **facts})


def bundle_of(points: dict[int, Point]) -> Bundle:
    trials = tuple(Trial(search_id="s", number=number, point=dict(point)) for number, point in points.items())
    return Bundle(search_id="s", id="b", generation=0, trials=trials)


def outcomes(plan: Plan, points: dict[int, Point]) -> dict[int, Outcome]:
    records = list(Trainer(plan).train(bundle_of(points)))
    return {record.number: record for record in records if isinstance(record, Outcome)}


def architecture_of(plan: Plan, points: list[Point], replicates: list[int] | None = None) -> Architecture:
    trials = [Trial(search_id="s", number=k, point=dict(point)) for k, point in enumerate(points)]
    identities = [(plan.seed, k, r) for k, r in enumerate(replicates or [0] * len(points))]
    rule, hyper = lane_rule(plan, plan.training, trials)
    rounded = [plan.rounded(point) for point in points]
    program, widths = make(plan, rounded, identities, rule, hyper, BATCH, torch.device("cpu"), torch.float64)
    assert widths is not None
    return Architecture(plan, program, widths, identities, rule, hyper, BATCH)


def grades_of(architecture: Architecture, lane: int, layer: int) -> Tensor:
    """What each unit is multiplied by for each row, [N, B]."""
    assert isinstance(architecture.lanes, DenseProgram)
    dense = architecture.lanes.dense
    return dense.units[layer].lane_view(dense._grade[layer], lane, 0)[1:].clone()


def noise_of(architecture: Architecture, steps: int, lane: int = 0, layer: int = 0) -> Tensor:
    """The factors of the first steps, [S, N, B]."""
    found = []
    for step in range(steps):
        architecture.draw(step)
        found.append(grades_of(architecture, lane, layer))
    return torch.stack(found)


def point(width: int = 30, p: float = 0.5, **others: float) -> Point:
    return {"width.0": width, "width.1": width, "dropout": p, **others}


def correlation(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1])


# -- the noise ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_the_noise_is_normal_with_the_moments_of_bernoulli_dropout(p: float) -> None:
    noise_SNB = noise_of(architecture_of(plan_of(), [point(p=p)]), 40)
    count, variance = noise_SNB.numel(), p / (1 - p)
    z = (noise_SNB - 1) / math.sqrt(variance)
    assert abs(float(z.mean())) < 4 / math.sqrt(count)
    assert abs(float(z.square().mean()) - 1) < 4 * math.sqrt(2 / count)
    assert abs(float((z**4).mean()) - 3) < 4 * math.sqrt(96 / count)
    # no unit, row or step goes with its neighbour
    for axis in range(3):
        size = z.shape[axis]
        assert abs(correlation(z.narrow(axis, 0, size - 1), z.narrow(axis, 1, size - 1))) < 5 / math.sqrt(count)


def test_all_trials_of_a_step_have_the_same_noise_each_at_its_own_rate() -> None:
    rates = [0.1, 0.5, 0.5]
    architecture = architecture_of(plan_of(), [point(p=p) for p in rates])
    low, half, other = (noise_of(architecture, 3, lane) for lane in range(3))
    assert torch.equal(half, other)
    torch.testing.assert_close((low - 1) / math.sqrt(1 / 9), half - 1, rtol=1e-10, atol=1e-10)


def test_steps_layers_and_replicates_have_noise_of_their_own() -> None:
    plan = plan_of()
    architecture = architecture_of(plan, [point(), point(), point()], [0, 1, 0])
    own = noise_of(architecture, 2)
    count = own[0].numel()
    for other in (own[1], noise_of(architecture, 1, layer=1)[0], noise_of(architecture, 1, lane=1)[0]):
        assert abs(correlation(own[0], other)) < 5 / math.sqrt(count)
    assert torch.equal(own[0], noise_of(architecture, 1, lane=2)[0])
    assert torch.equal(own, noise_of(architecture_of(plan, [point()]), 2))  # a function of the step, not of company
    assert not torch.equal(own, noise_of(architecture_of(plan_of(seed=4), [point()]), 2))


def test_the_noise_of_a_wider_layer_begins_with_that_of_a_narrower_one() -> None:
    narrow, wide = (noise_of(architecture_of(plan_of(), [point(width)]), 2) for width in (9, 30))
    assert narrow.shape[1] == 9
    assert torch.equal(narrow, wide[:, :9])
    roomier = {"width.0": {**WIDTH, "high": 50}, "width.1": WIDTH, "dropout": RATE}
    assert torch.equal(wide, noise_of(architecture_of(plan_of(roomier), [point()]), 2)[:, :30])


def test_a_layer_may_have_a_rate_of_its_own() -> None:
    """Where it has none it has its lane's; `dropout.1` is what the second hidden layer is multiplied by."""
    space = {"width.0": WIDTH, "width.1": WIDTH, "dropout": RATE, "dropout.1": RATE}
    own = architecture_of(plan_of(space), [point(p=0.5, **{"dropout.1": 0.1}), point(p=0.2, **{"dropout.1": 0.0})])
    alike = architecture_of(plan_of(), [point(p=0.5), point(p=0.1), point(p=0.2)])
    assert torch.equal(noise_of(own, 2, 0, 0), noise_of(alike, 2, 0, 0))
    assert torch.equal(noise_of(own, 2, 0, 1), noise_of(alike, 2, 1, 1))
    assert torch.equal(noise_of(own, 2, 1, 0), noise_of(alike, 2, 2, 0))
    assert bool((noise_of(own, 2, 1, 1) == 1).all())


# -- in training -------------------------------------------------------------------------------------------------------


def test_a_rate_of_zero_is_training_without_dropout_bitwise() -> None:
    """A factor of 1 is exact, so that gates cost time and change nothing."""
    points = {0: point(9, 0.0), 1: point(24, 0.0), 2: point(17, 0.3)}
    without = {number: {k: v for k, v in own.items() if k != "dropout"} for number, own in points.items()}
    dropped, plain = (
        outcomes(plan_of(), points),
        outcomes(plan_of({"width.0": WIDTH, "width.1": WIDTH}), without),
    )
    for number in (0, 1):
        assert dropped[number].value == plain[number].value
        assert dropped[number].metrics == plain[number].metrics
    assert dropped[2].value != plain[2].value


def test_a_lane_is_measured_without_noise() -> None:
    """What is reported is what the lane's own module says of the rows."""
    plan = plan_of(evaluations=2)
    points = {0: point(9, 0.4), 1: point(24, 0.7)}
    trainer = Trainer(plan)
    run = FusedRun(plan, bundle_of(points), trainer.rows, torch.device("cpu"))
    numbers = {trial.id: trial.number for trial in run.bundle.trials}
    reports: dict[int, list[dict[str, float]]] = {0: [], 1: []}
    by_hand: dict[int, list[float]] = {0: [], 1: []}
    rows = trainer.rows("selection")
    (x,) = rows.chunks()
    for record in run.records():
        if not isinstance(record, Report):
            continue
        number = numbers[record.trial_id]
        reports[number].append(dict(record.metrics))
        module = run.program.module(number)
        assert all(bool((gate.m == 1).all()) for gate in gates_of(module).values())
        with torch.no_grad():
            logits = module(x[:, 1:])
        by_hand[number].append(float((logits.argmax(1) != rows.y_R).double().mean()))
        assert torch.equal(run.program.predict(x), run.program.predict(x))
        torch.testing.assert_close(run.program.predict(x)[number].mT, logits, rtol=1e-4, atol=1e-5)
    for number in (0, 1):
        assert [own["val_error"] for own in reports[number]] == pytest.approx(by_hand[number], abs=1e-9)
        assert len(reports[number]) == 2


def test_every_step_trains_with_noise() -> None:
    """The lanes' own step on a batch, against the gradient of the loss with the noise multiplied in by hand."""
    architecture = architecture_of(plan_of(), [point(9, 0.4)])
    assert isinstance(architecture.lanes, DenseProgram)
    dense = architecture.lanes.dense
    generator = torch.Generator().manual_seed(0)
    x_BI = torch.nn.functional.pad(torch.rand(BATCH, 64, generator=generator).double(), (1, 0), value=1.0)
    labels = torch.randint(10, (BATCH,), generator=generator)
    y_BO = torch.nn.functional.one_hot(labels, 10).double()
    for step in range(3):
        architecture.draw(step)
        noise = [grades_of(architecture, 0, layer) for layer in range(2)]
        weights = [matrix.clone().requires_grad_() for matrix in dense.matrices(0)]
        h = x_BI.mT
        for matrix, factor in zip(weights[:-1], noise, strict=True):
            h = torch.nn.functional.pad(torch.relu(matrix @ h) * factor, (0, 0, 1, 0), value=1.0)
        loss = torch.nn.functional.cross_entropy((weights[-1] @ h).mT, labels)
        gradients = torch.autograd.grad(loss, weights)
        dense.forward(x_BI)
        dense.backward(x_BI, y_BO)
        for found, expected in zip(dense.matrices(0, dense.gradients_T), gradients, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
        architecture.lanes.step(x_BI, y_BO)


def test_a_search_over_dropout_completes() -> None:
    plan = plan_of({"dropout": RATE}, network=MLP(layers=1, width=24))
    points = {number: {"dropout": p} for number, p in enumerate((0.0, 0.2, 0.5, 0.9))}
    found = outcomes(plan, points)
    assert all(outcome.ending == "complete" for outcome in found.values())
    assert [found[number].point for number in points] == list(points.values())
    assert len({outcome.value for outcome in found.values()}) == 4
    values = [float(outcome.value or math.inf) for outcome in found.values()]
    assert max(values[:3]) < math.log(10) / 2  # it has learned something, noise or not


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["backprop", "feedback"])
def test_a_lane_with_dropout_does_not_depend_on_its_bundle(learner: str) -> None:
    plan = plan_of(training=Training(batch_size=BATCH, epochs=1, lr=0.1, momentum=0.9, learner=learner), seeds=2)
    points = {0: point(9, 0.4), 1: point(24, 0.7), 2: point(30, 0.0)}
    together = outcomes(plan, points)
    apart = {number: outcomes(plan, {number: own})[number] for number, own in points.items()}
    other = outcomes(plan, {2: points[2], 0: points[0]})
    for number in points:
        assert together[number].value == apart[number].value
    assert (other[0].value, other[2].value) == (together[0].value, together[2].value)
