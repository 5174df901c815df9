"""What a traced network costs at any sizes, before anything is pruned.

>>> costs_of(Flow(network, example)).parameters({"width.0": 17.0})
1442.0
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import fx, nn

from search_spaces.blocks import Mix, Passing, module_of
from search_spaces.cells import CellFloor, Cells
from search_spaces.cost import Channels, Costs, LayerCost, ResampleCost, Share, Striding
from search_spaces.extent import Extent
from search_spaces.flow import Flow, Segment
from search_spaces.stride import Stride
from search_spaces.strided import folds_into
from search_spaces.width import Gate, GateRow

#: what a tensor's node must not be for its numbers to count: views, and what is nothing once trained
UNWRITTEN = (Gate, GateRow, Passing, Cells, CellFloor, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Flatten)
UNWRITTEN_NAMES = (
    "flatten",
    "view",
    "reshape",
    "squeeze",
    "unsqueeze",
    "permute",
    "transpose",
    "contiguous",
    "expand_as",
    "dropout",
)


def costs_of(flow: Flow) -> Costs:
    """The network's costs as a function of its gates' sizes."""
    rows: list[LayerCost] = []
    seen: set[str] = set()
    for use in flow.uses:
        own = use.trained and use.path not in seen
        seen.add(use.path)
        positions, extents, relaxed = _places(flow, use.node, use.positions)
        rows.append(
            LayerCost(
                path=use.path,
                kind=use.kind,
                inputs=channels_of(use.inputs),
                outputs=channels_of(use.outputs),
                taps=use.taps,
                positions=positions,
                bias=use.bias,
                own=own,
                first=not use.learnt,
                extents=extents,
                relaxed=relaxed,
                shares=flow.shares.get(use.node, ()),
            )
        )
    if fixed := _unfollowed(flow, seen):
        rows.append(LayerCost("network", "parameter", ((None, 1, 1),), ((None, fixed, 1),)))
    for node in flow.values:
        if node.op != "placeholder" and not _unwritten(flow, node):
            rows += _written(flow, node)
    return Costs(tuple(rows))


def _written(flow: Flow, node: fx.Node) -> Iterator[LayerCost]:
    """What a node writes, and a stride's matrices."""
    value, shares = flow.values[node], flow.shares.get(node, ())
    channels = channels_of(value.segments) if value.segments is not None else ((None, 1, 1),)
    positions, extents, relaxed = _places(flow, node, value.positions)
    module = module_of(flow.graph, node)
    row = LayerCost(
        node.name,
        "activation",
        channels,
        channels,
        positions=positions,
        extents=extents,
        relaxed=relaxed,
        shares=shares,
    )
    if isinstance(module, Mix):
        yield replace(row, summed=tuple(Share(module.gate.name, unit, True) for unit in module.units))
    elif isinstance(module, Stride):
        source = node.all_input_nodes[0]
        before = tuple(flow.axes.get(source, {}).get(i, Extent(value.shape[i])) for i in extents_of(flow, node))
        free = module.kind == "shrink"
        yield ResampleCost(
            node.name,
            "resample",
            channels,
            channels,
            first=not flow.values[source].learnt,
            extents=extents,
            shares=shares,
            before=before,
            free=free,
            gate=module.gate.name,
        )
        if not free:
            row = replace(row, shares=(*shares, Striding(module.gate.name, 0)))
            yield from (row, *([replace(row, extents=(before[0], extents[1]))] if len(extents) > 1 else []))
    else:
        yield row


def extents_of(flow: Flow, node: fx.Node) -> dict[int, Extent]:
    """How far the axes of a node's tensor have shrunk, by axis."""
    return flow.axes.get(node, {})


def _places(flow: Flow, node: fx.Node, positions: int) -> tuple[int, tuple[Extent, ...], tuple[Extent, ...] | None]:
    """At how many places a node works: a fixed number, the extents that multiply it, and those before strides are
    whole."""
    shape, own = flow.values[node].shape, extents_of(flow, node)
    stride = folds_into(flow.graph, node)
    after = own if stride is None else extents_of(flow, stride)
    for axis in after:
        positions //= shape[axis]
    relaxed = None if stride is None else tuple(own.get(axis, Extent(shape[axis])) for axis in after)
    return positions, tuple(after.values()), relaxed


def _unfollowed(flow: Flow, followed: set[str]) -> int:
    """Numbers that are trained but lie along no channels: of a layer that is left as it is, or one for all."""
    count = 0
    for name, parameter in flow.graph.named_parameters():
        path = name.rpartition(".")[0]
        if not {name, path} & followed and not isinstance(flow.graph.get_submodule(path), Gate):
            count += parameter.numel()
    return count


def channels_of(segments: tuple[Segment, ...]) -> Channels:
    """Segments as the cost knows them."""
    return tuple((s.group.root.gate, s.group.size, s.repeat) for s in segments)


def _unwritten(flow: Flow, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(flow.module(str(node.target)), UNWRITTEN)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in UNWRITTEN_NAMES
