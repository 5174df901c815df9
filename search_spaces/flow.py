"""How channels flow through a network: which layers read and write which width, found by tracing it with torch.fx.

    >>> flow = Flow(network, example)                # any module with gates, or with none
    >>> flow.groups["width.0"].size
    64

Channels that a residual sum adds up, or that a depthwise convolution passes on, are one *group*: they have one width.
A tensor's channels are *segments*: a run of a group's channels, each standing `repeat` times (after a flatten), side by
side (after a concatenation). From the groups follow the cost (`cost.py`), the way back to a plain network
(`materialise.py`) and where gates belong (`continuous.py`).

A unit that is no member must be silent wherever a layer reads it: its gate's zero must survive what lies between.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from search_spaces.blocks import branches, retell
from search_spaces.cell_flow import CellFlow
from search_spaces.extent import Extent
from search_spaces.faults import Invalid
from search_spaces.functional_norms import as_modules
from search_spaces.norms import MaskedNorm
from search_spaces.stride import Stride
from search_spaces.width import Acting, Gate, gates_of

KNOWING = (
    ", and use a norm that knows the gate, MaskedLayerNorm of search_spaces.norms, or let make_continuous place both."
)


@dataclass(eq=False)
class Group:
    """Channels that share a width. `gate` is its name in the space, if it has one; `pinned` says why it must not
    have one; `first` names the layer that first writes it."""

    size: int
    first: str
    gate: str | None = None
    pinned: str = ""
    order: int = field(default_factory=itertools.count().__next__, repr=False)
    _into: Group | None = field(default=None, repr=False)

    @property
    def root(self) -> Group:
        """The group that this one was tied into."""
        return self if self._into is None else self._into.root


@dataclass(frozen=True)
class Segment:
    """Every channel of a group, each `repeat` times."""

    group: Group
    repeat: int = 1

    @property
    def length(self) -> int:
        return self.group.size * self.repeat


@dataclass(frozen=True)
class Value:
    """What is known of a tensor in the graph: its shape, and the segments along `axis` (None: opaque to us).
    `learnt`: it depends on a parameter, so a gradient passes through it."""

    shape: tuple[int, ...]
    axis: int = 1
    segments: tuple[Segment, ...] | None = None
    learnt: bool = False

    @property
    def positions(self) -> int:
        """Numbers of one example for each channel."""
        whole = math.prod(self.shape[1:])
        return whole if self.segments is None else whole // self.shape[self.axis]


@dataclass(frozen=True)
class Use:
    """One use of weights: a layer that reads `inputs` and writes `outputs` through `taps` kernel places.

    `kind` is linear, conv, depthwise, norm (per channel), layer_norm (across channels) or parameter (a bare one).
    """

    node: fx.Node
    path: str
    kind: str
    inputs: tuple[Segment, ...]
    outputs: tuple[Segment, ...]
    taps: int = 1
    positions: int = 1
    bias: bool = False
    learnt: bool = True  # whether a gradient passes to its input
    trained: bool = True  # whether it has weights at all: a norm may have none


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Gate | Acting | MaskedNorm) or super().is_leaf_module(m, module_qualified_name)


class Untraceable(Invalid):
    """A module whose graph depends on its data, so that it cannot be traced."""


class Flow:
    """The traced network and its groups.

    Args:
        module: the network.
        example: an input [B, ...] on its device.

    Attributes:
        graph: a GraphModule that shares the module's parameters; every node with a tensor has a `Value` in `values`.
        uses: the layers in the order of the graph.
        groups: the gated groups by their gate's name, of several that share a gate the first.
        faults: what forbids a gate where it is, in sentences.
        unknown: the operations through which channels cannot be followed, by what they are called.
        axes: how far the axes of each tensor have shrunk by real strides.
        shares: the grades of blocks and edges that each operation stands or falls with.
        gates: all gates by name; `sizes` their greatest sizes.

    Raises:
        Untraceable: when torch.fx cannot trace it.
        Invalid: when it does not run on the example.
    """

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        from search_spaces.flow_rules import spread

        self.graph = traced(module)
        self.example = example
        propagate_shapes(self.graph, example)
        self.axes: dict[fx.Node, dict[int, Extent]] = {}
        faults: list[str] = []
        if any(isinstance(child, Stride) for child in self.graph.modules()):
            cells = CellFlow(self.graph)
            self.axes, faults = cells.axes, cells.faults
            propagate_shapes(self.graph, example)
        self.shares = branches(self.graph)
        self.gates = gates_of(self.graph)
        self.values: dict[fx.Node, Value] = {}
        self.uses: list[Use] = []
        self.faults = faults
        self.unknown: dict[fx.Node, str] = {}
        self.silencers: dict[fx.Node, str] = {}  # how a node treats zeros: gate, keep, both, either, break
        for node in self.graph.graph.nodes:
            spread(self, node)
        self.groups = self._named()
        self._judge_gates()

    def tie(self, a: tuple[Segment, ...], b: tuple[Segment, ...], where: fx.Node) -> None:
        """Make two runs of segments one: the same channels, added up."""
        if [(s.group.size, s.repeat) for s in a] != [(s.group.size, s.repeat) for s in b]:
            reason = f"`{where.name}` ties channels that are cut differently"
            for segment in (*a, *b):
                self.pin(segment.group, reason)
            return
        for one, other in zip(a, b, strict=True):
            first, second = one.group.root, other.group.root
            if first is second:
                continue
            if first.gate and second.gate and first.gate != second.gate:
                self.faults.append(
                    f"network: gates {first.gate!r} and {second.gate!r} must not gate channels that `{where.name}` "
                    "ties; use one gate for both (one module, called twice)."
                )
            if second.order < first.order:  # a group is named for the layer that writes it first
                first, second = second, first
            second._into = first
            first.gate = first.gate or second.gate
            first.pinned = first.pinned or second.pinned

    def record(self, use: Use) -> None:
        """Note a use of weights: where a layer is used again, it reads and writes the same channels as before."""
        before = next((other for other in self.uses if other.path == use.path), None)
        self.uses.append(use)
        if before is not None:
            self.tie(before.inputs, use.inputs, use.node)
            self.tie(before.outputs, use.outputs, use.node)

    def pin(self, group: Group, reason: str) -> None:
        """Forbid a width of its own."""
        group.root.pinned = group.root.pinned or reason

    def module(self, path: str) -> nn.Module:
        """The module at a path of the graph."""
        return self.graph.get_submodule(path)

    def _named(self) -> dict[str, Group]:
        found: dict[str, Group] = {}
        for group in self.free_groups():
            if group.gate is None:
                continue
            found.setdefault(group.gate, group)  # layers that a gate gates one by one have one width, too
            if group.pinned:
                self.faults.append(
                    f"network: the gate {group.gate!r} must not change the channels of `{group.first}`: "
                    f"{group.pinned}; move or drop it."
                )
        return found

    def free_groups(self) -> Iterator[Group]:
        """Every group once, in the order in which layers write them."""
        seen: dict[int, Group] = {}
        for use in self.uses:
            for segment in (*use.inputs, *use.outputs):
                root = segment.group.root
                if id(root) not in seen:
                    seen[id(root)] = root
                    yield root

    # -- silence -----------------------------------------------------------------------------------------------------

    def silent(self) -> dict[fx.Node, bool]:
        """For every tensor, whether units that are no members are exactly zero in it."""
        found: dict[fx.Node, bool] = {}
        for node in self.graph.graph.nodes:
            if node not in self.values:
                continue
            how = self.silencers.get(node, "break")
            sources = [n for n in node.all_input_nodes if n in found]
            quiet = [found[n] or not self.gated(n) for n in sources]
            found[node] = how == "gate" or (how == "either" and any(found[n] for n in sources))
            if how in ("keep", "both") and sources:
                found[node] = all(quiet)
        return found

    def gated(self, node: fx.Node) -> bool:
        """Whether a gate's channels are among this tensor's."""
        return any(s.group.root.gate for s in self.values[node].segments or ())

    def reads(self) -> Iterator[tuple[Use, fx.Node]]:
        """Layers whose arithmetic mixes channels, each with the tensor that it reads."""
        for use in self.uses:
            if use.kind in ("linear", "conv", "layer_norm"):
                source = use.node.args[0] if use.node.args else next(iter(use.node.all_input_nodes))
                assert isinstance(source, fx.Node)
                yield use, source

    def _judge_gates(self) -> None:
        silent = self.silent()
        for use, source in self.reads():
            if use.kind == "layer_norm" and isinstance(self.module(use.path), MaskedNorm):
                continue
            loud = sorted({s.group.root.gate for s in use.inputs if s.group.root.gate})
            if loud and not silent[source]:
                what = "averages" if use.kind == "layer_norm" else "reads"
                self.faults.append(
                    f"network.{use.path}: {what} channels of {', '.join(map(repr, loud))} in which units that are no "
                    "members still speak; put the gate after the norm and activation, and in every branch of a sum"
                    + (KNOWING if use.kind == "layer_norm" else ".")
                )


class Opaque(Flow):
    """A module that cannot be followed: its gates are known, and no layer that they follow."""

    def __init__(self, module: nn.Module, gates: Mapping[str, Gate], example: Tensor) -> None:
        self.graph, self.example = module, example  # type: ignore[assignment]
        self.values, self.uses, self.faults, self.unknown = {}, [], [], {}
        self.axes, self.shares, self.gates = {}, {}, dict(gates)
        self.groups = {name: Group(gate.maximum, name, gate=name) for name, gate in gates.items()}


def traced(module: nn.Module) -> fx.GraphModule:
    """The module's graph, gates and norms whole. Raises `Untraceable`."""
    try:
        tracer = _Tracer()
        graph = tracer.trace(module)
        found = fx.GraphModule(module, graph, type(module).__name__)
        if isinstance(module, fx.GraphModule):
            retell(found, module)
        as_modules(found)
        return found
    except Exception as error:  # tracing runs the user's forward with proxies: anything may come
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise Untraceable(
            [
                f"network: {type(module).__name__} must be traceable by torch.fx (no control flow that depends on "
                f"data), but got {problem}"
            ]
        ) from error


class _Shapes(ShapeProp):
    """A gate changes no shape, and one that does not fit is judged by its rule, with all others."""

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        return (
            args[0] if isinstance(self.fetch_attr(target), Gate | Stride) else super().call_module(target, args, kwargs)
        )


def propagate_shapes(graph: fx.GraphModule, example: Tensor) -> None:
    """Note the shape of every tensor for an example. Raises `Invalid` where the network does not run."""
    modes = {m: m.training for m in graph.modules()}
    graph.eval()
    try:
        with torch.no_grad():
            _Shapes(graph).propagate(example)
    except Exception as error:
        cause = error.__cause__ or error
        problem = f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
        raise Invalid([f"network: must run on an input of shape {tuple(example.shape)}, but got {problem}"]) from error
    finally:
        for m, training in modes.items():
            m.training = training


def source_of(flow: Flow, node: fx.Node) -> tuple[fx.Node, Value]:
    """The tensor that a node works on."""
    source = node.args[0] if node.args else next(n for n in node.all_input_nodes if n in flow.values)
    assert isinstance(source, fx.Node)
    return source, flow.values[source]


def shape_of(node: Any) -> tuple[int, ...] | None:
    """The shape of a node's tensor; None for anything else."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return tuple(meta.shape) if meta is not None and hasattr(meta, "shape") else None
