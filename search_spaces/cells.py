"""What reads a map that has shrunk in place: live cells alone, each weighed by its grade.

After a real stride only the first n cells of an axis are live, the last in part (`search_spaces.extent`); whatever lies
beyond them must not be seen. `Cells` silences it before a convolution, whose padding it becomes, `CellFloor` before a
maximum; `CellMean` and `CellBatchNorm` take statistics of what is live. `search_spaces.cell_flow` puts them where they
belong. At whole strides each equals the plain operation on the small map.

Legend of shape suffixes: C channels, I all cells of a map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from search_spaces.extent import Extent
from search_spaces.stride import cell_grades, sizes_of
from search_spaces.width import Acting, Gate

Axes = Mapping[int, Extent]  # which axes of a tensor have shrunk, and how far


class Cellwise(Acting):
    """What knows how many cells of its input's axes are live.

    Args:
        axes: the extents by axis.
        gates: the gates whose strides they follow.
    """

    def __init__(self, axes: Axes, gates: Sequence[Gate]) -> None:
        super().__init__()
        self.axes, self.gates = dict(axes), nn.ModuleList(gates)

    def weight(self, x: Tensor) -> Tensor:
        """The cells' grades, shaped to multiply x."""
        return weight_of(self.axes, self.gates, x)

    def extra_repr(self) -> str:
        return f"axes {list(self.axes)}"


def weight_of(axes: Axes, gates: nn.ModuleList, x: Tensor) -> Tensor:
    """The grades of x's cells: the product of those along each axis, shaped to multiply x."""
    sizes, weight = sizes_of(gates), x.new_ones(())
    made: dict[Any, Tensor] = {}  # axes of a square map share one
    for axis, extent in axes.items():
        side, shape = x.shape[axis], [x.shape[axis] if i == axis else 1 for i in range(x.dim())]
        if (extent, side) not in made:
            made[extent, side] = cell_grades(extent.live(sizes), side, x)
        weight = weight * made[extent, side].view(shape)
    return weight


class Cells(Cellwise):
    """x times its cells' grades."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight(x)


class CellFloor(Cellwise):
    """Cells that are not live sink to the least of the live ones of their channel (or 0), so that no maximum sees
    them. What they sink to depends on live cells alone: a cropped map has the same."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight(x)
        low = (x * weight).amin(list(self.axes), keepdim=True).clamp(max=0.0)
        floored: Tensor = low + (x - low) * weight
        return floored


class CellMean(Cellwise):
    """The mean over `dims` of what `Cells` has silenced: sum x / sum c."""

    def __init__(self, axes: Axes, gates: Sequence[Gate], dims: Sequence[int], keepdim: bool) -> None:
        super().__init__(axes, gates)
        self.dims, self.keepdim = tuple(dims), keepdim

    def forward(self, x: Tensor) -> Tensor:
        others = math.prod(x.shape[dim] for dim in self.dims if dim not in self.axes)
        count = others * self.weight(x).sum()
        mean: Tensor = x.sum(self.dims, keepdim=self.keepdim) / count
        return mean


def cell_statistics(axes: Axes, gates: nn.ModuleList, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each channel's mean and variance over live cells [C], and of how many numbers they are."""
    weight = weight_of(axes, gates, x)
    weight_I = weight.expand(1, 1, *x.shape[2:]).reshape(-1)
    count = x.shape[0] * weight_I.sum()
    mean_C = (x.flatten(2) @ weight_I).sum(0) / count
    spread = (x - mean_C.view(1, -1, *(1,) * (x.dim() - 2))).square()
    return mean_C, (spread.flatten(2) @ weight_I).sum(0) / count, count


def unbiased(variance_C: Tensor, count: Tensor) -> Tensor:
    """The variance that a norm remembers."""
    return variance_C * count / (count - 1).clamp(min=1e-9)


def normed(x: Tensor, mean_C: Tensor, variance_C: Any, norm: Any) -> Tensor:
    """x by given statistics, with the weight and bias of a norm."""
    along = (1, -1, *(1,) * (x.dim() - 2))
    scale_C = torch.rsqrt(variance_C + norm.eps)
    if norm.weight is not None:
        scale_C = scale_C * norm.weight
    out = (x - mean_C.view(along)) * scale_C.view(along)
    shifted: Tensor = out if norm.bias is None else out + norm.bias.view(along)
    return shifted


class CellBatchNorm(Acting, _BatchNorm):
    """The batch norm of live cells, each channel's mean and variance weighed by their grades."""

    def __init__(self, norm: _BatchNorm, axes: Axes, gates: Sequence[Gate], channels: int | None = None) -> None:
        _BatchNorm.__init__(
            self,
            channels or norm.num_features,
            norm.eps,
            norm.momentum,
            norm.affine,
            track_running_stats=norm.track_running_stats,
        )
        self.axes, self.gates = dict(axes), nn.ModuleList(gates)
        self.of: type[_BatchNorm] = norm.of if isinstance(norm, CellBatchNorm) else type(norm)
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            return normed(x, self.running_mean, self.running_var, self)
        mean_C, variance_C, count = cell_statistics(self.axes, self.gates, x)
        if self.training and self.running_mean is not None:
            self._remember(mean_C.detach(), unbiased(variance_C, count).detach())
        return normed(x, mean_C, variance_C, self)

    @torch.no_grad()
    def _remember(self, mean_C: Tensor, variance_C: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C.to(self.running_mean), share)
        self.running_var.lerp_(variance_C.to(self.running_var), share)

    def plain(self) -> nn.Module:
        """The plain norm of the same channels."""
        norm = self.of(
            self.num_features, self.eps, self.momentum, self.affine, track_running_stats=self.track_running_stats
        )
        state = self.state_dict()
        norm.to(next(iter(state.values()), torch.zeros(()))).train(self.training)
        norm.load_state_dict({name: state[name] for name in norm.state_dict()})
        return norm
