"""Where the matrices of many lanes lie in one flat buffer.

A lane's matrix gets a span of its own, so lanes of different sizes share a buffer without padding: elementwise work
runs once over the whole buffer, each matrix product at its lane's own size. Spans begin at multiples of 32 numbers (two
vectors of 64 bytes, which is what torch's kernels take at a time), so that a lane's arithmetic never depends on its
neighbours.

On a GPU every lane has the same room instead, that of the widest (`grouped`), and one batched product serves them all.
A lane's own matrix is the first rows and columns of its room; what lies beyond is silent, that is, 0.

Legend of shape suffixes: K lanes, R rows, C columns, T the whole buffer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

ALIGNMENT = 32


Shape = tuple[int, int]  # rows, columns


class Layout:
    """Spans for `shapes[lane][part] = (rows, columns)`, part by part: all lanes' first matrices, then all seconds.

    Args:
        room: the rows and columns that every lane has room for, a part, which makes them grouped: `views` gives one
            [K, R, C] tensor a part.
    """

    def __init__(self, shapes: Sequence[Sequence[Shape]], *, room: Sequence[Shape] | None = None) -> None:
        self.shapes = [list(parts) for parts in shapes]
        self.grouped = room is not None
        self.room = list(room or ())
        self.lanes, self.parts = len(self.shapes), len(self.shapes[0])
        self.offsets: list[list[int]] = [[0] * self.parts for _ in self.shapes]
        spans: list[int] = []
        owners: list[int] = []
        place = 0
        for part in range(self.parts):
            for lane, parts in enumerate(self.shapes):
                rows, columns = parts[part] if room is None else room[part]
                span = rows * columns if self.grouped else -(-rows * columns // ALIGNMENT) * ALIGNMENT
                self.offsets[lane][part] = place
                spans.append(span)
                owners.append(lane)
                place += span
        self.size = place
        self._spans, self._owners = spans, owners

    def zeros(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A zeroed buffer [T]."""
        return torch.zeros(self.size, device=device, dtype=dtype)

    def lane_view(self, buffer_T: Tensor, lane: int, part: int) -> Tensor:
        """One lane's own matrix, a view [rows, columns]."""
        rows, columns = self.shapes[lane][part]
        offset = self.offsets[lane][part]
        if not self.grouped:
            return buffer_T[offset : offset + rows * columns].view(rows, columns)
        wide, long = self.room[part]
        return buffer_T[offset : offset + wide * long].view(wide, long)[:rows, :columns]

    def views(self, buffer_T: Tensor, part: int) -> list[Tensor]:
        """All lanes' matrices of a part: a view [rows, columns] each, or a single [K, R, C] of their room."""
        if not self.grouped:
            return [self.lane_view(buffer_T, lane, part) for lane in range(self.lanes)]
        return [self.stack(buffer_T, part)]

    def stack(self, buffer_T: Tensor, part: int) -> Tensor:
        """The room of all grouped lanes in a part, a view [K, R, C]."""
        rows, columns = self.room[part]
        offset = self.offsets[0][part]
        return buffer_T[offset : offset + self.lanes * rows * columns].view(self.lanes, rows, columns)

    def pieces(self, buffer_T: Tensor, part: int = 0) -> list[tuple[slice, Tensor]]:
        """Lanes and views of their matrices of a part, [k, rows, columns]: of all at once where they are alike."""
        if self.grouped:
            return [(slice(None), self.stack(buffer_T, part))]
        rows, columns = self.shapes[0][part]
        if any(parts[part] != (rows, columns) for parts in self.shapes):
            return [(slice(k, k + 1), self.lane_view(buffer_T, k, part).unsqueeze(0)) for k in range(self.lanes)]
        starts = [own[part] for own in self.offsets[:2]]
        strides = (starts[-1] - starts[0] or rows * columns, columns, 1)
        return [(slice(None), buffer_T.as_strided((self.lanes, rows, columns), strides, starts[0]))]

    def own(self, part: int, device: torch.device | str) -> Tensor:
        """Which places of a part are a grouped lane's own, bool [K, R, C]."""
        rows, columns = self.room[part]
        sizes_K2 = torch.tensor([parts[part] for parts in self.shapes], device=device)
        row_KR = torch.arange(rows, device=device) < sizes_K2[:, :1]
        column_KC = torch.arange(columns, device=device) < sizes_K2[:, 1:]
        return row_KR.unsqueeze(2) & column_KC.unsqueeze(1)

    def sums(self, buffer_T: Tensor) -> Tensor:
        """The sum of each grouped lane's numbers, [K]."""
        each = [self.stack(buffer_T, part).sum((1, 2)) for part in range(self.parts)]
        return torch.stack(each).sum(0)

    def by_lane(self, buffer: Tensor) -> Tensor:
        """Each lane's own numbers of a buffer [T, ...], part by part, [K, M, ...]; 0 beyond a lane's own. They are the
        same in any company."""
        own = [[matrix.flatten(0, 1) for matrix in self._own(buffer, lane)] for lane in range(self.lanes)]
        return pad_sequence([torch.cat(parts) for parts in own], batch_first=True)

    def take(self, rows: Tensor, buffer: Tensor) -> None:
        """Put what `by_lane` gave back into a buffer, wherever its lanes lie now."""
        for lane in range(self.lanes):
            own = self._own(buffer, lane)
            sizes = [len(part) * part.shape[1] for part in own]
            for part, numbers in zip(own, torch.split(rows[lane, : sum(sizes)], sizes), strict=True):
                part.copy_(numbers.view(part.shape))

    def _own(self, buffer: Tensor, lane: int) -> list[Tensor]:
        """Views [rows, columns, ...] of a lane's own numbers in a buffer [T, ...]."""
        found = []
        for part, (rows, columns) in enumerate(self.shapes[lane]):
            wide, long = self.room[part] if self.grouped else (rows, columns)
            offset = self.offsets[lane][part]
            room = buffer[offset : offset + wide * long].view(wide, long, *buffer.shape[1:])
            found.append(room[:rows, :columns])
        return found

    def owners(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """The lane and the part that each place of a buffer belongs to, int64 [T] both."""
        spans = torch.tensor(self._spans, device=device)
        parts = torch.arange(self.parts, device=device).repeat_interleave(self.lanes)
        lanes = torch.tensor(self._owners, device=device)
        lane_T = torch.repeat_interleave(lanes, spans, output_size=self.size)
        return lane_T, torch.repeat_interleave(parts, spans, output_size=self.size)

    def spread(self, values_K: Tensor) -> Tensor:
        """Each lane's number at every place of its spans, [K] -> [T]."""
        owners, spans = (torch.tensor(found, device=values_K.device) for found in (self._owners, self._spans))
        return torch.repeat_interleave(values_K[owners], spans)
