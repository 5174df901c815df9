"""What all routes share: the store, the board, the tokens, the sandbox, and what is kept of them.

    >>> desk = desk_of(request)
    >>> job = await desk.run(desk.job, "digits-3fa2b1")

Everything that touches a disk or a server is blocking, and runs in a thread by `run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from fastapi import Request

from search_spaces.faults import Invalid
from service.access import Access
from service.api.live import Live
from service.api.measures import Measures
from service.api.problems import Problem
from service.api.summaries import Summaries
from service.board.contract import Board, Job, Unreachable
from service.board.rebuild import rebuild
from service.sandbox import Busy, Limits, Sandbox
from trials.store import NotFound, SearchStore, Store

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 16
FRESH = 1.0  # seconds that a look at all jobs serves for
LOOK = 5.0  # seconds between tries to tell a board what it missed
RESTORE = 30.0  # seconds after which a board is compared with the store whatever it said: it may have been wiped
#: a board's own troubles: it is away, its disk is full, its file is not a board's
AWAY = (Unreachable, OSError, Invalid)
PAGE = 1000
log = logging.getLogger("continua.api")


class Desk:
    """One per app. `start` and `close` belong to the app's own lifespan."""

    def __init__(self, store: Store, board: Board, access: Access, limits: Limits | None = None) -> None:
        self.store, self.board, self.access = store, board, access
        self.sandbox = Sandbox(store.root, limits)
        self.summaries = Summaries(store)
        self.live = Live(self)
        self.measures = Measures()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="api")
        self._askers = ThreadPoolExecutor(self.sandbox.limits.at_once, thread_name_prefix="sql")
        self._asked = 0
        self._lock = threading.Lock()
        self._jobs: tuple[float, dict[str, Job]] = (-math.inf, {})
        self._changes = 0
        self.owing = True  # whether the board may lack what the store has
        self.probing, self.written = threading.Lock(), -math.inf  # when the store was last seen to be writable
        self._restored = -math.inf
        self._unpostable: frozenset[str] = frozenset()  # those that the last restoring could not put on the board

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A blocking call, in a thread."""
        bound = functools.partial(call, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, bound)

    async def ask(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A question to the sandbox, in a thread of its own. Raises `Busy` when many are waiting already."""
        if self._asked >= 8 * self.sandbox.limits.at_once:
            raise Busy(f"sql: {self._asked} questions are waiting already; try again later.")
        self._asked += 1
        try:
            bound = functools.partial(call, *args, **kwargs)
            return await asyncio.get_running_loop().run_in_executor(self._askers, bound)
        finally:
            self._asked -= 1

    def search(self, text: str) -> SearchStore:
        """The search with that id, or the one whose id alone begins so. Raises `NotFound` and `Problem`."""
        try:
            return self.summaries.search(text)
        except Invalid as error:
            raise Problem("ambiguous-id", faults=error.faults) from None
        except NotFound as error:  # where the store lies is nobody's business
            raise NotFound(str(error.args[0]).replace(f" in {self.store.root}", "", 1)) from None

    # -- the board -------------------------------------------------------------------------------------------------

    def job(self, search_id: str) -> Job | None:
        """A search's job; None where the board has none or does not answer."""
        try:
            return self.board.get(search_id)
        except NotFound:
            self.owing = self.owing or search_id not in self._unpostable
        except AWAY:
            self.owing = True
        return None

    def jobs(self, fresh: float = FRESH) -> dict[str, Job]:
        """Every job by its id, at most `fresh` seconds old; none where the board does not answer."""
        with self._lock:
            (looked, found), changes = self._jobs, self._changes
            if time.monotonic() - looked < fresh:
                return found
            with contextlib.suppress(*AWAY):
                found = {job.id: job for job in self._all()}
                if changes == self._changes:
                    self._jobs = (time.monotonic(), found)
                return found
            self.owing = True
            return {}

    def _all(self) -> list[Job]:
        found: list[Job] = []
        while True:
            part = self.board.list(before=found[-1].seq if found else None, limit=PAGE)
            found += part
            if len(part) < PAGE:
                return found

    def changed(self) -> None:
        """Something was changed on the board: the next look is a new one. Waits for nothing, for the loop calls it."""
        self._changes += 1
        self._jobs = (-math.inf, {})

    def restore(self) -> int:
        """Tells the board what it lacks of the store. Raises what of `AWAY` the board does."""
        skipped: dict[str, Exception] = {}
        self.owing = False  # what is missed from now on is another matter
        try:
            told = rebuild(self.store, self.board, skipped=skipped.__setitem__)
        except BaseException:
            self.owing = True
            raise
        for search_id in skipped.keys() - self._unpostable:
            log.warning("search %s is not on the board: %s; see `continua doctor`.", search_id, skipped[search_id])
        self._unpostable = frozenset(skipped)
        self._restored = time.monotonic()
        if told:
            self.changed()
        return told

    # -- its life --------------------------------------------------------------------------------------------------

    async def attend(self) -> None:
        """Until it is cancelled: compares the board with the store, at once when it is known to have missed something,
        and otherwise now and then."""
        while True:
            if self.owing or time.monotonic() - self._restored > RESTORE:
                try:
                    if told := await self.run(self.restore):
                        log.warning("the board lacked %d searches or goals of the store", told)
                except Unreachable:
                    pass
                except Exception:
                    log.exception("the board could not be restored from the store")
            await asyncio.sleep(LOOK)

    def close(self) -> None:
        """Lets go of everything but the board, which is its opener's."""
        self.sandbox.close()
        self._askers.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown(wait=False, cancel_futures=True)


def desk_of(request: Request) -> Desk:
    """The desk of the app that a request came to."""
    found = request.app.state.desk
    assert isinstance(found, Desk)
    return found
