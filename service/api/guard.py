"""What every request passes before it reaches a route, in the ASGI layer: nothing inside can forget it.

In this order: the Host must be ours (against DNS rebinding), a browser must not come from another site, the body must
not be larger than it may (counted in bytes as they come, whatever Content-Length says), and a token must be known,
save for the few paths in `OPEN`. What a token may do, each route says itself (`needs`). Every answer carries the
headers that keep a browser from guessing, framing or keeping it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Collection
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from search_spaces.faults import Invalid
from service.access import SCOPES, Access, Token
from service.api.problems import Problem
from service.zip_rules import MOST_PACKED

OPEN = frozenset({"/healthz", "/readyz"})
MOST_BODY = 1024 * 1024
PATIENCE = 60.0  # seconds that a client may take to send the next part of a body
LARGER = {"/v1/code/": MOST_PACKED}  # paths whose bodies may be larger
LOCAL = ("localhost", "127.0.0.1", "[::1]")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
log = logging.getLogger("continua.api")


class Guard:
    """Lets only those requests through that may be answered. `hosts` are the names we go by, without a port."""

    def __init__(self, app: ASGIApp, access: Access, hosts: Collection[str] = ()) -> None:
        self._app = app
        self._access = access
        self._hosts = frozenset(
            _name(f"[{name}]" if name.count(":") > 1 else name.lower()) for name in (*LOCAL, *hosts)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        assert scope["type"] == "http", scope["type"]

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._check_site(headers)
            most = next((most for path, most in LARGER.items() if scope["path"].startswith(path)), MOST_BODY)
            if scope["path"] not in OPEN:
                scope.setdefault("state", {})["who"] = self._who(headers)
            counted = _counted(receive, headers, most)
        except Problem as problem:
            await problem.response()(scope, receive, sealed)
            return
        await self._app(scope, counted, sealed)

    def _check_site(self, headers: Headers) -> None:
        host = headers.get("host", "").lower()
        if _name(host) not in self._hosts:
            raise Problem("wrong-host", f"The header Host must name this server, but got {host!r}.")
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        own = origin is None or origin.lower() in (f"http://{host}", f"https://{host}")
        if site not in ("none", "same-origin") or not own:
            raise Problem("cross-site", f"The request came from {origin or site!r}.")

    def _who(self, headers: Headers) -> Token:
        kind, _, plain = headers.get("authorization", "").partition(" ")
        challenge = {"WWW-Authenticate": 'Bearer realm="continua"'}
        if kind.lower() != "bearer" or not plain.strip():
            raise Problem("unauthorized", "The header Authorization must be `Bearer TOKEN`.", headers=challenge)
        try:
            token = self._access.who(plain.strip())
        except (Invalid, OSError) as error:
            log.error("tokens: %s", error)
            raise Problem("access-unreadable") from None
        if token is None:
            raise Problem("unauthorized", "The token is not known; it may have been revoked.", headers=challenge)
        return token


def _name(host: str) -> str:
    """The name in a Host header, without its port; an IPv6 address in brackets, in one spelling."""
    name, _, _ = host.partition("]") if host.startswith("[") else host.partition(":")
    try:
        return f"[{ipaddress.IPv6Address(name.strip('['))}]"
    except ValueError:
        return name.rstrip(".")


def _counted(receive: Receive, headers: Headers, most: int) -> Receive:
    """`receive` that raises once more than `most` bytes have come, or the next part of a body is too long in coming; a
    greater Content-Length raises at once."""
    length = headers.get("content-length", "")
    if length and not (length.isdecimal() and length.isascii()):
        raise Problem("bad-request", f"Content-Length must be a whole number, but got {length!r}.")
    if length and int(length[:20]) > most:
        raise _too_large(most)
    seen, whole = 0, False

    async def counted() -> Message:
        nonlocal seen, whole
        if whole:  # what is waited for now is that the client goes away
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), PATIENCE)
        except TimeoutError:
            raise Problem("too-slow", headers={"Connection": "close"}) from None
        whole = not message.get("more_body", False)
        seen += len(message.get("body", b""))
        if seen > most:
            raise _too_large(most)
        return message

    return counted


def _too_large(most: int) -> Problem:
    detail = f"The body must be at most {most} bytes."
    return Problem("too-large", detail, faults=[detail], headers={"Connection": "close"})


def needs(scope: str) -> Callable[[Request], Token]:
    """A dependency that lets only tokens of that scope through, and gives the token."""
    assert scope in SCOPES

    def token(request: Request) -> Token:
        who: Any = request.state.who
        assert isinstance(who, Token)
        if not who.allows(scope):
            raise Problem("forbidden", f"This needs the scope {scope}, but the token {who.name!r} has {who.scope}.")
        return who

    token.scope = scope  # type: ignore[attr-defined]  # a test reads what each route needs
    return token


MayRead = Annotated[Token, Depends(needs("read"))]
MaySubmit = Annotated[Token, Depends(needs("submit"))]
