"""A real server of the board that is killed, wiped or restarted from an old copy while searches run under two runners.

Runners, drivers and workers are processes as in a service. Whatever the board loses, each search completes with every
trial told once, and no two drivers ever write one at a time: the store has a lease for that, and the log shows it.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from board_cases import FORGETFUL, PERSISTENT, RedisServer, running_server
from runner_cases import OBJECTIVE, Place, exact, finished, runner, until

from service.access import Access, add
from service.api.serve import make_server
from service.board import Board, Unreachable, open_board
from trials import layout
from trials.lease import holder
from trials.store import NotFound, SearchStore, Store

LOUD = "KEEPS NOTHING ON DISK"


class Remote(Place):
    """A store, and a board on a server."""

    def __init__(self, path: Path, server: RedisServer) -> None:
        self.path, self.url, self.server = path, server.url, server
        self.store = Store(path / "store")
        (path / "runner_objectives.py").write_text(OBJECTIVE)
        self.board: Board = open_board(server.url)

    def driver(self, search: SearchStore) -> int | None:
        """The process that has the search."""
        return (holder(layout.lease(search.path)) or {}).get("pid")


@contextlib.contextmanager
def place_of(path: Path, *options: str) -> Iterator[Remote]:
    (path / "server").mkdir()
    with running_server(path / "server", *options) as server:
        place = Remote(path, server)
        try:
            yield place
        finally:
            place.board.close()


@contextlib.contextmanager
def service_of(place: Remote) -> Iterator[httpx.Client]:
    """An API over the place: a real server, in a thread."""
    tokens = place.path / "tokens.json"
    token, up = add("ada", "submit", path=tokens), threading.Event()
    board = open_board(place.url)
    server = make_server(place.store, board, port=0, access=Access(tokens), ready=lambda _: up.set())
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert up.wait(60)
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {token}"}, timeout=30) as client:
            yield client
    finally:
        server.stop()
        thread.join(60)
        board.close()


def complete(place: Remote, search: SearchStore, trials: int) -> None:
    """It ends as if nothing had happened."""

    def over() -> bool:
        try:
            return place.board.get(search.id).status == "complete"
        except (NotFound, Unreachable):
            return False

    until(over, 150, lambda: f"{search.id}: {finished(search)} told, {search.log()[-1]}")
    exact(search, trials)
    one_at_a_time(search)


def one_at_a_time(search: SearchStore) -> None:
    """Each epoch of the log is one driver's, and ended before the next began, by the times and by what was decided."""
    events = search.log()
    epochs = [event.epoch for event in events]
    assert epochs == sorted(epochs)
    spans = {epoch: [e.time for e in events if e.epoch == epoch] for epoch in sorted(set(epochs))}
    assert all(max(a) <= min(b) for a, b in zip(list(spans.values()), list(spans.values())[1:], strict=False))
    told = [number for event in events if event.kind == "told" for number in event.body["numbers"]]
    assert len(told) == len(set(told)), "a trial was told twice"
    segments = [layout.log_place(path.name) for path in layout.log(search.path).glob("*.arrow")]
    assert len(segments) == len(set(segments)), "two wrote the same place of the log"


def grows(search: SearchStore, more: int = 3) -> None:
    """It gets on now."""
    before = finished(search)
    until(lambda: finished(search) >= before + more, 60, lambda: f"{search.id} stands still at {before}")


@pytest.mark.slow
def test_a_wiped_board_stops_no_search(tmp_path: Path) -> None:
    with place_of(tmp_path, *FORGETFUL) as place:
        search = place.submit("a", trials=40)
        with runner(place, "one", searches=1) as one:
            until(lambda: finished(search) >= 2)
            assert LOUD in one.said()
            had = place.driver(search)
            with place.server.client() as client:
                client.flushall()
            until(lambda: "claimed again" in one.said())
            assert place.driver(search) == had, "its driver worked on"
            complete(place, search, 40)
    assert len({event.epoch for event in search.log()}) == 1


@pytest.mark.long
@pytest.mark.parametrize("fault", ["killed", "wiped", "old copy", "away for long"])
def test_two_searches_under_two_runners_complete_whatever_the_board_loses(tmp_path: Path, fault: str) -> None:
    trials = 150
    persistence = PERSISTENT if fault in ("killed", "away for long") else FORGETFUL
    with place_of(tmp_path, *persistence) as place, service_of(place) as api:
        first = place.submit("a", trials=trials)
        ready = api.get("/readyz").json()
        assert ready["status"] == "ready"
        assert any(LOUD in warning for warning in ready["warnings"]) is (persistence == FORGETFUL)
        with runner(place, "one", searches=1) as one, runner(place, "two", searches=1) as two:
            until(lambda: finished(first) >= 2)
            if fault == "old copy":  # one that knows the first alone, with its lease
                with place.server.client() as client:
                    client.save()
                shutil.copy(tmp_path / "server" / "dump.rdb", tmp_path / "old")
            second = place.submit("b", trials=trials)
            until(lambda: finished(second) >= 2)
            searches = {first.id: first, second.id: second}
            assert all((LOUD in each.said()) is (persistence == FORGETFUL) for each in (one, two))
            if fault == "wiped":
                with place.server.client() as client:
                    client.flushall()
            else:
                place.server.kill()
                down = time.monotonic()
                assert api.get("/readyz").status_code == 503
                assert api.get("/readyz").json()["status"] == "degraded"
                for search in searches.values():
                    grows(search)  # bundles go on
                    assert api.get(f"/v1/searches/{search.id}").json()["trials"]["complete"] >= 3, "reading goes on"
                if fault == "away for long":  # longer than the leases hold
                    until(lambda: time.monotonic() > down + 5.0)
                if fault == "old copy":
                    shutil.copy(tmp_path / "old", tmp_path / "server" / "dump.rdb")
                place.server.start()
                until(lambda: api.get("/readyz").status_code == 200)
            for search in searches.values():
                grows(search)
            for search in searches.values():
                complete(place, search, trials)
            assert api.get("/readyz").json()["status"] == "ready"
            listed = api.get("/v1/searches").json()["items"]
            assert {row["search_id"]: row["state"] for row in listed} == dict.fromkeys(searches, "complete")
