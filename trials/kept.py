"""The tables that SQL is asked over, kept from one question to the next: only searches that changed are read again.

    >>> kept = Kept(store)
    >>> kept.table("trials")                # reads every search
    >>> kept.table("trials")                # looks at their directories

What is kept of a search holds as long as its `Mark` does; whether somebody drives it is looked at every time. For one
thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from trials import layout, tables
from trials.lease import held
from trials.mark import Mark
from trials.store import NotFound, SearchStore, Store

MIB = 1024 * 1024


@dataclass(kw_only=True)
class _Search:
    """What was read of one search, and how many bytes its tables take. `reports` are many, so they are read only when
    they are asked for."""

    search: SearchStore
    mark: Mark
    row: dict[str, Any]
    trials: pa.Table
    size: int
    reports: pa.Table | None = None
    reports_size: int = 0

    def read_reports(self) -> pa.Table:
        if self.reports is None:
            self.reports = self.search.report_rows()
            self.reports_size = int(self.reports.nbytes)
        return self.reports

    def state(self) -> str:
        return tables.RUNNING if held(layout.lease(self.search.path)) else str(self.row["state"])


class Kept:
    """The tables of a store as they are now. Of trials, of reports, and of either joined, `most` bytes are kept."""

    def __init__(self, store: Store, most: int = 64 * MIB) -> None:
        self._store, self._most = store, most
        self._known: dict[str, _Search] = {}
        self._whole: dict[str, tuple[list[pa.Table], pa.Table]] = {}
        self._now: list[_Search] = []

    def look(self) -> None:
        """Bring all up to date."""
        known, self._known, self._now = self._known, {}, []
        trials = reports = 0
        for search_id in self._store.searches():
            found = known.get(search_id)
            if found is None or not found.mark.holds():
                try:
                    found = self._read(search_id)
                except NotFound:  # it was there a moment ago
                    continue
            self._now.append(found)
            trials += found.size
            reports += found.reports_size
            if reports > self._most:
                found.reports, found.reports_size = None, 0
            if found.mark.settled and trials <= self._most:
                self._known[search_id] = found

    def _read(self, search_id: str) -> _Search:
        search = self._store.search(search_id)
        mark = Mark.of(search.path)
        row, trials = tables.row_of(search)
        return _Search(search=search, mark=mark, row=row, trials=trials, size=int(trials.nbytes))

    def searches(self) -> pa.Table:
        """The `searches` table, as it was when `look` looked."""
        return tables.of_rows([{**found.row, "state": found.state()} for found in self._now])

    def trials(self) -> pa.Table:
        """The `trials` table."""
        return self._joined("trials", [found.trials for found in self._now], tables.all_trials)

    def reports(self) -> pa.Table:
        """The `reports` table."""
        return self._joined("reports", [found.read_reports() for found in self._now], tables.all_reports)

    def _joined(self, name: str, parts: list[pa.Table], join: Callable[[list[pa.Table]], pa.Table]) -> pa.Table:
        before, table = self._whole.pop(name, ([], None))
        if table is None or [*map(id, before)] != [*map(id, parts)]:
            table = join(parts)
        if table.nbytes <= self._most:
            self._whole[name] = (parts, table)
        return table
