"""The board anew from the store: after a board was lost or came back from an old copy, and whenever a service starts.

    >>> rebuild(store, board)       # how many searches were posted, or told of a later goal; 0 where all is well
    0

The store says what is wanted (`service.goal.wanted`) and how each search ended, so nothing but leases and progress is
lost with a board. A runner of before finds its lease gone (`LeaseLost`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from search_spaces.faults import Invalid
from service.board.contract import OVER, PRIORITY, Board, Job
from service.goal import TAKES_UP, wanted
from trials import layout
from trials.goals import Goal
from trials.store import Event, SearchStore, Store

PAGE = 500
_OTHERS = ("comparison", "retrain_of")  # labels of searches that others drive: comparisons and retrainings
_log = logging.getLogger(__name__)


def rebuild(store: Store, board: Board, *, skipped: Callable[[str, Exception], None] | None = None) -> int:
    """Post what the store has and the board lacks, and tell the board of goals later than it knows.

    A search that cannot be read is passed over; `skipped` is told of it (by default, the log). It is cheap where there
    is nothing to do: a listing of the board, and the names of the files in the store.

    Raises:
        Unreachable: when the board does not answer; what was done by then stays done.
    """
    tell = skipped or _warn
    known = {job.id: job.goal for job in _every(board)}
    changed, missing = 0, []
    for search_id in store.searches():
        search = SearchStore(search_id, layout.search(store.root, search_id))
        try:
            if search_id not in known:
                missing.append(posted(search))
                continue
            later = _later(search, known[search_id])
        except Exception as error:  # whatever is wrong with one search, the others are posted
            tell(search_id, error)
            continue
        if later:
            board.control(search_id, **mirrored(later))
            changed += 1
    for job in sorted(missing, key=lambda job: (job.created, job.id)):
        try:
            board.post(job)
            changed += 1
        except Invalid as error:
            tell(job.id, error)
    return changed


def posted(search: SearchStore) -> Job:
    """A search as it stands in the store, as a job. Raises `Damaged` without a spec."""
    document, goal, events = search.spec(), wanted(search), search.log()
    over, why = _ending(search, goal, events)
    return Job(
        id=search.id,
        name=str(document.get("name", "")),
        owner=str(document.get("owner", "")),
        priority=goal.priority or int(document.get("priority", PRIORITY)),
        workers=goal.workers,
        goal=goal.version,
        wanted=goal.state,
        over=over,
        why=why,
        created=layout.spec(search.path).stat().st_mtime,
        by_hand=not for_runners(search, document),
    )


def mirrored(goal: Goal) -> dict[str, Any]:
    """What a board knows of a goal, as `Board.control` takes it."""
    return {"goal": goal.version, "wanted": goal.state, "workers": goal.workers, "priority": goal.priority}


def _every(board: Board) -> Iterator[Job]:
    page = board.list(limit=PAGE)
    while page:
        yield from page
        page = board.list(limit=PAGE, before=page[-1].seq)


def _later(search: SearchStore, known: int) -> Goal | None:
    """The goal, where it is later than is known. One for which no runner may take the search changes nothing."""
    if search.goal_version() <= known:
        return None
    goal = wanted(search)  # the names may count a version that cannot be read
    return goal if goal.version > known and for_runners(search) else None


def _ending(search: SearchStore, goal: Goal, events: Sequence[Event]) -> tuple[str, str]:
    """How a search is over, and why; nothing where it is not, or where more was wanted of it since."""
    state = search.state(events)
    if state not in OVER:
        return "", ""
    last = max(n for n, event in enumerate(events) if event.kind == "state")
    said = events[last].body
    adopted = max((int(event.body["version"]) for event in events[:last] if event.kind == "goal"), default=0)
    return (state, str(said.get("why") or "")) if said.get("goal", adopted) >= goal.version else ("", "")


def for_runners(search: SearchStore, document: Mapping[str, Any] | None = None) -> bool:
    """Whether a runner may take it: it was submitted, or run by hand and resumed or extended since. A replay, or part
    of a comparison or retraining, is never for one. Raises `Damaged` without a spec."""
    document = search.spec() if document is None else document
    labels = document.get("labels") or {}
    if document.get("replay") or any(label in labels for label in _OTHERS):
        return False
    return bool(document.get("submitted")) or any(goal.verb in TAKES_UP for goal in search.goals())


def _warn(search_id: str, error: Exception) -> None:
    _log.warning("search %s is not on the board: %s; see `continua doctor`.", search_id, error)
