"""The same seed gives the same trials wherever they train, and whoever is killed: workers, Ray slots, the driver.

What is compared is every number of every trial, to the last bit. Processes are real; this one adopts its orphans
(Linux's subreaper), so that a test that leaves a process behind fails.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.controller import SearchFailed
from service.driver import Result, resume, run
from service.executors import local
from service.executors.local import Bench
from service.executors.worker import Worker
from service.spec import check
from service.summary import summary
from trials.query import query
from trials.records import Ending
from trials.store import Held, SearchStore, Store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LONG = {"optimizer": "sgd", "momentum": 0.5, "epochs": 40}
TPE = {"sampler": {"kind": "tpe", "startup": 6}, "batch": 8}  # asks by what it was told, so a lost outcome would show
SLOW = """
import time

def quick(trial):
    return (trial["x"] - 0.3) ** 2

def objective(trial):
    time.sleep(0.2)
    return quick(trial)
"""


# -- processes ---------------------------------------------------------------------------------------------------------


def descendants() -> dict[int, str]:
    """Living processes that this one, or a process of it, started: pid -> command line."""
    parents, commands = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                commands[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # ended this instant
                continue
            if state not in "ZX":
                parents[int(entry.name)] = int(parent)
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return {pid: commands[pid] for pid in ours - {os.getpid()}}


def gone(before: dict[int, str], patience: float) -> dict[int, str]:
    """What still lives, after some patience, of what was started since `before`."""
    deadline = time.monotonic() + patience
    while (left := {pid: name for pid, name in descendants().items() if pid not in before}) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.05)
    return left


@pytest.fixture(scope="module", autouse=True)
def _adopt_orphans() -> Iterator[None]:
    libc, subreaper = ctypes.CDLL(None, use_errno=True), 36
    assert libc.prctl(subreaper, 1, 0, 0, 0) == 0
    yield
    libc.prctl(subreaper, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def ray_here(_adopt_orphans: None) -> Iterator[None]:
    """Ray for all tests of this module: starting it takes longer than they do."""
    before = descendants()
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()
    assert not gone(before, 20)


@pytest.fixture
def _nothing_left() -> Iterator[None]:
    before = descendants()
    yield
    assert not gone(before, 3)


def until(happened: Callable[[], Any], patience: float = 60.0) -> Any:
    """What `happened` returns once it is true."""
    deadline = time.monotonic() + patience
    while not (found := happened()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return found


# -- searches ----------------------------------------------------------------------------------------------------------


def trials_of(store: Store, search_id: str) -> dict[int, str]:
    """Every fact of a search's trials that must not depend on who trained them, floats with all their digits."""
    outcomes = store.search(search_id).outcomes()
    facts = {
        o.number: repr((str(o.ending), sorted(o.point.items()), sorted(o.rounded.items()), o.value))
        + repr((sorted(o.metrics.items()), o.step, o.spent.flops))
        for o in outcomes
    }
    assert len(facts) == len(outcomes), "a trial was told twice"
    asked = [t["number"] for e in store.search(search_id).log() if e.kind == "asked" for t in e.body["trials"]]
    assert sorted(facts) == sorted(asked) == list(range(len(asked)))
    return facts


def completed(store: Store, result: Result) -> dict[int, str]:
    assert result.state == "complete", result.progress
    facts = trials_of(store, result.search_id)
    shown = query(store, f"SELECT number FROM trials WHERE search_id = '{result.search_id}' AND ending = 'complete'")
    assert shown["number"].to_pylist() == list(range(len(facts)))
    return facts


def searched(store: Store, data: dict[str, Any], executor: str, **more: Any) -> tuple[Result, dict[int, str]]:
    spec, task = check(data, directory=more.get("directory"))
    result = run(spec, task, store, executor=executor, **more)  # type: ignore[arg-type]
    return result, completed(store, result)


@pytest.fixture(scope="module")
def short(digits_spec: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return digits_spec(search=TPE)


@pytest.fixture(scope="module")
def longer(digits_spec: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return digits_spec(search=TPE, training=LONG, budget={"trials": 40})


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], dict[int, str]]:
    """The trials of an undisturbed search in this process."""
    store, known = Store(tmp_path_factory.mktemp("truth")), {}

    def trials(data: dict[str, Any]) -> dict[int, str]:
        key = json.dumps(data)
        if key not in known:
            known[key] = searched(store, data, "here")[1]
        return known[key]

    return trials


@pytest.fixture
def slow(tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """A search over plain Python that sleeps: 8 seconds of one worker's time without taking a core's."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "slow_objective.py").write_text(SLOW)
    spec = {
        "task": "slow_objective:objective",
        "space": {"x": {"type": "float", "low": 0, "high": 1}},
        "search": TPE,
        "budget": {"trials": 40},
        "resources": {"workers": 2, "lanes": 4},
    }
    return spec, tmp_path / "code"


def slow_truth(facts: dict[int, str], search: SearchStore) -> None:
    """Every value follows from its point by the formula, and the best of them lies where the parabola is least."""
    assert len(facts) == 40
    outcomes = search.outcomes()
    assert all(o.value == (float(o.point["x"]) - 0.3) ** 2 for o in outcomes)
    assert min(abs(float(o.point["x"]) - 0.3) for o in outcomes) < 0.1


def workers_of(search: SearchStore) -> dict[str, list[tuple[float, float]]]:
    """When each worker trained: an interval a bundle."""
    bundles: dict[tuple[str, str], list[Any]] = {}
    for o in search.outcomes():
        bundles.setdefault((o.worker, o.bundle_id), []).append(o)
    found: dict[str, list[tuple[float, float]]] = {}
    for (worker, _), members in bundles.items():
        found.setdefault(worker, []).append((min(o.started for o in members), max(o.ended for o in members)))
    return found


def side_by_side(search: SearchStore) -> bool:
    """Whether two processes trained at the same moment."""
    intervals = [(*when, worker.rpartition("-")[2]) for worker, spans in workers_of(search).items() for when in spans]
    return any(a[2] != b[2] and a[0] < b[1] and b[0] < a[1] for a in intervals for b in intervals)


# -- the same trials everywhere ----------------------------------------------------------------------------------------


def test_the_truth_is_a_search_worth_comparing(truth, short):
    facts = truth(short)
    assert len(facts) == 24
    assert len(set(facts.values())) == 24


def test_another_seed_gives_other_trials(truth, short):
    facts, others = truth(short), truth({**short, "seed": 4})
    assert not any(facts[number] == others[number] for number in facts)


@pytest.mark.usefixtures("_nothing_left")
def test_local_workers_change_nothing(store, truth, short):
    with Bench() as bench:
        for workers in (1, 2, 3):
            spec = {**short, "resources": {**short["resources"], "workers": workers}}
            result, facts = searched(store, spec, "local", bench=bench)
            assert facts == truth(short)
            assert 1 <= len(workers_of(store.search(result.search_id))) <= workers
        assert len(descendants()) >= 3  # they wait for another search
    assert not [name for name in descendants().values() if "service.executors.worker" in name]


@pytest.mark.usefixtures("_nothing_left")
def test_local_workers_work_side_by_side(store, slow):
    spec, directory = slow
    result, facts = searched(store, spec, "local", directory=directory)
    search = store.search(result.search_id)
    slow_truth(facts, search)
    assert side_by_side(search)
    assert all(re.fullmatch(r"local-\d+-\d+", worker) for worker in workers_of(search))


@pytest.mark.parametrize(
    "workers", [pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long), 3]
)
def test_ray_changes_nothing(store, truth, short, ray_here, workers):
    spec = {**short, "resources": {**short["resources"], "workers": workers}}
    result, facts = searched(store, spec, "ray")
    assert facts == truth(short)
    assert all(re.fullmatch(r"ray-\d+-\d+", worker) for worker in workers_of(store.search(result.search_id)))


# -- killed workers ----------------------------------------------------------------------------------------------------


def open_attempts(search: SearchStore) -> set[tuple[str, int]]:
    return {place for place, closed in search.attempts().items() if not closed}


def lost_of(search: SearchStore) -> list[dict[str, Any]]:
    return [event.body for event in search.log() if event.kind == "failed" and event.body.get("why") == "lost"]


@pytest.mark.usefixtures("_nothing_left")
def test_killed_local_workers_are_replaced_and_nothing_changes(store, truth, longer):
    """All workers are killed in the middle of bundles, twice; the halves of their bundles train anew."""
    before, killed = descendants(), []

    def kill() -> None:
        search = until(lambda: store.searches() and store.search(store.searches()[0]))
        for _ in range(2):
            until(lambda: open_attempts(search) - {(body["bundle"], body["attempt"]) for body in lost_of(search)})
            for pid, name in descendants().items():
                if pid not in before and "service.executors.worker" in name:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            until(lambda: len(lost_of(search)) > 0)
            time.sleep(0.5)

    killer = threading.Thread(target=kill)
    killer.start()
    result, facts = searched(store, longer, "local")
    killer.join()
    search = store.search(result.search_id)
    assert facts == truth(longer)
    assert len(killed) >= 3
    assert len(lost_of(search)) >= 2
    workers = {int(worker.rpartition("-")[2]) for worker in workers_of(search)}
    assert workers - set(killed), "someone else finished the work"


@pytest.mark.usefixtures("_nothing_left")
def test_a_killed_worker_costs_only_the_steps_since_its_last_checkpoint(store, truth, longer, monkeypatch):
    monkeypatch.setattr("service.driver.CHECKPOINT_EVERY", 0.2)
    moved = {**longer["space"]["width.0"], "moved_by": "gradient"}
    spec = {
        **longer,
        "space": {"width.0": moved, "lr": longer["space"]["lr"]},
        "search": {"sampler": "random", "batch": 4, "hypergradient": {"kind": "bilevel", "warmup": 20, "every": 10}},
        "budget": {"trials": 4},
        "resources": {"workers": 1, "lanes": 4},
    }
    found: dict[str, Any] = {}

    def kill() -> None:
        search = until(lambda: store.searches() and store.search(store.searches()[0]))
        (place, step), *_ = until(lambda: {p: s for p, s in search.checkpoints().items() if s > 100}).items()
        worker = next(pid for pid, name in descendants().items() if "service.executors.worker" in name)
        os.kill(worker, signal.SIGSTOP)
        found.update(place=place, step=max(step, search.checkpoints().get(place, 0)))
        os.kill(worker, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    _, facts = searched(store, spec, "local")
    killer.join()
    search = store.search(store.searches()[0])
    assert facts == truth(spec)
    reports = search.reports_table(every_attempt=True).to_pylist()
    of_first = {r["step"] for r in reports if (r["bundle_id"], r["attempt"]) == found["place"]}
    rest = {r["step"] for r in reports if (r["bundle_id"], r["attempt"]) != found["place"]}
    assert found["step"] > 100
    assert min(of_first) < found["step"] < min(rest), "steps before the checkpoint were run again"
    whole = {(r["trial_id"], r["step"]) for r in search.reports_table().to_pylist()}
    assert {step for _, step in whole} == {r for r in of_first if r <= found["step"]} | rest
    assert not search.checkpoints(), "all trials are told"


@pytest.mark.usefixtures("_nothing_left")
def test_killed_ray_slots_are_replaced_and_nothing_changes(store, slow, ray_here):
    """Both are killed while each has a bundle."""
    spec, directory = slow
    killed: set[int] = set()

    def kill() -> None:
        search = until(lambda: store.searches() and store.search(store.searches()[0]))
        workers = until(lambda: len(found := workers_of(search)) == 2 and found)
        until(lambda: len(open_attempts(search)) == 2)
        for worker in workers:
            killed.add(int(worker.rpartition("-")[2]))
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result, facts = searched(store, spec, "ray", directory=directory)
    killer.join()
    search = store.search(result.search_id)
    slow_truth(facts, search)
    assert side_by_side(search)
    assert len(lost_of(search)) == 2
    pids = {int(worker.rpartition("-")[2]) for worker in workers_of(search)}
    assert killed < pids
    assert {o.ending for o in search.outcomes()} == {Ending.COMPLETE}
    undisturbed = {**spec, "task": "slow_objective:quick"}
    assert facts == searched(store, undisturbed, "here", directory=directory)[1]


@pytest.mark.usefixtures("_nothing_left")
def test_workers_that_cannot_start_end_the_search_with_their_last_words(store, tmp_path):
    code = "import sys\nif 'service.executors.worker' in sys.orig_argv: raise ImportError('no engine here')\n"
    (tmp_path / "broken_here.py").write_text(code + "def objective(trial): return 0.0\n")
    spec = {
        "task": "broken_here:objective",
        "space": {"x": {"type": "float", "low": 0, "high": 1}},
        "budget": {"trials": 4},
        "resources": {"workers": 1},
    }
    parsed, task = check(spec, directory=tmp_path)
    with pytest.raises(SearchFailed, match=r"(?s)no worker process could start.*no engine here"):
        run(parsed, task, store, directory=tmp_path)
    found = summary(store.search(store.searches()[0]))
    assert found["state"] == "failed"
    assert "no engine here" in found["why"]
    assert found["why"].endswith("(exit code 1)")  # it raised, and nothing killed it


@pytest.mark.usefixtures("_nothing_left")
@pytest.mark.parametrize("failures", [3, 10**6], ids=["a while", "for ever"])
def test_processes_that_cannot_be_had_are_tried_again_and_leave_nothing_open(
    store, truth, short, monkeypatch, failures
):
    """One worker is there already, or the machine has no room for any."""
    monkeypatch.setattr(local, "PAUSE", 0.02)
    real, tried = subprocess.Popen, 0

    def scarce(*args, **options):
        nonlocal tried
        tried += 1
        if (failures > 3 or tried > 1) and tried <= 1 + failures:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        return real(*args, **options)

    spec = {**short, "resources": {**short["resources"], "workers": 2}}
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", scarce)
        if failures > 3:
            with pytest.raises(OSError, match=r"no worker process can be had: Resource temporarily unavailable"):
                searched(store, spec, "local")
        else:
            assert searched(store, spec, "local")[1] == truth(short)
    assert tried >= 3
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.usefixtures("_nothing_left")
def test_how_a_worker_ended_is_told_as_it_was():
    """Its pipe may end before it does; and what its driver did to it is no one else's doing."""
    endings = {}
    for blow in (signal.SIGKILL, signal.SIGTERM, signal.SIGRTMIN + 3, None):
        worker = Worker.start(1)
        if blow is not None:
            worker.process.send_signal(blow)
        endings[blow] = worker.end(0.0 if blow is None else 20.0)
    assert endings == {
        signal.SIGKILL: "nothing (killed by SIGKILL, as the kernel does when memory runs out)",
        signal.SIGTERM: "nothing (killed by SIGTERM)",
        signal.SIGRTMIN + 3: f"nothing (killed by signal {signal.SIGRTMIN + 3})",
        None: "nothing (ended by its driver)",
    }


# -- killed drivers ----------------------------------------------------------------------------------------------------

DRIVER = """
import json, sys
from service.driver import resume, run
from service.spec import check
from trials.store import Store

root, executor, search_id, spec = sys.argv[1:]
store = Store(root)
if search_id in store.searches():
    resume(store, search_id, executor=executor)
else:
    run(*check(json.loads(spec)), store, executor=executor, search_id=search_id)
"""


def start_driver(store: Store, executor: str, search_id: str, spec: dict[str, Any]) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", DRIVER, str(store.root), executor, search_id, json.dumps(spec)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def kill_driver(driver: subprocess.Popen[bytes], before: dict[int, str]) -> None:
    """Nobody else is told; whatever the driver started has to notice by itself."""
    assert driver.poll() is None, "the search ended before its driver could be killed"
    driver.kill()
    driver.wait()
    assert not [name for name in gone(before, 20).values() if not re.match(r"ray::\w+Agent", name)]
    assert not gone(before, 120)  # Ray's own agents, which train nothing, wait a minute for their head


def told(search: SearchStore) -> int:
    return sum(len(event.body["numbers"]) for event in search.log() if event.kind == "told")


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param([("local", 6), ("here", 14)], id="twice"),
        pytest.param(
            [("local", 0), ("here", 0), ("local", 9), ("here", 14), ("here", 18), ("local", 24)],
            marks=pytest.mark.long,
            id="often",
        ),
    ],
)
def test_a_killed_driver_is_resumed_as_if_nothing_had_happened(store, truth, longer, moments):
    """Killed while bundles train, once so many trials are told; a driver trains by itself or has workers."""
    before, acknowledged = descendants(), dict[int, str]()
    for executor, moment in moments:
        stale = open_attempts(store.search("killed")) if "killed" in store.searches() else set()
        driver = start_driver(store, executor, "killed", longer)
        search = until(lambda: "killed" in store.searches() and store.search("killed"))
        until(lambda m=moment, old=stale, search=search: told(search) >= m and open_attempts(search) - old)
        driver.send_signal(signal.SIGSTOP)
        with pytest.raises(Held, match=f"process {driver.pid} "):
            search.lease()  # a stopped driver has it still
        kill_driver(driver, before)
        then = {o.number: repr(o) for o in store.search("killed").outcomes()}
        assert acknowledged.items() <= then.items(), "what was acknowledged was lost"
        acknowledged = then
    assert moments[-1][1] <= len(acknowledged) < 40
    result = resume(store, "killed", executor="here")
    facts = completed(store, result)
    assert acknowledged.items() <= {o.number: repr(o) for o in store.search("killed").outcomes()}.items()
    assert facts == truth(longer)
    again = resume(store, "killed", executor="here")  # nothing is left to do
    assert completed(store, again) == facts
    assert Counter(event.kind for event in store.search("killed").log())["asked"] == 5


@pytest.mark.long
def test_a_killed_driver_of_ray_leaves_nothing_behind(store, truth, longer):
    before = descendants()
    driver = start_driver(store, "ray", "killed", longer)
    search = until(lambda: "killed" in store.searches() and store.search("killed"))
    until(lambda: told(search) >= 4)
    kill_driver(driver, before)
    facts = completed(store, resume(store, "killed", executor="here"))
    assert facts == truth(longer)


@pytest.mark.usefixtures("_nothing_left")
@pytest.mark.parametrize("executor", ["here", "local"])
def test_an_interrupted_search_goes_on_where_it_was(store, truth, longer, executor):
    interrupted = threading.Event()

    def watch(progress: Any) -> None:
        if progress.finished >= 8:
            interrupted.set()

    spec, task = check(longer)
    result = run(spec, task, store, executor=executor, watch=watch, interrupted=interrupted)
    assert result.state == "interrupted"
    assert 8 <= result.progress.finished < 40
    facts = completed(store, resume(store, result.search_id, executor="here"))
    assert facts == truth(longer)
