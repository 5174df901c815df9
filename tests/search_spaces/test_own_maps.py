"""A user's own network with strides and a graph: what is found of them, their rules, and where they stand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from search_spaces import Invalid, Space
from search_spaces.blocks import Mix
from search_spaces.networks import ConvNet, Network, Own
from search_spaces.realise import realise, resolve
from search_spaces.stride import Stride
from search_spaces.topology import TopologyGate
from search_spaces.width import WidthGate
from search_spaces.wiring import Topology

SIDE = 16
PATH = Topology(nodes=1, operations=("conv1", "skip"))


class Striding(nn.Module):
    """A convolution, a stride, a second one of the same map or of what an unpadded kernel leaves of it."""

    def __init__(self, kind: str, smoothness: int | None = None, padding: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=padding)
        self.stride = Stride("step", kind, smoothness=smoothness)
        self.gate = WidthGate("units", 4)
        self.last = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.gate(self.stride(self.first(x)).relu()).mean((2, 3)))


class Wired(nn.Module):
    """Two operations between two maps, graded by a topology."""

    def __init__(self, w: list[float]) -> None:
        super().__init__()
        self.edges = TopologyGate("edges", PATH)
        self.edges.set(w)
        self.mix = Mix(self.edges, (0, 1))
        self.one = nn.Conv2d(1, 1, 1)
        self.last = nn.Linear(1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.mix(self.one(x), x).mean((2, 3)))


class ByHand(Wired):
    """The same, of which no tracing can tell."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        m_U = self.edges.grades()
        return self.last((m_U[0] * self.one(x) + m_U[1] * x).mean((2, 3)))


def resolved(factory: Any) -> Own:
    return resolve(Own(reference="mine:network"), factory, (1, SIDE, SIDE), 3)


def stride_space(low: float, high: float) -> Space:
    return Space.from_dict({"step": {"type": "stride", "low": low, "high": high}})


@pytest.mark.parametrize(
    ("kind", "smoothness", "padding", "low", "high", "sentence"),
    [
        ("shrink", None, 1, 1.0, 17.0, "space.step.high: must be at most 16, the side of the map before it"),
        ("resize", None, 0, 1.0, 15.0, "space.step.high: must be at most 14, the side of the map before it"),
        ("spectral", None, 1, 1.0, 4.0, "space.step.low: a spectral stride must be at least H / (H - R) = 1.143"),
        ("spectral", 4, 1, 1.2, 4.0, "must be at least H / (H - R) = 1.333 (a map of side H=16, a ramp of R=4"),
    ],
)
def test_an_own_stride_has_the_rules_of_any(
    kind: str, smoothness: int | None, padding: int, low: float, high: float, sentence: str
) -> None:
    network = resolved(lambda: Striding(kind, smoothness, padding))
    (fault,) = network.shape_faults((1, SIDE, SIDE), stride_space(low, high))
    assert sentence in fault
    assert "network.stride" not in fault  # a key that its spec has not
    assert network.shape_faults((1, SIDE, SIDE), stride_space(1.4, 4.0)) == []


def test_only_an_own_stride_that_shrinks_begins_beside_a_whole_one() -> None:
    assert resolved(lambda: Striding("shrink")).beside("step") == ConvNet().beside("stride.0") == 0.25
    for kind in ("resize", "spectral"):
        assert resolved(lambda kind=kind: Striding(kind)).beside("step") == 0.0


def test_a_graph_on_which_the_space_is_silent_stands_where_its_gate_does() -> None:
    network = resolved(lambda: Wired([0.25, 0.75]))
    sizes = dict(zip(network.numbers, network.sizes({}), strict=True))
    assert sizes == {"edges.0": 0.25, "edges.1": 0.75}
    assert network.whole_sizes(network.rounded({}))["edges"] == (1,)
    assert network.sizes({"edges.0": 0.5, "edges.1": 0.0}) == (0.5, 0.0)


def test_a_graph_that_is_graded_by_hand_is_refused_before_it_trains() -> None:
    with pytest.raises(Invalid) as caught:
        resolved(lambda: ByHand([0.25, 0.75]))
    assert caught.value.faults == (
        "network: the gate 'edges' must be called in forward, by a Mix of the terms that it grades, but it never is; "
        "call it, or drop it.",
    )
    assert sorted(realise(resolved(lambda: Wired([0.25, 0.75])), (1, SIDE, SIDE), 3).module.state_dict())


@pytest.mark.parametrize("network", [ConvNet(layers=1, growth="gradmax"), ConvNet(layers=2, growth="gradmax")])
def test_gradmax_across_a_real_stride_is_refused(network: Network) -> None:
    space = Space.from_dict({"stride.0": {"type": "stride", "low": 1, "high": 2}})
    (fault,) = network.space_faults(space)
    assert "gradmax compares maps place by place" in fault
    assert "space.stride.0" in fault
    assert network.space_faults(Space.from_dict({"width.0": {"type": "width", "low": 2, "high": 4}})) == []
