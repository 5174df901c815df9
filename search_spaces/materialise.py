"""From a relaxed network to a plain one: gates folded away, channels really pruned.

    >>> plain = materialise(flow)                        # at the gates' sizes rounded to whole ones
    >>> plain = materialise(flow, {"width.0": 17})       # at sizes given

The result is a `torch.fx.GraphModule` of ordinary torch.nn layers with no trace of continua. At whole sizes its outputs
are the relaxed network's. `costs_of` is the cost of any size before anything is pruned.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from search_spaces.cost import Channels, Costs, LayerCost
from search_spaces.faults import Invalid, unknown
from search_spaces.flow import Flow, Segment, Untraceable, Use
from search_spaces.norms import MaskedNorm
from search_spaces.width import Gate, GateRow, HeldGate, WidthGate, gates_of, held


class MaskedExport(UserWarning):
    """A network that cannot be traced was exported with its masks: whole in size, the same in its outputs."""


def whole(n: float, maximum: int) -> int:
    """The nearest whole size in 1 .. N, halves up."""
    return max(1, min(int(n + 0.5), maximum))


def members(gate: Gate, size: int) -> Tensor:
    """The indices of the `size` surest members, rising; lower indices first among equals."""
    training = gate.training
    try:
        grades = gate.eval().grades().detach()  # without noise: who is a member is no matter of chance
    finally:
        gate.train(training)
    order = torch.argsort(grades, descending=True, stable=True)
    return order[:size].sort().values


def sizes_of(module: nn.Module) -> dict[str, int]:
    """The whole size nearest to each width gate's real one."""
    return {
        name: whole(float(gate.size().detach()), gate.maximum) if isinstance(gate, WidthGate) else gate.maximum
        for name, gate in gates_of(module).items()
    }


def materialise(flow: Flow, sizes: Mapping[str, int] | None = None) -> fx.GraphModule:
    """The plain network at whole `sizes` (default: the gates' own, rounded), in the mode of the relaxed one.

    Raises:
        Invalid: for gates where none must be, sizes that no gate has, or a shape that the network's code holds fast.
    """
    if flow.faults:
        raise Invalid(flow.faults)
    plain = pruned(flow, kept_units(flow, sizes))
    _check_shapes(plain, flow)
    return plain


def pruned(flow: Flow, kept: Mapping[str, Tensor]) -> fx.GraphModule:
    """The plain network of the `kept` units, as they are numbered in each gate's group."""
    plain = copy.deepcopy(flow.graph)
    for node in list(plain.graph.nodes):
        if node.op == "call_module" and isinstance(plain.get_submodule(node.target), Gate | GateRow):
            node.replace_all_uses_with(node.args[0])
            plain.graph.erase_node(node)
    for use in {use.path: use for use in reversed(flow.uses)}.values():
        prune(plain, use, kept)
    plain.delete_all_unused_submodules()
    plain.recompile()
    return plain


def narrowed(flow: Flow, kept: Mapping[str, Tensor]) -> fx.GraphModule:
    """The relaxed network of the `kept` units alone: pruned, but with its gates, each held and of as many units."""
    narrow = copy.deepcopy(flow.graph)
    new = {name: HeldGate(name, len(kept[name]), gate.dim) for name, gate in gates_of(narrow).items() if name in kept}
    for path, gate in list(narrow.named_modules(remove_duplicate=False)):
        if isinstance(gate, Gate) and gate.name in new:
            owner, _, name = path.rpartition(".")
            narrow.get_submodule(owner).add_module(name, new[gate.name])
    for use in {use.path: use for use in reversed(flow.uses)}.values():
        prune(narrow, use, kept)
    return narrow


def masked(module: nn.Module, sizes: Mapping[str, int] | None = None) -> nn.Module:
    """The module with every gate's grades fixed at 0 and 1: what can be exported of a network that cannot be traced."""
    warnings.warn(
        MaskedExport(
            f"{type(module).__name__} cannot be traced, so it is exported with masks: "
            "the same outputs, none of the saving"
        ),
        stacklevel=2,
    )
    fixed, gates = held(module), gates_of(module)
    sizes = _wanted(module, gates, sizes)
    for name, gate in gates_of(fixed).items():
        assert isinstance(gate, HeldGate)
        grades = gates[name].grades().detach()
        gate.m = torch.zeros_like(grades)
        gate.m[members(gates[name], sizes[name])] = 1.0
    return fixed


def plain(module: nn.Module, example: Tensor, sizes: Mapping[str, int] | None = None) -> nn.Module:
    """The plain network of any module with gates; one that cannot be traced is masked, with a warning."""
    try:
        flow = Flow(module, example)
    except Untraceable:
        return masked(module, sizes)
    return materialise(flow, sizes)


def kept_units(flow: Flow, sizes: Mapping[str, int] | None = None) -> dict[str, Tensor]:
    """The units of each gate's group that are kept. Raises `Invalid` for sizes that no gate has."""
    gates = gates_of(flow.graph)
    wanted = _wanted(flow.graph, gates, sizes)
    return {name: members(gates[name], wanted[name]) for name in flow.groups}


def _wanted(module: nn.Module, gates: Mapping[str, Gate], sizes: Mapping[str, int] | None) -> dict[str, int]:
    """The whole size of each gate: as given, or its own."""
    wanted = {**sizes_of(module), **(sizes or {})}
    faults = [unknown("sizes", name, gates, "gate") for name in wanted if name not in gates]
    faults += [
        f"sizes.{name}: must lie in 1 .. {gate.maximum}, but got {wanted[name]}."
        for name, gate in gates.items()
        if not 1 <= wanted[name] <= gate.maximum
    ]
    if faults:
        raise Invalid(faults)
    return wanted


def places_of(segments: tuple[Segment, ...], kept: Mapping[str, Tensor]) -> Tensor:
    """The positions along a tensor's channel axis that are kept."""
    found, offset = [], 0
    for segment in segments:
        group = segment.group.root
        units = kept[group.gate] if group.gate else torch.arange(group.size)
        each = torch.arange(segment.repeat)
        found.append((offset + units.cpu().unsqueeze(1) * segment.repeat + each).flatten())
        offset += segment.length
    return torch.cat(found)


def prune(graph: fx.GraphModule, use: Use, kept: Mapping[str, Tensor]) -> None:
    """Replace the weights of one use by those of what is kept."""
    out = places_of(use.outputs, kept)
    if use.kind == "parameter":
        owner, _, name = use.path.rpartition(".")
        holder = graph.get_submodule(owner)
        tensor: Tensor = getattr(holder, name)
        axis = max(range(tensor.dim()), key=lambda i: tensor.shape[i])
        setattr(holder, name, nn.Parameter(tensor.detach().index_select(axis, out.to(tensor.device)).clone()))
        return
    layer = graph.get_submodule(use.path)
    new = _pruned_norm(layer, out) if use.kind in ("norm", "layer_norm") else _pruned_layer(layer, use, kept, out)
    new.train(layer.training)
    owner, _, name = use.path.rpartition(".")
    graph.get_submodule(owner).add_module(name, new)


def _pruned_layer(layer: Any, use: Use, kept: Mapping[str, Tensor], out: Tensor) -> nn.Module:
    weight: Tensor = layer.weight.detach()
    out = out.to(weight.device)
    weight = weight.index_select(0, out)
    inputs = len(out)
    if use.kind in ("linear", "conv"):
        reads = places_of(use.inputs, kept).to(weight.device)
        weight, inputs = weight.index_select(1, reads), len(reads)
    bias = layer.bias is not None
    common: dict[str, Any] = {"bias": bias, "device": weight.device, "dtype": weight.dtype}
    new: Any
    if isinstance(layer, nn.Linear):
        new = nn.Linear(inputs, len(out), **common)
    else:
        inputs = layer.in_channels if use.kind == "grouped" else inputs
        new = type(layer)(
            inputs,
            len(out),
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=len(out) if use.kind == "depthwise" else layer.groups,
            padding_mode=layer.padding_mode,
            **common,
        )
    with torch.no_grad():
        new.weight.copy_(weight)
        if layer.bias is not None:
            new.bias.copy_(layer.bias.index_select(0, out))
    assert isinstance(new, nn.Module)
    return new


def _pruned_norm(norm: nn.Module, out: Tensor) -> nn.Module:
    """The same norm over fewer channels, a masked one made plain."""
    new: nn.Module
    if isinstance(norm, MaskedNorm):
        new = norm.plain(len(out))
    elif isinstance(norm, nn.GroupNorm):
        groups = len(out) if norm.num_groups == norm.num_channels else norm.num_groups
        new = nn.GroupNorm(groups, len(out), norm.eps, norm.affine)
    elif isinstance(norm, nn.LayerNorm):
        new = nn.LayerNorm(len(out), norm.eps, norm.elementwise_affine, bias=norm.bias is not None)
    elif isinstance(norm, nn.RMSNorm):
        new = nn.RMSNorm(len(out), norm.eps, norm.elementwise_affine)
    else:
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        new = type(norm)(len(out), norm.eps, norm.momentum, norm.affine, track_running_stats=norm.track_running_stats)
    new.to(next(iter(norm.state_dict().values()), torch.zeros(())))
    state = new.state_dict()
    for name, tensor in norm.state_dict().items():
        if name in state:
            state[name] = tensor.index_select(0, out.to(tensor.device)) if tensor.dim() else tensor
    new.load_state_dict(state)
    return new


def _check_shapes(plain: fx.GraphModule, flow: Flow) -> None:
    mode = plain.training
    try:
        with torch.no_grad():
            plain.eval()(flow.example)
    except Exception as error:
        problem = " ".join(str(error).split())[:200]
        raise Invalid(
            [
                "network: its code must not hold a number of channels fast (as in `x.view(-1, 512)`), but the pruned "
                f"network fails with: {problem}; write `x.flatten(1)` or take sizes from the tensor."
            ]
        ) from error
    plain.train(mode)


# -- cost --------------------------------------------------------------------------------------------------------------

#: what a tensor's node must not be for its numbers to count: views, and what is nothing once trained
UNWRITTEN = (Gate, GateRow, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Flatten)
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
    """The network's costs as a function of its widths."""
    rows: list[LayerCost] = []
    seen: set[str] = set()
    for use in flow.uses:
        own = use.trained and use.path not in seen
        seen.add(use.path)
        rows.append(
            LayerCost(
                use.path,
                use.kind,
                channels_of(use.inputs),
                channels_of(use.outputs),
                use.taps,
                use.positions,
                use.bias,
                own,
                not use.learnt,
            )
        )
    if fixed := _unfollowed(flow, seen):
        rows.append(LayerCost("network", "parameter", ((None, 1, 1),), ((None, fixed, 1),)))
    for node, value in flow.values.items():
        if node.op == "placeholder" or _unwritten(flow, node):
            continue
        segments = value.segments
        channels = channels_of(segments) if segments is not None else ((None, 1, 1),)
        positions = value.positions
        rows.append(LayerCost(node.name, "activation", channels, channels, positions=positions))
    return Costs(tuple(rows))


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
