"""How strides, depths and edges begin, move, and are charged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from search_spaces import Space
from search_spaces.networks import Cell, ConvNet, Fabric, Graphon, Network, Residual
from search_spaces.topology import TEMPERATURE, grades
from trials.fused import FusedRun
from trials.hypergradients import Method
from trials.hypergradients.moves import Moves
from trials.lanes.making import gate_kinds, jittered
from trials.ledger import most_flops
from trials.plan import Plan
from trials.records import Bundle, Ending, Outcome, Report, Trial
from trials.tasks import load
from trials.train import Trainer
from trials.training import Training
from trials.widths import Widths

STRIDE = {"type": "stride", "low": 1, "high": 3}
DEPTH = {"type": "depth", "low": 0, "high": 2}
EDGES: dict[str, Any] = {"type": "topology", "operations": ["conv1", "skip"], "nodes": 2}
LATTICE: dict[str, Any] = {
    "type": "topology",
    "kind": "fabric",
    "operations": ["conv1", "skip"],
    "layers": 2,
    "scales": 2,
}


def plan_of(
    network: Network, space: dict[str, Any], *, kind: str = "descent", moved: bool = True, **facts: Any
) -> Plan:
    own = {key: {**value, **({"moved_by": "gradient"} if moved else {})} for key, value in space.items()}
    return Plan(
        space=Space.from_dict(own),
        task=load("uci/digits-images"),
        network=network,
        training=Training(epochs=1, batch_size=64),
        method=Method(**{"warmup": 2, "every": 3, **facts.pop("method", {}), "kind": "descent" if moved else "none"}),
        metric="val_loss",
        **facts,
    )


def trained(plan: Plan, points: list[dict[str, Any]]) -> list[Report | Outcome]:
    trials = tuple(Trial(search_id="s", number=i, point=point) for i, point in enumerate(points))
    return list(Trainer(plan).train(Bundle(search_id="s", id="b", generation=0, trials=trials)))


# -- where they begin --------------------------------------------------------------------------------------------------


def begun(network: Network, strides: list[float], *, moved: bool = True, seed: int = 0) -> list[float]:
    plan = plan_of(network, {"stride.0": STRIDE}, moved=moved, seed=seed)
    points = [{"stride.0": s} for s in strides]
    assert plan.network is not None
    numbers_KM = torch.tensor([plan.network.sizes(point) for point in points], dtype=torch.float64)
    kinds = gate_kinds(plan, points[0], plan.network.maxima(plan.space))  # type: ignore[arg-type]
    start_KM = jittered(plan, kinds, numbers_KM, [(seed, k, 0) for k in range(len(points))])
    return [float(s) for s in start_KM[:, plan.network.numbers.index("stride.0")]]


def test_a_stride_that_a_gradient_moves_begins_beside_a_whole_one() -> None:
    whole = [1.0, 2.0, 3.0, 2.04]
    found = begun(ConvNet(layers=1), whole)
    assert all(0.0 <= abs(s - n) <= 0.25 and 1 <= s <= 3 for s, n in zip(found, whole, strict=True))
    assert found[1] != 2.0
    assert found[3] != 2.04
    assert begun(ConvNet(layers=1), whole) == found  # a function of seed and trial
    assert begun(ConvNet(layers=1), whole, seed=1) != found
    assert begun(ConvNet(layers=1), [1.4, 2.5]) == [1.4, 2.5]


@pytest.mark.parametrize(
    ("network", "moved"),
    [
        (ConvNet(layers=1, jitter=0.0), True),
        (ConvNet(layers=1, stride="resize"), True),  # no kink at whole strides
        (ConvNet(layers=1, stride="shrink"), False),
    ],
)
def test_others_begin_where_they_are_asked_to(network: Network, moved: bool) -> None:
    assert begun(network, [1.0, 2.0], moved=moved) == [1.0, 2.0]


def test_lanes_share_a_bundle_by_their_strides() -> None:
    space = {"stride.0": STRIDE, "width.0": {"type": "width", "low": 2, "high": 30}}
    fixed = plan_of(ConvNet(layers=1), space, moved=False, way="unfolded")
    classes = [fixed.shape_class({"stride.0": s, "width.0": n}) for s, n in ((1.6, 5.2), (2.4, 7.9), (2.6, 5.2))]
    assert classes == [(8, 2), (8, 2), (8, 3)]
    free = plan_of(ConvNet(layers=1), {**space, "stride.0": {**STRIDE, "low": 1.7}}, way="unfolded")
    assert free.shape_class({"stride.0": 2.9, "width.0": 5.0}) == (30, 1)  # room for whatever it may come to


# -- how they move -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pressure", "ends"), [({"entropy": 1.0}, [0.0, 1.0]), ({"sparsity": 1.0}, [0.0, 0.0])], ids=["entropy", "sparsity"]
)
def test_pressure_makes_edges_decide(pressure: dict[str, float], ends: list[float]) -> None:
    """On a loss that does not care, each number goes to the end that the pressure says."""
    plan = plan_of(Cell(cells=1), {"topology": {**EDGES, "nodes": 1}}, method={**pressure, "lr": 0.02})
    assert plan.network is not None
    point = {"topology.0": 0.4, "topology.1": 0.6}
    kinds = gate_kinds(plan, point, plan.network.maxima(plan.space))  # type: ignore[arg-type]
    widths = Widths(kinds, torch.tensor([plan.network.sizes(point)], dtype=torch.float64))  # type: ignore[arg-type]
    moves = Moves(plan.method, widths.scales, widths.coordinates_KP, {}, widths.wiring, plan.method.pressures)
    for _ in range(80):
        widths.set(moves.step(torch.zeros_like(widths.coordinates_KP)))
    assert widths.numbers_KM[0, -2:].tolist() == pytest.approx(ends, abs=0.03)


def test_reports_tell_how_decided_edges_are_and_how_many_are_skips() -> None:
    plan = plan_of(Fabric(width=4), {"topology": LATTICE})
    records = trained(plan, [plan.space.sample(np.random.default_rng(0))])
    last = [record for record in records if isinstance(record, Report) and record.metrics][-1]
    assert 0 < last.metrics["undecided"] < 1
    assert 0 < last.metrics["skip_share"] < 1
    assert last.metrics["edges"] > 0
    numbers = [name for name in last.architecture if name.startswith("topology.")]
    assert len(numbers) == plan.space.parameters["topology"].size  # type: ignore[attr-defined]


def test_edges_are_sharper_at_the_end_than_at_the_start() -> None:
    plan = plan_of(Cell(cells=1), {"topology": EDGES})
    assert plan.network is not None
    point = {f"topology.{i}": 0.3 + 0.1 * i for i in range(6)}
    kinds = gate_kinds(plan, point, plan.network.maxima(plan.space))  # type: ignore[arg-type]
    widths = Widths(kinds, torch.tensor([plan.network.sizes(point)], dtype=torch.float64))  # type: ignore[arg-type]
    soft = widths.grades()[-1]
    widths.share = 1.0
    hard = widths.grades()[-1]
    assert soft[0].tolist() == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert hard[0].tolist() == pytest.approx([w**10 / (w**10 + (1 - w) ** 10) for w in soft[0].tolist()])


# -- what they cost ----------------------------------------------------------------------------------------------------

ARMS: dict[str, tuple[Network, dict[str, Any]]] = {
    **{kind: (ConvNet(layers=2, width=4, stride=kind), {"stride.0": STRIDE}) for kind in ("shrink", "resize")},
    "spectral": (ConvNet(layers=2, width=4, stride="spectral"), {"stride.0": {**STRIDE, "low": 1.2}}),
    "depth": (Residual(stages=2, blocks=2, width=4), {"depth.0": DEPTH, "stride.1": STRIDE}),
    "cell": (Cell(cells=1, width=4), {"topology": EDGES}),
    "graphon": (Cell(cells=1, width=4), {"topology": {**EDGES, "kind": "graphon", "coefficients": 2}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["per_lane", "unfolded"])
@pytest.mark.parametrize("moved", [False, True], ids=["rounded", "moved"])
@pytest.mark.parametrize("name", list(ARMS))
def test_a_budget_in_flops_is_never_overrun(name: str, moved: bool, way: str) -> None:
    network, space = ARMS[name]
    plan = plan_of(network, space, moved=moved, way=way)
    point = plan.space.sample(np.random.default_rng(1))
    (outcome,) = (record for record in trained(plan, [point]) if isinstance(record, Outcome))
    assert outcome.error is None
    assert outcome.spent.executed_flops <= most_flops(plan, point) * (1 + 1e-9)
    assert outcome.spent.flops <= outcome.spent.executed_flops * (1 + 1e-9)


def test_edges_cost_what_their_grades_of_now_say() -> None:
    """Penalty, bounds and counted FLOPs see the temperature that the lanes run at, not that of the start."""
    plan = plan_of(Cell(cells=1, width=4), {"topology": EDGES}, penalty={"flops": 1e-6}, bounds={"flops": 1e9})
    points = [plan.space.sample(np.random.default_rng(k)) for k in range(2)]
    trials = tuple(Trial(search_id="s", number=i, point=point) for i, point in enumerate(points))
    bundle = Bundle(search_id="s", id="b", generation=0, trials=trials)
    run = FusedRun(plan, bundle, Trainer(plan).rows, torch.device("cpu"))
    outcomes = [record for record in run.records() if isinstance(record, Outcome)]
    assert plan.network is not None
    assert run.architecture is not None
    assert run.architecture.moves is not None
    (topology,) = (plan.network.topology_of(gate) for gate in plan.network.gates if gate == "topology")
    assert topology is not None
    widths = run.architecture.widths
    assert widths.share == 1.0
    charged = run.architecture.moves.cost(widths.coordinates_KP)["flops"]
    for k, outcome in enumerate(outcomes):
        own = [outcome.point[f"topology.{i}"] for i in range(topology.size)]
        numbers = torch.tensor(own, dtype=torch.float64)
        live = {"width.0": 4.0, "topology": grades(topology, numbers, TEMPERATURE[1])}
        cost = float(plan.costs.flops(live))
        assert cost != pytest.approx(float(plan.costs.flops({**live, "topology": grades(topology, numbers, 1.0)})))
        assert float(charged[k]) == pytest.approx(cost, rel=1e-9)
        assert outcome.value == pytest.approx(outcome.metrics["val_loss"] + 1e-6 * cost, rel=1e-6)


def test_a_graph_rounds_to_one_path_before_it_overshoots_and_has_no_value_where_that_does() -> None:
    """Of a kernel whose slopes alone keep edges, lowering the constant is not enough."""
    space = {"topology": {**EDGES, "operations": ["conv5", "conv3"], "kind": "graphon", "coefficients": 4}}
    free = plan_of(Graphon(width=8), space)
    lowest, flat = [0.0, 0.5, 1.0, 0.0], [0.0, 0.5, 0.5, 0.5]  # the slopes of the first keep the direct edge
    point = {f"topology.{i}": w for i, w in enumerate(2 * lowest)}
    network = free.network
    assert network is not None

    def parameters(of: dict[str, Any]) -> float:
        return float(free.costs.parameters(network.named(network.sizes(of), whole=True)))

    path = parameters({f"topology.{i}": w for i, w in enumerate(2 * flat)})
    assert parameters(point) > path
    for bound, ending in ((path, Ending.COMPLETE), (path - 1, Ending.INFEASIBLE)):
        plan = plan_of(Graphon(width=8), space, bounds={"parameters": bound}, method={"lr": 0.0})
        (outcome,) = (record for record in trained(plan, [point]) if isinstance(record, Outcome))
        assert outcome.ending is ending
        assert (outcome.value is None) is (ending is Ending.INFEASIBLE)
        assert outcome.metrics["parameters"] == path
        told = f"no whole network near where it moved meets the bounds: parameters {path:,.0f} > {bound:,.0f}"
        assert outcome.error == (told if ending is Ending.INFEASIBLE else None)
