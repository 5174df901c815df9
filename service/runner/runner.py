"""The runner: claims searches from the board and drives each in a process of its own, until it is told to stop.

    >>> runner = Runner(Store("runs"), board, name="node-1")
    >>> runner.run(stop)                                    # a threading.Event; returns when all is handed back

Whatever dies, nothing acknowledged is lost, for it is in the store:
- a driver: the search is handed back and claimed again after a delay that grows; the fifth failure without a trial
  between them ends it as failed, with the driver's last words;
- the runner: its drivers end with it, the leases run out, and another runner goes on;
- the board: drivers work on while it does not answer, and when their leases have run out meanwhile or all is
  forgotten; then the searches are posted anew and claimed again, mostly by the same runner. A search that another one
  has by then ends the driver here at once, and nothing is reported of it: the store's lease lets one of them write.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from search_spaces.faults import Invalid
from service.board.contract import Board, Job, LeaseLost, Unreachable
from service.board.rebuild import rebuild
from service.runner.charge import HELD, Charge
from service.runner.drivers import Driver
from service.runner.fence import clear
from service.runner.shares import Demand, shares
from trials import layout
from trials.store import NotFound, Store

POLL, IDLE = 0.05, 0.25  # seconds between looks at the board: after something happened, and at the longest
TELL = 1.0  # seconds between looks at goals and slots
REBUILD = 30.0  # seconds between looks for what the store has and the board lacks
SPARE = 2.0  # seconds after which a driver is made ready for the next search, so as not to slow the last one's start
MODESTY = 0.4  # seconds after a claim in which idle runners have the first choice
SILENCE = 300.0  # seconds after which a driver that says nothing is held to hang
RUNNING = ("running", "pausing", "stopping", "cancelling")
PAGE = 500


class Runner:
    """One runner; its `name` is the one that the board gives leases to.

    Args:
        executor: `local` or `ray`, for all its searches.
        searches: at most so many at once.
        slots: worker slots that there are for all searches. None: this machine's cores for `local` (and never fewer
            than searches), what the cluster reports for `ray`.
        quotas: by owner (`*`: any other) the most slots, and so the most searches, at once.
        ttl: seconds that a lease holds without a renewal.
        grace: seconds that drivers get to hand back after a stop.
        cache: where users' code is unpacked.
        installer: of the packages that it requires, `pip` or `uv`.
        environment: added to that of the drivers.
        say: is told what happens, a line an event.
    """

    def __init__(
        self,
        store: Store,
        board: Board,
        *,
        name: str,
        cache: Path,
        executor: str = "local",
        searches: int = 4,
        slots: int | None = None,
        quotas: Mapping[str, int] | None = None,
        ttl: float = 15.0,
        grace: float = 10.0,
        installer: str = "pip",
        environment: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.store, self.board, self.name, self.executor, self.cache = store, board, name, executor, cache
        self.searches, self.slots, self.quotas = searches, slots, dict(quotas or {})
        self.ttl, self.grace, self.installer, self.environment, self.say = ttl, grace, installer, environment, say
        self._charges: dict[str, Charge] = {}
        self._spare: Driver | None = None
        self._news, self._over = threading.Event(), threading.Event()
        self._due = {"rebuild": 0.0, "tell": 0.0, "spare": 0.0, "claim": 0.0}
        self._trouble = ""
        self._skipped: set[str] = set()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then hand everything back. A board or store that fails is waited for."""
        heart = threading.Thread(target=self._beat, name="heart", daemon=True)
        heart.start()
        pause = POLL
        try:
            while not stop.is_set():
                busy = self._tried(self._turn)
                pause = POLL if busy else min(2 * pause, IDLE if busy is not None else TELL)
                self._news.wait(pause)
                self._news.clear()
        finally:
            self._hand_back()
            self._over.set()
            heart.join()

    def _tried(self, act: Callable[[], bool]) -> bool | None:
        """What it returns; None where the board or the store does not answer, which is said once."""
        try:
            done = act()
        except (Unreachable, OSError, Invalid) as error:
            if self._trouble != (trouble := f"{type(error).__name__}: {error}"):
                self._trouble = trouble
                self.say(f"waiting: {trouble}")
            return None
        if self._trouble:
            self._trouble = ""
            self.say("going on")
        return done

    def _turn(self) -> bool:
        """Everything that may be to do now; whether anything was."""
        busy = self._settle()
        adrift = any(charge.adrift for charge in self._charges.values())
        if self._is_due("rebuild", TELL if adrift else REBUILD) and (
            count := rebuild(self.store, self.board, skipped=self._skip)
        ):
            self.say(f"brought {count} searches of the store to the board")
        while self._has_room() and self._claim():
            busy = True
        if self._is_due("tell", TELL):
            for charge in self._charges.values():
                charge.mirror(self.board)
            self._share()
            self._end_silent()
        self._make_spare()
        return busy

    def _has_room(self) -> bool:
        """Whether to look for one search more; one that has some leaves the next to those that are idle, for a moment.
        What is adrift is looked for at once."""
        held = sum(not charge.adrift for charge in self._charges.values())
        patient = held < len(self._charges) or not held or time.monotonic() >= self._due["claim"]
        return held < self.searches and patient

    def _make_spare(self) -> None:
        """Have a driver ready for the next search, but not at the cost of those that are starting."""
        if not all(charge.driver.ready for charge in self._charges.values()):
            self._due["spare"] = time.monotonic() + SPARE
        if self._spare is None and len(self._charges) < self.searches and time.monotonic() >= self._due["spare"]:
            self._spare = self._start()

    def _is_due(self, what: str, every: float) -> bool:
        self._due[what] = min(self._due[what], time.monotonic() + every)
        if time.monotonic() < self._due[what]:
            return False
        self._due[what] = time.monotonic() + every
        return True

    def _skip(self, name: str, error: Exception) -> None:
        if name not in self._skipped:
            self._skipped.add(name)
            self.say(f"{name}: is not on the board: {error}; see `continua doctor`")

    # -- one search --------------------------------------------------------------------------------------------------

    def _claim(self) -> bool:
        """Take on one search more, if there is one."""
        job = self.board.claim(self.name, self.ttl, quotas=self.quotas or None)
        if job is None:
            return False
        self._due["claim"] = time.monotonic() + MODESTY
        if job.id in self._charges:
            self._charges[job.id].again(job)
            self.say(f"{job.id}: claimed again (epoch {job.epoch}); its driver worked on")
            return True
        with contextlib.suppress(LeaseLost, NotFound):
            self._begin(job)
        return True

    def _begin(self, job: Job) -> None:
        try:
            search = self.store.search(job.id)
        except NotFound as error:
            self.board.finish(job.id, job.epoch, over="failed", why=str(error), goal=job.goal)
            self.say(f"{job.id}: failed: {error}")
            return
        if why := clear(search):
            self.board.fail(job.id, job.epoch, why=why, delay=HELD, blame=False)
            self.say(f"{job.id}: handed back for {HELD:g} s: {why}")
            return
        driver = self._spare if self._spare is not None and not self._spare.over else self._start()
        self._spare = None
        self._due["spare"] = time.monotonic() + SPARE
        charge = Charge(job=job, search=search, driver=driver)
        self._charges = {**self._charges, job.id: charge}  # replaced, never changed: the heart looks at it any time
        with contextlib.suppress(Unreachable):  # it gets to know its slots in a second
            self._share()
        order = {
            "search": job.id,
            "store": str(self.store.root.absolute()),
            "cache": str(self.cache),
            "installer": self.installer,
            "slots": charge.slots,
        }
        driver.begin(order, layout.driver_log(search.path))
        self.say(f"{job.id}: claimed (epoch {job.epoch})")

    def _start(self) -> Driver:
        return Driver.start(self.executor, news=self._news.set, environment=self.environment)

    def _settle(self) -> bool:
        """Tell the board of searches whose drivers ended; whether there were any."""
        if self._spare is not None and self._spare.over:
            self.say(f"a driver that was to wait is gone: {self._spare.how()}")
            self._spare, self._due["spare"] = None, time.monotonic() + TELL
        ended = [charge for charge in self._charges.values() if charge.driver.over]
        for charge in ended:
            words = charge.settle(self.board, self.ttl)
            self._charges = {name: other for name, other in self._charges.items() if other is not charge}
            self.say(f"{charge.job.id}: {words}")
        return bool(ended)

    def _end_silent(self) -> None:
        for charge in self._charges.values():
            if time.monotonic() - charge.driver.heard > SILENCE:
                self.say(f"{charge.job.id}: its driver said nothing for {SILENCE:g} s and is ended")
                charge.driver.kill()

    # -- slots -------------------------------------------------------------------------------------------------------

    def _share(self) -> None:
        """Tell each driver how many slots are its search's."""
        own = {charge.job.id: charge.job for charge in self._charges.values()}
        if not own:
            return
        # others draw on the same cluster, and an owner's quota is for all that runs anywhere
        jobs = own if self.executor == "local" and not self.quotas else {**own, **{j.id: j for j in self._running()}}
        demands = [
            Demand(id=job.id, owner=job.owner, priority=job.priority, workers=_usable(job))
            for job in sorted(jobs.values(), key=lambda job: job.seq)
        ]
        if self.executor == "local" and self.quotas:
            most = shares(None, demands, self.quotas)
            demands = [replace(demand, workers=most[demand.id]) for demand in demands if demand.id in own]
            jobs = own
        given = shares(self._capacity(list(jobs.values())), demands, self.quotas)
        for name, charge in self._charges.items():
            if charge.slots != given[name]:
                charge.slots = given[name]
                if charge.driver.begun:
                    charge.driver.tell(slots=charge.slots)

    def _capacity(self, jobs: list[Job]) -> int | None:
        if self.slots is not None:
            return self.slots
        if self.executor == "local":
            return max(len(os.sched_getaffinity(0)), len(jobs))
        return max((c for job in jobs if (c := job.progress.get("capacity"))), default=None)

    def _running(self) -> list[Job]:
        found: list[Job] = []
        while page := self.board.list(before=found[-1].seq if found else None, limit=PAGE, statuses=RUNNING):
            found += page
        return found

    # -- the heart and the end ---------------------------------------------------------------------------------------

    def _beat(self) -> None:
        """Renew every lease in time, whatever else is being done."""
        while not self._over.wait(0.1):
            with contextlib.suppress(Unreachable, OSError, Invalid):
                for charge in self._charges.values():
                    charge.renew(self.board, self.ttl)

    def _hand_back(self) -> None:
        """Let drivers stop, then kill them, so that another runner may go on at once."""
        if self._spare is not None:
            self._spare.kill()
        for charge in self._charges.values():
            charge.stopping = True
            if charge.driver.ready:
                charge.driver.tell(stop=True)
            else:
                charge.driver.kill()
        deadline = time.monotonic() + self.grace
        while self._charges:
            if time.monotonic() > deadline:
                for charge in self._charges.values():
                    charge.driver.kill()
            if self._tried(self._settle) is None and time.monotonic() > deadline:
                return  # no board to tell: the leases run out by themselves
            self._news.wait(POLL)
            self._news.clear()


def _usable(job: Job) -> int:
    """The workers that it wants and that there is room for, in the shape that it wants them."""
    capacity = job.progress.get("capacity")
    return min(job.workers, int(capacity)) if capacity else job.workers
