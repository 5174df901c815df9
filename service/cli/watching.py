"""Following a search to its end: one live line on stderr, whether a service tells of it or its files do.

>>> follow(search, quiet=False)              # a search of a service; returns how it ended
'complete'
>>> follow_files(store.search("digits-3fa2b1"), quiet=False)
'complete'
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from service import show as out
from service.client.calls import OVER
from service.live import Live

if TYPE_CHECKING:
    from service.client import Event, Search
    from trials.store import SearchStore

LOOK = 0.5  # seconds between looks at files
ASK = 10.0  # seconds without an event after which the service is asked how the search stands


class OutOfTime(Exception):
    """The search is not over yet; the message says how it stands."""


def follow(search: Search, *, quiet: bool, timeout: float | None = None, events: bool = False) -> str:
    """Watch a service's search until it is over, and return how it ended; `events` prints each on stdout.

    Raises:
        OutOfTime: after `timeout` seconds.
        ServiceError: when the service does not come back.
    """
    told: queue.Queue[Event | BaseException] = queue.Queue()
    threading.Thread(target=_listen, args=(search, told), name="watch", daemon=True).start()
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    budget = search.goal()["budget"]
    with Live(quiet=quiet) as live:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise _late(search.id, search.refresh().state, timeout)
            try:
                event = told.get(timeout=min(ASK, left))
            except queue.Empty:
                if search.refresh().state in OVER:  # something between us may keep the events back
                    return search.state
                continue
            if isinstance(event, BaseException):
                raise event
            data = event.data if isinstance(event.data, Mapping) else {}
            if events:
                out.put(out.as_json({"id": event.id or None, "event": event.kind, "data": event.data}) + "\n")
            if event.kind == "goal":
                budget = data.get("budget") or budget
            elif event.kind == "progress":
                _show(live, data, budget)
            elif event.kind == "end":
                return str(data.get("state") or search.refresh().state)


def follow_files(search: SearchStore, *, quiet: bool, timeout: float | None = None) -> str:
    """Watch a store's search until nobody runs it nor will; returns its state. Raises `OutOfTime`."""
    from service.progress import stored

    deadline = math.inf if timeout is None else time.monotonic() + timeout
    submitted = bool(search.spec().get("submitted"))
    goes_on = ("running", *(("queued", "paused", "interrupted") if submitted else ()))
    with Live(quiet=quiet) as live:
        while True:
            state = search.state()  # before the log: what it ends with is in the log then
            live.show(stored(search))
            if state not in goes_on:
                return state
            if time.monotonic() > deadline:
                raise _late(search.id, state, timeout)
            time.sleep(LOOK)


def _late(search_id: str, state: str, timeout: float | None) -> OutOfTime:
    return OutOfTime(f"search {search_id}: is still {state} after {timeout:g} s; it goes on.")


def _listen(search: Search, told: queue.Queue[Event | BaseException]) -> None:
    try:
        for event in search.watch():
            told.put(event)
    except BaseException as error:
        told.put(error)


def _show(live: Live, data: Mapping[str, Any], budget: Mapping[str, Any]) -> None:
    """A `progress` event as a line: how the search stands on the board, and how far its driver says it is."""
    job = data.get("job") or {}
    told = job.get("progress") or {}
    if data.get("state") == "running" and told:
        live.show(_progress(told, budget))
    else:
        finished = f", {told['finished']} trials" if told.get("finished") else ""
        why = f": {job['why']}" if job.get("why") else ""
        live.tell(f"{data.get('state', '')}{finished}{why}")


def _progress(told: Mapping[str, Any], budget: Mapping[str, Any]) -> Any:
    """What a driver says of itself, with the names that `Live` looks for."""
    best, spent = told.get("best"), told.get("spent") or {}
    names = ("trials", "epochs", "flops", "device_seconds", "wall_seconds")
    return SimpleNamespace(
        finished=told.get("finished", 0),
        running=told.get("running", 0),
        endings=told.get("endings") or {},
        best=best and SimpleNamespace(number=best["number"], value=best["value"]),
        spent=SimpleNamespace(
            executed_flops=spent.get("executed_flops", 0.0), device_s=spent.get("device_seconds", 0.0)
        ),
        wall_s=told.get("wall_seconds", 0.0),
        budgets=SimpleNamespace(**{name: budget.get(name) for name in names}),
    )
