"""The same for asyncio: `AsyncClient` and `AsyncSearch`; each method does what its namesake in `searches` does.

>>> async with AsyncClient() as client:
...     search = await client.submit("digits.yaml")
...     await search.wait()
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from service.client import calls
from service.client.connection import AsyncConnection
from service.client.events import Event
from service.client.found import service
from service.client.searches import LOOKS
from service.client.views import search_html

if TYPE_CHECKING:
    import httpx
    import pyarrow as pa

    from service.client.calls import Spec


class AsyncClient:
    """A service; see `Client`."""

    def __init__(
        self, url: str | None = None, token: str | None = None, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.url, token = service(url, token)
        self._connection = AsyncConnection(self.url, token, transport)

    async def submit(
        self,
        spec: Spec,
        *,
        code: Path | str | None = None,
        requirements: Iterable[str] | None = None,
        priority: int | None = None,
        key: str | None = None,
    ) -> AsyncSearch:
        """Submit a search and return at once; see `Client.submit`."""
        flow = calls.submitting(spec, code=code, requirements=requirements, priority=priority, key=key)
        return AsyncSearch(self._connection, await self._connection.perform(flow))

    async def search(self, search_id: str) -> AsyncSearch:
        """A search by its id."""
        return AsyncSearch(self._connection, await self._connection.perform(calls.reading(calls.path_of(search_id))))

    async def searches(
        self, *, state: Sequence[str] | str | None = None, name: str | None = None, owner: str | None = None
    ) -> AsyncIterator[AsyncSearch]:
        """All searches, the latest first, page by page as they are asked for."""
        cursor: str | None = None
        while True:
            page = await self._connection.perform(calls.listing(cursor, state=state, name=name, owner=owner))
            for row in page["items"]:
                yield AsyncSearch(self._connection, row)
            if not (cursor := page["next"]):
                return

    async def query(self, sql: str) -> pa.Table:
        """The answer to one SELECT over `searches`, `trials` and `reports` (DuckDB's dialect)."""
        return await self._connection.perform(calls.asking(sql))

    async def health(self) -> dict[str, Any]:
        """What the service says of itself; `ready` is whether it can do all of its work."""
        return await self._connection.perform(calls.health())

    async def close(self) -> None:
        """Let go of the connections."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncSearch:
    """A search of a service; see `Search`."""

    def __init__(self, connection: AsyncConnection, row: Mapping[str, Any]) -> None:
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

    async def refresh(self) -> Self:
        """Look again."""
        self.row = await self._connection.perform(calls.reading(calls.path_of(self.id)))
        return self

    def watch(self, last: str = "") -> AsyncIterator[Event]:
        """What happens in it, as it happens, from the beginning or after the event of that id."""
        return self._connection.events(self.id, last)

    async def wait(self, timeout: float | None = None) -> Self:
        """Until it is over. Raises TimeoutError after `timeout` seconds."""
        began, pause = time.monotonic(), LOOKS[0]
        while (await self.refresh()).state not in calls.OVER:
            left = float("inf") if timeout is None else timeout - (time.monotonic() - began)
            if left <= 0:
                raise TimeoutError(f"search {self.id}: is still {self.state} after {timeout:g} s.")
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 1.5, LOOKS[1])
        return self

    async def trials(self) -> pa.Table:
        """Its trials, a row each."""
        return await self._connection.perform(calls.table(f"{calls.path_of(self.id)}/trials"))

    async def reports(self) -> pa.Table:
        """What its trials reported while they ran, a row a step."""
        return await self._connection.perform(calls.table(f"{calls.path_of(self.id)}/reports"))

    async def best(self) -> dict[str, Any]:
        """Its best trial."""
        return await self._connection.perform(calls.reading(f"{calls.path_of(self.id)}/best"))

    async def trial(self, number: int) -> dict[str, Any]:
        """One trial."""
        return await self._connection.perform(calls.reading(f"{calls.path_of(self.id)}/trials/{number}"))

    async def log(self, number: int) -> str:
        """What the code of one trial printed, the end of it."""
        return await self._connection.perform(calls.log_of(self.id, number))

    async def goal(self) -> dict[str, Any]:
        """What is wanted of it, with its `version`."""
        return await self._connection.perform(calls.goal_of(self.id))

    async def edit(self, verb: str, *, if_version: int | None = None, **more: Any) -> dict[str, Any]:
        """Change the goal; what the verbs below do."""
        return await self._connection.perform(calls.changing(self.id, {"verb": verb, **more}, if_version))

    async def pause(self) -> dict[str, Any]:
        """No new trials; what runs finishes."""
        return await self.edit("pause")

    async def resume(self) -> dict[str, Any]:
        """Go on, whatever it was ended by."""
        return await self.edit("resume")

    async def stop(self) -> dict[str, Any]:
        """End it; what runs finishes."""
        return await self.edit("stop")

    async def cancel(self) -> dict[str, Any]:
        """End it and what runs at once."""
        return await self.edit("cancel")

    async def scale(self, workers: int) -> dict[str, Any]:
        """So many worker slots from now on."""
        return await self.edit("scale", workers=workers)

    async def extend(self, **budget: float | str) -> dict[str, Any]:
        """Raise the budget; the parts are those of `Search.extend`."""
        return await self.edit("extend", budget=calls.more(**budget))

    async def narrow(self, space: Mapping[str, Any] | str | Path) -> dict[str, Any]:
        """Ask the trials to come in narrower ranges."""
        return await self.edit("narrow", space=calls.narrowing(space))

    async def prioritise(self, priority: int) -> dict[str, Any]:
        """Have it claimed sooner and given more of the slots, or later and fewer: from 1 to 100."""
        return await self.edit("prioritise", priority=priority)

    def __repr__(self) -> str:
        return f"<AsyncSearch {self.id} ({self.state})>"

    def _repr_html_(self) -> str:
        return search_html(self.row)
