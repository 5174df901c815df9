"""Any sequence of verbs, lapses of time and reopenings, against a model of the contract in plain Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from board_cases import Rig, job
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from service.board import Job, LeaseLost
from trials.store import NotFound

# In whole hundreds of seconds, so that the real time that passes on a server's clock decides nothing.
UNIT = 100.0
IDS = ["a", "b", "c", "d", "e"]
ids = st.sampled_from(IDS)
owners = st.sampled_from(["ada", "bob"])
states = st.sampled_from(["run", "run", "run", "pause", "stop", "cancel"])
overs = st.sampled_from(["", "complete", "failed"])
units = st.integers(1, 3)


@dataclass
class Model:
    """What the contract says of one job."""

    id: str
    owner: str
    priority: int
    seq: int
    by_hand: bool
    wanted: str
    workers: int = 1
    goal: int = 0
    over: str = ""
    why: str = ""
    failures: int = 0
    beat: int = 0
    progress: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0
    runner: str = ""
    lease_until: float = 0.0
    free_from: float = 0.0


class BoardMachine(RuleBasedStateMachine):
    rig: Rig

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.jobs: dict[str, Model] = {}
        self.given: list[tuple[str, int]] = []  # every lease that ever was
        self.empty()
        self.board = self.rig.again()

    def empty(self) -> None:
        raise NotImplementedError

    def teardown(self) -> None:
        self.board.close()

    def live(self, model: Model) -> bool:
        return model.lease_until > self.now

    def status(self, model: Model) -> str:
        suffix = {"run": ("running", "queued"), "pause": ("pausing", "paused"), "stop": ("stopping", "stopped")}
        live, idle = suffix.get(model.wanted, ("cancelling", "cancelled"))
        return live if self.live(model) else model.over or idle

    @rule(id=ids, owner=owners, priority=st.integers(9, 11), by_hand=st.sampled_from([False, False, True]), to=states)
    def post(self, id: str, owner: str, priority: int, by_hand: bool, to: str) -> None:
        told = self.board.post(job(id, owner=owner, priority=priority, by_hand=by_hand, wanted=to))
        seq = len(self.jobs) + 1
        self.jobs.setdefault(id, Model(id, owner, priority, seq, by_hand, to))
        self.same(told, self.jobs[id])

    @rule(quotas=st.dictionaries(st.sampled_from(["ada", "bob", "*"]), st.integers(0, 2)), last=units)
    def claim(self, quotas: dict[str, int], last: int) -> None:
        told = self.board.claim("r", last * UNIT, quotas=quotas)
        held = {owner: sum(m.owner == owner and self.live(m) for m in self.jobs.values()) for owner in ("ada", "bob")}
        free = [
            model
            for model in self.jobs.values()
            if self.status(model) == "queued"
            and not model.by_hand
            and model.free_from <= self.now
            and held[model.owner] < quotas.get(model.owner, quotas.get("*", 99))
        ]
        if not free:
            assert told is None
            return
        best = sorted(free, key=lambda m: (-m.priority, held[m.owner], m.seq))[0]
        assert told is not None
        assert told.id == best.id
        assert told.epoch > max((epoch for id, epoch in self.given if id == best.id), default=0)
        best.epoch, best.runner, best.lease_until = told.epoch, "r", self.now + last * UNIT
        self.given.append((best.id, told.epoch))
        self.same(told, best)

    def held(self, data: Any) -> tuple[str, int, Model | None]:
        """Any lease there ever was, or one there never was, and its job's model where it is live."""
        id, epoch = data.draw(st.sampled_from([*self.given, ("a", 0), ("e", 7)]))
        model = self.jobs.get(id)
        return id, epoch, model if model and self.live(model) and model.epoch == epoch else None

    def end(self, model: Model | None, id: str, verb: Any, *arguments: Any, **options: Any) -> bool:
        """Whether it was ours to do; the board must have agreed."""
        if model is not None:
            self.told = verb(id, *arguments, **options)
            return True
        with pytest.raises(LeaseLost if id in self.jobs else NotFound):
            verb(id, *arguments, **options)
        return False

    @rule(data=st.data(), last=units, progress=st.none() | st.dictionaries(st.sampled_from("xy"), st.floats(0, 9)))
    def renew(self, data: Any, last: int, progress: dict[str, Any] | None) -> None:
        id, epoch, model = self.held(data)
        if self.end(model, id, self.board.renew, epoch, last * UNIT, progress) and model:
            model.lease_until = self.now + last * UNIT
            if progress is not None:
                model.progress, model.beat = progress, model.beat + 1
            self.same(self.told, model)

    @rule(data=st.data(), over=overs, goal=st.integers(0, 3))
    def finish(self, data: Any, over: str, goal: int) -> None:
        id, epoch, model = self.held(data)
        if self.end(model, id, self.board.finish, epoch, over=over, why="w", goal=goal) and model:
            model.lease_until = 0.0
            model.over, model.why = (over, "w") if goal >= model.goal else ("", "")
            self.same(self.told, model)

    @rule(data=st.data(), delay=st.integers(0, 2), blame=st.booleans())
    def fail(self, data: Any, delay: int, blame: bool) -> None:
        id, epoch, model = self.held(data)
        if self.end(model, id, self.board.fail, epoch, why="f", delay=delay * UNIT, blame=blame) and model:
            model.lease_until, model.free_from = 0.0, self.now + delay * UNIT
            model.why, model.failures = "f", model.failures + blame
            self.same(self.told, model)

    @rule(id=ids, goal=st.integers(0, 3), to=states, workers=units, priority=st.none() | st.integers(9, 11))
    def control(self, id: str, goal: int, to: str, workers: int, priority: int | None) -> None:
        what: dict[str, Any] = {"goal": goal, "wanted": to, "workers": workers, "priority": priority}
        if (model := self.jobs.get(id)) is None:
            with pytest.raises(NotFound):
                self.board.control(id, **what)
            return
        told = self.board.control(id, **what)
        if goal > model.goal:
            model.priority = priority or model.priority
            model.goal, model.wanted, model.workers = goal, to, workers
            model.over, model.why, model.failures, model.free_from, model.by_hand = "", "", 0, 0.0, False
        self.same(told, model)

    @rule(by=units)
    def time_passes(self, by: int) -> None:
        self.rig.passes(by * UNIT)
        self.now += by * UNIT

    @rule()
    def another_process(self) -> None:
        self.board.close()
        self.board = self.rig.again()

    def same(self, told: Job, model: Model) -> None:
        live = self.live(model)
        names = ("id", "owner", "priority", "seq", "by_hand", "wanted", "workers", "goal", "over", "why", "failures")
        for name in (*names, "beat", "progress", "epoch"):
            assert getattr(told, name) == getattr(model, name), name
        assert told.status == self.status(model)
        assert told.runner == (model.runner if live else "")
        assert abs(told.seconds_left - max(0.0, model.lease_until - self.now)) < UNIT / 2
        assert abs(told.waits - (0.0 if live else max(0.0, model.free_from - self.now))) < UNIT / 2

    @invariant()
    def the_board_is_the_model(self) -> None:
        told = self.board.list()
        assert [one.id for one in told] == [m.id for m in sorted(self.jobs.values(), key=lambda m: -m.seq)]
        for one in told:
            self.same(one, self.jobs[one.id])
        for status in ("queued", "running", "complete"):
            assert {j.id for j in self.board.list(statuses=[status])} == {j.id for j in told if j.status == status}


def test_any_sequence_of_verbs_does_what_the_contract_says(rig: Rig) -> None:
    class Machine(BoardMachine):
        def empty(self) -> None:
            rig.empty()

    Machine.rig = rig
    quick = settings(max_examples=25, stateful_step_count=30, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Machine, settings=quick)


@pytest.mark.long
def test_any_long_sequence_of_verbs_does_what_the_contract_says(rig: Rig) -> None:
    class Machine(BoardMachine):
        def empty(self) -> None:
            rig.empty()

    Machine.rig = rig
    thorough = settings(max_examples=400, stateful_step_count=80, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Machine, settings=thorough)
