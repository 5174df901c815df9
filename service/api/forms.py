"""In which form things go in and out: bodies as JSON or YAML, tables as JSON, CSV or Arrow, pages by a cursor.

>>> form = table_form(request)                       # by the header Accept
>>> answer = table_answer(table, form)
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from fastapi import Request, Response

from search_spaces.faults import Invalid
from service.api.desk import desk_of
from service.api.problems import Problem
from service.documents import parse_json, parse_yaml
from service.show import as_json, plain

ARROW = "application/vnd.apache.arrow.stream"
CSV = "text/csv"
JSON = "application/json"
YAML = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")
FORMS = (JSON, ARROW, CSV)


# -- in ----------------------------------------------------------------------------------------------------------------


async def body_of(request: Request) -> Any:
    """A body as plain data. Raises `Problem` and `Invalid`."""
    kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if kind != JSON and kind not in YAML:
        raise Problem("unsupported-media", f"Content-Type must be {JSON} or {YAML[0]}, but got {kind!r}.")
    if (coding := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise Problem("unsupported-media", f"Content-Encoding must be left out, but got {coding!r}; send it plain.")
    try:
        text = (await request.body()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Invalid([f"body: must be UTF-8, but byte {error.start} is not; send UTF-8."]) from None
    return await desk_of(request).run(parse_json if kind == JSON else parse_yaml, text, "body")  # it may take seconds


# -- out ---------------------------------------------------------------------------------------------------------------


def json_answer(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Plain data as JSON, with numbers that are not finite as text (see `service.show`)."""
    return Response(as_json(data), status_code=status, media_type=JSON, headers=dict(headers or {}))


def table_form(request: Request) -> str:
    """The form that the header Accept asks for first of those there are. Raises `Problem`."""
    accept = request.headers.get("accept", "*/*")
    for part in accept.split(","):
        kind = part.partition(";")[0].strip().lower()
        if kind in FORMS:
            return kind
        if kind in ("*/*", "application/*", ""):
            return JSON
    raise Problem("not-acceptable", f"Accept must name one of {', '.join(FORMS)}, but got {accept!r}.")


def table_answer(table: pa.Table, form: str, headers: Mapping[str, str] | None = None) -> Response:
    """A whole table as Arrow's stream or CSV."""
    assert form in (ARROW, CSV)
    data = as_arrow(table) if form == ARROW else as_csv(table)
    return Response(data, media_type=form, headers=dict(headers or {}))


def as_arrow(table: pa.Table) -> bytes:
    """An Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def as_csv(table: pa.Table) -> str:
    """CSV with a head; what is missing is empty, what is not finite is text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
        flat = [plain(value) for value in row]
        writer.writerow([v if v is None or isinstance(v, str | int | float) else as_json(v) for v in flat])
    return text.getvalue()


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """A table's rows; of columns with one name the last is numbered."""
    names = distinct(table.column_names)
    columns = [column.to_pylist() for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def distinct(names: Sequence[str]) -> list[str]:
    """The names, a repeated one numbered: an object has each key once."""
    found: dict[str, None] = {}
    for name in names:
        free, n = name, 0
        while free in found:
            n += 1
            free = f"{name}_{n}"
        found[free] = None
    return list(found)


# -- pages -------------------------------------------------------------------------------------------------------------


def cursor_of(place: Sequence[Any]) -> str:
    """A place in a list as a client may keep it; it says nothing to them."""
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def place_of(cursor: str | None, kinds: Sequence[type]) -> list[Any] | None:
    """The place that a cursor of ours holds. Raises `Invalid` for any other."""
    if cursor is None:
        return None
    try:
        place = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        place = None
    matches = isinstance(place, list) and len(place) == len(kinds)
    if not matches or not all(map(_fits, place, kinds)):
        raise Invalid([f"cursor: must be the `next` of the page before, but got {cursor!r}; begin without one."])
    assert isinstance(place, list)
    return place


def _fits(part: Any, kind: type) -> bool:
    return type(part) is kind and not (isinstance(part, int) and abs(part) >= 2**63)
