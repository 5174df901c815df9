"""Workers that are killed while they train lanes: what they had goes on from its last checkpoint and comes to the same
numbers, to the last bit; what others had does not notice.

Metrics, curves, costs and last weights are compared with those of a search that nobody disturbed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from controller_cases import Crew, controlled, final
from crash_points import arm, armed, dangerous_workers, fired
from runner_cases import until

from service.budgets import Budgets
from service.driver import Result, resume
from service.executors.local import Bench
from service.executors.worker import Worker
from trials import checkpoints, layout
from trials.attempts import start_of
from trials.records import Bundle, Ending, Outcome, Start
from trials.store import SearchStore, Store

MOVED = {"type": "width", "low": 2, "high": 24, "moved_by": "gradient"}
LANES, WORKERS = 4, 2
STEPS = 300  # of a training's: within these workers are killed
#: of the checkpoints' writing, and of what stands around it
POINTS = ("checkpoint half", "checkpoint before", "checkpoint after", "checkpoint kept", "flushed after")
KINDS = ("moved", "still")


def spec(kind: str, trials: int = 12, lanes: int = LANES) -> dict[str, Any]:
    """A search of a second or two, whose later trials follow from what the first came to."""
    moved = kind == "moved"
    method = {"hypergradient": {"kind": "bilevel", "warmup": 20, "every": 10}} if moved else {}
    width = MOVED if moved else {name: value for name, value in MOVED.items() if name != "moved_by"}
    return {
        "name": kind,
        "task": "uci/digits",
        "network": {"kind": "mlp", "layers": 1 if moved else 2},
        "space": {
            "width.0": width,
            **({} if moved else {"width.1": width}),
            "lr": {"type": "float", "low": 1e-2, "high": 0.5, "log": True},
        },
        "training": {"optimizer": "sgd", "momentum": 0.5, "epochs": 20 if moved else 40, "batch_size": 32},
        "search": {"sampler": {"kind": "tpe", "startup": 4}, "batch": 8, **method},
        "budget": {"trials": trials},
        "resources": {"workers": WORKERS, "lanes": lanes},
        "seed": 3,
    }


@dataclass(kw_only=True)
class Kill:
    """A worker that was stopped, looked at, and killed: what it had, and what was durable then."""

    bundle: Bundle
    starts: dict[int, Start]
    files: set[str]


@dataclass
class Driven:
    """One search on its way, and all that was handed out in it."""

    search: SearchStore
    handed: list[Bundle] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    crew: Any = None

    def engaged(self, crew: Any, lanes: int) -> None:
        """Note what is handed out from now on."""
        real = crew.controller._hand_out

        def hand_out(worker: str) -> Bundle:
            self.handed.append(real(worker))
            return self.handed[-1]

        crew.controller._hand_out, self.crew = hand_out, crew

    def kill(self, lot: random.Random, step: int) -> bool:
        """Kill one of those that train and have come so far, if there is one; whether there was."""
        out = list(self.crew.controller._out.values()) if self.crew else []
        there = self.search.checkpoints()
        far = [each for each in out if there.get((each[0].id, each[0].attempt), 0) >= step]
        if not far:
            return False
        bundle, name, _ = lot.choice(far)
        pid = int(name.rpartition("-")[2])
        try:
            os.kill(pid, signal.SIGSTOP)
            until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TtZX", 5)
        except (ProcessLookupError, FileNotFoundError):
            return False
        place = layout.attempt(self.search.path, bundle.id, bundle.attempt)
        files = {file.name for file in place.iterdir() if file.name.endswith(".arrow")} if place.is_dir() else set()
        self.kills.append(Kill(bundle=bundle, starts=starts_of(self.search), files=files))
        os.kill(pid, signal.SIGKILL)
        return True


def starts_of(search: SearchStore) -> dict[int, Start]:
    """For each trial the checkpoint after the most steps, from the files' names and headers."""
    directory, found = layout.checkpoints(search.path), dict[int, Start]()
    for (bundle_id, attempt), step in search.checkpoints().items():
        start = Start(bundle_id=bundle_id, attempt=attempt, step=step)
        for number in checkpoints.trials_in(directory, start):
            if number not in found or found[number].step < step:
                found[number] = start
    return found


class Yard:
    """Where workers that can be killed at points come from, and what they leave."""

    def __init__(self, path: Path) -> None:
        self.path, self.bench, self.store = path, Bench(), Store(path / "store")
        self.known: dict[str, tuple[Any, ...]] = {}
        self._count = 0

    def ready(self, workers: int = WORKERS + 1) -> None:
        """Have so many wait, so that a killed one is replaced at once."""
        self.bench._idle = [worker for worker in self.bench._idle if worker.alive()]
        while len(self.bench._idle) < workers:
            self.bench.put(Worker.start(1))

    def begun(self, data: dict[str, Any]) -> Driven:
        self.ready()
        self._count += 1
        (self.path / "weights").write_text("")
        document = {"name": data["name"], "labels": {}, "replay": False, "spec": data, "directory": str(self.path)}
        return Driven(self.store.create(f"{data['name']}-{self._count}", document))

    def drive(self, driven: Driven) -> Result:
        return resume(self.store, driven.search.id, bench=self.bench, engaged=driven.engaged)

    def weights(self) -> dict[int, str]:
        """The digest of each trial's last weights: the same however often it came to its end."""
        found: dict[int, str] = {}
        for line in (self.path / "weights").read_text().splitlines():
            number, digest = line.split()
            assert found.setdefault(int(number), digest) == digest, f"trial {number} came to other weights"
        return found

    def truth(self, kind: str) -> tuple[Any, ...]:
        """What comes of a search that nobody disturbs."""
        if kind not in self.known:
            driven = self.begun(spec(kind))
            assert self.drive(driven).state == "complete"
            assert all(bundle.attempt == 0 and bundle.start is None for bundle in driven.handed)
            self.known[kind] = (facts(driven.search), curves(driven.search), self.weights())
            assert len(set(self.known[kind][2].values())) == 12, "the weights tell nothing apart"
        return self.known[kind]


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    made = Yard(tmp_path_factory.mktemp("yard"))
    harmless = dangerous_workers(made.path)
    try:
        with made.bench:
            yield made
    finally:
        harmless()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints come every few steps."""
    monkeypatch.setattr("service.driver.CHECKPOINT_EVERY", 0.03)


def facts(search: SearchStore, but: tuple[int, ...] = ()) -> dict[int, Any]:
    """Every number of every trial that must not depend on who trained it."""
    outcomes = [outcome for outcome in search.outcomes() if outcome.number not in but]
    found = {o.number: (o.ending, o.point, o.rounded, o.value, o.metrics, o.step, o.spent.flops) for o in outcomes}
    assert len(found) == len(outcomes), "a trial was told twice"
    return found


def curves(search: SearchStore) -> dict[tuple[str, int], dict[str, Any]]:
    """What was measured of each trial at each step, once."""
    left_out = ("search_id", "bundle_id", "attempt", "device_seconds", "trial_id")
    rows = search.reports_table().to_pylist()
    found = {
        (row["trial_id"].rpartition("-")[2], row["step"]): {k: v for k, v in row.items() if k not in left_out}
        for row in rows
    }
    assert len(found) == len(rows), "a step is reported twice"
    return found


def outcome_of(search: SearchStore, number: int) -> Outcome:
    (found,) = (outcome for outcome in search.outcomes() if outcome.number == number)
    return found


def disturbed(yard: Yard, kind: str, seed: int, kills: int) -> Driven:
    """A search of which, at moments that nobody chose, so many workers are killed."""
    truth, lot = yard.truth(kind), random.Random(seed)
    driven, over = yard.begun(spec(kind)), threading.Event()

    def killer() -> None:
        while len(driven.kills) < kills and not over.wait(lot.random() * 0.1):
            step = max(0, lot.randrange(-60, STEPS))
            while not over.is_set() and not driven.kill(lot, step):
                time.sleep(0.002)

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        result = yard.drive(driven)
    finally:
        over.set()
        thread.join()
    assert result.state == "complete", result
    assert driven.kills, "nobody was killed"
    assert (facts(driven.search), curves(driven.search), yard.weights()) == truth
    return driven


def losses(search: SearchStore) -> list[tuple[str, int]]:
    return [(e.body["bundle"], e.body["attempt"]) for e in search.log() if e.kind == "failed"]


def goes_on_from_what_was_durable(driven: Driven) -> None:
    """Each trial of a bundle that was lost was handed out next with the last checkpoint that it had, and told so."""
    lost = losses(driven.search)
    places = [(bundle.id, bundle.attempt) for bundle in driven.handed]
    assert len(places) == len(set(places)), "an attempt was handed out twice"
    for kill in driven.kills:
        place = (kill.bundle.id, kill.bundle.attempt)
        if place not in lost:
            continue  # it had said that it is done, or what it was told of was the next
        after = driven.handed[places.index(place) + 1 :]
        for trial in kill.bundle.trials:
            again = next(bundle for bundle in after if trial in bundle.trials)
            assert again.start == kill.starts.get(trial.number)
    closed = driven.search.attempts()
    for bundle in driven.handed:
        if closed.get((bundle.id, bundle.attempt)):
            assert start_of(driven.search._tables((bundle.id, bundle.attempt))) == bundle.start
    assert not driven.search.checkpoints(), "all trials are told"


def keeps_attempts(driven: Driven) -> None:
    """What a killed worker had made durable is there still, beside the attempts that followed."""
    assert driven.search.verify() == []
    for kill in driven.kills:
        place = layout.attempt(driven.search.path, kill.bundle.id, kill.bundle.attempt)
        assert kill.files <= ({file.name for file in place.iterdir()} if place.is_dir() else set())
    lost = losses(driven.search)
    told = driven.search.told()
    assert not [place for place in lost if told.get(place[0]) == place[1]], "an attempt is lost and told"


def leaves_siblings_alone(driven: Driven) -> None:
    """A trial that was in no bundle of a killed worker was handed out once, and told in that attempt."""
    lost = set(losses(driven.search))
    hit = {t.number for b in driven.handed if (b.id, b.attempt) in lost for t in b.trials}
    for outcome in driven.search.outcomes():
        bundles = [b for b in driven.handed if outcome.number in [trial.number for trial in b.trials]]
        assert (bundles[-1].id, bundles[-1].attempt) == (outcome.bundle_id, outcome.attempt)
        if outcome.number not in hit:
            assert len(bundles) == 1
            assert outcome.attempt == 0


SEEDS = [(kind, seed) for seed in range(12) for kind in KINDS]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "seed"), [pytest.param(*case, marks=pytest.mark.long if n else ()) for n, case in enumerate(SEEDS)]
)
def test_killed_at_random_moments(yard: Yard, kind: str, seed: int) -> None:
    driven = disturbed(yard, kind, seed, kills=1 + seed % 3)
    goes_on_from_what_was_durable(driven)
    keeps_attempts(driven)
    leaves_siblings_alone(driven)


@pytest.mark.long
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_checkpoint(yard: Yard, point: str) -> None:
    truth = yard.truth("moved")
    driven = yard.begun(spec("moved"))
    arm(yard.path, point)
    assert yard.drive(driven).state == "complete"
    assert armed(yard.path) == []
    assert fired(yard.path) == [point]
    assert (facts(driven.search), curves(driven.search), yard.weights()) == truth
    assert len(losses(driven.search)) == 1
    leaves_siblings_alone(driven)
    assert any(bundle.start is not None for bundle in driven.handed), "it began at the beginning"
    left = list(layout.checkpoints(driven.search.path).iterdir())
    assert not left, "all trials are told"


@pytest.mark.slow
def test_what_a_worker_closed_before_it_was_lost_counts(store: Store) -> None:
    """It died before it could say so; whoever looked has seen the result by then, and it is not trained again."""
    search = store.create("s", {"name": "s"})
    crew = Crew(controlled(search, budgets=Budgets(trials=4), lanes=2))
    closed = crew.controller.pull("gone", timeout=10)
    assert isinstance(closed, Bundle)
    crew.store(closed, crew.outcomes(closed, "gone"))
    begun = crew.controller.pull("lost", timeout=10)
    assert isinstance(begun, Bundle)
    shown = search.outcomes()
    assert len(shown) == len(closed.trials)
    crew.controller.lost("gone")
    crew.controller.lost("lost")
    assert losses(search) == [(begun.id, 0)]
    crew.run()
    assert [outcome for outcome in search.outcomes() if outcome in shown] == shown
    assert len(final(search)) == 4


def poisoned(yard: Yard, numbers: list[int], data: dict[str, Any]) -> tuple[Driven, Result]:
    driven = yard.begun(data)
    (yard.path / "poison").write_text(json.dumps(numbers))
    try:
        return driven, yard.drive(driven)
    finally:
        (yard.path / "poison").unlink()


@pytest.mark.long
def test_a_trial_that_always_kills_its_worker_ends_as_preempted_and_no_other_does(yard: Yard) -> None:
    deadly = 5
    expected, _, _ = yard.truth("still")
    driven, result = poisoned(yard, [deadly], spec("still", trials=8))
    assert result.state == "complete"
    assert result.progress.endings == {"complete": 7, "preempted": 1}
    found = outcome_of(driven.search, deadly)
    assert found.ending is Ending.PREEMPTED
    assert found.value is None
    assert found.error is not None
    assert found.error.startswith("its worker died 4 times while training it")
    assert "killed by SIGKILL" in found.error
    handed = [len(b.trials) for b in driven.handed if deadly in [trial.number for trial in b.trials]]
    assert handed == [4, 2, 1, 1], "handed out in halves until it is alone"
    lost = losses(driven.search)
    assert len(lost) == len(set(lost)) == 4
    others = {number: fact for number, fact in expected.items() if number < 8 and number != deadly}
    assert facts(driven.search, but=(deadly,)) == others
    keeps_attempts(driven)


@pytest.mark.long
def test_where_every_trial_kills_its_worker_the_search_fails_and_says_why(yard: Yard) -> None:
    driven, result = poisoned(yard, [0, 1], spec("still", trials=2, lanes=1))
    assert result.state == "failed"
    assert result.progress.failure is not None
    assert "of its 2 trials none is complete (2 preempted)" in result.progress.failure
    assert len(losses(driven.search)) == 8, "each was tried four times"
    assert driven.search.log()[-1].body["state"] == "failed"
