"""One line makes an ordinary network searchable: gates where they belong, and the space of what they give a size to.

    >>> network, space = make_continuous(resnet, width=(0.1, 1.0), stride=(1, 4), depth=(0.0, 1.0))
    >>> list(space.parameters)
    ['width.stem.conv', 'width.layer1.0.conv1', ..., 'stride.layer2.0.conv1', 'depth.layer1', ...]

Each group of channels (a layer's, or all that a residual sum ties together) gets one width, named for the layer that
writes it first. A gate stands at every read: a layer sees m (.) h, while sums and norms work on h itself, so that each
grade multiplies what is read exactly once. Norms across channels become masked ones. What strides may have a real
stride (`search_spaces.continuous_strides`), residual blocks in a row a real depth (`continuous_depths`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from search_spaces.continuous_depths import insert_depths
from search_spaces.continuous_strides import insert_strides
from search_spaces.extent import KINDS, least_stride
from search_spaces.faults import Invalid, unknown
from search_spaces.flow import Flow, Group
from search_spaces.layered import STRIDE
from search_spaces.membership import MEMBERSHIPS
from search_spaces.norms import MaskedLayerNorm, MaskedNorm, MaskedRMSNorm
from search_spaces.parameters import Depth, Parameter, Stride, Width, is_real, is_whole
from search_spaces.space import Space
from search_spaces.stride import StrideGate
from search_spaces.width import DepthGate, Gate, GateRow, WidthGate

GUESSES = (32, 28, 64, 224, 96, 16, 128, 299, 8)  # sides of an input image, tried in this order


def make_continuous(
    module: nn.Module,
    width: tuple[float, float] | None = (0.1, 1.0),
    *,
    stride: tuple[float, float] | None = None,
    depth: tuple[float, float] | None = None,
    example: Tensor | Sequence[int] | None = None,
    membership: str = "interval",
    kind: str = STRIDE,
    leave: Sequence[str] = (),
) -> tuple[fx.GraphModule, Space]:
    """The module with a gate for every group of channels, stride and row of residual blocks, and the space of them.

    Args:
        module: any network that torch.fx can trace. Its parameters are shared with the result, not copied.
        width: the least and greatest share of each layer's channels; None: widths stay as they are.
        stride: the least and greatest stride of what strides; None: strides stay as they are.
        depth: the least and greatest share of the residual blocks of a list; None: all blocks stay.
        example: an input [B, ...] or its shape; by default the first shape of a few common ones that runs.
        membership: of the gates of widths and depths.
        kind: of real strides: shrink, resize or spectral (`search_spaces.stride`).
        leave: paths of layers whose channels keep their full width, whose strides stay whole, of blocks that stay.

    Raises:
        Untraceable: when torch.fx cannot trace it.
        Invalid: with every operation through which channels cannot be followed, and every other fault.
    """
    faults = _argument_faults(module, {"width": width, "stride": stride, "depth": depth}, kind, membership, leave)
    if faults:
        raise Invalid(faults)
    flow = Flow(module, _example(module, example))
    parameters: dict[str, Parameter] = {}
    if stride is not None or depth is not None:
        found = insert_depths(flow, leave, membership) if depth is not None else {}
        strides = insert_strides(flow, kind, leave) if stride is not None else {}
        faults = _nothing_found(stride is not None and not strides, depth is not None and not found)
        if faults:
            raise Invalid(faults)
        parameters |= _stride_space(strides, stride or (1.0, 1.0), kind) | _depth_space(found, depth or (0.0, 1.0))
        asked = _unfollowed(flow, leave) if width is not None else []
        flow = Flow(flow.graph, flow.example)
        flow.faults += asked
    widths = {} if width is None else _insert_widths(flow, width, membership, leave)
    flow.graph.graph.lint()
    flow.graph.recompile()
    return flow.graph, Space({**widths, **parameters})


def _insert_widths(
    flow: Flow, width: tuple[float, float], membership: str, leave: Sequence[str]
) -> dict[str, Parameter]:
    """A gate for every group of channels; in place."""
    for use in flow.uses:
        if _within(use.path, leave):
            for segment in use.outputs:
                flow.pin(segment.group, "they are to be left")
    faults = list(dict.fromkeys(flow.faults + _unfollowed(flow, leave)))
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
    return {name: Width(low=low, high=high) for name, (low, high) in ends.items() if low < high}


def _unfollowed(flow: Flow, leave: Sequence[str]) -> list[str]:
    asked = [name for node, name in flow.unknown.items() if not any(_within(path, leave) for path in _paths(node))]
    return [
        f"network: channels cannot be followed through `{name}`; write it with known operations, or name the layer in "
        "`leave` (it, or the module whose forward calls it) to keep the widths around it."
        for name in dict.fromkeys(asked)
    ]


def _nothing_found(no_stride: bool, no_depth: bool) -> list[str]:
    faults = []
    if no_stride:
        faults.append(
            "stride: at least one convolution or pooling must stride, and its map must end in a mean over all places, "
            "but got none; drop `stride`."
        )
    if no_depth:
        faults.append(
            "depth: at least one residual block (which adds to what it reads) must stand in a Sequential or a "
            "ModuleList, but got none; drop `depth`."
        )
    return faults


def _stride_space(
    strides: Mapping[str, tuple[StrideGate, int]], ends: tuple[float, float], kind: str
) -> dict[str, Parameter]:
    found = {}
    for name, (_, side) in strides.items():
        low, high = max(ends[0], least_stride(kind, side)), min(ends[1], float(side))
        if low < high:
            found[name] = Stride(low=low, high=high)
    return dict(found)


def _depth_space(depths: Mapping[str, DepthGate], ends: tuple[float, float]) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    for name, gate in depths.items():
        high = math.floor(ends[1] * gate.maximum + 1e-9)
        if ends[0] * gate.maximum < high:
            found[name] = Depth(low=ends[0] * gate.maximum, high=high)
    return found


def _within(path: str, leave: Sequence[str]) -> bool:
    return any(path == left or path.startswith(f"{left}.") for left in leave)


def _paths(node: fx.Node) -> list[str]:
    """The modules in whose forward a node is, the node's own among them."""
    return [str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()]


def _no_width(flow: Flow) -> str:
    reasons = [f"those of `{group.first}`: {group.pinned}" for group in flow.free_groups() if group.pinned]
    told = f" ({'; '.join(reasons)})" if reasons else ""
    return f"network: at least one layer must lie between input and output for a width, but got none{told}."


Ends = tuple[float, float] | None


def _argument_faults(
    module: nn.Module, ends: Mapping[str, Ends], kind: str, membership: str, leave: Sequence[str]
) -> list[str]:
    faults = []
    rules = {
        "width": ("0 < least < greatest <= 1", 1e-12, 1.0, (0.1, 1.0)),
        "stride": ("1 <= least < greatest", 1.0, math.inf, (1.0, 4.0)),
        "depth": ("0 <= least < greatest <= 1", 0.0, 1.0, (0.0, 1.0)),
    }
    for name, given in ends.items():
        rule, low, high, usual = rules[name]
        pair = isinstance(given, Sequence) and len(given) == 2 and all(is_real(n) for n in given)
        if given is not None and not (pair and low <= given[0] < given[1] <= high):
            faults.append(f"{name}: must be (least, greatest) with `{rule}`, but got {given!r}; write {usual}.")
    if all(given is None for given in ends.values()):
        faults.append("width: at least one of width, stride and depth must be asked for, but got none.")
    if kind not in KINDS:
        faults.append(unknown("kind", kind, KINDS, "kind of stride"))
    if membership not in MEMBERSHIPS:
        faults.append(unknown("membership", membership, tuple(MEMBERSHIPS), "membership"))
    paths = [name for name, _ in module.named_modules() if name]
    if isinstance(leave, str):
        faults.append(f"leave: must be a list of paths, but got {leave!r}; write [{leave!r}].")
    else:
        faults += [unknown("leave", path, paths, "layer") for path in leave if path not in paths]
    if any(isinstance(child, Gate) for child in module.modules()):
        faults.append("network: must have no gates yet, but it has; drop them, or search it as it is.")
    return faults


def _example(module: nn.Module, given: Tensor | Sequence[int] | None) -> Tensor:
    like = next(iter(module.parameters()), torch.zeros(()))
    if isinstance(given, Tensor):
        return given
    if given is not None:
        if not isinstance(given, Sequence) or not all(is_whole(n) and n > 0 for n in given):
            raise Invalid([f"example: must be an input or its shape, but got {given!r}; write (2, 3, 32, 32)."])
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
