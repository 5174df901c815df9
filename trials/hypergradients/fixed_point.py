"""Integers that a ratio multiplies without losing a bit (Maclaurin, Duvenaud, Adams 2015, algorithm 3).

    >>> tape = Tape(torch.tensor([0.9]))
    >>> c_T = tape.times(torch.tensor([12345]))        # 11111: less than 9 from 0.9 times it
    >>> tape.undo(c_T)                                 # 12345

Multiplying c by n/d < 1 leaves fewer integers than there were: c mod d is lost. It goes into a number that each place
holds, as a digit in base d, and a digit in base n is taken from there to fill the room that the product leaves. What
is held grows by log2(d/n) bits a step. Where it could outgrow its 63 bits, its lower 32 go on a stack. When that is
depends on the ratio and the count of steps, never on data or on the other places.

Numbers are multiples of 2**-44, below 2**17 in size. A product is off by less than n of those, and n is at most 2**14:
by less than 1e-9. A factor is met to about 3e-9 (up to 0.9999, at worst to 6e-5 of what it is from 1). One below
2**-24, such as 0, is taken for 2**-24: 0 would lose all of a number; this loses 24 bits of it, all of which are kept,
and differs from 0 by less than float32 sees.

Legend of shape suffixes: T the flat buffer.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

FRACTION = 44
UNIT = 2.0**-FRACTION
LIMIT = 2**61  # so that a sum of two of them, and of what a product is off by, is an int64
SMALLEST = 2.0**-24
NUMERATOR = 2**14
WORD = 32
HELD = 2**63 - 1


def quantised(units_T: Tensor, lost_T: Tensor) -> Tensor:
    """The nearest integers of float64 numbers, which are overwritten. One that is not finite or out of range is 0, and
    `lost_T` is told, in place."""
    out_T = ~((units_T >= -LIMIT) & (units_T <= LIMIT))
    lost_T |= out_T
    return units_T.masked_fill_(out_T, 0.0).round_().long()


def bounded(integers_T: Tensor, lost_T: Tensor) -> Tensor:
    """The same integers, where they lie; those out of range become 0, and `lost_T` is told, in place."""
    out_T = (integers_T < -LIMIT) | (integers_T > LIMIT)
    lost_T |= out_T
    return integers_T.masked_fill_(out_T, 0)


def ratio(beta: float) -> tuple[int, int]:
    """(n, d) with n/d close to a factor in [0, 1]: n is small, for the product is off by up to n units."""
    beta = max(beta, SMALLEST)
    nearest = (1 / Fraction(beta)).limit_denominator(max(1, min(NUMERATOR, int(beta / SMALLEST))))
    return nearest.denominator, nearest.numerator


class Tape:
    """What multiplications by fixed factors, one a place, have lost so far.

    Args:
        beta_T: the factors, in [0, 1].
    """

    def __init__(self, beta_T: Tensor) -> None:
        values, which_T = torch.unique(beta_T.double(), return_inverse=True)
        self.ratios = [ratio(value) for value in values.tolist()]
        parts = [torch.tensor(part).to(beta_T.device) for part in zip(*self.ratios, strict=True)]
        # where all places are alike, of no dimension
        self._n_T, self._d_T = (part[0] if len(part) == 1 else part[which_T] for part in parts)
        self._places: list[Tensor | slice] = [slice(None)]
        if len(self.ratios) > 1:
            self._places = [(which_T == r).nonzero().squeeze(1) for r in range(len(self.ratios))]
        self._counts: list[int] = torch.bincount(which_T, minlength=len(self.ratios)).tolist()
        self._greatest = [0] * len(self.ratios)  # what the places of a ratio may hold
        self._held_T = torch.zeros_like(which_T)
        self._steps = 0
        self._stack: list[tuple[int, int, int, Tensor]] = []  # (step, ratio, greatest before, words)

    @property
    def beta_T(self) -> Tensor:
        """The factors as they are met, float64."""
        return self._n_T.double() / self._d_T

    @property
    def bits(self) -> int:
        """The size of all that is remembered."""
        return 8 * (self._held_T.nbytes + sum(words.nbytes for *_, words in self._stack))

    @property
    def information(self) -> float:
        """-log2 of the factors, summed over the places: what one step has to remember."""
        each = zip(self.ratios, self._counts, strict=True)
        return sum((math.log2(d / n) * count for (n, d), count in each), 0.0)

    def times(self, c_T: Tensor) -> Tensor:
        """c n/d, less than n away from it."""
        for r, (n, d) in enumerate(self.ratios):
            if (self._greatest[r] + 1) * d - 1 > HELD:
                self._push(r)
            self._greatest[r] = ((self._greatest[r] + 1) * d - 1) // n
        self._steps += 1
        return self._exchanged(c_T, self._d_T, self._n_T)

    def undo(self, c_T: Tensor) -> Tensor:
        """What the last product not yet undone was of."""
        c_T = self._exchanged(c_T, self._n_T, self._d_T)
        self._steps -= 1
        while self._stack and self._stack[-1][0] == self._steps:
            self._pop()
        return c_T

    def _exchanged(self, c_T: Tensor, of_T: Tensor, to_T: Tensor) -> Tensor:
        """One digit in base `of` goes from c to what is held, one in base `to` comes back."""
        # in place: buffers that live at once are what reversing takes memory for, and writing them most of its time
        quotient_T = c_T.div(of_T, rounding_mode="floor")
        held_T = self._held_T.mul_(of_T).add_(torch.addcmul(c_T, quotient_T, of_T, value=-1))
        self._held_T = held_T.div(to_T, rounding_mode="floor")
        return quotient_T.mul_(to_T).add_(held_T.addcmul_(self._held_T, to_T, value=-1))

    def _push(self, r: int) -> None:
        held = self._held_T[self._places[r]]
        high = held >> WORD
        words = (held - (high << WORD) - 2 ** (WORD - 1)).int()
        self._stack.append((self._steps, r, self._greatest[r], words))
        self._held_T[self._places[r]] = high
        self._greatest[r] >>= WORD

    def _pop(self) -> None:
        _, r, self._greatest[r], words = self._stack.pop()
        self._held_T[self._places[r]] = (self._held_T[self._places[r]] << WORD) + (words.long() + 2 ** (WORD - 1))
