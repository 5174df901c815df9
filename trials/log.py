"""The log of a search: what was decided, in order, one durable Arrow segment an append.

>>> log = LogWriter(directory, epoch=1)
>>> log.append("told", {"bundle": "b0", "attempt": 0, "numbers": [0, 1]})     # durable on return
>>> [event.kind for event in events(directory, read)]
['told']
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from trials import layout, rows, segments

SCHEMA = pa.schema(
    [
        ("epoch", pa.int64()),
        ("n", pa.int64()),
        ("seq", pa.int64()),
        ("time", pa.timestamp("us", "UTC")),
        ("kind", pa.string()),
        ("body", pa.string()),  # JSON
    ]
)


@dataclass(frozen=True, kw_only=True)
class Event:
    """One decision. Ordered by (epoch, seq); `time` (Unix seconds) orders nothing, clocks jump."""

    epoch: int
    n: int
    seq: int
    time: float
    kind: str
    body: dict[str, Any]


class LogWriter:
    """Appends events; each `append` is one durable segment. For one thread."""

    def __init__(self, directory: Path, epoch: int) -> None:
        self.epoch = epoch
        self._directory = directory
        self._n = 0
        self._seq = 0

    def append(self, kind: str, body: Mapping[str, Any]) -> Event:
        """One event, durable when this returns; raises OSError when it is not, and may be tried again."""
        return self.append_many([(kind, body)])[0]

    def append_many(self, events: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Event]:
        """Several events, all of them or none."""
        if not events:
            return []
        n, us, count = self._n, time.time_ns() // 1000, len(events)
        kinds = [kind for kind, _ in events]
        bodies = [rows.to_json(body) for _, body in events]
        seqs = range(self._seq, self._seq + count)
        data = [[self.epoch] * count, [n] * count, seqs, [us] * count, kinds, bodies]
        columns = [pa.array(column, kind) for column, kind in zip(data, SCHEMA.types, strict=True)]
        self._n += 1  # spent even if the writing fails: two segments never share an n
        segments.write(self._directory, layout.log_stem(self.epoch, n), pa.Table.from_arrays(columns, schema=SCHEMA))
        self._seq += count
        return [
            Event(epoch=self.epoch, n=n, seq=seq, time=us / 1e6, kind=kind, body=rows.from_json(body))
            for seq, kind, body in zip(seqs, kinds, bodies, strict=True)
        ]


def last_epoch(directory: Path) -> int:
    """The highest epoch with a segment; -1 for an empty log."""
    places = map(layout.log_place, os.listdir(directory))
    return max((place[0] for place in places if place), default=-1)


def events(directory: Path, read: Callable[[Path], pa.Table | None]) -> list[Event]:
    """All events in the order of writing; `read` gives a segment's table, or None to pass it over."""
    placed = sorted((place, name) for name in os.listdir(directory) if (place := layout.log_place(name)))
    found: list[Event] = []
    for _, name in placed:
        table = read(directory / name)
        if table is None or not table.num_rows:
            continue
        new = _events_of(table)
        # A segment whose writing failed may come back after a power cut. Its writer went on with the same seq, so
        # whatever stands at or above the seq of a later segment was never acknowledged.
        while found and (found[-1].epoch, found[-1].seq) >= (new[0].epoch, new[0].seq):
            found.pop()
        found += new
    return found


def _events_of(table: pa.Table) -> list[Event]:
    times = table["time"].cast(pa.int64())
    columns = [(times if name == "time" else table[name]).to_pylist() for name in SCHEMA.names]
    return [
        Event(epoch=epoch, n=n, seq=seq, time=us / 1e6, kind=kind, body=rows.from_json(body))
        for epoch, n, seq, us, kind, body in zip(*columns, strict=True)
    ]
