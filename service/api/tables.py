"""A search's trials and reports over HTTP, pages of JSON or the whole as Arrow or CSV; its best; one trial."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from fastapi import APIRouter, Path, Query, Request, Response

from service.api import examples, forms
from service.api.desk import Desk, desk_of
from service.api.guard import MayRead
from service.api.problems import documented
from service.api.searches import MOST, search_path
from service.show import as_json, escaped, moment
from service.summary import best_trial
from trials import rows, tables
from trials.records import trial_id
from trials.store import NotFound, SearchStore

router = APIRouter(tags=["results"])
NUMBERS = 10**12
_PROBLEMS = documented("not-found", "ambiguous-id", "invalid", "not-acceptable", "store-failed", "damaged")
_ORDER = ("trial_id", "bundle_id", "attempt", "step")


@router.get("/searches/{search_id}/trials", summary="A search's trials", responses={200: examples.TRIALS, **_PROBLEMS})
async def trials(
    request: Request,
    who: MayRead,
    search_id: str = search_path(),
    ending: str | None = Query(None, max_length=200, description="One ending, or several with commas between."),
    trial: int | None = Query(None, ge=0, le=NUMBERS, description="A trial's number."),
    limit: int = Query(100, ge=1, le=MOST, description="Rows of a page of JSON."),
    cursor: str | None = Query(None, max_length=400, description="The `next` of the page before."),
) -> Response:
    """One row a trial, by number: the table `trials` of SQL. Arrow and CSV give the whole of it."""
    form, place = forms.table_form(request), forms.place_of(cursor, (int,))

    def answer(desk: Desk) -> Response:
        table = tables.trials([desk.search(search_id)])
        if ending is not None:
            table = table.filter(pc.is_in(table["ending"], pa.array(ending.split(","))))
        if trial is not None:
            table = table.filter(pc.equal(table["number"], trial))
        if form != forms.JSON:
            return forms.table_answer(table, form)
        if place:
            table = table.filter(pc.greater(table["number"], place[0]))
        return _paged(table, limit, ("number",))

    desk = desk_of(request)
    return await desk.run(answer, desk)


@router.get(
    "/searches/{search_id}/reports", summary="A search's reports", responses={200: examples.REPORTS, **_PROBLEMS}
)
async def reports(
    request: Request,
    who: MayRead,
    search_id: str = search_path(),
    trial: int | None = Query(None, ge=0, le=NUMBERS, description="A trial's number."),
    limit: int = Query(100, ge=1, le=MOST, description="Rows of a page of JSON."),
    cursor: str | None = Query(None, max_length=400, description="The `next` of the page before."),
) -> Response:
    """What trials measured as they went, by trial and step: `reports` of SQL. Arrow and CSV give the whole."""
    form, place = forms.table_form(request), forms.place_of(cursor, (str, str, int, int))

    def answer(desk: Desk) -> Response:
        search = desk.search(search_id)
        table = tables.reports([search])
        if trial is not None:
            table = table.filter(pc.equal(table["trial_id"], trial_id(search.id, trial)))
        table = table.sort_by([(name, "ascending") for name in _ORDER])
        if form != forms.JSON:
            return forms.table_answer(table, form)
        return _paged(table if place is None else table.filter(_beyond(table, place)), limit, _ORDER)

    desk = desk_of(request)
    return await desk.run(answer, desk)


def _paged(table: pa.Table, limit: int, order: Sequence[str]) -> Response:
    """The first rows, and the place of the last of them where there are more."""
    items = forms.rows_of(table.slice(0, limit))
    after = [items[-1][name] for name in order] if table.num_rows > limit else None
    return forms.json_answer({"items": items, "next": after and forms.cursor_of(after)})


def _beyond(table: pa.Table, place: Sequence[Any]) -> pa.ChunkedArray:
    """Which rows come after a place, in the order of `_ORDER`."""
    beyond, level = pa.scalar(False), pa.scalar(True)
    for name, value in zip(_ORDER, place, strict=True):
        beyond = pc.or_(beyond, pc.and_(level, pc.greater(table[name], value)))
        level = pc.and_(level, pc.equal(table[name], value))
    return beyond


@router.get("/searches/{search_id}/best", summary="A search's best trial", responses={200: examples.BEST, **_PROBLEMS})
async def best(request: Request, who: MayRead, search_id: str = search_path()) -> Response:
    """The complete trial with the best finite value."""

    def answer(desk: Desk) -> dict[str, Any]:
        search = desk.search(search_id)
        state = desk.summaries.state(search.id, desk.job(search.id))
        return {**best_trial(search, desk.store), "state": state}

    desk = desk_of(request)
    return forms.json_answer(await desk.run(answer, desk))


_NUMBER = Path(ge=0, le=NUMBERS, description="The trial's number.", examples=[7])


@router.get("/searches/{search_id}/trials/{number}", summary="One trial", responses={200: examples.TRIAL, **_PROBLEMS})
async def one_trial(request: Request, who: MayRead, search_id: str = search_path(), number: int = _NUMBER) -> Response:
    """The trial's row, every attempt at it, and its reports."""
    desk = desk_of(request)
    return forms.json_answer(await desk.run(_trial, desk, search_id, number))


def _trial(desk: Desk, search_id: str, number: int) -> dict[str, Any]:
    search = desk.search(search_id)
    table = tables.trials([search])
    found = forms.rows_of(table.filter(pc.equal(table["number"], number)))
    if not found:
        raise NotFound(f"search {search.id}: no trial {number}; it has asked for {table.num_rows} so far.")
    (row,) = found
    for name in ("asked", "point", "rounded"):
        row[name] = json.loads(row[name]) if row[name] is not None else None
    return {**row, "attempts": _attempts(search, number), "reports": _reports(search, number)}


def _attempts(search: SearchStore, number: int) -> list[dict[str, Any]]:
    outcomes = search.outcomes_table(closed_only=False)
    mine = outcomes.filter(pc.equal(outcomes["number"], number)).sort_by(
        [("bundle_id", "ascending"), ("attempt", "ascending")]
    )
    shown = ("bundle_id", "attempt", "ending", "value", "step", "started", "ended", "worker", "error", "said")
    return forms.rows_of(mine.select([name for name in shown if name in mine.column_names]))


def _reports(search: SearchStore, number: int) -> list[dict[str, Any]]:
    table = rows.reports_of(search.report_rows())
    mine = table.filter(pc.equal(table["trial_id"], trial_id(search.id, number)))
    hidden = ("search_id", "trial_id")
    return [
        {name: value for name, value in row.items() if value is not None and name not in hidden}
        for row in forms.rows_of(mine.sort_by([("bundle_id", "ascending"), ("step", "ascending")]))
    ]


@router.get(
    "/searches/{search_id}/trials/{number}/log",
    summary="One trial as text",
    responses={200: examples.TRIAL_LOG, **_PROBLEMS},
    response_class=Response,
)
async def trial_log(request: Request, who: MayRead, search_id: str = search_path(), number: int = _NUMBER) -> Response:
    """The point asked, the attempts with what the user's code printed, the reports, and how it ended."""
    desk = desk_of(request)
    found = await desk.run(_trial, desk, search_id, number)
    return Response("".join(f"{line}\n" for line in _lines(found)), media_type="text/plain; charset=utf-8")


def _lines(trial: Mapping[str, Any]) -> list[str]:
    lines = [
        f"trial {trial['number']} of {trial['search_id']}: {trial['ending']}",
        f"asked   {as_json(trial['asked'])}",
    ]
    for attempt in trial["attempts"]:
        when = f"{moment(attempt['started'])} to {moment(attempt['ended'])} UTC"
        where = f" on {escaped(attempt['worker'])}" if attempt["worker"] else ""
        lines += [
            "",
            f"attempt {attempt['attempt']} in bundle {attempt['bundle_id']}: {attempt['ending']}, {when}{where}",
        ]
        for name in ("said", "error"):
            if text := attempt.get(name):
                lines += [f"{name}:", *(f"  {escaped(line)}" for line in text.splitlines())]
    if trial["reports"]:
        lines += ["", "reports:", *(f"  {as_json(report)}" for report in trial["reports"])]
    if trial["value"] is not None:
        lines += ["", f"value   {as_json(trial['value'])}", f"point   {as_json(trial['point'])}"]
    return lines
