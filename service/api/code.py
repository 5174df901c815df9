"""Users' code over HTTP: kept by the sha256 of its bytes, never opened here beyond its table of contents.

It is not given out: a `read` token never reaches code, and a `submit` token learns only whether a zip is there.
"""

from __future__ import annotations

import hashlib

from fastapi import APIRouter, Path, Request, Response

from search_spaces.faults import Invalid
from service.api import examples, forms
from service.api.desk import Desk, desk_of
from service.api.guard import MaySubmit
from service.api.problems import documented
from service.zip_rules import zip_faults
from trials import layout, segments
from trials.store import NotFound

router = APIRouter(tags=["code"])
ZIP = "application/zip"
_SHA = Path(pattern="^[0-9a-f]{64}$", description="The sha256 of the zip's bytes, in hex.", examples=["0" * 64])
_ZIP_BODY = {
    "requestBody": {"required": True, "content": {ZIP: {"schema": {"type": "string", "format": "binary"}}}},
}
_THERE = {"description": "It is there."}


@router.put(
    "/code/{sha256}",
    status_code=201,
    summary="Keep a zip of code",
    openapi_extra=_ZIP_BODY,
    responses={201: examples.CODE, **documented("invalid", "too-large", "store-failed", "disk-full")},
)
async def put_code(request: Request, who: MaySubmit, sha256: str = _SHA) -> Response:
    """The same bytes may be put any number of times."""
    payload = await request.body()
    desk = desk_of(request)
    new = await desk.run(_kept, desk, sha256, payload)
    return forms.json_answer({"sha256": sha256, "new": new}, 201)


def _kept(desk: Desk, sha256: str, payload: bytes) -> bool:
    """Whether this made it. Raises `Invalid` and OSError."""
    found = hashlib.sha256(payload).hexdigest()
    if found != sha256:
        raise Invalid(
            [f"code: must be the bytes that {sha256} is the sha256 of, but theirs is {found}; send it again."]
        )
    path = layout.code(desk.store.root, sha256)
    if path.is_file():
        return False
    if faults := zip_faults(payload):
        raise Invalid(faults)
    if not path.parent.is_dir():
        path.parent.mkdir(exist_ok=True)
        segments.sync_directory(path.parent.parent)
    try:
        segments.write_once(path, payload)
        return True
    except FileExistsError:
        return False


@router.head(
    "/code/{sha256}",
    summary="Whether a zip is there",
    response_class=Response,
    responses={200: _THERE, **documented("not-found", "invalid")},
)
async def has_code(request: Request, who: MaySubmit, sha256: str = _SHA) -> Response:
    """200 where it is there, 404 where it is not."""
    desk = desk_of(request)
    path = layout.code(desk.store.root, sha256)
    if not await desk.run(path.is_file):
        raise NotFound(f"code: no zip {sha256}; put it.")
    return Response(media_type=ZIP)


@router.get(
    "/code/{sha256}",
    summary="What is known of a zip",
    responses={200: examples.CODE, **documented("not-found", "invalid")},
)
async def about_code(request: Request, who: MaySubmit, sha256: str = _SHA) -> Response:
    """Whether it is there; its bytes are not given out."""
    await has_code(request, who, sha256)
    return forms.json_answer({"sha256": sha256, "new": False})
