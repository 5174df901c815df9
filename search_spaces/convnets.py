"""Convolutional and residual networks with gates, of maximum size.

    >>> relaxed = GatedConvNet((1, 28, 28), {"width.0": 32, "width.1": 64}, 10)
    >>> relaxed = GatedResidual((3, 32, 32), {"width.0": 16, "width.0.0": 16, "width.1": 32, "width.1.0": 32}, 10)

A gate stands where a layer reads: after norm and activation, and, for a residual stream, at each read of it, not in the
stream itself. So a grade multiplies what is read exactly once, and a unit of grade 0 still feels what it would add (a
gate before a relu would not: the relu has no slope at 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from search_spaces.blocks import Passing
from search_spaces.layered import LEAST_SIDE
from search_spaces.mlp import ACTIVATION_MODULES
from search_spaces.stride import Stride, StrideGate
from search_spaces.width import DepthGate, WidthGate


class GatedConvNet(nn.Module):
    """Convolution, norm, activation, halving and gate, once for each width; then an average and a linear layer.

    Args:
        shape: channels, height, width of an image.
        maxima: how many grades each gate has, by name, in the order of the layers. A `stride.i` takes the place of the
            halving after layer i.
        stride: how real strides work, see `search_spaces.stride`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        maxima: Mapping[str, int],
        outputs: int,
        *,
        kernel: int = 3,
        norm: str = "batch",
        activation: str = "relu",
        stride: str = "shrink",
    ) -> None:
        super().__init__()
        channels, side = shape[0], min(shape[1:])
        layers: list[nn.Module] = []
        widths = [(name, width) for name, width in maxima.items() if name.startswith("width.")]
        for i, (name, width) in enumerate(widths):
            real, halved = f"stride.{i}" in maxima, side >= LEAST_SIDE
            layers += [
                nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=norm == "none"),
                *([Stride(f"stride.{i}", stride)] if real else []),
                *([nn.BatchNorm2d(width)] if norm == "batch" else []),
                ACTIVATION_MODULES[activation](),
                *([nn.MaxPool2d(2)] if halved and not real else []),
                WidthGate(name, width, dim=1),
            ]
            side = side // 2 if halved and not real else side
            channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, outputs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.head(self.pool(self.features(x_BCHW)).flatten(1))
        return out


class GatedResidual(nn.Module):
    """Residual stages: `width.s` is the width of stage s's stream, `width.s.b` that inside its block b, `stride.s` the
    stride before it (2 where there is none), `depth.s` how many of its blocks there are (all where there is none)."""

    def __init__(
        self,
        shape: Sequence[int],
        maxima: Mapping[str, int],
        outputs: int,
        *,
        kernel: int = 3,
        norm: str = "batch",
        activation: str = "relu",
        stride: str = "shrink",
    ) -> None:
        super().__init__()
        self.images = len(shape) == 3
        make = _Layers(self.images, kernel, norm, stride)
        stages: dict[str, list[str]] = {}
        for name in maxima:
            if name.startswith("width."):
                stages.setdefault(name.split(".")[1], []).append(name)
        first = stages["0"][0]
        self.activation = ACTIVATION_MODULES[activation]()
        self.stem = make.layer(shape[0], maxima[first], stride=_stride_of(maxima, 0))
        reads = WidthGate(first, maxima[first], dim=1)
        blocks: list[nn.Module] = []
        for s, (stream, *inner) in enumerate(stages.values()):
            gate = reads if s == 0 else WidthGate(stream, maxima[stream], dim=1)
            blocks_there = DepthGate(f"depth.{s}", maxima[f"depth.{s}"]) if f"depth.{s}" in maxima else None
            before = _stride_of(maxima, s)
            for b, name in enumerate(inner):
                turns = s > 0 and b == 0  # the block that halves the image and changes the stream's width
                blocks.append(
                    _Block(
                        reads,
                        make.layer(reads.maximum, maxima[name], stride=before if turns else 1),
                        WidthGate(name, maxima[name], dim=1),
                        make.layer(maxima[name], gate.maximum),
                        make.layer(reads.maximum, gate.maximum, stride=before, side=1) if turns else None,
                        ACTIVATION_MODULES[activation](),
                        None if blocks_there is None else Passing(blocks_there, b),
                    )
                )
                reads = gate
        self.blocks = nn.Sequential(*blocks)
        self.gate = reads
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1) if self.images else nn.Identity()
        self.head = nn.Linear(reads.maximum, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.gate(self.blocks(self.activation(self.stem(x))))
        out: Tensor = self.head(self.pool(h).flatten(1))
        return out


def _stride_of(maxima: Mapping[str, int], stage: int) -> int | StrideGate:
    """The stride before a stage."""
    name = f"stride.{stage}"
    return StrideGate(name) if name in maxima else 1 if stage == 0 else 2


class _Block(nn.Module):
    """activation(x + second(inner gate(activation(first(gate(x)))))); a skip that changes width reads gate(x) too.

    Where its depth lacks it, x goes on as it is (after the skip and the activation, where there is a skip).
    """

    def __init__(
        self,
        gate: WidthGate,
        first: nn.Module,
        inner: WidthGate,
        second: nn.Module,
        skip: nn.Module | None,
        activation: nn.Module,
        passing: Passing | None,
    ) -> None:
        super().__init__()
        self.gate, self.first, self.inner, self.second = gate, first, inner, second
        self.skip, self.activation, self.passing = skip, activation, passing

    def forward(self, x: Tensor) -> Tensor:
        read = self.gate(x)
        branch = self.second(self.inner(self.activation(self.first(read))))
        stream = x if self.skip is None else self.skip(read)
        out: Tensor = self.activation(stream + branch)
        if self.passing is None:
            return out
        there: Tensor = self.passing(x if self.skip is None else self.activation(stream), out)
        return there


class _Layers:
    """Convolutions of images, or linear layers of rows, each with its norm."""

    def __init__(self, images: bool, kernel: int, norm: str, stride: str) -> None:
        self.images, self.kernel, self.norm, self.stride = images, kernel, norm, stride

    def layer(self, inputs: int, outputs: int, *, stride: int | StrideGate = 1, side: int | None = None) -> nn.Module:
        side = self.kernel if side is None else side
        bias = self.norm == "none"
        whole = stride if isinstance(stride, int) else 1
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, side, whole, side // 2, bias=bias)
            if self.images
            else nn.Linear(inputs, outputs, bias=bias)
        ]
        if isinstance(stride, StrideGate):
            layers.append(Stride(stride, self.stride))
        if self.norm != "none":
            layers.append(nn.BatchNorm2d(outputs) if self.images else nn.BatchNorm1d(outputs))
        return nn.Sequential(*layers) if len(layers) > 1 else layers[0]
