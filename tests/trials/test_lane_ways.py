"""The ways of running lanes of any module agree with each other, and a plain lane with torch's own training loop.

Legend of shape suffixes: K lanes, N units of a gate, B batch, O outputs.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from search_spaces.networks import ConvNet, Network, Residual
from search_spaces.realise import Realised, realise
from trials.lanes.initial import Start
from trials.lanes.looped import LoopedLanes
from trials.lanes.vmapped import VmappedLanes
from trials.optimisers import Rule
from trials.training import WAYS
from trials.widths import GateKind, Widths

BATCH, OUTPUTS = 6, 3
CASES: dict[str, tuple[Network, tuple[int, ...]]] = {
    "convnet": (ConvNet(layers=2, width=8), (2, 6, 6)),
    "convnet without norm": (ConvNet(layers=2, width=8, norm="none", activation="tanh"), (2, 6, 6)),
    "residual": (Residual(stages=2, blocks=1, width=8), (2, 6, 6)),
    "residual of rows": (Residual(stages=1, blocks=2, width=8, activation="gelu"), (5,)),
}
RULES = {
    "sgd": Rule(uses=frozenset({"lr", "momentum"})),
    "adamw": Rule(kind="adamw", uses=frozenset({"lr", "beta1", "beta2", "weight_decay"})),
}


def hyper(lanes: int) -> dict[str, Tensor]:
    of = {"lr": [0.05, 0.02, 0.03], "momentum": [0.9, 0.5, 0.7], "weight_decay": [0.01, 0.1, 0.0]}
    of |= {"beta1": [0.9, 0.8, 0.7], "beta2": [0.99, 0.9, 0.95]}
    return {name: torch.tensor(values[:lanes], dtype=torch.float64) for name, values in of.items()}


def batch_of(shape: tuple[int, ...], seed: int, lanes: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = (lanes, BATCH, *shape) if lanes else (BATCH, *shape)
    x = torch.randn(rows, generator=generator, dtype=torch.float64)
    return x, functional.one_hot(torch.randint(OUTPUTS, (BATCH,), generator=generator), OUTPUTS).double()


def built(case: str) -> tuple[Realised, Start, tuple[int, ...]]:
    network, shape = CASES[case]
    found = realise(network, shape, OUTPUTS)
    assert found.flow is not None
    return found, Start(flow=found.flow, gates=tuple(found.gates)), shape


def program(way: str, start: Start, gated: bool) -> LoopedLanes | VmappedLanes:
    if way == "per_lane":
        return LoopedLanes(start, gated=gated, dtype=torch.float64)
    return VmappedLanes(start, way=way, dtype=torch.float64)


def widths_of(found: Realised, membership: str, sizes: list[list[float]]) -> Widths:
    kinds = [
        GateKind(name=name, maximum=gate.maximum, membership=membership, scale=(1.0, float(gate.maximum), True))
        for name, gate in found.gates.items()
    ]
    return Widths(kinds, torch.tensor(sizes, dtype=torch.float64))


def journey(way: str, case: str, membership: str, rule: str, *, own: bool = False) -> list[Tensor]:
    """What a program answers on a way that narrows and widens its lanes."""
    found, start, shape = built(case)
    gates = len(found.gates)
    paths = [[[2.4, 3.7, 6.2][k % 3]] * gates for k in range(3)]
    widths = widths_of(found, membership, paths)
    lanes = program(way, start, gated=True)
    reach = [dict(zip(found.gates, lane, strict=True)) for lane in widths.reach()]
    live = [dict(zip(found.gates, lane, strict=True)) for lane in widths.sizes_KG.tolist()]
    lanes.begin([(0, k, 0) for k in range(3)], reach, live)
    lanes.attach(RULES[rule], hyper(3))
    answers = []
    for step in range(6):
        if step % 2 == 0:
            change = [0.0, 2.9, -1.6][step // 2]
            widths = widths_of(found, membership, [[n + change for n in lane] for lane in paths])
            lanes.regate(widths.grades(), widths.reach(lanes.sizes), widths.sizes_KG)
        x, y_BO = batch_of(shape, step, 3 if own else 0)
        answers.append(torch.cat(lanes.grade_gradients(x, y_BO), 1))
        lanes.step(x, y_BO)
        answers.append(lanes.predict(batch_of(shape, 100)[0]))
    return answers


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("membership", ["interval", "band"])
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("way", WAYS[1:])
def test_ways_agree_through_growth_and_shrinking(way: str, case: str, membership: str, rule: str) -> None:
    for got, want in zip(
        journey(way, case, membership, rule), journey("per_lane", case, membership, rule), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)
