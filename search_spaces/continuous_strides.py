"""Strides for an ordinary network: convolutions and poolings that stride become real ones.

    >>> gates = insert_strides(flow, kind="shrink")        # {"stride.layer2.0.conv1": (gate, 32), ...}

Each layer that strides runs at stride 1, and its map then shrinks in place. Layers whose maps a sum adds up (those of a
residual block and of its skip) share one stride. A map that in the end meets what must have a fixed number of cells,
such as a flatten, keeps its strides whole.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx, nn

from search_spaces.blocks import module_of
from search_spaces.cell_flow import MAXIMA, MEANS, POOLS, CellFlow
from search_spaces.flow import Flow, propagate_shapes, shape_of
from search_spaces.stride import Stride, StrideGate
from search_spaces.strided import STRIDED

ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
Layers = dict[fx.Node, int]  # a layer that strides, and by how much


def insert_strides(flow: Flow, kind: str, leave: Sequence[str] = ()) -> dict[str, tuple[StrideGate, int]]:
    """Make every stride that can be real so; in place. The gates by name, for the layer that first has the stride, each
    at the layer's own stride, and the side of the map before it."""
    layers = {n: s for n in flow.graph.graph.nodes if (s := _stride_of(flow.graph, n)) > 1 and not _left(n, leave)}
    groups = _tied(flow, layers)
    while groups:
        trial = copy.deepcopy(flow.graph)
        by_name = {node.name: node for node in trial.graph.nodes}
        _insert(trial, {name: [by_name[node.name] for node in nodes] for name, nodes in groups.items()}, kind)
        propagate_shapes(trial, flow.example)
        blamed = CellFlow(trial).blamed
        if not blamed:
            break
        groups = {name: nodes for name, nodes in groups.items() if name not in blamed}
    gates = _insert(flow.graph, groups, kind)
    like = next(iter(flow.graph.parameters()))
    found = {}
    for name, nodes in groups.items():
        gates[name].to(like.device, like.dtype).set(layers[nodes[0]])
        found[name] = gates[name], min((shape_of(nodes[0].all_input_nodes[0]) or (0, 0, 1))[2:])
    return found


def _left(node: fx.Node, leave: Sequence[str]) -> bool:
    return any(str(node.target) == path or str(node.target).startswith(f"{path}.") for path in leave)


def _stride_of(graph: fx.GraphModule, node: fx.Node) -> int:
    """The stride of a layer that may have a real one; 1 of anything else."""
    layer: Any = module_of(graph, node)
    if not isinstance(layer, STRIDED) or getattr(layer, "ceil_mode", False):
        return 1
    calls = sum(other.target == node.target for other in graph.graph.nodes if other.op == "call_module")
    strides = set(layer.stride) if isinstance(layer.stride, tuple) else {layer.stride}
    return int(strides.pop()) if len(strides) == 1 and calls == 1 else 1


def _tied(flow: Flow, layers: Layers) -> dict[str, list[fx.Node]]:
    """The layers that share a stride: where maps of as many strides are added up, the first goes with the first. Those
    whose maps are laid flat are left out."""
    root: dict[fx.Node, fx.Node] = {node: node for node in layers}

    def find(node: fx.Node) -> fx.Node:
        while root[node] is not node:
            node = root[node]
        return node

    behind: dict[fx.Node, tuple[fx.Node, ...]] = {}
    fixed: set[fx.Node] = set()
    for node in flow.graph.graph.nodes:
        histories = [behind[n] for n in node.all_input_nodes if behind.get(n)]
        longest: tuple[fx.Node, ...] = max(histories, key=len, default=())
        for other in histories:
            if len(other) == len(longest) and all(layers[a] == layers[b] for a, b in zip(other, longest, strict=True)):
                for a, b in zip(other, longest, strict=True):
                    root[find(a)] = find(b)
        shape = shape_of(node)
        gone = shape is None or len(shape) < 3 or all(side == 1 for side in shape[2:])  # no map any more
        if longest and gone and not _is_mean(flow.graph, node):
            fixed.update(find(layer) for layer in longest)
        behind[node] = () if gone else (*longest, node) if node in layers else longest
    groups: dict[fx.Node, list[fx.Node]] = {}
    for node in layers:
        groups.setdefault(find(node), []).append(node)
    kept = {find(layer) for layer in layers} - {find(layer) for layer in fixed}
    return {f"stride.{nodes[0].target}": nodes for top, nodes in groups.items() if top in kept}


def _is_mean(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a map ends here as one number a channel."""
    pools = isinstance(module_of(graph, node), ADAPTIVE)
    return pools or node.target in MEANS or node.target in MAXIMA or node.target in POOLS


def _insert(graph: fx.GraphModule, groups: Mapping[str, Sequence[fx.Node]], kind: str) -> dict[str, StrideGate]:
    gates = {name: StrideGate(name) for name in groups}
    for name, nodes in groups.items():
        for node in nodes:
            layer: Any = copy.copy(module_of(graph, node))  # of the same parameters
            layer.stride = (1,) * len((shape_of(node) or ())[2:])
            owner, _, place = str(node.target).rpartition(".")
            graph.get_submodule(owner).add_module(place, layer)
            _follow_with(graph, node, Stride(gates[name], kind))
    graph.graph.lint()
    graph.recompile()
    return gates


def _follow_with(graph: fx.GraphModule, node: fx.Node, stride: Stride) -> None:
    path = f"strides.{node.name}"
    graph.add_submodule(path, stride)
    with graph.graph.inserting_after(node):
        after = graph.graph.call_module(path, (node,))
    after.meta["tensor_meta"] = node.meta["tensor_meta"]
    node.replace_all_uses_with(after, delete_user_cb=lambda user: user is not after)
