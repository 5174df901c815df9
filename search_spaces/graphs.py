"""Networks whose wiring is a `Topology`: a graph, a stack of cells of one graph, a fabric; gated, of maximum size.

    >>> free = Topology(nodes=4, operations=("conv3", "skip"))
    >>> relaxed = GatedGraph((3, 32, 32), {"width.0": 16}, 10, topology=free)
    >>> relaxed = GatedGraph((3, 32, 32), {"width.0": 16, "width.1": 32}, 10, topology=free, cells=2)
    >>> woven = Topology(kind="fabric", layers=4, scales=3, operations=("conv3",))
    >>> relaxed = GatedFabric((3, 32, 32), {"width.0": 8, "width.1": 16, "width.2": 32}, 10, topology=woven)

Node j is x_j = sum_u m_u op_u(x_i) / sqrt(max(1, sum_u m_u)) over the units u that lead into it, whose grades m the
gate `topology` gives. Every unit has weights of its own, in every cell too.

**Why the root.** A plain sum grows with every node: with skips x_j holds 2^(j-1) times x_0, and without norms each
layer multiplies the variance by the number of its edges. A sum of k independent terms of variance v has variance k v,
so over sqrt(k) it has that of one term, with norms and without. It is no norm, for what a norm learns belongs to a node
that rounding may drop, while this needs no weights and is exactly 1 / sqrt(k) in the plain network (nothing, where one
unit is kept). Below a sum of 1 nothing is divided: a node whose only edge fades fades.

Nodes and edges that lie on no path from input to output are not built.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from search_spaces.blocks import Evened, Mix, Term
from search_spaces.layered import LEAST_SIDE
from search_spaces.operations import Operations
from search_spaces.topology import TopologyGate
from search_spaces.width import WidthGate
from search_spaces.wiring import Edge, Topology

TOPOLOGY = "topology"  # what the gate of the units is called


class _Node(nn.Module):
    """The evened sum of what the units give."""

    def __init__(self, gate: TopologyGate, name: str, terms: Sequence[tuple[int, Term]]) -> None:
        super().__init__()
        units = [unit for unit, _ in terms]
        self.mix = Mix(gate, units, name, [term for _, term in terms])
        self.evened = Evened(gate, units) if len(units) > 1 else None

    def forward(self, *terms: Tensor) -> Tensor:
        out: Tensor = self.mix(*terms)
        return out if self.evened is None else self.evened(out)


class Wired(nn.Module):
    """A graph of operations, from its input node to its output node.

    Args:
        gate: the grades of the units.
        make: gives the operation of an edge.
        label: names an edge.
        called: names a node.
    """

    def __init__(
        self,
        gate: TopologyGate,
        make: Callable[[str, Edge], nn.Module],
        label: Callable[[Edge], str],
        called: Callable[[int], str],
    ) -> None:
        super().__init__()
        topology = gate.topology
        self.edges, self.nodes = nn.ModuleDict(), nn.ModuleDict()
        self.input, self.output = topology.input, topology.output
        self.terms: dict[int, list[tuple[str, int]]] = {}  # by node: the operations into it and what each reads
        into: dict[int, list[tuple[int, Term]]] = {}
        for unit in topology.useful:
            edge, operation = topology.units[unit]
            name = f"{label(edge)}_{operation}"
            self.edges[name] = make(operation, edge)
            self.terms.setdefault(edge.target, []).append((name, edge.source))
            into.setdefault(edge.target, []).append((unit, Term(called(edge.source), operation, name)))
        for target, terms in sorted(into.items()):
            self.nodes[str(target)] = _Node(gate, called(target), terms)

    def forward(self, x: Tensor) -> Tensor:
        values = {self.input: x}
        for target in sorted(self.terms):  # a source comes before its target
            terms = [self.edges[name](values[source]) for name, source in self.terms[target]]
            values[target] = self.nodes[str(target)](*terms)
        return values[self.output]


class _Framed(nn.Module):
    """A stem before a body, after it activation, mean over places, gate and head."""

    def __init__(
        self, make: Operations, inputs: int, topology: Topology, widths: Sequence[WidthGate], outputs: int
    ) -> None:
        super().__init__()
        self.topology, self.widths = TopologyGate(TOPOLOGY, topology), nn.ModuleList(widths)
        self.stem = nn.Sequential(OrderedDict(make.layer(inputs, widths[0].maximum, kernel=3)))
        self.activation = make.active()
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1) if make.images else nn.Identity()
        self.head = nn.Linear(widths[-1].maximum, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.pool(self.activation(self.body(self.stem(x)))).flatten(1)
        out: Tensor = self.head(self.widths[-1](h))
        return out

    def body(self, h: Tensor) -> Tensor:
        raise NotImplementedError


class GatedGraph(_Framed):
    """Cells of one free or graphon topology, one after the other; the grades are the same in all of them.

    Cell c has the width `width.c` at all of its nodes. Between cells activation, gate, layer and norm change the width;
    for images the layer is a 3x3 convolution, of stride 2 while the map is at least `LEAST_SIDE` wide.

    Args:
        shape: channels, height and width of an image, or the length of a row.
        maxima: the greatest size of each width, by name, in the order of the cells.
        cells: how many cells, each with a width.
    """

    def __init__(
        self,
        shape: Sequence[int],
        maxima: Mapping[str, int],
        outputs: int,
        *,
        topology: Topology,
        norm: str = "batch",
        activation: str = "relu",
        cells: int = 1,
    ) -> None:
        assert topology.kind != "fabric", topology.kind
        make, widths = Operations(len(shape) == 3, norm, activation), _width_gates(maxima, cells)
        super().__init__(make, shape[0], topology, widths, outputs)
        self.cells = nn.ModuleList(_cell(self.topology, width, make) for width in widths)
        self.transitions, side = nn.ModuleList(), min(shape[1:], default=0)
        for reads, writes in pairwise(widths):
            stride = 2 if side >= LEAST_SIDE else 1
            side = -(-side // stride)
            layers = make.mixing(reads, writes.maximum, kernel=3, stride=stride)
            self.transitions.append(nn.Sequential(OrderedDict([("activation", make.active()), *layers])))

    def body(self, h: Tensor) -> Tensor:
        h = self.cells[0](h)
        for transition, cell in zip(self.transitions, self.cells[1:], strict=True):
            h = cell(transition(h))
        return h


def _cell(gate: TopologyGate, width: WidthGate, make: Operations) -> Wired:
    digits = len(str(gate.topology.nodes))
    return Wired(
        gate,
        lambda operation, edge: make.operation(operation, width, width),
        lambda edge: f"e{edge.source:0{digits}}{edge.target:0{digits}}",
        lambda node: f"x{node}",
    )


class GatedFabric(_Framed):
    """A fabric: node (l, s) has the width `width.s`, and for images a side of the first's over 2^s, rounded up.

    An edge to a coarser scale first averages over 2x2 places, one to a finer scale first repeats places. For rows
    scales are widths alone. See `Topology` for its nodes and edges (Saxena & Verbeek 2016, section 3).

    Args:
        shape: channels, height and width of an image, or the length of a row.
        maxima: the greatest size of each width, by name, in the order of the scales.
    """

    def __init__(
        self,
        shape: Sequence[int],
        maxima: Mapping[str, int],
        outputs: int,
        *,
        topology: Topology,
        norm: str = "batch",
        activation: str = "relu",
    ) -> None:
        assert topology.kind == "fabric", topology.kind
        make, widths = Operations(len(shape) == 3, norm, activation), _width_gates(maxima, topology.scales)
        super().__init__(make, shape[0], topology, widths, outputs)

        def operation(kind: str, edge: Edge) -> nn.Module:
            reads, writes = widths[edge.scale_from], widths[edge.scale_to]
            return make.operation(kind, reads, writes, before=_resampled(shape[1:], edge))

        def called(node: int) -> str:
            return f"l{node // topology.scales}s{node % topology.scales}"

        def label(edge: Edge) -> str:
            return f"{called(edge.source)}_{called(edge.target)}"

        self.fabric = Wired(self.topology, operation, label, called)

    def body(self, h: Tensor) -> Tensor:
        out: Tensor = self.fabric(h)
        return out


def _resampled(sides: Sequence[int], edge: Edge) -> nn.Module | None:
    """From the places of one scale to those of another; None where the scale stays."""
    if not sides or edge.scale_from == edge.scale_to:
        return None
    if edge.scale_to > edge.scale_from:
        return nn.AvgPool2d(2, ceil_mode=True)  # windows that reach beyond the border count what is inside
    return nn.Upsample(size=tuple(-(-side // 2**edge.scale_to) for side in sides))


def _width_gates(maxima: Mapping[str, int], count: int) -> list[WidthGate]:
    """The gates of the widths, in their order."""
    widths = {name: maximum for name, maximum in maxima.items() if name.startswith("width.")}
    if len(widths) != count:
        raise ValueError(f"maxima: must have {count} widths, one for each cell or scale, but got {list(widths)}.")
    return [WidthGate(name, maximum, dim=1) for name, maximum in widths.items()]
