"""Every method in a bundle: a lane is what it would be alone, one that diverges falls alone, and a run keeps its steps.

Legend of shape suffixes: K lanes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from search_spaces import Space
from search_spaces.membership import MEMBERSHIPS
from search_spaces.networks import MLP, ConvNet, Network, Residual
from trials.fused import FusedRun
from trials.hypergradients import Method
from trials.plan import Plan
from trials.records import Bundle, Ending, Outcome, Trial
from trials.tasks import load
from trials.train import Trainer
from trials.training import Training

WIDTH = {"type": "width", "low": 2, "high": 12, "moved_by": "gradient"}
WIDER = {**WIDTH, "high": 40}
RATE = {"type": "float", "low": 1e-3, "high": 1.0, "log": True, "moved_by": "gradient"}
METHODS: dict[str, tuple[Method, bool]] = {  # and whether it sees the learning rate
    "descent": (Method(kind="descent"), False),
    "bilevel": (Method(kind="bilevel"), False),
    "second": (Method(kind="bilevel", order="second"), True),
    "unrolled": (Method(kind="unrolled"), True),
    "checkpoints": (Method(kind="unrolled", checkpoints=True), True),
    "truncated": (Method(kind="truncated", horizon=2), True),
    "forward": (Method(kind="forward"), True),
    "reversible": (Method(kind="reversible"), True),
    "neumann": (Method(kind="implicit", terms=3), False),
    "cg": (Method(kind="implicit", solver="cg", terms=3), False),
    "hypernet": (Method(kind="hypernet"), False),
}
MAPS: dict[str, tuple[Network, str]] = {
    "convnet per_lane": (ConvNet(layers=2, width=4), "per_lane"),
    "convnet unfolded": (ConvNet(layers=2, width=4), "unfolded"),
    "residual unfolded": (Residual(stages=1, width=4), "unfolded"),
}
SLOW = ("checkpoints", "forward", "cg", *MAPS)
CASES = [pytest.param(case, marks=pytest.mark.long if case in SLOW else ()) for case in (*METHODS, *MAPS)]
QUICK = ("descent", "second", "unrolled", "reversible", "neumann")
MLPS = [pytest.param(case, marks=() if case in QUICK else pytest.mark.long) for case in METHODS]
Point = dict[str, float]
POINTS: list[Point] = [
    {"width.0": 3.3, "width.1": 7.5, "lr": 0.1},
    {"width.0": 10.2, "width.1": 34.0, "lr": 0.02},
    {"width.0": 6.6, "width.1": 20.1, "lr": 0.05},
]


def plan_of(case: str, **facts: Any) -> Plan:
    """A few steps of a bundle in which the method moves sizes, and the learning rate where it sees it."""
    method, sees = METHODS[case.partition(" ")[0]] if case in METHODS else METHODS["unrolled"]
    own: dict[str, Any] = {"width.0": WIDTH, "width.1": WIDER}
    told: dict[str, Any] = {"task": load("uci/iris"), "network": MLP(layers=2, activation="silu"), "metric": "val_loss"}
    training = Training(batch_size=14, epochs=4, momentum=0.9)
    if case in MAPS:
        network, way = MAPS[case]
        told |= {"task": load("uci/digits-images"), "network": network, "way": way}
        own = {"depth.0": {**WIDTH, "type": "depth", "low": 0, "high": 2}} if "residual" in case else {"width.0": WIDTH}
        training = Training(batch_size=64, epochs=1, momentum=0.9)
    rate = {**RATE, "moved_by": "gradient" if sees else "sampler", "high": facts.pop("most", 1.0)}
    method = replace(method, **{"every": 4, "warmup": 2, "lr": 0.02, **facts.pop("outer", {})})
    told |= {"space": Space.from_dict({**own, "lr": rate}), "training": training, "method": method, "evaluations": 1}
    return Plan(**{**told, **facts})


def point_of(plan: Plan, number: int, **others: float) -> Point:
    own = {**POINTS[number], "depth.0": (1.3, 0.4, 1.8)[number], **others}
    return {name: own[name] for name in plan.space.coordinates}


def bundle_of(plan: Plan, numbers: list[int], **others: float) -> Bundle:
    """Trials by number; `others` are of the last."""
    points = [point_of(plan, n, **(others if n == numbers[-1] else {})) for n in numbers]
    trials = tuple(Trial(search_id="s", number=n, point=dict(p)) for n, p in zip(numbers, points, strict=True))
    return Bundle(search_id="s", id="b", generation=0, trials=trials)


def outcomes(plan: Plan, numbers: list[int], **others: float) -> dict[int, Outcome]:
    records = list(Trainer(plan).train(bundle_of(plan, numbers, **others)))
    return {record.number: record for record in records if isinstance(record, Outcome)}


def complete(plan: Plan, numbers: list[int], **others: float) -> dict[int, Outcome]:
    found = outcomes(plan, numbers, **others)
    for outcome in found.values():
        assert outcome.ending is Ending.COMPLETE, outcome.error
    return found


def run_of(plan: Plan, numbers: list[int]) -> FusedRun:
    return FusedRun(plan, bundle_of(plan, numbers), Trainer(plan).rows, torch.device("cpu"))


# -- in company --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_trial_is_bitwise_the_same_alone_in_company_and_in_any_order(case: str) -> None:
    plan = plan_of(case)
    together, turned = complete(plan, [0, 1, 2]), complete(plan, [2, 0, 1])
    alone = {number: complete(plan, [number])[number] for number in range(3)}
    for number, outcome in together.items():
        for other in (turned[number], alone[number]):
            assert (outcome.point, outcome.value) == (other.point, other.value)
            assert outcome.metrics == other.metrics or case == "reversible"  # whose tape is the bundle's
        assert outcome.point != point_of(plan, number)


@pytest.mark.parametrize("activation", [pytest.param("relu", marks=pytest.mark.long), "gelu"])
@pytest.mark.parametrize("membership", ["support", "fuzzy", "concrete"])
def test_so_it_is_with_every_membership_and_batch(membership: str, activation: str) -> None:
    """Batches that no vector divides, layers narrower than one, and gates with a coordinate for each unit."""
    network = MLP(layers=2, membership=membership, activation=activation)
    plan = plan_of("unrolled", network=network, training=Training(batch_size=7, epochs=2, momentum=0.9))
    together = complete(plan, [0, 1, 2])
    for number, outcome in together.items():
        alone = complete(plan, [number])[number]
        assert (outcome.point, outcome.value) == (alone.point, alone.value)


@pytest.mark.parametrize("units", [3, 12, 40, 130])
@pytest.mark.parametrize("membership", list(MEMBERSHIPS))
def test_the_grades_of_a_row_are_bitwise_the_same_alone(membership: str, units: int) -> None:
    """With their derivatives: in the unit's last digit a trial would hear of its bundle otherwise."""
    kind, rows = MEMBERSHIPS[membership], 5
    generator = torch.Generator().manual_seed(0)
    n_K = 1 + (units - 1) * torch.rand(rows, generator=generator, dtype=torch.float64)
    whole = {name: value.detach() for name, value in kind.start(n_K, units, 0.3).items()}
    whole = {name: v + 0.1 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for name, v in whole.items()}
    draws = kind.draws(units)
    noise = torch.rand(rows, draws, generator=generator, dtype=torch.float64).clamp(0.01, 0.99) if draws else None

    def graded(own: slice) -> list[torch.Tensor]:
        leaves = {name: value[own].clone().requires_grad_() for name, value in whole.items()}
        grades = kind.grades(leaves, units, 0.3, None if noise is None else noise[own])
        size = kind.size(leaves, units, 0.3)
        told = torch.autograd.grad((grades**2).sum() + size.sum(), list(leaves.values()), allow_unused=True)
        return [grades.detach(), size.detach(), *(g for g in told if g is not None)]

    together = graded(slice(None))
    for k in range(rows):
        for found, expected in zip(graded(slice(k, k + 1)), together, strict=True):
            assert torch.equal(found[0], expected[k])


@pytest.mark.parametrize("case", CASES)
def test_a_lane_that_diverges_falls_alone(case: str) -> None:
    plan = plan_of(case, most=1e32, outer={"lr": 0.001})
    sane, wild = complete(plan, [0, 1, 2]), outcomes(plan, [0, 1, 2], lr=1e30)
    assert (wild[2].ending, wild[2].value) == (Ending.NAN, None)
    for number in (0, 1):
        assert wild[number].ending is Ending.COMPLETE
        assert (wild[number].point, wild[number].value) == (sane[number].point, sane[number].value)
    assert plan.space.faults(wild[2].point) == []


# -- the run's own steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_an_outer_rate_of_zero_moves_nothing_bitwise(case: str) -> None:
    plan = plan_of(case, outer={"lr": 0.0})
    for number, outcome in complete(plan, [0, 1]).items():
        assert outcome.point == point_of(plan, number)


@pytest.mark.parametrize("case", CASES)
def test_steps_that_no_window_takes_are_plain_ones(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(case)
    run = run_of(plan, [0, 1])
    step, plain = run.program.step, []

    def counted(x: torch.Tensor, y_BO: torch.Tensor) -> None:
        plain.append(len(y_BO))
        step(x, y_BO)

    monkeypatch.setattr(run.program, "step", counted)
    found = [record for record in run.records() if isinstance(record, Outcome)]
    moves = plan.method.moves(run.steps)
    assert run.architecture is not None
    assert run.architecture.moves is not None
    assert run.architecture.moves.moved == len(moves) >= 2
    assert (run.steps - plan.method.warmup) % plan.method.every != 0  # the windows do not divide it
    assert len(plain) == run.steps - plan.method.window * len(moves) > plan.method.warmup
    assert [outcome.step for outcome in found] == [run.steps] * 2
    assert run.steps == plan.training.steps(len(run.data.y_R))


# -- what is told ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_what_a_method_found_is_told(case: str) -> None:
    own = {"neumann": {"residual", "flat"}, "cg": {"residual", "flat"}, "reversible": {"tape_bits"}}.get(case, set())
    clips = {}
    for clip in (0.0, 1e-9, 1e9):
        for outcome in complete(plan_of(case, outer={"clip": clip}), [0, 1]).values():
            assert {"residual", "flat", "tape_bits"} & set(outcome.metrics) == own
            assert all(math.isfinite(outcome.metrics[name]) for name in own | {"clipped"})
            clips[clip] = outcome.metrics["clipped"]
    assert clips == {0.0: 0.0, 1e-9: 1.0, 1e9: 0.0}


@pytest.mark.parametrize("case", MLPS)
def test_replicates_move_on_their_own_and_the_point_is_their_mean(case: str) -> None:
    run = run_of(plan_of(case, seeds=2), [0, 2])
    found = [record for record in run.records() if isinstance(record, Outcome)]
    names, all_KM = run._named_KM
    for i, outcome in enumerate(found):
        assert outcome.ending is Ending.COMPLETE, outcome.error
        first, second = all_KM[2 * i : 2 * i + 2]
        for name, a, b in zip(names, first, second, strict=True):
            assert a != b
            assert outcome.point[name] == pytest.approx((a + b) / 2, rel=1e-12)


@pytest.mark.parametrize(
    ("case", "membership"),
    [
        pytest.param(case, membership, marks=() if case in quick else pytest.mark.long)
        for case in METHODS
        for membership, quick in (("nested", QUICK), ("band annealed", QUICK), ("support", ()), ("concrete", ()))
    ],
)
def test_annealed_and_random_memberships_run(case: str, membership: str) -> None:
    name, _, annealed = membership.partition(" ")
    ends = {"tau": 0.3, "tau_end": 0.05} if annealed else {}
    plan = plan_of(case, network=MLP(layers=2, membership=name, **ends))
    for number, outcome in complete(plan, [0, 1]).items():
        assert math.isfinite(float(outcome.value or math.nan))
        assert outcome.point != point_of(plan, number)
        assert plan.space.faults(outcome.point) == []
