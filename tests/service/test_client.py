"""The client against a service that is played: what it sends, what it makes of answers, when it tries again."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from search_spaces import Invalid as Faulty
from service.client import (
    AsyncClient,
    Client,
    Conflict,
    Event,
    Invalid,
    NotFound,
    ServiceError,
    Unauthorised,
    Unreachable,
    calls,
)
from service.client.events import Reader
from service.client.found import service

pytestmark = pytest.mark.usefixtures("alone")
SPEC = {"name": "played", "task": "uci/iris", "space": {}, "budget": {"trials": 4}}
ROW = {"search_id": "played-0a1b2c", "name": "played", "state": "queued"}
Answer = httpx.Response | Exception


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PAUSES", (0.0, 0.0, 0.0))
    for name in ("CONTINUA_URL", "CONTINUA_TOKEN", "CONTINUA_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)


class Played:
    """Gives answers in turn, or what a function says, and keeps the requests."""

    def __init__(self, *answers: Answer | Callable[[httpx.Request], httpx.Response]) -> None:
        self.answers, self.requests = list(answers), list[httpx.Request]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return answer
        return answer(request)

    def client(self, token: str | None = "t0ken") -> Client:
        return Client("http://service", token, transport=httpx.MockTransport(self))

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(request.content) if request.content else None for request in self.requests]


def made(row: dict[str, Any] = ROW) -> httpx.Response:
    return httpx.Response(201, json=row)


def problem(status: int, code: str, **more: Any) -> httpx.Response:
    body = {"type": "about:blank", "title": "Title.", "status": status, "code": code, "detail": "", "hint": "", **more}
    return httpx.Response(status, json=body, headers={"Content-Type": "application/problem+json"})


# -- submitting --------------------------------------------------------------------------------------------------------


def test_a_submission_is_sent_again_under_the_same_key_until_it_is_answered() -> None:
    lost = httpx.ReadError("reset")
    played = Played(httpx.ConnectError("refused"), lost, httpx.Response(503), made())
    search = played.client().submit(SPEC, priority=30)
    assert (search.id, search.name, search.state) == ("played-0a1b2c", "played", "queued")
    assert len(played.requests) == 4
    keys = {request.headers["Idempotency-Key"] for request in played.requests}
    assert len(keys) == 1
    assert len(keys.pop()) >= 32
    assert played.bodies == [{"spec": SPEC, "priority": 30}] * 4
    assert played.requests[0].headers["Authorization"] == "Bearer t0ken"
    own = Played(made())
    own.client().submit(SPEC, key="mine")
    assert own.requests[0].headers["Idempotency-Key"] == "mine"


def test_a_service_that_stays_away_is_told_with_the_way_out() -> None:
    played = Played(httpx.ConnectError("[Errno 111] Connection refused"))
    with pytest.raises(Unreachable, match=r"http://service does not answer: .*Connection refused") as caught:
        played.client().submit(SPEC)
    assert "continua up" in caught.value.hint
    assert len(played.requests) == 4
    busy = Played(problem(503, "busy", detail="Too busy."))
    with pytest.raises(ServiceError, match="Too busy") as told:
        busy.client().submit(SPEC)
    assert told.value.status == 503


def test_code_is_uploaded_only_where_it_is_lacking(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1")
    lacking = Played(httpx.Response(404), httpx.Response(201), made())
    lacking.client().submit(SPEC, code=tmp_path, requirements=["numpy==2.0"])
    asked, put, posted = lacking.requests
    assert [asked.method, put.method, posted.method] == ["HEAD", "PUT", "POST"]
    sha = asked.url.path.removeprefix("/v1/code/")
    assert put.url.path == f"/v1/code/{sha}"
    assert put.headers["Content-Type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(put.content)) as archive:
        assert archive.namelist() == ["mine.py"]
    assert json.loads(posted.content) == {"spec": SPEC, "code": sha, "requirements": ["numpy==2.0"]}
    there = Played(httpx.Response(200), made())
    there.client().submit(SPEC, code=str(tmp_path))
    assert [request.method for request in there.requests] == ["HEAD", "POST"]


def test_a_spec_may_be_a_file_or_an_object(tmp_path: Path) -> None:
    from service.spec import SearchSpec

    (tmp_path / "of-file.yaml").write_text("task: uci/iris\nspace: {lr: {type: float, low: 0.1, high: 1.0}}\n")
    played = Played(made())
    played.client().submit(tmp_path / "of-file.yaml")
    played.client().submit(str(tmp_path / "of-file.yaml"))
    assert [body["spec"]["name"] for body in played.bodies] == ["of-file"] * 2
    space = {"width.0": {"type": "width", "low": 2, "high": 8}, "lr": {"type": "float", "low": 0.1, "high": 1.0}}
    network = {"kind": "mlp", "layers": 1}
    spec = SearchSpec.from_dict({**SPEC, "space": space, "network": network})
    played.client().submit(spec)
    assert played.bodies[-1]["spec"] == spec.to_dict()
    with pytest.raises(Faulty, match="no such file"):
        played.client().submit("nowhere.yaml")


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, Invalid), (401, Unauthorised), (403, Unauthorised), (404, NotFound), (409, Conflict), (412, Conflict)]
    + [(422, Invalid), (500, ServiceError), (507, ServiceError)],
)
def test_problems_become_exceptions_with_their_parts(status: int, kind: type[ServiceError]) -> None:
    told = problem(status, "some-code", detail="It is so.", hint="Do this.", faults=["a: must b.", "c: must d."])
    with pytest.raises(kind, match="It is so") as caught:
        Played(told).client().search("played")
    error = caught.value
    assert (error.status, error.code, error.hint) == (status, "some-code", "Do this.")
    assert error.faults == ("a: must b.", "c: must d.")
    assert error.sentences() == ["a: must b.", "c: must d."]
    assert type(error) is kind


@pytest.mark.parametrize("body", [b"<html>nginx</html>", b"[1]", b"", b'{"detail": 3, "faults": 4}'])
def test_a_stranger_who_answers_is_no_traceback(body: bytes) -> None:
    with pytest.raises(ServiceError):
        Played(httpx.Response(500, content=body)).client().search("x")
    with pytest.raises(ServiceError, match="is that a continua service"):
        Played(httpx.Response(200, content=b"<html>")).client().search("x")
    with pytest.raises(ServiceError, match="must answer with an Arrow stream"):
        Played(httpx.Response(200, content=b"<html>")).client().query("SELECT 1")
    with pytest.raises(ServiceError, match="page of items"):
        list(Played(httpx.Response(200, json={})).client().searches())


def test_more_budget_is_never_asked_for_twice() -> None:
    search = Played(made()).client().submit(SPEC)
    for answer, tries in ((httpx.ReadError("reset"), 1), (httpx.ConnectError("refused"), 4), (httpx.Response(502), 1)):
        played = Played(answer)
        search._connection = played.client()._connection
        with pytest.raises(ServiceError) as caught:
            search.extend(trials="+64")
        assert len(played.requests) == tries
        if isinstance(answer, httpx.ReadError):
            assert "look at the search before you send it again" in caught.value.hint


# -- a search ----------------------------------------------------------------------------------------------------------


def test_every_verb_is_an_edit_of_the_goal() -> None:
    played = Played(httpx.Response(202, json={"version": 1}))
    search = Client("http://service", "t", transport=httpx.MockTransport(played)).search("played")
    search.row = ROW
    played.requests.clear()
    for verb in (search.pause, search.resume, search.stop, search.cancel):
        assert verb() == {"version": 1}
    search.scale(3)
    search.extend(trials=512, wall_seconds="+60")
    search.narrow({"lr": {"high": 0.1}})
    search.prioritise(50)
    search.edit("scale", workers=2, if_version=7)
    assert {request.method for request in played.requests} == {"PATCH"}
    assert {request.url.path for request in played.requests} == {"/v1/searches/played-0a1b2c/goal"}
    assert [body.pop("verb") for body in played.bodies][:4] == ["pause", "resume", "stop", "cancel"]
    assert [{k: v for k, v in body.items() if k != "verb"} for body in played.bodies[4:]] == [
        {"workers": 3},
        {"budget": {"trials": 512, "wall_seconds": "+60"}},
        {"space": {"lr": {"high": 0.1}}},
        {"priority": 50},
        {"workers": 2},
    ]
    assert [request.headers.get("If-Match") for request in played.requests] == [None] * 8 + ['"7"']


def test_a_space_to_narrow_to_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("lr: {high: 0.1}\n")
    (tmp_path / "b.yaml").write_text("space:\n  lr: {high: 0.1}\n")
    assert calls.narrowing(tmp_path / "a.yaml") == calls.narrowing(tmp_path / "b.yaml") == {"lr": {"high": 0.1}}


def test_an_id_is_never_a_path() -> None:
    played = Played(httpx.Response(200, json=ROW))
    played.client().search("../../v1/code?x#y")
    assert played.requests[0].url.raw_path == b"/v1/searches/..%2F..%2Fv1%2Fcode%3Fx%23y"


def test_tables_come_as_arrow_and_pages_one_after_the_other() -> None:
    table = pa.table({"number": [0, 1]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    played = Played(httpx.Response(200, content=sink.getvalue().to_pybytes()))
    client = played.client()
    assert client.query("SELECT 1") == table
    assert played.requests[0].headers["Accept"] == "application/vnd.apache.arrow.stream"
    first = httpx.Response(200, json={"items": [ROW, ROW], "next": "abc"})
    listing = Played(first, httpx.Response(200, json={"items": [ROW], "next": None}))
    assert len(list(listing.client().searches(state=["queued", "running"], owner="ada"))) == 3
    assert [request.url.params.get("cursor") for request in listing.requests] == [None, "abc"]
    assert listing.requests[1].url.params["state"] == "queued,running"
    assert "name" not in listing.requests[1].url.params


def test_waiting_ends_with_the_search_or_with_the_time() -> None:
    states = ("queued", "running", "complete")
    played = Played(*(httpx.Response(200, json={**ROW, "state": state}) for state in states))
    client = played.client()
    assert client.search("played").wait(timeout=30).state == "complete"
    with pytest.raises(TimeoutError, match=r"is still queued after 0 s"):
        Played(made()).client().search("played").wait(timeout=0)


def test_a_notebook_shows_a_search_that_is_called_script_as_text() -> None:
    row = {"search_id": "a-1", "name": "<script>alert(1)</script>", "state": "<b>", "trials": {"<i>": 1}, "best": None}
    shown = Played(made({**row, "metric": "<u>", "best": {"value": "<s>"}})).client().search("a")._repr_html_()
    for word in ("<script", "<b>", "<i>", "<u>", "<s>"):
        assert word not in shown
    assert "&lt;script&gt;" in shown


# -- events ------------------------------------------------------------------------------------------------------------


class Stream(httpx.SyncByteStream):
    def __init__(self, *parts: bytes | Exception) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            yield part


def streamed(*parts: bytes | Exception) -> httpx.Response:
    return httpx.Response(200, stream=Stream(*parts), headers={"Content-Type": "text/event-stream"})


def test_watching_goes_on_where_it_was_cut_and_ends_with_the_search() -> None:
    played = Played(
        streamed(b'retry: 0\n\nid: 1-1\nevent: state\ndata: {"state"', b': "running"}\n\nid: 1-2\nevent: told\nda'),
        httpx.ConnectError("refused"),
        streamed(b": still here\n\n", httpx.ReadError("reset")),
        httpx.Response(503),
        streamed(
            b'id: 1-2\r\nevent: told\r\ndata: {"n":\r\ndata: 1}\r\n\r\nevent: end\ndata: {"state": "complete"}\n\n'
        ),
    )
    search = Played(made()).client().submit(SPEC)
    search._connection = played.client()._connection
    assert list(search.watch()) == [
        Event(id="1-1", kind="state", data={"state": "running"}),
        Event(id="1-2", kind="told", data={"n": 1}),
        Event(id="1-2", kind="end", data={"state": "complete"}),
    ]
    assert [request.headers.get("Last-Event-ID") for request in played.requests] == [None, *["1-1"] * 4]


def test_what_was_begun_of_an_event_does_not_move_the_place_to_go_on_from() -> None:
    cut = streamed(b"id: 1-1\ndata: 1\n\nid: 1-2\ndata: 2\n")
    played = Played(cut, streamed(b"id: 1-2\ndata: 2\n\nevent: end\ndata: 0\n\n"))
    search = Played(made()).client().submit(SPEC)
    search._connection = played.client()._connection
    assert [event.data for event in search.watch()] == [1, 2, 0]
    assert played.requests[1].headers["Last-Event-ID"] == "1-1"


def test_watching_what_is_not_there_or_does_not_come_back_is_an_error() -> None:
    search = Played(made()).client().submit(SPEC)
    search._connection = Played(problem(404, "not-found", detail="No such search.")).client()._connection
    with pytest.raises(NotFound, match="No such search"):
        next(search.watch())
    search._connection = Played(httpx.ConnectError("refused")).client()._connection
    with pytest.raises(Unreachable):
        next(search.watch())


def test_lines_that_mean_nothing_are_passed_over() -> None:
    reader = Reader()
    lines = [":", ": comment", "data", "data: ", "", "nonsense: 1", "retry: soon", "id: a\0b", "retry: 1500", "data: x"]
    found = [event for line in [*lines, ""] if (event := reader.feed(line))]
    assert found == [Event(id="", kind="message", data="\n"), Event(id="", kind="message", data="x")]
    assert reader.retry == 1.5


# -- asyncio, settings, imports ----------------------------------------------------------------------------------------


class AsyncStream(httpx.AsyncByteStream):
    def __init__(self, data: bytes) -> None:
        self.data = data

    async def __aiter__(self) -> Any:
        yield self.data


def test_asyncio_does_the_same() -> None:
    row = {**ROW, "state": "complete"}
    events = b'id: 1-1\nevent: told\ndata: 1\n\nevent: end\ndata: {"state": "complete"}\n\n'
    stream = httpx.Response(200, stream=AsyncStream(events))
    page = httpx.Response(200, json={"items": [ROW], "next": None})
    played = Played(httpx.ConnectError("refused"), made(), httpx.Response(200, json=row), stream, page, made())

    async def use() -> list[Any]:
        async with AsyncClient("http://service", "t", transport=httpx.MockTransport(played)) as client:
            search = await client.submit(SPEC)
            await search.wait()
            found = [event.kind async for event in search.watch()]
            names = [listed.name async for listed in client.searches()]
            await search.extend(trials="+1")
            return [search.state, found, names]

    assert asyncio.run(use()) == ["complete", ["told", "end"], ["played"]]
    assert played.bodies[-1] == {"verb": "extend", "budget": {"trials": "+1"}}


def test_the_service_is_found_by_settings_or_by_what_up_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Faulty, match=r"nobody says where a service is.*continua up"):
        Client()
    store = tmp_path / "share" / "continua"
    store.mkdir(parents=True)
    (store / "server.json").write_text('{"url": "http://127.0.0.1:1234"}')
    assert Client().url == "http://127.0.0.1:1234"
    monkeypatch.setenv("CONTINUA_URL", "http://elsewhere/")
    monkeypatch.setenv("CONTINUA_TOKEN", "from-env")
    played = Played(httpx.Response(200, json={"checks": {}}))
    client = Client(transport=httpx.MockTransport(played))
    assert client.url == "http://elsewhere"
    assert client.health()["ready"] is True
    assert played.requests[0].headers["Authorization"] == "Bearer from-env"
    assert "from-env" not in repr(client)


def test_a_service_that_is_not_ready_says_so() -> None:
    assert Played(httpx.Response(503, json={"board": "down"})).client().health() == {"ready": False, "board": "down"}


def test_importing_the_client_loads_nothing_heavy() -> None:
    script = """
import sys
from service import AsyncClient, Client
assert not {"torch", "ray", "pyarrow", "pandas", "duckdb", "optuna", "fastapi"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("file", ["continua.toml", "pyproject.toml"])
def test_a_projects_file_does_not_get_the_users_token_for_a_stranger(tmp_path, monkeypatch, file):
    table = "[tool.continua]\n" if file == "pyproject.toml" else ""
    (tmp_path / file).write_text(f'{table}url = "http://elsewhere.example:80"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("CONTINUA_URL", raising=False)
    monkeypatch.setenv("CONTINUA_TOKEN", "secret")
    with pytest.raises(Faulty, match="a token goes only to a service that its user named"):
        service(None, None)
    assert service("http://elsewhere.example:80", None) == ("http://elsewhere.example:80", "secret")
    assert service(None, "its-own") == ("http://elsewhere.example:80", "its-own")
    (tmp_path / file).write_text(f'{table}url = "http://127.0.0.1:9000"\n')
    assert service(None, None) == ("http://127.0.0.1:9000", "secret")
