"""Random numbers as a function of what they are for, not of when they are drawn.

    >>> key = fold(0, "init", 17, 0, 2)        # search seed, purpose, trial number, replicate, layer
    >>> normal(key, 8, 4)                      # [8, 4]
    >>> normal(key, 16, 9)[:8, :4]             # the same numbers: nested by prefix

Each number is the SplitMix64 hash (Steele, Lea, Flood 2014) of its key and its place (row, column), so a wider layer
begins with the narrower one's weights, and a trial's numbers do not depend on its bundle, its device or its worker.
Importing this module loads no torch: keys, and the order of the data, do without.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1
_AT_ONCE = 1 << 22  # numbers that are drawn at a time, so that what is made on the way stays small


def fold(seed: int, purpose: str, *numbers: int) -> int:
    """A 64-bit key from a seed, a purpose and any whole numbers."""
    text = f"{seed}/{purpose}/{'/'.join(map(str, numbers))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def bits(key: int, rows: int, columns: int, device: torch.device | str = "cpu") -> Tensor:
    """The 64 random bits at each place, int64 [rows, columns]."""
    import torch

    row = torch.arange(rows, dtype=torch.int64, device=device).unsqueeze(1) << 32
    place = row + torch.arange(1, columns + 1, dtype=torch.int64, device=device)
    return _mixed(place.mul_(_signed(_GAMMA)).add_(_signed(key)))


def normal(key: int, rows: int, columns: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal numbers, float32 [rows, columns] (Box-Muller on the two halves of the bits)."""
    return _normal(bits(key, rows, columns, device))


def normals(keys: Sequence[int], rows: int, columns: int, device: torch.device | str = "cpu") -> Tensor:
    """The same for many keys at once, [K, rows, columns]: a GPU takes no longer for many than for one."""
    import torch

    row = torch.arange(rows, dtype=torch.int64, device=device).unsqueeze(1) << 32
    place = (row + torch.arange(1, columns + 1, dtype=torch.int64, device=device)).mul_(_signed(_GAMMA))
    found = torch.empty(len(keys), rows, columns, device=device)
    key_K11 = torch.tensor([_signed(key) for key in keys], dtype=torch.int64, device=device).view(-1, 1, 1)
    some = max(1, _AT_ONCE // max(1, rows * columns))
    for own, key_S11 in zip(torch.split(found, some), torch.split(key_K11, some), strict=True):
        own.copy_(_normal(_mixed(place + key_S11)))
    return found


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)).mul_(_signed(_MIX1))
    z = (z ^ _shifted(z, 27)).mul_(_signed(_MIX2))
    return z ^ _shifted(z, 31)


def _normal(z: Tensor) -> Tensor:
    radius = _shifted(z, 32).double().add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = (z & 0xFFFFFFFF).double().mul_(2.0**-31 * math.pi)
    return radius.mul_(angle.cos_()).float()


def uniform(key: int, rows: int, columns: int, device: torch.device | str = "cpu") -> Tensor:
    """Numbers spread evenly over [0, 1), float32 [rows, columns]."""
    return (_shifted(bits(key, rows, columns, device), 40) & 0xFFFFFF).float().mul_(2.0**-24)


def data_order(seed: int, rows: int, batch: int, steps: int, purpose: str = "order") -> np.ndarray:
    """The rows of every step's batch, int64 [steps, batch]: a function of (seed, purpose, step) alone.

    Whole permutations follow each other without a gap, so the last partial batch of an epoch wraps into the next.
    """
    epochs = -(-steps * batch // rows)
    stream = np.concatenate(
        [np.random.Generator(np.random.PCG64(fold(seed, purpose, epoch))).permutation(rows) for epoch in range(epochs)]
    )
    return stream[: steps * batch].reshape(steps, batch)


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shifted(z: Tensor, by: int) -> Tensor:
    """Logical shift to the right: int64's own shift drags the sign along."""
    return (z >> by) & ((1 << (64 - by)) - 1)
