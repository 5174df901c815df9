"""From a relaxed network to a plain one: gates folded away, channels really pruned.

    >>> plain = materialise(flow)                        # at the gates' sizes rounded to whole ones
    >>> plain = materialise(flow, {"width.0": 17})       # at sizes given

The result is a `torch.fx.GraphModule` of ordinary torch.nn layers with no trace of continua. At whole sizes its outputs
are the relaxed network's."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from search_spaces.blocks import module_of, settle
from search_spaces.cells import CellBatchNorm
from search_spaces.faults import Invalid
from search_spaces.flow import Flow, Segment, Untraceable, Use
from search_spaces.kept import kept_units, members, roles_of, strides_of, wanted_sizes
from search_spaces.network import Size
from search_spaces.norms import MaskedNorm
from search_spaces.strided import lay_out, make_whole
from search_spaces.width import Gate, GateRow, HeldGate, gates_of, held


class MaskedExport(UserWarning):
    """A network that cannot be traced was exported with its masks: whole in size, the same in its outputs."""


def materialise(flow: Flow, sizes: Mapping[str, Size] | None = None) -> fx.GraphModule:
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
    """The plain network of what is `kept`: of each gate's units, blocks or edges, and a stride's whole value."""
    plain = copy.deepcopy(flow.graph)
    settle(plain, kept)
    for node in list(plain.graph.nodes):
        if isinstance(module_of(plain, node), Gate | GateRow):
            node.replace_all_uses_with(node.args[0])
            plain.graph.erase_node(node)
    _prune_all(plain, flow, kept)
    make_whole(plain, strides_of(flow, kept))
    plain.delete_all_unused_submodules()
    plain.recompile()
    return plain


def narrowed(flow: Flow, kept: Mapping[str, Tensor], *, whole: bool = False) -> fx.GraphModule:
    """The relaxed network of the `kept` units and blocks alone: pruned, but with its gates, each held and of as many;
    maps are cropped to what whole strides leave of them. With `whole` they really stride, and where not all edges are
    kept, those that are have no gate any more."""
    narrow, roles = copy.deepcopy(flow.graph), roles_of(flow.graph)
    counts = {
        name: len(kept[name]) if roles[name] in ("width", "depth") else g.maximum for name, g in flow.gates.items()
    }
    settle(narrow, {name: units for name, units in kept.items() if roles[name] == "depth"}, drop_only=True)
    if whole:
        some = {name for name, role in roles.items() if role == "topology" and len(kept[name]) < counts[name]}
        settle(narrow, {name: kept[name] for name in some})
    new = {name: HeldGate(name, count, flow.gates[name].dim) for name, count in counts.items()}
    for path, gate in list(narrow.named_modules(remove_duplicate=False)):
        if isinstance(gate, Gate):
            owner, _, name = path.rpartition(".")
            narrow.get_submodule(owner)._modules[name] = new[gate.name]  # a list of modules takes no name
    if any(counts[name] < flow.gates[name].maximum for name, role in roles.items() if role == "width"):
        _prune_all(narrow, flow, kept)
    (make_whole if whole else lay_out)(narrow, strides_of(flow, kept))
    narrow.delete_all_unused_submodules()
    narrow.recompile()
    return narrow


def _prune_all(graph: fx.GraphModule, flow: Flow, kept: Mapping[str, Tensor]) -> None:
    """Cut the weights of every layer that is still used."""
    used = {str(node.target) for node in graph.graph.nodes}
    for use in {use.path: use for use in reversed(flow.uses) if use.path in used}.values():
        prune(graph, use, kept)


def masked(module: nn.Module, sizes: Mapping[str, Size] | None = None) -> nn.Module:
    """The module with every gate's grades fixed at 0 and 1: what can be exported of a network that cannot be traced."""
    warnings.warn(
        MaskedExport(
            f"{type(module).__name__} cannot be traced, so it is exported with masks: "
            "the same outputs, none of the saving"
        ),
        stacklevel=2,
    )
    fixed, gates = held(module), gates_of(module)
    wanted, roles = wanted_sizes(module, sizes), roles_of(module)
    for name, gate in gates_of(fixed).items():
        assert isinstance(gate, HeldGate)
        size = wanted[name]
        gate.m = torch.zeros_like(gates[name].grades().detach())
        if isinstance(size, tuple):
            gate.m[list(size)] = 1.0
        elif roles[name] == "stride":
            gate.m.fill_(float(size))
        else:
            gate.m[members(gates[name], size)] = 1.0
    return fixed


def plain(module: nn.Module, example: Tensor, sizes: Mapping[str, Size] | None = None) -> nn.Module:
    """The plain network of any module with gates; one that cannot be traced is masked, with a warning."""
    try:
        flow = Flow(module, example)
    except Untraceable:
        return masked(module, sizes)
    return materialise(flow, sizes)


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
    elif isinstance(norm, CellBatchNorm):
        new = CellBatchNorm(norm, norm.axes, [gate for gate in norm.gates if isinstance(gate, Gate)], len(out))
    else:
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        new = type(norm)(len(out), norm.eps, norm.momentum, norm.affine, track_running_stats=norm.track_running_stats)
    new.to(next(iter(norm.state_dict().values()), torch.zeros(())))
    state = new.state_dict()
    for name, tensor in norm.state_dict().items():
        if name in state and not name.startswith("gates."):
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
