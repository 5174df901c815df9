"""The right to be a search's one owner on this machine, held by an SQLite lock that dies with its process.

    >>> with search.lease() as lease:            # raises Held when a live process has it
    ...     log = search.log_writer(lease.epoch)

No clock is involved: a killed owner frees the lease at once, a stopped one keeps it. Each taking has a higher epoch,
committed before the lock that is held for life is taken, so that not even a kill can give an epoch twice. Who the owner
is stands in a file beside, since nobody else can read the database meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sqlite3
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from search_spaces.faults import Invalid
from trials.segments import write_bytes

_PATIENCE = 0.2  # seconds: of two that try in the same instant, SQLite may refuse both


class Held(RuntimeError):
    """A live process has the lease; `owner` holds what it wrote of itself: pid, host, since (Unix seconds), epoch."""

    def __init__(self, path: Path, owner: dict[str, Any]) -> None:
        who = "another process"
        if owner:
            since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(owner["since"]))
            who = f"process {owner['pid']} on {owner['host']} (since {since})"
        super().__init__(f"search {path.parent.name}: must have one owner at a time, but {who} has it; end that first.")
        self.owner = owner


class Lease:
    """Taken at once, held until `release`, the end of `with`, or the death of the process.

    `above` is an epoch known from elsewhere: the new one is higher than that too.

    Raises:
        Held: when a live process has it.
        Invalid: when `path` cannot be an SQLite file of ours.
        OSError: when the disk is full, or fails.
    """

    def __init__(self, path: Path | str, *, above: int = 0) -> None:
        self._path = Path(path)
        self._about = _about(self._path)
        try:
            self._connection = sqlite3.connect(
                self._path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        try:
            self.epoch = self._take(above)
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time(), "epoch": self.epoch}
            write_bytes(self._about, json.dumps(owner).encode(), replace=True)
        except BaseException as error:
            self._connection.close()
            if not isinstance(error, sqlite3.Error):
                raise
            if _busy(error):
                raise Held(self._path, _owner(self._path)) from None
            raise self._unusable(error) from error

    def _take(self, above: int) -> int:
        run = self._connection.execute
        run("PRAGMA synchronous = EXTRA")
        run("BEGIN EXCLUSIVE")
        run("CREATE TABLE IF NOT EXISTS lease (epoch INTEGER NOT NULL)")
        last: int = run("SELECT coalesce(max(epoch), 0) FROM lease").fetchone()[0]
        epoch = max(last, above) + 1
        run("INSERT INTO lease VALUES (?)", (epoch,))
        run("COMMIT")
        run("BEGIN EXCLUSIVE")
        (now,) = run("SELECT max(epoch) FROM lease").fetchone()
        if now != epoch:  # another took it between the two transactions, and has let go again
            run("ROLLBACK")
            return self._take(above)
        return epoch

    def release(self) -> None:
        """Lets go; does nothing when already let go."""
        with contextlib.suppress(sqlite3.ProgrammingError):  # closed before
            if self._connection.in_transaction:
                with contextlib.suppress(OSError):
                    self._about.unlink(missing_ok=True)
                self._connection.rollback()
            self._connection.close()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _unusable(self, error: sqlite3.Error) -> Invalid | OSError:
        if number := {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_IOERR: errno.EIO}.get(_code(error)):
            return OSError(number, os.strerror(number), str(self._path))  # it may pass
        return Invalid(
            [f"lease: {self._path} must be an SQLite file that we may write, but got: {error}; move it away."]
        )


def holder(path: Path | str) -> dict[str, Any] | None:
    """What the live process that has the lease wrote of itself (as `Held.owner`); None where nobody has it.

    Takes nothing and changes nothing: a reader of the database is turned away while the lock is held.
    """
    try:
        connection = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, timeout=0)
    except sqlite3.Error:
        return None
    with contextlib.closing(connection):
        try:
            connection.execute("SELECT count(*) FROM lease").fetchone()
        except sqlite3.Error as error:
            return _owner(Path(path)) if _busy(error) else None
    return None


def held(path: Path | str) -> bool:
    """Whether a live process has the lease: many times cheaper than `holder` where nobody has, for whoever looks at
    many. It is seen once its owner has said who it is."""
    return os.path.exists(_about(Path(path))) and holder(path) is not None


def _about(path: Path) -> Path:
    return path.with_suffix(".json")


def _owner(path: Path) -> dict[str, Any]:
    try:
        owner: dict[str, Any] = json.loads(_about(path).read_bytes())
    except (OSError, ValueError):  # taken this instant, or let go this instant
        return {}
    return owner


def _busy(error: sqlite3.Error) -> bool:
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
