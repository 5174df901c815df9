"""The trial store: what was decided (a log of events) and what was measured (attempts), in Arrow files.

    >>> search = Store("runs").create("digits-1", {"name": "digits"})
    >>> log = search.log_writer(epoch=1)
    >>> log.append("asked", {"generation": 0, "trials": [{"number": 0, "point": {"lr": 0.1}}]})   # durable on return
    >>> writer = search.attempt_writer("b0", attempt=0)
    >>> writer.append(outcome); writer.close()          # closed by its final segment: history
    >>> log.append("told", {"bundle": "b0", "attempt": 0, "numbers": [0]})
    >>> search.outcomes()

The events the store itself understands: `asked` and `told` as above, and `state` {"state": ...}; others are kept for
whoever wrote them. Of several attempts at a bundle one *counts*: the one that a `told` names (the last such), else the
lowest that is closed. Nothing stored is ever overwritten or deleted, but for checkpoints that later ones replace;
damaged files are passed over and listed.
"""

from __future__ import annotations

import difflib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from search_spaces.faults import Invalid
from trials import checkpoints, goals, layout, rows, segments
from trials.attempts import AttemptWriter, is_closed
from trials.attempts import tables as attempt_tables
from trials.curves import Curves
from trials.goals import Goal
from trials.lease import Held, Lease, holder
from trials.log import Event, LogWriter, close_epochs, last_epoch
from trials.log import events as log_events
from trials.records import Checkpoint, Ending, Outcome, Start, trial_id
from trials.segments import Conflict, Damaged

__all__ = [
    "AttemptWriter",
    "Conflict",
    "Damaged",
    "Event",
    "Goal",
    "Held",
    "Lease",
    "LogWriter",
    "NotFound",
    "SearchStore",
    "Store",
]

#: what a search is that nobody drives, by the state that its goal wants
OVER = ("complete", "failed")
IDLE = {"pause": "paused", "stop": "stopped", "cancel": "cancelled"}


class NotFound(LookupError):
    """There is no such search."""


class Store:
    """All searches under one directory.

    Raises:
        Invalid: when `root` cannot be made or written to.
    """

    def __init__(self, root: Path | str, *, reading: bool = False) -> None:
        self.root = Path(root)
        if self.root.exists() and not self.root.is_dir():
            raise Invalid([f"store: must be a directory, but got the file {self.root}; choose another with --store."])
        if not reading:
            self._make_writable()

    @classmethod
    def open_for_reading(cls, root: Path | str) -> Store:
        """A store that may be read-only, or not there yet (then it has no searches)."""
        return cls(root, reading=True)

    def _make_writable(self) -> None:
        path = layout.searches(self.root)
        try:
            path.mkdir(parents=True, exist_ok=True)
            reason = "" if os.access(path, os.W_OK | os.X_OK) else "we may not write there"
        except OSError as error:
            reason = error.strerror or str(error)
        if reason:
            raise Invalid([f"store: {self.root} must be writable, but got: {reason}; choose another with --store."])

    def create(self, search_id: str, spec: Mapping[str, Any]) -> SearchStore:
        """A new search, durable on return.

        Raises:
            Invalid: when the id is not a name, or taken.
        """
        if faults := layout.id_faults("search", search_id):
            raise Invalid(faults)
        text = rows.to_json(spec)
        path = layout.search(self.root, search_id)
        hidden = path.with_name(f".{search_id}.{secrets.token_hex(6)}.tmp")
        try:
            for directory in (hidden, layout.log(hidden), layout.metrics(hidden), layout.checkpoints(hidden)):
                directory.mkdir()
            segments.write_bytes(layout.spec(hidden), text.encode())
            os.rename(hidden, path)  # refuses a directory that is not empty, so no search is ever replaced
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            rule = "an id is used once"
            raise Invalid([f"search: {rule}, but {search_id!r} is taken; choose another or resume it."]) from None
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        try:
            segments.sync_directory(path.parent)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return SearchStore(search_id, path)

    def searches(self) -> list[str]:
        """The ids of all searches, sorted."""
        path = layout.searches(self.root)
        names = os.listdir(path) if path.is_dir() else []
        return sorted(name for name in names if not layout.id_faults("", name) and layout.spec(path / name).is_file())

    def search(self, search_id: str) -> SearchStore:
        """A search by its id.

        Raises:
            NotFound: naming the nearest id there is.
        """
        path = layout.search(self.root, search_id)
        if not layout.id_faults("", search_id) and layout.spec(path).is_file():
            return SearchStore(search_id, path)
        known = self.searches()
        near = difflib.get_close_matches(search_id, known, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"The store has {len(known)} searches; list them."
        raise NotFound(f"search: no search {search_id!r} in {self.root}. {hint}")


class SearchStore:
    """One search: its spec, its log, and its attempts."""

    def __init__(self, search_id: str, path: Path) -> None:
        self.id = search_id
        self.path = path
        self._reader = segments.Reader()
        self._damaged: dict[Path, Damaged] = {}

    def spec(self) -> dict[str, Any]:
        """The declaration it was created with; raises `Damaged` when that cannot be read."""
        path = layout.spec(self.path)
        try:
            spec: dict[str, Any] = rows.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Damaged(path, f"cannot be read: {error}") from error
        return spec

    def lease(self) -> Lease:
        """The right to be this search's one owner; its epochs lie above every epoch in the log."""
        return Lease(layout.lease(self.path), above=self._last_epoch())

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: Checkpoint) -> Path:
        """A checkpoint, durable on return; earlier ones of the same attempt are removed then. Raises OSError."""
        return checkpoints.save(layout.checkpoints(self.path), checkpoint)

    def checkpoints(self) -> dict[tuple[str, int], int]:
        """The last step of each attempt, by bundle and number, that has a checkpoint: by the names of files alone."""
        return checkpoints.places(layout.checkpoints(self.path))

    def load_checkpoint(self, start: Start, numbers: Sequence[int]) -> Checkpoint:
        """Those trials of a checkpoint, in that order.

        Raises:
            Damaged: it is not there, is not what was written, or is of a version that is not known here.
            ValueError: it does not hold one of the trials.
        """
        return checkpoints.load(layout.checkpoints(self.path), start, numbers)

    # -- the goal --------------------------------------------------------------------------------------------------

    def goals(self) -> list[Goal]:
        """Every version of what was wanted after the spec, in order."""
        return goals.read(layout.goals(self.path), self._lost)

    def goal_version(self) -> int:
        """The version of what is wanted now: cheap, for whoever looks often; 0 is the spec's own."""
        return goals.last_version(layout.goals(self.path))

    def set_goal(self, goal: Goal) -> None:
        """A new version of what is wanted, durable on return; raises `Conflict` where that version is there."""
        goals.write(layout.goals(self.path), goal)

    # -- the log ---------------------------------------------------------------------------------------------------

    def log_writer(self, epoch: int) -> LogWriter:
        """The one writer of `epoch`; raises `Conflict` where that epoch, or a later one, has been written. Those of
        earlier epochs are refused from now on."""
        if (last := self._last_epoch()) >= epoch:
            raise Conflict(f"log: epochs rise, but got {epoch} where {last} is written; take the lease for a new one.")
        close_epochs(layout.log(self.path), range(max(last, 0), epoch))
        return LogWriter(layout.log(self.path), epoch)

    def _last_epoch(self) -> int:
        return last_epoch(layout.log(self.path))

    def log(self) -> list[Event]:
        """All events in the order of writing."""
        return log_events(layout.log(self.path), self._read)

    def state(self, events: Sequence[Event] | None = None) -> str:
        """How it stands: running while somebody holds its lease (one that was killed could not write that it runs no
        more), else its `idle_state`."""
        if holder(layout.lease(self.path)) is not None:
            return "running"
        return self.idle_state(self.log() if events is None else events)

    def idle_state(self, events: Sequence[Event], document: Mapping[str, Any] | None = None) -> str:
        """How it stands where nobody holds its lease: complete or failed, as the last `state` event says, unless its
        goal has changed since; else paused, stopped or cancelled where its goal says so, queued where a runner
        is to take it up, or interrupted. `document` saves reading the spec."""
        said = [event.body for event in events if event.kind == "state"]
        found = self.goals()
        if said and said[-1]["state"] in OVER and not any(g.version > said[-1].get("goal", g.version) for g in found):
            return str(said[-1]["state"])
        goal = found[-1].state if found else "run"
        if goal in IDLE:
            return IDLE[goal]
        try:
            document = self.spec() if document is None else document
            return "queued" if document.get("submitted") else "interrupted"
        except Damaged:
            return "interrupted"

    def created(self, events: Sequence[Event], document: Mapping[str, Any]) -> float:
        """When it was submitted, or else when it first ran, in Unix seconds."""
        if events and not document.get("submitted"):
            return events[0].time
        return layout.spec(self.path).stat().st_mtime

    # -- attempts --------------------------------------------------------------------------------------------------

    def attempt_writer(self, bundle_id: str, attempt: int, start: Start | None = None) -> AttemptWriter:
        """The one writer of an attempt, which goes on from `start`; raises `Conflict` where it has had one."""
        if faults := layout.id_faults("bundle", bundle_id):
            raise Invalid(faults)
        return AttemptWriter(layout.attempt(self.path, bundle_id, attempt), self.id, bundle_id, attempt, start)

    def attempts(self) -> dict[tuple[str, int], bool]:
        """Every attempt, by bundle and number, and whether it is closed (a damaged final segment still closes)."""
        with os.scandir(layout.metrics(self.path)) as entries:
            found = {place: entry.path for entry in entries if (place := layout.attempt_of(entry.name))}
        return {place: is_closed(found[place]) for place in sorted(found)}

    def told(self, events: Sequence[Event] | None = None) -> dict[str, int]:
        """For each bundle told of, the attempt that was told last, in the order of telling."""
        told: dict[str, int] = {}
        for event in self.log() if events is None else events:
            if event.kind == "told":
                told.pop(event.body["bundle"], None)
                told[event.body["bundle"]] = event.body["attempt"]
        return told

    def told_trials(self, events: Sequence[Event]) -> dict[int, tuple[str, int]]:
        """For each trial told of, by number, the attempt whose outcome was told."""
        return {
            number: (event.body["bundle"], event.body["attempt"])
            for event in events
            if event.kind == "told"
            for number in event.body["numbers"]
        }

    def counting(self, events: Sequence[Event] | None = None) -> dict[str, int]:
        """For each bundle with one, the attempt that counts: those told, in that order, then those only closed."""
        there = self.attempts()
        told = self.told(events)
        counting = {bundle_id: attempt for bundle_id, attempt in told.items() if (bundle_id, attempt) in there}
        for (bundle_id, attempt), closed in there.items():
            if closed and bundle_id not in told:
                counting.setdefault(bundle_id, attempt)
        return counting

    def attempt_outcomes(self, bundle_id: str, attempt: int) -> list[Outcome]:
        """The outcomes of one attempt, closed or not."""
        return rows.outcomes_of(rows.joined(self._tables((bundle_id, attempt))))

    def closed_outcomes(self, bundle_id: str, attempt: int) -> list[Outcome]:
        """The same of an attempt that is closed, which has some; none of any other."""
        place = layout.attempt(self.path, bundle_id, attempt)
        return self.attempt_outcomes(bundle_id, attempt) if place.is_dir() and is_closed(place) else []

    def outcomes(self, closed_only: bool = True) -> list[Outcome]:
        """Each trial's outcome, in the order of telling, then those closed and not told yet; of every attempt if not
        `closed_only`."""
        return rows.outcomes_of(self.outcome_rows(closed_only))

    def outcomes_table(self, closed_only: bool = True) -> pa.Table:
        """The same as a table: `trials.rows.SCHEMA` without `record`, and a column a metric (null: not measured)."""
        table = self.outcome_rows(closed_only)
        return rows.expose(table.select([*rows.FIXED[1:], *rows.measured(table.column_names, rows.METRIC)]))

    def reports_table(self, every_attempt: bool = False) -> pa.Table:
        """Reports: `search_id, trial_id, bundle_id, attempt, step, flops, executed_flops, device_seconds`, a column
        a metric and `arch.<name>` a number of the architecture. Of an attempt from whose checkpoint a trial went on,
        in whatever bundle, only what lies before that, unless `every_attempt`."""
        return rows.reports_of(self.report_rows(every_attempt))

    def outcome_rows(self, closed_only: bool = True, events: Sequence[Event] | None = None) -> pa.Table:
        """The outcomes as they are stored; `events` saves reading the log."""
        if not os.listdir(layout.metrics(self.path)):
            return rows.none()
        if not closed_only:
            return rows.only(rows.OUTCOME, rows.joined(t for place in self.attempts() for t in self._tables(place)))
        events = self.log() if events is None else events
        places = self.counting(events).items()
        found = rows.only(rows.OUTCOME, rows.joined(t for place in places for t in self._tables(place)))
        return found.take(pa.array(_one_a_trial(found, self.told_trials(events)), pa.int64()))

    def report_rows(self, every_attempt: bool = False) -> pa.Table:
        """The reports as they are stored."""
        if not os.listdir(layout.metrics(self.path)):
            return rows.none()
        if every_attempt:
            return rows.only(
                rows.REPORT, rows.joined(table for place in self.attempts() for table in self._tables(place))
            )
        events = self.log()
        counting, told = self.counting(events), self.told_trials(events)
        whose = {trial_id(self.id, number): bundle_id for number, (bundle_id, _) in told.items()}
        whose = {trial: bundle_id for trial, bundle_id in whose.items() if bundle_id in counting}
        return rows.joined(Curves(self._tables, self.attempts(), counting, whose).parts())

    def _tables(self, place: tuple[str, int]) -> Iterator[pa.Table]:
        return attempt_tables(layout.attempt(self.path, *place), self._read)

    # -- damage ----------------------------------------------------------------------------------------------------

    @property
    def damaged(self) -> list[Damaged]:
        """What the reading so far could not trust; nothing of it is in any result."""
        return list(self._damaged.values())

    def verify(self) -> list[Damaged]:
        """Reads every segment anew, digest and all, and returns what is damaged."""
        self._reader.forget()
        self._damaged.clear()
        self.log()
        self.goals()
        for place in self.attempts():
            list(self._tables(place))
        for path in checkpoints.files(layout.checkpoints(self.path)):
            try:
                checkpoints.check(path)
            except Damaged as damage:
                if path.exists():  # else its writer has removed it for a later one
                    self._lost(damage)
        return self.damaged

    def _lost(self, damage: Damaged) -> None:
        self._damaged[damage.path] = damage

    def _read(self, path: Path) -> pa.Table | None:
        try:
            table = self._reader.read(path)
        except Damaged as damage:
            self._damaged[path] = damage
            return None
        self._damaged.pop(path, None)
        return table


def _one_a_trial(outcomes: pa.Table, told: Mapping[int, tuple[str, int]]) -> list[int]:
    """The rows that count: what was told of a trial; else the first that is closed, unless it calls for a retry.

    A bundle that was given up may be closed after all by a worker thought dead, when its trials are told elsewhere.
    """
    kept: list[int] = []
    seen: set[int] = set()
    facts = (outcomes[name].to_pylist() for name in ("number", "bundle_id", "attempt", "ending"))
    for index, (number, bundle_id, attempt, ending) in enumerate(zip(*facts, strict=True)):
        counts = told[number] == (bundle_id, attempt) if number in told else not Ending(ending).retried
        if counts and number not in seen:
            seen.add(number)
            kept.append(index)
    return kept
