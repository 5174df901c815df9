"""Lanes with real strides, depths and topologies: every way of running them agrees with one lane after the other, and
lanes that are whole with torch's own loop over the networks that one would write.

Legend of shape suffixes: K lanes, M numbers, B batch, O outputs.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_lane_ways import RULES, batch_of, hyper
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from search_spaces import Space
from search_spaces.kept import Size
from search_spaces.networks import Cell, ConvNet, Fabric, Graphon, Network, Residual
from search_spaces.realise import realise
from trials.lanes.initial import Start
from trials.lanes.looped import LoopedLanes
from trials.lanes.vmapped import VmappedLanes
from trials.training import WAYS
from trials.widths import GateKind, Widths

OUTPUTS, IMAGE, LANES = 3, (2, 7, 7), 3
STRIDES = {f"stride.{i}": {"type": "stride", "low": 1, "high": 4} for i in range(2)}
DEPTHS = {f"depth.{i}": {"type": "depth", "low": 0, "high": 2} for i in range(2)}


def graph(kind: str, *operations: str, **facts: int) -> dict[str, Any]:
    return {"topology": {"type": "topology", "kind": kind, "operations": list(operations), **facts}}


CASES: dict[str, tuple[Network, dict[str, Any], tuple[int, ...]]] = {
    **{kind: (ConvNet(layers=2, width=4, stride=kind), STRIDES, IMAGE) for kind in ("shrink", "resize", "spectral")},
    "strides and depths": (Residual(stages=2, blocks=2, width=4), {**STRIDES, **DEPTHS}, IMAGE),
    "depths of rows": (Residual(stages=1, blocks=2, width=4), {"depth.0": DEPTHS["depth.0"]}, (5,)),
    "cell": (Cell(cells=2, width=4), graph("free", "conv3", "max_pool", "skip", nodes=2), IMAGE),
    "graphon": (Graphon(width=4), graph("graphon", "separable", "skip", nodes=3, coefficients=3), IMAGE),
    "graphon of rows": (Graphon(width=4), graph("graphon", "linear", "skip", nodes=4), (5,)),
    "fabric": (Fabric(width=4), graph("fabric", "conv1", "avg_pool", layers=2, scales=2), IMAGE),
}


class Case:
    """A network bound to its space, and programs of its lanes."""

    def __init__(self, name: str) -> None:
        declared, space, self.shape = CASES[name]
        self.network = declared.within(Space.from_dict(space))
        flow = realise(self.network, self.shape, OUTPUTS).flow
        assert flow is not None
        self.start, self.maxima = Start(flow=flow, gates=self.network.gates), self.network.maxima()

    def kinds(self) -> list[GateKind]:
        ends = {"stride": (1.0, 4.0, False), "depth": (0.0, 2.0, False), "topology": (0.0, 1.0, False)}
        roles = {gate: self.network.role(gate) for gate in self.network.gates}
        return [
            GateKind(
                name=gate,
                maximum=maximum,
                scale=ends.get(roles[gate], (1.0, 4.0, True)),
                role=roles[gate],
                topology=self.network.topology_of(gate),
            )
            for gate, maximum in zip(self.network.gates, self.maxima, strict=True)
        ]

    def numbers(self, seed: int) -> Tensor:
        """Numbers of every lane, between whole ones."""
        generator = torch.Generator().manual_seed(seed)
        u_KM = torch.rand(LANES, len(self.network.numbers), generator=generator, dtype=torch.float64)
        columns = []
        for m, number in enumerate(self.network.numbers):
            low, high = {"width": (1.2, 3.8), "stride": (1.1, 3.9), "depth": (0.1, 1.9)}.get(
                number.split(".")[0], (0.05, 0.95)
            )
            columns.append(low + (high - low) * u_KM[:, m])
        return torch.stack(columns, 1)

    def program(self, way: str, *, gated: bool = True, whole: bool = False) -> Any:
        if way == "per_lane":
            return LoopedLanes(self.start, gated=gated, dtype=torch.float64)
        return VmappedLanes(self.start, way=way, whole=whole, dtype=torch.float64)

    def named(self, lanes: list[Any]) -> list[dict[str, Any]]:
        return [dict(zip(self.network.gates, lane, strict=True)) for lane in lanes]


def journey(way: str, name: str, rule: str) -> list[Tensor]:
    """What a program answers while its strides, depths and edges move to and fro: gradients by them, predictions."""
    case = Case(name)
    widths = Widths(case.kinds(), case.numbers(0))
    lanes = case.program(way)
    lanes.begin([(0, k, 0) for k in range(LANES)], case.named(widths.reach()), case.named(widths.sizes_KG.tolist()))
    lanes.attach(RULES[rule], hyper(LANES))
    answers = []
    for step in range(6):
        if step % 2 == 0:
            widths.set(case.numbers(step))
            widths.share = step / 6
            lanes.regate(widths.members(), widths.reach(lanes.sizes), widths.sizes_KG)
        x, y_BO = batch_of(case.shape, step)
        answers.append(widths.pull(lanes.grade_gradients(x, y_BO)))  # by what is not laid out there is none
        lanes.step(x, y_BO)
        answers.append(lanes.predict(batch_of(case.shape, 100)[0]))
    lanes.recalibrate([batch_of(case.shape, step)[0] for step in range(3)])
    return [*answers, lanes.predict(batch_of(case.shape, 100)[0])]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize(("way", "rule"), [("grouped", "sgd"), ("unfolded", "adamw")])
def test_ways_agree_while_strides_depths_and_edges_move(way: str, name: str, rule: str) -> None:
    for got, want in zip(journey(way, name, rule), journey("per_lane", name, rule), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["resize", "depths of rows", "cell"])
@pytest.mark.parametrize("way", ["grouped", "unfolded"])
def test_a_lane_alone_is_bitwise_what_it_is_in_company(way: str, name: str) -> None:
    """In float32, where torch's kernels for one matrix differ from those for many in the last bit."""
    case, found = Case(name), []
    for count in (1, 2, LANES):
        widths = Widths(case.kinds(), case.numbers(0)[:count])
        lanes = VmappedLanes(case.start, way=way)
        laid = case.named(Widths(case.kinds(), case.numbers(0)).reach())  # of one shape class
        room = {g: max(own[g] for own in laid) if g in case.network.widths else laid[0][g] for g in case.network.gates}
        lanes.begin([(0, k, 0) for k in range(count)], [room] * count, case.named(widths.sizes_KG.tolist()))
        lanes.attach(RULES["adamw"], {rule: value[:count] for rule, value in hyper(LANES).items()})
        lanes.regate(widths.members(), lanes.sizes, widths.sizes_KG)
        own = []
        for step in range(4):
            x, y_BO = (tensor.float() for tensor in batch_of(case.shape, step))
            own += [gradient[:1] for gradient in lanes.grade_gradients(x, y_BO)]
            lanes.step(x, y_BO)
        found.append([*own, lanes.predict(batch_of(case.shape, 9)[0].float())[:1]])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def whole_points(case: Case) -> list[dict[str, Any]]:
    """Rounded points of every lane; lanes of a bundle have the same strides."""
    points = [
        case.network.rounded(dict(zip(case.network.numbers, lane, strict=True))) for lane in case.numbers(7).tolist()
    ]
    return [{**point, **{name: points[0][name] for name in point if name.startswith("stride")}} for point in points]


def whole_lanes(case: Case, way: str, rule: str) -> Any:
    points, gated = whole_points(case), way != "per_lane"
    sizes: list[dict[str, Size]] = [case.network.whole_sizes(point) for point in points]
    numbers_KM = torch.tensor([case.network.sizes(point) for point in points], dtype=torch.float64)
    kinds = [GateKind(**{**vars(kind), "scale": None, "whole": True}) for kind in case.kinds()]
    widths = Widths(kinds, numbers_KM)
    lanes = case.program(way, gated=gated, whole=True)
    lanes.begin([(0, k, 0) for k in range(LANES)], sizes, case.named(widths.sizes_KG.tolist()))
    lanes.attach(RULES[rule], hyper(LANES))
    if gated:
        lanes.regate(widths.members(), lanes.sizes, widths.sizes_KG)
    return lanes


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize(("way", "rule"), [("per_lane", "adamw"), ("grouped", "adamw"), ("unfolded", "sgd")])
def test_whole_lanes_equal_plain_networks_in_torchs_own_loop(way: str, name: str, rule: str) -> None:
    """Lanes of several depths and graphs in one program, batch norms and optimiser included."""
    case = Case(name)
    lanes, plain, values, loops = whole_lanes(case, way, rule), whole_lanes(case, "per_lane", rule), hyper(LANES), []
    for k in range(LANES):
        module = copy.deepcopy(plain.module(k)).train()
        lr, decay = float(values["lr"][k]), float(values["weight_decay"][k])
        betas = (float(values["beta1"][k]), float(values["beta2"][k]))
        optimiser: torch.optim.Optimizer
        if rule == "sgd":
            optimiser = torch.optim.SGD(module.parameters(), lr=lr, momentum=float(values["momentum"][k]))
        else:
            optimiser = torch.optim.AdamW(module.parameters(), lr=lr, betas=betas, weight_decay=decay)
        loops.append((module, optimiser))
    for step in range(5):
        x, y_BO = batch_of(case.shape, step)
        lanes.step(x, y_BO)
        for module, optimiser in loops:
            optimiser.zero_grad()
            functional.cross_entropy(module(x), y_BO).backward()
            optimiser.step()
    x, _ = batch_of(case.shape, 77)
    for got, (module, _) in zip(lanes.predict(x), loops, strict=True):
        torch.testing.assert_close(got.mT, module.eval()(x), rtol=1e-7, atol=1e-8)
    others = [batch_of(case.shape, step)[0] for step in range(80, 84)]
    lanes.recalibrate(others)
    for got, (module, _) in zip(lanes.predict(x), loops, strict=True):
        update_bn(others, module)
        torch.testing.assert_close(got.mT, module.eval()(x), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", list(CASES))
def test_a_block_or_edge_that_is_not_there_rests(name: str) -> None:
    """Neither momentum nor decay moves the weights of what has the grade 0, and it comes back as it left."""
    case = Case(name)
    if not any(gate.role in ("depth", "topology") for gate in case.kinds()):
        return
    found = {}
    for way in WAYS[::2]:
        numbers_KM = case.numbers(0)
        widths = Widths(case.kinds(), numbers_KM)
        lanes = case.program(way)
        lanes.begin([(0, k, 0) for k in range(LANES)], case.named(widths.reach()), case.named(widths.sizes_KG.tolist()))
        lanes.attach(RULES["adamw"], hyper(LANES))
        lanes.regate(widths.members(), widths.reach(lanes.sizes), widths.sizes_KG)
        lanes.step(*batch_of(case.shape, 0))
        gone_KM = numbers_KM.clone()
        for m, number in enumerate(case.network.numbers):
            if number.startswith("depth") or (number.startswith("topology") and m % 2):
                gone_KM[:, m] = 0.0
        widths.set(gone_KM)
        lanes.regate(widths.members(), widths.reach(lanes.sizes), widths.sizes_KG)
        before = {k: weights(case, lanes, k) for k in range(LANES)}
        for step in range(3):
            lanes.step(*batch_of(case.shape, 1 + step))
        widths.set(numbers_KM)
        lanes.regate(widths.members(), widths.reach(lanes.sizes), widths.sizes_KG)
        found[way] = [weights(case, lanes, k) for k in range(LANES)]
        for k in range(LANES):
            resting = [n for n in before[k] if torch.equal(before[k][n], found[way][k][n])]
            if name not in ("graphon", "graphon of rows"):  # whose edges have no numbers of their own
                assert resting
    for way in WAYS[2:]:
        for got, want in zip(found[way], found["per_lane"], strict=True):
            for path, value in want.items():
                torch.testing.assert_close(got[path][tuple(map(slice, value.shape))], value, rtol=1e-8, atol=1e-9)


def weights(case: Case, lanes: Any, lane: int) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in lanes.module(lane).named_parameters()}
