"""How many cells of an axis are live: a real number that follows the strides between it and the input. No torch.

    >>> extent = Extent(28, (Moved("stride.0", "shrink"), Window(-2)))       # a stride, then a kernel of 3 unpadded
    >>> extent.live({"stride.0": 2.0}), extent.live({"stride.0": 2.5})
    (12.0, 10.0)

At whole strides an axis has the cells that the really strided layer writes; between them the number is interpolated,
linearly in the stride and in the number of cells before it (n / s alone is right only where s divides n). Numbers give
numbers, tensors give gradients: at kinks those of a growing stride.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

SMOOTH = 8  # a spectral stride's ramp is this part of the map's side by default (DiffStride: 4 of 32)
KINDS = ("shrink", "resize", "spectral")  # how a stride makes the cells after it; see `search_spaces.stride`


@dataclass(frozen=True)
class Moved:
    """The stride of a gate. `smoothness` is R of a spectral one, in frequencies."""

    gate: str
    kind: str
    smoothness: int = 0

    def after(self, n: Any, sizes: Mapping[str, Any]) -> Any:
        """Cells after it."""
        s = sizes[self.gate]
        low, kind, smooth = _floor(s), self.kind, self.smoothness
        before = _between(n, lambda whole: _cells(whole, low, kind, smooth))
        return before + (s - low) * (_between(n, lambda whole: _cells(whole, low + 1, kind, smooth)) - before)


@dataclass(frozen=True)
class Fixed:
    """A whole stride that does not move."""

    stride: int

    def after(self, n: Any, sizes: Mapping[str, Any]) -> Any:
        """Cells after it."""
        return _between(n, lambda whole: _cells(whole, self.stride, "shrink", 0))


@dataclass(frozen=True)
class Window:
    """A kernel at stride 1 that adds `change` cells (-2: a kernel of 3 without padding). One cell stays at least: a
    map that the kernel does not fit into has no real layer, and must only stay finite."""

    change: int

    def after(self, n: Any, sizes: Mapping[str, Any]) -> Any:
        """Cells after it."""
        return _one_at_least(n + self.change)


Step: TypeAlias = Moved | Fixed | Window


@dataclass(frozen=True)
class Extent:
    """The live cells of one axis: `cells` in the input, and the steps from there."""

    cells: int
    steps: tuple[Step, ...] = ()

    def live(self, sizes: Mapping[str, Any]) -> Any:
        """The real number of live cells, where `sizes` has each gate's stride."""
        n: Any = float(self.cells)
        for step in self.steps:
            n = step.after(n, sizes)
        return n

    def then(self, *steps: Step) -> Extent:
        """The extent after further steps."""
        found = list(self.steps)
        for step in steps:
            last = found[-1] if found else None
            if isinstance(step, Window) and isinstance(last, Window):  # so that equal maps compare equal
                found.pop()
                step = Window(last.change + step.change)
            if step != Window(0):
                found.append(step)
        return Extent(self.cells, tuple(found))

    @property
    def gates(self) -> tuple[str, ...]:
        """The gates whose strides it follows."""
        return tuple(dict.fromkeys(step.gate for step in self.steps if isinstance(step, Moved)))


def smoothness_of(cells: int) -> int:
    """The ramp R of a spectral stride of a map of that side, in frequencies."""
    return max(1, round(cells / SMOOTH))


def least_stride(kind: str, cells: int, smoothness: int | None = None) -> float:
    """The least stride to search: 1, or H / (H - R) for a spectral one, at which R / 2 - 1 frequencies of its ramp lie
    within the map; much below it the mask is 1 at every frequency, and its gradient 0."""
    if kind != "spectral":
        return 1.0
    ramp = smoothness_of(cells) if smoothness is None else smoothness
    return cells / max(cells - ramp, 1)


def _cells(n: Any, s: Any, kind: str, smoothness: int) -> Any:
    """Cells after a whole stride s of n whole cells."""
    cells = _ceil(n / s)
    if kind != "spectral":
        return cells
    # DiffStride keeps n / s cells and the ramp of R frequencies on either side (Riad et al. 2022, section 3)
    wide = cells + 2 * smoothness
    return wide - _positive(wide - n)


def _between(n: Any, at: Callable[[Any], Any]) -> Any:
    """A function of whole numbers, interpolated; at a whole n it is the piece below that counts."""
    high = _ceil(n)
    upper = at(high)
    return upper - (high - n) * (upper - at(_one_at_least(high - 1)))


def _one_at_least(n: Any) -> Any:
    """max(n, 1), and at 1 the piece below."""
    return max(n, 1.0) if isinstance(n, int | float) else n * (n > 1) + 1.0 * (n <= 1)


def _positive(n: Any) -> Any:
    """max(n, 0), and at 0 the piece below."""
    return max(n, 0.0) if isinstance(n, int | float) else n * (n > 0)


def _floor(x: Any) -> Any:
    return float(math.floor(x)) if isinstance(x, int | float) else x.detach().floor()


def _ceil(x: Any) -> Any:
    return float(math.ceil(x)) if isinstance(x, int | float) else x.detach().ceil()
