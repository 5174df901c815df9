"""The app: every route behind the guard, the problems, and the contract that OpenAPI shows.

    >>> app = create_app(Store("runs"), board, Access())

Routes lie under `/v1`, save `/healthz`, `/readyz`, `/metrics` and `/openapi.json`. There is no page of documentation:
it would have to load scripts from elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access import Access
from service.api import code, goals, live, query, searches, system, tables
from service.api.desk import Desk
from service.api.guard import OPEN, Guard
from service.api.measures import Measures
from service.api.problems import SCHEMA, install
from service.board.contract import Board
from service.sandbox import Limits
from trials.store import Store

VERSION = "1"
PREFIX = "/v1"
TITLE = "continua"
_ABOUT = """Submit searches to a cluster, watch them, pause, resume, scale and extend them.

Every request but `/healthz` and `/readyz` needs `Authorization: Bearer TOKEN`. Every answer of 400 or above is
`application/problem+json` with a stable `code`. Numbers that JSON has not are the text "NaN", "Infinity", "-Infinity".
"""


def create_app(
    store: Store | Path | str,
    board: Board,
    access: Access,
    *,
    hosts: Collection[str] = (),
    limits: Limits | None = None,
) -> FastAPI:
    """The service as an ASGI app.

    Args:
        board: stays its opener's, who closes it.
        hosts: names that this server goes by, beside the machine's own loopback names.
        limits: of SQL.
    """
    opened = store if isinstance(store, Store) else Store(store)
    desk = Desk(opened, board, access, limits)
    app = FastAPI(
        title=TITLE,
        version=VERSION,
        description=_ABOUT,
        lifespan=_lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.desk = desk
    install(app)
    for part in (searches, goals, tables, live, query, code):
        app.include_router(part.router, prefix=PREFIX)
    app.include_router(system.router)
    app.add_middleware(Guard, access=access, hosts=hosts)
    app.add_middleware(_Measured, measures=desk.measures)
    app.openapi = lambda: _contract(app)  # type: ignore[method-assign]
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    desk: Desk = app.state.desk
    await desk.run(desk.sandbox.warm)
    task = asyncio.create_task(desk.attend())
    try:
        yield
    finally:
        desk.live.close()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        desk.close()


class _Measured:
    """Counts what is answered, by route and status."""

    def __init__(self, app: ASGIApp, measures: Measures) -> None:
        self._app = app
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, stream = time.perf_counter(), 500, False

        async def noted(message: Message) -> None:
            nonlocal status, stream
            if message["type"] == "http.response.start":
                status = message["status"]
                stream = any(v.startswith(b"text/event-stream") for k, v in message["headers"] if k == b"content-type")
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            if scope["path"].startswith(PREFIX) and route != "none":
                route = PREFIX + route.removeprefix(PREFIX)
            seconds = None if stream else time.perf_counter() - began
            self._measures.answered(scope["method"] if route != "none" else "any", route, status, seconds)


def _contract(app: FastAPI) -> dict[str, Any]:
    """OpenAPI, with what the guard asks for."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        components = found.setdefault("components", {})
        components.setdefault("schemas", {})["Problem"] = SCHEMA
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
        for path in OPEN:
            for operation in found["paths"][path].values():
                operation["security"] = []
        app.openapi_schema = found
    return app.openapi_schema
