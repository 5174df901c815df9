"""How many cells are live: at whole strides as many as torch's layers write, and between them a number that falls
without a jump as strides grow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from search_spaces.extent import KINDS, Extent, Fixed, Moved, Step, Window, least_stride, smoothness_of

KERNELS = [(1, 0), (2, 0), (3, 0), (3, 1), (4, 1), (5, 2)]  # sides and paddings
kernels = st.tuples(st.just("conv"), st.sampled_from(KERNELS), st.integers(1, 2))
strides = st.tuples(st.just("stride"), st.just((0, 0)), st.integers(1, 4))
Layer = tuple[str, tuple[int, int], int]


def extent_of(cells: int, layers: Sequence[Layer], kind: str = "shrink") -> Extent:
    """The extent after convolutions of kernel, padding and fixed stride, and after real strides, each of its gate."""
    steps: list[Step] = []
    for i, (what, (side, padding), own) in enumerate(layers):
        if what == "stride":
            steps.append(Moved(f"s{i}", kind, 2 if kind == "spectral" else 0))
        else:
            steps += [Window(2 * padding - side + 1), *([Fixed(own)] if own > 1 else [])]
    return Extent(cells).then(*steps)


def written(cells: int, layers: Sequence[Layer]) -> int:
    """How many cells torch's layers write; a stride is a convolution of one tap."""
    x = torch.zeros(1, 1, cells)
    for _, (side, padding), own in layers:
        x = functional.conv1d(x, torch.zeros(1, 1, max(side, 1)), stride=own, padding=padding)
    return x.shape[-1]


@given(st.integers(10, 40), st.lists(st.one_of(kernels, strides), max_size=5))
def test_at_whole_strides_it_is_what_torch_writes(cells: int, layers: list[Layer]) -> None:
    sizes = {f"s{i}": own for i, (what, _, own) in enumerate(layers) if what == "stride"}
    try:
        want = written(cells, layers)
    except RuntimeError:  # a kernel that no longer fits
        assert extent_of(cells, layers).live(sizes) >= 1
        return
    assert extent_of(cells, layers).live(sizes) == want
    assert extent_of(cells, layers, "resize").live(sizes) == want


@pytest.mark.parametrize("cells", range(4, 20))
def test_a_whole_spectral_stride_keeps_its_ramp(cells: int) -> None:
    for smoothness in range(1, 5):
        extent = Extent(cells, (Moved("s", "spectral", smoothness),))
        for s in range(1, cells + 1):
            assert extent.live({"s": s}) == min(cells, math.ceil(cells / s) + 2 * smoothness)


def test_the_maps_of_the_paper() -> None:
    """64 x 64 at strides (2, 4) with R = 4 leaves (40, 24) cells (Riad et al. 2022)."""
    sides = [Extent(64, (Moved(name, "spectral", 4),)).live({"s": 2.0, "t": 4.0}) for name in ("s", "t")]
    assert sides == [40, 24]


real = st.floats(1, 7)


@given(st.integers(8, 40), st.lists(st.one_of(kernels, strides), max_size=5), st.sampled_from(KINDS), st.data())
def test_it_falls_with_every_stride_and_never_jumps(
    cells: int, layers: list[Layer], kind: str, data: st.DataObject
) -> None:
    extent = extent_of(cells, layers, kind)
    for gate in extent.gates:
        sizes = {name: data.draw(real) for name in extent.gates}
        n = extent.live(sizes)
        assert 1 <= n <= cells + 2 * len(layers)
        assert extent.live({**sizes, gate: data.draw(st.floats(sizes[gate], 8))}) <= n + 1e-12
        near = extent.live({**sizes, gate: sizes[gate] + 1e-9})
        assert abs(near - n) <= 1e-9 * cells * 2 ** len(layers) + 1e-12  # each step's slope by n is at most 2


@given(st.integers(8, 40), st.lists(st.one_of(kernels, strides), max_size=5), st.sampled_from(KINDS), st.data())
def test_tensors_give_what_numbers_give(cells: int, layers: list[Layer], kind: str, data: st.DataObject) -> None:
    extent = extent_of(cells, layers, kind)
    lanes = [{name: data.draw(st.one_of(real, st.integers(1, 7))) for name in extent.gates} for _ in range(3)]
    stacked = {name: torch.tensor([lane[name] for lane in lanes], dtype=torch.float64) for name in extent.gates}
    got = extent.live(stacked)
    for k, lane in enumerate(lanes):
        assert float(got[k] if isinstance(got, Tensor) else got) == pytest.approx(extent.live(lane), rel=1e-14)


def slope(extent: Extent, sizes: dict[str, float], gate: str) -> float:
    at = {name: torch.tensor(float(s), dtype=torch.float64, requires_grad=True) for name, s in sizes.items()}
    (found,) = torch.autograd.grad(extent.live(at), at[gate])
    return float(found)


CHAINS: list[list[Layer]] = [
    [("stride", (0, 0), 1)],
    [("stride", (0, 0), 1), ("stride", (0, 0), 1)],
    [("conv", (3, 0), 1), ("stride", (0, 0), 1), ("conv", (3, 1), 2), ("stride", (0, 0), 1)],
    [("stride", (0, 0), 1), ("conv", (4, 1), 2), ("stride", (0, 0), 1), ("conv", (2, 0), 1), ("stride", (0, 0), 1)],
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chain", range(len(CHAINS)))
def test_its_derivative_is_that_of_finite_differences(chain: int, kind: str) -> None:
    """Piecewise linear in each stride, so that central differences are exact but for rounding over 2e-5."""
    draws = torch.Generator().manual_seed(chain)
    for cells in (31, 32, 40):
        extent = extent_of(cells, CHAINS[chain], kind)
        for _ in range(5):
            sizes = {g: 1 + 2 * float(torch.rand((), generator=draws, dtype=torch.float64)) for g in extent.gates}
            for gate in sizes:
                around = [extent.live({**sizes, gate: sizes[gate] + h}) for h in (1e-5, -1e-5)]
                assert slope(extent, sizes, gate) == pytest.approx((around[0] - around[1]) / 2e-5, rel=1e-9, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chain", range(len(CHAINS)))
def test_at_kinks_its_derivative_is_that_of_a_growing_stride(chain: int, kind: str) -> None:
    """Differences forward, rounding over 1e-6."""
    for cells in range(20, 41):
        extent = extent_of(cells, CHAINS[chain], kind)
        for whole in ((1, 1, 1), (1, 2, 1), (2, 1, 3), (2, 2, 1), (3, 1, 2)):
            sizes = {gate: float(s) for gate, s in zip(extent.gates, whole, strict=False)}
            for gate in sizes:
                forward = (extent.live({**sizes, gate: sizes[gate] + 1e-6}) - extent.live(sizes)) / 1e-6
                assert slope(extent, sizes, gate) == pytest.approx(forward, rel=1e-6, abs=1e-7)


def test_windows_side_by_side_are_one() -> None:
    """Maps that shrank alike compare equal, whichever kernels they went through."""
    s = Moved("s", "shrink")
    assert Extent(9).then(Window(-2), Window(2)) == Extent(9)
    assert Extent(9).then(s, Window(-2), Window(0), Window(-2)) == Extent(9).then(s).then(Window(-4))
    assert Extent(9).then(s, Window(-2)) != Extent(9).then(Window(-2), s)
    assert Extent(9).then(s, Window(1), Moved("t", "resize"), s).gates == ("s", "t")


@pytest.mark.parametrize("cells", range(4, 65))
def test_the_least_spectral_stride_moves_the_map(cells: int) -> None:
    """H / (H - R); there, the number of cells falls already."""
    least, smoothness = least_stride("spectral", cells), smoothness_of(cells)
    assert least == pytest.approx(cells / (cells - smoothness), rel=1e-15)
    assert least_stride("spectral", cells, 2 * cells) == cells
    assert least_stride("shrink", cells) == least_stride("resize", cells) == 1
    if cells > 5:  # of 5 cells, a ramp of one frequency on either side of 3 leaves all
        assert slope(Extent(cells, (Moved("s", "spectral", smoothness),)), {"s": least}, "s") < 0
