"""What linear layers and convolutions do to channels: the rules of `flow_rules` for them."""

from __future__ import annotations

from typing import Any

from torch import fx

from search_spaces.flow import Flow, Group, Segment, Use, Value, shape_of, source_of


def _read(flow: Flow, node: fx.Node, size: int) -> tuple[Segment, ...]:
    """The segments of what a layer reads; an opaque tensor counts as one pinned group."""
    _, value = source_of(flow, node)
    if value.segments is not None:
        return value.segments
    return (Segment(Group(size, f"the input of {node.name}", pinned="they come out of an unknown operation")),)


def linear(flow: Flow, node: fx.Node, layer: Any) -> Value | None:
    _, value = source_of(flow, node)
    shape = shape_of(node)
    assert shape is not None
    if value.segments is not None and value.axis != len(value.shape) - 1:
        return None
    out = Segment(Group(layer.out_features, str(node.target)))
    positions = Value(shape, len(shape) - 1, (out,)).positions
    inputs = _read(flow, node, layer.in_features)
    bias = layer.bias is not None
    use = Use(node, str(node.target), "linear", inputs, (out,), positions=positions, bias=bias, learnt=value.learnt)
    flow.record(use)
    flow.silencers[node] = "break"
    return Value(shape, len(shape) - 1, (out,), learnt=True)


def conv(flow: Flow, node: fx.Node, layer: Any) -> Value | None:
    _, value = source_of(flow, node)
    shape = shape_of(node)
    assert shape is not None
    inputs = _read(flow, node, layer.in_channels)
    if value.segments is not None and value.axis != 1:
        return None
    kind = "conv"
    outputs: tuple[Segment, ...] = (Segment(Group(layer.out_channels, str(node.target))),)
    if layer.groups > 1:
        if layer.groups == layer.in_channels == layer.out_channels:
            kind, outputs = "depthwise", inputs
        else:
            for segment in (*inputs, *outputs):
                flow.pin(segment.group, f"`{node.target}` is a grouped convolution, which cuts them into equal parts")
    taps = layer.weight[0, 0].numel() // (1 if kind == "depthwise" else layer.groups)
    if layer.groups > 1 and kind == "conv":
        return _grouped(flow, node, layer, value, inputs, outputs, shape)
    positions = Value(shape, 1, outputs).positions
    bias = layer.bias is not None
    flow.record(Use(node, str(node.target), kind, inputs, outputs, taps, positions, bias, value.learnt))
    flow.silencers[node] = "break"
    return Value(shape, 1, outputs, learnt=True)


def _grouped(
    flow: Flow, node: fx.Node, layer: Any, value: Value, inputs: Any, outputs: Any, shape: tuple[int, ...]
) -> Value:
    """A grouped convolution at its full width, counted as a convolution that reads a group's share of its inputs."""
    share = (Segment(Group(layer.in_channels // layer.groups, str(node.target), pinned="a share of other channels")),)
    positions = Value(shape, 1, outputs).positions
    taps = layer.weight[0, 0].numel()
    flow.record(
        Use(node, str(node.target), "grouped", share, outputs, taps, positions, layer.bias is not None, value.learnt)
    )
    flow.silencers[node] = "break"
    return Value(shape, 1, outputs, learnt=True)
