"""The server itself over HTTP: whether it lives, whether it is ready, its measures, and its contract."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api import examples, forms
from service.api.desk import AWAY, Desk, desk_of
from service.api.guard import MayRead
from service.api.measures import MEDIA
from service.api.problems import documented
from service.board.contract import Unreachable
from trials.store import NotFound

router = APIRouter(tags=["server"])
_PROBE = ".writable"
SERVES = 1.0  # seconds that a store which could be written is taken to be writable: who asks needs no token


@router.get("/healthz", summary="Whether the server runs", responses={200: examples.HEALTH})
async def healthz() -> Response:
    """Needs no token and touches nothing."""
    return forms.json_answer({"status": "ok"})


@router.get("/readyz", summary="Whether all works", responses={200: examples.READY, 503: examples.DEGRADED})
async def readyz(request: Request) -> Response:
    """Needs no token. 503 where the board does not answer or the store cannot be written."""
    desk = desk_of(request)
    checks = {"board": await desk.run(_board_check, desk), "store": await desk.run(_store_check, desk)}
    ready = all(found == "ok" for found in checks.values())
    answer = {"status": "ready" if ready else "degraded", "checks": checks, "warnings": list(desk.board.warnings)}
    return forms.json_answer(answer, 200 if ready else 503)


def _board_check(desk: Desk) -> str:
    try:
        desk.board.list(limit=1)
        return "ok"
    except AWAY as error:
        desk.owing = True
        return "does not answer" if isinstance(error, Unreachable) else "cannot be used"


def _store_check(desk: Desk) -> str:
    with desk.probing:
        if time.monotonic() - desk.written >= SERVES:
            if (found := _probed(desk.store.root)) != "ok":
                return found
            desk.written = time.monotonic()
        return "ok"


def _probed(root: Path) -> str:
    path = root / f"{_PROBE}-{os.getpid()}"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, b"x")
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return "ok"


@router.get(
    "/metrics",
    summary="Measures for Prometheus",
    response_class=Response,
    responses={200: examples.METRICS, **documented()},
)
async def metrics(request: Request, who: MayRead) -> Response:
    """Requests, latencies, searches by state, trials by ending, the queue, live leases and watchers."""
    desk = desk_of(request)
    text = await desk.run(_measured, desk, desk.live.watchers)
    return Response(text, media_type=MEDIA)


def _measured(desk: Desk, watchers: int) -> bytes:
    jobs, known = desk.jobs(), desk.summaries
    states: Counter[str] = Counter()
    endings: Counter[str] = Counter()
    for _, search_id in known.ids():
        with contextlib.suppress(NotFound, OSError):
            states[known.state(search_id, jobs.get(search_id))] += 1
            endings.update(known.brief(search_id)["trials"])
    leases = sum(job.leased for job in jobs.values())
    desk.measures.found(
        states=states, endings=endings, leases=leases, watchers=watchers, board=_board_check(desk) == "ok"
    )
    return desk.measures.text()


@router.get(
    "/openapi.json",
    summary="This contract",
    responses={200: examples.CONTRACT, **documented()},
)
async def openapi(request: Request, who: MayRead) -> Response:
    """OpenAPI 3.1."""
    contract: dict[str, Any] = request.app.openapi()
    return forms.json_answer(contract)
