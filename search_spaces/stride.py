"""A convolution's stride as a real number: a map that shrinks in place, its tensor keeping its shape.

    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), Stride("stride.0", 28), nn.ReLU(), ...)

Each axis is multiplied by a matrix that depends smoothly on the stride s; the first n_out(s) cells of the result are
live (`search_spaces.extent`), and whatever reads it later must see those alone (`search_spaces.cells`).

    shrink    cell i is the map at s i, linearly interpolated: at whole strides exactly the strided layer's output
    resize    band-limited: the antialiased cubic of image resizing, which has no kink at whole strides
    spectral  DiffStride (Riad et al. 2022): frequencies beyond n / (2 s) fade over R of them; what is left is written
              on a grid of n / s + 2 R cells

Legend of shape suffixes: I cells before, O cells after, F frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.extent import KINDS, Extent, Moved
from search_spaces.width import Acting, Gate

CUBIC = -0.5  # the slope of Keys' kernel (1981) that image libraries resize with
SMOOTH = 8  # a spectral stride's ramp is this part of the map's side by default (DiffStride: 4 of 32)


def smoothness_of(cells: int) -> int:
    """The ramp R of a spectral stride of a map of that side, in frequencies."""
    return max(1, round(cells / SMOOTH))


def least_stride(kind: str, cells: int, smoothness: int | None = None) -> float:
    """The least stride at which the map changes: 1, or H / (H - R) for a spectral one, below which its ramp lies beyond
    every frequency of the map and no gradient moves it."""
    if kind != "spectral":
        return 1.0
    ramp = smoothness_of(cells) if smoothness is None else smoothness
    return cells / max(cells - ramp, 1)


def cell_grades(n: Any, cells: int, like: Tensor) -> Tensor:
    """c_i = clip(n - i, 0, 1) as [I]; at a whole n the boundary cell is the last live one, which a growing stride
    takes first."""
    rest = n - torch.arange(cells, device=like.device, dtype=like.dtype)
    inside = (rest > 0) & (rest <= 1)
    return torch.where(inside, rest, (rest > 1).to(like.dtype))


def spectral_mask(frequency: Any, cells: Any, s: Any, smoothness: float) -> Any:
    """clip((R + W / (2 S) + 1 - n) / R, 0, 1) at frequency n = 0, 1, ... (Riad et al. 2022, equation 3)."""
    share: Tensor = ((smoothness + cells / (2 * s) + 1 - frequency) / smoothness).clamp(0.0, 1.0)
    return share


def linear(s: Tensor, outputs: int, inputs: int) -> Tensor:
    """H_ij = max(0, 1 - |s i - j|), [O, I]; its derivative at whole strides is that of a growing one."""
    place_O1 = s * torch.arange(outputs, device=s.device, dtype=s.dtype).unsqueeze(1)
    j_I = torch.arange(inputs, device=s.device, dtype=s.dtype)
    low_O1 = place_O1.detach().floor()
    share_O1 = place_O1 - low_O1
    return torch.where(j_I == low_O1, 1 - share_O1, torch.where(j_I == low_O1 + 1, share_O1, torch.zeros_like(j_I)))


def cubic(live_in: Any, live_out: Any, outputs: int, inputs: int, like: Tensor) -> Tensor:
    """The antialiased cubic of image resizing, [O, I]: Keys' kernel, as wide as a cell of the result."""
    scale = live_in / live_out
    i_O1 = torch.arange(outputs, device=like.device, dtype=like.dtype).unsqueeze(1)
    j_I = torch.arange(inputs, device=like.device, dtype=like.dtype)
    t = (((i_O1 + 0.5) * scale - 0.5 - j_I) / scale).abs()
    near = (CUBIC + 2) * t**3 - (CUBIC + 3) * t**2 + 1
    far = CUBIC * (t**3 - 5 * t**2 + 8 * t - 4)
    weight_OI = torch.where(t < 1, near, torch.where(t < 2, far, torch.zeros_like(t)))
    total_O1 = (weight_OI * cell_grades(live_in, inputs, like)).sum(1, keepdim=True)
    # a row beyond the map has no cell of its own: it is not live, and must only stay finite
    return torch.where(total_O1 > 0.1, weight_OI / total_O1.clamp(min=0.1), torch.zeros_like(weight_OI))


def spectral(live_in: Any, live_out: Any, s: Any, smoothness: int, outputs: int, inputs: int, like: Tensor) -> Tensor:
    """The Fourier transform of the live cells, the mask, and the inverse on the grid of the result, [O, I]."""
    f_F = torch.arange(inputs // 2 + 1, device=like.device, dtype=like.dtype)
    # n cells have n real frequencies: two for each but the constant and, where n is even, the highest
    pairs_F = torch.minimum((live_in - 2 * f_F + 1).clamp(0.0, 2.0), (live_out - 2 * f_F + 1).clamp(0.0, 2.0))
    pairs_F = torch.where(f_F == 0, torch.ones_like(f_F), pairs_F)
    weight_F = pairs_F * spectral_mask(f_F, live_in, s, smoothness) / live_in
    turn_OF = 2 * math.pi * torch.outer(torch.arange(outputs, device=like.device, dtype=like.dtype), f_F) / live_out
    turn_IF = 2 * math.pi * torch.outer(torch.arange(inputs, device=like.device, dtype=like.dtype), f_F) / live_in
    return (turn_OF.cos() * weight_F) @ turn_IF.cos().mT + (turn_OF.sin() * weight_F) @ turn_IF.sin().mT


def resampling(
    step: Moved, before: Extent, sizes: Mapping[str, Any], outputs: int, inputs: int, like: Tensor
) -> Tensor:
    """The matrix [O, I] of one axis by which a stride makes `outputs` cells of `inputs`, of which as many as the
    extents say are live."""
    s = sizes[step.gate]
    if step.kind == "shrink":
        return linear(s, outputs, inputs)
    live_in, live_out = before.live(sizes), before.then(step).live(sizes)
    if step.kind == "resize":
        return cubic(live_in, live_out, outputs, inputs, like)
    return spectral(live_in, live_out, s, step.smoothness, outputs, inputs, like)


def sizes_of(gates: Iterable[nn.Module]) -> dict[str, Tensor]:
    """Each stride by the name of its gate, as scalars."""
    return {gate.name: gate.grades()[0] for gate in gates}  # type: ignore[operator, misc]


class StrideGate(Gate):
    """What gives a stride: one number, its only grade, as an `nn.Parameter`."""

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
        extents = self.extents or tuple(map(Extent, inputs))
        steps = self.steps or tuple(map(self.step, inputs))
        outputs = self.room or tuple(inputs)
        matrices = [
            resampling(*axis, like=x) for axis in zip(steps, extents, repeat(sizes), outputs, inputs, strict=False)
        ]
        if not self.extents:
            live = [extent.then(step).live(sizes) for extent, step in zip(extents, steps, strict=True)]
            matrices = [
                cell_grades(n, len(m_OI), x).unsqueeze(1) * m_OI for n, m_OI in zip(live, matrices, strict=True)
            ]
        out = x @ matrices[-1].mT
        return out if len(matrices) == 1 else matrices[0] @ out

    def extra_repr(self) -> str:
        return f"{self.gate.name!r}, {self.kind}"
