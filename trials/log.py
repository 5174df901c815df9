"""The log of a search: what was decided, in order, one durable Arrow segment an append.

>>> log = LogWriter(directory, epoch=1)
>>> log.append("told", {"bundle": "b0", "attempt": 0, "numbers": [0, 1]})     # durable on return
>>> [event.kind for event in events(directory, read)]
['told']
>>> tail = LogTail(directory, read)           # for whoever looks on: `tail.new()` again and again
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from trials import layout, rows, segments
from trials.segments import Conflict

_TICK = 1_000_000_000  # ns: no file system's clock is coarser
SCHEMA = pa.schema(
    [
        ("epoch", pa.int64()),
        ("n", pa.int64()),
        ("seq", pa.int64()),
        ("time", pa.timestamp("us", "UTC")),
        ("kind", pa.string()),
        ("body", pa.string()),  # JSON
        ("elapsed", pa.float64()),  # null, or no such column, in logs of before it was kept
    ]
)


@dataclass(frozen=True, kw_only=True)
class Event:
    """One decision. Ordered by (epoch, seq); `time` (Unix seconds) orders nothing, clocks jump. `elapsed` is how many
    seconds its writer had been there, by a clock that nobody sets; None in logs of before that was kept."""

    epoch: int
    n: int
    seq: int
    time: float
    kind: str
    body: dict[str, Any]
    elapsed: float | None = None


class LogWriter:
    """Appends events; each `append` is one durable segment. For one thread. Once another writer has begun a later
    epoch, this one is refused when it next looks; that there is one writer is the lease's doing."""

    def __init__(self, directory: Path, epoch: int) -> None:
        self.epoch = epoch
        self._directory = directory
        self._n = 0
        self._seq = 0
        self._began = time.monotonic()
        self._closed = directory / layout.log_closed(epoch)

    def append(self, kind: str, body: Mapping[str, Any]) -> Event:
        """One event, durable when this returns; raises OSError when it is not, and may be tried again, and `Conflict`
        where the log is another writer's by now."""
        return self.append_many([(kind, body)])[0]

    def append_many(self, events: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Event]:
        """Several events, all of them or none."""
        if not events:
            return []
        if self._closed.exists():
            rule = "who has lost the search writes nothing"
            raise Conflict(f"log: {rule}, but epoch {self.epoch} is over; another driver has it, leave it alone.")
        n, us, count = self._n, time.time_ns() // 1000, len(events)
        elapsed = time.monotonic() - self._began
        kinds = [kind for kind, _ in events]
        bodies = [rows.to_json(body) for _, body in events]
        seqs = range(self._seq, self._seq + count)
        data = [[self.epoch] * count, [n] * count, seqs, [us] * count, kinds, bodies, [elapsed] * count]
        columns = [pa.array(column, kind) for column, kind in zip(data, SCHEMA.types, strict=True)]
        self._n += 1  # spent even if the writing fails: two segments never share an n
        segments.write(self._directory, layout.log_stem(self.epoch, n), pa.Table.from_arrays(columns, schema=SCHEMA))
        self._seq += count
        return [
            Event(epoch=self.epoch, n=n, seq=seq, time=us / 1e6, kind=kind, body=rows.from_json(body), elapsed=elapsed)
            for seq, kind, body in zip(seqs, kinds, bodies, strict=True)
        ]


def close_epochs(directory: Path, epochs: Iterable[int]) -> None:
    """Refuse those epochs' writers from now on: one that was cut off from its driver may not have noticed."""
    for epoch in epochs:
        with contextlib.suppress(OSError):  # the lease has refused them before; a full disk is no reason to stop here
            (directory / layout.log_closed(epoch)).touch()


def last_epoch(directory: Path) -> int:
    """The highest epoch with a segment; -1 for an empty log."""
    places = map(layout.log_place, os.listdir(directory))
    return max((place[0] for place in places if place), default=-1)


def events(directory: Path, read: Callable[[Path], pa.Table | None]) -> list[Event]:
    """All events in the order of writing; `read` gives a segment's table, or None to pass it over."""
    placed = sorted((place, name) for name in os.listdir(directory) if (place := layout.log_place(name)))
    tables = [table for _, name in placed if (table := read(directory / name)) is not None and table.num_rows]
    every = _events_of(pa.concat_tables(map(_whole, tables))) if tables else []
    found: list[Event] = []
    begin = 0
    for table in tables:
        new = every[begin : begin + table.num_rows]
        begin += table.num_rows
        # A segment whose writing failed may come back after a power cut. Its writer went on with the same seq, so
        # whatever stands at or above the seq of a later segment was never acknowledged.
        while found and (found[-1].epoch, found[-1].seq) >= (new[0].epoch, new[0].seq):
            found.pop()
        found += new
    return found


class LogTail:
    """Follows a log: each `new` gives what was appended since the last, and reads each segment once. For one thread.

    An event may come again, with the same epoch and seq and in other words, where its first segment was never
    acknowledged: the later one counts.
    """

    def __init__(self, directory: Path, read: Callable[[Path], pa.Table | None]) -> None:
        self._directory = directory
        self._read = read
        self._seen: set[str] = set()
        self._still: int | None = None  # when the directory last changed, where that can be relied on

    def new(self) -> list[Event]:
        """Events in the order of writing; raises OSError when the directory cannot be listed."""
        changed = os.stat(self._directory).st_mtime_ns
        if changed == self._still:
            return []
        looked = time.time_ns()
        found: list[Event] = []
        for name in self._unseen():
            self._seen.add(name)
            table = self._read(self._directory / name)
            if table is not None and table.num_rows:
                found += _events_of(_whole(table))
        # two changes within one tick of the file system's clock look like one
        self._still = changed if looked - changed > _TICK else None
        return found

    def _unseen(self) -> list[str]:
        """New segments in the order of writing. A listing may miss a name that is made meanwhile and show a later one,
        so what comes before the last one is listed again: by then it was there."""
        last = max((place for place, _ in self._placed()), default=None)
        return [] if last is None else [name for place, name in sorted(self._placed()) if place <= last]

    def _placed(self) -> list[tuple[tuple[int, int], str]]:
        names = set(os.listdir(self._directory)) - self._seen
        return [(place, name) for name in names if (place := layout.log_place(name))]


def _whole(table: pa.Table) -> pa.Table:
    """A segment with every column there is now, and no others."""
    if "elapsed" not in table.column_names:
        table = table.append_column(SCHEMA.field("elapsed"), pa.nulls(table.num_rows, pa.float64()))
    return table.select(SCHEMA.names)


def _events_of(table: pa.Table) -> list[Event]:
    times = table["time"].cast(pa.int64())
    plain = {"time": times.to_pylist(), "body": rows.all_from_json(table["body"].to_pylist())}
    columns = [plain[name] if name in plain else table[name].to_pylist() for name in SCHEMA.names]
    return [
        Event(epoch=epoch, n=n, seq=seq, time=us / 1e6, kind=kind, body=body, elapsed=elapsed)
        for epoch, n, seq, us, kind, body, elapsed in zip(*columns, strict=True)
    ]
