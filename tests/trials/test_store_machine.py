"""Any sequence of writing, failing, abandoning and reopening, against a model in memory."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trials.records import Ending, Outcome, Report
from trials.store import AttemptWriter, Conflict, Store

bundles = st.sampled_from(["b0", "b1"])
attempts = st.integers(0, 2)


class StoreMachine(RuleBasedStateMachine):
    """The model: per attempt its durable outcomes, its buffer and whether it is closed; the log as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.root.name))
        self.search = self.store.create("s", {})
        self.epoch = 1
        self.log = self.search.log_writer(1)
        self.events: list[tuple[int, str, Any]] = []
        self.durable: dict[tuple[str, int], list[Outcome]] = {}
        self.buffer: dict[tuple[str, int], list[Outcome]] = {}
        self.closed: set[tuple[str, int]] = set()
        self.writers: dict[tuple[str, int], AttemptWriter] = {}
        self.fail_at = 0
        self.number = 0
        self.patch = pytest.MonkeyPatch()
        self.real = os.fsync
        self.patch.setattr(os, "fsync", self.fsync)

    def fsync(self, handle: int) -> None:
        self.fail_at -= 1
        if self.fail_at == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.real(handle)

    def survives(self, call: Any, *args: Any) -> bool:
        """Whether the call went through; it fails exactly where a failure was due within its two fsyncs."""
        due = self.fail_at in (1, 2)
        caught = None
        try:
            call(*args)
        except OSError as error:
            caught = error
        assert caught is None or (due and caught.errno == errno.ENOSPC)
        return caught is None

    def teardown(self) -> None:
        self.patch.undo()
        self.root.cleanup()

    @rule(nth=st.integers(1, 4))
    def the_disk_will_fail(self, nth: int) -> None:
        self.fail_at = nth

    @rule(bundle=bundles, attempt=attempts)
    def begin(self, bundle: str, attempt: int) -> None:
        place = (bundle, attempt)
        self.fail_at = 0
        try:
            writer = self.search.attempt_writer(bundle, attempt)
        except Conflict:
            assert place in self.durable
            return
        assert place not in self.durable
        self.writers[place], self.durable[place], self.buffer[place] = writer, [], []

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), value=st.none() | st.floats(allow_nan=False), metric=st.sampled_from(["loss", "error"]))
    def append(self, data: st.DataObject, value: float | None, metric: str) -> None:
        place = data.draw(st.sampled_from(sorted(self.writers)))
        self.number += 1
        one = Outcome(
            trial_id=f"t{self.number}",
            number=self.number,
            bundle_id=place[0],
            attempt=place[1],
            ending=Ending.ERROR if value is None else Ending.COMPLETE,
            point={"lr": 0.1 * self.number},
            value=value,
            metrics={metric: float(self.number)},
        )
        self.writers[place].append(Report(trial_id="t", bundle_id=place[0], attempt=place[1], step=1, metrics={}))
        self.writers[place].append(one)
        self.buffer[place].append(one)

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def flush(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.writers)))
        if self.survives(self.writers[place].flush):
            self.durable[place] += self.buffer[place]
            self.buffer[place] = []

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.writers)))
        if self.survives(self.writers[place].close):
            self.durable[place] += self.buffer[place]
            self.closed.add(place)
            del self.writers[place], self.buffer[place]

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.writers)))
        del self.writers[place], self.buffer[place]

    @rule(bundle=bundles, attempt=attempts)
    def tell(self, bundle: str, attempt: int) -> None:
        body = {"bundle": bundle, "attempt": attempt, "numbers": []}
        if self.survives(self.log.append, "told", body):
            self.events.append((self.epoch, "told", body))

    @rule(kinds=st.lists(st.sampled_from(["goal", "state"]), max_size=3))
    def decide(self, kinds: list[str]) -> None:
        if self.survives(self.log.append_many, [(kind, {"state": kind}) for kind in kinds]):
            self.events += [(self.epoch, kind, {"state": kind}) for kind in kinds]

    @rule()
    def reopen(self) -> None:
        self.search = Store(Path(self.root.name)).search("s")
        self.epoch += 1
        self.log = self.search.log_writer(self.epoch)

    @invariant()
    def the_log_is_the_model(self) -> None:
        assert [(event.epoch, event.kind, event.body) for event in self.search.log()] == self.events
        assert self.search.damaged == []

    @invariant()
    def the_outcomes_are_the_model(self) -> None:
        assert self.search.attempts() == {place: place in self.closed for place in sorted(self.durable)}
        assert self.search.outcomes(closed_only=False) == [
            one for place in sorted(self.durable) for one in self.durable[place]
        ]
        told = {body["bundle"]: body["attempt"] for _, kind, body in self.events if kind == "told"}
        expected = []
        for bundle in ("b0", "b1"):
            done = [attempt for name, attempt in sorted(self.closed) if name == bundle]
            counts = told.get(bundle, done[0] if done else None)
            expected += self.durable.get((bundle, counts), []) if counts is not None else []
        assert sorted(self.search.outcomes(), key=lambda one: one.number) == sorted(expected, key=lambda o: o.number)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(deadline=None, derandomize=True, max_examples=25, stateful_step_count=25)
