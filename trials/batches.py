"""Rows of a split on the device, and batches of them as a program reads them.

    >>> rows = Rows.of(task, "train", "outer", dense=True, device=device)
    >>> x_BI, y_BO = rows.batch(rows_B)

Images stay bytes on the device and become numbers where they are used.

Legend of shape suffixes: B batch, D numbers of a row, I 1 + D, O outputs, R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor
from torch.nn import functional

from trials.lanes.program import Batch
from trials.pixels import normalised
from trials.tasks import Task

CHUNK = 2048  # rows that are predicted at a time


@dataclass(frozen=True, eq=False)
class Rows:
    """`x` [R, D] (bytes of images, or numbers), labels `y_R`, and targets as rows `y_RO`. `dense`: a batch is
    [B, 1 + D] with a leading column of ones, else [B, *shape] of the task's shape."""

    task: Task
    x: Tensor
    y_R: Tensor
    y_RO: Tensor
    dense: bool

    @classmethod
    def of(cls, task: Task, *splits: str, dense: bool, device: torch.device) -> Rows:
        """Splits of a task, joined and on the device."""
        split = task.rows(*splits)
        x = torch.from_numpy(split.x).to(device)
        if x.dtype != torch.uint8:
            x = functional.pad(x, (1, 0), value=1.0).contiguous() if dense else x.view(-1, *task.shape)
        y_R = torch.from_numpy(split.y).to(device)
        y_RO = functional.one_hot(y_R, task.outputs).float() if y_R.dtype == torch.int64 else y_R.float().unsqueeze(1)
        return cls(task, x, y_R, y_RO.contiguous(), dense)

    def batch(self, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some rows."""
        return self._read(self.x.index_select(0, rows_B)), self.y_RO.index_select(0, rows_B)

    def chunks(self) -> Iterator[Tensor]:
        """The inputs of all rows, piece by piece."""
        for part in torch.split(self.x, CHUNK):
            yield self._read(part)

    def _read(self, x: Tensor) -> Tensor:
        if x.dtype != torch.uint8:
            return x
        x = normalised(x, self.task)
        return functional.pad(x.flatten(1), (1, 0), value=1.0) if self.dense else x


class Window(Sequence[Batch]):
    """The batches of some steps, each made when it is read: a long window holds none of them."""

    def __init__(self, batch: Callable[[int], Batch], steps: range) -> None:
        self._batch, self._steps = batch, steps

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, place: int) -> Batch: ...

    @overload
    def __getitem__(self, place: slice) -> Window: ...

    def __getitem__(self, place: int | slice) -> Batch | Window:
        steps = self._steps[place]
        return Window(self._batch, steps) if isinstance(steps, range) else self._batch(steps)
