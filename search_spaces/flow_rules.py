"""What each operation does to channels: one short rule a pattern, looked up by module type, function or method name.

A rule says the segments of the result, ties groups that are added up, records a `Use` of weights, and how zeros fare:

    gate    zero where a grade is zero        keep    zero where its input is (an activation, a pool)
    both    zero where all inputs are (a sum) either  zero where any input is (a product)
    break   anything may come out (a layer, a norm, a sigmoid)

An operation without a rule makes its result opaque: the channels that enter it are pinned to their full width.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from search_spaces.blocks import Evened, Mix, Passing
from search_spaces.cells import CellFloor, CellMean, Cells
from search_spaces.flow import Flow, Group, Segment, Use, Value, shape_of, source_of
from search_spaces.layer_rules import conv, linear
from search_spaces.norm_rules import NORM_RULES
from search_spaces.stride import Stride
from search_spaces.width import Gate, GateRow

Rule = Callable[[Flow, fx.Node, Any], Value | None]

#: activations with f(0) = 0, pools and the like
KEEPING = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.ELU, nn.CELU, nn.SELU, nn.Hardswish, nn.Mish),
    *(nn.Softsign, nn.Tanhshrink, nn.Hardtanh, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad1d, nn.ZeroPad2d),
)
BREAKING = (nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid)
KEEPING_NAMES = {
    *(
        "relu",
        "relu_",
        "relu6",
        "leaky_relu",
        "gelu",
        "silu",
        "tanh",
        "elu",
        "hardswish",
        "mish",
        "dropout",
        "dropout2d",
    ),
    *("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"),
    *(
        "adaptive_max_pool2d",
        "interpolate",
        "contiguous",
        "clone",
        "detach",
        "float",
        "double",
        "neg",
        "abs",
        "expand_as",
    ),
    *("boolean_dispatch",),  # how torch names max_pool2d
}
BREAKING_NAMES = {"sigmoid", "hardsigmoid", "softplus", "exp", "sqrt"}  # sqrt has no slope at 0
SUMS = {operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub, "add", "add_", "sub", "sub_"}
PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_", operator.truediv, torch.div, "div"}
RESHAPES = {
    torch.flatten,
    torch.reshape,
    "flatten",
    "view",
    "reshape",
    torch.squeeze,
    torch.unsqueeze,
    "squeeze",
    "unsqueeze",
}
MEANS = {torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"}


def spread(flow: Flow, node: fx.Node) -> None:
    """Work out one node of the graph, its inputs being done."""
    shape = shape_of(node)
    if node.op == "output":
        for source in node.all_input_nodes:
            for segment in _segments(flow, source):
                flow.pin(segment.group, "they are the network's output")
        return
    if shape is None and node.op != "get_attr":
        return
    if node.op == "placeholder":
        assert shape is not None
        axis = _input_axis(flow, node) if len(shape) > 1 else 0
        group = Group(shape[axis], "the input", pinned="they are the network's input")
        flow.values[node] = Value(shape, axis, (Segment(group),))
        flow.silencers[node] = "break"
        return
    if _bare_of(node) is not None:
        return  # read by the operation that uses it
    rule = _rule_of(flow, node)
    value = None
    if rule is not None:
        value = rule(flow, node, flow.module(str(node.target)) if node.op == "call_module" else None)
    flow.values[node] = value if value is not None else _opaque(flow, node)


def _input_axis(flow: Flow, node: fx.Node) -> int:
    """A [B, L, D] input's channels lie where its first layer reads them: last for linear, 1 for conv1d."""
    shape = shape_of(node)
    if shape is None or len(shape) != 3:
        return 1
    for user in node.users:
        if user.op == "call_module" and isinstance(flow.module(str(user.target)), nn.Linear | nn.LayerNorm):
            return 2
    return 1


def _rule_of(flow: Flow, node: fx.Node) -> Rule | None:
    if node.op == "call_module":
        module = flow.module(str(node.target))
        for kinds, rule in MODULE_RULES:
            if isinstance(module, kinds):
                return rule
        return None
    if node.target in SUMS:
        return _sum
    if node.target in PRODUCTS:
        return _product
    if node.target in RESHAPES:
        return _reshape
    if node.target in MEANS:
        return _mean
    if node.target in (torch.cat, torch.concat):
        return _cat
    if node.target is torch.matmul:
        return _resampled
    if node.target is operator.getitem:
        return _sliced
    if node.target in (torch.permute, torch.transpose, "permute", "transpose"):
        return _permute
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name in KEEPING_NAMES:
        return _keep
    if name in BREAKING_NAMES:
        return _break
    return None


def _segments(flow: Flow, node: fx.Node) -> tuple[Segment, ...]:
    value = flow.values.get(node)
    return () if value is None else value.segments or ()


def _opaque(flow: Flow, node: fx.Node) -> Value:
    """The result of an operation that is not known: what enters it keeps its full width."""
    sources, named, inputs = [], node, list(node.all_input_nodes)
    while inputs:  # what gives no tensor, such as the pair of a sort, is only passed through
        source = inputs.pop()
        if source in flow.values:
            sources.append(source)
        elif _bare_of(source) is None:
            named, inputs = source, [*inputs, *source.all_input_nodes]
    name = named.target if isinstance(named.target, str) else getattr(named.target, "__name__", str(named.target))
    if named.op == "call_module":
        name = f"{named.target} ({type(flow.module(str(named.target))).__name__})"
    for source in sources:
        for segment in _segments(flow, source):
            flow.pin(segment.group, f"they enter `{name}`, which continua cannot follow channels through")
    if all(flow.values[source].segments is not None for source in sources):  # else it only follows on an unknown one
        flow.unknown[named] = str(name)
    flow.silencers[node] = "break"
    shape = shape_of(node)
    assert shape is not None
    return Value(shape, learnt=any(flow.values[n].learnt for n in sources) or node.op == "call_module")


def _resampled(flow: Flow, node: fx.Node, _: Any) -> Value | None:
    """A map times a matrix of numbers that are not trained, along one of its axes: what a whole stride leaves."""
    (source, *more), shape = _operands(flow, node), shape_of(node)
    value = flow.values[source]
    assert shape is not None
    trained = [n for n in _parameters(flow, node) if isinstance(_tensor_of(flow, n), nn.Parameter)]
    if more or trained or value.segments is None or value.axis != 1 or len(shape) < 3:
        return None
    flow.silencers[node] = "keep"
    return Value(shape, 1, value.segments, value.learnt)


def _sliced(flow: Flow, node: fx.Node, _: Any) -> Value | None:
    """Every so many cells of a map, all its channels."""
    _, value = source_of(flow, node)
    shape, places = shape_of(node), node.args[1]
    if shape is None or value.segments is None or not isinstance(places, tuple) or len(shape) != len(value.shape):
        return None
    if len(places) <= value.axis or places[value.axis] != slice(None):
        return None
    flow.silencers[node] = "keep"
    return Value(shape, value.axis, value.segments, value.learnt)


def _mix(flow: Flow, node: fx.Node, _: Any) -> Value | None:
    """Tensors that are added up, or of which one takes the other's place."""
    result = _combined(flow, node)
    flow.silencers[node] = "both"
    return result


def _cell_mean(flow: Flow, node: fx.Node, mean: Any) -> Value | None:
    return _over(flow, node, list(mean.dims), mean.keepdim)


def _gate_row(flow: Flow, node: fx.Node, row: Any) -> Value | None:
    _, value = source_of(flow, node)
    gates = iter(row.gates)
    for segment, (size, _) in zip(value.segments or (), row.parts, strict=True):
        if not size:
            segment.group.root.gate = next(gates).name
    flow.silencers[node] = "gate"
    return value


def _gate(flow: Flow, node: fx.Node, gate: Any) -> Value | None:
    _, value = source_of(flow, node)
    segments = value.segments
    flow.silencers[node] = "gate"
    if segments is None or len(segments) != 1 or segments[0].repeat != 1:
        where = "channels that continua cannot follow" if segments is None else "a concatenation or flattened channels"
        flow.faults.append(
            f"network.{node.target}: the gate {gate.name!r} must follow one layer's channels, but it gates {where}; "
            "put it before them."
        )
        return value
    group = segments[0].group.root
    if group.size != gate.maximum:
        flow.faults.append(
            f"network.{node.target}: the gate {gate.name!r} must have as many units as the layer it follows "
            f"({group.size} in `{group.first}`), but got maximum={gate.maximum}; set it to {group.size}."
        )
    elif fault := _axis_fault(gate, value):
        flow.faults.append(f"network.{node.target}: {fault}")
    if group.gate and group.gate != gate.name:
        flow.faults.append(
            f"network.{node.target}: the channels of `{group.first}` must have one gate, but {gate.name!r} gates them "
            f"as well as {group.gate!r}; use the same gate (one module, called twice)."
        )
    group.gate = gate.name
    return value


def _axis_fault(gate: Gate, value: Value) -> str:
    try:
        axis = gate.axis(torch.empty(value.shape, device="meta"))
    except ValueError as error:
        return str(error)
    if axis == value.axis:
        return ""
    return f"the gate {gate.name!r} must gate channels, which lie on axis {value.axis}, but got {axis}; set dim."


# -- everything else ---------------------------------------------------------------------------------------------------


def _same(flow: Flow, node: fx.Node, how: str) -> Value | None:
    _, value = source_of(flow, node)
    shape = shape_of(node)
    assert shape is not None
    if len(shape) != len(value.shape) or shape[value.axis] != value.shape[value.axis]:
        return None
    flow.silencers[node] = how
    return Value(shape, value.axis, value.segments, value.learnt)


def _keep(flow: Flow, node: fx.Node, module: Any) -> Value | None:
    return _same(flow, node, "keep")


def _stride(flow: Flow, node: fx.Node, stride: Any) -> Value | None:
    _, value = source_of(flow, node)
    if value.segments is not None and value.axis != 1:
        flow.faults.append(
            f"network.{node.target}: the stride {stride.gate.name!r} must follow a map [B, C, I] or [B, C, I, I], but "
            f"the channels of its input lie on axis {value.axis}; put it after a convolution or pooling."
        )
    return _same(flow, node, "keep")


def _prelu(flow: Flow, node: fx.Node, module: Any) -> Value | None:
    return _same(flow, node, "keep") if module.num_parameters == 1 else None


def _break(flow: Flow, node: fx.Node, module: Any) -> Value | None:
    return _same(flow, node, "break")


def _operands(flow: Flow, node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if n in flow.values]


def _parameters(flow: Flow, node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if _bare_of(n) is not None]


def _bare_of(node: Any) -> fx.Node | None:
    """The bare parameter that a node is, or is a view of."""
    while isinstance(node, fx.Node) and node.op != "get_attr":
        node = node.args[0] if node.target in RESHAPES and node.args else None
    return node if isinstance(node, fx.Node) else None


def _sum(flow: Flow, node: fx.Node, _: Any) -> Value | None:
    result = _combined(flow, node)
    numbers = [a for a in node.args if isinstance(a, int | float) and a != 0]
    flow.silencers[node] = "break" if numbers or _parameters(flow, node) else "both"
    return result


def _product(flow: Flow, node: fx.Node, _: Any) -> Value | None:
    result = _combined(flow, node)
    flow.silencers[node] = "either" if node.target not in (operator.truediv, torch.div, "div") else "keep"
    return result


def _combined(flow: Flow, node: fx.Node) -> Value | None:
    """The common segments of operands that meet element by element; a bare parameter is recorded as a use."""
    shape = shape_of(node)
    assert shape is not None
    operands = _operands(flow, node)
    full = [n for n in operands if len(flow.values[n].shape) == len(shape)]
    if not full or len(full) != len(operands):
        return None
    known = [flow.values[n] for n in full]
    first = next((v for v in known if v.segments is not None and v.shape[v.axis] == shape[v.axis]), None)
    if first is None or any(v.segments is None for v in known):
        return None
    assert first.segments is not None
    for value in known:
        if value is first or value.segments is None:
            continue
        if value.axis != first.axis or value.shape[value.axis] != first.shape[first.axis]:
            if value.shape[value.axis] == 1 and value.axis == first.axis:
                continue  # one number for all channels
            return None
        flow.tie(first.segments, value.segments, node)
    for parameter in _parameters(flow, node):
        if not _bare(flow, node, parameter, first, shape):
            return None
    return Value(shape, first.axis, first.segments, any(v.learnt for v in known) or bool(_parameters(flow, node)))


def _tensor_of(flow: Flow, parameter: fx.Node) -> Any:
    """The tensor that a bare parameter's node, or a view of it, stands for."""
    bare = _bare_of(parameter)
    assert bare is not None
    tensor: Any = flow.graph
    for part in str(bare.target).split("."):
        tensor = getattr(tensor, part)
    return tensor


def _bare(flow: Flow, node: fx.Node, parameter: fx.Node, value: Value, shape: tuple[int, ...]) -> bool:
    """Record a parameter that meets the channels; false when it does not lie along them alone."""
    bare = _bare_of(parameter)
    assert bare is not None
    tensor = _tensor_of(flow, bare)
    seen = shape_of(parameter)
    if not isinstance(tensor, torch.Tensor) or seen is None:
        return False
    aligned = (1,) * (len(shape) - len(seen)) + seen
    if tensor.numel() == 1:
        return True
    if tensor.numel() != shape[value.axis] or aligned[value.axis] != shape[value.axis]:
        return False
    assert value.segments is not None
    if isinstance(tensor, nn.Parameter):
        flow.record(Use(node, str(bare.target), "parameter", value.segments, value.segments))
    return True


def _cat(flow: Flow, node: fx.Node, _: Any) -> Value | None:
    shape = shape_of(node)
    assert shape is not None
    parts = [flow.values[n] for n in node.args[0]]  # type: ignore[union-attr, index]
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if not isinstance(dim, int) or any(p.segments is None or p.axis != parts[0].axis for p in parts):
        return None
    flow.silencers[node] = "both"
    learnt = any(p.learnt for p in parts)
    if dim % len(shape) == parts[0].axis:
        return Value(shape, parts[0].axis, tuple(s for p in parts for s in p.segments or ()), learnt)
    for part in parts[1:]:
        flow.tie(parts[0].segments or (), part.segments or (), node)
    return Value(shape, parts[0].axis, parts[0].segments, learnt)


def _reshape(flow: Flow, node: fx.Node, module: Any) -> Value | None:
    _, value = source_of(flow, node)
    out = shape_of(node)
    assert out is not None
    before, axis = value.shape, value.axis
    if value.segments is None or out[0] != before[0]:
        return None
    flow.silencers[node] = "keep"
    if axis < len(out) and out[: axis + 1] == before[: axis + 1]:  # only what lies behind the channels is folded
        return Value(out, axis, value.segments, value.learnt)
    if axis == len(before) - 1 and out[-1] == before[-1]:  # only what lies before them is
        return Value(out, len(out) - 1, value.segments, value.learnt)
    repeat = 1
    for n in before[axis + 1 :]:
        repeat *= n
    if axis == 1 and out == (before[0], before[1] * repeat):
        return Value(out, 1, tuple(Segment(s.group, s.repeat * repeat) for s in value.segments), value.learnt)
    return None


def _mean(flow: Flow, node: fx.Node, _: Any) -> Value | None:
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keep = (node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)) is True
    return _over(flow, node, dims, keep)


def _over(flow: Flow, node: fx.Node, dims: Any, keep: bool) -> Value | None:
    """What is left of a tensor over some of whose axes a mean was taken."""
    _, value = source_of(flow, node)
    if isinstance(dims, int):
        dims = (dims,)
    if value.segments is None or not isinstance(dims, list | tuple):
        return None
    gone = {d % len(value.shape) for d in dims if isinstance(d, int)}
    if value.axis in gone or 0 in gone:
        return None
    shape = shape_of(node)
    assert shape is not None
    axis = value.axis if keep else value.axis - sum(d < value.axis for d in gone)
    flow.silencers[node] = "keep"
    return Value(shape, axis, value.segments, value.learnt)


def _permute(flow: Flow, node: fx.Node, _: Any) -> Value | None:
    _, value = source_of(flow, node)
    shape = shape_of(node)
    assert shape is not None
    rest = node.args[1:] or tuple(node.kwargs[key] for key in ("dims", "dim0", "dim1") if key in node.kwargs)
    order: Any = rest[0] if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
    rank = len(value.shape)
    if not all(isinstance(d, int) for d in order):
        return None
    places = list(range(rank))
    if node.target in (torch.transpose, "transpose"):
        a, b = (d % rank for d in order)
        places[a], places[b] = places[b], places[a]
    else:
        places = [d % rank for d in order]
    flow.silencers[node] = "keep"
    return Value(shape, places.index(value.axis), value.segments, value.learnt)


MODULE_RULES: list[tuple[Any, Rule]] = [
    (Gate, _gate),
    (GateRow, _gate_row),
    ((Passing, Mix), _mix),
    (Stride, _stride),
    ((Cells, CellFloor, Evened), _keep),
    (CellMean, _cell_mean),
    (nn.Linear, linear),
    ((nn.Conv1d, nn.Conv2d), conv),
    *NORM_RULES,
    (nn.PReLU, _prelu),
    (nn.Flatten, _reshape),
    (KEEPING, _keep),
    (BREAKING, _break),
]
