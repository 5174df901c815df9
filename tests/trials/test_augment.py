"""Images as they vary: against a loop over rows, lane by lane the same as alone, and noise of nothing but its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trials.augment import augment_noise, augmented
from trials.noise import bits, fold, uniform
from trials.tasks import Augment


def by_hand(image: np.ndarray, noise: list[float], augment: Augment) -> np.ndarray:
    """One image [C, H, W], pixel by pixel."""
    _, height, width = image.shape
    if augment.flip and noise[0] < 0.5:
        image = image[:, :, ::-1]
    down, right = (int(u * (2 * augment.shift + 1)) - augment.shift for u in noise[1:])
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                out[:, y, x] = image[:, y - down, x - right]
    return out


def batch(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@given(st.integers(0, 99), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.booleans(), st.integers(0, 3))
def test_each_image_moves_as_by_hand(seed: int, channels: int, height: int, width: int, flip: bool, shift: int) -> None:
    augment = Augment(flip=flip, shift=shift)
    x = batch(9, channels, height, width)
    noise = augment_noise(seed, 1, 0, 0, 9)
    before = x.clone()
    found = augmented(x, noise, augment)
    expected = np.stack([by_hand(x[i].numpy(), noise[i].double().tolist(), augment) for i in range(9)])
    np.testing.assert_array_equal(found, expected)
    assert torch.equal(x, before)


def test_the_ends_of_the_noise_are_the_farthest_moves() -> None:
    x = torch.arange(1.0, 26.0).view(1, 1, 5, 5)
    last = 1 - 2.0**-24
    for shift in range(3):
        for low in (True, False):
            noise = torch.tensor([[last, 0.0, 0.0] if low else [last, last, last]])
            moved = augmented(x, noise, Augment(flip=True, shift=shift))[0, 0]
            kept = moved[: 5 - shift, : 5 - shift] if low else moved[shift:, shift:]
            assert torch.equal(kept, x[0, 0, shift:, shift:] if low else x[0, 0, : 5 - shift, : 5 - shift])
            assert int((moved == 0).sum()) == 25 - (5 - shift) ** 2
    assert torch.equal(augmented(x, torch.zeros(1, 3), Augment(flip=True)), x.flip(-1))
    assert torch.equal(augmented(x, torch.zeros(1, 3), Augment()), x)


def test_lanes_stacked_are_bitwise_the_lanes_alone() -> None:
    augment = Augment(flip=True, shift=2)
    x_BCHW = batch(16, 3, 8, 6)
    noise_KB3 = torch.stack([augment_noise(0, number, 0, 5, 16) for number in range(4)])
    together = augmented(x_BCHW.expand(4, *x_BCHW.shape), noise_KB3, augment)
    assert together.shape == (4, 16, 3, 8, 6)
    assert together.is_contiguous()
    for lane in range(4):
        assert torch.equal(together[lane], augmented(x_BCHW, noise_KB3[lane], augment))


def test_a_rows_noise_is_that_of_its_place_alone() -> None:
    whole = augment_noise(3, 17, 1, 40, 32)
    assert torch.equal(augment_noise(3, 17, 1, 40, 5), whole[:5])
    others = [(4, 17, 1, 40), (3, 18, 1, 40), (3, 17, 0, 40), (3, 17, 1, 41)]
    assert all(not torch.equal(augment_noise(*other, 32), whole) for other in others)


def test_flips_and_moves_are_even() -> None:
    noise = augment_noise(0, 0, 0, 0, 60_000).double()
    assert abs((noise[:, 0] < 0.5).double().mean().item() - 0.5) < 0.01
    moves = torch.bincount((noise[:, 1] * 5).long() * 5 + (noise[:, 2] * 5).long(), minlength=25)
    assert (moves - 2400).abs().max() < 250


@given(st.integers(0, 2**64 - 1), st.integers(1, 5), st.integers(1, 5))
def test_uniform_numbers_are_the_bits_upper_ones(key: int, rows: int, columns: int) -> None:
    found = uniform(key, rows, columns)
    expected = [[(z % 2**64 >> 40) / 2**24 for z in line] for line in bits(key, rows, columns).tolist()]
    assert found.dtype == torch.float32
    assert found.tolist() == expected


def test_uniform_numbers_spread_over_0_to_1() -> None:
    x = uniform(fold(0, "augment", 0), 1000, 300).double()
    assert x.min() >= 0
    assert x.max() < 1
    assert x.mean().item() == pytest.approx(0.5, abs=0.003)
    assert x.var().item() == pytest.approx(1 / 12, abs=0.001)
