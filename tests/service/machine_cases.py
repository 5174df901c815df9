"""A service in one process, a step at a time: real boards, runners, stores and controllers, drivers without a process.

A `Process` is what a runner starts: it takes the store's lease, makes the controller, follows the goal and says how it
is, with the pieces of `service.driver`. Its workers train nothing; they write attempts as `service.slot` does.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from service.board import Job, LeaseLost
from service.controller import Controller
from service.driver import Steering, _state
from service.goal import wanted
from service.graph_rules import without_unused
from service.planning import make_controller, plan_of
from service.progress import Done
from service.runner.drive import plain
from service.runner.runner import Runner
from service.spec import check
from trials.ledger import most_flops
from trials.objective import call_objective
from trials.plan import Plan
from trials.records import Bundle, Outcome, Report, Spent
from trials.store import IDLE, AttemptWriter, Conflict, Held, Lease, NotFound, SearchStore, Store

TTL = 100.0  # seconds of a lease: so many that the real ones that pass on a server's clock decide nothing
Play = float | str  # what a trial comes to: a number (NaN and inf too), or `raises`, or `memory`


class Witness:
    """A board, and beside it what its leases are by the contract: at most one a search, and no epoch twice."""

    def __init__(self, board: Any) -> None:
        self.board, self.now = board, 0.0
        self.leases: dict[str, tuple[int, float]] = {}  # the last of each search: its epoch, and until when
        self.given: list[tuple[str, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.board, name)

    def live(self, search_id: str, epoch: int) -> bool:
        last, until = self.leases.get(search_id, (0, 0.0))
        return last == epoch and until > self.now

    def forget(self) -> None:
        """All is lost, but no epoch may come again."""
        self.leases = {search_id: (epoch, 0.0) for search_id, (epoch, _) in self.leases.items()}

    def claim(self, runner: str, ttl: float, **options: Any) -> Job | None:
        job: Job | None = self.board.claim(runner, ttl, **options)
        if job is not None:
            epoch, until = self.leases.get(job.id, (0, 0.0))
            assert until <= self.now, "it is somebody else's"
            assert job.epoch > epoch
            self.leases[job.id] = (job.epoch, self.now + ttl)
            self.given.append((job.id, job.epoch))
        return job

    @contextlib.contextmanager
    def _held(self, search_id: str, epoch: int, seconds: float) -> Iterator[None]:
        live = self.live(search_id, epoch)
        try:
            yield
        except (LeaseLost, NotFound):
            assert not live
            raise
        assert live, "it was told of a lease that is over"
        self.leases[search_id] = (epoch, self.now + seconds)

    def renew(self, search_id: str, epoch: int, ttl: float, progress: Any = None) -> Job:
        with self._held(search_id, epoch, ttl):
            job: Job = self.board.renew(search_id, epoch, ttl, progress)
        return job

    def finish(self, search_id: str, epoch: int, **how: Any) -> Job:
        with self._held(search_id, epoch, 0.0):
            job: Job = self.board.finish(search_id, epoch, **how)
        return job

    def fail(self, search_id: str, epoch: int, **how: Any) -> Job:
        with self._held(search_id, epoch, 0.0):
            job: Job = self.board.fail(search_id, epoch, **how)
        return job


@dataclass(eq=False)
class Work:
    """A bundle in a worker's hands, and its attempt at it."""

    worker: str
    bundle: Bundle
    writer: AttemptWriter
    plan: Plan
    steps: int = 0
    buffered: int = 0  # reports that are not on the disk

    def report(self, value: float) -> None:
        """One more point of each trial's curve."""
        self.steps += 1
        for trial in self.bundle.trials:
            facts = {"trial_id": trial.id, "bundle_id": self.bundle.id, "attempt": self.bundle.attempt}
            self.writer.append(Report(**facts, step=self.steps, metrics={self.plan.metric: value}))
        self.buffered += len(self.bundle.trials)

    def close(self, plays: Sequence[Play], share: float) -> list[Outcome]:
        """Train it to its end; durable and closed when this returns. The most that a trial may cost is spent by it, or
        a share of that."""
        coming = iter(plays)

        def objective(trial: Any) -> float:
            play = next(coming)
            if play == "memory":
                raise MemoryError
            if isinstance(play, str):
                raise ValueError("no")
            return play

        outcomes = []
        points = {trial.number: trial.point for trial in self.bundle.trials}
        for record in call_objective(replace(self.plan, objective=objective), self.bundle, self.worker):
            assert isinstance(record, Outcome)
            cost = share * most_flops(self.plan, points[record.number])
            outcomes.append(replace(record, spent=Spent(flops=1.0, executed_flops=cost, device_s=0.5)))
            self.writer.append(outcomes[-1])
        self.writer.close()
        return outcomes


def at_rest(controller: Controller) -> None:
    """Wait until its asker has nothing to do, so that what comes next decides alone what happens."""
    with controller._changed:
        assert controller._changed.wait_for(lambda: not controller._may_ask(), timeout=20)


@dataclass(eq=False)
class Process:
    """A driver process as its runner sees it, and the crew that its steering sees. `step` lets it get on."""

    born: Callable[[Process], None]  # is told when it has a controller
    ready: bool = True
    begun: bool = False
    over: bool = False
    progress: dict[str, Any] = field(default_factory=dict)
    ended: dict[str, Any] | None = None
    order: dict[str, Any] = field(default_factory=dict)
    search: SearchStore | None = None
    lease: Lease | None = None
    workers: dict[str, Work | None] = field(default_factory=dict)
    ghosts: list[Work] = field(default_factory=list)  # what workers thought dead still have in hand
    leaving: set[str] = field(default_factory=set)
    stopped: bool = False
    lingering: bool = False  # its controller lives on, in another process than the driver that was killed
    engaged: int = 0

    # -- as its runner sees it

    @property
    def heard(self) -> float:
        return time.monotonic()

    def begin(self, order: dict[str, Any], log: Path) -> None:
        self.begun, self.order = True, dict(order)

    def tell(self, **order: Any) -> None:
        self.order |= order
        if order.get("stop") and self.live:
            self.stop()
            self._end()
        elif order.get("stop") and not self.over:
            self._say("interrupted", "", 0)

    def kill(self, *, lingering: bool = False) -> None:
        """It is gone, and has told nobody."""
        if self.over:
            return
        self.over, self.lingering = True, lingering and self.search is not None
        if self.lease is not None:
            self.lease._connection.close()  # as the system does for a process that is gone
        if self.search is not None and not self.lingering:
            self.controller.close()
            self.workers.clear()

    def how(self) -> str:
        return "its driver was killed"

    # -- as its steering sees it

    def stop(self) -> None:
        self.stopped = True
        self.workers.clear()
        self.controller.close()

    def scale(self, workers: int) -> None:
        if self.controller.over():
            return
        staying = [name for name in self.workers if name not in self.leaving]
        for name in staying[workers:]:
            self.leaving.add(name)
            self.controller.retire(name)
        for _ in range(workers - len(staying)):
            self.engaged += 1
            self.workers[f"w{self.engaged}"] = None

    # -- getting on

    @property
    def live(self) -> bool:
        """Whether it has a controller at work."""
        return self.search is not None and not self.over

    def step(self) -> None:
        if self.over or not self.begun:
            return
        if self.search is None:
            self._start()
        else:
            self.steering._looked = -float("inf")
            self.steering.steer(self)  # type: ignore[arg-type]
        if self.live:
            at_rest(self.controller)
            self.progress = plain(self.controller.progress())
            if self.stopped or (self.controller.over() and not any(self.workers.values())):
                self._end()

    def _start(self) -> None:
        store = Store(self.order["store"])
        search = store.search(self.order["search"])
        if (goal := wanted(search)).state in IDLE:
            self._say(IDLE[goal.state], "", goal.version)
            return
        try:
            self.lease = search.lease()
        except Held as error:
            self._say("held", str(error), goal.version)
            return
        spec, task = check(without_unused(search.spec()["spec"]))
        plan = plan_of(spec, task)
        lanes = int(spec.resources.lanes)
        self.controller = make_controller(self.order["store"], search.id, self.lease.epoch, spec, plan, lanes)
        self.search, self.plan = search, plan
        self.steering = Steering(search, lambda: self.order.get("slots"))
        at_rest(self.controller)
        self.born(self)
        self.controller.note("state", {"state": "running"})
        self.steering.steer(self)  # type: ignore[arg-type]

    def _end(self) -> None:
        """Its sitting is over: it writes down how, lets go, and says so."""
        progress, goal = self.controller.progress(), self.steering.goal
        state = _state(progress, goal)
        self.controller.note("state", {"state": state, "why": progress.failure, "goal": goal.version})
        self.controller.close()
        assert self.lease is not None
        self.lease.release()
        self.progress = plain(progress)
        self._say(state, progress.failure or "", goal.version)

    def _say(self, state: str, why: str, goal: int) -> None:
        self.ended, self.over = {"ended": state, "why": why, "goal": goal}, True

    # -- its workers

    def pull(self, name: str) -> None:
        """An idle worker asks for a bundle and begins it; one that there is nothing for leaves."""
        answer = self.controller.pull(name, timeout=0.0)
        if isinstance(answer, Done):
            del self.workers[name]
        elif answer is not None:
            assert self.search is not None
            try:
                writer = self.search.attempt_writer(answer.id, answer.attempt)
            except Conflict:  # somebody thought dead has begun it: a worker dies of that
                self.controller.lost(name, "Conflict")
                del self.workers[name]
            else:
                self.workers[name] = Work(name, answer, writer, self.plan)
        at_rest(self.controller)

    def lose(self, name: str) -> None:
        """A worker is thought dead. What it has in hand it may yet close."""
        work = self.workers.pop(name)
        if work is not None:
            self.ghosts.append(work)
        self.controller.lost(name, "Killed")
        at_rest(self.controller)


class Hands(Runner):
    """A runner whose drivers are of this process. It acts when it is told to, and no clock holds it back."""

    def __init__(self, store: Store, board: Any, name: str, make: Callable[[], Process]) -> None:
        super().__init__(store, board, name=name, cache=store.root / "cache", searches=2, slots=3, ttl=TTL)
        self.make, self.rebuilds = make, True

    def _start(self) -> Any:
        return self.make()

    def processes(self) -> list[Process]:
        found: list[Any] = [charge.driver for charge in self._charges.values()]
        return found

    def turn(self, *, rebuild: bool) -> None:
        """One turn of its loop; with a look for what the board lacks or not."""
        self.rebuilds, self._due = rebuild, dict.fromkeys(self._due, 0.0)
        self._turn()

    def _is_due(self, what: str, every: float) -> bool:
        return self.rebuilds or what != "rebuild"

    def beat(self) -> None:
        """One beat of its heart."""
        for charge in self._charges.values():
            charge._renewed = -float("inf")
            charge.renew(self.board, self.ttl)

    def hand_back(self) -> None:
        """It was asked to end."""
        self._hand_back()

    def kill(self) -> None:
        """It is gone, and its drivers with it."""
        for process in [*self.processes(), *([self._spare] if self._spare else [])]:
            process.kill()
