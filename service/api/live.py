"""Watching: a search's log as server-sent events, and how far it is now.

    id: 1-7
    event: told
    data: {"bundle": "g0-b1", "trials": [{"number": 3, "ending": "complete", "value": 0.03125}], ...}

`asked`, `told`, `goal` and `state` are the log's own and carry its place, `<epoch>-<seq>`: whoever comes back with
`Last-Event-ID` gets exactly what came after, from whichever server. `progress` has no id: it is how things stand now,
and one that is out of date is passed over. `end` is the last event of a search that is over.

One poller a search serves all its watchers. A watcher keeps nothing but its place: one that reads slowly makes nothing
grow, and one that does not read at all is let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.types import Message, Send

from service.api import examples
from service.api.guard import MayRead
from service.api.problems import Problem, documented
from service.api.summaries import job_facts
from service.board.contract import OVER
from service.show import as_json
from trials import layout
from trials.log import LogTail
from trials.segments import Damaged, Reader
from trials.store import Event, NotFound, SearchStore

if TYPE_CHECKING:
    import pyarrow as pa

    from service.api.desk import Desk

EVERY = 0.5  # seconds between looks at a search that is watched
QUIET = 15.0  # seconds of silence before a comment keeps the connection alive
PATIENCE = 60.0  # seconds that a watcher may take to read what was sent
KINDS = ("asked", "told", "goal", "state")
AT_ONCE = 256  # events of a chunk
RETRY_MS = 2000
ENDED = (*OVER, "stopped", "cancelled")
log = logging.getLogger("continua.api")
router = APIRouter(tags=["searches"])

Place = tuple[int, int]


class Feed:
    """One search's events, for all who watch it. Lives in the event loop; only `_look` runs in a thread."""

    def __init__(self, desk: Desk, search: SearchStore) -> None:
        self.search = search
        self.watchers = 0
        self.over = ""
        self._desk = desk
        self._segments = Reader()
        self._tail = LogTail(layout.log(search.path), self._read)
        self._events: list[tuple[Place, bytes]] = []
        self._progress = (0, b"")
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._poll())

    def _read(self, path: Any) -> pa.Table | None:
        try:
            return self._segments.read(path)
        except Damaged:
            return None

    async def _poll(self) -> None:
        while not self.over:
            try:
                events, progress, over = await self._desk.run(self._look)
            except asyncio.CancelledError:
                raise
            except Exception:
                log.exception("search %s cannot be watched", self.search.id)
                events, progress, over = [], b"", "unreadable"
            self._events += events
            fresh = bool(progress) and progress != self._progress[1]
            if fresh:
                self._progress = (self._progress[0] + 1, progress)
            if events or fresh or over:
                self.over = over
                self._wake()
            await asyncio.sleep(EVERY)

    def _look(self) -> tuple[list[tuple[Place, bytes]], bytes, str]:
        """What is new: log events, how far the search is, and how it ended where it is over."""
        job = self._desk.job(self.search.id)
        state = self._desk.summaries.state(self.search.id, job)  # before the log: what it ends with is in the log then
        events = [((event.epoch, event.seq), self._encoded(event)) for event in self._tail.new() if event.kind in KINDS]
        told = as_json({"state": state, "job": job_facts(job) and _steady(job_facts(job))})
        return events, format_sse_event(event="progress", data_str=told), state if state in ENDED else ""

    def _encoded(self, event: Event) -> bytes:
        body = {"time": event.time, **event.body}
        if event.kind == "told":
            body["trials"] = self._told(event)
        return format_sse_event(id=f"{event.epoch}-{event.seq}", event=event.kind, data_str=as_json(body))

    def _told(self, event: Event) -> list[dict[str, Any]]:
        outcomes = self.search.attempt_outcomes(event.body["bundle"], event.body["attempt"])
        by_number = {outcome.number: outcome for outcome in outcomes}
        return [
            {"number": number, "ending": found.ending.value, "value": found.value}
            for number in event.body["numbers"]
            if (found := by_number.get(number))
        ]

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def stop(self, over: str = "") -> None:
        """No more looks; with `over`, watchers are sent away."""
        self.over = self.over or over
        self._task.cancel()
        self._wake()

    async def chunks(self, after: Place | None) -> AsyncIterator[bytes]:
        """The events after a place, as they come, until the search is over."""
        yield format_sse_event(retry=RETRY_MS)
        at, seen = 0, 0
        while True:
            changed = self._changed
            if part := self._events[at : at + AT_ONCE]:
                at += len(part)
                if chunk := b"".join(data for place, data in part if after is None or place > after):
                    yield chunk
                continue
            if seen != self._progress[0]:
                seen, data = self._progress
                yield data
                continue
            if self.over == "closing":  # the watcher comes back, to whoever serves then
                return
            if self.over:
                yield format_sse_event(event="end", data_str=as_json({"state": self.over}))
                return
            try:
                await asyncio.wait_for(changed.wait(), QUIET)
            except TimeoutError:
                yield format_sse_event(comment="still here")


def _steady(facts: Any) -> dict[str, Any]:
    """A job's facts without those that change all the time and mean nothing."""
    return {name: value for name, value in facts.items() if name not in ("seconds_left", "beat", "waits")}


class Live:
    """The feeds of those searches that are watched now."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._feeds: dict[str, Feed] = {}
        self._closing = False

    @property
    def watchers(self) -> int:
        """How many watch."""
        return sum(feed.watchers for feed in self._feeds.values())

    async def watch(self, search: SearchStore, after: Place | None) -> AsyncIterator[bytes]:
        """The chunks for one watcher."""
        if self._closing:
            return
        feed = self._feeds.get(search.id)
        if feed is None or feed.over:
            feed = self._feeds[search.id] = Feed(self._desk, search)
        feed.watchers += 1
        try:
            async for chunk in feed.chunks(after):
                yield chunk
        finally:
            feed.watchers -= 1
            if not feed.watchers:
                feed.stop()
                if self._feeds.get(search.id) is feed:
                    del self._feeds[search.id]

    def close(self) -> None:
        """Sends all watchers away."""
        self._closing = True
        for feed in self._feeds.values():
            feed.stop("closing")


class Events(EventSourceResponse):
    """A stream that lets go of a reader who reads nothing for `PATIENCE` seconds."""

    async def stream_response(self, send: Send) -> None:
        async def patient(message: Message) -> None:
            await asyncio.wait_for(send(message), PATIENCE)

        with contextlib.suppress(TimeoutError):
            await super().stream_response(patient)
        close = getattr(self.body_iterator, "aclose", None)
        if close is not None:
            await close()


def place_of(text: str | None) -> Place | None:
    """The place that an event's id names. Raises `Problem`."""
    if not text:
        return None
    epoch, dash, seq = text.partition("-")
    if not (dash and epoch.isascii() and epoch.isdecimal() and seq.isascii() and seq.isdecimal()):
        fault = f"Last-Event-ID: must be the id of an event, such as 1-7, but got {text!r}."
        raise Problem("invalid", faults=[fault])
    return int(epoch[:18]), int(seq[:18])


@router.get(
    "/searches/{search_id}/events",
    summary="Watch a search",
    response_class=Response,
    responses={200: examples.EVENTS, **documented("not-found", "ambiguous-id", "invalid", "store-failed", "damaged")},
)
async def events(
    request: Request,
    who: MayRead,
    search_id: str = Path(examples=[examples.ID]),
    last_event_id: str | None = Header(None, description="The id of the last event that was seen.", examples=["1-7"]),
) -> Response:
    """Server-sent events: `asked`, `told`, `goal` and `state` from the log, each with the id to come back with as
    `Last-Event-ID`; `progress`, how things stand now; and `end`, the last one of a search that is over."""
    from service.api.desk import desk_of

    desk, after = desk_of(request), place_of(last_event_id)
    search = await desk.run(desk.search, search_id)
    if not layout.log(search.path).is_dir():
        raise NotFound(f"search {search.id}: its log is gone; run `continua doctor`.")
    return Events(desk.live.watch(search, after))
