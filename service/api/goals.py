"""Goals over HTTP: reading what is wanted of a search, and changing it.

A change is durable in the store before it is answered; the board is told after. Where the board does not answer, the
change holds all the same: the driver at work reads the store, and the board is told when it is back.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

from fastapi import APIRouter, Header, Request, Response

from service.access import Token
from service.api import examples, forms
from service.api.desk import AWAY, Desk, desk_of
from service.api.guard import MayRead, MaySubmit
from service.api.problems import Problem, documented
from service.api.searches import etag, search_path
from service.board.rebuild import for_runners, mirrored, posted
from service.goal import Edit, change, wanted
from trials.store import Conflict, Goal, NotFound, SearchStore

router = APIRouter(tags=["searches"])
NOTE = "The board does not answer; the change is safe in the store, and the board is told when it is back."
_ETAG = re.compile(r'"(\d{1,18})"', re.ASCII)


@router.get(
    "/searches/{search_id}/goal",
    summary="What is wanted of a search",
    responses={
        200: examples.GOAL_ANSWER,
        **documented("not-found", "ambiguous-id", "invalid", "store-failed", "damaged"),
    },
)
async def get_goal(request: Request, who: MayRead, search_id: str = search_path()) -> Response:
    """The goal; its ETag is its version, for `If-Match`."""
    desk = desk_of(request)
    search = await desk.run(desk.search, search_id)
    goal = await desk.run(wanted, search)
    return forms.json_answer({"search_id": search.id, **goal.to_dict()}, headers={"ETag": etag(goal.version)})


@router.patch(
    "/searches/{search_id}/goal",
    status_code=202,
    summary="Pause, resume, stop, cancel, scale, extend, narrow or prioritise a search",
    openapi_extra=examples.EDIT,
    responses={
        202: examples.EDITED,
        **documented(
            *("not-found", "ambiguous-id", "conflict", "goal-changed", "invalid", "too-large", "unsupported-media"),
            *("store-failed", "disk-full", "damaged"),
        ),
    },
)
async def edit_goal(
    request: Request,
    who: MaySubmit,
    search_id: str = search_path(),
    if_match: str | None = Header(None, description="The ETag of the goal that the edit is for.", examples=['"0"']),
) -> Response:
    """The next version of the goal, of a search of one's own (an admin's token changes any)."""
    desk, data = desk_of(request), await forms.body_of(request)
    version = _version(if_match)
    search_id, goal, told = await desk.run(_edited, desk, search_id, data, who, version)
    answer = {"search_id": search_id, **goal.to_dict(), **({} if told else {"note": NOTE})}
    return forms.json_answer(answer, 202, {"ETag": etag(goal.version)})


def _version(if_match: str | None) -> int | None:
    """The version that an edit is for; None where it is for any."""
    if if_match is None or if_match.strip() == "*":
        return None
    match = _ETAG.fullmatch(if_match.strip())
    if match is None:
        raise Problem("goal-changed", f'If-Match must be the ETag of a goal, such as "3", but got {if_match!r}.')
    return int(match[1])


def _edited(desk: Desk, search_id: str, data: Any, who: Token, version: int | None) -> tuple[str, Goal, bool]:
    """The search, its new goal, and whether the board was told."""
    search = desk.search(search_id)
    owner = desk.summaries.facts(search.id).get("owner", "")
    if owner != who.owner and not who.allows("admin"):
        raise Problem("forbidden", f"The search {search.id} is {owner or 'nobody'}'s, but the token is {who.owner}'s.")
    edit = Edit.from_dict(data)
    try:
        goal = change(search, edit, by=who.owner, if_version=version)
    except Conflict as error:
        raise Problem("goal-changed" if version is not None else "conflict", str(error)) from None
    told = not for_runners(search) or _told(desk, search, goal)  # whoever runs one by hand looks at the store
    desk.owing = desk.owing or not told
    desk.changed()
    return search.id, goal, told


def _told(desk: Desk, search: SearchStore, goal: Goal) -> bool:
    """Tell the board of a goal that is durable; whether it knows."""
    with contextlib.suppress(*AWAY):
        try:
            desk.board.control(search.id, **mirrored(goal))
        except NotFound:
            desk.board.post(posted(search))
        return True
    return False
