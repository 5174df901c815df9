"""One immutable Arrow file on a disk: written whole or not at all, checked when it is read.

    >>> path = write(directory, "part-0000000000", pyarrow.table({"step": [1, 2]}))
    >>> path.name
    'part-0000000000-3f0c6c0d5b1d7a55.arrow'
    >>> Reader().read(path)          # raises Damaged when a single bit has changed

The name ends in a digest of the bytes, because Arrow itself notices neither a flipped bit nor a tail of zeros. A file
is there once `write` returns and survives a power cut; when `write` raises, it is not there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from trials import layout

FULL = (errno.ENOSPC, errno.EDQUOT)  # it may pass: nothing is wrong with what was to be written
OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # our process's own limits say nothing about the file


class Damaged(Exception):
    """A file that cannot be trusted: `path` and `reason`."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class Conflict(RuntimeError):
    """Another writer was here first: an epoch of a log, and an attempt at a bundle, have one writer, once."""


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(path: Path) -> None:
    """A new, durable directory; raises FileExistsError where there is one."""
    path.mkdir()
    try:
        sync_directory(path.parent)
    except BaseException:
        path.rmdir()
        raise


def write_bytes(path: Path, payload: bytes | memoryview, *, replace: bool = False) -> None:
    """A durable file at `path`, whole or not at all. Raises FileExistsError where there is one, unless `replace`."""
    if not replace and path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    temporary = path.with_name(layout.unfinished(path.name, secrets.token_hex(6)))
    renamed = False
    try:
        with open(temporary, "xb", buffering=0) as file:
            _write_all(file.write, payload)
            os.fsync(file.fileno())
        os.rename(temporary, path)
        renamed = True
        sync_directory(path.parent)
    except BaseException:
        # Not known to be durable, so it must not be seen; a replaced file has no old version to go back to.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
            if renamed and not replace:
                path.unlink(missing_ok=True)
        raise


def write_once(path: Path, payload: bytes) -> None:
    """A durable file at `path`, whole or not at all; of several writers one wins, the others raise FileExistsError."""
    temporary = path.with_name(layout.unfinished(path.name, secrets.token_hex(6)))
    try:
        with open(temporary, "xb", buffering=0) as file:
            _write_all(file.write, payload)
            os.fsync(file.fileno())
        os.link(temporary, path)
        try:
            sync_directory(path.parent)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    finally:
        temporary.unlink(missing_ok=True)


def _write_all(write: Callable[[memoryview], int | None], payload: bytes | memoryview) -> None:
    rest = memoryview(payload)
    while len(rest):
        rest = rest[write(rest) or 0 :]


def write(directory: Path, stem: str, table: pa.Table) -> Path:
    """Writes `table` as a new segment of `directory` and returns its path.

    Raises:
        OSError: disk full, fsync failed...; nothing is left behind.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    payload = memoryview(sink.getvalue())
    path = directory / layout.segment_name(stem, _digest(payload))
    write_bytes(path, payload)
    return path


def _digest(payload: bytes | memoryview) -> str:
    return hashlib.sha256(payload).hexdigest()[: layout.DIGITS]


class Reader:
    """Reads segments; checks each file's digest once, and again when its size or time of change is another."""

    def __init__(self) -> None:
        self._verified: dict[Path, tuple[int, int]] = {}

    def forget(self) -> None:
        """Lets the next read check every digest anew."""
        self._verified.clear()

    def read(self, path: Path) -> pa.Table:
        """The table in the segment at `path`.

        Raises:
            Damaged: when it is missing, cannot be read, or is not what was written.
        """
        try:
            with open(path, "rb", buffering=0) as file:
                facts = os.fstat(file.fileno())
                payload = file.readall()
        except OSError as error:
            if error.errno in OURS:
                raise
            raise Damaged(path, f"cannot be read: {error.strerror}.") from error
        stamp = (facts.st_size, facts.st_mtime_ns)
        fresh = self._verified.get(path) != stamp
        if fresh and _digest(payload) != layout.digest_of(path.name):
            raise Damaged(path, "its bytes do not have the digest that its name carries.")
        try:
            table = pa.ipc.open_file(pa.BufferReader(payload)).read_all()
            if fresh:  # whoever may write here can also name a file after its digest; a bad offset would crash us
                table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise Damaged(path, f"is not an Arrow file: {error}") from error
        self._verified[path] = stamp
        return table
