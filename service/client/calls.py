"""What is asked of a service and what the answers mean, without any sending: the same for threads and for asyncio.

    >>> flow = submitting({"task": "uci/iris", ...}, key="5f1c...")
    >>> call = next(flow)                     # a `Call`; whoever can send it sends its response back in
    >>> flow.send(response)                   # the next call, or StopIteration with the result

A call that fails is tried again (`pause_before`) when that cannot do harm: a submission carries a key by which the
service knows it again.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import quote

import httpx

from service.client.errors import ServiceError, Unreachable, error_of

if TYPE_CHECKING:
    import pyarrow as pa

    from service.spec import SearchSpec

    Spec: TypeAlias = Mapping[str, Any] | str | Path | SearchSpec

ARROW = "application/vnd.apache.arrow.stream"
BUSY = (429, 502, 503, 504)
PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0)  # seconds between tries
LONGEST = 30.0  # seconds that a server may ask us to wait
PAGE = 200
OVER = ("complete", "failed", "stopped", "cancelled")

T = TypeVar("T")
Flow: TypeAlias = Generator["Call", httpx.Response, T]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request. `answers` are statuses beside 2xx that are no errors; `again` says whether it may be sent twice."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    content: bytes | None = None
    answers: tuple[int, ...] = ()
    again: bool = True

    def request(self, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """As httpx sends it."""
        given = {name: value for name, value in self.params.items() if value is not None}
        return client.build_request(
            self.method, self.path, params=given, headers=self.headers, json=self.json, content=self.content
        )


# -- trying again ------------------------------------------------------------------------------------------------------


def pause_before(call: Call, tries: int, outcome: httpx.Response | httpx.TransportError) -> float | None:
    """Seconds to wait before the call is sent once more; None when it has come to its end, good or bad."""
    if isinstance(outcome, httpx.Response):
        if outcome.status_code not in BUSY or outcome.status_code in call.answers:
            return None
        harmless = call.again or outcome.status_code in (429, 503)  # these were not begun
    else:
        harmless = call.again or isinstance(outcome, httpx.ConnectError | httpx.ConnectTimeout)
    if not harmless or tries >= len(PAUSES):
        return None
    asked = outcome.headers.get("Retry-After", "") if isinstance(outcome, httpx.Response) else ""
    return min(float(asked), LONGEST) if asked.isdecimal() else PAUSES[tries]


def settled(call: Call, outcome: httpx.Response | httpx.TransportError, url: str) -> httpx.Response:
    """The response, where it is what the call wants. Raises `ServiceError` otherwise."""
    if isinstance(outcome, httpx.Response):
        if outcome.is_success or outcome.status_code in call.answers:
            return outcome
        raise error_of(outcome.status_code, outcome.reason_phrase, outcome.content, url)
    raise unreachable(outcome, url, begun=not call.again)


def unreachable(error: Exception, url: str, *, begun: bool = False) -> ServiceError:
    """The exception for a service that does not answer."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        hint = "Start one with `continua up`, or name another by --url or CONTINUA_URL."
    elif begun:
        hint = "It may have been done or not: look at the search before you send it again."
    else:
        hint = "Try again later; what it acknowledged is safe."
    return Unreachable(f"{url} does not answer: {reason}.", code="unreachable", hint=hint)


# -- the calls ---------------------------------------------------------------------------------------------------------


def submitting(
    spec: Spec,
    *,
    code: Path | str | None = None,
    requirements: Iterable[str] | None = None,
    priority: int | None = None,
    key: str | None = None,
) -> Flow[dict[str, Any]]:
    """Post a search; its code goes first, where the service lacks it."""
    sha = None
    body: dict[str, Any] = {"spec": declared(spec)}
    if code is not None:
        from service.code import packed

        made = packed(code)
        sha, path = made.sha256, f"/v1/code/{made.sha256}"
        there = yield Call(method="HEAD", path=path, answers=(404,))
        if there.status_code == 404:
            headers = {"Content-Type": "application/zip"}
            yield Call(method="PUT", path=path, content=made.payload, headers=headers)
    given = {"code": sha, "priority": priority, "requirements": list(requirements) if requirements else None}
    body |= {name: value for name, value in given.items() if value is not None}
    headers = {"Idempotency-Key": key or secrets.token_hex(16)}
    response = yield Call(method="POST", path="/v1/searches", json=body, headers=headers)
    return _mapping(response)


def declared(spec: Spec) -> dict[str, Any]:
    """A spec as plain data: a mapping, a file's, or a `SearchSpec`'s. Raises `Invalid` for a file that cannot be
    read."""
    if isinstance(spec, str | Path):
        from service.documents import document

        path = Path(spec)
        data = document(path)
        return data if data.get("name") else {**data, "name": path.stem}
    if isinstance(spec, Mapping):
        return dict(spec)
    return spec.to_dict()


def reading(path: str, **params: Any) -> Flow[dict[str, Any]]:
    """A page of JSON."""
    return _mapping((yield Call(method="GET", path=path, params=params)))


def listing(
    cursor: str | None, *, state: Sequence[str] | str | None, name: str | None, owner: str | None
) -> Flow[dict[str, Any]]:
    """A page of searches: `items`, and `next`, the cursor of the page after it or None."""
    states = state if state is None or isinstance(state, str) else ",".join(state)
    page = yield from reading("/v1/searches", limit=PAGE, cursor=cursor, state=states, name=name, owner=owner)
    if not isinstance(page.get("items"), list):
        raise ServiceError("/v1/searches must answer with a page of items; is that a continua service?")
    return {"items": page["items"], "next": page.get("next")}


def table(path: str, **params: Any) -> Flow[pa.Table]:
    """A page as an Arrow table."""
    return _table((yield Call(method="GET", path=path, params=params, headers={"Accept": ARROW})))


def asking(sql: str) -> Flow[pa.Table]:
    """The answer to one SELECT."""
    return _table((yield Call(method="POST", path="/v1/query", json={"sql": sql}, headers={"Accept": ARROW})))


def log_of(search_id: str, number: int) -> Flow[str]:
    """What a trial's code printed."""
    return (yield Call(method="GET", path=f"{path_of(search_id)}/trials/{number}/log")).text


def health() -> Flow[dict[str, Any]]:
    """What the service says of itself, ready or not."""
    response = yield Call(method="GET", path="/readyz", answers=(503,))
    return {"ready": response.status_code == 200, **_mapping(response)}


def goal_of(search_id: str) -> Flow[dict[str, Any]]:
    """What is wanted of a search."""
    return reading(f"{path_of(search_id)}/goal")


def changing(search_id: str, edit: Mapping[str, Any], if_version: int | None = None) -> Flow[dict[str, Any]]:
    """Change what is wanted of a search; an answer that is lost is asked for again only where that is harmless."""
    headers = {} if if_version is None else {"If-Match": f'"{if_version}"'}
    body = {name: value for name, value in edit.items() if value is not None}
    twice = edit["verb"] != "extend" and if_version is None
    call = Call(method="PATCH", path=f"{path_of(search_id)}/goal", json=body, headers=headers, again=twice)
    return _mapping((yield call))


def more(**budget: float | str | None) -> dict[str, float | str]:
    """The parts of a budget that are given."""
    return {name: value for name, value in budget.items() if value is not None}


def events_of(search_id: str, last: str) -> Call:
    """The stream of a search's events, from after the one of that id."""
    headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
    return Call(method="GET", path=f"{path_of(search_id)}/events", headers=headers)


def path_of(search_id: str) -> str:
    """Where a search is."""
    return f"/v1/searches/{quote(search_id, safe='')}"


def narrowing(space: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """A space to narrow to: plain data, or a file with it, alone or under `space`."""
    if isinstance(space, Mapping):
        return dict(space)
    from service.documents import document

    data = document(Path(space))
    return dict(data["space"]) if set(data) == {"space"} and isinstance(data["space"], Mapping) else data


# -- answers -----------------------------------------------------------------------------------------------------------


def _mapping(response: httpx.Response) -> dict[str, Any]:
    try:
        data = response.json()
    except ValueError:
        data = None
    if not isinstance(data, dict):
        kind = response.headers.get("Content-Type", "nothing")
        raise ServiceError(f"{response.url} must answer with JSON, but gave {kind}; is that a continua service?")
    return data


def _table(response: httpx.Response) -> pa.Table:
    import pyarrow as pa

    try:
        return pa.ipc.open_stream(response.content).read_all()
    except pa.ArrowInvalid as error:
        raise ServiceError(f"{response.url} must answer with an Arrow stream, but: {error}.") from None
