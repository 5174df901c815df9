"""A service and its searches, for threads: `Client` and `Search`.

>>> client = Client()                                        # url and token as `continua config show` has them
>>> search = client.submit("digits.yaml")
>>> for event in search.watch():
...     print(event.kind, event.data)
>>> search.wait().best()["value"]
0.0312
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from service.client import calls
from service.client.connection import Connection
from service.client.events import Event
from service.client.found import service
from service.client.views import search_html

if TYPE_CHECKING:
    import httpx
    import pyarrow as pa

    from service.client.calls import Spec

LOOKS = (0.1, 2.0)  # seconds between looks while waiting: at first, and at the longest


class Client:
    """A service. Use it as a context, or `close` it.

    Every method raises `ServiceError` (`Unreachable`, `Unauthorised`, `NotFound`, `Conflict`, `Invalid`). A service
    that does not answer, or is busy, is asked again for some seconds first; a submission sent twice makes one search.

    Args:
        url: where it is; by default what CONTINUA_URL or a file says, else what `continua up` started on our store.
        token: by default that of CONTINUA_TOKEN, CONTINUA_TOKEN_FILE or the user's own file.
    """

    def __init__(
        self, url: str | None = None, token: str | None = None, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url, token = service(url, token)
        self._connection = Connection(self.url, token, transport)

    def submit(
        self,
        spec: Spec,
        *,
        code: Path | str | None = None,
        requirements: Iterable[str] | None = None,
        priority: int | None = None,
        key: str | None = None,
    ) -> Search:
        """Submit a search and return at once.

        Args:
            spec: plain data, a YAML or JSON file's path, or a `SearchSpec`.
            code: the directory with the modules that the spec names; packed, and uploaded where the service lacks it.
            requirements: what pip installs beside it, such as `["scikit-image==0.25.0"]`.
            priority: 1 to 100, the greater the sooner.
            key: names this submission: the same key and spec again give the same search. Made up by default.
        """
        flow = calls.submitting(spec, code=code, requirements=requirements, priority=priority, key=key)
        return Search(self._connection, self._connection.perform(flow))

    def search(self, search_id: str) -> Search:
        """A search by its id."""
        return Search(self._connection, self._connection.perform(calls.reading(calls.path_of(search_id))))

    def searches(
        self, *, state: Sequence[str] | str | None = None, name: str | None = None, owner: str | None = None
    ) -> Iterator[Search]:
        """All searches, the latest first, page by page as they are asked for."""
        cursor: str | None = None
        while True:
            page = self._connection.perform(calls.listing(cursor, state=state, name=name, owner=owner))
            yield from (Search(self._connection, row) for row in page["items"])
            if not (cursor := page["next"]):
                return

    def query(self, sql: str) -> pa.Table:
        """The answer to one SELECT over `searches`, `trials` and `reports` (DuckDB's dialect)."""
        return self._connection.perform(calls.asking(sql))

    def health(self) -> dict[str, Any]:
        """What the service says of itself; `ready` is whether it can do all of its work."""
        return self._connection.perform(calls.health())

    def close(self) -> None:
        """Let go of the connections."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"


class Search:
    """A search of a service, as it was when it was last looked at (`refresh`)."""

    def __init__(self, connection: Connection, row: Mapping[str, Any]) -> None:
        self._connection, self.row = connection, dict(row)

    @property
    def id(self) -> str:
        """Its id."""
        return str(self.row["search_id"])

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.row.get("name", ""))

    @property
    def state(self) -> str:
        """queued, running, pausing, paused, stopping, stopped, cancelling, cancelled, complete or failed."""
        return str(self.row.get("state", ""))

    def refresh(self) -> Self:
        """Look again."""
        self.row = self._connection.perform(calls.reading(calls.path_of(self.id)))
        return self

    def watch(self, last: str = "") -> Iterator[Event]:
        """What happens in it, as it happens, from the beginning or after the event of that id; the last event is `end`.
        A connection that is lost is made again."""
        return self._connection.events(self.id, last)

    def wait(self, timeout: float | None = None) -> Self:
        """Until it is over: complete, failed, stopped or cancelled. Raises TimeoutError after `timeout` seconds."""
        began, pause = time.monotonic(), LOOKS[0]
        while self.refresh().state not in calls.OVER:
            left = float("inf") if timeout is None else timeout - (time.monotonic() - began)
            if left <= 0:
                raise TimeoutError(f"search {self.id}: is still {self.state} after {timeout:g} s.")
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, LOOKS[1])
        return self

    def trials(self) -> pa.Table:
        """Its trials, a row each."""
        return self._connection.perform(calls.table(f"{calls.path_of(self.id)}/trials"))

    def reports(self) -> pa.Table:
        """What its trials reported while they ran, a row a step."""
        return self._connection.perform(calls.table(f"{calls.path_of(self.id)}/reports"))

    def best(self) -> dict[str, Any]:
        """Its best trial. Raises `NotFound` when none is complete."""
        return self._connection.perform(calls.reading(f"{calls.path_of(self.id)}/best"))

    def trial(self, number: int) -> dict[str, Any]:
        """One trial."""
        return self._connection.perform(calls.reading(f"{calls.path_of(self.id)}/trials/{number}"))

    def log(self, number: int) -> str:
        """What the code of one trial printed, the end of it."""
        return self._connection.perform(calls.log_of(self.id, number))

    def goal(self) -> dict[str, Any]:
        """What is wanted of it, with its `version`."""
        return self._connection.perform(calls.goal_of(self.id))

    def edit(self, verb: str, *, if_version: int | None = None, **more: Any) -> dict[str, Any]:
        """Change the goal; what the verbs below do. Returns the new goal. Raises `Conflict` where it is not, or no
        longer, at `if_version`."""
        return self._connection.perform(calls.changing(self.id, {"verb": verb, **more}, if_version))

    def pause(self) -> dict[str, Any]:
        """No new trials; what runs finishes."""
        return self.edit("pause")

    def resume(self) -> dict[str, Any]:
        """Go on, whatever it was ended by."""
        return self.edit("resume")

    def stop(self) -> dict[str, Any]:
        """End it; what runs finishes."""
        return self.edit("stop")

    def cancel(self) -> dict[str, Any]:
        """End it and what runs at once."""
        return self.edit("cancel")

    def scale(self, workers: int) -> dict[str, Any]:
        """So many worker slots from now on."""
        return self.edit("scale", workers=workers)

    def extend(
        self,
        *,
        trials: int | str | None = None,
        epochs: float | str | None = None,
        flops: float | str | None = None,
        device_seconds: float | str | None = None,
        wall_seconds: float | str | None = None,
    ) -> dict[str, Any]:
        """Raise the budget: to a new total, or by so much more ("+64"). A search that was complete goes on."""
        parts = {"trials": trials, "epochs": epochs, "flops": flops}
        seconds = {"device_seconds": device_seconds, "wall_seconds": wall_seconds}
        return self.edit("extend", budget=calls.more(**parts, **seconds))

    def narrow(self, space: Mapping[str, Any] | str | Path) -> dict[str, Any]:
        """Ask the trials to come in narrower ranges: `{"lr": {"high": 0.1}}`, or a file with that."""
        return self.edit("narrow", space=calls.narrowing(space))

    def prioritise(self, priority: int) -> dict[str, Any]:
        """Have it claimed sooner and given more of the slots, or later and fewer: from 1 to 100."""
        return self.edit("prioritise", priority=priority)

    def __repr__(self) -> str:
        return f"<Search {self.id} ({self.state})>"

    def _repr_html_(self) -> str:
        return search_html(self.row)
