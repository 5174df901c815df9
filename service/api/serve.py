"""Running the service: one process, HTTP/1.1, until SIGTERM or Ctrl-C.

    >>> serve("runs", "sqlite:////var/continua/board.sqlite", host="127.0.0.1", port=8642, ready=print)
    http://127.0.0.1:8642

On a signal, event streams are closed first (their watchers come back with `Last-Event-ID`), then requests that are
being answered get `GRACE` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from search_spaces.faults import Invalid
from service.access import Access, check_binding, first_token, is_loopback
from service.api.app import create_app
from service.api.desk import Desk
from service.board import open_board
from service.board.contract import Board
from service.sandbox import Limits
from trials.store import Store

HOST, PORT = "127.0.0.1", 8642
GRACE = 10  # seconds
HEAD = 20.0  # seconds that a client may take to send a request's head


def serve(
    store: Store | Path | str,
    board: Board | str,
    *,
    host: str = HOST,
    port: int = PORT,
    hosts: Collection[str] = (),
    access: Access | None = None,
    limits: Limits | None = None,
    ready: Callable[[str], None] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT comes (call it from the main thread for that), and return which.

    Args:
        board: a URL, or a board that stays its opener's.
        hosts: names that clients may call this server by, beside its addresses and the machine's name.
        access: the tokens; by default the user's own, of which a first one is made on a loopback address.
        ready: is told the URL once requests are answered.

    Raises:
        Invalid: when the address cannot be bound, or may not be without tokens; when the tokens are open to others.
        Unreachable: when the board at a URL does not answer.
    """
    server = make_server(store, board, host=host, port=port, hosts=hosts, access=access, limits=limits, ready=ready)
    server.run()
    return server.ended_by


def make_server(
    store: Store | Path | str,
    board: Board | str,
    *,
    host: str = HOST,
    port: int = PORT,
    hosts: Collection[str] = (),
    access: Access | None = None,
    limits: Limits | None = None,
    ready: Callable[[str], None] | None = None,
) -> Server:
    """The same, not running yet, and bound: for whoever runs it in a thread (`run`, and `stop` from any thread)."""
    if access is None:
        access = Access()
        if is_loopback(host):
            first_token(server=access.path)
    check_binding(host, access.known())
    bound = _bound(host, port)
    with contextlib.ExitStack() as stack:
        stack.callback(bound.close)
        opened = stack.enter_context(contextlib.closing(open_board(board))) if isinstance(board, str) else board
        names = {*hosts, host, socket.gethostname(), socket.getfqdn()} - {"", "0.0.0.0", "::"}
        app = create_app(store, opened, access, hosts=names, limits=limits)
        return Server(app, bound, stack.pop_all(), ready)


class Server(uvicorn.Server):
    """A bound server."""

    def __init__(
        self,
        app: FastAPI,
        bound: socket.socket,
        held: contextlib.ExitStack,
        ready: Callable[[str], None] | None = None,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE,
        )
        super().__init__(config)
        self._app, self._bound, self._held, self._ready = app, bound, held, ready
        self.ended_by = 0

    @property
    def url(self) -> str:
        """Where it answers."""
        host, port = self._bound.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        with self._held:
            super().run(sockets=sockets or [self._bound])

    def stop(self) -> None:
        """Ends `run`, from any thread."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals end `run`, not the process: whoever called it may have more to close."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.ended_by = self.ended_by or sig
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._ready is not None:
            self._ready(self.url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        desk: Desk = self._app.state.desk
        desk.live.close()  # or the streams would take all of the grace
        await super().shutdown(sockets)


class _Protocol(H11Protocol):
    """HTTP that does not wait for ever for a request that never begins, or never gets beyond its headers."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head = self.loop.call_later(HEAD, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._come()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._come()
        elif self._head is None:
            self._head = self.loop.call_later(HEAD, self.transport.close)

    def _come(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, OverflowError) as error:
        raise Invalid([f"host: must be an address of this machine, but got {host!r}: {error}."]) from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(512)
        return bound
    except OSError as error:
        bound.close()
        way = "choose another port" if port else "choose another address"
        raise Invalid([f"port: {host}:{port} cannot be bound: {error.strerror}; {way}."]) from None
