"""Any sequence of what users want and what machines do to a whole service, against an oracle of what was acknowledged.

Searches are submitted, claimed, driven, reported of, paused, resumed, scaled, extended and narrowed, while workers,
drivers and runners are killed or thought dead, leases run out and the board forgets everything. After each step: no
acknowledged result is lost or told twice, a search has one live lease at most, no budget is exceeded, no search goes
back, its best is the oracle's, and who has lost a search changes nothing of it.
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from board_cases import RedisRig, RedisServer, Rig, SQLiteRig
from controller_cases import PLAN, SPACE, value_of
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from machine_cases import TTL, Hands, Process, Witness, Work, at_rest
from machine_truth import NONE, Truth, told_by

from search_spaces.faults import Invalid
from service.board import LeaseLost
from service.board.rebuild import posted
from service.goal import Edit, change, wanted
from service.submission import submit
from service.summary import summary
from trials import layout, lease
from trials.ledger import most_flops
from trials.query import query
from trials.records import Outcome
from trials.store import OVER, Conflict, Held, NotFound, Store

SPEC: dict[str, Any] = {
    "name": "iris",
    "task": "uci/iris",
    "network": {"kind": "mlp", "layers": 1},
    "space": SPACE.to_dict(),
    "training": {"epochs": 3},
    "search": {"sampler": "random", "batch": 3},
    "resources": {"workers": 2, "lanes": 2},
}
DEAREST = most_flops(PLAN, {"width.0": 12.0, "lr": 0.1, "batch_size": 16})
ROOM = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # no power is cut here, so nothing need reach a disk
MOST = 3  # searches
AT_WORK = ("pause", "stop", "cancel", "scale")  # what makes no sense of a search that is over
VERBS = (*AT_WORK, "resume", "extend", "extend", "narrow")
STATES = {"pause": "pause", "stop": "stop", "cancel": "cancel", "resume": "run"}
budgets = st.tuples(st.integers(6, 9), st.none() | st.integers(2, 6))  # trials, and FLOPs of so many of the dearest
plays = st.lists(st.floats() | st.sampled_from(["raises", "memory", 0.5, -0.5]), min_size=2, max_size=2)
shares = st.sampled_from([0.25, 1.0])
which = st.integers(0, 1)
T = TypeVar("T")


def drawn(data: st.DataObject, some: Sequence[T]) -> T:
    """One of them, told by its place: a failure is then read in a page."""
    return some[data.draw(st.integers(0, len(some) - 1))]


class ServiceMachine(RuleBasedStateMachine):
    """Two runners on one store and one board, which `rig` makes; all runs in this process, a step at a time."""

    rig: Callable[[Path], Rig]

    def __init__(self) -> None:
        super().__init__()
        self.room = tempfile.TemporaryDirectory(dir=ROOM)
        self.patch = pytest.MonkeyPatch()
        salt = itertools.count()  # ids that are the same whenever the same steps are taken
        self.patch.setattr(layout, "secrets", SimpleNamespace(token_hex=lambda n: f"{next(salt):0{2 * n}x}"))
        self.patch.setattr(os, "fsync", lambda handle: None)
        self.patch.setattr(lease, "_PATIENCE", 0.0)
        self.store = Store(Path(self.room.name) / "store")
        self.at = type(self).rig(Path(self.room.name))
        self.board = Witness(self.at.board)
        self.searches: dict[str, Truth] = {}
        self.processes: list[Process] = []
        self.ends = 0
        self.names = (f"r{n}" for n in itertools.count())
        self.runners = [self.runner() for _ in range(2)]

    def runner(self) -> Hands:
        return Hands(self.store, self.board, next(self.names), self.process)

    def process(self) -> Process:
        self.processes.append(Process(self.born))
        return self.processes[-1]

    def born(self, process: Process) -> None:
        assert process.search is not None
        truth = self.searches[process.search.id]
        assert not truth.driven, "two have it"
        truth.process, truth.looked = process, ""
        truth.holds()  # what was replayed, before anything is steered
        told = told_by(truth.search, truth.search.log())
        assert all(outcome.number in told for outcome in truth.search.outcomes()), "closed, and yet not told"

    def teardown(self) -> None:
        for process in self.processes:
            process.kill()
            if process.search is not None:
                process.controller.close()
        self.at.close()
        self.patch.undo()
        self.room.cleanup()

    @initialize(budget=budgets, other=budgets, plays=plays, closes=st.booleans())
    def begins(
        self, budget: tuple[int, int | None], other: tuple[int, int | None], plays: list[Any], closes: bool
    ) -> None:
        """Two searches at work, of which one has lost its driver, and its workers have not noticed yet."""
        self.submits(budget, "a", True)
        self.submits(other, "b", False)
        self.all_get_on(1, True)
        for truth in self.searches.values():
            self.edit(truth, "narrow", True, space={"lr": {"high": 0.5}})
        self.all_get_on(1, False)
        for process, work in self.works()[:1]:
            self.report(work, math.nan, flush=True)
            self.finish(process, work, self.close(work, [math.nan, *plays], 1.0))
        for process in self.at_work()[:1]:
            process.kill(lingering=True)
            works = [work for work in process.workers.values() if work is not None]
            if works and closes:
                self.close(works[0], [0.5, 0.5], 1.0)  # durable, and told by whoever goes on
                process.workers[works.pop(0).worker] = None
            self.all_get_on(2, False)
            for work in works:
                self.finish_late(process, work, plays, 1.0)

    # -- what users do -------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.searches) < MOST)
    @rule(budget=budgets, owner=st.sampled_from("ab"), key=st.booleans())
    def submits(self, budget: tuple[int, int | None], owner: str, key: bool) -> None:
        (trials, dearest), count = budget, len(self.searches)
        most = {"trials": trials} if dearest is None else {"trials": trials, "flops": dearest * DEAREST}
        how: dict[str, Any] = {"owner": owner, "key": f"k{count}" if key else None}
        job, new = submit(self.store, self.board, {**SPEC, "budget": most}, **how)
        assert new
        assert job.seq
        if key:
            assert submit(self.store, self.board, {**SPEC, "budget": most}, **how)[0].id == job.id
        search = self.store.search(job.id)
        os.utime(layout.spec(search.path), ns=(0, 10**18 + count))  # when it was submitted
        self.searches[job.id] = Truth(search, dict(most))

    @precondition(lambda self: self.searches)
    @rule(data=st.data(), verb=st.sampled_from(VERBS), told=st.booleans())
    def wants(self, data: st.DataObject, verb: str, told: bool) -> None:
        truth, what = drawn(data, list(self.searches.values())), dict[str, Any]()
        if verb == "scale":
            what["workers"] = data.draw(st.integers(1, 3))
        elif verb == "extend":
            more = {"trials": data.draw(st.integers(1, 4)), "flops": data.draw(st.integers(1, 4)) * DEAREST}
            what["budget"] = {name: total + more[name] for name, total in truth.budget.items()}
        elif verb == "narrow":
            low, high = (truth.space["lr"][key] for key in ("low", "high"))
            what["space"] = {"lr": {"high": low + data.draw(st.sampled_from([0.5, 0.9])) * (high - low)}}
        self.edit(truth, verb, told, **what)

    def edit(self, truth: Truth, verb: str, told: bool, **what: Any) -> None:
        """Change what is wanted; where the board is not `told`, who did it died before."""
        over = truth.search.state() in OVER and verb in AT_WORK
        try:
            goal = change(truth.search, Edit(verb=verb, **what), by="ada")
        except Invalid:
            assert over
            return
        assert not over
        truth.version += 1
        truth.state = STATES.get(verb, "run" if verb == "extend" and truth.state == "stop" else truth.state)
        truth.workers = what.get("workers") or truth.workers
        truth.budget = what.get("budget") or truth.budget
        for name, keys in (what.get("space") or {}).items():
            truth.space = {**truth.space, name: {**truth.space[name], **keys}}
        assert (goal.version, goal.state, goal.workers) == (truth.version, truth.state, truth.workers)
        if told:
            self.tell(truth)

    def tell(self, truth: Truth) -> None:
        goal = wanted(truth.search)
        try:
            self.board.control(truth.search.id, goal=goal.version, wanted=goal.state, workers=goal.workers)
        except NotFound:
            self.board.post(posted(truth.search))

    # -- runners, drivers and workers at work --------------------------------------------------------------------------

    @rule(what=st.sampled_from(["turn", "turn", "beat", "drivers", "pull", "time"]), one=which)
    def something_gets_on(self, what: str, one: int) -> None:
        if what == "turn":
            self.runners[one].turn(rebuild=False)
        elif what == "beat":
            self.runners[one].beat()
        elif what == "drivers":
            self.drivers_get_on()
        elif what == "pull":
            self.workers_pull()
        else:
            self.time_passes((0.4 * TTL, 1.5 * TTL)[one])

    @rule(rounds=st.integers(1, 3), finishing=st.booleans())
    def all_get_on(self, rounds: int, finishing: bool) -> None:
        for _ in range(rounds):
            self.time_passes(0.4 * TTL)
            for runner in self.runners:
                runner.beat()
                runner.turn(rebuild=True)
            self.drivers_get_on()
            self.workers_pull()
            for process, work in self.works() if finishing else ():
                values = [value_of(trial.point) for trial in work.bundle.trials]
                self.finish(process, work, self.close(work, values, 1.0))

    def time_passes(self, seconds: float) -> None:
        self.at.passes(seconds)
        self.board.now += seconds

    def drivers_get_on(self) -> None:
        for process in self.processes:
            process.step()

    def workers_pull(self) -> None:
        for process in self.at_work():
            for name in [name for name, work in process.workers.items() if work is None]:
                process.pull(name)

    def at_work(self, lingering: bool = False) -> list[Process]:
        return [p for p in self.processes if (p.lingering if lingering else p.live)]

    def works(self, ghosts: bool = False, lingering: bool = False) -> list[tuple[Process, Work]]:
        """Bundles in the hands of workers, or of those thought dead."""
        hands = [(p, p.ghosts if ghosts else p.workers.values()) for p in self.at_work(lingering)]
        return [(process, work) for process, works in hands for work in works if work is not None]

    @precondition(lambda self: self.works())
    @rule(data=st.data(), value=st.floats(), flush=st.booleans())
    def a_worker_reports(self, data: st.DataObject, value: float, flush: bool) -> None:
        self.report(drawn(data, self.works())[1], value, flush=flush)

    def report(self, work: Work, value: float, *, flush: bool) -> None:
        work.report(value)
        if flush:
            work.writer.flush()
            self.searches[work.bundle.search_id].reports += work.buffered
            work.buffered = 0

    @precondition(lambda self: self.works())
    @rule(data=st.data(), plays=plays, share=shares, dies=st.sampled_from([False, False, False, True]))
    def a_worker_finishes(self, data: st.DataObject, plays: list[Any], share: float, dies: bool) -> None:
        """Or dies when its attempt is closed, before it says so."""
        process, work = drawn(data, self.works())
        if share == 1.0:
            self.report(work, 0.5, flush=True)
        outcomes = self.close(work, plays, share)
        if dies:
            self.lose(process, work.worker)
            process.ghosts.remove(work)
        else:
            self.finish(process, work, outcomes)

    def close(self, work: Work, plays: list[Any], share: float) -> list[Outcome]:
        truth = self.searches[work.bundle.search_id]
        truth.closed[work.bundle.id, work.bundle.attempt] = outcomes = work.close(plays, share)
        truth.reports, work.buffered = truth.reports + work.buffered, 0
        return outcomes

    def finish(self, process: Process, work: Work, outcomes: list[Outcome]) -> None:
        truth = self.searches[work.bundle.search_id]
        # another attempt may have been closed before its controller could tell it, and told by the next one
        told = {o.number for o in told_by(truth.search, truth.search.log()).values() if not o.ending.retried}
        process.controller.finish(work.bundle, outcomes)
        truth.acked |= {o.number: o for o in outcomes if not o.ending.retried and o.number not in told}
        if len(outcomes) == 1 and outcomes[0].ending.retried:
            truth.alone[outcomes[0].number] += 1
        process.workers[work.worker] = None
        at_rest(process.controller)

    def lose(self, process: Process, name: str) -> None:
        work = process.workers[name]
        if work is not None and len(work.bundle.trials) == 1:
            self.searches[work.bundle.search_id].alone[work.bundle.trials[0].number] += 1
        process.lose(name)

    # -- what machines do to them --------------------------------------------------------------------------------------

    @precondition(lambda self: self.works())
    @rule(data=st.data())
    def a_worker_is_killed(self, data: st.DataObject) -> None:
        """Or thought dead: what it has in hand it may yet close."""
        process, work = drawn(data, self.works())
        self.lose(process, work.worker)

    @precondition(lambda self: self.at_work())
    @rule(data=st.data(), lingering=st.booleans(), soon=st.booleans())
    def a_driver_is_killed(self, data: st.DataObject, lingering: bool, soon: bool) -> None:
        """Its runner may see it soon, and another driver go on; its controller may linger for a moment."""
        process = drawn(data, self.at_work())
        process.kill(lingering=lingering)
        if soon:
            self.all_get_on(2, False)
            for work in [work for work in process.workers.values() if work is not None]:
                self.finish_late(process, work, [0.5, 0.5], 1.0)

    @rule(one=which, asked=st.booleans())
    def a_runner_is_killed(self, one: int, asked: bool) -> None:
        """Or asked to end, and hands everything back."""
        if asked:
            self.runners[one].hand_back()
            assert not self.runners[one].processes()
        else:
            self.runners[one].kill()
        self.runners[one] = self.runner()

    @rule()
    def the_board_forgets(self) -> None:
        self.at.empty()
        self.board.forget()

    # -- what must change nothing --------------------------------------------------------------------------------------

    @precondition(lambda self: self.works(ghosts=True))
    @rule(data=st.data(), plays=plays, share=shares)
    def one_thought_dead_finishes(self, data: st.DataObject, plays: list[Any], share: float) -> None:
        process, work = drawn(data, self.works(ghosts=True))
        truth = self.searches[work.bundle.search_id]
        before = truth.seen()
        process.ghosts.remove(work)
        process.controller.finish(work.bundle, self.close(work, plays, share))
        at_rest(process.controller)
        assert truth.seen() == before

    @precondition(lambda self: self.works(lingering=True))
    @rule(data=st.data(), plays=plays, share=shares)
    def one_of_a_killed_driver_finishes(self, data: st.DataObject, plays: list[Any], share: float) -> None:
        process, work = drawn(data, self.works(lingering=True))
        self.finish_late(process, work, plays, share)

    def finish_late(self, process: Process, work: Work, plays: list[Any], share: float) -> None:
        """Once another controller has the search, one that lingers is refused whatever it would do."""
        truth = self.searches[work.bundle.search_id]
        outcomes = self.close(work, plays, share)
        if truth.process is process:
            self.finish(process, work, outcomes)
            return
        process.workers[work.worker] = None
        before = truth.seen()
        with pytest.raises(Conflict):
            process.controller.finish(work.bundle, outcomes)
        with pytest.raises(Conflict):
            process.controller.note("state", {"state": "failed", "why": "", "goal": 99})
        with pytest.raises(Conflict):
            process.controller.lost(work.worker)
        assert truth.seen() == before

    @precondition(lambda self: self.board.given)
    @rule(data=st.data())
    def those_without_a_lease_try(self, data: st.DataObject) -> None:
        for process in self.at_work():
            assert process.search is not None
            with pytest.raises(Held):
                self.store.search(process.search.id).lease()
        if not (old := [one for one in self.board.given if not self.board.live(*one)]):
            return
        search_id, epoch = drawn(data, old)
        before = repr(self.at.board.list())
        for verb, more in ((self.board.renew, (TTL,)), (self.board.finish, ()), (self.board.fail, ())):
            with pytest.raises((LeaseLost, NotFound)):
                verb(search_id, epoch, *more)
        if self.at.kind == "sqlite":  # elsewhere real time passes between the two looks
            assert repr(self.at.board.list()) == before

    # -- to the end ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.searches and not self.ends)
    @rule()
    def all_run_to_their_end(self) -> None:
        """Nothing was so bad that a search does not go on once it may."""
        self.ends += 1
        for truth in self.searches.values():
            self.edit(truth, "resume", True)
        for _ in range(200):
            self.all_get_on(1, True)
            if all(job.over and not job.leased for job in self.board.list()):
                break
        for search_id, truth in self.searches.items():
            job, said = self.board.get(search_id), truth.progress()
            assert job.over == ("complete" if said.endings.get("complete") else "failed"), job
            assert said.asked == truth.budget["trials"] or "flops" in truth.budget
            assert said.finished == said.asked
        self.everything_holds()
        self.sql_agrees()

    def sql_agrees(self) -> None:
        rows = query(self.store, "SELECT search_id, count(*) AS n, min(value) AS best FROM trials GROUP BY search_id")
        for row in rows.to_pylist():
            truth = self.searches[row["search_id"]]
            assert row["n"] == truth.asked
            assert row["best"] == (None if truth.best == NONE else truth.best[0])
            found = summary(truth.search)
            assert (found["best"] or {}).get("value") == row["best"]
            assert found["asked"] == row["n"]

    # -- after each step -----------------------------------------------------------------------------------------------

    @invariant()
    def everything_holds(self) -> None:
        for truth in self.searches.values():
            truth.holds()

    @invariant()
    def the_board_says_what_is_wanted(self) -> None:
        for job in self.board.list():
            truth = self.searches[job.id]
            assert job.goal <= truth.version
            if job.goal == truth.version:
                assert (job.wanted, job.workers) == (truth.state, truth.workers)
            assert int(job.progress.get("finished", 0)) <= truth.asked


def run(rig: Callable[[Path], Rig], examples: int, steps: int, **more: Any) -> None:
    class Machine(ServiceMachine):
        pass

    Machine.rig = staticmethod(rig)
    health = list(HealthCheck)
    how = settings(max_examples=examples, stateful_step_count=steps, suppress_health_check=health, **more)
    run_state_machine_as_test(Machine, settings=how)


def on_sqlite(room: Path) -> Rig:
    return SQLiteRig(room / "board.sqlite")


def test_any_sequence_of_wishes_and_faults_loses_nothing() -> None:
    run(on_sqlite, 10, 20)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_any_long_sequence_of_wishes_and_faults_loses_nothing() -> None:
    run(on_sqlite, 300, 30)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_any_long_sequence_on_a_server_loses_nothing(redis_server: RedisServer) -> None:
    run(lambda room: RedisRig(redis_server), 40, 30)
