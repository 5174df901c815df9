"""The board: what is in flight, who works on it, and how far it is. Eight verbs, one file a backend, one test suite.

    >>> board.post(Job(id="digits-3fa2b1", name="digits", owner="ada"))
    >>> job = board.claim("runner-1", ttl=15.0)
    >>> board.renew(job.id, job.epoch, ttl=15.0, progress={"finished": 3})
    >>> board.finish(job.id, job.epoch, over="complete")

The board is never the memory: a search is its log and its goal, both in the store, and a board that is lost is posted
anew from there (`service.board.rebuild`). A claim is a lease with a rising epoch, its fencing token: whoever lost the
lease gets `LeaseLost` and changes nothing. Leases run on the backend's own clock, never on a caller's. An epoch is the
microseconds since 1970, or one more than the last where that is higher: so a board that was lost, or came back from an
old copy, gives none that a runner of before still holds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

OVER = ("complete", "failed")  # what a driver found; what was wanted of it stands in `wanted`
LEASED = {"run": "running", "pause": "pausing", "stop": "stopping", "cancel": "cancelling"}  # status by `wanted`
IDLE = {"run": "queued", "pause": "paused", "stop": "stopped", "cancel": "cancelled"}
STATUSES = (*IDLE.values(), *LEASED.values(), *OVER)
PRIORITIES = range(1, 101)
PRIORITY = 10


class LeaseLost(RuntimeError):
    """The lease has run out, or somebody else has it; nothing was changed."""


class Unreachable(RuntimeError):
    """The board's server does not answer; it may be tried again."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A search on the board. Its status is derived from these facts, never stored.

    `wanted` and `workers` are those of the goal's version `goal`; `over` is complete or failed once a driver found so;
    `seq` is the order of posting; `runner`, `epoch` and `seconds_left` are the lease's (`epoch` that of the last one;
    without a live one `runner` is empty and `seconds_left` 0); `failures` counts handings back with blame since the
    last control, `waits` the seconds until it may be claimed; `beat` counts renewals that brought progress. `created`
    is in Unix seconds; `by_hand` marks a search that was run without the board: it is not claimed until it is
    controlled.
    """

    id: str
    name: str = ""
    owner: str = ""
    priority: int = PRIORITY
    workers: int = 1
    goal: int = 0
    wanted: str = "run"
    over: str = ""
    why: str = ""
    created: float = 0.0
    by_hand: bool = False
    seq: int = 0
    runner: str = ""
    epoch: int = 0
    seconds_left: float = 0.0
    failures: int = 0
    waits: float = 0.0
    beat: int = 0
    progress: Mapping[str, Any] = field(default_factory=dict)

    @property
    def leased(self) -> bool:
        """Whether somebody works on it."""
        return self.seconds_left > 0

    @property
    def status(self) -> str:
        """One of `STATUSES`."""
        if self.leased:
            return LEASED[self.wanted]
        return self.over or IDLE[self.wanted]

    @property
    def claimable(self) -> bool:
        """Whether a runner may take it now."""
        return self.status == "queued" and self.waits <= 0 and not self.by_hand


class Board(Protocol):
    """Safe from many threads and processes. Every method may raise `Unreachable`, and `Invalid` for what cannot be put
    on a board (`service.board.rules`); those that name a job that is not there raise `trials.store.NotFound`, also
    where it was leased before the board was lost. A board on a disk that is full raises OSError.

    What ended as `Unreachable` may have taken effect all the same: a lease that nobody knows of runs out by itself, and
    a finish or fail that is tried again finds its lease lost."""

    #: what an operator should know of the server, found when it was opened: persistence that is off...
    warnings: list[str]

    def post(self, job: Job) -> Job:
        """Put a search on the board; one that is there already is left as it is. Returns it as it stands. `seq`, the
        lease (`runner`, `epoch`, `seconds_left`) and `beat` of what is given are not looked at."""

    def claim(self, runner: str, ttl: float, *, quotas: Mapping[str, int] | None = None) -> Job | None:
        """Lease the claimable job that comes first, for `ttl` seconds, with an epoch above all it has had: the highest
        priority, of those the owner with the fewest leased jobs, of those the first posted. `quotas` maps owners
        (`*`: any other) to the greatest number of their jobs that may be leased at once. None where there is none."""

    def renew(self, search_id: str, epoch: int, ttl: float, progress: Mapping[str, Any] | None = None) -> Job:
        """Keep the lease for `ttl` seconds from now, and say how far the search is: `progress` takes the place of what
        was said before, and stays when the lease ends. Raises `LeaseLost`; an expired lease is not taken up again,
        even if nobody else has it."""

    def finish(self, search_id: str, epoch: int, *, over: str = "", why: str = "", goal: int = 0) -> Job:
        """Let go of a search that has ended as its goal of version `goal` asked: `over` is complete or failed, or empty
        where it was paused, stopped or cancelled. Where the goal has moved on, `over` and `why` are dropped: there is
        more to do. Where it is the driver who has seen a later goal in the store, it lets the board know first
        (`control`): else the job would be claimed again. Raises `LeaseLost`."""

    def fail(self, search_id: str, epoch: int, *, why: str = "", delay: float = 0.0, blame: bool = True) -> Job:
        """Hand a search back unfinished: it may be claimed again after `delay` seconds. `why` is shown until then and
        after; with `blame`, `failures` goes up. Raises `LeaseLost`."""

    def control(self, search_id: str, *, goal: int, wanted: str, workers: int, priority: int | None = None) -> Job:
        """Take over what the store's goal says now, where its version is higher than what is known; `over`, `why`,
        `failures`, `waits` and `by_hand` are cleared then, and without a `priority` the job's own is kept. The lease is
        left alone: who has it looks at the goal."""

    def get(self, search_id: str) -> Job:
        """One job as it stands."""

    def list(
        self,
        *,
        before: int | None = None,
        limit: int = 100,
        owner: str | None = None,
        statuses: Collection[str] | None = None,
    ) -> list[Job]:
        """Jobs, the last posted first: at most `limit` of those with a `seq` below `before`, of that owner and with one
        of those statuses where they are given."""

    def close(self) -> None:
        """Let go of connections."""
