"""Dense lanes as functions of their weights and grades, for derivatives through training.

    >>> functions = DenseFunctions(lanes)
    >>> losses_K = functions.losses(weights_T, grades, x_BI, y_BO)
    >>> direction_T = functions.feedback(weights_T, grades, x_BI, y_BO)     # direct feedback alignment

The same arithmetic as `DenseLanes`, out of place and in batched products over all lanes, whose matrices are padded to
the largest where their sizes differ.

Legend of shape suffixes: K lanes, N units of a layer, B batch, I 1 + inputs, O outputs, T the whole flat buffer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from trials.lanes.dense import FUNCTION, DenseLanes
from trials.lanes.layout import Layout


def _gelu_slope(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)


def _silu_slope(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


_SLOPE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda z: (z > 0).to(z),
    "tanh": lambda z: 1 - torch.tanh(z) ** 2,
    "gelu": _gelu_slope,
    "silu": _silu_slope,
}


class DenseFunctions:
    """Lanes as they are laid out now; made anew when they are laid anew."""

    def __init__(self, lanes: DenseLanes) -> None:
        self.lanes = lanes
        self._parts = [Stack(lanes.layout, i) for i in range(lanes.hidden + 1)]
        self._heard = [Stack(heard, 0) for heard in lanes.heard]

    def losses(self, weights_T: Tensor, grades: Sequence[Tensor], x_BI: Tensor, y_BO: Tensor) -> Tensor:
        """Every lane's loss on a batch, [K]; `grades` [K, N] a layer, at least as many as are laid out
        ([K, N, B] where each row has its own)."""
        logits_KOB = self._forward(weights_T, grades, x_BI)[0]
        if self.lanes.shape.loss == "cross_entropy":
            return -(functional.log_softmax(logits_KOB, 1) * y_BO.mT).sum(1).mean(1)
        return 0.5 * (logits_KOB - y_BO.mT).square().sum(1).mean(1)

    def feedback(self, weights_T: Tensor, grades: Sequence[Tensor], x_BI: Tensor, y_BO: Tensor) -> Tensor:
        """The direction of direct feedback alignment in every weight, [T]."""
        logits_KOB, before, after = self._forward(weights_T, grades, x_BI)
        top_KOB = torch.softmax(logits_KOB, 1) if self.lanes.shape.loss == "cross_entropy" else logits_KOB
        top_KOB = (top_KOB - y_BO.mT) / len(y_BO)
        slope, found_T = _SLOPE[self.lanes.shape.activation], torch.zeros_like(weights_T)
        for i, part in enumerate(self._parts):
            delta_KNB = top_KOB
            if i < self.lanes.hidden:
                heard_KNO = self._heard[i].of(self.lanes.feedback[i])
                delta_KNB = torch.matmul(heard_KNO, top_KOB) * slope(before[i]) * self._grade(grades, i)
            read = x_BI if i == 0 else after[i - 1].mT
            found_T = part.scattered(found_T, torch.matmul(delta_KNB, read))
        return found_T

    def _forward(
        self, weights_T: Tensor, grades: Sequence[Tensor], x_BI: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Logits [K, O, B], and of each hidden layer what comes before its activation and what the next layer reads."""
        act, h = FUNCTION[self.lanes.shape.activation], x_BI.mT.expand(self.lanes.lanes, -1, -1)
        before, after = [], []
        for i, part in enumerate(self._parts):
            z_KNB = torch.bmm(part.of(weights_T), h)
            if i < self.lanes.hidden:
                before.append(z_KNB)
                h = functional.pad(act(z_KNB) * self._grade(grades, i), (0, 0, 1, 0), value=1.0)
                after.append(h)
        return z_KNB, before, after

    def _grade(self, grades: Sequence[Tensor], i: int) -> Tensor:
        own = grades[i][:, : self._parts[i].rows]
        return own if own.dim() > 2 else own.unsqueeze(2)


class Stack:
    """One matrix of every lane as a single tensor [K, rows, columns], padded with zeros where lanes differ."""

    def __init__(self, layout: Layout, part: int) -> None:
        shapes = [parts[part] for parts in layout.shapes]
        self.lanes = len(shapes)
        self.rows, self.columns = max(r for r, _ in shapes), max(c for _, c in shapes)
        place_KRC = torch.full((self.lanes, self.rows, self.columns), layout.size)
        for lane, (rows, columns) in enumerate(shapes):
            own = torch.arange(rows * columns).view(rows, columns) + layout.offsets[lane][part]
            place_KRC[lane, :rows, :columns] = own
        offsets = [layout.offsets[lane][part] for lane in range(self.lanes)]
        self._span = offsets[1] - offsets[0] if self.lanes > 1 else self.rows * self.columns
        self._first = offsets[0]
        self._alike = len(set(shapes)) == 1
        self._place_KRC = place_KRC

    def of(self, buffer_T: Tensor) -> Tensor:
        """The matrices in a buffer."""
        if self._alike:
            own_KS = buffer_T[self._first : self._first + self.lanes * self._span].view(self.lanes, self._span)
            return own_KS[:, : self.rows * self.columns].view(self.lanes, self.rows, self.columns)
        return functional.pad(buffer_T, (0, 1))[self._place_KRC.to(buffer_T.device)]

    def scattered(self, buffer_T: Tensor, matrices_KRC: Tensor) -> Tensor:
        """The buffer with these matrices in their places."""
        place_T = self._place_KRC.to(buffer_T.device).flatten()
        return functional.pad(buffer_T, (0, 1)).scatter(0, place_T, matrices_KRC.flatten())[:-1]
