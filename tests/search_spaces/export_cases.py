"""Networks with strides, depths and graphs at whole sizes: each relaxed, and the plain one that it becomes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from search_spaces.flow import Flow
from search_spaces.graph_networks import Cell, Fabric, Graphon
from search_spaces.materialise import MaskedExport, masked, materialise
from search_spaces.network import Network, Size
from search_spaces.networks import ConvNet, Residual
from search_spaces.parameters import Depth, Parameter, Stride
from search_spaces.realise import module_of
from search_spaces.space import Space
from search_spaces.stride import Stride as StrideLayer
from search_spaces.width import WidthGate
from search_spaces.wiring import Topology

OUTPUTS = 4
ODD, EVEN, ROW = (3, 9, 7), (3, 8, 8), (5,)
STRIDE = Stride(low=1.2, high=4.0)


@dataclass(frozen=True)
class Case:
    """A declared network over rows of `shape`, and sizes that it becomes whole at."""

    network: Network
    space: dict[str, Parameter]
    shape: tuple[int, ...]
    sizes: dict[str, Size]


def striding(kind: str) -> dict[str, Case]:
    """A stride of 2 and one of 3 of that kind, and one block of three."""
    two = {"stride.0": STRIDE, "stride.1": STRIDE}
    residual = Residual(stages=2, blocks=3, width=6, stride=kind)
    depth = {"depth.1": Depth(low=0, high=3)}
    return {
        f"convnet_{kind}": Case(
            ConvNet(layers=2, width=6, stride=kind), two, ODD, {"stride.0": 2, "stride.1": 3, "width.0": 4}
        ),
        f"residual_{kind}": Case(residual, two | depth, EVEN, {"stride.0": 3, "stride.1": 2, "depth.1": 1}),
    }


def graph(network: Network, topology: Topology, shape: tuple[int, ...], *kept: str, **sizes: Size) -> Case:
    """The units written so: `02 conv3` is an edge of a graph, `00-11 conv3` one of a fabric, node (l, s) as `ls`."""
    named = {_written(topology, unit): unit for unit in range(len(topology.units))}
    units = tuple(sorted(named[text] for text in kept))
    return Case(network, {"topology": topology}, shape, {"topology": units, "width.0": 5, **sizes})


def _written(topology: Topology, unit: int) -> str:
    edge, operation = topology.units[unit]
    if topology.kind != "fabric":
        return f"{edge.source}{edge.target} {operation}"
    layer = edge.source // topology.scales
    return f"{layer}{edge.scale_from}-{layer + 1}{edge.scale_to} {operation}"


POOLS = ("conv3", "separable", "max_pool", "avg_pool", "skip")
CELL = Topology(nodes=3, operations=POOLS)
SMOOTH = Topology(kind="graphon", nodes=4, operations=("conv3", "avg_pool", "skip"))
ROWS = Topology(kind="graphon", nodes=4, operations=("linear", "skip"))
WOVEN = Topology(kind="fabric", layers=4, scales=3, operations=("conv3", "avg_pool", "skip"))
KEPT = ("01 skip", "12 conv3", "12 avg_pool", "14 skip", "24 conv3", "24 skip", "34 conv3", "03 conv3")
PATHS = ("00-11 conv3", "00-11 avg_pool", "00-10 skip", "10-21 skip", "11-20 conv3", "11-21 skip", "20-31 conv3")
CASES: dict[str, Case] = {
    **{name: case for kind in ("shrink", "resize", "spectral") for name, case in striding(kind).items()},
    "cell": graph(
        Cell(cells=2, width=6),
        CELL,
        ODD,
        "01 skip",
        "02 separable",
        "12 max_pool",
        "12 avg_pool",
        "03 conv3",
        "23 skip",
    ),
    "graphon": graph(Graphon(width=6), SMOOTH, EVEN, *KEPT),
    "graphon_odd": graph(Graphon(width=6, norm="none"), SMOOTH, ODD, *KEPT),
    "graphon_rows": graph(Graphon(width=6), ROWS, ROW, "01 linear", "01 skip", "02 skip", "14 linear", "24 skip"),
    "fabric": graph(Fabric(width=6), WOVEN, EVEN, *PATHS, "21-31 skip", "31-42 skip", "31-42 conv3"),
    "fabric_odd": graph(Fabric(width=6), WOVEN, ODD, *PATHS, "21-32 avg_pool", "31-42 avg_pool", "32-42 skip"),
}


def sliced() -> nn.Module:
    """A stride that no layer can take upon itself."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), WidthGate("width.0", 6, dim=1), nn.Tanh(), StrideLayer("stride.0")),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, OUTPUTS)),
    )


@dataclass(frozen=True)
class Built:
    """The plain network, the relaxed one held at the same sizes, and an input."""

    plain: fx.GraphModule
    relaxed: nn.Module
    example: Tensor


def built(name: str) -> Built:
    """With statistics of some data, in evaluation mode."""
    torch.manual_seed(0)
    sizes: dict[str, Any]
    if name == "sliced":
        module, example, sizes = sliced(), torch.randn(2, *ODD), {"stride.0": 3, "width.0": 4}
    else:
        case = CASES[name]
        network = case.network.within(Space(case.space))
        maxima = dict(zip(network.gates, network.maxima(), strict=True))
        module, sizes = module_of(network, case.shape, OUTPUTS, maxima), case.sizes
        example = torch.randn(2, *case.shape)
    for _ in range(3):
        module.train()(torch.randn(16, *example.shape[1:]))
    flow = Flow(module.eval(), example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MaskedExport)
        relaxed = masked(flow.graph, sizes)
    return Built(materialise(flow, sizes), relaxed, example)
