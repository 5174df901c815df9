"""Dense lanes as functions of their weights and grades, for derivatives through training.

    >>> functions = DenseFunctions(lanes)
    >>> losses_K = functions.losses(weights_T, grades, x_BI, y_BO)
    >>> direction_T = functions.feedback(weights_T, grades, x_BI, y_BO)     # direct feedback alignment

The same arithmetic as `DenseLanes`, out of place: each lane's products run at its own sizes, everything elementwise
once over the rows of all lanes. A lane has as many rows as fill whole vectors, so that its neighbours never decide by
which of torch's kernels a number of its own is made: it is bitwise the same in any company here too.

Legend of shape suffixes: K lanes, N units of a layer, R rows of all lanes, B batch, I 1 + inputs, O outputs, T the
whole flat buffer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from trials.lanes.dense import FUNCTION, DenseLanes
from trials.lanes.layout import ALIGNMENT, Layout


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
    """Lanes as they are laid out now; made anew when they are laid anew. `alike`: all lanes of a search are laid out
    for the same sizes, in whatever bundle, so that batched products may serve them."""

    def __init__(self, lanes: DenseLanes, *, alike: bool = False) -> None:
        self.lanes = lanes
        self.alike = alike and lanes.shape.learner == "backprop"

    def losses(self, weights_T: Tensor, grades: Sequence[Tensor], x_BI: Tensor, y_BO: Tensor) -> Tensor:
        """Every lane's loss on a batch, or on its own of [K, B, I] and [K, B, O]: [K]; `grades` [K, N] a layer, at
        least as many as are laid out ([K, N, B] where each row has its own)."""
        return _losses(self.lanes.shape.loss, self._forward(weights_T, grades, x_BI)[0], y_BO)

    def feedback(self, weights_T: Tensor, grades: Sequence[Tensor], x_BI: Tensor, y_BO: Tensor) -> Tensor:
        """The direction of direct feedback alignment in every weight, [T]."""
        logits_KOB, before, after = self._forward(weights_T, grades, x_BI)
        top = list(_errors(self.lanes.shape.loss, logits_KOB, y_BO).unbind(0))
        slope, found = _SLOPE[self.lanes.shape.activation], list[Tensor]()
        for i in range(self.lanes.hidden + 1):
            deltas = top
            if i < self.lanes.hidden:
                rows = self._rows(i, y_BO.shape[-2])
                (heard,) = _matrices(self.lanes.heard[i], self.lanes.feedback[i])
                delta_RB = rows.joined([b_NO @ e_OB for b_NO, e_OB in zip(heard, top, strict=True)])
                delta_RB = delta_RB * slope(before[i]) * rows.grades(grades[i])
                deltas = [lane[1:] for lane in rows.split(delta_RB)]
            reads = list(x_BI.mT.expand(len(deltas), -1, -1)) if i == 0 else after[i - 1]
            found += [torch.mm(delta_NB, h.mT) for delta_NB, h in zip(deltas, reads, strict=True)]
        spans = _spans(self.lanes.layout)
        flat = [functional.pad(m.flatten(), (0, span - m.numel())) for m, span in zip(found, spans, strict=True)]
        return torch.cat(flat)

    def _forward(
        self, weights_T: Tensor, grades: Sequence[Tensor], x_BI: Tensor
    ) -> tuple[Tensor, list[Tensor], list[list[Tensor]]]:
        """Logits [K, O, B]; of each hidden layer what comes before its activation, [R, B], and what the next layer of
        each lane reads, [1 + N, B]."""
        act, reads = FUNCTION[self.lanes.shape.activation], list(x_BI.mT.expand(self.lanes.lanes, -1, -1))
        if self.alike:
            return self._together(weights_T, grades, x_BI), [], []
        before, after = [], []
        for i, matrices in enumerate(_matrices(self.lanes.layout, weights_T)):
            z = [torch.mm(w, h) for w, h in zip(matrices, reads, strict=True)]
            if i < self.lanes.hidden:
                rows = self._rows(i, x_BI.shape[-2])
                before.append(rows.joined(z))
                reads = rows.split(torch.addcmul(rows.ones_R1.to(x_BI), act(before[i]), rows.grades(grades[i])))
                after.append(reads)
        return torch.stack(z), before, after

    def _together(self, weights_T: Tensor, grades: Sequence[Tensor], x_BI: Tensor) -> Tensor:
        """Logits [K, O, B] of lanes that are laid out alike."""
        act, lanes, batch = FUNCTION[self.lanes.shape.activation], self.lanes.lanes, x_BI.shape[-2]
        h_KIB = x_BI.mT.expand(lanes, -1, -1)
        for i, matrices in enumerate(_stacks(self.lanes.layout, weights_T)):
            z_KNB = _batched(matrices, h_KIB)
            if i < self.lanes.hidden:
                rows, units = self._rows(i, batch), z_KNB.shape[1]
                z_RB = functional.pad(z_KNB, (0, 0, 1, rows.rests[0])).flatten(0, 1)
                h_RB = torch.addcmul(rows.ones_R1.to(x_BI), act(z_RB), rows.grades(grades[i]))
                h_KIB = h_RB.view(lanes, -1, batch)[:, : 1 + units]
        return z_KNB

    def _rows(self, i: int, batch: int) -> Rows:
        return _laid(tuple(lane[i] for lane in self.lanes.sizes), batch)


class GroupedFunctions:
    """The same of grouped lanes, as they are laid out now: batched products over everybody's room."""

    def __init__(self, lanes: DenseLanes) -> None:
        self.lanes = lanes

    def losses(self, weights_T: Tensor, grades: Sequence[Tensor], x_BI: Tensor, y_BO: Tensor) -> Tensor:
        """As `DenseFunctions.losses`."""
        return _losses(self.lanes.shape.loss, self._forward(weights_T, grades, x_BI)[0], y_BO)

    def feedback(self, weights_T: Tensor, grades: Sequence[Tensor], x_BI: Tensor, y_BO: Tensor) -> Tensor:
        """As `DenseFunctions.feedback`."""
        lanes = self.lanes
        logits_KOB, before, reads = self._forward(weights_T, grades, x_BI)
        top_KOB, slope = _errors(lanes.shape.loss, logits_KOB, y_BO), _SLOPE[lanes.shape.activation]
        deltas = [
            torch.bmm(heard.stack(buffer_T, 0), top_KOB) * slope(z_KNB) * self._own(i, grades)
            for i, (heard, buffer_T, z_KNB) in enumerate(zip(lanes.heard, lanes.feedback, before, strict=True))
        ]
        found = [torch.bmm(d, h.mT).flatten() for d, h in zip([*deltas, top_KOB], reads, strict=True)]
        return torch.cat(found)

    def _forward(
        self, weights_T: Tensor, grades: Sequence[Tensor], x_BI: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Logits [K, O, B]; of each hidden layer what comes before its activation, [K, N, B]; of each layer what it
        reads, [K, 1 + N, B]."""
        lanes = self.lanes
        act, before = FUNCTION[lanes.shape.activation], list[Tensor]()
        reads = [x_BI.mT.expand(lanes.lanes, -1, -1)]
        spans = [lanes.lanes * rows * columns for rows, columns in lanes.layout.room]
        for i, own_T in enumerate(torch.split(weights_T, spans)):
            z_KNB = torch.bmm(own_T.view(lanes.lanes, *lanes.layout.room[i]), reads[i])
            if i < lanes.hidden:
                before.append(z_KNB)
                reads.append(functional.pad(act(z_KNB) * self._own(i, grades), (0, 0, 1, 0), value=1.0))
        return z_KNB, before, reads

    def _own(self, i: int, grades: Sequence[Tensor]) -> Tensor:
        """The grades of the units of a layer that there is room for, [K, N, 1] or [K, N, B]."""
        own = grades[i][:, : self.lanes.room[i]]
        return own if own.dim() > 2 else own.unsqueeze(2)


def _losses(loss: str, logits_KOB: Tensor, y_BO: Tensor) -> Tensor:
    if loss == "cross_entropy":
        return -(functional.log_softmax(logits_KOB, 1) * y_BO.mT).sum(1).mean(1)
    return 0.5 * (logits_KOB - y_BO.mT).square().sum(1).mean(1)


def _errors(loss: str, logits_KOB: Tensor, y_BO: Tensor) -> Tensor:
    """d(lane loss)/d(logits), [K, O, B]."""
    outputs_KOB = torch.softmax(logits_KOB, 1) if loss == "cross_entropy" else logits_KOB
    return (outputs_KOB - y_BO.mT) / y_BO.shape[-2]


class Rows:
    """The units of a layer of all lanes as rows of one tensor: a lane's are its row of ones, its units, and a rest."""

    def __init__(self, sizes: Sequence[int], batch: int) -> None:
        unit = ALIGNMENT // math.gcd(ALIGNMENT, batch)  # so many rows are a multiple of what a kernel takes at a time
        self.parts = [part for n in sizes for part in (1 + n, -(1 + n) % unit)]
        self.rests = self.parts[1::2]
        self.batch, total = batch, sum(self.parts)
        self.ones_R1 = torch.zeros(total, 1)
        self._lane_R, self._unit_R = (torch.zeros(total, dtype=torch.int64) for _ in range(2))
        self._real_R = torch.zeros(total, dtype=torch.bool)
        first = 0
        for k, (n, rest) in enumerate(zip(sizes, self.rests, strict=True)):
            self.ones_R1[first] = 1.0
            own = slice(first + 1, first + 1 + n)
            self._lane_R[own], self._unit_R[own], self._real_R[own] = k, torch.arange(n), True
            first += 1 + n + rest

    def joined(self, units: Sequence[Tensor]) -> Tensor:
        """Each lane's [N, B] in its rows, [R, B]; 0 in the others."""
        like, found, gap = units[0], list[Tensor](), 1
        for z_NB, rest in zip(units, self.rests, strict=True):
            found += [like.new_zeros(gap, self.batch), z_NB]
            gap = rest + 1
        return torch.cat([*found, like.new_zeros(gap - 1, self.batch)])

    def split(self, h_RB: Tensor) -> list[Tensor]:
        """Each lane's row of ones and units, [1 + N, B]."""
        return list(torch.split(h_RB, self.parts))[::2]

    def grades(self, grades: Tensor) -> Tensor:
        """Every row's grade, [R, 1] or [R, B]; 0 where there is no unit."""
        lanes, units = grades.shape[:2]
        place_R = torch.where(self._real_R, self._lane_R * units + self._unit_R, lanes * units).to(grades.device)
        flat = grades.flatten(0, 1) if grades.dim() > 2 else grades.reshape(-1, 1)
        return functional.pad(flat, (0, 0, 0, 1)).index_select(0, place_R)


@functools.lru_cache(maxsize=64)
def _laid(sizes: tuple[int, ...], batch: int) -> Rows:
    return Rows(sizes, batch)


def _spans(layout: Layout) -> list[int]:
    """How many numbers of a buffer each matrix has, part by part, padding included."""
    starts = [layout.offsets[lane][part] for part in range(layout.parts) for lane in range(layout.lanes)]
    return [b - a for a, b in pairwise([*starts, layout.size])]


def _matrices(layout: Layout, buffer_T: Tensor) -> list[list[Tensor]]:
    """All matrices in a buffer, `[part][lane]`."""
    pieces = iter(torch.split(buffer_T, _spans(layout)))
    found = []
    for part in range(layout.parts):
        shapes = [parts[part] for parts in layout.shapes]
        found.append([next(pieces)[: rows * columns].view(rows, columns) for rows, columns in shapes])
    return found


def _stacks(layout: Layout, buffer_T: Tensor) -> list[Tensor]:
    """The matrices of lanes that are laid out alike, [K, rows, columns] a part."""
    found = []
    spans, lanes = _spans(layout), layout.lanes
    parts = torch.split(buffer_T, [sum(spans[i : i + lanes]) for i in range(0, len(spans), lanes)])
    for part, own_T in enumerate(parts):
        rows, columns = layout.shapes[0][part]
        found.append(own_T.view(lanes, -1)[:, : rows * columns].view(lanes, rows, columns))
    return found


def _batched(a_KNI: Tensor, b_KIB: Tensor) -> Tensor:
    """One batched product; a lane alone runs beside a copy of itself, for torch has a kernel of its own for one."""
    if len(a_KNI) > 1:
        return torch.bmm(a_KNI, b_KIB)
    return torch.bmm(a_KNI.expand(2, -1, -1), b_KIB.expand(2, -1, -1))[:1]
