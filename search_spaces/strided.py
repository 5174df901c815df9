"""Real strides made whole: the network that really strides, without a cell that is not live.

    >>> make_whole(graph, {"stride.0": 2})          # in place: conv + Stride -> a convolution of stride 2

A shrinking stride is folded into the convolution or pooling before it, and is a slice where there is none. The others
become a matrix along each axis.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from search_spaces.blocks import module_of
from search_spaces.cells import CellBatchNorm, CellFloor, CellMean, Cells
from search_spaces.stride import Stride, resampling

STRIDED = (nn.Conv1d, nn.Conv2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d)


def folds_into(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The stride that a layer can take upon itself: the only one that reads it."""
    users = list(node.users)
    if len(users) == 1 and isinstance(module_of(graph, users[0]), Cells):  # which the plain network has not
        users = list(users[0].users)
    if len(users) != 1 or not isinstance(module_of(graph, node), STRIDED):
        return None
    stride = module_of(graph, users[0])
    alone = sum(other.target == node.target for other in graph.graph.nodes if other.op == "call_module") == 1
    return users[0] if alone and isinstance(stride, Stride) and stride.kind == "shrink" else None


def make_whole(graph: fx.GraphModule, strides: Mapping[str, int]) -> None:
    """Let the network really stride, by the whole strides of all its gates; in place."""
    for node in list(graph.graph.nodes):
        module = module_of(graph, node)
        if isinstance(module, CellBatchNorm):
            _put(graph, node, module.plain())
        elif isinstance(module, Stride):
            _replace(graph, node, _strided(graph, node, module, strides))
        elif isinstance(module, Cells | CellFloor):
            _replace(graph, node, node.args[0])
        elif isinstance(module, CellMean):
            with graph.graph.inserting_before(node):
                dims = list(module.dims)
                mean = graph.graph.call_function(torch.mean, (node.args[0], dims), {"keepdim": module.keepdim})
            _replace(graph, node, mean)


def lay_out(graph: fx.GraphModule, strides: Mapping[str, int]) -> None:
    """Crop every map to what is live at these whole strides; larger ones need no more."""
    for module in graph.modules():
        if isinstance(module, Stride):
            live = (e.then(s).live(strides) for e, s in zip(module.extents, module.steps, strict=True))
            module.room = tuple(int(n) for n in live)


def _replace(graph: fx.GraphModule, node: fx.Node, by: Any) -> None:
    node.replace_all_uses_with(by)
    graph.graph.erase_node(node)


def _put(graph: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    owner, _, name = str(node.target).rpartition(".")
    graph.get_submodule(owner).add_module(name, module)


def _strided(graph: fx.GraphModule, node: fx.Node, stride: Stride, strides: Mapping[str, int]) -> fx.Node:
    """The plain operation of a whole stride, before its node."""
    source, s = node.all_input_nodes[0], strides[stride.gate.name]
    if s == 1:
        return source
    if stride.kind != "shrink":
        return _matrices(graph, node, stride, strides)
    if folds_into(graph, source) is node:
        layer: Any = copy.deepcopy(module_of(graph, source))
        layer.stride = tuple(s * own for own in _each(layer.stride, len(stride.steps)))
        _put(graph, source, layer)
        return source
    with graph.graph.inserting_before(node):
        every = (slice(None), slice(None), *(slice(None, None, s) for _ in stride.steps))
        return graph.graph.create_node("call_function", operator.getitem, (source, every), name=f"{node.name}_strided")


def _matrices(graph: fx.GraphModule, node: fx.Node, stride: Stride, strides: Mapping[str, int]) -> fx.Node:
    like = next(iter(graph.parameters()), torch.zeros(()))
    exact = torch.zeros((), dtype=torch.float64)
    sizes = {name: exact + s for name, s in strides.items()}
    out = node.all_input_nodes[0]
    for i in reversed(range(len(stride.steps))):
        extent, step = stride.extents[i], stride.steps[i]
        inputs, outputs = int(extent.live(strides)), int(extent.then(step).live(strides))
        matrix_OI = resampling(step, extent, sizes, outputs, inputs, exact).to(like)
        last = i == len(stride.steps) - 1
        name = f"{node.name}_resample{i}"
        graph.register_buffer(name, matrix_OI.mT.contiguous() if last else matrix_OI)
        with graph.graph.inserting_before(node):
            held = graph.graph.get_attr(name)
            pair, made = (out, held) if last else (held, out), f"{node.name}_resampled{i}"
            out = graph.graph.create_node("call_function", torch.matmul, pair, name=made)
    return out


def _each(value: Any, axes: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * axes
