"""What a list says of each search, kept until what it depends on changes: a thousand searches are not read for a page.

    >>> summaries = Summaries(store)
    >>> summaries.brief("digits-3fa2b1")["trials"]
    {'complete': 12}

A search's declaration never changes; what its log and its attempts say changes only with their directories.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.board.contract import IDLE, PRIORITY, Job
from service.goal import wanted
from service.summary import WitnessStore, summary
from trials import layout
from trials.lease import holder
from trials.store import Damaged, NotFound, SearchStore, Store

_TICK = 1_000_000_000  # ns: a directory changed since may change again without showing it


class Summaries:
    """Briefs of the searches in a store. Safe from many threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._facts: dict[str, dict[str, Any]] = {}
        self._briefs: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}

    def search(self, text: str) -> SearchStore:
        """The search with that id, or the one whose id alone begins so. Raises `NotFound` and `Invalid`."""
        path = layout.search(self._store.root, text)
        if not layout.id_faults("", text) and layout.spec(path).is_file():
            return SearchStore(text, path)
        return WitnessStore(self._store.root).named(text)

    def ids(self) -> list[tuple[int, str]]:
        """When each search was created (ns) and its id, the newest first."""
        path = layout.searches(self._store.root)
        names = os.listdir(path) if path.is_dir() else []
        found = ((facts["ns"], name) for name in names if (facts := self.facts(name)))
        return sorted(found, reverse=True)

    def facts(self, search_id: str) -> dict[str, Any]:
        """What the declaration says that a list shows; nothing where there is no such search."""
        with self._lock:
            if known := self._facts.get(search_id):
                return known
        path = layout.spec(layout.search(self._store.root, search_id))
        try:
            if layout.id_faults("", search_id):
                return {}
            created = path.stat().st_mtime_ns
            document = SearchStore(search_id, path.parent).spec()
        except Damaged:
            document = {}
        except OSError:
            return {}
        objective = document.get("spec", {}).get("objective", {})
        facts = {
            "ns": created,
            "name": str(document.get("name", search_id)),
            "owner": str(document.get("owner", "")),
            "priority": document.get("priority", PRIORITY),
            "submitted": bool(document.get("submitted")),
            "metric": objective.get("metric"),
            "mode": objective.get("mode"),
        }
        with self._lock:
            self._facts[search_id] = facts
        return facts

    def brief(self, search_id: str) -> dict[str, Any]:
        """Counts, the best value and what the log says of the state: as old as the last change of the log."""
        search = SearchStore(search_id, layout.search(self._store.root, search_id))
        try:
            stamp = _stamp(search.path)
        except OSError:
            raise NotFound(f"search: no search {search_id!r}; it was there a moment ago.") from None
        with self._lock:
            known = self._briefs.get(search_id)
        if known and known[0] == stamp:
            return known[1]
        looked = time.time_ns()
        whole = summary(search)
        best = whole["best"]
        brief = {
            "asked": whole["asked"],
            "trials": whole["trials"],
            "best": best and {"trial": best["trial"], "value": best["value"]},
            "said": said(search),
            "why": whole["why"],
        }
        if looked - max(stamp) > _TICK:
            with self._lock:
                self._briefs[search_id] = (stamp, brief)
        return brief

    def row(self, search_id: str, job: Job | None) -> dict[str, Any]:
        """A search as a list shows it."""
        facts, brief = self.facts(search_id), self.brief(search_id)
        search = SearchStore(search_id, layout.search(self._store.root, search_id))
        goal = job or wanted(search)
        return {
            "search_id": search_id,
            "name": facts.get("name", search_id),
            "state": self.state(search_id, job),
            "why": (job.why if job else "") or brief["why"] or None,
            "owner": facts.get("owner", ""),
            "priority": job.priority if job else facts.get("priority", PRIORITY),
            "workers": goal.workers,
            "goal_version": job.goal if job else wanted(search).version,
            "created": facts.get("ns", 0) / 1e9,
            "metric": facts.get("metric"),
            "mode": facts.get("mode"),
            "asked": brief["asked"],
            "trials": brief["trials"],
            "best": brief["best"],
        }

    def state(self, search_id: str, job: Job | None) -> str:
        """The state as everyone is told it: the board's where the search is on it, else what its log and goal say."""
        if job is not None and not (job.by_hand and not job.leased):
            return job.status
        search = SearchStore(search_id, layout.search(self._store.root, search_id))
        if holder(layout.lease(search.path)) is not None:
            return "running"
        last = self.brief(search_id)["said"]
        if last is None and self.facts(search_id).get("submitted"):
            return IDLE[wanted(search).state]
        return "interrupted" if last in (None, "running") else str(last)


def said(search: SearchStore) -> str | None:
    """The last state that the log has; None where it has none."""
    states = [str(event.body["state"]) for event in search.log() if event.kind == "state"]
    return states[-1] if states else None


def job_facts(job: Job | None) -> Mapping[str, Any] | None:
    """A job as plain data, with its status."""
    if job is None:
        return None
    names = ("priority", "goal", "wanted", "workers", "over", "why", "runner", "epoch", "seconds_left", "failures")
    return {
        "status": job.status,
        **{name: getattr(job, name) for name in (*names, "waits", "beat", "by_hand")},
        "progress": dict(job.progress),
    }


def _stamp(path: Path) -> tuple[int, int]:
    return (layout.log(path).stat().st_mtime_ns, layout.metrics(path).stat().st_mtime_ns)
