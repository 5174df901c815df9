"""How cells flow through a network with real strides: which axes have shrunk, and who must know of it.

    >>> cells = CellFlow(graph)           # a traced network; every stride and reader in it now knows its cells

Every operation that a shrunken map meets is one of four: it works cell by cell (an activation, a sum, a gate), it reads
neighbours (a convolution, a pooling, another stride), it takes statistics (a batch norm, a mean over all places), or it
cannot be followed, which is a fault. `axes` says how far each tensor's axes have shrunk; costs follow from it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from search_spaces.cells import CellBatchNorm, CellFloor, CellMean, Cells
from search_spaces.extent import Extent, Fixed, Step, Window
from search_spaces.norms import MaskedNorm
from search_spaces.stride import Stride
from search_spaces.width import Acting, Gate, gates_of

Axes = dict[int, Extent]

#: 0 stays 0 under them, so what is silent stays so
QUIET = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.ELU, nn.CELU, nn.SELU, nn.Hardswish, nn.Mish),
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.PReLU, Gate, Acting),
)
LOUD = (nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid)
QUIET_NAMES = frozenset(
    [
        *("relu", "relu_", "relu6", "leaky_relu", "gelu", "silu", "tanh", "elu", "hardswish", "mish", "dropout"),
        *("dropout2d", "contiguous", "clone", "detach", "float", "double", "neg", "abs", "expand_as"),
    ]
)
LOUD_NAMES = frozenset(["sigmoid", "hardsigmoid", "softplus", "exp", "sqrt"])
SUMS = {operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub, "add", "add_", "sub", "sub_"}
PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_", operator.truediv, torch.div, "div"}
PERMUTES = {torch.permute, torch.transpose, "permute", "transpose"}
MEANS = {torch.mean, "mean"}
MAXIMA = {torch.amax, "amax"}
#: poolings as functions, each with the names of its arguments
MAX_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
AVERAGE_POOL = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
POOLS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    functional.max_pool1d: (nn.MaxPool1d, MAX_POOL),
    functional.max_pool2d: (nn.MaxPool2d, MAX_POOL),
    functional.avg_pool1d: (nn.AvgPool1d, AVERAGE_POOL),
    functional.avg_pool2d: (nn.AvgPool2d, AVERAGE_POOL),
    functional.adaptive_avg_pool1d: (nn.AdaptiveAvgPool1d, ("input", "output_size")),
    functional.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("input", "output_size")),
}


class CellFlow:
    """Walks a traced network and puts cells' masks where they belong; a second walk changes nothing.

    Attributes:
        axes: of each tensor that has shrunk, how far, by axis.
        faults: strides whose maps enter what cannot be followed, in sentences.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph, self.gates = graph, gates_of(graph)
        self.axes: dict[fx.Node, Axes] = {}
        self.faults: list[str] = []
        self._silent: set[fx.Node] = set()  # tensors whose cells beyond the live ones are exactly zero
        self._made: dict[tuple[fx.Node, type[nn.Module]], fx.Node] = {}
        for node in list(graph.graph.nodes):
            self._follow(node)
        if self._made:
            graph.graph.lint()
            graph.recompile()

    # -- the walk ----------------------------------------------------------------------------------------------------

    def _follow(self, node: fx.Node) -> None:
        sources = [n for n in node.all_input_nodes if self.axes.get(n)]
        module = self._module(node)
        if isinstance(module, Stride):
            self._stride(node, module)
        elif sources and node.op != "output":
            if not self._followed(node, module, sources):
                self._fault(node, sources)
        elif sources:
            self._fault(node, sources)

    def _followed(self, node: fx.Node, module: nn.Module | None, sources: Sequence[fx.Node]) -> bool:
        """Work out one operation on maps that have shrunk; false where it cannot be followed."""
        target, name = (
            node.target,
            node.target if isinstance(node.target, str) else getattr(node.target, "__name__", ""),
        )
        if node.op == "call_module":
            return self._layer(node, module)
        if target in POOLS:
            kind, names = POOLS[target]
            given = dict(zip(names, node.args, strict=False)) | node.kwargs
            options = {key: value for key, value in given.items() if key != "input" and value is not None}
            return self._layer(node, kind(**options))
        if target in SUMS or target in PRODUCTS:
            return self._combined(node, sources, either=target in PRODUCTS)
        if target in PERMUTES:
            return self._permuted(node)
        if target in MEANS or target in MAXIMA:
            dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            keep = (node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)) is True
            return self._reduced(node, dims, keep, mean=target in MEANS)
        if name in QUIET_NAMES or name in LOUD_NAMES:
            return self._cell_by_cell(node, silent=name in QUIET_NAMES)
        if target in (torch.cat, torch.concat):
            return self._combined(node, sources, either=False)
        return False

    def _layer(self, node: fx.Node, layer: nn.Module | None) -> bool:
        axes = self.axes[self._source(node)]
        if isinstance(layer, Cells | CellFloor):
            self.axes[node] = axes
            self._silent.add(node)
            return True
        if isinstance(layer, CellMean):
            self.axes[node] = {}
            return True
        if isinstance(layer, _BatchNorm):
            return self._batch_norm(node, layer)
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            return layer.padding_mode == "zeros" and self._window(node, layer, Cells)
        if isinstance(layer, nn.MaxPool1d | nn.MaxPool2d):
            return not layer.ceil_mode and self._window(node, layer, CellFloor)
        if isinstance(layer, nn.AvgPool1d | nn.AvgPool2d):
            padded = any(_pair(layer.padding)) and not layer.count_include_pad
            return not layer.ceil_mode and not padded and self._window(node, layer, Cells)
        if isinstance(layer, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d):
            rank = len(_shape(node))
            whole = all(side == 1 for side in _pair(layer.output_size))
            return whole and self._reduced(node, list(range(2, rank)), True, mean=True)
        if isinstance(layer, nn.Linear | nn.LayerNorm | nn.RMSNorm) or (
            isinstance(layer, MaskedNorm) and not layer.spatial
        ):
            return len(_shape(node)) - 1 not in axes and self._cell_by_cell(node, silent=False)
        if isinstance(layer, QUIET):
            return self._combined(node, [n for n in node.all_input_nodes if n in self.axes], either=False)
        return isinstance(layer, LOUD) and self._cell_by_cell(node, silent=False)

    # -- what each operation does --------------------------------------------------------------------------------------

    def _stride(self, node: fx.Node, stride: Stride) -> None:
        source = self._source(node)
        shape, axes = _shape(source), self.axes.get(source, {})
        if axes:
            self._insert(node, Cells)
        extents = tuple(axes.get(i, Extent(shape[i])) for i in range(2, len(shape)))
        steps = stride.steps or tuple(map(stride.step, shape[2:]))
        if stride.extents and stride.extents != extents:
            self.faults.append(
                f"network.{node.target}: one stride module must stand at one place, but it is called at two whose maps "
                "differ; make a module for each (they may share their gate)."
            )
        before = dict.fromkeys(name for extent in extents for name in extent.gates)
        stride.place(extents, steps, [self.gates[name] for name in before])
        self.axes[node] = {2 + i: e.then(s) for i, (e, s) in enumerate(zip(extents, steps, strict=True))}

    def _window(self, node: fx.Node, layer: Any, kind: type[Cells | CellFloor]) -> bool:
        """A layer that reads neighbours: a kernel at stride 1, and its own stride."""
        axes = self.axes[self._source(node)]
        padding, dilation = layer.padding, getattr(layer, "dilation", 1)
        windows = {}
        for i, axis in enumerate(range(2, len(_shape(node)))):
            reach = _pair(dilation)[i] * (_pair(layer.kernel_size)[i] - 1)
            around = {"same": reach, "valid": 0}[padding] if isinstance(padding, str) else 2 * _pair(padding)[i]
            steps: list[Step] = [Window(around - reach)] if around != reach else []
            if (own := _pair(layer.stride)[i]) > 1:
                steps.append(Fixed(own))
            windows[axis] = axes[axis].then(*steps)
        self._insert(node, kind)
        self.axes[node] = windows
        return True

    def _batch_norm(self, node: fx.Node, norm: _BatchNorm) -> bool:
        axes = self.axes[self._source(node)]
        if not isinstance(norm, CellBatchNorm):
            owner, _, name = str(node.target).rpartition(".")
            new = CellBatchNorm(norm, axes, self._gates_of(axes))
            for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                setattr(new, key, getattr(norm, key))
            self.graph.get_submodule(owner).add_module(name, new)
        elif norm.axes != axes:
            return False  # one norm of two maps that differ
        return self._cell_by_cell(node, silent=False)

    def _reduced(self, node: fx.Node, dims: Any, keep: bool, *, mean: bool) -> bool:
        """A mean or maximum over axes, all that have shrunk among them or none."""
        source = self._source(node)
        axes, rank = self.axes[source], len(_shape(source))
        dims = [dims] if isinstance(dims, int) else dims
        if not isinstance(dims, Sequence) or not all(isinstance(d, int) for d in dims):
            return False
        gone = [d % rank for d in dims]
        if not set(axes) <= set(gone):
            return not set(axes) & set(gone) and keep and self._cell_by_cell(node, silent=False)
        silenced = self._insert(node, Cells if mean else CellFloor)
        if mean:
            layer = CellMean(axes, self._gates_of(axes), gone, keep)
            node.op, node.target, node.args, node.kwargs = (
                "call_module",
                self._add("mean", node, layer),
                (silenced,),
                {},
            )
        self.axes[node] = {}
        return True

    def _permuted(self, node: fx.Node) -> bool:
        source = self._source(node)
        rank, rest = len(_shape(source)), node.args[1:]
        order: Any = rest[0] if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
        places = [d % rank for d in order]
        if node.target in (torch.transpose, "transpose"):
            a, b = places
            places = list(range(rank))
            places[a], places[b] = b, a
        self.axes[node] = {places.index(axis): extent for axis, extent in self.axes[source].items()}
        if source in self._silent:
            self._silent.add(node)
        return True

    def _cell_by_cell(self, node: fx.Node, *, silent: bool) -> bool:
        source = self._source(node)
        self.axes[node] = self.axes[source]
        if silent and source in self._silent:
            self._silent.add(node)
        return True

    def _combined(self, node: fx.Node, sources: Sequence[fx.Node], *, either: bool) -> bool:
        """Tensors that meet element by element: all have shrunk alike, or are one number along what has."""
        shape = _shape(node)
        axes = next(self.axes[n] for n in sources if self.axes[n])
        others = [n for n in node.all_input_nodes if n.op != "get_attr"]
        for other in others:
            seen = (1,) * (len(shape) - len(_shape(other))) + _shape(other)
            own = self.axes.get(other, {})
            if any(own.get(axis) != extent and seen[axis] > 1 for axis, extent in axes.items()):
                return False
        quiet = [n in self._silent for n in others]
        if any(quiet) if either else all(quiet):
            self._silent.add(node)
        self.axes[node] = axes
        return True

    # -- the graph ---------------------------------------------------------------------------------------------------

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _source(self, node: fx.Node) -> fx.Node:
        source = node.args[0] if node.args else node.all_input_nodes[0]
        assert isinstance(source, fx.Node)
        return source

    def _gates_of(self, axes: Mapping[int, Extent]) -> list[Gate]:
        return [self.gates[name] for name in dict.fromkeys(name for e in axes.values() for name in e.gates)]

    def _add(self, what: str, node: fx.Node, layer: nn.Module) -> str:
        path = f"cells.{what}_{node.name}"
        self.graph.add_submodule(path, layer)
        return path

    def _insert(self, reader: fx.Node, kind: type[Cells | CellFloor]) -> fx.Node:
        """Let a reader see live cells alone."""
        source = self._source(reader)
        if isinstance(self._module(source), kind) or (kind is Cells and source in self._silent):
            return source
        if (source, kind) not in self._made:
            axes = self.axes[source]
            layer = kind(axes, self._gates_of(axes))
            with self.graph.graph.inserting_after(source):
                node = self.graph.graph.call_module(self._add(kind.__name__.lower(), source, layer), (source,))
            node.meta["tensor_meta"] = source.meta["tensor_meta"]
            self.axes[node] = axes
            self._silent.add(node)
            self._made[source, kind] = node
        made = self._made[source, kind]
        reader.replace_input_with(source, made)
        return made

    def _fault(self, node: fx.Node, sources: Sequence[fx.Node]) -> None:
        name = "the output" if node.op == "output" else f"`{node.name}`"
        gates = dict.fromkeys(gate for n in sources for e in self.axes[n].values() for gate in e.gates)
        self.faults.append(
            f"network: the map of {', '.join(map(repr, gates))} must meet only convolutions, norms and activations, "
            f"sums of maps that shrank alike, poolings, and in the end a mean over all places, but it enters "
            f"{name}; take a mean before it, or leave that stride whole."
        )
        self.axes[node] = {}


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _pair(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)
