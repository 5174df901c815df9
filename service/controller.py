"""The controller of one search: it asks the sampler, packs bundles, tells outcomes, and writes every decision down.

    >>> controller = Controller(search, log, plan, sampler, budgets=Budgets(trials=256), batch=16, lanes=8)
    >>> bundle = controller.pull("worker-0")             # a Bundle, None (wait and ask again) or DONE
    >>> controller.finish(bundle, outcomes)

Points are asked in *generations* of a fixed size; generation g knows the outcomes of generations up to g - 2, and of
g - 1 only that it runs. So two generations are in flight, workers do not idle, and the same seed gives the same trials
whatever the number of workers or lanes. Everything here is rebuilt by replaying the log: the log is the only history.

A goal that is adopted is an event of the log too. It changes the generations that are asked after it, so a replay asks
them as they were, or would have been, asked.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from search_spaces import Point, Space
from service.arrivals import Arrivals, Arrived, events_of
from service.budgets import Bill, Budgets, affordable, in_want
from service.packing import Checkpoints, halves, packed
from service.progress import DONE, Done, Progress, SearchFailed, Tally, cause, last_line
from service.replay import Past, uncollected
from service.samplers import Asked, NoRoom, Sampler
from service.shown import Shown
from trials import rows
from trials.goals import Goal
from trials.plan import Plan
from trials.records import Bundle, Ending, Outcome, Trial, outcome_of
from trials.store import Conflict, LogWriter, SearchStore

__all__ = ["DONE", "Controller", "Done", "Progress", "SearchFailed"]

MAX_RETRIES = 3
EQUAL_ERRORS = 16  # so many trials in a row that end in the same error stop the search


class Controller:
    """Thread-safe; one owner per search at a time (the store's lease sees to that).

    What is decided changes under two locks, always taken in this order: `_pen`, held while something is written down,
    and `_changed`. So whoever has the pen may read decisions, and nobody who only pulls waits for a disk.

    Args:
        batch: the size of a generation.
        lanes: the greatest number of trials in a bundle.
        narrow: the sampler in a narrower space; without it such goals change nothing of what is asked.
    """

    def __init__(
        self,
        search: SearchStore,
        log: LogWriter,
        plan: Plan,
        sampler: Sampler,
        *,
        budgets: Budgets,
        batch: int,
        lanes: int,
        narrow: Callable[[Space], Sampler] | None = None,
    ) -> None:
        self.search, self.log, self.plan, self.sampler = search, log, plan, sampler
        self.budgets, self.batch, self.lanes, self.narrow = budgets, batch, lanes, narrow
        self.goal = Goal(workers=0)
        self._space: Space | None = None  # the narrowed one
        self._extended_at = 0  # generations that were asked when the budget was raised last
        self._checkpoints = Checkpoints(search)
        self._pen = threading.RLock()
        self._changed = threading.Condition()
        self._arrivals = Arrivals(self._pen, self._take_in)
        self._generations: list[list[Trial]] = []
        self._asked = 0  # trials of all generations
        self._infeasible: list[Point] = []
        self._told: dict[int, Outcome] = {}
        self._tally = Tally(plan.mode)
        self._shown, self._bill = Shown(), Bill(plan)
        self._queue: deque[Bundle] = deque()
        self._out: dict[str, tuple[Bundle, str, float]] = {}
        self._gone: list[str] = []  # lost, overdue or retired
        self._attempts: Counter[str] = Counter()
        self._losses: Counter[int] = Counter()
        self._settled = 0  # leading generations whose trials have all ended
        self._failure: str | None = None
        self._unwritable = False
        self._closing = self._draining = False
        self._wall_before = self._overhead_s = 0.0
        self._began = time.monotonic()
        self._recent_errors: deque[str | None] = deque(maxlen=EQUAL_ERRORS)
        self._too_dear = ""  # what kept points from being asked
        with uncollected():
            self._replay()
        threading.Thread(target=self._keep_asking, name="asker", daemon=True).start()

    # -- what workers call -------------------------------------------------------------------------------------------

    def pull(self, worker: str, timeout: float = 1.0) -> Bundle | Done | None:
        """The next bundle; None when there is none yet after `timeout` seconds; DONE when none will come."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                if self._shut() or any(_is_of(worker, gone) for gone in self._gone):
                    return DONE
                if self._queue:
                    return self._hand_out(worker)
                if not self._out and self._finished_asking():
                    return DONE
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)

    def finish(self, bundle: Bundle, outcomes: Sequence[Outcome]) -> None:
        """Take in a closed attempt; the worker has made it durable. Those that arrive while others are written down are
        written down together, in the order of arrival."""
        self._arrivals.put(bundle, outcomes)

    def lost(self, worker: str, words: str = "") -> None:
        """A worker, named in full or by a leading part, is gone: what it had is handed out again in halves, or ends as
        PREEMPTED after enough tries. `words` are its last ones."""
        with self._writing(), self._changed:
            for bundle, began in self._given_up(worker, "lost"):
                again = [trial.number for trial in bundle.trials if self._may_retry(bundle, trial.number)]
                self._requeue(bundle, again)
                said = f"; the last one said: {line}" if (line := words.strip().rpartition("\n")[2]) else ""
                errors = {
                    trial.number: f"its worker died {self._losses[trial.number]} times while training it{said}"
                    for trial in bundle.trials
                    if trial.number not in again
                }
                self._end(bundle, Ending.PREEMPTED, errors, began)

    def overdue(self, worker: str, words: str = "") -> None:
        """A worker was ended because its bundle took too long: a trial that was alone ends as TIMEOUT with those words,
        several are handed out again in halves."""
        with self._writing(), self._changed:
            for bundle, began in self._given_up(worker, "overdue"):
                if len(bundle.trials) > 1:
                    self._requeue(bundle, [trial.number for trial in bundle.trials])
                else:
                    self._end(bundle, Ending.TIMEOUT, {bundle.trials[0].number: words}, began)

    def unwritable(self, reason: str) -> None:
        """The store cannot be written, here or where a worker is: the search ends, resumable."""
        with self._changed:
            self._failure = f"the store cannot be written ({reason}); mend that, then resume the search."
            self._unwritable = True
            self._changed.notify_all()

    def retire(self, worker: str) -> None:
        """That worker, named in full or by a leading part, is to leave: it may finish what it has, and is given nothing
        more."""
        with self._changed:
            self._gone.append(worker)
            self._changed.notify_all()

    def drain(self) -> None:
        """Ask and hand out nothing more; what runs may finish. A goal that wants the search to run lifts it."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def close(self) -> None:
        """The same for good: the search can be resumed by another controller."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def adopt(self, goal: Goal) -> None:
        """Follow a later version of the goal from now on: its budget, and its space for what is asked from now on."""
        with self._writing():
            if goal.version > self.goal.version:
                told = {"version": goal.version, "state": goal.state, "workers": goal.workers}
                self.log.append("goal", {**told, "budget": dict(goal.budget), "space": goal.space})
                with self._changed:
                    self._follow(goal, len(self._generations))

    def _follow(self, goal: Goal, generations: int) -> None:
        if goal.state == "run":
            self._draining = False
        if (budgets := Budgets.of(goal.budget)) != self.budgets:
            self.budgets, self._extended_at, self._too_dear = budgets, generations, ""
        if goal.space is not None and goal.space != self.goal.space and self.narrow is not None:
            self._space = Space.from_dict(goal.space)
            self.sampler = self.narrow(self._space)
        self.goal = goal

    def over(self) -> bool:
        """Whether a new worker would have nothing to do; cheap, for whoever looks often."""
        with self._changed:
            return self._shut() or self._all_done()

    def _shut(self) -> bool:
        return bool(self._failure) or self._closing or self._draining

    def _all_done(self) -> bool:
        return not self._out and not self._queue and self._finished_asking()

    def note(self, kind: str, body: dict[str, Any]) -> None:
        """Write an event of the driver's own into the log, whose one writer is here."""
        with self._writing():
            self.log.append(kind, body)
            if kind == "calibrated":
                self._overhead_s += body["device_s"]

    def progress(self) -> Progress:
        """A snapshot of how far the search is."""
        with self._changed:
            return Progress(
                asked=self._asked,
                endings=dict(self._tally.endings),
                running=sum(len(bundle.trials) for bundle, _, _ in self._out.values()),
                best=self._tally.best,
                spent=self._tally.spent(self._overhead_s),
                wall_s=self._wall(),
                budgets=self.budgets,
                done=self._all_done(),
                failure=self._failure or (self._fruitless() if self._all_done() else None),
                unwritable=self._unwritable,
                goal=self.goal.version,
            )

    # -- asking ------------------------------------------------------------------------------------------------------

    def _keep_asking(self) -> None:
        """Opens each generation as soon as its turn has come; the sampler thinks while workers train."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._may_ask())
                if self._closing:
                    return
                goal = self.goal
            try:
                with self._pen:
                    generation, sampler, room = len(self._generations), self.sampler, self._room_for_trials()
                    history = self._shown.history(
                        self._generations,
                        ended=max(generation - 1, 0),
                        told=self._told,
                        infeasible=self._infeasible,
                        space=self._space,
                    )
                asked = sampler.ask(history, min(self.batch, room), generation)
                with self._writing():
                    with self._changed:
                        # the time may have run out while the sampler thought, or something else be wanted by now
                        wanted = self._may_ask() and self.goal is goal
                    if wanted:
                        self._open(asked, generation)
            except Exception as error:
                with self._changed:
                    known = isinstance(error, NoRoom | Conflict)
                    self._failure = str(error) if known else f"the sampler failed: {error!r}"
                    self._changed.notify_all()

    def _may_ask(self) -> bool:
        return not self._shut() and not self._finished_asking() and self._all_told(len(self._generations) - 2)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """The pen, for decisions that are written down. A store that cannot be written ends the search, resumable."""
        with self._pen:
            try:
                yield
            except OSError as error:
                self.unwritable(error.strerror or str(error))
            finally:
                with self._changed:
                    self._changed.notify_all()

    def _open(self, asked: Asked, generation: int) -> None:
        """Write a generation down, then queue it."""
        points = self._affordable(asked.points, generation)
        trials = [self._trial(self._asked + i, point) for i, point in enumerate(points)]
        plain = [{"number": trial.number, "point": trial.point} for trial in trials]
        bundles = packed(self.plan, trials, lanes=self.lanes, generation=generation)
        self.log.append("asked", {"generation": generation, "trials": plain, "infeasible": asked.infeasible})
        with self._changed:
            self._add(trials, asked.infeasible)
            self._queue.extend(bundles)

    def _add(self, trials: list[Trial], infeasible: Sequence[Point]) -> None:
        self._generations.append(trials)
        self._asked += len(trials)
        self._infeasible += infeasible

    def _trial(self, number: int, point: Point) -> Trial:
        return Trial(search_id=self.search.id, number=number, point=point, seed=self.plan.seed)

    def _all_told(self, generation: int) -> bool:
        """Whether every trial up to and including that generation has ended."""
        while self._settled < len(self._generations) and all(
            trial.number in self._told for trial in self._generations[self._settled]
        ):
            self._settled += 1
        return self._settled > generation

    def _finished_asking(self) -> bool:
        """Whether no generation will follow: no trials left, no time, or two generations in a row were empty (since the
        budget was raised last)."""
        if self.budgets.trials is not None and self._asked >= self.budgets.trials:
            return True
        if self._seconds_left() <= 0:
            return True
        return len(self._generations) - self._extended_at >= 2 and not any(self._generations[-2:])

    def _room_for_trials(self) -> int:
        if self.budgets.trials is None:
            return self.batch
        return self.budgets.trials - self._asked

    def _affordable(self, points: Sequence[Point], generation: int) -> list[Point]:
        """The leading points that surely fit: what earlier generations spent, and bounds on what runs and what is new.

        Only outcomes of generations up to g - 2 are looked at, so that timing decides nothing.
        """
        if self.budgets.flops is None and self.budgets.epochs is None:
            return list(points)
        flops, passes = self._bill.upto(self._generations, max(generation - 1, 0), self._told)
        fitting = affordable(self.budgets, self.plan, points, flops=flops, passes=passes)
        if len(fitting) < len(points):
            self._too_dear = in_want(self.budgets, self.plan, points)
        return fitting

    # -- packing -----------------------------------------------------------------------------------------------------

    def _hand_out(self, worker: str) -> Bundle:
        bundle = self._queue.popleft()
        seconds = self._seconds_left()
        bundle = replace(
            bundle, attempt=self._attempts[bundle.id], seconds=None if seconds == float("inf") else max(seconds, 0.0)
        )
        self._attempts[bundle.id] += 1
        self._out[bundle.id] = (bundle, worker, time.monotonic())
        return bundle

    # -- telling -----------------------------------------------------------------------------------------------------

    def _take_in(self, group: Sequence[Arrived]) -> None:
        """Decide on attempts, write that down in one piece, then let it count. Nothing of it does if that fails."""
        with self._writing():
            decided = self._decided(group)
            self.log.append_many([event for one in decided for event in events_of(*one)])
            with self._changed:
                for bundle, again, told in decided:
                    del self._out[bundle.id]
                    self._requeue(bundle, again)
                    for outcome in told:
                        self._take(outcome)
            self._checkpoints.drop(self._told)

    def _decided(self, group: Sequence[Arrived]) -> list[tuple[Bundle, list[int], list[Outcome]]]:
        """For each attempt: which of its trials are trained again, and which are told. One that was given up in the
        meantime is left out: another attempt counts."""
        with self._changed:
            held = {bundle.id: bundle.attempt for bundle, _, _ in self._out.values()}
        found = []
        for arrived in group:
            bundle = arrived.bundle
            if held.get(bundle.id) == bundle.attempt:
                del held[bundle.id]
                again = [o.number for o in arrived.outcomes if o.ending.retried and self._may_retry(bundle, o.number)]
                told = [o for o in arrived.outcomes if o.number not in again and o.number not in self._told]
                found.append((bundle, again, told))
        return found

    def _tell(self, bundle: Bundle, outcomes: Sequence[Outcome]) -> None:
        fresh = [o for o in outcomes if o.number not in self._told]
        if not fresh:
            return
        self.log.append_many(events_of(bundle, [], fresh))
        for outcome in fresh:
            self._take(outcome)
        self._checkpoints.drop(self._told)

    def _take(self, outcome: Outcome) -> None:
        self._told[outcome.number] = outcome
        self._tally.add(outcome)
        self._recent_errors.append(known := cause(outcome))
        if len(self._recent_errors) == EQUAL_ERRORS and len(set(self._recent_errors)) == 1 and known:
            self._failure = (
                f"the last {EQUAL_ERRORS} trials all ended in the same error: {last_line(outcome)} "
                "Mend its cause, then resume the search."
            )

    def _fruitless(self) -> str | None:
        """Why a search that is over came to nothing, if it did."""
        if not self._told:
            return f"no trial was asked, the budget is too small for one{self._too_dear}"
        return self._tally.fruitless()

    def _may_retry(self, bundle: Bundle, number: int) -> bool:
        self._losses[number] += 1
        return len(bundle.trials) > 1 or self._losses[number] <= MAX_RETRIES

    def _requeue(self, bundle: Bundle, numbers: Sequence[int]) -> None:
        trials = [t for t in bundle.trials if t.number in set(numbers)]
        self._queue.extendleft(halves(trials, bundle.generation, self._checkpoints.starts()) if trials else ())

    def _given_up(self, worker: str, why: str) -> Iterator[tuple[Bundle, float]]:
        """What a worker that is gone had in hand, and since when (monotonic); each is written down. What it had made
        durable counts."""
        self._gone.append(worker)  # its last pull may still wait here, and must not be given a bundle
        for bundle, holder, began in list(self._out.values()):
            if _is_of(holder, worker):
                outcomes = self.search.closed_outcomes(bundle.id, bundle.attempt)
                if len(outcomes) == len(bundle.trials):
                    self._take_in([Arrived(bundle, outcomes)])  # it went before it could say so
                    continue
                del self._out[bundle.id]
                numbers = [trial.number for trial in bundle.trials]
                event = {"bundle": bundle.id, "attempt": bundle.attempt, "numbers": numbers, "why": why}
                self.log.append("failed", event)
                yield bundle, began

    def _end(self, bundle: Bundle, ending: Ending, errors: dict[int, str], began: float) -> None:
        """Tell of trials that no worker will tell of, in an attempt of their own."""
        if not errors:
            return
        ended = time.time()
        started = ended - (time.monotonic() - began)
        bundle = replace(bundle, attempt=self._attempts[bundle.id])
        self._attempts[bundle.id] += 1
        outcomes = [
            outcome_of(t, bundle, ending, error=errors[t.number], started=started, ended=ended)
            for t in bundle.trials
            if t.number in errors
        ]
        writer = self.search.attempt_writer(bundle.id, bundle.attempt)
        for outcome in outcomes:
            writer.append(outcome)
        writer.close()
        self._tell(bundle, outcomes)

    # -- time --------------------------------------------------------------------------------------------------------

    def _wall(self) -> float:
        return self._wall_before + time.monotonic() - self._began

    def _seconds_left(self) -> float:
        """Seconds that one worker may still train: of the wall, and its share of the device seconds left."""
        left = float("inf")
        if self.budgets.wall_seconds is not None:
            left = self.budgets.wall_seconds - self._wall()
        if self.budgets.device_seconds is not None:
            spent = self._overhead_s + self._tally.device_s
            spent += sum(time.monotonic() - began for _, _, began in self._out.values())
            left = min(left, (self.budgets.device_seconds - spent) / (len(self._out) + 1))
        return left

    # -- replay ------------------------------------------------------------------------------------------------------

    def _replay(self) -> None:
        events = self.search.log()
        past = Past.of(events)
        for body in past.asked:
            self._add([self._trial(t["number"], t["point"]) for t in body["trials"]], body["infeasible"])
        for generation, goal in past.goals:
            self._follow(goal, generation)
        self._overhead_s, self._wall_before = past.overhead_s, past.wall_s
        self._attempts, self._losses = past.attempts, past.losses
        if not self._generations:
            return
        for bundle_id, attempt in self.search.attempts():
            self._attempts[bundle_id] = max(self._attempts[bundle_id], attempt + 1)
        told = self.search.told_trials(events)
        untold: dict[tuple[str, int], list[Outcome]] = {}
        for outcome in rows.outcomes_of(self.search.outcome_rows(events=events)):
            if outcome.number in told:
                self._told[outcome.number] = outcome
            else:
                untold.setdefault((outcome.bundle_id, outcome.attempt), []).append(outcome)
        self._tally = Tally(self.plan.mode, self._told.values())
        if self._seconds_left() > 0:  # else they would end as cancelled, and why they were lost be forgotten
            for outcome in list(self._told.values()):
                if outcome.ending.retried and past.failures_before[outcome.number] < past.failures:
                    del self._told[outcome.number]  # it is trained again
            if len(self._told) < self._tally.count:
                self._tally = Tally(self.plan.mode, self._told.values())
        for (bundle_id, attempt), outcomes in untold.items():
            # closed before its controller could tell it: an acknowledged result is never lost
            bundle = Bundle(search_id=self.search.id, id=bundle_id, attempt=attempt, generation=0, trials=())
            self._tell(bundle, outcomes)
        starts = self._checkpoints.starts()
        self._checkpoints.drop(self._told)
        for generation, trials in enumerate(self._generations):
            left = [t for t in trials if t.number not in self._told]
            self._queue.extend(packed(self.plan, left, lanes=self.lanes, generation=generation, starts=starts))


def _is_of(worker: str, name: str) -> bool:
    """Whether `name` is the worker's, in full or by a leading part."""
    return f"{worker}-".startswith(f"{name}-")
