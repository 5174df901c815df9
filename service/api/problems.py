"""What went wrong, as RFC 9457 problem+json: a stable `code` for programs, and sentences for people.

    {"type": "urn:continua:problem:invalid", "title": "The request breaks rules.", "status": 422, "code": "invalid",
     "detail": "budget: must hold at least one of ...", "hint": "Correct every fault and send it again.",
     "faults": ["budget: must hold at least one of ..."]}

Every answer of 400 or above has this form. `CODES` lists them all.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from search_spaces.faults import Invalid
from service.board.contract import Unreachable
from service.sandbox import Busy, TooMuch
from service.show import plain
from service.submission import KeyReused
from trials.store import Conflict, Damaged, NotFound

MEDIA = "application/problem+json"
log = logging.getLogger("continua.api")


class Code(NamedTuple):
    """One kind of problem."""

    status: int
    title: str
    hint: str = ""


CODES: dict[str, Code] = {
    "bad-request": Code(400, "The request cannot be read.", "Send what /openapi.json describes."),
    "unauthorized": Code(401, "A token is needed.", "Send `Authorization: Bearer TOKEN`."),
    "forbidden": Code(403, "The token may not do this.", "Use a token of a greater scope, or the owner's."),
    "cross-site": Code(403, "Pages of other sites may not ask.", "Ask from a program, or from a page of this server."),
    "not-found": Code(404, "There is no such thing.", "GET /v1/searches lists what there is."),
    "ambiguous-id": Code(404, "Several searches begin so.", "Write more of the id."),
    "method-not-allowed": Code(405, "That method is not known here.", "The header Allow names those that are."),
    "not-acceptable": Code(406, "It cannot be had in that form.", "Accept application/json."),
    "too-slow": Code(408, "The body did not come.", "Send it again."),
    "conflict": Code(409, "Somebody else was here first.", "Look again, then decide anew."),
    "goal-changed": Code(412, "The goal is not what the edit was made for.", "GET the goal, and send its ETag."),
    "too-large": Code(413, "The body is too large.", "Send less."),
    "unsupported-media": Code(415, "The body's type is not known here.", "Send what /openapi.json names."),
    "wrong-host": Code(421, "This server has another name.", "Use its own address, or let it know that name."),
    "invalid": Code(422, "The request breaks rules.", "Correct every fault and send it again."),
    "key-reused": Code(422, "The Idempotency-Key belongs to another request.", "Choose a new key for a new request."),
    "query-limit": Code(422, "The question takes too much.", "Ask for less, or of fewer rows."),
    "internal": Code(500, "The server failed.", "Its log says more; try again."),
    "damaged": Code(500, "A file of the store cannot be trusted.", "Run `continua doctor`."),
    "busy": Code(503, "The server is busy.", "Try again in a few seconds."),
    "board-unreachable": Code(503, "The board does not answer.", "Try again later; what is stored is safe."),
    "access-unreadable": Code(503, "The server cannot read its tokens.", "Its log says why."),
    "store-failed": Code(503, "The store cannot be read or written.", "Nothing was acknowledged; try again later."),
    "disk-full": Code(507, "The disk is full.", "Nothing was acknowledged; free some space and send it again."),
}
_BY_STATUS = {
    404: "not-found",
    405: "method-not-allowed",
    400: "bad-request",
    413: "too-large",
    415: "unsupported-media",
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Problem(Exception):
    """An answer that says what is wrong."""

    def __init__(
        self, code: str, detail: str = "", *, faults: Sequence[str] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        assert code in CODES, code
        super().__init__(detail or "\n".join(faults) or code)
        self.code, self.faults, self.headers = code, list(faults), dict(headers or {})

    @property
    def status(self) -> int:
        return CODES[self.code].status

    def to_dict(self) -> dict[str, Any]:
        known = CODES[self.code]
        return {
            "type": f"urn:continua:problem:{self.code}",
            "title": known.title,
            "status": known.status,
            "code": self.code,
            "detail": str(self),
            "hint": known.hint,
            "faults": self.faults,
        }

    def response(self) -> Response:
        text = json.dumps(plain(self.to_dict()), ensure_ascii=True)
        return Response(text, status_code=self.status, media_type=MEDIA, headers=self.headers)


def problem_of(error: Exception) -> Problem:
    """The problem that an error of the layers below is."""
    match error:
        case Problem():
            return error
        case KeyReused():
            return Problem("key-reused", str(error), faults=[str(error)])
        case Invalid():
            return Problem("invalid", faults=error.faults)
        case NotFound():
            return Problem("not-found", str(error.args[0]))
        case Conflict():
            return Problem("conflict", str(error))
        case Damaged():
            return Problem("damaged", f"{error.path.name}: {error.reason}")
        case Unreachable():
            return Problem("board-unreachable", str(error), headers={"Retry-After": "5"})
        case TooMuch():
            return Problem("query-limit", str(error), faults=[str(error)])
        case Busy():
            return Problem("busy", str(error), headers={"Retry-After": "5"})
        case RequestValidationError():
            return Problem("invalid", faults=[_sentence(fault) for fault in error.errors()])
        case HTTPException():
            code = _BY_STATUS.get(error.status_code, "bad-request")
            return Problem(code, str(error.detail), headers=error.headers)
        case OSError():
            return Problem("disk-full" if error.errno in _FULL else "store-failed", error.strerror or "")
    return Problem("internal")


def _sentence(fault: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in fault["loc"][1:]) or "request"
    return f"{where}: {fault['msg']}, but got {fault.get('input')!r}."


def install(app: FastAPI) -> None:
    """Let an app answer every error so."""

    async def answer(request: Request, error: Exception) -> Response:
        found = problem_of(error)
        if found.status >= 500:
            log.error("%s %s: %s: %s", request.method, ascii(request.url.path), type(error).__name__, error)
        return found.response()

    known = (Problem, Invalid, NotFound, Conflict, Damaged, Unreachable, TooMuch, Busy, OSError)
    for kind in (*known, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(Exception, answer)


SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail", "hint", "faults"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "enum": sorted(CODES)},
        "detail": {"type": "string"},
        "hint": {"type": "string"},
        "faults": {"type": "array", "items": {"type": "string"}},
    },
}
_ANYWHERE = (
    "bad-request",
    "unauthorized",
    "forbidden",
    "cross-site",
    "wrong-host",
    "too-slow",
    "access-unreadable",
    "internal",
)


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The problems that a route may answer with, and those that any may, as OpenAPI has them."""
    by_status: dict[int, list[str]] = {}
    for code in (*_ANYWHERE, *codes):
        by_status.setdefault(CODES[code].status, []).append(code)
    return {
        status: {
            "description": " ".join(CODES[code].title for code in names),
            "content": {
                MEDIA: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "examples": {code: {"value": Problem(code).to_dict()} for code in names},
                }
            },
        }
        for status, names in sorted(by_status.items())
    }
