"""What guards every route: tokens and scopes, hosts and sites, sizes counted in bytes, and headers."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_cases import BASE, SPEC, Api, Client, api_at

from service.access import SCOPES, add, revoke
from service.api.guard import MOST_BODY, OPEN
from service.zip_rules import MOST_PACKED

PROBLEM = "application/problem+json"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with api_at(tmp_path) as found:
        yield found


def operations(api: Api) -> list[tuple[str, str]]:
    paths: dict[str, Any] = api.app.openapi()["paths"]
    found = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert len(found) >= 18
    return found


def filled(path: str) -> str:
    return re.sub(r"{sha256}", "0" * 64, re.sub(r"{search_id}", "none-1", path)).replace("{number}", "0")


def needed(method: str, path: str) -> str:
    """The scope that each route is meant to need, told here by hand."""
    if "/code/" in path or method in ("PATCH", "PUT") or (method, path) == ("POST", "/v1/searches"):
        return "submit"
    return "read"


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_openapi_knows_every_route(api: Api) -> None:
    def routes(items: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
        for route in items:
            inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
            if inner:
                yield from routes(inner)
            for method in getattr(route, "methods", None) or ():
                yield method, route.path

    bare = {(method, path.removeprefix("/v1")) for method, path in operations(api)}
    assert {(method, path.removeprefix("/v1")) for method, path in routes(api.app.routes)} == bare


def test_every_route_asks_for_a_token(api: Api) -> None:
    nobody = Client(api.app, {})
    stranger = Client(api.app, {"Authorization": "Bearer " + "x" * 43})
    for method, path in operations(api):
        if path in OPEN:
            assert nobody.request(method, path).status_code == 200
            continue
        for who in (nobody, stranger):
            answer = who.request(method, filled(path))
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            if method != "HEAD":
                assert answer.headers["content-type"] == PROBLEM
                assert answer.json()["code"] == "unauthorized"
    assert {"/healthz", "/readyz"} == OPEN


def test_not_even_an_unknown_path_is_told_to_strangers(api: Api) -> None:
    assert Client(api.app, {}).get("/v1/nothing").status_code == 401
    assert api.client.get("/v1/nothing").status_code == 404


@pytest.mark.parametrize("scope", SCOPES)
def test_every_route_asks_for_its_scope(api: Api, scope: str) -> None:
    for method, path in operations(api):
        if path not in OPEN:
            status = api.as_(scope).request(method, filled(path)).status_code
            allowed = SCOPES.index(scope) >= SCOPES.index(needed(method, path))
            assert (status != 403) == allowed, (method, path, status)
            assert status != 401


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic YTpi", "Token x", "bearer  \t"])
def test_a_header_that_is_no_token_is_refused(api: Api, header: str) -> None:
    assert Client(api.app, {"Authorization": header}).get("/v1/searches").status_code == 401


def test_tokens_come_and_go_while_the_server_runs(api: Api) -> None:
    plain = add("new", "read", path=api.tokens)
    client = Client(api.app, {"Authorization": f"Bearer {plain}"})
    assert client.get("/v1/searches").status_code == 200
    revoke("new", path=api.tokens)
    assert client.get("/v1/searches").status_code == 401


def test_tokens_that_others_may_read_let_nobody_in(api: Api) -> None:
    api.tokens.chmod(0o644)
    answer = api.client.get("/v1/searches")
    assert (answer.status_code, answer.json()["code"]) == (503, "access-unreadable")
    assert str(api.tokens) not in answer.text
    assert api.client.get("/healthz").status_code == 200


# -- hosts and sites ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1:8642", "localhost", "LOCALHOST:1", "[::1]:8642", "[0:0::1]"])
def test_our_own_names_are_answered(api: Api, host: str) -> None:
    assert api.client.get("/v1/searches", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "", "[::2]", "127.0.0.2", "@127.0.0.1", "::1"]
)
def test_other_names_are_not(api: Api, host: str) -> None:
    for path in ("/v1/searches", "/healthz"):
        answer = api.client.get(path, headers={"Host": host})
        assert (answer.status_code, answer.json()["code"]) == (421, "wrong-host")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_pages_of_other_sites_are_refused(api: Api, headers: dict[str, str]) -> None:
    answer = api.client.post("/v1/searches", headers=headers, json={"spec": SPEC})
    assert (answer.status_code, answer.json()["code"]) == (403, "cross-site")
    assert "access-control-allow-origin" not in answer.headers
    assert api.store.searches() == []


def test_own_pages_are_answered(api: Api) -> None:
    for headers in ({"Origin": BASE}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}):
        assert api.client.get("/v1/searches", headers=headers).status_code == 200


def test_every_answer_is_sealed(api: Api) -> None:
    nobody = Client(api.app, {})
    asked = [(api.client, "/v1/searches"), (api.client, "/v1/none"), (nobody, "/v1/searches"), (nobody, "/healthz")]
    for who, path in asked:
        headers = who.get(path).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


def test_a_name_with_markup_stays_text(api: Api) -> None:
    name = "<script>alert(1)</script>"
    search_id = api.submit(name=name)
    for path in ("/v1/searches", f"/v1/searches/{search_id}"):
        answer = api.client.get(path)
        assert answer.headers["content-type"] == "application/json"
        assert name in answer.text
    nobody = api.client.get("/v1/searches/<script>")
    assert nobody.status_code == 404
    assert nobody.headers["content-type"] == PROBLEM


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_bodies_are_counted_by_their_bytes(api: Api) -> None:
    big = b" " * (MOST_BODY + 1)
    headers = {"Content-Type": "application/json"}
    answer = api.client.post("/v1/searches", content=big, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")

    async def chunks() -> Any:
        for _ in range(MOST_BODY // 65536 + 2):
            yield b" " * 65536

    assert api.client.post("/v1/searches", content=chunks(), headers=headers).status_code == 413
    lying = {**headers, "Content-Length": "3"}
    assert api.client.post("/v1/query", content=chunks(), headers=lying).status_code == 413
    for text in ("-1", "1.5", "x", "9" * 400):
        status = api.client.post("/v1/query", content=b"{}", headers={**headers, "Content-Length": text}).status_code
        assert status == (413 if text.isdecimal() else 400)
    assert api.client.post("/v1/searches", content=b" " * MOST_BODY, headers=headers).status_code == 422
    assert api.client.put(f"/v1/code/{'0' * 64}", content=big).status_code == 422  # code may be larger
    assert api.client.put(f"/v1/code/{'0' * 64}", headers={"Content-Length": str(MOST_PACKED + 1)}).status_code == 413


def test_a_chunked_body_over_a_socket_is_cut_off(api: Api) -> None:
    with api.served() as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as peer:
            head = f"POST /v1/searches HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {api.token['ada']}\r\n"
            peer.sendall(f"{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            sent = 0
            try:
                while sent < 64 * MOST_BODY:
                    peer.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
                    sent += 65536
            except OSError:
                pass
            assert sent < 64 * MOST_BODY
        with api.http(server) as client:
            assert client.get("/v1/searches").status_code == 200


def test_a_body_that_cannot_be_read_is_said_so(api: Api) -> None:
    cases = [
        (b"{", "application/json", 422),
        (b"\xff", "application/json", 422),
        (b'{"spec": 1, "spec": 2}', "application/json", 422),
        (b"[" * 100_000, "application/json", 422),
        (b"a: &x 1\nb: *x", "application/yaml", 422),
        (b"!!python/object/apply:os.system ['true']", "application/yaml", 422),
        (b"spec: {}", "text/plain", 415),
        (b"", "application/json", 422),
    ]
    for content, kind, status in cases:
        answer = api.client.post("/v1/searches", content=content, headers={"Content-Type": kind})
        assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), content[:40]
        assert answer.json()["faults"] or status == 415


# -- what is loaded ----------------------------------------------------------------------------------------------------


def test_the_server_names_nothing_that_unpickles() -> None:
    root = Path(__file__).parents[2] / "service"
    files = [*(root / "api").glob("*.py"), root / "sandbox.py", root / "submission.py", root / "access.py"]
    assert len(files) > 15
    words = ("pickle", "torch.load", "yaml.load(", "eval(", "exec(")
    wrong = [(path.name, word) for path in files for word in words if word in path.read_text()]
    assert wrong == []
