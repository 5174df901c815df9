"""Connections to a service, for threads and for asyncio: they send the calls of `calls`, try again, and read streams.

>>> connection = Connection("http://127.0.0.1:8642", token="...")
>>> connection.perform(calls.health())
{'ready': True, ...}
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

import httpx

from service.client import calls
from service.client.calls import Call, Flow
from service.client.events import Event, Reader

T = TypeVar("T")
PATIENCE = 60.0  # seconds that an answer may take
SILENCE = 90.0  # seconds without a sign of life after which a stream is opened anew
_LIMITS = httpx.Timeout(PATIENCE, connect=10.0)
_STREAM = httpx.Timeout(SILENCE, connect=10.0)


def options(url: str, token: str | None, transport: Any) -> dict[str, Any]:
    """How both kinds of httpx's clients are made. Proxies of the environment do not count for this machine's own."""
    headers = {"User-Agent": "continua", **({"Authorization": f"Bearer {token}"} if token else {})}
    own = (httpx.URL(url).host or "") in ("127.0.0.1", "localhost", "::1")
    return {"base_url": url, "headers": headers, "timeout": _LIMITS, "transport": transport, "trust_env": not own}


class Connection:
    """For threads: safe from many."""

    def __init__(self, url: str, token: str | None = None, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url
        self._http = httpx.Client(**options(url, token, transport))

    def perform(self, flow: Flow[T]) -> T:
        """Send a flow's calls one after the other and return its result. Raises `ServiceError`."""
        try:
            call = next(flow)
            while True:
                call = flow.send(self._send(call))
        except StopIteration as end:
            result: T = end.value
            return result

    def events(self, search_id: str, last: str = "") -> Iterator[Event]:
        """A search's events until its `end`; a connection that is lost is made again, and goes on where it was."""
        reader, tries = Reader(), 0
        reader.last = last
        while True:
            call = calls.events_of(search_id, reader.last)
            outcome: httpx.Response | httpx.TransportError = httpx.ReadError("the stream ended before the search did")
            try:
                with self._streaming(call) as response:
                    if response.is_success:
                        for line in response.iter_lines():
                            tries = 0  # a sign of life, if not an event
                            if event := reader.feed(line):
                                yield event
                                if event.kind == "end":
                                    return
                    else:
                        response.read()
                        outcome = response
            except httpx.TransportError as error:
                outcome = error
            reader.cut()
            pause = calls.pause_before(call, tries, outcome)
            if pause is None:
                calls.settled(call, outcome, self.url)
                return
            tries += 1
            time.sleep(min(reader.retry or pause, calls.LONGEST))

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    @contextlib.contextmanager
    def _streaming(self, call: Call) -> Iterator[httpx.Response]:
        request = call.request(self._http)
        request.extensions = {**request.extensions, "timeout": _STREAM.as_dict()}
        response = self._http.send(request, stream=True)
        try:
            yield response
        finally:
            response.close()

    def _send(self, call: Call) -> httpx.Response:
        tries = 0
        while True:
            try:
                outcome: httpx.Response | httpx.TransportError = self._http.send(call.request(self._http))
            except httpx.TransportError as error:
                outcome = error
            pause = calls.pause_before(call, tries, outcome)
            if pause is None:
                return calls.settled(call, outcome, self.url)
            tries += 1
            time.sleep(pause)


class AsyncConnection:
    """For asyncio: the same."""

    def __init__(self, url: str, token: str | None = None, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url = url
        self._http = httpx.AsyncClient(**options(url, token, transport))

    async def perform(self, flow: Flow[T]) -> T:
        """Send a flow's calls one after the other and return its result. Raises `ServiceError`."""
        try:
            call = next(flow)
            while True:
                call = flow.send(await self._send(call))
        except StopIteration as end:
            result: T = end.value
            return result

    async def events(self, search_id: str, last: str = "") -> AsyncIterator[Event]:
        """A search's events until its `end`; a connection that is lost is made again, and goes on where it was."""
        reader, tries = Reader(), 0
        reader.last = last
        while True:
            call = calls.events_of(search_id, reader.last)
            outcome: httpx.Response | httpx.TransportError = httpx.ReadError("the stream ended before the search did")
            try:
                async with self._streaming(call) as response:
                    if response.is_success:
                        async for line in response.aiter_lines():
                            tries = 0  # a sign of life, if not an event
                            if event := reader.feed(line):
                                yield event
                                if event.kind == "end":
                                    return
                    else:
                        await response.aread()
                        outcome = response
            except httpx.TransportError as error:
                outcome = error
            reader.cut()
            pause = calls.pause_before(call, tries, outcome)
            if pause is None:
                calls.settled(call, outcome, self.url)
                return
            tries += 1
            await asyncio.sleep(min(reader.retry or pause, calls.LONGEST))

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    @contextlib.asynccontextmanager
    async def _streaming(self, call: Call) -> AsyncIterator[httpx.Response]:
        request = call.request(self._http)
        request.extensions = {**request.extensions, "timeout": _STREAM.as_dict()}
        response = await self._http.send(request, stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    async def _send(self, call: Call) -> httpx.Response:
        tries = 0
        while True:
            try:
                outcome: httpx.Response | httpx.TransportError = await self._http.send(call.request(self._http))
            except httpx.TransportError as error:
                outcome = error
            pause = calls.pause_before(call, tries, outcome)
            if pause is None:
                return calls.settled(call, outcome, self.url)
            tries += 1
            await asyncio.sleep(pause)
