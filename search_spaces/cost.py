"""What a network costs, as plain arithmetic on its real sizes: numbers give numbers, tensors give gradients.

    >>> costs = dense_costs(64, 10, layers=2)
    >>> costs.parameters({"width.0": 17.0, "width.1": 40.0})
    2235.0

FLOPs are 2 per multiply-add, without biases and elementwise work (the convention of torch's FlopCounterMode).
Activation bytes are those of every tensor that a layer, norm, activation, pool or sum writes for one example (4 a
number).

Sizes are by the names of gates: a width's units, a stride, a depth's blocks, and for a topology the grades of its
units, in the last axis. What stands or falls with a block or an edge counts by its grade. At whole sizes all figures
equal a real count of the materialised network; with `relaxed` they are those of the network before that, which strides
only after a convolution.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from search_spaces.extent import Extent

BOUNDS = ("parameters", "flops", "activation_bytes")
#: what a network's costs are called among a trial's metrics, where `flops` is what the trial spent
COST_METRICS = {"parameters": "parameters", "flops": "forward_flops", "activation_bytes": "activation_bytes"}
BYTES = 4

#: channels side by side: (the name of their width, or None where it is fixed; their number; how often each stands)
Channels = tuple[tuple[str | None, int, int], ...]


@dataclass(frozen=True)
class Share:
    """The grade of one block of a depth, or of one unit of a topology (`graded`); `absent`: what it lacks of 1."""

    gate: str
    index: int
    graded: bool = False
    absent: bool = False

    def of(self, sizes: Mapping[str, Any]) -> Any:
        """The grade where `sizes` are the sizes."""
        size = sizes[self.gate]
        grade = size[..., self.index] if self.graded else clipped(size - self.index)
        return 1 - grade if self.absent else grade


@dataclass(frozen=True)
class Striding(Share):
    """Whether a stride is more than 1: what is made at none where it is 1."""

    def of(self, sizes: Mapping[str, Any]) -> Any:
        s = sizes[self.gate]
        return float(s > 1) if isinstance(s, int | float) else (s > 1).to(s.dtype)


@dataclass(frozen=True)
class LayerCost:
    """One layer. `kind` is linear, conv, grouped, depthwise, norm, parameter, or activation (what a node writes).

    It works at `positions` times the live cells of `extents` (`relaxed`: before strides are whole, where that differs).
    `own` is false where the weights are another row's (a layer used twice); `first`: no gradient passes to its input.
    `shares` are what it stands or falls with; `summed`: a sum of so many terms, which writes one tensor less than it
    has terms.
    """

    path: str
    kind: str
    inputs: Channels
    outputs: Channels
    taps: int = 1
    positions: int = 1
    bias: bool = False
    own: bool = True
    first: bool = False
    extents: tuple[Extent, ...] = ()
    relaxed: tuple[Extent, ...] | None = None
    shares: tuple[Share, ...] = ()
    summed: tuple[Share, ...] = ()

    def share(self, sizes: Mapping[str, Any]) -> Any:
        """The grade of what it stands or falls with."""
        out: Any = 1
        for share in self.shares:
            out = out * share.of(sizes)
        if self.summed:
            out = out * positive(sum(share.of(sizes) for share in self.summed) - 1)
        return out

    def places(self, sizes: Mapping[str, Any], relaxed: bool = False) -> Any:
        """Places at which it works."""
        before = self.relaxed if relaxed and self.relaxed is not None else self.extents
        out: Any = self.positions
        for extent in before:
            out = out * extent.live(sizes)
        return out

    def parameters(self, sizes: Mapping[str, Any]) -> Any:
        """Numbers that are trained."""
        out = live(self.outputs, sizes)
        if not self.own or self.kind in ("activation", "resample"):
            return 0
        if self.kind in ("norm", "layer_norm", "parameter"):
            return out * (2 if self.bias else 1) * self.share(sizes)
        fan_in = self.taps if self.kind == "depthwise" else live(self.inputs, sizes) * self.taps
        return (fan_in + (1 if self.bias else 0)) * out * self.share(sizes)

    def flops(self, sizes: Mapping[str, Any], relaxed: bool = False) -> Any:
        """FLOPs of one example's forward pass."""
        if self.kind in ("norm", "layer_norm", "parameter", "activation"):
            return 0
        fan_in = self.taps if self.kind == "depthwise" else live(self.inputs, sizes) * self.taps
        return 2 * fan_in * live(self.outputs, sizes) * self.places(sizes, relaxed) * self.share(sizes)

    def training_flops(self, sizes: Mapping[str, Any], relaxed: bool = False) -> Any:
        """FLOPs of one example's training pass: forward, weight gradients, input gradients where any are needed."""
        return self.flops(sizes, relaxed) * (2 if self.first else 3)


@dataclass(frozen=True)
class ResampleCost(LayerCost):
    """A stride's matrices, one after the other, from the live cells `before` to `extents`; none where it is
    `free`, that is to say folded into the layer before it, or where the stride of `gate` is 1; the network before that
    has them always."""

    before: tuple[Extent, ...] = ()
    free: bool = False
    gate: str = ""

    def flops(self, sizes: Mapping[str, Any], relaxed: bool = False) -> Any:
        if self.free and not relaxed:
            return 0
        cells = [extent.live(sizes) for extent in self.before]
        total: Any = 0
        for i in reversed(range(len(cells))):  # the last axis is multiplied first
            others: Any = 1
            for j, n in enumerate(cells):
                others = others * (n if j != i else 1)
            after = self.extents[i].live(sizes)
            total = total + 2 * others * cells[i] * after
            cells[i] = after
        total = total if relaxed else total * Striding(self.gate, 0).of(sizes)
        return total * live(self.outputs, sizes) * self.share(sizes)

    def training_flops(self, sizes: Mapping[str, Any], relaxed: bool = False) -> Any:
        return self.flops(sizes, relaxed) * (1 if self.first else 2)  # its matrices are not trained


@dataclass(frozen=True)
class Costs:
    """The cost of a whole network, layer by layer."""

    layers: tuple[LayerCost, ...]

    def parameters(self, sizes: Mapping[str, Any]) -> Any:
        """Numbers that are trained, norms' included."""
        return sum(layer.parameters(sizes) for layer in self.layers)

    def flops(self, sizes: Mapping[str, Any], relaxed: bool = False) -> Any:
        """FLOPs of one example's forward pass."""
        return sum(layer.flops(sizes, relaxed) for layer in self.layers)

    def training_flops(self, sizes: Mapping[str, Any], relaxed: bool = False) -> Any:
        """FLOPs of one example's training pass."""
        return sum(layer.training_flops(sizes, relaxed) for layer in self.layers)

    def grade_flops(self, sizes: Mapping[str, Any]) -> Any:
        """FLOPs of one example's pass for the gradient by the gates: forward, and back through what follows one."""
        return sum(layer.flops(sizes, True) * (1 if layer.first else 2) for layer in self.layers)

    def activation_bytes(self, sizes: Mapping[str, Any]) -> Any:
        """Bytes that one example's forward pass writes."""
        written = (layer for layer in self.layers if layer.kind == "activation")
        return sum(live(row.outputs, sizes) * row.places(sizes) * row.share(sizes) * BYTES for row in written)

    def of(self, sizes: Mapping[str, Any], names: Iterable[str] = BOUNDS) -> dict[str, Any]:
        """The costs called `names`, those that a spec may bound."""
        return {name: getattr(self, name)(sizes) for name in names}


def live(channels: Channels, sizes: Mapping[str, Any]) -> Any:
    """The real number of channels that are there."""
    return sum((size if name is None else sizes[name]) * repeat for name, size, repeat in channels)


def clipped(x: Any) -> Any:
    """A number or tensor within [0, 1]; at either end its derivative is a falling one's, for a clamp's is both sides',
    and a whole depth would have the cost of two blocks."""
    return min(max(x, 0.0), 1.0) if isinstance(x, int | float) else x * ((x > 0) & (x <= 1)) + (x > 1)


def positive(x: Any) -> Any:
    """A number or tensor of at least 0."""
    return max(x, 0) if isinstance(x, int | float) else x.clamp(min=0.0)


def dense_costs(inputs: int, outputs: int, gates: Sequence[str]) -> Costs:
    """The costs of a multi-layer perceptron whose hidden layers have the widths `gates`, each with its activation."""
    widths: list[Channels] = [((None, inputs, 1),), *(((gate, 0, 1),) for gate in gates), ((None, outputs, 1),)]
    layers = []
    for i in range(len(widths) - 1):
        a, b = widths[i], widths[i + 1]
        layers.append(LayerCost(f"linears.{i}", "linear", a, b, bias=True, first=i == 0))
        written = LayerCost(f"linears.{i}", "activation", b, b)
        layers += [written, written] if i + 2 < len(widths) else [written]
    return Costs(tuple(layers))


# -- the multi-layer perceptron in closed form -------------------------------------------------------------------------


def mlp_parameters(inputs: int, sizes: Sequence[Any], outputs: int) -> Any:
    """Weights and biases of an MLP: sum over layers of (n_in + 1) n_out."""
    return sum((a + 1) * b for a, b in pairwise([inputs, *sizes, outputs]))


def mlp_flops(inputs: int, sizes: Sequence[Any], outputs: int) -> Any:
    """FLOPs of one example's forward pass: sum over layers of 2 n_in n_out."""
    return sum(2 * a * b for a, b in pairwise([inputs, *sizes, outputs]))


def mlp_training_flops(inputs: int, sizes: Sequence[Any], outputs: int) -> Any:
    """FLOPs of one example's training pass: forward, weight gradients, input gradients of all but the first layer."""
    first = 2 * inputs * [*sizes, outputs][0]
    return 3 * mlp_flops(inputs, sizes, outputs) - first
