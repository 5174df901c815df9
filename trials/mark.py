"""When a search last changed, by the times of its directories: whether what was read of it still holds.

    >>> mark = Mark.of(search)               # before reading
    >>> rows = search.outcome_rows()
    >>> mark.holds()                         # a few looks at directories, whatever is in them
    True

The log, the attempts, the goals and the spec are followed, and the insides of those attempts that are not closed; who
holds the lease is not. A mark that is not `settled` is of a search that changed just now: as two changes within one
tick of a file system's clock look like one, it says nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trials import layout
from trials.attempts import is_closed

TICK = 1_000_000_000  # ns: no file system's clock is coarser

_Facts = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """How the places that a search's results depend on stood at one moment."""

    places: tuple[str, ...]
    facts: tuple[_Facts | None, ...]
    settled: bool

    @classmethod
    def of(cls, search: Path | str) -> Mark:
        """The mark of the search in that directory, to be taken before it is read. Raises OSError without one."""
        looked, path = time.time_ns(), Path(search)
        log, metrics = layout.log(path), layout.metrics(path)
        places = [str(place) for place in (log, metrics, layout.goals(path), layout.spec(path))]
        facts = [_facts(place) for place in places]  # before its attempts are listed: a new one is missed by neither
        opened = _unclosed(metrics)
        facts += [_facts(place) for place in opened]
        last = max((fact[1] for fact in facts if fact), default=looked)
        return cls(places=(*places, *opened), facts=tuple(facts), settled=looked - last > TICK)

    def holds(self) -> bool:
        """Whether nothing has changed since."""
        return self.settled and all(map(_stands, self.places, self.facts))


def _stands(place: str, facts: _Facts | None) -> bool:
    return _facts(place) == facts


def _facts(place: str) -> _Facts | None:
    try:
        found = os.stat(place)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _unclosed(metrics: Path) -> list[str]:
    """The attempts that may still grow."""
    return sorted(path for path in _attempts(metrics) if not is_closed(path))


def _attempts(metrics: Path) -> Iterable[str]:
    with os.scandir(metrics) as entries:
        return [entry.path for entry in entries if layout.attempt_of(entry.name)]
