"""A stream of server-sent events, line by line.

>>> reader = Reader()
>>> [event for line in ("id: 7", "event: state", 'data: {"state": "running"}', "") if (event := reader.feed(line))]
[Event(id='7', kind='state', data={'state': 'running'})]
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

MOST = 16 * 1024 * 1024  # characters of one event


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a search. `data` is plain data; the last event's kind is `end`."""

    id: str
    kind: str
    data: Any


class Reader:
    """Takes lines without their ends. `last` is the id to go on from; `retry` the seconds the server asks to wait."""

    def __init__(self) -> None:
        self.last = ""
        self.retry: float | None = None
        self._id: str | None = None
        self._kind, self._data = "", list[str]()

    def feed(self, line: str) -> Event | None:
        """The event that the line ends, if it ends one."""
        if not line:
            return self._ended()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data" and sum(map(len, self._data)) < MOST:
            self._data.append(value)
        elif name == "event":
            self._kind = value
        elif name == "id" and "\0" not in value:
            self._id = value  # counts once the event is whole: else it would be passed over after a cut
        elif name == "retry" and value.isdecimal():
            self.retry = int(value) / 1000
        return None

    def cut(self) -> None:
        """The connection has ended: what was begun of an event does not count."""
        self._id, self._kind, self._data = None, "", []

    def _ended(self) -> Event | None:
        kind, text = self._kind or "message", "\n".join(self._data)
        known = bool(self._data) or kind == "end"
        self.last = self.last if self._id is None else self._id
        self.cut()
        return Event(id=self.last, kind=kind, data=_plain(text)) if known else None


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
