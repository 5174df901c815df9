"""What reads a map that has shrunk in place: live cells alone, each weighed by its grade.

After a real stride only the first n cells of an axis are live, the last in part (`search_spaces.extent`); whatever lies
beyond them must not be seen. `Cells` silences it before a convolution, whose padding it becomes, `CellFloor` before a
maximum; `CellMean` and `CellBatchNorm` take statistics of what is live. `search_spaces.cell_flow` puts them where they
belong. At whole strides each equals the plain operation on the small map.

Legend of shape suffixes: C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

    def grades(self, x: Tensor) -> Iterator[Tensor]:
        """The cells' grades along each axis, shaped to multiply x."""
        return grades_along(self.axes, self.gates, x)

    def extra_repr(self) -> str:
        return f"axes {list(self.axes)}"


def grades_along(axes: Axes, gates: nn.ModuleList, x: Tensor) -> Iterator[Tensor]:
    """The cells' grades along each of some axes, shaped to multiply x."""
    sizes = sizes_of(gates)
    for axis, extent in axes.items():
        along = [x.shape[axis] if i == axis else 1 for i in range(x.dim())]
        yield cell_grades(extent.live(sizes), x.shape[axis], x).view(along)


class Cells(Cellwise):
    """x times its cells' grades."""

    def forward(self, x: Tensor) -> Tensor:
        for c in self.grades(x):
            x = x * c
        return x


class CellFloor(Cellwise):
    """Cells that are not live sink to the least of the live ones of their channel (or 0), so that no maximum sees
    them. What they sink to depends on live cells alone: a cropped map has the same."""

    def forward(self, x: Tensor) -> Tensor:
        grade: Any = 1.0
        for c in self.grades(x):
            grade = grade * c
        low = (x * grade).amin(list(self.axes), keepdim=True).clamp(max=0.0)
        floored: Tensor = low + (x - low) * grade
        return floored


class CellMean(Cellwise):
    """The mean over `dims` of what `Cells` has silenced: sum x / sum c."""

    def __init__(self, axes: Axes, gates: Sequence[Gate], dims: Sequence[int], keepdim: bool) -> None:
        super().__init__(axes, gates)
        self.dims, self.keepdim = tuple(dims), keepdim

    def forward(self, x: Tensor) -> Tensor:
        count: Any = 1.0
        for dim in self.dims:
            if dim not in self.axes:
                count = count * x.shape[dim]
        for c in self.grades(x):
            count = count * c.sum()
        mean: Tensor = x.sum(self.dims, keepdim=self.keepdim) / count
        return mean


def cell_statistics(axes: Axes, gates: nn.ModuleList, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each channel's mean and variance over live cells [C], and of how many numbers they are."""
    weight, count = x.new_ones(()), x.new_tensor(x.numel() / x.shape[1])
    for c in grades_along(axes, gates, x):
        weight, count = weight * c, count * c.sum() / c.numel()
    dims = [i for i in range(x.dim()) if i != 1]
    mean = (weight * x).sum(dims, keepdim=True) / count
    variance_C = (weight * (x - mean).square()).sum(dims) / count
    return mean.flatten(), variance_C, count


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
