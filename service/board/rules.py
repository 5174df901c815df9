"""What every board refuses, and how text and progress are written, the same whatever the backend.

>>> progress_text({"best": float("nan")})
'{"best": "NaN"}'
>>> masked("redis://:secret@board:6379/0?password=secret")
'redis://board:6379/0'
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from search_spaces.faults import Invalid, unknown
from service.board.contract import OVER, PRIORITIES, STATUSES, Job
from trials import layout, rows
from trials.goals import STATES
from trials.store import NotFound

MOST_PROGRESS = 64 * 1024  # bytes of JSON: a board is read as a whole, often
MOST_TEXT = 4096  # characters of a name, an owner, a reason; what is longer is cut
MOST_SECONDS = 1e9


def check_job(job: Job) -> None:
    """Raises `Invalid` with every fault of a job that is to be posted."""
    found = layout.id_faults("job.id", job.id)
    found += _whole("job.goal", job.goal, 0) + _whole("job.failures", job.failures, 0)
    found += _seconds("job.waits", job.waits) + _wanted(job.wanted, job.workers, job.priority)
    if job.over and job.over not in OVER:
        found.append(unknown("job.over", job.over, OVER, "ending"))
    if not math.isfinite(job.created):
        found.append(f"job.created: must be finite Unix seconds, but got {job.created}.")
    _raise(found)


def check_goal(goal: int, wanted: str, workers: int, priority: int | None) -> None:
    """Raises `Invalid` with every fault of what `control` is given."""
    _raise(_whole("job.goal", goal, 0) + _wanted(wanted, workers, priority))


def check_lease(ttl: float, runner: str | None = None) -> None:
    """Raises `Invalid` where a lease cannot be had for so long, or by nobody."""
    found = _seconds("lease.ttl", ttl)
    if ttl == 0:
        found.append("lease.ttl: must be above 0 seconds, but got 0; 15 is usual.")
    if runner == "":
        found.append("lease.runner: must be a name, but got ''.")
    _raise(found)


def check_ending(over: str = "", delay: float = 0.0) -> None:
    """Raises `Invalid` for an ending that is none, or a delay that cannot be."""
    _raise([unknown("job.over", over, OVER, "ending")] if over and over not in OVER else _seconds("job.delay", delay))


def check_page(limit: int, statuses: Collection[str] | None) -> None:
    """Raises `Invalid` with every fault of a listing."""
    found = _whole("list.limit", limit, 1)
    found += [unknown("list.statuses", name, STATUSES, "status") for name in statuses or () if name not in STATUSES]
    _raise(found)


def _wanted(wanted: str, workers: int, priority: int | None) -> list[str]:
    found = _whole("job.workers", workers, 1)
    if wanted not in STATES:
        found.append(unknown("job.wanted", wanted, STATES, "state"))
    if priority is not None and priority not in PRIORITIES:
        rule = f"must be a whole number from {PRIORITIES[0]} to {PRIORITIES[-1]}, the highest first"
        found.append(f"job.priority: {rule}, but got {priority!r}.")
    return found


def _whole(where: str, value: object, least: int) -> list[str]:
    fits = isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**53
    return [] if fits else [f"{where}: must be a whole number of at least {least}, but got {value!r}."]


def _seconds(where: str, value: float) -> list[str]:
    if 0 <= value <= MOST_SECONDS:  # not so for NaN
        return []
    return [f"{where}: must be from 0 to {MOST_SECONDS:g} seconds, but got {value!r}."]


def _raise(faults: list[str]) -> None:
    if faults:
        raise Invalid(faults)


# -- what is written ---------------------------------------------------------------------------------------------------


def text(value: str) -> str:
    """Text that every backend can hold, of a length that it should."""
    return value[:MOST_TEXT].encode("utf-8", "backslashreplace").decode()


def progress_text(progress: Mapping[str, Any]) -> str:
    """Progress as JSON, NaN and all (`trials.rows`). Raises `Invalid` where it is too much, or no plain data."""
    try:
        found = rows.to_json(progress)
        size = len(found.encode())
    except (TypeError, ValueError) as error:
        raise Invalid([f"job.progress: must be plain data that JSON can hold, but got: {error}."]) from error
    if size > MOST_PROGRESS:
        rule = f"must take at most {MOST_PROGRESS} bytes as JSON"
        raise Invalid([f"job.progress: {rule}, but got {size}; say how far it is, the history is in the store."])
    return found


def first(
    heads: Iterable[tuple[int, str, int]], held: Mapping[str, int], quotas: Mapping[str, int] | None
) -> int | None:
    """Of (priority, owner, seq), the seq of the one to claim; `held` counts the leased jobs of an owner."""
    quotas = quotas or {}
    others = quotas.get("*", math.inf)
    free = [head for head in heads if held.get(head[1], 0) < quotas.get(head[1], others)]
    return min(free, key=lambda head: (-head[0], held.get(head[1], 0), head[2]))[2] if free else None


def no_such(search_id: str, known: Collection[str]) -> NotFound:
    """The error for a job that is not there, with the nearest id that is."""
    near = difflib.get_close_matches(search_id, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"It has {len(known)} searches; list them."
    return NotFound(f"board: no search {search_id!r} on the board. {hint}")


def lost(job: Job, epoch: int) -> str:
    """What a runner is told whose lease is over."""
    now = f"runner {job.runner!r} has it with epoch {job.epoch}" if job.leased else "nobody has it"
    return (
        f"search {job.id}: its lease of epoch {epoch} must be live, but {now}; let go of the search, or claim it anew."
    )


def masked(url: str) -> str:
    """A board's URL without what may be secret: its user, password and query. All of it where it cannot be read."""
    scheme = url.partition("://")[0]
    if scheme == url:
        return "..." if "@" in url else url
    try:
        parts = urlsplit(url)
        host = f"{parts.hostname or ''}:{parts.port}" if parts.port else parts.hostname or ""
    except ValueError:
        return f"{scheme}://..."
    astray = "@" in url and "@" not in parts.netloc  # a `/`, `?` or `#` of a password that should be written %2F...
    return f"{scheme}://..." if astray else f"{scheme}://{host}{parts.path}"
