"""Searches over HTTP: submitting one, listing them, and all that is known of one."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Header, Path, Query, Request, Response

from search_spaces.faults import Invalid, unknown
from service.api import examples, forms
from service.api.desk import Desk, desk_of
from service.api.guard import MayRead, MaySubmit
from service.api.problems import documented
from service.api.summaries import job_facts
from service.board.contract import STATUSES, Job
from service.submission import Request as Submitted
from service.submission import submit
from service.summary import described
from trials.store import SearchStore

router = APIRouter(tags=["searches"])
MOST = 1000
STATES = (*STATUSES, "interrupted")  # the last: run by hand, and cut off
NOTE = "The board does not answer; the search is safe in the store, and is queued when the board is back."


def search_path() -> Any:
    """The id in a path; a beginning that only one id has will do."""
    return Path(description="An id, or its beginning where only one begins so.", examples=[examples.ID], max_length=128)


def etag(version: int) -> str:
    """The ETag of a goal's version."""
    return f'"{version}"'


@router.post(
    "/searches",
    status_code=201,
    summary="Submit a search",
    openapi_extra=examples.SUBMIT,
    responses={
        201: examples.SUBMITTED,
        **documented("invalid", "key-reused", "too-large", "unsupported-media", "store-failed", "disk-full"),
    },
)
async def submit_search(
    request: Request,
    who: MaySubmit,
    idempotency_key: str | None = Header(
        None, description="A request sent again with its key makes no second search.", examples=["5f1c0e"]
    ),
) -> Response:
    """The declaration alone is judged, and every fault told at once; the task is loaded by a worker, later."""
    desk, data = desk_of(request), await forms.body_of(request)
    job, new = await desk.run(_submitted, desk, data, who.owner, idempotency_key)
    desk.changed()
    if not job.seq:
        desk.owing = True
    answer = {"search_id": job.id, "name": job.name, "state": job.status, "owner": job.owner, "new": new}
    note = {} if job.seq else {"note": NOTE}
    return forms.json_answer({**answer, **note}, 201, {"Location": f"/v1/searches/{job.id}", "ETag": etag(job.goal)})


def _submitted(desk: Desk, data: Any, owner: str, key: str | None) -> tuple[Job, bool]:
    asked = Submitted.from_dict(data)
    return submit(
        desk.store,
        desk.board,
        asked.spec,
        owner=owner,
        priority=asked.priority,
        code=asked.code,
        requirements=asked.requirements,
        name=asked.name,
        key=key,
    )


@router.get(
    "/searches",
    summary="List searches",
    responses={200: examples.SEARCHES, **documented("invalid", "store-failed")},
)
async def list_searches(
    request: Request,
    who: MayRead,
    limit: int = Query(50, ge=1, le=MOST),
    cursor: str | None = Query(None, max_length=400, description="The `next` of the page before."),
    state: str | None = Query(None, max_length=200, description="One state, or several with commas between."),
    name: str | None = Query(None, max_length=200, description="A part of the name, in any case."),
    owner: str | None = Query(None, max_length=64),
) -> Response:
    """Every search of the store, on the board or not, the newest first."""
    place = forms.place_of(cursor, (int, str))
    states = {text.strip() for text in state.split(",") if text.strip()} if state else None
    if faults := [unknown("state", text, STATES, "state") for text in sorted(states or ()) if text not in STATES]:
        raise Invalid(faults)
    desk = desk_of(request)
    rows, after = await desk.run(_page, desk, limit, place, states, name, owner)
    return forms.json_answer({"items": rows, "next": after and forms.cursor_of(after)})


def _page(
    desk: Desk, limit: int, place: list[Any] | None, states: set[str] | None, name: str | None, owner: str | None
) -> tuple[list[dict[str, Any]], tuple[int, str] | None]:
    """A page's rows, and where the next begins: after the last row of this."""
    jobs, known = desk.jobs(), desk.summaries
    found: list[tuple[int, str]] = []
    for at in known.ids():
        if place is not None and at >= tuple(place):
            continue
        facts = known.facts(at[1])
        if name is not None and name.casefold() not in facts["name"].casefold():
            continue
        if owner is not None and facts["owner"] != owner:
            continue
        if states is not None and known.state(at[1], jobs.get(at[1])) not in states:
            continue
        if len(found) == limit:
            return [known.row(search_id, jobs.get(search_id)) for _, search_id in found], found[-1]
        found.append(at)
    return [known.row(search_id, jobs.get(search_id)) for _, search_id in found], None


@router.get(
    "/searches/{search_id}",
    summary="All of a search",
    responses={200: examples.SEARCH, **documented("not-found", "ambiguous-id", "invalid", "store-failed", "damaged")},
)
async def get_search(request: Request, who: MayRead, search_id: str = search_path()) -> Response:
    """Its state, counts, best trial, costs and spec; `wanted` is its goal, `job` how the board has it."""
    desk = desk_of(request)
    found = await desk.run(_whole, desk, search_id)
    return forms.json_answer(found, headers={"ETag": etag(found["goal_version"])})


def _whole(desk: Desk, search_id: str) -> dict[str, Any]:
    search: SearchStore = desk.search(search_id)
    job, whole = desk.job(search.id), described(search, desk.store)
    root = str(desk.store.root)
    return {
        **whole,
        "state": desk.summaries.state(search.id, job),
        "why": (job.why if job else "") or whole["why"],
        "priority": job.priority if job else whole["priority"],
        "job": job_facts(job),
        "damaged": [{**lost, "path": lost["path"].removeprefix(root).lstrip("/")} for lost in whole["damaged"]],
    }
