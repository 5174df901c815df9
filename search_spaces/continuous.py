"""One line makes an ordinary network searchable: gates where they belong, and the space of their widths.

    >>> network, space = make_continuous(resnet, width=(0.1, 1.0))
    >>> list(space.parameters)
    ['width.stem.conv', 'width.layer1.0.conv1', ...]

Each group of channels (a layer's, or all that a residual sum ties together) gets one width, named for the layer that
writes it first. A gate stands at every read: a layer sees m (.) h, while sums and norms work on h itself, so that each
grade multiplies what is read exactly once. Norms across channels become masked ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from search_spaces.faults import Invalid, unknown
from search_spaces.flow import Flow, Group
from search_spaces.norms import MaskedLayerNorm, MaskedNorm, MaskedRMSNorm
from search_spaces.parameters import Parameter, Width, is_real
from search_spaces.space import Space
from search_spaces.width import Gate, GateRow, WidthGate

GUESSES = (32, 28, 64, 224, 96, 16, 128, 299, 8)  # sides of an input image, tried in this order


def make_continuous(
    module: nn.Module,
    width: tuple[float, float] = (0.1, 1.0),
    *,
    example: Tensor | Sequence[int] | None = None,
    membership: str = "interval",
    leave: Sequence[str] = (),
) -> tuple[fx.GraphModule, Space]:
    """The module with a gate for every group of channels, and the space of their widths.

    Args:
        module: any network that torch.fx can trace. Its parameters are shared with the result, not copied.
        width: the least and greatest share of each layer's channels.
        example: an input [B, ...] or its shape; by default the first shape of a few common ones that runs.
        membership: of every gate.
        leave: paths of layers whose channels keep their full width.

    Raises:
        Untraceable: when torch.fx cannot trace it.
        Invalid: with every operation through which channels cannot be followed, and every other fault.
    """
    faults = _argument_faults(module, width, leave)
    if faults:
        raise Invalid(faults)
    flow = Flow(module, _example(module, example))
    for use in flow.uses:
        if _within(use.path, leave):
            for segment in use.outputs:
                flow.pin(segment.group, "they are to be left")
    asked = [name for node, name in flow.unknown.items() if not any(_within(path, leave) for path in _paths(node))]
    faults = flow.faults + [
        f"network: channels cannot be followed through `{name}`; write it with known operations, or name the layer in "
        "`leave` (it, or the module whose forward calls it) to keep the widths around it."
        for name in dict.fromkeys(asked)
    ]
    free = [group for group in flow.free_groups() if not group.pinned and group.size > 1]
    if not faults and not free:
        faults.append(_no_width(flow))
    if faults:
        raise Invalid(faults)
    gates = {id(group): _gated(flow, group, membership) for group in free}
    _mask_norms(flow, gates)
    _insert(flow, gates)
    ends = {
        gate.name: (max(1.0, width[0] * gate.maximum), math.floor(width[1] * gate.maximum + 1e-9))
        for gate in gates.values()
    }
    parameters: dict[str, Parameter] = {
        name: Width(low=low, high=high) for name, (low, high) in ends.items() if low < high
    }
    flow.graph.graph.lint()
    flow.graph.recompile()
    return flow.graph, Space(parameters)


def _within(path: str, leave: Sequence[str]) -> bool:
    return any(path == left or path.startswith(f"{left}.") for left in leave)


def _paths(node: fx.Node) -> list[str]:
    """The modules in whose forward a node is, the node's own among them."""
    return [str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()]


def _no_width(flow: Flow) -> str:
    reasons = [f"those of `{group.first}`: {group.pinned}" for group in flow.free_groups() if group.pinned]
    told = f" ({'; '.join(reasons)})" if reasons else ""
    return f"network: at least one layer must lie between input and output for a width, but got none{told}."


def _argument_faults(module: nn.Module, width: tuple[float, float], leave: Sequence[str]) -> list[str]:
    faults = []
    if len(width) != 2 or not all(is_real(w) for w in width) or not 0 < width[0] < width[1] <= 1:
        faults.append(f"width: `0 < least < greatest <= 1` must hold, but got {width!r}; write (0.1, 1.0).")
    paths = [name for name, _ in module.named_modules() if name]
    faults += [unknown("leave", path, paths, "layer") for path in leave if path not in paths]
    if any(isinstance(child, Gate) for child in module.modules()):
        faults.append("network: must have no gates yet, but it has; drop them, or search it as it is.")
    return faults


def _example(module: nn.Module, given: Tensor | Sequence[int] | None) -> Tensor:
    like = next(iter(module.parameters()), torch.zeros(()))
    if isinstance(given, Tensor):
        return given
    if given is not None:
        return torch.zeros(tuple(given), dtype=like.dtype, device=like.device)
    first = next((m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)), None)
    if first is None:
        raise Invalid(["network: must have a linear or convolutional layer, but got none."])
    shapes: list[tuple[int, ...]] = [(2, first.in_features)] if isinstance(first, nn.Linear) else []
    if isinstance(first, nn.Conv2d):
        shapes = [(2, first.in_channels, side, side) for side in GUESSES]
    elif isinstance(first, nn.Conv1d):
        shapes = [(2, first.in_channels, side) for side in GUESSES]
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        for shape in shapes:
            candidate = torch.zeros(shape, dtype=like.dtype, device=like.device)
            try:
                with torch.no_grad():
                    module(candidate)
            except Exception:  # the user's forward may refuse a shape in any way
                continue
            return candidate
    finally:
        for m, training in modes.items():
            m.training = training
    tried = ", ".join(map(str, shapes))
    raise Invalid([f"example: the network must run on an example input, but on none of {tried}; give `example=`."])


def _gated(flow: Flow, group: Group, membership: str) -> WidthGate:
    gate = WidthGate(f"width.{group.first}", group.size, membership=membership)
    like = next(iter(flow.graph.parameters()))
    gate.to(like.device, like.dtype)
    group.gate = gate.name
    return gate


def _mask_norms(flow: Flow, gates: dict[int, WidthGate]) -> None:
    """Put a masked norm in the place of every norm across gated channels."""
    for use in flow.uses:
        found = [gate for s in use.inputs if (gate := gates.get(id(s.group.root))) is not None]
        if use.kind != "layer_norm" or not found:
            continue
        if len(use.inputs) != 1 or use.inputs[0].repeat != 1:
            raise Invalid([f"network.{use.path}: a norm across channels must read one layer's; name it in `leave`."])
        norm = flow.module(use.path)
        if not isinstance(norm, MaskedNorm):
            owner, _, name = use.path.rpartition(".")
            flow.graph.get_submodule(owner).add_module(name, _masked(norm, found[0]))


def _masked(norm: nn.Module, gate: WidthGate) -> MaskedNorm:
    affine, bias = norm.weight is not None, getattr(norm, "bias", None) is not None
    new: MaskedNorm
    if isinstance(norm, nn.RMSNorm):
        new = MaskedRMSNorm(gate.maximum, gate, eps=norm.eps, affine=affine)
    elif isinstance(norm, nn.LayerNorm):
        new = MaskedLayerNorm(gate.maximum, gate, eps=norm.eps, affine=affine, bias=bias)
    else:
        assert isinstance(norm, nn.GroupNorm)
        new = MaskedLayerNorm(gate.maximum, gate, eps=norm.eps, affine=affine, dim=1, spatial=True)
    new.to(next(gate.parameters())).train(norm.training)
    with torch.no_grad():
        for name, value in norm.named_parameters():
            getattr(new, name).copy_(value)
    return new


def _insert(flow: Flow, gates: dict[int, WidthGate]) -> None:
    """Gate every tensor that a layer reads and in which gated units still speak."""
    made: dict[fx.Node, fx.Node] = {}
    for gate in gates.values():
        flow.graph.add_submodule(path_of(gate), gate)
    for use, source in list(flow.reads()):
        if use.kind == "layer_norm":
            continue  # a masked norm weighs by itself
        _gate_read(flow, use.node, source, gates, made)


def path_of(gate: Gate) -> str:
    """Where a gate lies in a module: one flat name under `gates`."""
    return f"gates.{gate.name.replace('.', '_')}"


def _gate_read(
    flow: Flow, reader: fx.Node, source: fx.Node, gates: dict[int, WidthGate], made: dict[fx.Node, fx.Node]
) -> None:
    value = flow.values[source]
    segments = value.segments or ()
    if flow.silencers.get(source) == "gate" or not any(id(s.group.root) in gates for s in segments):
        return
    if source not in made:
        own = [gates.get(id(segment.group.root)) for segment in segments]
        if len(own) == 1 and own[0] is not None and segments[0].repeat == 1:
            path = path_of(own[0])
        else:  # flattened or concatenated channels
            parts = [(gate or s.group.size, s.repeat) for gate, s in zip(own, segments, strict=True)]
            path = f"gates.row_{source.name}"
            flow.graph.add_submodule(path, GateRow(parts, value.axis))
        with flow.graph.graph.inserting_after(source):
            node = flow.graph.graph.call_module(path, (source,))
        flow.values[node] = value
        flow.silencers[node] = "gate"
        made[source] = node
    reader.replace_input_with(source, made[source])
