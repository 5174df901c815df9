"""Requests that mean harm: to the parser, to paths, to what a header may be, and to whoever waits for their end."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from api_cases import SPEC, Api, Client, api_at, run_by_hand

from service.api import guard, serve
from trials.records import Ending

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with api_at(tmp_path_factory.mktemp("hostile")) as found:
        run_by_hand(found.store.create("mine-1", {"name": "mine", "spec": SPEC}), [(Ending.COMPLETE, 0.5)] * 4, end="")
        yield found


def spec(**facts: Any) -> dict[str, Any]:
    return {"spec": {**SPEC, **facts}}


def long_int(digits: int, **facts: Any) -> str:
    """A body with a number that Python's own JSON would not write."""
    return json.dumps(spec(**facts)).replace('"LONG"', "9" * digits)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(spec(budget={"trials": float("nan")})),
        json.dumps(spec(budget={"wall_seconds": float("inf")})),
        json.dumps(spec(space={"lr": {"type": "float", "low": float("nan"), "high": 1.0}})),
        json.dumps({**spec(), "priority": float("nan")}),
        '{"spec": {"budget": {"trials": 1e999}}}',
        long_int(400, budget={"trials": "LONG"}),
        long_int(5000, budget={"trials": "LONG"}),
        long_int(400, budget={"wall_seconds": "LONG"}),
        long_int(400, resources={"workers": "LONG"}),
        long_int(400, space={"lr": {"type": "float", "low": 0.1, "high": "LONG"}}),
        json.dumps({**spec(), "priority": 10**300}),
        '{"spec": ' * 300 + "1" + "}" * 300,
        '{"spec": ' + "[" * 900 + "]" * 900 + "}",
        '{"spec": {"space": {"a": 1, "a": 2}}}',
        '{"spec": {}, "\\ud800": 1}',
        json.dumps(spec(name="x" * 500_000)),
        json.dumps({"spec": {f"k{i}": 0 for i in range(2000)}}),
    ],
    ids=lambda text: text[:30],
)
def test_numbers_and_depths_that_are_none_are_faults(api: Api, text: str) -> None:
    before = api.store.searches()
    answer = api.client.post("/v1/searches", content=text.encode(), headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), answer.text[:500]
    assert answer.json()["faults"]
    assert api.store.searches() == before


def test_many_keys_are_read_in_no_time(api: Api) -> None:
    text = "{" + ",".join(f'"{i}":0' for i in range(90_000)) + ',"1":0}'
    answer = api.client.post("/v1/query", content=text.encode(), headers=JSON)
    assert answer.status_code == 422
    assert answer.json()["faults"] == ["body: each key must stand once, but '1' stands twice; drop one."]


def test_deep_yaml_and_aliases_are_faults(api: Api) -> None:
    bomb = "a: &a [1]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(5))
    for text in (
        "[" * 5000 + "]" * 5000,
        "- " * 5000,
        "{a: " * 500 + "1" + "}" * 500,
        bomb,
        "a: 1\na: 2",
        "spec: .nan",
    ):
        answer = api.client.post("/v1/searches", content=text.encode(), headers={"Content-Type": "application/yaml"})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), text[:30]


def test_a_packed_body_is_not_unpacked(api: Api) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    for coding in ("gzip", "br", "deflate, gzip"):
        answer = api.client.post("/v1/searches", content=bomb, headers={**JSON, "Content-Encoding": coding})
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported-media")


@pytest.mark.parametrize(
    "search_id",
    [
        *("..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "..%5c..", "%00", "mine-1%00", "mine-1%0a"),
        *("mine-1%2f..%2fmine-1", ".", "~root", "x" * 129, "x" * 5000, "%ff%fe", "%F0%9F%92%A9", "*", "mine-1;ls", "-"),
    ],
)
def test_an_id_is_no_path(api: Api, search_id: str) -> None:
    for rest in ("", "/goal", "/trials", "/best", "/events", "/trials/0/log"):
        answer = api.client.get(f"/v1/searches/{search_id}{rest}")
        if answer.status_code != 200 or answer.headers["content-type"] != "application/json":
            assert answer.status_code in (404, 422), (search_id, rest)
        assert "root:" not in answer.text
        assert str(api.path) not in answer.text
    assert api.client.patch(f"/v1/searches/{search_id}/goal", json={"verb": "pause"}).status_code in (404, 405, 422)


def test_other_methods_are_told_which_there_are_and_nothing_more(api: Api) -> None:
    for method in ("HEAD", "OPTIONS", "TRACE", "DELETE", "PUT", "CONNECT", "FOO"):
        answer = api.client.request(method, "/v1/searches", headers={"Access-Control-Request-Method": "POST"})
        assert answer.status_code == 405, method
        assert set(answer.headers["allow"].split(", ")) <= {"GET", "POST"}
        assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize("key", ["x" * 256, "x" * 5000, " ", "a\tb", "\x7f"])
def test_a_key_is_short_visible_text(api: Api, key: str) -> None:
    before = api.store.searches()
    answer = api.client.post("/v1/searches", json=spec(), headers={"Idempotency-Key": key})
    assert answer.status_code == 422
    assert api.store.searches() == before


@pytest.mark.parametrize(
    "tag", ["0", 'W/"0"', '"0", "1"', '""', '"', '"-1"', '"0x0"', '"' + "9" * 30 + '"', '"0"x', "'0'"]
)
def test_a_tag_is_a_goals_own(api: Api, tag: str) -> None:
    answer = api.client.patch("/v1/searches/mine-1/goal", json={"verb": "pause"}, headers={"If-Match": tag})
    assert (answer.status_code, answer.json()["code"]) == (412, "goal-changed")
    assert api.client.get("/v1/searches/mine-1/goal").json()["version"] == 0


def cursor(data: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(data).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "text",
    [
        *("!", "=", "AAAA", "ä", cursor(None), cursor([]), cursor({}), cursor([1.5]), cursor(["x"]), cursor([True])),
        *(cursor([10**30]), cursor([-(10**30)]), cursor([float("nan")]), cursor([1, "a", 2]), cursor([[1], "a"])),
        *(cursor([10**30, "x"]), cursor(["a", "b", 10**30, 1]), base64.urlsafe_b64encode(b"[" * 250).decode()),
    ],
)
def test_a_cursor_is_one_of_ours(api: Api, text: str) -> None:
    for path in ("/v1/searches", "/v1/searches/mine-1/trials", "/v1/searches/mine-1/reports"):
        answer = api.client.get(path, params={"cursor": text})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), path


@pytest.mark.parametrize(
    "place", ["x", "1", "1-", "-1", "-1-2", "1-2-3", "1.5-2", "\u0661-\u0662".encode(), "1-x", " "]
)
def test_a_place_in_the_events_is_an_events_own(api: Api, place: Any) -> None:
    answer = api.client.get("/v1/searches/mine-1/events", headers={"Last-Event-ID": place})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")


def test_a_token_is_taken_from_its_header_alone(api: Api) -> None:
    plain = api.token["admin"]
    nobody = Client(api.app, {})
    for name in ("token", "access_token", "authorization"):
        assert nobody.get("/v1/searches", params={name: plain}).status_code == 401
        assert nobody.get("/v1/searches", headers={"Cookie": f"{name}={plain}"}).status_code == 401
    assert nobody.get("/v1/searches", headers={"X-Token": plain}).status_code == 401


def test_who_may_read_never_reaches_code(api: Api) -> None:
    for method in ("GET", "HEAD", "PUT"):
        assert api.as_("read").request(method, f"/v1/code/{'0' * 64}").status_code == 403


def test_no_token_and_no_query_is_logged(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with api.served() as server, api.http(server) as client:
        plain = api.token["admin"]
        client.get("/v1/searches", params={"name": "hunter2"})
        client.get(f"/v1/nothing?token={plain}")
        client.get("/v1/searches", headers={"Authorization": f"Bearer {plain}x"})
        api.board.plugged = False
        client.get("/readyz?token=hunter2")
        api.board.plugged = True
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert not any(word in record.getMessage() for record in ours for word in (plain, "hunter2"))


# -- over a socket -----------------------------------------------------------------------------------------------------


def peer(server: Any) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def rest(one: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    found = b""
    while True:
        try:
            part = one.recv(65536)
        except ConnectionResetError:
            return found
        if not part:
            return found
        found += part


def test_who_sends_nothing_or_little_is_let_go(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HEAD", 0.3)
    monkeypatch.setattr(guard, "PATIENCE", 0.3)
    head = f"POST /v1/query HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {api.token['admin']}\r\n".encode()
    body = b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    with api.served() as server:
        with peer(server) as silent, peer(server) as slow, peer(server) as half:
            slow.sendall(head)
            half.sendall(head + body + b"{")
            assert rest(silent) == rest(slow) == b""
            assert rest(half).startswith(b"HTTP/1.1 408 ")
        with api.http(server) as client:
            for _ in range(2):  # on one connection
                assert client.get("/v1/searches").status_code == 200


def test_heads_are_bounded(api: Api) -> None:
    with api.served() as server:
        for line in (b"X: " + b"x" * 300_000 + b"\r\n", b"X: y\r\n" * 100_000):
            with peer(server) as one:
                try:
                    one.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n" + line + b"\r\n")
                except OSError:
                    continue  # closed while we were sending
                assert not rest(one).startswith(b"HTTP/1.1 200")
        for smuggled in (b"Content-Length: 3\r\nContent-Length: 4\r\n", b"Transfer-Encoding: gzip, chunked\r\n"):
            with peer(server) as one:
                one.sendall(
                    b"POST /v1/query HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n" + smuggled + b"\r\nabcd"
                )
                assert rest(one).split()[1] in (b"400", b"501")
        with api.http(server) as client:
            assert client.get("/healthz").status_code == 200
