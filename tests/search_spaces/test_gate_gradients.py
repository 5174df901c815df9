"""Gradients of every continuous value of every network under every membership, against finite differences.

The gradient is the one that a search follows: from a program of lanes to grades to the membership's numbers, in
float64, at non-integer sizes. Random memberships keep one draw. A membership's many numbers are each taken along three
directions: one number, another, and a random one.

    python tests/search_spaces/test_gate_gradients.py        # prints the matrix of greatest relative errors

Legend of shape suffixes: K lanes, P coordinates, B batch, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from network_cases import ORDINARY, OUTPUTS
from torch import Tensor, nn
from torch.nn import functional

from search_spaces import Space
from search_spaces.continuous import make_continuous
from search_spaces.extent import KINDS
from search_spaces.flow import Flow
from search_spaces.kept import roles_of
from search_spaces.membership import MEMBERSHIPS
from search_spaces.networks import Cell as Cells
from search_spaces.networks import ConvNet, Fabric, Graphon, Residual
from search_spaces.realise import realise
from search_spaces.width import WidthGate, gates_of, held
from search_spaces.wiring import Topology
from trials.lanes.dense import DenseShape
from trials.lanes.gated import DenseProgram
from trials.lanes.initial import Start
from trials.lanes.looped import LoopedLanes
from trials.lanes.program import loss_of, still
from trials.optimisers import Rule
from trials.widths import GateKind, Widths

IMAGE, ROW, BATCH = (3, 8, 8), (5,), 6
SIZES = (2.3, 4.7, 3.4, 5.6, 1.8)
STRIDES, DEPTHS = (1.37, 2.23), (1.4, 1.7)
STEP = 1e-5


class Branches(nn.Module):
    """A user's own network with gates of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 7), nn.Linear(5, 6), nn.Linear(13, 8)
        self.head = nn.Linear(8, OUTPUTS)
        self.left, self.right, self.mixed = WidthGate("left", 7), WidthGate("right", 6), WidthGate("mixed", 8)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.left(torch.tanh(self.a(x))), self.right(functional.silu(self.b(x)))], 1)
        out: Tensor = self.head(self.mixed(functional.gelu(self.c(both))))
        return out


def declared(network: Any, shape: tuple[int, ...]) -> Callable[[], tuple[Flow, tuple[int, ...]]]:
    def make() -> tuple[Flow, tuple[int, ...]]:
        flow = realise(network, shape, OUTPUTS).flow
        assert flow is not None
        return flow, shape

    return make


def bound(network: Any, space: dict[str, Any], shape: tuple[int, ...] = IMAGE) -> Any:
    """A network with the strides, depths or topology that a space asks for."""
    return declared(network.within(Space.from_dict(space)), shape)


def graph(kind: str, **facts: Any) -> dict[str, Any]:
    operations = facts.pop("operations", ["conv3", "avg_pool", "skip"])
    return {"topology": {"type": "topology", "kind": kind, "operations": operations, **facts}}


def continuous(name: str) -> Callable[[], tuple[Flow, tuple[int, ...]]]:
    def make() -> tuple[Flow, tuple[int, ...]]:
        build, shape = ORDINARY[name]
        torch.manual_seed(0)
        gated, _ = make_continuous(build(), example=(2, *shape))
        return Flow(held(gated), torch.zeros(2, *shape)), shape

    return make


def own() -> tuple[Flow, tuple[int, ...]]:
    torch.manual_seed(0)
    return Flow(held(Branches()), torch.zeros(2, *ROW)), ROW


SMOOTH = {"width": 8, "activation": "gelu"}
MAPS = {f"stride.{i}": {"type": "stride", "low": 1, "high": 4} for i in range(2)}
BLOCKS = {f"depth.{i}": {"type": "depth", "low": 0, "high": 2} for i in range(2)}
NETWORKS: dict[str, Callable[[], tuple[Flow, tuple[int, ...]]] | None] = {
    "mlp": None,  # dense lanes, which have no graph
    "convnet": declared(ConvNet(layers=2, **SMOOTH), IMAGE),
    "residual": declared(Residual(stages=2, blocks=1, **SMOOTH), IMAGE),
    "residual_of_rows": declared(Residual(stages=1, blocks=2, **SMOOTH), ROW),
    **{f"{kind}_strides": bound(ConvNet(layers=2, stride=kind, **SMOOTH), MAPS) for kind in KINDS},
    "strides_and_depths": bound(Residual(stages=2, blocks=2, **SMOOTH), {**MAPS, **BLOCKS}),
    "depths_of_rows": bound(Residual(stages=1, blocks=2, **SMOOTH), {"depth.0": BLOCKS["depth.0"]}, ROW),
    "cell": bound(Cells(cells=2, **SMOOTH), graph("free", nodes=2)),
    "graphon": bound(Graphon(**SMOOTH), graph("graphon", nodes=3, coefficients=3)),
    "graphon_of_rows": bound(Graphon(**SMOOTH), graph("graphon", nodes=4, operations=["linear", "skip"]), ROW),
    "fabric": bound(Fabric(**SMOOTH), graph("fabric", layers=2, scales=2, operations=["separable", "skip"])),
    "own": own,
    **{name: continuous(name) for name in ("vgg", "resnet", "mobilenet", "convnext", "densenet", "sequence")},
}
TOPOLOGIES = {
    "cell": Topology(kind="free", nodes=2, operations=("conv3", "avg_pool", "skip")),
    "graphon": Topology(kind="graphon", nodes=3, coefficients=3, operations=("conv3", "avg_pool", "skip")),
    "graphon_of_rows": Topology(kind="graphon", nodes=4, operations=("linear", "skip")),
    "fabric": Topology(kind="fabric", layers=2, scales=2, operations=("separable", "skip")),
}
WITH_STRIDES = (*(f"{kind}_strides" for kind in KINDS), "strides_and_depths")
#: what each membership grades here: of two blocks, hard-concrete grades would all be at an end, where they are flat
GRADED = {m: ("width",) if m == "concrete" else ("width", "depth") for m in MEMBERSHIPS}
MLP_GATES = ("width.0", "width.1")


@cache
def gates_named(name: str) -> tuple[GateKind, ...]:
    """A network's gates, each able to move; a width's membership is still to be chosen."""
    make = NETWORKS[name]
    if make is None:
        return tuple(GateKind(name=gate, maximum=8, scale=(1.0, 8.0, True)) for gate in MLP_GATES)
    graph = make()[0].graph
    roles, gates = roles_of(graph), gates_of(graph)
    ordered = sorted(gates, key=lambda gate: roles[gate] == "topology")
    return tuple(_able(gates[gate], roles[gate], name) for gate in ordered)


def _able(gate: Any, role: str, name: str) -> GateKind:
    ends = {"stride": (1.0, 4.0, False), "depth": (0.0, 2.0, False), "topology": (0.0, 1.0, False)}
    return GateKind(
        name=gate.name,
        maximum=gate.maximum,
        scale=ends.get(role, (1.0, float(gate.maximum), True)),
        role=role,
        topology=TOPOLOGIES[name] if role == "topology" else None,
    )


def numbers_of(gates: Sequence[GateKind]) -> list[float]:
    """Where the numbers of each gate stand: between whole ones."""
    found: list[float] = []
    for g, gate in enumerate(gates):
        own = {"stride": STRIDES, "depth": DEPTHS}.get(gate.role, SIZES)
        place = int(gate.name.split(".")[-1]) if gate.role in ("stride", "depth") else g
        if gate.topology is not None:
            found += [0.2 + 0.6 * ((7 * i) % 10) / 10 for i in range(gate.numbers)]
        else:
            found.append(min(own[place % len(own)], gate.maximum - 0.4 if gate.role == "width" else 9.0))
    return found


class Cell:
    """One network under one membership: its gradient by every coordinate, and its loss wherever they are."""

    def __init__(self, membership: str, name: str) -> None:
        self.gates = gates_named(name)
        kinds = [
            replace(gate, membership=membership) if gate.role in GRADED[membership] else gate for gate in self.gates
        ]
        self.widths = Widths(kinds, torch.tensor([numbers_of(self.gates)], dtype=torch.float64))
        generator = torch.Generator().manual_seed(1)
        self.noise = [
            torch.rand(1, draws, generator=generator, dtype=torch.float64) * 0.3 + 0.35 if draws else None
            for draws in self.widths.draws
        ]
        self.lanes, shape = self._lanes(name)
        x = torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64)
        self.x = functional.pad(x, (1, 0), value=1.0) if name == "mlp" else x
        self.y_BO = functional.one_hot(torch.arange(BATCH) % OUTPUTS, OUTPUTS).double()
        self.start_KP = self.widths.coordinates_KP.clone()
        for _ in range(2):  # so that biases and norms are not as they began
            self._take()
            self.lanes.step(self.x, self.y_BO)
        self._take()
        self.gradient_P = self.widths.pull(self.lanes.grade_gradients(self.x, self.y_BO), self.noise)[0]

    def _lanes(self, name: str) -> tuple[Any, tuple[int, ...]]:
        make = NETWORKS[name]
        reach, live = self.widths.reach(), self.widths.sizes_KG.tolist()
        lanes: Any
        if make is None:
            shape = DenseShape(inputs=5, outputs=OUTPUTS, activation="gelu", maxima=(8, 8))
            lanes = DenseProgram(shape, BATCH, gated=True, dtype=torch.float64)
            lanes.begin([(0, 0, 0)], reach, live)
            example = ROW
        else:
            flow, example = make()
            names = [gate.name for gate in self.gates]
            lanes = LoopedLanes(Start(flow=flow, gates=tuple(names)), gated=True, dtype=torch.float64)
            lanes.begin(
                [(0, 0, 0)],
                [dict(zip(names, reach[0], strict=True))],
                [dict(zip(names, live[0], strict=True))],
            )
        lanes.attach(Rule(), {"lr": torch.tensor([0.05])})
        lanes.regate(self.widths.grades(), self.widths.reach(lanes.sizes), self.widths.sizes_KG)
        return lanes, example

    def _take(self) -> None:
        self.lanes.sample(self.widths.grades(self.noise))

    def loss(self, coordinates_P: Tensor) -> float:
        """The loss of the lane's training pass with its numbers moved, its weights as they are."""
        self.widths.set(coordinates_P.unsqueeze(0))
        self._take()
        module = self.lanes.module(0).double()
        self.widths.set(self.start_KP)
        with torch.no_grad(), still(module):
            x = self.x[:, 1:] if isinstance(self.lanes, DenseProgram) else self.x
            return float(loss_of("cross_entropy", module.train()(x), self.y_BO))

    def error(self, g: int) -> float:
        """The greatest relative difference of gradient and finite difference over a gate's numbers."""
        worst = 0.0
        for place in self.widths.places[g].values():
            for direction_P in self._directions(place):
                around = [self.loss(self.start_KP[0] + h * direction_P) for h in (STEP, -STEP)]
                difference = (around[0] - around[1]) / (2 * STEP)
                got = float(self.gradient_P @ direction_P)
                worst = max(worst, abs(got - difference) / max(abs(difference), abs(got), 1e-4))
        return worst

    def _directions(self, place: slice) -> list[Tensor]:
        many = place.stop - place.start
        found = []
        for i in {0, many // 3}:
            one_P = torch.zeros_like(self.gradient_P)
            one_P[place.start + i] = 1.0
            found.append(one_P)
        if many > 1:
            random_P = torch.zeros_like(self.gradient_P)
            random_P[place] = torch.randn(many, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
            found.append(random_P)
        return found


@cache
def cell(membership: str, name: str) -> Cell:
    return Cell(membership, name)


CELLS = [
    (m, name, g)
    for m in MEMBERSHIPS
    for name in NETWORKS
    for g, gate in enumerate(gates_named(name))
    # strides and topologies have no membership, and a width has the same one whatever stands beside it
    if m == "interval" or name not in (*TOPOLOGIES, *WITH_STRIDES) or gate.role == "depth"
]


@pytest.mark.parametrize(
    ("membership", "name", "g"), CELLS, ids=[f"{m}-{name}-{gates_named(name)[g].name}" for m, name, g in CELLS]
)
def test_gradients_equal_finite_differences(membership: str, name: str, g: int) -> None:
    found = cell(membership, name)
    assert found.error(g) < 2e-5
    place = next(iter(found.widths.places[g].values()))
    assert found.gradient_P[place].abs().max() > 1e-7  # so that a gradient that is always 0 would be seen


def print_matrix() -> None:
    print("| membership | " + " | ".join(NETWORKS) + " |\n" + "|---" * (len(NETWORKS) + 1) + "|")
    for membership in MEMBERSHIPS:
        errors = [max(cell(membership, n).error(g) for g in range(len(gates_named(n)))) for n in NETWORKS]
        print(f"| {membership} | " + " | ".join(f"{error:.0e}" for error in errors) + " |", flush=True)
    print(f"\n{len(CELLS)} cells: membership x network x continuous value")


if __name__ == "__main__":
    print_matrix()
