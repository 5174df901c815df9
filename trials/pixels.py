"""Rows of bytes as the numbers that a network reads.

>>> normalised(torch.from_numpy(task.train.x[:8]), task).shape
torch.Size([8, 1, 28, 28])

Rows stay bytes on the device, a quarter of the memory, and become numbers batch by batch.

Legend of shape suffixes: D numbers of a row, R rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trials.tasks import Task


def normalised(x_RD: Tensor, task: Task) -> Tensor:
    """Rows as float32 [R, *shape] of the task's shape: each channel of bytes with the mean 0 and the standard deviation
    1 of the train rows. Rows that are numbers already, those of tables, keep their values."""
    x = x_RD.view(-1, *task.shape).float()
    if x_RD.dtype != torch.uint8:
        return x
    offset_C11 = torch.tensor(task.offset, dtype=torch.float32, device=x.device).view(-1, 1, 1)
    scale_C11 = torch.tensor(task.scale, dtype=torch.float32, device=x.device).view(-1, 1, 1)
    return x.sub_(offset_C11).div_(scale_C11)
