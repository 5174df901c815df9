"""Gradients of every continuous value of every network under every membership, against finite differences.

The gradient is the one that a search follows: from a program of lanes to grades to the membership's numbers, in
float64, at non-integer sizes. Random memberships keep one draw. A membership's many numbers are each taken along three
directions: one number, another, and a random one.

    python tests/search_spaces/test_gate_gradients.py        # prints the matrix of greatest relative errors

Legend of shape suffixes: K lanes, P coordinates, B batch, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from network_cases import ORDINARY, OUTPUTS
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.continuous import make_continuous
from search_spaces.flow import Flow
from search_spaces.membership import MEMBERSHIPS
from search_spaces.networks import ConvNet, Residual
from search_spaces.realise import realise
from search_spaces.width import WidthGate, gates_of, held
from trials.lanes.dense import DenseShape
from trials.lanes.gated import DenseProgram
from trials.lanes.initial import Start
from trials.lanes.looped import LoopedLanes
from trials.lanes.program import loss_of, still
from trials.optimisers import Rule
from trials.widths import GateKind, Widths

IMAGE, ROW, BATCH = (3, 8, 8), (5,), 6
SIZES = (2.3, 4.7, 3.4, 5.6, 1.8)
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
NETWORKS: dict[str, Callable[[], tuple[Flow, tuple[int, ...]]] | None] = {
    "mlp": None,  # dense lanes, which have no graph
    "convnet": declared(ConvNet(layers=2, **SMOOTH), IMAGE),
    "residual": declared(Residual(stages=2, blocks=1, **SMOOTH), IMAGE),
    "residual_of_rows": declared(Residual(stages=1, blocks=2, **SMOOTH), ROW),
    "own": own,
    **{name: continuous(name) for name in ("vgg", "resnet", "mobilenet", "convnext", "densenet", "sequence")},
}
MLP_GATES = ("width.0", "width.1")


@cache
def gates_named(name: str) -> tuple[tuple[str, int], ...]:
    """A network's gates and their greatest sizes."""
    make = NETWORKS[name]
    if make is None:
        return tuple((gate, 8) for gate in MLP_GATES)
    return tuple((gate.name, gate.maximum) for gate in gates_of(make()[0].graph).values())


class Cell:
    """One network under one membership: its gradient by every coordinate, and its loss wherever they are."""

    def __init__(self, membership: str, name: str) -> None:
        self.gates = gates_named(name)
        kinds = [
            GateKind(name=gate, maximum=most, membership=membership, scale=(1.0, float(most), True))
            for gate, most in self.gates
        ]
        sizes = [[min(SIZES[g % 5], most - 0.4) for g, (_, most) in enumerate(self.gates)]]
        self.widths = Widths(kinds, torch.tensor(sizes, dtype=torch.float64))
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
            names = [gate for gate, _ in self.gates]
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


CELLS = [(m, name, g) for m in MEMBERSHIPS for name in NETWORKS for g in range(len(gates_named(name)))]


@pytest.mark.parametrize(
    ("membership", "name", "g"), CELLS, ids=[f"{m}-{name}-{gates_named(name)[g][0]}" for m, name, g in CELLS]
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
