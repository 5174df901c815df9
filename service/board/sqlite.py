"""The board in one SQLite file on a local disk: the default, with nothing to set up.

    >>> board = SQLiteBoard("/var/continua/board.sqlite")
    >>> board.post(Job(id="digits-3fa2b1"))          # on the disk when this returns: it survives a power cut

Any number of threads and processes may have it open. Leases run on the time since the machine was started, which no
setting of the clock changes, and belong to that start: after another one, none is live.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from search_spaces.faults import Invalid
from service.board import rules
from service.board.contract import IDLE, LEASED, Job, LeaseLost, Unreachable
from trials import rows

APPLICATION, VERSION = 0x436F6E74, 1  # what marks a file as ours; its schema
AHEAD = 64  # pages of the write-ahead log after which it begins anew: SQLite's own 1000 would fill a disk nearly full
Clock = Callable[[], tuple[str, float]]

# `until` is the end of the lease where there is a runner, else of the waiting; it counts only within its `boot`.
_SCHEMA = (
    """CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, owner TEXT NOT NULL,
        priority INTEGER NOT NULL, workers INTEGER NOT NULL, goal INTEGER NOT NULL, wanted TEXT NOT NULL,
        over TEXT NOT NULL, why TEXT NOT NULL, created REAL NOT NULL, by_hand INTEGER NOT NULL,
        failures INTEGER NOT NULL, progress TEXT NOT NULL, beat INTEGER NOT NULL DEFAULT 0,
        runner TEXT NOT NULL DEFAULT '', epoch INTEGER NOT NULL DEFAULT 0, boot TEXT NOT NULL, until REAL NOT NULL)""",
    # with `boot` and `until`, the heads of the queues are found without a look at the rows
    """CREATE INDEX queues ON jobs (priority, owner, seq, boot, until)
        WHERE over = '' AND wanted = 'run' AND by_hand = 0""",
    "CREATE INDEX leases ON jobs (owner, boot, until) WHERE runner <> ''",
    "CREATE INDEX owners ON jobs (owner, seq)",
)
_POSTED = ("id", "name", "owner", "priority", "workers", "goal", "wanted", "over", "why", "created", "by_hand")
_LIVE = "boot = :boot AND until > :now"


def _cases(statuses: Mapping[str, str]) -> str:
    return "CASE wanted " + " ".join(f"WHEN '{wanted}' THEN '{name}'" for wanted, name in statuses.items()) + " END"


_STATUS = f"CASE WHEN runner <> '' AND {_LIVE} THEN {_cases(LEASED)} WHEN over <> '' THEN over ELSE {_cases(IDLE)} END"


def boottime() -> tuple[str, float]:
    """Which start of the machine this is, and the seconds since then, asleep or not (elsewhere than on Linux: the wall
    clock, whose settings then count)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, AttributeError):
        return "unknown", time.time()


#: connections to files that are gone: closing one would take away the write-ahead log of the file in its place
_LEFT: list[sqlite3.Connection] = []


class SQLiteBoard:
    """The board of `contract.Board` in the file `path`, which is made where it is not there.

    `clock` gives the start of the machine and the seconds since then; `patience` is how many seconds others may keep
    the file to themselves.

    Raises:
        Invalid: when the file is not a board, is damaged, or cannot be written.
        Unreachable: when others keep the file locked.
    """

    def __init__(self, path: Path | str, *, clock: Clock = boottime, patience: float = 10.0) -> None:
        self.warnings: list[str] = []
        self._path, self._clock, self._patience = Path(path), clock, patience
        self._open()

    # -- the verbs -------------------------------------------------------------------------------------------------

    def post(self, job: Job) -> Job:
        """See `contract.Board.post`."""
        rules.check_job(job)
        values = {name: getattr(job, name) for name in _POSTED}
        values |= {name: rules.text(values[name]) for name in ("name", "owner", "why")}
        values |= {"failures": job.failures, "progress": rules.progress_text(job.progress)}
        with self._writing() as (run, clock):
            values |= {"boot": clock["boot"], "until": clock["now"] + job.waits if job.waits else 0.0}
            names, marks = ", ".join(values), ", ".join(f":{name}" for name in values)
            there = run("SELECT 1 FROM jobs WHERE id = ?", (job.id,)).fetchone()
            if not there:
                run(f"INSERT INTO jobs ({names}) VALUES ({marks})", values)
            return self._get(run, job.id, clock)

    def claim(self, runner: str, ttl: float, *, quotas: Mapping[str, int] | None = None) -> Job | None:
        """See `contract.Board.claim`."""
        rules.check_lease(ttl, runner)
        with self._writing() as (run, clock):
            held = dict(run(f"SELECT owner, count(*) FROM jobs WHERE runner <> '' AND {_LIVE} GROUP BY owner", clock))
            heads = run(
                "SELECT priority, owner, min(seq) FROM jobs INDEXED BY queues WHERE over = '' AND wanted = 'run'"
                f" AND by_hand = 0 AND NOT ({_LIVE}) GROUP BY priority, owner",
                clock,
            )
            seq = rules.first(map(tuple, heads), held, quotas)
            if seq is None:
                return None
            search_id, last = run("SELECT id, epoch FROM jobs WHERE seq = ?", (seq,)).fetchone()
            epoch = max(last + 1, time.time_ns() // 1000)
            lease = {"runner": rules.text(runner), "epoch": epoch, "boot": clock["boot"], "until": clock["now"] + ttl}
            return self._change(run, clock, search_id, **lease)

    def renew(self, search_id: str, epoch: int, ttl: float, progress: Mapping[str, Any] | None = None) -> Job:
        """See `contract.Board.renew`."""
        rules.check_lease(ttl)
        said: dict[str, Any] = {} if progress is None else {"progress": rules.progress_text(progress)}
        with self._writing() as (run, clock):
            job = self._held(run, search_id, epoch, clock)
            beat = job.beat + (progress is not None)
            return self._change(run, clock, search_id, until=clock["now"] + ttl, beat=beat, **said)

    def finish(self, search_id: str, epoch: int, *, over: str = "", why: str = "", goal: int = 0) -> Job:
        """See `contract.Board.finish`."""
        rules.check_ending(over=over)
        with self._writing() as (run, clock):
            current = self._held(run, search_id, epoch, clock).goal <= goal
            ending = {"over": over, "why": rules.text(why)} if current else {"over": "", "why": ""}
            return self._change(run, clock, search_id, runner="", until=0.0, **ending)

    def fail(self, search_id: str, epoch: int, *, why: str = "", delay: float = 0.0, blame: bool = True) -> Job:
        """See `contract.Board.fail`."""
        rules.check_ending(delay=delay)
        with self._writing() as (run, clock):
            failures = self._held(run, search_id, epoch, clock).failures + bool(blame)
            until = clock["now"] + delay if delay else 0.0
            said = {"why": rules.text(why), "failures": failures}
            return self._change(run, clock, search_id, runner="", boot=clock["boot"], until=until, **said)

    def control(self, search_id: str, *, goal: int, wanted: str, workers: int, priority: int | None = None) -> Job:
        """See `contract.Board.control`."""
        rules.check_goal(goal, wanted, workers, priority)
        with self._writing() as (run, clock):
            job = self._get(run, search_id, clock)
            if goal <= job.goal:
                return job
            new: dict[str, Any] = {"goal": goal, "wanted": wanted, "workers": workers}
            new |= {"over": "", "why": "", "failures": 0, "by_hand": False}
            new |= {} if priority is None else {"priority": priority}
            new |= {} if job.leased else {"runner": "", "until": 0.0}
            return self._change(run, clock, search_id, **new)

    def get(self, search_id: str) -> Job:
        """See `contract.Board.get`."""
        with self._reading() as (run, clock):
            return self._get(run, search_id, clock)

    def list(
        self,
        *,
        before: int | None = None,
        limit: int = 100,
        owner: str | None = None,
        statuses: Collection[str] | None = None,
    ) -> list[Job]:
        """See `contract.Board.list`."""
        rules.check_page(limit, statuses)
        values: dict[str, Any] = {"limit": limit}
        clauses = ["1"]
        if before is not None:
            clauses.append("seq < :before")
            values["before"] = before
        if owner is not None:
            clauses.append("owner = :owner")
            values["owner"] = rules.text(owner)
        if statuses is not None:
            clauses.append(f"{_STATUS} IN ({', '.join(repr(name) for name in sorted(set(statuses)))})")
        with self._reading() as (run, clock):
            query = f"SELECT * FROM jobs WHERE {' AND '.join(clauses)} ORDER BY seq DESC LIMIT :limit"
            return [_job(row, clock) for row in run(query, {**clock, **values})]

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    # -- rows ------------------------------------------------------------------------------------------------------

    def _get(self, run: Any, search_id: str, clock: Mapping[str, Any]) -> Job:
        row = run("SELECT * FROM jobs WHERE id = ?", (rules.text(search_id),)).fetchone()
        if row is None:
            raise rules.no_such(search_id, [known for (known,) in run("SELECT id FROM jobs")])
        return _job(row, clock)

    def _held(self, run: Any, search_id: str, epoch: int, clock: Mapping[str, Any]) -> Job:
        job = self._get(run, search_id, clock)
        if not job.leased or job.epoch != epoch:
            raise LeaseLost(rules.lost(job, epoch))
        return job

    def _change(self, run: Any, clock: Mapping[str, Any], search_id: str, **new: Any) -> Job:
        run(
            f"UPDATE jobs SET {', '.join(f'{name} = :{name}' for name in new)} WHERE id = :id", {**new, "id": search_id}
        )
        return self._get(run, search_id, clock)

    # -- the file --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """A transaction that nobody else writes beside, and what time it is in it."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")  # may wait: the clock is read after it
            try:
                yield connection.execute, self._now()
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        with self._connected() as connection:
            yield connection.execute, self._now()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        if os.getpid() != self._pid:
            self._open()  # a forked child: no connection of SQLite's outlives a fork
        with self._lock:
            if self._file() != self._opened:  # lost, or another was put in its place: that one is the board now
                _LEFT.append(self._connection)
                self._connect()
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise self._said(error) from error

    def _now(self) -> dict[str, Any]:
        boot, now = self._clock()
        return {"boot": boot, "now": now}

    def _open(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._connect()

    def _file(self) -> tuple[int, int] | None:
        """Which file the board's is now."""
        try:
            facts = os.stat(self._path)
        except OSError:
            return None
        return facts.st_dev, facts.st_ino

    def _connect(self) -> None:
        self._opened: tuple[int, ...] | None = ()  # no file's: one that could not be opened is tried again
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self._path, timeout=self._patience, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error
        self._connection.row_factory = sqlite3.Row
        try:
            self._set_up(self._connection.execute)
        except BaseException as error:
            self._connection.close()
            if isinstance(error, sqlite3.Error):
                raise self._said(error, Invalid) from error
            raise
        self._opened = self._file()

    def _set_up(self, run: Any) -> None:
        """Make the file a board, or see that it is one. Raises `Invalid`, or what SQLite raises."""
        run("BEGIN")  # what is looked at belongs together: another process may be making the file
        ours = self._is_ours(run)
        run("COMMIT")
        self._write_ahead(run)
        run("PRAGMA synchronous = FULL")
        run(f"PRAGMA wal_autocheckpoint = {AHEAD}")
        if ours:
            return
        run("BEGIN IMMEDIATE")
        if not self._is_ours(run):  # another process may have been faster
            for statement in _SCHEMA:
                run(statement)
            run(f"PRAGMA application_id = {APPLICATION}")
            run(f"PRAGMA user_version = {VERSION}")
        run("COMMIT")

    def _is_ours(self, run: Any) -> bool:
        """Whether the file is a board of this version; not so where it is empty. Raises `Invalid` for any other."""
        (application,), (version,) = (run(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version"))
        (tables,) = run("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION and (application or tables):
            raise self._unusable("a database of something else")
        if version > VERSION:
            raise self._unusable(f"schema {version} of a later version of continua, where this one knows {VERSION}")
        return bool(application)

    def _write_ahead(self, run: Any) -> None:
        """Turn on the write-ahead log. Of several that try at once on a new file, SQLite refuses all but one without
        waiting, whatever the timeout."""
        until = time.monotonic() + self._patience
        while True:
            try:
                (mode,) = run("PRAGMA journal_mode = WAL").fetchone()
                break
            except sqlite3.OperationalError as error:
                if not _is(error, sqlite3.SQLITE_BUSY) or time.monotonic() > until:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise self._unusable(f"a disk without shared memory (journal mode {mode}); a local one is needed")

    def _unusable(self, got: object) -> Invalid:
        rule = "must be an SQLite file of continua's own that we may write"
        return Invalid([f"board: {self._path} {rule}, but got: {got}; move it away, it is rebuilt from the store."])

    def _said(self, error: sqlite3.Error, otherwise: type[Invalid | Unreachable] = Unreachable) -> Exception:
        """What SQLite's error is to our callers."""
        if _is(error, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            rule = f"others must leave it alone for a moment within {self._patience:g} s"
            return Unreachable(f"board: {self._path}: {rule}, but got: {error}; try again.")
        if _is(error, sqlite3.SQLITE_FULL):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        if _is(error, sqlite3.SQLITE_IOERR):
            return OSError(errno.EIO, f"{os.strerror(errno.EIO)}: {error}", str(self._path))
        wrong = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
        return self._unusable(error) if otherwise is Invalid or _is(error, *wrong) else Unreachable(f"board: {error}")


def _job(row: sqlite3.Row, clock: Mapping[str, Any]) -> Job:
    left = max(0.0, row["until"] - clock["now"]) if row["boot"] == clock["boot"] else 0.0
    facts = {name: row[name] for name in ("seq", "epoch", "failures", "beat", *_POSTED)}
    facts |= {"by_hand": bool(row["by_hand"]), "progress": rows.from_json(row["progress"])}
    if row["runner"] and left:
        return Job(**facts, runner=row["runner"], seconds_left=left)
    return Job(**facts, waits=0.0 if row["runner"] else left)


def _is(error: sqlite3.Error, *codes: int) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in codes
