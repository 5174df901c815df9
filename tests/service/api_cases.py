"""An API over a store of its own, tokens of every scope, a board that can be unplugged, and searches made by hand."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from service.access import SCOPES, Access, add
from service.api.app import create_app
from service.api.serve import Server, make_server
from service.board.contract import Unreachable
from service.board.sqlite import SQLiteBoard
from service.sandbox import Limits
from trials.records import Ending, Outcome, Report, Spent
from trials.store import SearchStore, Store

BASE = "http://127.0.0.1"
SPEC: dict[str, Any] = {
    "name": "digits",
    "task": "uci/digits",
    "network": {"kind": "mlp", "layers": 1},
    "space": {"width.0": {"type": "width", "low": 4, "high": 64}, "lr": {"type": "float", "low": 0.01, "high": 1.0}},
    "search": {"sampler": "random"},
    "budget": {"trials": 16},
}
OBJECTIVE: dict[str, Any] = {
    "name": "mine",
    "task": "objectives:sphere",
    "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
    "budget": {"trials": 8},
}


class Unpluggable:
    """A board whose cable can be drawn: then every verb raises `Unreachable`."""

    def __init__(self, board: SQLiteBoard) -> None:
        self._board = board
        self.plugged = True

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._board, name)
        if callable(found) and not self.plugged and name != "close":
            raise Unreachable("board: does not answer; is its server there?")
        return found


class Client:
    """Requests to an app, one at a time and without a socket."""

    def __init__(self, app: Any, headers: dict[str, str]) -> None:
        self._app, self._headers = app, headers

    def request(self, method: str, url: str, **facts: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=BASE, headers=self._headers) as client:
                return await client.request(method, url, **facts)

        return asyncio.run(ask())

    get = functools.partialmethod(request, "GET")
    head = functools.partialmethod(request, "HEAD")
    post = functools.partialmethod(request, "POST")
    put = functools.partialmethod(request, "PUT")
    patch = functools.partialmethod(request, "PATCH")


class Api:
    """All that a test of the API needs. `client` has an admin's token, `ada` and `bob` submit, `reader` reads."""

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        self.path, self.limits = path, limits
        self.store = Store(path / "store")
        self.board = Unpluggable(SQLiteBoard(path / "board.sqlite"))
        self.tokens = path / "tokens.json"
        self.token = {scope: add(scope, scope, path=self.tokens) for scope in SCOPES}
        self.token |= {name: add(name, "submit", path=self.tokens) for name in ("ada", "bob")}
        self.access = Access(self.tokens)
        self.app = create_app(self.store, self.board, self.access, limits=limits)

    def headers(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token[name]}"}

    def as_(self, name: str) -> Client:
        return Client(self.app, self.headers(name))

    @property
    def client(self) -> Client:
        return self.as_("admin")

    def submit(self, who: str = "ada", **body: Any) -> str:
        answer = self.as_(who).post("/v1/searches", json={"spec": SPEC, **body})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["search_id"])

    @contextlib.contextmanager
    def served(self) -> Iterator[Server]:
        """A real server on a free port, in a thread."""
        up = threading.Event()
        server = make_server(
            self.store, self.board, port=0, access=self.access, limits=self.limits, ready=lambda _: up.set()
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            assert up.wait(30)
            yield server
        finally:
            server.stop()
            thread.join(30)
            assert not thread.is_alive()

    def http(self, server: Server, name: str = "admin") -> httpx.Client:
        return httpx.Client(base_url=server.url, headers=self.headers(name), timeout=30)

    def close(self) -> None:
        self.app.state.desk.close()
        self.board.close()


@contextlib.contextmanager
def api_at(path: Path, limits: Limits | None = None) -> Iterator[Api]:
    api = Api(path, limits)
    try:
        yield api
    finally:
        api.close()


# -- searches ----------------------------------------------------------------------------------------------------------


def outcome(
    search: SearchStore, number: int, bundle: str, ending: Ending, value: float | None, **other: Any
) -> Outcome:
    facts: dict[str, Any] = {
        "point": {"width.0": 8.5 + number, "lr": 0.1},
        "rounded": {"width.0": 8 + number, "lr": 0.1},
        "metrics": {} if value is None else {"val_error": value},
        "spent": Spent(flops=10.0, executed_flops=12.0, device_s=0.5),
        "started": 1000.0,
        "ended": 1002.0,
        "worker": "w-1",
        **other,
    }
    trial = f"{search.id}-t{number:06d}"
    return Outcome(trial_id=trial, number=number, bundle_id=bundle, attempt=0, ending=ending, value=value, **facts)


def run_by_hand(
    search: SearchStore, values: list[tuple[Ending, float | None]], epoch: int = 1, end: str = "complete"
) -> None:
    """What a driver would write of a search: bundles of two trials, each with two reports."""
    log = search.log_writer(epoch)
    log.append("state", {"state": "running"})
    first = sum(len(event.body["trials"]) for event in search.log() if event.kind == "asked")
    for at in range(0, len(values), 2):
        part = values[at : at + 2]
        numbers, bundle = range(first + at, first + at + len(part)), f"e{epoch}b{at // 2}"
        asked = [{"number": n, "point": {"width.0": 8.0 + n, "lr": 0.1}} for n in numbers]
        log.append("asked", {"generation": at // 2, "trials": asked})
        writer = search.attempt_writer(bundle, 0)
        for number, (ending, value) in zip(numbers, part, strict=True):
            for step in (1, 2):
                trial = f"{search.id}-t{number:06d}"
                metrics = {"val_error": 1.0 / step}
                writer.append(Report(trial_id=trial, bundle_id=bundle, attempt=0, step=step, metrics=metrics))
            error = "Traceback\nValueError: no" if ending is Ending.ERROR else None
            writer.append(outcome(search, number, bundle, ending, value, error=error))
        writer.close()
        log.append("told", {"bundle": bundle, "attempt": 0, "numbers": list(numbers)})
    if end:
        log.append("state", {"state": end})
