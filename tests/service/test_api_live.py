"""Watching over server-sent events: every event of the log once and in order, wherever a watcher comes back."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_cases import SPEC, Api, api_at, run_by_hand

from service.api import live
from trials.records import Ending

DONE = [(Ending.COMPLETE, 0.5), (Ending.NAN, None), (Ending.COMPLETE, float("inf"))]


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(live, "EVERY", 0.05)
    with api_at(tmp_path) as found:
        yield found


def search_in(api: Api, values: list[Any] | None = None, end: str = "complete") -> str:
    spec = {**SPEC, "objective": {"metric": "val_error", "mode": "min"}}
    search = api.store.create("seen-1", {"name": "seen", "spec": spec})
    if values is not None:
        run_by_hand(search, values, end=end)
    return search.id


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The events of a stream, as a browser would read them."""
    event: dict[str, Any] = {}
    for line in lines:
        if not line:
            if "data" in event:
                yield {**event, "data": json.loads(event["data"])}
            event = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            event[name] = value.removeprefix(" ")


def watched(
    client: httpx.Client,
    search_id: str,
    after: str | None = None,
    until: Callable[[dict[str, Any]], bool] = lambda _: False,
) -> list[dict[str, Any]]:
    headers = {"Last-Event-ID": after} if after else {}
    found = []
    with client.stream("GET", f"/v1/searches/{search_id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        for event in events(answer.iter_lines()):
            found.append(event)
            if until(event):
                break
    return found


def test_a_search_that_is_over_is_told_whole(api: Api) -> None:
    search_id = search_in(api, DONE)
    with api.served() as server, api.http(server, "read") as client:
        found = watched(client, search_id)
    numbered = [event for event in found if "id" in event]
    assert [event["event"] for event in numbered] == ["state", "asked", "told", "asked", "told", "state"]
    assert [event["id"] for event in numbered] == [f"1-{seq}" for seq in range(6)]
    assert numbered[2]["data"]["trials"] == [
        {"number": 0, "ending": "complete", "value": 0.5},
        {"number": 1, "ending": "nan", "value": None},
    ]
    assert numbered[4]["data"]["trials"] == [{"number": 2, "ending": "complete", "value": "Infinity"}]
    assert numbered[1]["data"]["trials"][0]["point"]["width.0"] == 8.0
    assert (found[-1]["event"], found[-1]["data"]) == ("end", {"state": "complete"})
    assert "id" not in found[-1]


@pytest.mark.slow
def test_a_watcher_that_comes_back_misses_nothing_and_sees_nothing_twice(api: Api) -> None:
    search_id = search_in(api, DONE)
    whole = [f"1-{seq}" for seq in range(6)]
    for after in [*whole, "0-99", "1-99", "2-0"]:
        with api.served() as server, api.http(server) as client:  # a server of its own each time: ids are the log's
            found = [event["id"] for event in watched(client, search_id, after) if "id" in event]
        assert found == [name for name in whole if live.place_of(name) > live.place_of(after)]  # type: ignore[operator]


def test_what_happens_meanwhile_is_told_as_it_happens(api: Api) -> None:
    search_id = api.submit(name="live")
    search = api.store.search(search_id)
    with api.served() as server, api.http(server) as client:
        writer = threading.Timer(0.3, run_by_hand, (search, DONE[:2]), {"end": ""})
        writer.start()
        first = watched(client, search_id, until=lambda event: event["event"] == "told")
        writer.join()
        assert [event["event"] for event in first if "id" in event] == ["state", "asked", "told"]
        assert first[0]["event"] == "progress"
        assert first[0]["data"]["state"] == "queued"
        client.patch(f"/v1/searches/{search_id}/goal", json={"verb": "stop"})
        rest = watched(client, search_id, after=first[-1]["id"])
        assert (rest[-1]["event"], rest[-1]["data"]["state"]) == ("end", "stopped")


def test_progress_is_told_when_it_changes(api: Api) -> None:
    search_id = api.submit()
    with api.served() as server, api.http(server) as client:
        job = api.board.claim("runner-1", ttl=30.0)
        assert job is not None
        api.board.renew(job.id, job.epoch, 30.0, {"finished": 3})
        seen = watched(client, search_id, until=lambda event: True)
        assert seen[0]["data"]["state"] == "running"
        assert seen[0]["data"]["job"]["progress"] == {"finished": 3}


def test_all_watchers_of_a_search_share_one_poller(api: Api) -> None:
    search_id = api.submit()
    with api.served() as server:
        found: list[int] = []

        def watch() -> None:
            with api.http(server) as client:
                seen = watched(client, search_id)
                found.append(sum("id" in event for event in seen))

        threads = [threading.Thread(target=watch) for _ in range(20)]
        for thread in threads:
            thread.start()
        desk = api.app.state.desk = server._app.state.desk
        deadline = time.monotonic() + 20
        while desk.live.watchers < 20 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert desk.live.watchers == 20
        assert len(desk.live._feeds) == 1
        run_by_hand(api.store.search(search_id), DONE, end="")
        job = api.board.claim("r", ttl=30.0)
        assert job is not None
        api.board.finish(job.id, job.epoch, over="complete", goal=0)
        for thread in threads:
            thread.join(20)
        assert found == [5] * 20
        while desk.live.watchers and time.monotonic() < deadline:
            time.sleep(0.02)
        assert desk.live._feeds == {}


def test_a_watcher_that_does_not_read_holds_up_nobody_and_is_let_go(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PATIENCE", 0.5)
    search_id = search_in(api, [(Ending.COMPLETE, 0.5)] * 2, end="")
    log = api.store.search(search_id).log_writer(2)
    trials = [{"number": n, "point": {"x" * 1000: 1.0}} for n in range(10_000)]
    log.append("asked", {"generation": 9, "trials": trials})  # 10 MB: more than any socket buffer here
    log.append("state", {"state": "complete"})
    with api.served() as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as lazy:
            head = f"GET /v1/searches/{search_id}/events HTTP/1.1\r\nHost: {host}\r\n"
            lazy.sendall(f"{head}Authorization: Bearer {api.token['read']}\r\n\r\n".encode())
            with api.http(server) as client:
                assert watched(client, search_id)[-1]["event"] == "end"
            desk, deadline = server._app.state.desk, time.monotonic() + 20
            while desk.live.watchers and time.monotonic() < deadline:
                time.sleep(0.02)
            assert desk.live.watchers == 0


def test_a_server_that_stops_sends_its_watchers_away(api: Api) -> None:
    search_id = api.submit()
    ended = threading.Event()
    with api.served() as server:

        def watch() -> None:
            with api.http(server) as client:
                seen = watched(client, search_id)
                assert [event["event"] for event in seen] == ["progress"]
                ended.set()

        thread = threading.Thread(target=watch)
        thread.start()
        desk = server._app.state.desk
        while not desk.live.watchers:
            time.sleep(0.01)
        time.sleep(0.2)
    thread.join(20)
    assert ended.is_set()


def test_quiet_streams_are_kept_alive(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "QUIET", 0.05)
    search_id = api.submit()
    path = f"/v1/searches/{search_id}/events"
    with api.served() as server, api.http(server) as client, client.stream("GET", path) as answer:
        assert any(line.startswith(": ") for line in answer.iter_lines())


@pytest.mark.parametrize("after", ["x", "1", "1-", "-1", "1-x", "1-2-3", "²-1"])
def test_an_id_that_is_none_is_refused(api: Api, after: str) -> None:
    search_id = api.submit()
    headers = {"Last-Event-ID": after.encode()}
    answer = api.client.get(f"/v1/searches/{search_id}/events", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert api.client.get("/v1/searches/none/events").status_code == 404
