"""A map that shrinks in place: equal to torch's strided layers, to its resizing and to its Fourier transform at whole
strides, and differentiable between them.

Legend of shape suffixes: I cells before, O cells after, F frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.func import functional_call, vmap
from torch.nn import functional

from search_spaces.extent import KINDS, Extent, Moved
from search_spaces.stride import Stride, cell_grades, cubic, linear, resampling, spectral, spectral_mask

SIDES = range(5, 14)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def number(s: float) -> Tensor:
    return torch.tensor(s, dtype=torch.float64)


def irregular(count: int, low: float, high: float, seed: int = 0) -> list[float]:
    """Random strides, none of them whole."""
    draws = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (low + (high - low) * draws).tolist()


def slopes(f: Callable[[Tensor], Tensor], s: float) -> Tensor:
    """The derivative of each number that f gives."""
    found: Tensor = jacobian(f, number(s))  # type: ignore[no-untyped-call]
    return found


def strided(kind: str, s: float, **options: Any) -> Stride:
    stride = Stride("s", kind, **options).double()
    stride.gate.set(s)  # type: ignore[operator]
    return stride


# -- shrink ------------------------------------------------------------------------------------------------------------

Layer = Callable[[Tensor, int], Tensor]
LAYERS: dict[str, tuple[int, Layer]] = {
    "conv1d": (1, lambda x, s: functional.conv1d(x, normal(4, 3, 3, seed=1), stride=s, padding=1)),
    "conv1d unpadded": (1, lambda x, s: functional.conv1d(x, normal(4, 3, 4, seed=1), stride=s)),
    "conv2d": (2, lambda x, s: functional.conv2d(x, normal(4, 3, 3, 3, seed=1), normal(4), stride=s, padding=1)),
    "conv2d dilated": (2, lambda x, s: functional.conv2d(x, normal(4, 3, 3, 3, seed=1), stride=s, dilation=2)),
    "depthwise": (2, lambda x, s: functional.conv2d(x, normal(3, 1, 3, 3, seed=1), stride=s, padding=1, groups=3)),
    "max_pool1d": (1, lambda x, s: functional.max_pool1d(x, 3, s, 1)),
    "max_pool2d": (2, lambda x, s: functional.max_pool2d(x, 2, s)),
    "avg_pool2d": (2, lambda x, s: functional.avg_pool2d(x, 3, s, 1)),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("layer", list(LAYERS))
def test_shrink_is_the_strided_layer_at_every_whole_stride(layer: str, side: int) -> None:
    """Whether or not it divides the side; what lies beyond the small map is zero."""
    axes, apply = LAYERS[layer]
    x = normal(2, 3, *(side,) * axes)
    for s in range(1, side + 1):
        want, got = apply(x, s), strided("shrink", s)(apply(x, 1))
        small = tuple(slice(n) for n in want.shape)
        torch.testing.assert_close(got[small], want, rtol=0, atol=1e-14)
        got[small] = 0
        assert not got.any()


@pytest.mark.parametrize("side", SIDES)
def test_the_derivative_of_shrink_by_hand(side: int) -> None:
    """dy_i/ds = i (x_{floor(s i) + 1} - x_{floor(s i)}); at whole strides that of a growing one."""
    x_I = normal(side + 1, seed=side)
    x_I[-1] = 0  # what lies beyond the map

    def y_O(s: Tensor) -> Tensor:
        return linear(s, side, side) @ x_I[:side]

    for s in [*irregular(8, 1, side, seed=side), *map(float, range(1, side + 1))]:
        slope_O = slopes(y_O, s)
        for i in range(side):
            low = math.floor(s * i)
            want = i * (x_I[min(low + 1, side)] - x_I[min(low, side)])
            assert float(slope_O[i]) == pytest.approx(float(want), abs=1e-13)
        h = 1e-7  # piecewise linear in s: only rounding is left
        behind = s if s == int(s) else s - h
        torch.testing.assert_close(
            (y_O(number(s + h)) - y_O(number(behind))) / (s + h - behind), slope_O, rtol=0, atol=1e-6
        )


# -- spectral ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cells", "smoothness"), [(16, 1), (32, 4), (33, 3), (64, 8)])
def test_the_derivative_of_the_mask_by_hand(cells: int, smoothness: int) -> None:
    """dmask/dS = -W / (2 S^2 R) on the ramp and 0 off it (Riad et al. 2022)."""
    f_F = torch.arange(cells // 2 + 1, dtype=torch.float64)
    for s in irregular(10, 1.2, 6, seed=cells):
        mask_F = spectral_mask(f_F, cells, number(s), smoothness)
        slope_F = slopes(lambda s: spectral_mask(f_F, cells, s, smoothness), s)
        raw_F = (smoothness + cells / (2 * s) + 1 - f_F) / smoothness
        ramp_F = (raw_F > 0) & (raw_F < 1)
        torch.testing.assert_close(mask_F, raw_F.clamp(0, 1), rtol=0, atol=1e-15)
        want_F = torch.where(ramp_F, number(-cells / (2 * s**2 * smoothness)), number(0.0))
        torch.testing.assert_close(slope_F, want_F, rtol=1e-14, atol=0)
    assert torch.equal(spectral_mask(f_F, cells, number(1.0), smoothness), torch.ones_like(f_F))


def fourier(x: Tensor, dim: int, s: float, smoothness: int, cells: int) -> Tensor:
    """torch's transform of one axis, the mask, a crop, and the inverse on a grid of so many cells."""
    inputs = x.shape[dim]
    spectrum = torch.fft.rfft(x.movedim(dim, -1))
    f_F = torch.arange(spectrum.shape[-1], dtype=torch.float64)
    mask_F = ((smoothness + inputs / (2 * s) + 1 - f_F) / smoothness).clamp(0, 1)
    cropped = (spectrum * mask_F)[..., : cells // 2 + 1]
    return (torch.fft.irfft(cropped, n=cells) * cells / inputs).movedim(-1, dim)


@pytest.mark.parametrize("smoothness", [1, 2, 3])
@pytest.mark.parametrize("side", SIDES)
def test_spectral_is_a_masked_and_cropped_fourier_transform(side: int, smoothness: int) -> None:
    """Of even and odd sizes, to even and odd sizes; on each axis of a map."""
    x = normal(2, 3, side, side + 1, seed=side)
    for s in (1, 2, 3, 4):
        rows, columns = (min(n, math.ceil(n / s) + 2 * smoothness) for n in (side, side + 1))
        want = fourier(fourier(x, 2, s, smoothness, rows), 3, s, smoothness, columns)
        got = strided("spectral", s, smoothness=smoothness)(x)
        torch.testing.assert_close(got[..., :rows, :columns], want, rtol=0, atol=1e-13)
        got[..., :rows, :columns] = 0
        assert not got.any()


def test_a_band_limited_signal_is_the_same_on_every_grid_that_holds_it() -> None:
    """Between whole strides, too: what the mask passes is only sampled elsewhere."""
    for s, n_out in ((1.3, 12.6), (1.7, 11.2), (2.4, 10.5)):
        matrix_OI = spectral(number(16.0), number(n_out), number(s), 1, 16, 16, number(0.0))
        for f in range(3):
            at = 2 * math.pi * f * torch.arange(16, dtype=torch.float64)
            torch.testing.assert_close(matrix_OI @ (at / 16).cos(), (at / n_out).cos(), rtol=0, atol=1e-13)
            torch.testing.assert_close(matrix_OI @ (at / 16).sin(), (at / n_out).sin(), rtol=0, atol=1e-13)


# -- resize ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
def test_resize_is_torchs_antialiased_cubic(side: int) -> None:
    x = normal(2, 3, side, side + 2, seed=side)
    for s in range(1, side + 1):
        size = (math.ceil(side / s), math.ceil((side + 2) / s))
        want = functional.interpolate(x, size, mode="bicubic", antialias=True)
        got = strided("resize", s)(x)
        torch.testing.assert_close(got[..., : size[0], : size[1]], want, rtol=0, atol=1e-13)
        got[..., : size[0], : size[1]] = 0
        assert not got.any()


@pytest.mark.parametrize("cells", [11, 12, 24])
def test_a_whole_stride_is_a_kink_of_shrink_but_not_of_resize(cells: int) -> None:
    """Resized cells depend on s through n_out(s) alone, smoothly: their derivatives on either side of a whole stride
    are the same but for n_out's own pace. Those of shrink point anywhere. The last cell, which is about to go, has
    a kink wherever n_out is whole."""
    x_I, whole = normal(cells, seed=cells), Extent(cells, (Moved("s", "shrink"),))

    def resized(s: Tensor) -> Tensor:
        return cubic(float(cells), whole.live({"s": s}), cells, cells, s) @ x_I

    def shrunk(s: Tensor) -> Tensor:
        return linear(s, cells, cells) @ x_I

    for s in (2, 3):
        inner = slice(1, math.ceil(cells / s) - 1)
        sides = (s - 1e-10, float(s))
        paces = [slopes(lambda s: whole.live({"s": s}), side) for side in sides]
        left, right = (slopes(resized, side)[inner] / pace for side, pace in zip(sides, paces, strict=True))
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-8)  # 1e-10 apart, and curved
        left, right = (slopes(shrunk, side)[inner] for side in sides)
        assert (left - right).abs().min() > 1e-3


# -- all kinds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 12), (2, 3, 9, 12)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_derivative_by_a_stride_is_that_of_finite_differences(kind: str, shape: tuple[int, ...]) -> None:
    """Central differences at 1e-5: their error is of order 1e-10, and rounding's 1e-11."""
    x, weights = normal(*shape), normal(*shape, seed=1)
    for s in irregular(12, 1, 9):
        stride = strided(kind, s)
        (slope,) = torch.autograd.grad((stride(x) * weights).sum(), stride.gate.n)  # type: ignore[arg-type]
        around = [(strided(kind, s + h)(x) * weights).sum().item() for h in (1e-5, -1e-5)]
        assert float(slope) == pytest.approx((around[0] - around[1]) / 2e-5, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", SIDES)
def test_a_map_never_jumps(side: int, kind: str) -> None:
    """Neither where a cell goes, nor at whole strides; by how much it moves in 1e-9 no more than its slope allows."""
    x, extent = normal(1, 1, side, side, seed=side), Extent(side, (strided(kind, 1.0).step(side),))
    gone = [2.0]  # and the strides at which there are n cells
    for n in range(1, side):
        low, high = 1.0, float(side)
        if extent.live({"s": high}) < n:
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (middle, high) if extent.live({"s": middle}) > n else (low, middle)
            gone.append(high)
    assert len(gone) > 1
    for s in [*gone, *map(float, range(2, side))]:
        before, after = (strided(kind, s + h)(x).detach() for h in (-5e-10, 5e-10))
        assert (after - before).abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3, 8), (2, 3, 9, 6)])
def test_a_stride_of_one_changes_nothing(kind: str, shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    torch.testing.assert_close(strided(kind, 1.0)(x), x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_lanes_are_the_loop(kind: str) -> None:
    """Of many strides at once, whole and not, with their derivatives."""
    x, stride = normal(2, 3, 9, 8), strided(kind, 1.0)

    def loss(s: Tensor) -> Tensor:
        return functional_call(stride, {"gate.n": s}, (x,)).square().sum()

    s_K = torch.tensor([1.0, 1.37, 2.0, 2.91, 4.0, 6.5, 9.0], dtype=torch.float64)
    fused_K, slopes_K = vmap(torch.func.grad_and_value(loss))(s_K)[::-1]
    for k, s in enumerate(s_K.tolist()):
        one = strided(kind, s)
        out = one(x).square().sum()
        assert fused_K[k].item() == pytest.approx(out.item(), rel=1e-13)
        (slope,) = torch.autograd.grad(out, one.gate.n)  # type: ignore[arg-type]
        assert float(slopes_K[k]) == pytest.approx(float(slope), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_stays_finite_down_to_one_cell(kind: str) -> None:
    """In a chain, whatever of it is left: values within a small factor of what goes in, and finite derivatives."""
    step = Moved("s", kind, 1 if kind == "spectral" else 0)
    for s in [*irregular(40, 1, 13), *map(float, range(1, 14))]:
        at = torch.tensor(s, requires_grad=True)
        x_I, extent = torch.ones(13), Extent(13)
        for _ in range(4):
            matrix_OI = resampling(step, extent, {"s": at}, 13, 13, x_I)
            x_I = matrix_OI @ (x_I * cell_grades(extent.live({"s": at}), 13, x_I))
            extent = extent.then(step)
        live_I = x_I * cell_grades(extent.live({"s": at}), 13, x_I)
        (slope,) = torch.autograd.grad(live_I.sum(), at)
        assert live_I.isfinite().all()
        assert live_I.abs().max() < 2
        assert slope.isfinite()


@pytest.mark.parametrize("side", SIDES)
def test_resized_cells_are_means_however_little_there_is_of_them(side: int) -> None:
    """Weights that sum to 1 over live cells, none of them large: no sum near zero was divided by."""
    for s in irregular(60, 1, side, seed=side):
        for live_in in (float(side), side - 0.7, side - 0.02):
            live_out = Extent(side, (Moved("s", "resize"),)).live({"s": s}) * live_in / side
            weight_OI = cubic(number(live_in), number(live_out), side, side, number(0.0))
            seen_OI = weight_OI[: math.ceil(live_out)] * cell_grades(live_in, side, weight_OI)
            torch.testing.assert_close(seen_OI.sum(1), torch.ones(len(seen_OI)).double(), rtol=0, atol=1e-13)
            assert seen_OI.abs().sum(1).max() < 1.7


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_is_no_stride_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown kind 'linear'; known: shrink, resize, spectral"):
        Stride("s", "linear")
    with pytest.raises(ValueError, match="smoothness must be at least 1 frequency, but got 0"):
        Stride("s", "spectral", smoothness=0)
    for shape in ((2, 3), (2, 3, 4, 4, 4)):
        with pytest.raises(ValueError, match="must follow a map"):
            strided("shrink", 1.0)(normal(*shape))
    assert str(nn.Sequential(Stride("s", "resize"))[0]).startswith("Stride(\n  's', resize")
