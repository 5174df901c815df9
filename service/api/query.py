"""SQL over HTTP: one SELECT, in a process of its own (`service.sandbox`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from search_spaces.faults import Invalid, unknown
from service.api import examples, forms
from service.api.desk import desk_of
from service.api.guard import MayRead
from service.api.problems import documented

router = APIRouter(tags=["results"])
CUT = "Continua-Cut"  # the header that says what a table was cut at


@router.post(
    "/query",
    summary="Ask in SQL",
    openapi_extra=examples.QUERY,
    responses={
        200: examples.ANSWER,
        **documented(
            "invalid", "query-limit", "too-large", "unsupported-media", "not-acceptable", "busy", "store-failed"
        ),
    },
)
async def ask(request: Request, who: MayRead) -> Response:
    """One SELECT over the tables searches, trials and reports. Long answers are cut, and say so."""
    form, sql = forms.table_form(request), _sql(await forms.body_of(request))
    desk = desk_of(request)
    answer = await desk.ask(desk.sandbox.ask, sql)
    if form == forms.JSON:
        items = await desk.run(forms.rows_of, answer.table)
        return forms.json_answer({"items": items, "cut": answer.cut or None})
    return await desk.run(forms.table_answer, answer.table, form, {CUT: answer.cut} if answer.cut else {})


def _sql(data: Any) -> str:
    if not isinstance(data, Mapping):
        raise Invalid([f"query: must be a mapping such as {{sql: SELECT ...}}, but got {data!r}."])
    faults = [unknown("query", key, ("sql",)) for key in data if key != "sql"]
    if not isinstance(data.get("sql"), str):
        faults.append(f"query.sql: must be text such as SELECT count(*) FROM trials, but got {data.get('sql')!r}.")
    if faults:
        raise Invalid(faults)
    return str(data["sql"])
