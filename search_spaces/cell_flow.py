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

#: what works cell by cell
CELLWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.ELU, nn.CELU, nn.SELU, nn.Hardswish, nn.Mish),
    *(nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid),
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.PReLU, Gate, Acting),
)
CELLWISE_NAMES = frozenset(
    [
        *("relu", "relu_", "relu6", "leaky_relu", "gelu", "silu", "tanh", "elu", "hardswish", "mish", "dropout"),
        *("sigmoid", "hardsigmoid", "softplus", "exp", "sqrt"),
        *("dropout2d", "contiguous", "clone", "detach", "float", "double", "neg", "abs"),
    ]
)
SUMS = {operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub, "add", "add_", "sub", "sub_"}
PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_", operator.truediv, torch.div, "div"}
CONCATENATIONS = {torch.cat, torch.concat}
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
        blamed: the names of their gates.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph, self.gates = graph, gates_of(graph)
        self.axes: dict[fx.Node, Axes] = {}
        self.faults: list[str] = []
        self.blamed: set[str] = set()
        self._made: dict[tuple[fx.Node, type[nn.Module]], fx.Node] = {}
        self._placed: dict[str, tuple[Extent, ...]] = {}  # strides, each before the extents it was put
        nodes = list(graph.graph.nodes)
        for node in nodes:
            self._follow(node)
        self._judge_norms(nodes)
        graph.graph.lint()
        graph.recompile()

    # -- the walk ----------------------------------------------------------------------------------------------------

    def _follow(self, node: fx.Node) -> None:
        sources = [n for n in node.all_input_nodes if self.axes.get(n)]
        module = self._module(node)
        followed = not sources
        if isinstance(module, Stride):
            followed = self._stride(node, module)
        elif sources and node.op != "output":
            followed = self._followed(node, module, sources)
        if not followed:
            self._fault(node, sources)

    def _followed(self, node: fx.Node, module: nn.Module | None, sources: Sequence[fx.Node]) -> bool:
        """Work out one operation on maps that have shrunk; false where it cannot be followed."""
        target = node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        if node.op == "call_module":
            return self._layer(node, module, sources)
        if target in POOLS:
            kind, names = POOLS[target]
            given = dict(zip(names, node.args, strict=False)) | node.kwargs
            options = {key: value for key, value in given.items() if key != "input" and value is not None}
            known = not any(isinstance(value, fx.Node) for value in options.values())
            return known and self._layer(node, kind(**options), sources)
        if target in SUMS or target in PRODUCTS or name == "expand_as":
            return self._combined(node, sources)
        if target in PERMUTES:
            return self._permuted(node)
        if target in MEANS or target in MAXIMA:
            dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            keep = (node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)) is True
            return self._reduced(node, dims, keep, mean=target in MEANS)
        if name in CELLWISE_NAMES:
            return self._cell_by_cell(node)
        if target in CONCATENATIONS:
            dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            along = not isinstance(dim, int) or any(dim % len(_shape(n)) in self.axes[n] for n in sources)
            return not along and self._combined(node, sources)
        return (name == "size" or target is getattr) and self._measured(node, sources[0])

    def _layer(self, node: fx.Node, layer: nn.Module | None, sources: Sequence[fx.Node]) -> bool:
        axes, rank = self.axes[sources[0]], len(_shape(node))
        if isinstance(layer, Cells | CellFloor | CellMean):  # put here by a walk before this one
            self.axes[node] = {} if isinstance(layer, CellMean) else axes
            return layer.axes == axes
        if isinstance(layer, _BatchNorm):
            return self._batch_norm(node, layer)
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            return layer.padding_mode == "zeros" and self._window(node, layer, Cells)
        if isinstance(layer, nn.MaxPool1d | nn.MaxPool2d):
            return not layer.ceil_mode and not layer.return_indices and self._window(node, layer, CellFloor)
        if isinstance(layer, nn.AvgPool1d | nn.AvgPool2d):
            padded = any(_pair(layer.padding)) and not layer.count_include_pad
            return not layer.ceil_mode and not padded and self._window(node, layer, Cells)
        if isinstance(layer, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool1d | nn.AdaptiveMaxPool2d):
            whole = all(side == 1 for side in _pair(layer.output_size)) and not getattr(layer, "return_indices", False)
            mean = isinstance(layer, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d)
            return whole and self._reduced(node, list(range(2, rank)), True, mean=mean)
        if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
            across = range(rank - len(layer.normalized_shape), rank)
            return not set(across) & set(axes) and self._cell_by_cell(node)
        if isinstance(layer, nn.Linear) or (isinstance(layer, MaskedNorm) and not layer.spatial):
            return rank - 1 not in axes and self._cell_by_cell(node)
        return isinstance(layer, CELLWISE) and self._combined(node, sources)

    # -- what each operation does --------------------------------------------------------------------------------------

    def _stride(self, node: fx.Node, stride: Stride) -> bool:
        source, path = self._source(node), str(node.target)
        shape, axes = _shape(source), self.axes.get(source, {})
        if len(shape) not in (3, 4) or 1 in axes:
            self.faults.append(
                f"network.{path}: a stride must follow a map [B, C, I] or [B, C, I, I], but got one of shape {shape}"
                f"{' whose channels lie elsewhere' if 1 in axes else ''}; put it after a convolution or pooling."
            )
            return True
        if axes:
            self._insert(node, Cells)
        extents = tuple(axes.get(i, Extent(shape[i])) for i in range(2, len(shape)))
        steps = stride.steps or tuple(map(stride.step, shape[2:]))
        if self._placed.setdefault(path, extents) != extents:
            self.faults.append(
                f"network.{path}: one stride module must stand at one place, but it is called at two whose maps "
                "differ; make a module for each (they may share their gate)."
            )
        before = dict.fromkeys(name for extent in extents for name in extent.gates)
        new = Stride(stride.gate, stride.kind, smoothness=stride.smoothness)  # what was traced stays as it is
        new.place(extents, steps, [self.gates[name] for name in before])
        new.room = stride.room
        self._put(path, new.train(stride.training))
        self.axes[node] = {2 + i: e.then(s) for i, (e, s) in enumerate(zip(extents, steps, strict=True))}
        return True

    def _window(self, node: fx.Node, layer: Any, kind: type[Cells | CellFloor]) -> bool:
        """A layer that reads neighbours: a kernel at stride 1, and its own stride."""
        axes = self.axes[self._source(node)]
        padding, dilation = layer.padding, getattr(layer, "dilation", 1)
        windows = {}
        for i, axis in enumerate(range(2, len(_shape(node)))):
            reach = _pair(dilation)[i] * (_pair(layer.kernel_size)[i] - 1)
            around = {"same": reach, "valid": 0}[padding] if isinstance(padding, str) else 2 * _pair(padding)[i]
            steps: list[Step] = [Window(around - reach)]
            if (own := _pair(layer.stride)[i]) > 1:
                steps.append(Fixed(own))
            windows[axis] = axes[axis].then(*steps)
        self._insert(node, kind)
        self.axes[node] = windows
        return True

    def _batch_norm(self, node: fx.Node, norm: _BatchNorm) -> bool:
        axes = self.axes[self._source(node)]
        if not isinstance(norm, CellBatchNorm):
            new = CellBatchNorm(norm, axes, self._gates_of(axes))
            for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                setattr(new, key, getattr(norm, key))
            self._put(str(node.target), new)
        return self._cell_by_cell(node)

    def _judge_norms(self, nodes: Sequence[fx.Node]) -> None:
        """A norm that is called twice has one idea of which cells are live."""
        for node in nodes:
            norm = self._module(node)
            if isinstance(norm, CellBatchNorm) and self.axes.get(node, {}) != norm.axes:
                self.faults.append(
                    f"network.{node.target}: one batch norm must not normalise maps that differ, but it is called at "
                    "two places with a stride between them; make a norm for each."
                )

    def _reduced(self, node: fx.Node, dims: Any, keep: bool, *, mean: bool) -> bool:
        """A mean or maximum over axes, all that have shrunk among them or none."""
        source = self._source(node)
        axes, rank = self.axes[source], len(_shape(source))
        dims = [dims] if isinstance(dims, int) else dims
        if not isinstance(dims, Sequence) or not all(isinstance(d, int) for d in dims):
            return False
        gone = [d % rank for d in dims]
        if not set(axes) <= set(gone):
            return not set(axes) & set(gone) and keep and self._cell_by_cell(node)
        silenced = self._insert(node, Cells if mean else CellFloor)
        if mean:
            path, old = self._add("mean", node, CellMean(axes, self._gates_of(axes), gone, keep)), node
            with self.graph.graph.inserting_before(old):
                node = self.graph.graph.call_module(path, (silenced,))
            node.meta = dict(old.meta)
            old.replace_all_uses_with(node)
            self.graph.graph.erase_node(old)
        self.axes[node] = {}
        return True

    def _permuted(self, node: fx.Node) -> bool:
        source = self._source(node)
        rank, rest, places = len(_shape(source)), node.args[1:], list(range(len(_shape(source))))
        given = rest or tuple(node.kwargs[key] for key in ("dims", "dim0", "dim1") if key in node.kwargs)
        order: Any = given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given
        if not all(isinstance(d, int) for d in order):
            return False
        if node.target in (torch.transpose, "transpose"):
            a, b = (d % rank for d in order)
            places[a], places[b] = b, a
        else:
            places = [d % rank for d in order]
        self.axes[node] = {places.index(axis): extent for axis, extent in self.axes[source].items()}
        return True

    def _measured(self, node: fx.Node, source: fx.Node) -> bool:
        """The size of a map that has shrunk may be asked along other axes."""
        axes, rank = self.axes[source], len(_shape(source))
        self.axes[node] = {}
        if node.target is getattr and node.args[1] != "shape":
            return node.args[1] in ("dtype", "device", "ndim")
        if node.target == "size" and isinstance(dim := (*node.args[1:], *node.kwargs.values(), None)[0], int):
            return dim % rank not in axes
        asked = [(user.args[1], user) for user in node.users if user.target is operator.getitem]
        whole = len(asked) < len(node.users) or not all(isinstance(dim, int) for dim, _ in asked)
        return not whole and not any(dim % rank in axes and user.users for dim, user in asked)  # type: ignore[operator]

    def _cell_by_cell(self, node: fx.Node) -> bool:
        self.axes[node] = self.axes[self._source(node)]
        return True

    def _combined(self, node: fx.Node, sources: Sequence[fx.Node]) -> bool:
        """Tensors that meet element by element: all have shrunk alike, or are one number along what has."""
        shape, axes = _shape(node), self.axes[sources[0]]
        for other in node.all_input_nodes:
            if "tensor_meta" not in other.meta:
                continue  # a number
            seen = (1,) * (len(shape) - len(_shape(other))) + _shape(other)
            own = self.axes.get(other, {})
            if any(own.get(axis) != extent and seen[axis] > 1 for axis, extent in axes.items()):
                return False
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

    def _put(self, path: str, layer: nn.Module) -> None:
        owner, _, name = path.rpartition(".")
        self.graph.get_submodule(owner).add_module(name, layer)

    def _add(self, what: str, node: fx.Node, layer: nn.Module) -> str:
        path = f"cells.{what}_{node.name}"
        self.graph.add_submodule(path, layer)
        return path

    def _insert(self, reader: fx.Node, kind: type[Cells | CellFloor]) -> fx.Node:
        """Let a reader see live cells alone."""
        source = self._source(reader)
        if isinstance(self._module(source), kind):
            return source
        if (source, kind) not in self._made:
            axes = self.axes[source]
            layer = kind(axes, self._gates_of(axes))
            with self.graph.graph.inserting_before(reader):  # after what is done in place
                node = self.graph.graph.call_module(self._add(kind.__name__.lower(), source, layer), (source,))
            node.meta["tensor_meta"] = source.meta["tensor_meta"]
            self.axes[node] = axes
            self._made[source, kind] = node
        made = self._made[source, kind]
        reader.replace_input_with(source, made)
        return made

    def _fault(self, node: fx.Node, sources: Sequence[fx.Node]) -> None:
        name = "the output" if node.op == "output" else f"`{node.name}`"
        gates = dict.fromkeys(gate for n in sources for e in self.axes[n].values() for gate in e.gates)
        self.blamed.update(gates)
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
