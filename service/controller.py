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
from service.budgets import Budgets, affordable, in_want
from service.packing import Checkpoints, halves, packed
from service.progress import DONE, Done, Progress, SearchFailed, best_of, last_line
from service.replay import Past
from service.samplers import Asked, History, NoRoom, Sampler
from service.samplers.contract import Known
from trials.goals import Goal
from trials.ledger import epochs, most_flops
from trials.plan import Plan
from trials.records import Bundle, Ending, Outcome, Spent, Trial, outcome_of
from trials.store import LogWriter, SearchStore

__all__ = ["DONE", "Controller", "Done", "Progress", "SearchFailed"]

MAX_RETRIES = 3
EQUAL_ERRORS = 16  # so many trials in a row that end in the same error stop the search


class Controller:
    """Thread-safe; one owner per search at a time (the store's lease sees to that).

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
        self._changed = threading.Condition()
        self._generations: list[list[Trial]] = []
        self._infeasible: list[Point] = []
        self._told: dict[int, Outcome] = {}
        self._queue: deque[Bundle] = deque()
        self._out: dict[str, tuple[Bundle, str, float]] = {}
        self._gone: list[str] = []  # lost, overdue or retired
        self._attempts: Counter[str] = Counter()
        self._losses: Counter[int] = Counter()
        self._settled = 0  # leading generations whose trials have all ended
        self._failure: str | None = None
        self._closing = self._draining = False
        self._wall_before = self._overhead_s = 0.0
        self._began = time.monotonic()
        self._recent_errors: deque[str | None] = deque(maxlen=EQUAL_ERRORS)
        self._too_dear = ""  # what kept points from being asked
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
        """Take in a closed attempt; the worker has made it durable."""
        with self._writing():
            held = self._out.get(bundle.id)
            if held is None or held[0].attempt != bundle.attempt:
                return  # given up in the meantime: another attempt counts
            del self._out[bundle.id]
            again = [o for o in outcomes if o.ending.retried and self._may_retry(bundle, o.number)]
            if again:
                numbers = [o.number for o in again]
                self.log.append("failed", {"bundle": bundle.id, "attempt": bundle.attempt, "numbers": numbers})
                self._requeue(bundle, numbers)
                if len(again) == len(outcomes):  # decided on, if on nothing: it must not pass for one yet to be told
                    self.log.append("told", {"bundle": bundle.id, "attempt": bundle.attempt, "numbers": []})
            self._tell(bundle, [o for o in outcomes if o not in again])

    def lost(self, worker: str, words: str = "") -> None:
        """A worker, named in full or by a leading part, is gone: what it had is handed out again in halves, or ends as
        PREEMPTED after enough tries. `words` are its last ones."""
        with self._writing():
            for bundle, started in self._given_up(worker, "lost"):
                again = [trial.number for trial in bundle.trials if self._may_retry(bundle, trial.number)]
                self._requeue(bundle, again)
                said = f"; the last one said: {line}" if (line := words.strip().rpartition("\n")[2]) else ""
                errors = {
                    trial.number: f"its worker died {self._losses[trial.number]} times while training it{said}"
                    for trial in bundle.trials
                    if trial.number not in again
                }
                self._end(bundle, Ending.PREEMPTED, errors, started)

    def overdue(self, worker: str, words: str = "") -> None:
        """A worker was ended because its bundle took too long: a trial that was alone ends as TIMEOUT with those words,
        several are handed out again in halves."""
        with self._writing():
            for bundle, started in self._given_up(worker, "overdue"):
                if len(bundle.trials) > 1:
                    self._requeue(bundle, [trial.number for trial in bundle.trials])
                else:
                    self._end(bundle, Ending.TIMEOUT, {bundle.trials[0].number: words}, started)

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
            outcomes = list(self._told.values())
            return Progress(
                asked=sum(map(len, self._generations)),
                endings=dict(Counter(o.ending.value for o in outcomes)),
                running=sum(len(bundle.trials) for bundle, _, _ in self._out.values()),
                best=best_of(outcomes, self.plan.mode),
                spent=sum((o.spent for o in outcomes), Spent(device_s=self._overhead_s)),
                wall_s=self._wall(),
                budgets=self.budgets,
                done=self._all_done(),
                failure=self._failure or (self._fruitless() if self._all_done() else None),
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
                generation, goal, sampler = len(self._generations), self.goal, self.sampler
                history, room = self._history(generation), self._room_for_trials()
            try:
                asked = sampler.ask(history, min(self.batch, room), generation)
                with self._writing():
                    # the time may have run out while the sampler thought, or something else be wanted by now
                    if self._may_ask() and self.goal is goal:
                        self._open(asked, generation)
            except Exception as error:
                with self._changed:
                    self._failure = str(error) if isinstance(error, NoRoom) else f"the sampler failed: {error!r}"
                    self._changed.notify_all()

    def _may_ask(self) -> bool:
        return not self._shut() and not self._finished_asking() and self._all_told(len(self._generations) - 2)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """The lock, for decisions that are written down. A store that cannot be written ends the search, resumable."""
        with self._changed:
            try:
                yield
            except OSError as error:
                reason = error.strerror or str(error)
                self._failure = f"the store cannot be written ({reason}); mend that, then resume the search."
            finally:
                self._changed.notify_all()

    def _open(self, asked: Asked, generation: int) -> None:
        """Write a generation down, then queue it."""
        points = self._affordable(asked.points, generation)
        first = sum(map(len, self._generations))
        trials = [self._trial(first + i, point) for i, point in enumerate(points)]
        plain = [{"number": trial.number, "point": trial.point} for trial in trials]
        self.log.append("asked", {"generation": generation, "trials": plain, "infeasible": asked.infeasible})
        self._generations.append(trials)
        self._infeasible += asked.infeasible
        self._queue.extend(packed(self.plan, trials, lanes=self.lanes, generation=generation))

    def _trial(self, number: int, point: Point) -> Trial:
        return Trial(search_id=self.search.id, number=number, point=point, seed=self.plan.seed)

    def _history(self, generation: int) -> History:
        known = []
        for g, trials in enumerate(self._generations):
            for trial in trials:
                outcome = self._told.get(trial.number) if g <= generation - 2 else None
                failed = outcome is not None and outcome.ending is not Ending.COMPLETE
                value = outcome.value if outcome is not None else None
                known.append(Known(number=trial.number, point=trial.point, value=value, failed=failed, generation=g))
        if self._space is None:
            return History(trials=known, infeasible=self._infeasible)
        return History(
            trials=[trial for trial in known if not self._space.faults(trial.point)],
            infeasible=[point for point in self._infeasible if not self._space.faults(point)],
        )

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
        if self.budgets.trials is not None and sum(map(len, self._generations)) >= self.budgets.trials:
            return True
        if self._seconds_left() <= 0:
            return True
        return len(self._generations) - self._extended_at >= 2 and not any(self._generations[-2:])

    def _room_for_trials(self) -> int:
        if self.budgets.trials is None:
            return self.batch
        return self.budgets.trials - sum(map(len, self._generations))

    def _affordable(self, points: Sequence[Point], generation: int) -> list[Point]:
        """The leading points that surely fit: what earlier generations spent, and bounds on what runs and what is new.

        Only outcomes of generations up to g - 2 are looked at, so that timing decides nothing. What the machine lost is
        counted as if trained, for a resumed search trains it again.
        """
        if self.budgets.flops is None and self.budgets.epochs is None:
            return list(points)
        flops = passes = 0.0
        for g, trials in enumerate(self._generations):
            for trial in trials:
                told = self._told[trial.number] if g <= generation - 2 else None
                known = None if told is None or told.ending.retried else told
                flops += known.spent.executed_flops if known else most_flops(self.plan, trial.point)
                passes += epochs(self.plan, trial.point)
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
        self._out[bundle.id] = (bundle, worker, time.time())
        return bundle

    # -- telling -----------------------------------------------------------------------------------------------------

    def _tell(self, bundle: Bundle, outcomes: Sequence[Outcome]) -> None:
        fresh = [o for o in outcomes if o.number not in self._told]
        if not fresh:
            return
        self.log.append("told", {"bundle": bundle.id, "attempt": bundle.attempt, "numbers": [o.number for o in fresh]})
        for outcome in fresh:
            self._take(outcome)
        self._checkpoints.drop(self._told)

    def _take(self, outcome: Outcome) -> None:
        self._told[outcome.number] = outcome
        lost = outcome.ending is Ending.PREEMPTED  # whose workers' last words may differ
        known = "its worker died" if lost else last_line(outcome) if outcome.ending is Ending.ERROR else None
        self._recent_errors.append(known)
        if len(self._recent_errors) == EQUAL_ERRORS and len(set(self._recent_errors)) == 1 and known:
            self._failure = (
                f"the last {EQUAL_ERRORS} trials all ended in the same error: {last_line(outcome)} "
                "Mend its cause, then resume the search."
            )

    def _fruitless(self) -> str | None:
        """Why a search that is over came to nothing, if it did."""
        if any(outcome.ending is Ending.COMPLETE for outcome in self._told.values()):
            return None
        if not self._told:
            return f"no trial was asked, the budget is too small for one{self._too_dear}"
        counts = Counter(outcome.ending.value for outcome in self._told.values())
        told = ", ".join(f"{count} {ending}" for ending, count in sorted(counts.items()))
        errors = [f"; trial {o.number}: {last_line(o)}" for o in self._told.values() if o.error]
        return f"of its {len(self._told)} trials none is complete ({told}){errors[-1] if errors else ''}"

    def _may_retry(self, bundle: Bundle, number: int) -> bool:
        self._losses[number] += 1
        return len(bundle.trials) > 1 or self._losses[number] <= MAX_RETRIES

    def _requeue(self, bundle: Bundle, numbers: Sequence[int]) -> None:
        trials = [t for t in bundle.trials if t.number in set(numbers)]
        self._queue.extendleft(halves(trials, bundle.generation, self._checkpoints.starts()) if trials else ())

    def _given_up(self, worker: str, why: str) -> Iterator[tuple[Bundle, float]]:
        """What a worker that is gone had in hand, and since when; each is written down."""
        self._gone.append(worker)  # its last pull may still wait here, and must not be given a bundle
        for bundle, holder, started in list(self._out.values()):
            if _is_of(holder, worker):
                del self._out[bundle.id]
                numbers = [trial.number for trial in bundle.trials]
                event = {"bundle": bundle.id, "attempt": bundle.attempt, "numbers": numbers, "why": why}
                self.log.append("failed", event)
                yield bundle, started

    def _end(self, bundle: Bundle, ending: Ending, errors: dict[int, str], started: float) -> None:
        """Tell of trials that no worker will tell of, in an attempt of their own."""
        if not errors:
            return
        bundle = replace(bundle, attempt=self._attempts[bundle.id])
        self._attempts[bundle.id] += 1
        outcomes = [
            outcome_of(t, bundle, ending, error=errors[t.number], started=started, ended=time.time())
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
            spent = self._overhead_s + sum(o.spent.device_s for o in self._told.values())
            spent += sum(time.time() - started for _, _, started in self._out.values())
            left = min(left, (self.budgets.device_seconds - spent) / (len(self._out) + 1))
        return left

    # -- replay ------------------------------------------------------------------------------------------------------

    def _replay(self) -> None:
        events = self.search.log()
        past = Past.of(events)
        for body in past.asked:
            self._generations.append([self._trial(t["number"], t["point"]) for t in body["trials"]])
            self._infeasible += body["infeasible"]
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
        for outcome in self.search.outcomes():
            if outcome.number in told:
                self._told[outcome.number] = outcome
            else:
                untold.setdefault((outcome.bundle_id, outcome.attempt), []).append(outcome)
        if self._seconds_left() > 0:  # else they would end as cancelled, and why they were lost be forgotten
            for outcome in list(self._told.values()):
                if outcome.ending.retried and past.failures_before[outcome.number] < past.failures:
                    del self._told[outcome.number]  # it is trained again
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
