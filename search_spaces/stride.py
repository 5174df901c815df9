"""A convolution's stride as a real number: a map that shrinks in place, its tensor keeping its shape.

    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), Stride("stride.0"), nn.ReLU(), ...)

Each axis is multiplied by a matrix that depends smoothly on the stride s; the first n_out(s) cells of the result are
live (`search_spaces.extent`), and whatever reads it later must see those alone (`search_spaces.cells`).

    shrink    cell i is the map at s i, linearly interpolated: at whole strides exactly the strided layer's output
    resize    band-limited: the antialiased cubic of image resizing; a whole stride is no kink of its cells, which only
              move at another pace where n_out(s) does
    spectral  DiffStride (Riad et al. 2022): frequencies beyond n / (2 s) fade over R of them; what is left is written
              on a grid of n / s + 2 R cells

Legend of shape suffixes: I cells before, O cells after, F frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from search_spaces.extent import KINDS, Extent, Moved, smoothness_of
from search_spaces.width import Acting, Gate

CUBIC = -0.5  # the slope of Keys' kernel (1981) that image libraries resize with


def cell_grades(n: Any, cells: int, like: Tensor) -> Tensor:
    """c_i = clip(n - i, 0, 1) as [I]; at a whole n the boundary cell is the last live one, which a growing stride
    takes first."""
    return _clipped(n - torch.arange(cells, device=like.device, dtype=like.dtype))


def _clipped(x: Tensor) -> Tensor:
    """clip(x, 0, 1), with the derivative of a falling x at 0 and 1."""
    return torch.where((x > 0) & (x <= 1), x, (x > 1).to(x.dtype))


def spectral_mask(frequency: Any, cells: Any, s: Any, smoothness: float) -> Tensor:
    """clip((R + W / (2 S) + 1 - n) / R, 0, 1) at frequency n = 0, 1, ... (Riad et al. 2022, equation 3)."""
    return _clipped((smoothness + cells / (2 * s) + 1 - frequency) / smoothness)


def linear(s: Tensor, outputs: int, inputs: int) -> Tensor:
    """H_ij = max(0, 1 - |s i - j|), [O, I]; its derivative at whole strides is that of a growing one."""
    place_O1 = s * torch.arange(outputs, device=s.device, dtype=s.dtype).unsqueeze(1)
    j_I = torch.arange(inputs, device=s.device, dtype=s.dtype)
    low_O1 = place_O1.detach().floor()
    share_O1 = place_O1 - low_O1
    return torch.where(j_I == low_O1, 1 - share_O1, torch.where(j_I == low_O1 + 1, share_O1, torch.zeros_like(j_I)))


def cubic(live_in: Any, live_out: Any, outputs: int, inputs: int, like: Tensor) -> Tensor:
    """The antialiased cubic of image resizing, [O, I]: Keys' kernel, as wide as a cell of the result, about the middle
    of what there is of it."""
    scale = live_in / live_out
    i_O = torch.arange(outputs, device=like.device, dtype=like.dtype)
    j_I = torch.arange(inputs, device=like.device, dtype=like.dtype)
    # the middle of a whole last cell may lie beyond the map, where the weights have no sum to be divided by
    middle_O1 = (i_O + cell_grades(live_out, outputs, like) / 2).unsqueeze(1)
    t = (middle_O1 - (j_I + 0.5) / scale).abs()
    near = (CUBIC + 2) * t**3 - (CUBIC + 3) * t**2 + 1
    far = CUBIC * (t**3 - 5 * t**2 + 8 * t - 4)
    weight_OI = torch.where(t < 1, near, torch.where(t < 2, far, torch.zeros_like(t)))
    total_O1 = (weight_OI * cell_grades(live_in, inputs, like)).sum(1, keepdim=True)
    # a row that is not live lies beyond the map: it must only stay finite
    return torch.where(total_O1 > 0.1, weight_OI / total_O1.clamp(min=0.1), torch.zeros_like(weight_OI))


def spectral(live_in: Any, live_out: Any, s: Any, smoothness: int, outputs: int, inputs: int, like: Tensor) -> Tensor:
    """The Fourier transform of the live cells, the mask, and the inverse on the grid of the result, [O, I]."""
    f_F = torch.arange(inputs // 2 + 1, device=like.device, dtype=like.dtype)
    # n cells have n real frequencies: two for each but the constant and, where n is even, the highest
    pairs_F = torch.where(f_F == 0, torch.ones_like(f_F), 2 * cell_grades((live_out + 1) / 2, len(f_F), like))
    weight_F = pairs_F * spectral_mask(f_F, live_in, s, smoothness) / live_in
    turn_OF = 2 * math.pi * torch.outer(torch.arange(outputs, device=like.device, dtype=like.dtype), f_F) / live_out
    turn_IF = 2 * math.pi * torch.outer(torch.arange(inputs, device=like.device, dtype=like.dtype), f_F) / live_in
    matrix_OI: Tensor = (turn_OF.cos() * weight_F) @ turn_IF.cos().mT + (turn_OF.sin() * weight_F) @ turn_IF.sin().mT
    return matrix_OI


def resampling(
    step: Moved, before: Extent, sizes: Mapping[str, Any], outputs: int, inputs: int, like: Tensor
) -> Tensor:
    """The matrix [O, I] of one axis by which a stride makes `outputs` cells of `inputs`, of which as many as the
    extents say are live."""
    s = sizes[step.gate]
    if step.kind == "shrink":
        return linear(s if isinstance(s, Tensor) else like.new_tensor(s), outputs, inputs)
    live_in, live_out = before.live(sizes), before.then(step).live(sizes)
    if step.kind == "resize":
        return cubic(live_in, live_out, outputs, inputs, like)
    return spectral(live_in, live_out, s, step.smoothness, outputs, inputs, like)


def sizes_of(gates: Iterable[nn.Module]) -> dict[str, Any]:
    """Each stride by the name of its gate: a scalar, or a number where nothing differentiates or batches it, for how
    many cells are live is a hundred small operations, which numbers do in no time."""
    return {gate.name: _number(gate.grades()[0]) for gate in gates}  # type: ignore[operator, misc]


def _number(s: Tensor) -> Any:
    if s.requires_grad or s.device.type != "cpu":
        return s
    try:
        return float(s) if unpack_dual(s).tangent is None else s  # type: ignore[no-untyped-call]
    except RuntimeError:  # under vmap it is many numbers
        return s


class StrideGate(Gate):
    """What gives a stride: one number, its only grade, as an `nn.Parameter`."""

    role: ClassVar[str] = "stride"

    def __init__(self, name: str) -> None:
        super().__init__(name, 1)
        self.n = nn.Parameter(torch.tensor(1.0))

    def grades(self) -> Tensor:
        return self.n.unsqueeze(0)

    def size(self) -> Tensor:
        """The stride, a scalar."""
        return self.n

    def set(self, s: float) -> None:
        """Begin anew at that stride."""
        with torch.no_grad():
            self.n.fill_(s)


class Stride(Acting):
    """A map resampled in place, at every axis after the first two, by the stride of a gate.

    Args:
        gate: the stride's name in the space, or its gate, for strides that are one.
        kind: shrink, resize or spectral.
        smoothness: the ramp R of a spectral stride, in frequencies (default: an eighth of the map's side).

    Alone, it also silences the cells that are not live. In a network that `search_spaces.cells` has gone through, each
    reader does so, and `extents` are those of the axes before it; `room` is how many cells of each axis are written
    (None: as many as are read), at least the live ones.
    """

    def __init__(self, gate: str | Gate, kind: str = "shrink", *, smoothness: int | None = None) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"stride {gate!r}: unknown kind {kind!r}; known: {', '.join(KINDS)}.")
        if smoothness is not None and smoothness < 1:
            raise ValueError(f"stride {gate!r}: smoothness must be at least 1 frequency, but got {smoothness}.")
        self.gate = StrideGate(gate) if isinstance(gate, str) else gate
        self.kind, self.smoothness = kind, smoothness
        self.before = nn.ModuleList()  # the gates of strides before it
        self.extents: tuple[Extent, ...] = ()
        self.steps: tuple[Moved, ...] = ()
        self.room: tuple[int, ...] | None = None

    def step(self, cells: int) -> Moved:
        """What it does to an axis that has so many cells where all strides are 1."""
        smoothness = smoothness_of(cells) if self.smoothness is None else self.smoothness
        return Moved(self.gate.name, self.kind, smoothness if self.kind == "spectral" else 0)

    def place(self, extents: tuple[Extent, ...], steps: tuple[Moved, ...], before: Sequence[Gate]) -> None:
        """Put it into a network whose readers silence cells."""
        self.extents, self.steps, self.before = extents, steps, nn.ModuleList(before)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, I] or [B, C, I, I] -> [B, C, O] or [B, C, O, O]."""
        sizes = sizes_of([self.gate, *self.before])
        inputs = x.shape[2:]
        if len(inputs) not in (1, 2):
            raise ValueError(
                f"stride {self.gate.name!r}: must follow a map [B, C, I] or [B, C, I, I], but got {tuple(x.shape)}; "
                "put it after a convolution or pooling."
            )
        extents = self.extents or tuple(map(Extent, inputs))
        steps = self.steps or tuple(map(self.step, inputs))
        outputs = self.room or tuple(inputs)
        axes = list(zip(steps, extents, outputs, inputs, strict=True))
        made: dict[Any, Tensor] = {}  # axes of a square map share one
        for step, extent, rows, columns in dict.fromkeys(axes):
            matrix_OI = resampling(step, extent, sizes, rows, columns, x)
            if not self.extents:
                matrix_OI = cell_grades(extent.then(step).live(sizes), rows, x).unsqueeze(1) * matrix_OI
            made[step, extent, rows, columns] = matrix_OI
        matrices = [made[axis] for axis in axes]
        out = x @ matrices[-1].mT
        return out if len(matrices) == 1 else matrices[0] @ out

    def extra_repr(self) -> str:
        return f"{self.gate.name!r}, {self.kind}"
