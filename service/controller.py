"""The controller of one search: it asks the sampler, packs bundles, tells outcomes, and writes every decision down.

    >>> controller = Controller(search, log, plan, sampler, budgets=Budgets(trials=256), batch=16, lanes=8)
    >>> bundle = controller.pull("worker-0")             # a Bundle, None (wait and ask again) or DONE
    >>> controller.finish(bundle, outcomes)

Points are asked in *generations* of a fixed size; generation g knows the outcomes of generations up to g - 2, and of
g - 1 only that it runs. So two generations are in flight, workers do not idle, and the same seed gives the same trials
whatever the number of workers or lanes. Everything here is rebuilt by replaying the log: the log is the only history.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from search_spaces import Point
from service.budgets import Budgets, affordable, in_want
from service.samplers import Asked, History, NoRoom, Sampler
from service.samplers.contract import Known
from trials.ledger import epochs, most_flops
from trials.plan import Plan
from trials.records import Bundle, Ending, Outcome, Spent, Trial, outcome_of
from trials.store import LogWriter, SearchStore

MAX_RETRIES = 3
EQUAL_ERRORS = 16  # so many trials in a row that end in the same error stop the search


class Done(Enum):
    """The answer to a pull when no bundle will come any more."""

    DONE = "done"


DONE = Done.DONE


class SearchFailed(RuntimeError):
    """The search cannot go on; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a search is."""

    asked: int
    endings: dict[str, int]
    running: int
    best: Outcome | None
    spent: Spent
    wall_s: float
    budgets: Budgets
    done: bool
    failure: str | None

    @property
    def finished(self) -> int:
        """Trials that ended, however."""
        return sum(self.endings.values())


class Controller:
    """Thread-safe; one owner per search at a time (the store's lease sees to that).

    Args:
        batch: the size of a generation.
        lanes: the greatest number of trials in a bundle.
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
    ) -> None:
        self.search, self.log, self.plan, self.sampler = search, log, plan, sampler
        self.budgets, self.batch, self.lanes = budgets, batch, lanes
        self._changed = threading.Condition()
        self._generations: list[list[Trial]] = []
        self._infeasible: list[Point] = []
        self._told: dict[int, Outcome] = {}
        self._queue: deque[Bundle] = deque()
        self._out: dict[str, tuple[Bundle, str, float]] = {}
        self._gone: list[str] = []
        self._attempts: Counter[str] = Counter()
        self._losses: Counter[int] = Counter()
        self._settled = 0  # leading generations whose trials have all ended
        self._failure: str | None = None
        self._closing = False
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
                if self._failure or self._closing or any(_is_of(worker, gone) for gone in self._gone):
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
            self._gone.append(worker)  # its last pull may still wait here, and must not be given a bundle
            for bundle, holder, started in list(self._out.values()):
                if _is_of(holder, worker):
                    del self._out[bundle.id]
                    self._give_up(bundle, started, words)

    def close(self) -> None:
        """Hand out nothing more: what runs may finish, the search can be resumed."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def over(self) -> bool:
        """Whether a new worker would have nothing to do; cheap, for whoever looks often."""
        with self._changed:
            return bool(self._failure) or self._closing or self._all_done()

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
            )

    # -- asking ------------------------------------------------------------------------------------------------------

    def _keep_asking(self) -> None:
        """Opens each generation as soon as its turn has come; the sampler thinks while workers train."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over() or self._all_told(len(self._generations) - 2))
                if self._over():
                    self._changed.notify_all()
                    return
                generation = len(self._generations)
                history, room = self._history(generation), self._room_for_trials()
            try:
                asked = self.sampler.ask(history, min(self.batch, room), generation)
                with self._writing():
                    if not self._over():  # the time may have run out while the sampler thought
                        self._open(asked, generation)
            except Exception as error:
                with self._changed:
                    self._failure = str(error) if isinstance(error, NoRoom) else f"the sampler failed: {error!r}"
                    self._changed.notify_all()

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

    def _over(self) -> bool:
        return bool(self._failure) or self._closing or self._finished_asking()

    def _open(self, asked: Asked, generation: int) -> None:
        """Write a generation down, then queue it."""
        points = self._affordable(asked.points, generation)
        first = sum(map(len, self._generations))
        trials = [self._trial(first + i, point) for i, point in enumerate(points)]
        plain = [{"number": trial.number, "point": trial.point} for trial in trials]
        self.log.append("asked", {"generation": generation, "trials": plain, "infeasible": asked.infeasible})
        self._generations.append(trials)
        self._infeasible += asked.infeasible
        self._pack(trials, generation)

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
        return History(trials=known, infeasible=self._infeasible)

    def _all_told(self, generation: int) -> bool:
        """Whether every trial up to and including that generation has ended."""
        while self._settled < len(self._generations) and all(
            trial.number in self._told for trial in self._generations[self._settled]
        ):
            self._settled += 1
        return self._settled > generation

    def _finished_asking(self) -> bool:
        """Whether no generation will follow: no trials left, no time, or two generations in a row were empty."""
        if self.budgets.trials is not None and sum(map(len, self._generations)) >= self.budgets.trials:
            return True
        if self._seconds_left() <= 0:
            return True
        return len(self._generations) >= 2 and not any(self._generations[-2:])

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

    def _pack(self, trials: Sequence[Trial], generation: int) -> None:
        """Bundles of equal signature and, where lanes are padded, of one shape class: the costliest trials first and
        spread evenly."""
        alike: dict[object, list[Trial]] = {}
        for trial in trials:
            key = (self.plan.space.signature(trial.point), self.plan.shape_class(trial.point))
            alike.setdefault(key, []).append(trial)
        for group in alike.values():
            ranked = sorted(group, key=lambda t: (-most_flops(self.plan, t.point), t.number))
            count = -(-len(ranked) // self.lanes)
            for i in range(count):
                self._enqueue(ranked[i::count], generation)

    def _enqueue(self, trials: Sequence[Trial], generation: int, *, front: bool = False) -> None:
        members = tuple(sorted(trials, key=lambda t: t.number))
        numbers = ",".join(str(t.number) for t in members)
        bundle_id = f"b{members[0].number:06d}-{hashlib.sha256(numbers.encode()).hexdigest()[:8]}"
        bundle = Bundle(search_id=self.search.id, id=bundle_id, generation=generation, trials=members)
        (self._queue.appendleft if front else self._queue.append)(bundle)

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
        half = -(-len(trials) // 2)
        for part in (trials[:half], trials[half:]):
            if part:
                self._enqueue(part, bundle.generation, front=True)

    def _give_up(self, bundle: Bundle, started: float, words: str) -> None:
        numbers = [t.number for t in bundle.trials]
        self.log.append("failed", {"bundle": bundle.id, "attempt": bundle.attempt, "numbers": numbers, "why": "lost"})
        again = [number for number in numbers if self._may_retry(bundle, number)]
        self._requeue(bundle, again)
        bundle = replace(bundle, attempt=self._attempts[bundle.id])
        times = {"started": started, "ended": time.time()}
        said = f"; the last one said: {line}" if (line := words.strip().rpartition("\n")[2]) else ""
        outcomes = [
            outcome_of(
                trial,
                bundle,
                Ending.PREEMPTED,
                error=f"its worker died {self._losses[trial.number]} times while training it{said}",
                **times,
            )
            for trial in bundle.trials
            if trial.number not in again
        ]
        if outcomes:
            self._attempts[bundle.id] += 1
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
        by_epoch: dict[int, list[float]] = {}
        since: dict[int, int] = {}  # by trial: how often the search had failed when it was told
        failures = 0
        for event in events:
            by_epoch.setdefault(event.epoch, []).append(event.time)
            if event.kind == "told":
                since.update(dict.fromkeys(event.body["numbers"], failures))
            elif event.kind == "state" and event.body["state"] == "failed":
                failures += 1
                self._losses.clear()  # their cause is held to be mended
            if event.kind == "asked":
                self._generations.append([self._trial(t["number"], t["point"]) for t in event.body["trials"]])
                self._infeasible += event.body["infeasible"]
            elif event.kind == "calibrated":
                self._overhead_s += event.body["device_s"]
            elif event.kind == "failed":
                self._losses.update(event.body["numbers"])
                self._attempts[event.body["bundle"]] = event.body["attempt"] + 1  # its worker may yet begin it
        self._wall_before = sum(max(times) - min(times) for times in by_epoch.values())
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
                if outcome.ending.retried and since[outcome.number] < failures:
                    del self._told[outcome.number]  # it is trained again
        for (bundle_id, attempt), outcomes in untold.items():
            # closed before its controller could tell it: an acknowledged result is never lost
            bundle = Bundle(search_id=self.search.id, id=bundle_id, attempt=attempt, generation=0, trials=())
            self._tell(bundle, outcomes)
        for generation, trials in enumerate(self._generations):
            self._pack([t for t in trials if t.number not in self._told], generation)


def _is_of(worker: str, name: str) -> bool:
    """Whether `name` is the worker's, in full or by a leading part."""
    return f"{worker}-".startswith(f"{name}-")


def last_line(outcome: Outcome) -> str:
    """The end of an outcome's error, where the cause stands."""
    return (outcome.error or "").strip().rpartition("\n")[2]


def best_of(outcomes: Sequence[Outcome], mode: str) -> Outcome | None:
    """The complete outcome with the best value; the earliest asked among equals."""
    sign = 1.0 if mode == "min" else -1.0
    complete = [o for o in outcomes if o.ending is Ending.COMPLETE and o.value is not None]
    return min(complete, key=lambda o: (sign * (o.value or 0.0), o.number), default=None)
