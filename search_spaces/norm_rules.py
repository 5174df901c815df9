"""What norms do to channels: the rules of `flow_rules` for them. One per channel goes on channel by channel, one across
channels must ask the gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from search_spaces.cells import CellBatchNorm
from search_spaces.flow import Flow, Use, Value, source_of
from search_spaces.norms import MaskedNorm


def _normed(flow: Flow, node: fx.Node, kind: str, value: Value, norm: Any) -> Value:
    assert value.segments is not None
    trained = norm.weight is not None
    bias = getattr(norm, "bias", None) is not None
    flow.record(Use(node, str(node.target), kind, value.segments, value.segments, bias=bias, trained=trained))
    flow.silencers[node] = "break"
    return Value(value.shape, value.axis, value.segments, learnt=value.learnt or trained)


def _batch_norm(flow: Flow, node: fx.Node, norm: Any) -> Value | None:
    _, value = source_of(flow, node)
    if value.segments is None or value.axis != 1:
        return None
    return _normed(flow, node, "norm", value, norm)


def _layer_norm(flow: Flow, node: fx.Node, norm: Any) -> Value | None:
    _, value = source_of(flow, node)
    if value.segments is None or value.axis != len(value.shape) - 1 or len(norm.normalized_shape) != 1:
        return None
    return _normed(flow, node, "layer_norm", value, norm)


def _group_norm(flow: Flow, node: fx.Node, norm: Any) -> Value | None:
    _, value = source_of(flow, node)
    if value.segments is None or value.axis != 1:
        return None
    across = norm.num_groups != norm.num_channels
    if norm.num_groups > 1 and across:
        for segment in value.segments:
            flow.pin(segment.group, f"`{node.target}` normalises them in {norm.num_groups} equal parts")
    return _normed(flow, node, "layer_norm" if across else "norm", value, norm)


def _masked_norm(flow: Flow, node: fx.Node, norm: Any) -> Value | None:
    _, value = source_of(flow, node)
    if value.segments is None:
        return None
    return _normed(flow, node, "layer_norm", value, norm)


NORM_RULES: list[tuple[Any, Callable[[Flow, fx.Node, Any], Value | None]]] = [
    (MaskedNorm, _masked_norm),
    ((nn.BatchNorm1d, nn.BatchNorm2d, CellBatchNorm), _batch_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    (nn.GroupNorm, _group_norm),
]
