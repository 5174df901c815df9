"""Norms that see members alone: at whole sizes each equals the plain norm of the narrow network.

    >>> gate = WidthGate("width.0", 128)
    >>> net = nn.Sequential(nn.Linear(64, 128), MaskedLayerNorm(128, gate), nn.ReLU(), gate, nn.Linear(128, 10))

BatchNorm works on each channel by itself, so the plain one is right where its gate comes after it. A norm across
channels must weigh each by its grade m:  mean = sum m x / sum m,  var = sum m (x - mean)^2 / sum m.

Legend of shape suffixes: N units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search_spaces.width import Gate


class MaskedNorm(nn.Module):
    """A norm across the channels of `gate`, with a weight (and bias) per channel.

    Args:
        channels: the number of units N of the layer before it.
        gate: the gate that follows it; it is asked for the grades.
        eps: added to the variance; None: the least of the numbers' kind, as in torch's RMSNorm.
        dim: the axis of the units (and, with `spatial`, all axes after the batch are averaged over).
        affine: whether there is a weight (and, with `bias`, a bias) at all.
    """

    centred = True

    def __init__(
        self,
        channels: int,
        gate: Gate,
        *,
        eps: float | None = 1e-5,
        dim: int = -1,
        spatial: bool = False,
        bias: bool = True,
        affine: bool = True,
    ) -> None:
        super().__init__()
        if gate.maximum != channels:
            raise ValueError(
                f"norm of gate {gate.name!r}: channels must equal the gate's maximum={gate.maximum}, "
                f"but got {channels}."
            )
        self.gate, self.eps, self.dim, self.spatial = gate, eps, dim, spatial
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine and bias and self.centred else None

    def forward(self, x: Tensor) -> Tensor:
        axis = self.dim % x.dim()
        along = [self.gate.maximum if i == axis else 1 for i in range(x.dim())]
        m = self.gate.grades().reshape(along)
        axes = [i for i in range(1, x.dim()) if self.spatial or i == axis]
        positions = 1
        for i in axes:
            positions *= x.shape[i] if i != axis else 1
        total = (m.sum() * positions).clamp(min=1e-12)
        centre = x - (m * x).sum(axes, keepdim=True) / total if self.centred else x
        variance = (m * centre * centre).sum(axes, keepdim=True) / total
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        out = centre * torch.rsqrt(variance + eps)
        out = out if self.weight is None else out * self.weight.reshape(along)
        return out if self.bias is None else out + self.bias.reshape(along)

    def plain(self, channels: int) -> nn.Module:
        """The plain norm over that many channels."""
        raise NotImplementedError


class MaskedLayerNorm(MaskedNorm):
    """LayerNorm over the last axis (Ba et al. 2016); `dim=1, spatial=True`: GroupNorm of one group."""

    def plain(self, channels: int) -> nn.Module:
        if self.spatial:
            return nn.GroupNorm(1, channels, self.eps or 0.0, affine=self.weight is not None)
        affine = self.weight is not None
        return nn.LayerNorm(channels, self.eps or 0.0, elementwise_affine=affine, bias=self.bias is not None)


class MaskedRMSNorm(MaskedNorm):
    """RMSNorm over the last axis: no centre, no bias (Zhang and Sennrich 2019)."""

    centred = False

    def plain(self, channels: int) -> nn.Module:
        return nn.RMSNorm(channels, self.eps, elementwise_affine=self.weight is not None)
