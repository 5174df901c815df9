"""Where the matrices of many lanes lie in one flat buffer.

A lane's matrix gets a span of its own, so lanes of different sizes share a buffer without padding: elementwise work
runs once over the whole buffer, each matrix product at its lane's own size. Spans begin at multiples of 32 numbers (two
vectors of 64 bytes, which is what torch's kernels take at a time), so that a lane's arithmetic never depends on its
neighbours.

On a GPU, lanes of one shape lie side by side instead (`grouped`), and one batched product serves them all.

Legend of shape suffixes: T the whole buffer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

ALIGNMENT = 32


class Layout:
    """Spans for `shapes[lane][part] = (rows, columns)`, part by part: all lanes' first matrices, then all seconds.

    Args:
        grouped: lanes share one shape; `views` gives one [K, rows, columns] tensor a part.
    """

    def __init__(self, shapes: Sequence[Sequence[tuple[int, int]]], *, grouped: bool = False) -> None:
        self.shapes = [list(parts) for parts in shapes]
        self.grouped = grouped
        if grouped and any(parts != self.shapes[0] for parts in self.shapes):
            raise ValueError("grouped lanes must share one shape")
        self.lanes, self.parts = len(self.shapes), len(self.shapes[0])
        self.offsets: list[list[int]] = [[0] * self.parts for _ in self.shapes]
        spans: list[int] = []
        owners: list[int] = []
        place = 0
        for part in range(self.parts):
            for lane, parts in enumerate(self.shapes):
                rows, columns = parts[part]
                span = rows * columns if grouped else -(-rows * columns // ALIGNMENT) * ALIGNMENT
                self.offsets[lane][part] = place
                spans.append(span)
                owners.append(lane)
                place += span
        self.size = place
        self._spans, self._owners = torch.tensor(spans), torch.tensor(owners)

    def zeros(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A zeroed buffer [T]."""
        return torch.zeros(self.size, device=device, dtype=dtype)

    def lane_view(self, buffer_T: Tensor, lane: int, part: int) -> Tensor:
        """One lane's matrix, a view [rows, columns]."""
        rows, columns = self.shapes[lane][part]
        offset = self.offsets[lane][part]
        return buffer_T[offset : offset + rows * columns].view(rows, columns)

    def views(self, buffer_T: Tensor, part: int) -> list[Tensor]:
        """All lanes' matrices of a part: a view [rows, columns] each, or a single [K, rows, columns] when grouped."""
        if not self.grouped:
            return [self.lane_view(buffer_T, lane, part) for lane in range(self.lanes)]
        rows, columns = self.shapes[0][part]
        offset = self.offsets[0][part]
        return [buffer_T[offset : offset + self.lanes * rows * columns].view(self.lanes, rows, columns)]

    def by_lane(self, buffer: Tensor) -> Tensor:
        """Each lane's numbers of a buffer [T, ...], part by part and without the rest of a span, [K, M, ...]; 0 beyond
        a lane's own. They are the same in any company."""
        return pad_sequence([torch.cat(self._own(buffer, lane)) for lane in range(self.lanes)], batch_first=True)

    def take(self, rows: Tensor, buffer: Tensor) -> None:
        """Put what `by_lane` gave back into a buffer, wherever its lanes lie now."""
        for lane in range(self.lanes):
            own = self._own(buffer, lane)
            sizes = [len(part) for part in own]
            for part, numbers in zip(own, torch.split(rows[lane, : sum(sizes)], sizes), strict=True):
                part.copy_(numbers)

    def _own(self, buffer: Tensor, lane: int) -> list[Tensor]:
        places = zip(self.offsets[lane], self.shapes[lane], strict=True)
        return [buffer[offset : offset + rows * columns] for offset, (rows, columns) in places]

    def owners(self) -> tuple[Tensor, Tensor]:
        """The lane and the part that each place of a buffer belongs to, int64 [T] both."""
        parts = torch.arange(self.parts).repeat_interleave(self.lanes)
        return torch.repeat_interleave(self._owners, self._spans), torch.repeat_interleave(parts, self._spans)

    def spread(self, values_K: Tensor) -> Tensor:
        """Each lane's number at every place of its spans, [K] -> [T]."""
        device = values_K.device
        return torch.repeat_interleave(values_K[self._owners.to(device)], self._spans.to(device))
