"""What a list says of each search, kept until what it depends on changes: a thousand searches are not read for a page.

    >>> summaries = Summaries(store)
    >>> summaries.brief("digits-3fa2b1")["trials"]
    {'complete': 12}

A search's declaration never changes; what else is said of it holds as long as its `trials.mark.Mark` does.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

from service.board.contract import PRIORITY, Job
from service.goal import first
from service.summary import WitnessStore, best_of, ended_trials, metric_of
from trials import layout
from trials.lease import held
from trials.mark import Mark
from trials.store import Damaged, Goal, NotFound, SearchStore, Store


class Summaries:
    """Briefs of the searches in a store. Safe from many threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._facts: dict[str, dict[str, Any]] = {}
        self._briefs: dict[str, tuple[Mark, dict[str, Any]]] = {}

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
            **({"goal": first(document)} if document else {}),
        }
        with self._lock:
            self._facts[search_id] = facts
        return facts

    def brief(self, search_id: str) -> dict[str, Any]:
        """Counts, the best value, the goal, and the state while nobody drives it."""
        with self._lock:
            known = self._briefs.get(search_id)
        if known and known[0].holds():
            return known[1]
        search = SearchStore(search_id, layout.search(self._store.root, search_id))
        try:
            mark = Mark.of(search.path)
            brief = self._read(search)
        except FileNotFoundError:
            raise NotFound(f"search: no search {search_id!r}; it was there a moment ago.") from None
        if mark.settled:
            with self._lock:
                self._briefs[search_id] = (mark, brief)
        return brief

    def _read(self, search: SearchStore) -> dict[str, Any]:
        events, facts = search.log(), self.facts(search.id)
        ended = ended_trials(search, events)
        best = best_of(ended.values(), facts.get("mode"))
        states = [event.body for event in events if event.kind == "state"]
        goals = search.goals()
        return {
            "asked": sum(len(event.body["trials"]) for event in events if event.kind == "asked"),
            "trials": dict(sorted(Counter(outcome.ending.value for outcome in ended.values()).items())),
            "best": best and {"trial": best.number, "value": best.value},
            "metric": metric_of(facts, ended.values()),
            "created": search.created(events, {"submitted": facts.get("submitted")}),
            "idle": search.idle_state(events, {"submitted": facts.get("submitted")}),
            "why": states[-1].get("why") if states else None,
            "goal": goals[-1] if goals else facts.get("goal", Goal(workers=0)),
        }

    def row(self, search_id: str, job: Job | None) -> dict[str, Any]:
        """A search as a list shows it."""
        facts, brief = self.facts(search_id), self.brief(search_id)
        return {
            "search_id": search_id,
            "name": facts.get("name", search_id),
            "state": self.state(search_id, job),
            "why": (job.why if job else "") or brief["why"] or None,
            "owner": facts.get("owner", ""),
            "priority": job.priority if job else brief["goal"].priority or facts.get("priority", PRIORITY),
            "workers": job.workers if job else brief["goal"].workers,
            "goal_version": job.goal if job else brief["goal"].version,
            "created": brief["created"],
            "metric": brief["metric"],
            "mode": facts.get("mode"),
            "asked": brief["asked"],
            "trials": brief["trials"],
            "best": brief["best"],
        }

    def state(self, search_id: str, job: Job | None) -> str:
        """The state as everyone is told it: the board's where the search is on it, else what its log and goal say."""
        if job is not None and not (job.by_hand and not job.leased):
            return job.status
        if held(layout.lease(layout.search(self._store.root, search_id))):
            return "running"
        return str(self.brief(search_id)["idle"])


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
