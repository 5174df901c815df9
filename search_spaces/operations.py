"""The candidate operations of an edge, as modules that read a gated node and write one: what stands on a graph's edges.

    >>> make = Operations(images=True, norm="batch", activation="relu")
    >>> gate = WidthGate("width.0", 16, dim=1)
    >>> make.operation("conv3", gate, gate)                             # activation, gate, convolution, norm

For images [B, C, H, W], each keeping height and width:

    linear                 gate, 1x1 convolution, norm: a linear map of channels
    conv1, conv3, conv5    activation, gate, convolution, norm
    separable              activation, depthwise 3x3 convolution, gate, 1x1 convolution, norm
    max_pool, avg_pool     over 3x3 places, those beyond the border left out
    skip                   the node itself

For rows [B, D] there are `linear` (activation, gate, linear layer, norm) and `skip`. `zero` is no module: its unit is
no term of any sum. Convolutions are pre-activated as in DARTS (Liu et al. 2019, section 3.1.1), so what edges add up is
a stream without an activation in it.

A gate stands where weights mix channels; pools and depthwise convolutions work channel by channel, and what a unit that
is no member says there is silenced at the next mixing read. Where an edge leads to a node of another width, a pool or
skip is followed by gate, 1x1 convolution (or linear layer) and norm.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from search_spaces.mlp import ACTIVATION_MODULES
from search_spaces.width import WidthGate

KERNELS = {"conv1": 1, "conv3": 3, "conv5": 5}


@dataclass(frozen=True)
class Operations:
    """Makes operations and layers for one kind of data.

    Args:
        images: whether the data are images, else rows.
        norm: batch, or none, where layers have biases instead.
        activation: one of `ACTIVATION_MODULES`.
    """

    images: bool
    norm: str
    activation: str

    def operation(
        self, kind: str, reads: WidthGate, writes: WidthGate, *, before: nn.Module | None = None
    ) -> nn.Sequential:
        """One operation.

        Args:
            kind: one of `wiring.OPERATIONS` but zero.
            reads, writes: the gates of the nodes that it reads and writes; a pool or skip between two is projected.
            before: what first changes the side of the map.
        """
        parts: list[tuple[str, nn.Module]] = [] if before is None else [("resample", before)]
        activation, width = ("activation", self.active()), writes.maximum
        if kind == "linear":
            parts += ([] if self.images else [activation]) + self.mixing(reads, width)
        elif kind in KERNELS:
            parts += [activation, *self.mixing(reads, width, KERNELS[kind])]
        elif kind == "separable":
            channels = reads.maximum
            depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
            parts += [activation, ("depthwise", depthwise), *self.mixing(reads, width)]
        elif kind == "max_pool":
            parts.append(("pool", nn.MaxPool2d(3, 1, 1)))
        elif kind == "avg_pool":
            parts.append(("pool", nn.AvgPool2d(3, 1, 1, count_include_pad=False)))
        else:
            assert kind == "skip", kind
        if kind in ("max_pool", "avg_pool", "skip") and reads is not writes:
            parts += self.mixing(reads, width)
        return nn.Sequential(OrderedDict(parts))

    def mixing(self, reads: WidthGate, width: int, kernel: int = 1, stride: int = 1) -> list[tuple[str, nn.Module]]:
        """A layer that mixes channels, after the gate of what it reads, with its norm."""
        return [("gate", reads), *self.layer(reads.maximum, width, kernel, stride)]

    def layer(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> list[tuple[str, nn.Module]]:
        """A convolution, or a linear layer, with its norm."""
        bias = self.norm == "none"
        if not self.images:
            layer = ("linear", nn.Linear(inputs, outputs, bias=bias))
            return [layer] if bias else [layer, ("norm", nn.BatchNorm1d(outputs))]
        conv = ("conv", nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias))
        return [conv] if bias else [conv, ("norm", nn.BatchNorm2d(outputs))]

    def active(self) -> nn.Module:
        """The activation."""
        return ACTIVATION_MODULES[self.activation]()
