"""What one attempt at a bundle measured: buffered rows, durable parts, and a final segment that makes it history.

>>> writer = AttemptWriter(directory, "digits-1", "b0", attempt=0)
>>> writer.append(report); writer.flush()
>>> writer.append(outcome); writer.close()
>>> rows.outcomes_of(rows.joined(tables(directory, read)))
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from trials import layout, rows, segments
from trials.records import Outcome, Report, Start
from trials.segments import Conflict

_PARTS = b"continua.parts"  # in a final segment's metadata: the names of the parts before it, as JSON
_START = b"continua.start"  # in each segment's metadata: the checkpoint that the attempt went on from, as JSON


class AttemptWriter:
    """Takes the records of one attempt; `flush` makes them durable, `close` makes them history. For one thread.
    `start` is the checkpoint that its lanes go on from: what its trials measured up to there stands elsewhere.

    Raises:
        Conflict: when the attempt has, or had, a writer: its directory is there.
    """

    def __init__(
        self, directory: Path, search_id: str, bundle_id: str, attempt: int, start: Start | None = None
    ) -> None:
        self._directory = directory
        self._facts: dict[bytes, str] = {} if start is None else {_START: rows.to_json(asdict(start))}
        self._search_id = search_id
        self._place = (bundle_id, attempt)
        self._rows: list[dict[str, Any]] = []
        self._parts: list[str] = []
        self._n = 0
        self._closed = False
        try:
            segments.make_directory(directory)
        except FileExistsError:
            rule = "an attempt has one writer, once"
            raise Conflict(f"bundle {bundle_id}: {rule}, but attempt {attempt} is there; begin the next.") from None

    def append(self, record: Report | Outcome) -> None:
        """Takes a copy of the record; nothing is on the disk yet."""
        if self._closed:
            raise Conflict(f"bundle {self._place[0]}: attempt {self._place[1]} is closed; begin the next.")
        if (record.bundle_id, record.attempt) != self._place:
            raise ValueError(f"a record of {record.bundle_id}.{record.attempt} does not belong to {self._place}")
        if isinstance(record, Report):
            self._rows.append(rows.report_row(self._search_id, record))
        else:
            self._rows.append(rows.outcome_row(self._search_id, record))

    def flush(self) -> None:
        """Makes all that was appended durable; raises OSError when it is not, and may be tried again."""
        if self._rows:
            self._write(final=False)

    def close(self) -> None:
        """Makes all that was appended durable and the attempt history; raises OSError as `flush` does."""
        if not self._closed:
            self._write(final=True)
            self._closed = True

    def _write(self, final: bool) -> None:
        parts = {_PARTS: rows.to_json(self._parts)} if final else {}
        table = rows.table_of(self._rows).replace_schema_metadata({**self._facts, **parts})
        n = self._n
        self._n += 1  # spent even if the writing fails: two segments never share an n
        path = segments.write(self._directory, layout.part_stem(n, final), table)
        self._parts.append(path.name)
        self._rows.clear()


def is_closed(directory: Path | str) -> bool:
    """Whether the attempt has its final segment; a damaged one still says that the attempt ended."""
    return any((place := layout.part_place(name)) and place[1] for name in os.listdir(directory))


def start_of(tables: Iterable[pa.Table]) -> Start | None:
    """The checkpoint that an attempt of these segments went on from; None where it began at the start."""
    told = ((table.schema.metadata or {}).get(_START) for table in tables)
    found = next((text for text in told if text is not None), None)
    return None if found is None else Start(**rows.from_json(found.decode()))


def tables(directory: Path, read: Callable[[Path], pa.Table | None]) -> Iterator[pa.Table]:
    """The attempt's segments in the order of writing; `read` gives a segment's table, or None to pass it over."""
    placed = sorted((place, name) for name in os.listdir(directory) if (place := layout.part_place(name)))
    found = {name: read(directory / name) for _, name in placed}
    order = list(found)
    for (_, final), name in placed:
        if final and (table := found[name]) is not None:
            # A part that its writer gave up may come back after a power cut; one that it wrote may get lost.
            parts = rows.from_json((table.schema.metadata or {}).get(_PARTS, b"[]").decode())
            order = [*parts, name]
            found |= {part: read(directory / part) for part in parts if part not in found}
    for name in order:
        if (table := found[name]) is not None:
            yield table
