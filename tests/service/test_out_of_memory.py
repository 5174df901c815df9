"""Memory that runs out in real workers under a limit of their own: typed, tried again in halves, never without end."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service import driver, preparing
from service.controller import MAX_RETRIES
from service.driver import run
from service.executors.local import Bench
from service.executors.worker import Worker
from service.planning import plan_of
from service.spec import check
from trials import calibrate
from trials.records import Ending, Outcome
from trials.store import SearchStore, Store

MB = 2**20
ROOM = 700 * MB  # beside what a worker takes that has trained
OBJECTIVE = """
import torch

def modest(trial):
    return trial["x"]

def greedy(trial):
    hoard = []
    while trial.number == 1:
        hoard.append(bytearray(1 << 22))
    while trial.number == 2:
        hoard.append(bytes(400))  # to the last few bytes
    if trial.number == 3:
        torch.ones(1 << 40)
    return trial["x"]
"""


def net_of(width: int, trials: int, **resources: Any) -> dict[str, Any]:
    """A search over networks that are large and soon trained."""
    sizes = {f"width.{i}": {"type": "width", "low": width - 8, "high": width} for i in range(2)}
    return {
        "name": "large",
        "task": "uci/iris",
        "network": {"kind": "mlp", "layers": 2},
        "space": {**sizes, "lr": {"type": "float", "low": 0.01, "high": 0.1, "log": True}},
        "training": {"optimizer": "sgd", "batch_size": 64, "epochs": 1},
        "search": {"sampler": "random", "batch": trials},
        "budget": {"trials": trials},
        "resources": {"workers": 1, "lanes": trials, **resources},
        "seed": 3,
    }


PLAIN = {
    "name": "greedy",
    "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
    "search": {"sampler": "random", "batch": 4},
    "budget": {"trials": 4},
    "resources": {"workers": 1, "lanes": 4},
}


def taken(data: dict[str, Any], directory: Path) -> int:
    """Bytes of addresses that a worker takes that has done a search."""
    spec, task = check(data, directory=directory)
    with Bench() as bench:
        run(spec, task, Store(directory / "small"), directory=directory, bench=bench)
        worker = bench.take(1, str(directory))
        bench.put(worker)
        lines = Path(f"/proc/{worker.process.pid}/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmPeak"))
    return peak


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> int:
    """The same of one that has trained something small."""
    return taken(net_of(16, 2), tmp_path_factory.mktemp("small"))


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[Worker]]:
    """Gives every worker that starts from now on so many bytes; returns those that did."""

    def limited(most: int) -> list[Worker]:
        started: list[Worker] = []
        start = Worker.start

        def with_limit(threads: int) -> Worker:
            started.append(worker := start(threads))
            resource.prlimit(worker.process.pid, resource.RLIMIT_AS, (most, most))
            return worker

        monkeypatch.setattr(Worker, "start", with_limit)
        return started

    return limited


Limit = Callable[[int], list[Worker]]


def tries(search: SearchStore) -> Counter[int]:
    """How often each trial was trained."""
    return Counter(o.number for place in search.attempts() for o in search.attempt_outcomes(*place))


def together(search: SearchStore, *endings: Ending) -> list[int]:
    """How many trials each attempt had that ended so."""
    attempts = [search.attempt_outcomes(*place) for place in search.attempts()]
    return sorted((len(found) for found in attempts if {o.ending for o in found} <= set(endings)), reverse=True)


def by_number(search: SearchStore) -> dict[int, Outcome]:
    found = {outcome.number: outcome for outcome in search.outcomes()}
    assert len(found) == len(search.outcomes())
    return found


@pytest.mark.slow
def test_an_objective_that_takes_all_memory_ends_its_own_trial_alone(
    store: Store, tmp_path: Path, limit: Limit
) -> None:
    (tmp_path / "greedy_objective.py").write_text(OBJECTIVE)
    workers = limit(taken({**PLAIN, "task": "greedy_objective:modest"}, tmp_path) + 300 * MB)
    spec, task = check({**PLAIN, "task": "greedy_objective:greedy"}, directory=tmp_path)
    result = run(spec, task, store, search_id="s", directory=tmp_path)
    assert (result.state, result.progress.endings) == ("complete", {"complete": 1, "oom": 3})
    search = store.search("s")
    outcomes = by_number(search)
    for number, outcome in outcomes.items():
        assert outcome.ending is (Ending.OOM if number else Ending.COMPLETE)
        assert (outcome.value == outcome.point["x"]) is (outcome.ending is Ending.COMPLETE)
        assert ("memory" in (outcome.error or "").splitlines()[-1].lower()) if number else outcome.error is None
    assert tries(search) == {0: 1, **dict.fromkeys((1, 2, 3), MAX_RETRIES + 1)}
    assert len(workers) == 1, "no worker died of it"


@pytest.mark.long
def test_a_bundle_that_is_too_large_is_halved_until_it_fits(store: Store, trained: int, limit: Limit) -> None:
    limit(trained + ROOM)
    spec, task = check(net_of(2500, 4))
    result = run(spec, task, store, search_id="s")
    search = store.search("s")
    assert (result.state, result.lanes, result.progress.endings) == ("complete", 4, {"complete": 4})
    lost, done = together(search, Ending.OOM), together(search, Ending.COMPLETE)
    assert lost[0] == 4, "it was too large as a whole"
    assert max(done) < 4
    assert sum(done) == 4
    assert max(tries(search).values()) <= 3
    values = {number: outcome.value for number, outcome in by_number(search).items()}
    run(spec, task, store, search_id="roomy", executor="here")
    assert values == {number: outcome.value for number, outcome in by_number(store.search("roomy")).items()}


@pytest.mark.long
def test_a_lane_that_does_not_fit_alone_fails_and_says_so(store: Store, trained: int, limit: Limit) -> None:
    limit(trained + ROOM)
    spec, task = check(net_of(10_000, 2))
    result = run(spec, task, store, search_id="s")
    search = store.search("s")
    assert (result.state, result.progress.endings) == ("failed", {"oom": 2})
    assert "none is complete (2 oom)" in (result.progress.failure or "")
    assert "allocate" in (result.progress.failure or "")
    assert together(search, Ending.OOM)[0] == 2
    assert set(tries(search).values()) == {MAX_RETRIES + 1}


@pytest.mark.parametrize(("workers", "used"), [(1, 8), (2, 4), (3, 2), (64, 1)])
def test_workers_of_one_machine_share_its_memory(
    store: Store, monkeypatch: pytest.MonkeyPatch, workers: int, used: int
) -> None:
    spec, task = check(net_of(16, 64, workers=workers, lanes=64))
    plan = plan_of(spec, task)
    lane = calibrate._memory(plan, calibrate._points(plan, 1)[:1])
    monkeypatch.setattr(calibrate, "free_memory", lambda _: 8.5 * lane / calibrate.MEMORY_SHARE)
    seen: list[int] = []

    def crew(*_: Any) -> Any:
        raise OSError("far enough")

    def look(*facts: Any, lanes: Callable[..., Any] = preparing._lanes) -> Any:
        seen.append((found := lanes(*facts))[0])
        return found

    monkeypatch.setattr(driver, "_crew", crew)
    monkeypatch.setattr(preparing, "_lanes", look)
    for executor in ("local", "ray", "here"):
        with pytest.raises(OSError, match="far enough"):
            run(spec, task, store, executor=executor)  # type: ignore[arg-type]
    assert seen == [used, 8, 8], "on a cluster each may have a machine of its own"
