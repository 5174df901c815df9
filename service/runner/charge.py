"""A search in a runner's charge: the board's lease of it, its driver, and what was told of it.

Two threads use one: the heart renews, the runner settles. Each does so under the charge's lock, and nothing is renewed
after it was settled.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from service.board.contract import Board, Job, LeaseLost
from service.board.rebuild import mirrored
from service.goal import wanted
from service.runner.drivers import Driver
from trials.store import Damaged, NotFound, SearchStore

MAX_FAILURES = 5  # in a row, without a trial between them
HELD = 5.0  # seconds until a search that another process has is tried again
NEWS = 0.4  # seconds between renewals with news
FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0  # seconds after a failure; each in a row waits twice as long


@dataclass
class Charge:
    """`adrift`: the board has no lease of it, nor anybody else, so that its driver works on until it is claimed again;
    `lost`: somebody else has it; `stopping`: its driver was told to hand it back; `slots`: what its driver was
    told; `finished`: trials that had ended when it was claimed, None while that is not known."""

    job: Job
    search: SearchStore
    driver: Driver
    slots: int | None = None
    adrift: bool = False
    lost: bool = False
    stopping: bool = False
    settled: bool = False
    finished: int | None = None
    _shown: Mapping[str, Any] = field(default_factory=dict)
    _renewed: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def renew(self, board: Board, ttl: float) -> None:
        """Keep the lease, where it is time to: each fifth of `ttl`, or soon after news. Where the search has become
        somebody else's, its driver ends. Raises `Unreachable`."""
        with self._lock:
            progress, since = self.driver.progress, time.monotonic() - self._renewed
            if self.settled or self.lost or not (since >= ttl / 5 or (progress is not self._shown and since >= NEWS)):
                return
            if self.finished is None and progress:
                self.finished = int(progress["finished"])
            try:
                self.job = board.renew(self.job.id, self.job.epoch, ttl, progress or None)
                self._shown, self._renewed, self.adrift = progress, time.monotonic(), False
            except (LeaseLost, NotFound):
                self.lost = self._is_elsewhere(board)
                self.adrift, self._renewed = not self.lost, time.monotonic()
        if self.lost:
            self.driver.kill()

    def _is_elsewhere(self, board: Board) -> bool:
        """Whether somebody else has it. Else the lease ran out while the board did not answer, or the board forgot
        everything: the driver may work on, for the store's own lease is its."""
        try:
            job = board.get(self.job.id)
        except NotFound:
            return False
        return job.leased and job.runner != self.job.runner

    def again(self, job: Job) -> None:
        """Take it up with a new lease, claimed while it was adrift; its driver has noticed nothing."""
        with self._lock:
            self.job, self.adrift, self._renewed, self._shown = job, False, time.monotonic(), {}

    def mirror(self, board: Board) -> None:
        """Tell the board of a goal that the store knows and it does not: whoever changed it may not have come so far.
        Raises `Unreachable`."""
        if self.search.goal_version() <= self.job.goal:
            return
        with contextlib.suppress(NotFound, Damaged):
            goal = wanted(self.search)  # the names may count a version that cannot be read
            if goal.version > self.job.goal:
                new = {name: value for name, value in mirrored(goal).items() if value is not None}
                board.control(self.job.id, **new)
                self.job = replace(self.job, **new, failures=0)

    def settle(self, board: Board, ttl: float) -> str:
        """Tell the board how the driver ended, and let go. Returns it in words. Raises `Unreachable`: try again."""
        with self._lock:
            if self.lost:
                self.settled = True
                return "lost: its lease ran out or another runner has it"
            try:
                self.mirror(board)
                if self.driver.progress is not self._shown:
                    self.job = board.renew(self.job.id, self.job.epoch, ttl, self.driver.progress or None)
                words = self._settle(board, dict(self.driver.ended or {"ended": "crashed", "why": self.driver.how()}))
            except (LeaseLost, NotFound):
                words = "lost: its lease ran out or another runner has it"
            self.settled = True
            return words

    def _settle(self, board: Board, end: dict[str, Any]) -> str:
        name, epoch, state, why = self.job.id, self.job.epoch, end["ended"], end.get("why", "")
        if state in ("complete", "failed"):
            board.finish(name, epoch, over=state, why=why, goal=self._answered(end["goal"]))
        elif state in ("paused", "stopped", "cancelled"):
            if self.job.wanted == "run" and (last := self._answered(end["goal"])) > end["goal"]:
                why = f"version {last} of its goal cannot be read, so it stays {state}; change it anew"
                board.fail(name, epoch, why=why, delay=LONGEST_DELAY, blame=False)
            else:
                board.finish(name, epoch, goal=end["goal"])
        elif state == "held":
            board.fail(name, epoch, why=why, delay=HELD, blame=False)
        elif self.stopping:
            board.fail(name, epoch, blame=False)
            state = "handed back"
        else:
            return self._failed(board, why or f"its driver ended as {state} unasked")
        return f"{state}: {why}" if why else str(state)

    def _answered(self, goal: int) -> int:
        """The version that an end under `goal` answers: later ones that cannot be read too, for nobody can follow
        them. The board may know of one, and would have the search driven again and again."""
        last = self.search.goal_version()  # looked at first: what is wanted after that is not answered
        try:
            return max(goal, last) if wanted(self.search).version <= goal else goal
        except Damaged:
            return goal

    def _failed(self, board: Board, why: str) -> str:
        """One more failure. A driver that got trials done before it died is no reason to give a search up."""
        now = int(self.driver.progress.get("finished", 0))
        blame = now <= (now if self.finished is None else self.finished)
        failures = self.job.failures + 1 if blame else 0
        if failures >= MAX_FAILURES:
            why = f"{MAX_FAILURES} drivers in a row ended before a trial did; {why}"
            board.finish(self.job.id, self.job.epoch, over="failed", why=why, goal=self.job.goal)
            return f"failed: {why}"
        delay = min(FIRST_DELAY * 2 ** max(failures - 1, 0), LONGEST_DELAY)
        board.fail(self.job.id, self.job.epoch, why=why, delay=delay, blame=blame)
        return f"handed back for {delay:g} s: {why}"
