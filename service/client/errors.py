"""What a service may answer instead of what was asked, as exceptions: one sentence for people, parts for programs.

>>> try:
...     client.search("digits-3fa2b1")
... except NotFound as error:
...     error.status, error.code
(404, 'not-found')
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


class ServiceError(RuntimeError):
    """The service refused, or could not.

    `status` is HTTP's (0: there was no answer), `code` the service's own stable word, `hint` the way out, `faults` one
    sentence a broken rule.
    """

    def __init__(
        self, message: str, *, status: int = 0, code: str = "", hint: str = "", faults: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.hint, self.faults = status, code, hint, tuple(faults)

    def sentences(self) -> list[str]:
        """What to tell a person: every fault, or else the message and the way out."""
        return list(self.faults) or [" ".join(filter(None, (str(self), self.hint)))]


class Unreachable(ServiceError):
    """Nobody answers at the service's URL, also after several tries."""


class Unauthorised(ServiceError):
    """There is no token, it is not known, or it may not do that (401, 403)."""


class NotFound(ServiceError):
    """There is no such search, trial or page (404)."""


class Conflict(ServiceError):
    """Somebody else was first, or it cannot be so now (409, 412)."""


class Invalid(ServiceError):
    """What was sent breaks rules: all of them are in `faults` (400, 413, 422)."""


KINDS: dict[int, type[ServiceError]] = {
    400: Invalid,
    401: Unauthorised,
    403: Unauthorised,
    404: NotFound,
    409: Conflict,
    412: Conflict,
    413: Invalid,
    422: Invalid,
}


def error_of(status: int, reason: str, body: bytes, url: str) -> ServiceError:
    """The exception for an answer: problem+json as our service gives it, or whatever a proxy says instead."""
    told = _problem(body)
    title, detail = (str(told.get(key) or "") for key in ("title", "detail"))
    message = detail or title or f"{url} answered {status} {reason}".strip() + "; is that a continua service?"
    faults = told.get("faults")
    listed = [str(fault) for fault in faults] if isinstance(faults, list) else []
    parts: dict[str, Any] = {"code": str(told.get("code") or ""), "hint": str(told.get("hint") or "")}
    return KINDS.get(status, ServiceError)(message, status=status, faults=listed, **parts)


def _problem(body: bytes) -> dict[str, Any]:
    try:
        told = json.loads(body)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
