"""What every test of the runner needs: small searches in a store and on a board, and runners as processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from search_spaces.faults import Invalid
from service.board import Board, Job, open_board
from service.board.rebuild import mirrored
from service.goal import Edit, change
from service.runner.work import work
from trials.store import SearchStore, Store

ROOT = Path(__file__).parents[2]
OBJECTIVE = """
import time

def quick(trial):
    return (trial["x"] - 0.3) ** 2

def slow(trial):
    time.sleep(0.1)
    return quick(trial)

def blocked(trial):
    time.sleep(3600)

"""


class Place:
    """A store, its board, and a directory with objectives."""

    def __init__(self, path: Path) -> None:
        self.path, self.url = path, f"sqlite:///{path / 'store' / 'board.sqlite'}"
        self.store = Store(path / "store")
        (path / "runner_objectives.py").write_text(OBJECTIVE)
        self.board: Board = open_board(self.url)

    def submit(
        self,
        name: str,
        objective: str = "slow",
        trials: int = 8,
        workers: int = 1,
        task: str | None = None,
        **document: Any,
    ) -> SearchStore:
        """A search of a plain objective, in the store and on the board."""
        spec = {
            "name": name,
            "task": task or f"runner_objectives:{objective}",
            "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
            "search": {"sampler": "random", "batch": 4},
            "budget": {"trials": trials},
            "resources": {"workers": workers, "lanes": 1},
            "seed": 5,
        }
        return self.submit_spec(name, spec, document, workers=workers)

    def submit_spec(
        self,
        name: str,
        spec: Mapping[str, Any],
        more: Mapping[str, Any] | None = None,
        *,
        posted: bool = True,
        workers: int = 1,
        **job: Any,
    ) -> SearchStore:
        """Any spec; `more` of the document, and of the job."""
        document = {"name": name, "labels": {}, "replay": False, "spec": spec, "directory": str(self.path)}
        document |= {"code": None, "requirements": [], "submitted": True}
        search = self.store.create(name, {**document, **(more or {})})
        if posted:
            self.board.post(Job(id=name, name=name, workers=workers, **job))
        return search

    def edit(self, search: SearchStore, verb: str, **values: Any) -> None:
        """A change of the goal, in the store and on the board."""
        goal = change(search, Edit(verb=verb, **values), by="ada")
        self.board.control(search.id, **mirrored(goal))

    def status(self, search: SearchStore) -> str:
        return self.board.get(search.id).status

    def until(self, search: SearchStore, *statuses: str, patience: float = 150.0) -> Job:
        """The job once it is in one of those states."""

        def there() -> Job | None:
            job = self.board.get(search.id)
            return job if job.status in statuses else None

        return until(there, patience, lambda: f"{search.id} is {self.board.get(search.id)}")


class RunnerProcess:
    """`work` in a process of its own, at the head of a process group."""

    def __init__(self, place: Place, name: str, **options: Any) -> None:
        argv = [sys.executable, __file__, str(place.store.root), place.url, name, repr(options)]
        self.log = place.path / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )

    def said(self) -> str:
        return self.log.read_text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, patience: float = 30.0) -> int:
        return self.process.wait(patience)


@contextlib.contextmanager
def runner(place: Place, name: str = "one", **options: Any) -> Iterator[RunnerProcess]:
    """A runner for the length of a test."""
    made = RunnerProcess(place, name, **{"ttl": 3.0, "searches": 4, **options})
    try:
        yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            made.send(signal.SIGCONT)
        made.process.terminate()
        try:
            made.process.wait(30)
        finally:
            made.process.kill()
            made.process.wait()


def until(happened: Callable[[], Any], patience: float = 150.0, what: Callable[[], str] = lambda: "") -> Any:
    """What `happened` returns once it is true."""
    deadline = time.monotonic() + patience
    while not (found := happened()):
        assert time.monotonic() < deadline, f"waited in vain: {what()}"
        time.sleep(0.01)
    return found


def finished(search: SearchStore) -> int:
    """Trials that were told."""
    return sum(len(event.body["numbers"]) for event in search.log() if event.kind == "told")


def exact(search: SearchStore, trials: int) -> None:
    """Every trial was told once, its value follows from its point, and no other was asked."""
    asked = [trial["number"] for e in search.log() if e.kind == "asked" for trial in e.body["trials"]]
    told = [number for e in search.log() if e.kind == "told" for number in e.body["numbers"]]
    assert asked == list(range(trials))
    assert sorted(told) == asked, "a trial was lost, or told twice"
    outcomes = search.outcomes()
    assert [o.number for o in sorted(outcomes, key=lambda o: o.number)] == asked
    assert all(o.value == (float(o.point["x"]) - 0.3) ** 2 for o in outcomes)


def offspring(parent: int) -> list[int]:
    """Living processes that it started, and theirs."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # ended this instant
            if entry.name.isdecimal() and alive(int(entry.name)):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = {parent}
    while more := {pid for pid, above in parents.items() if above in found} - found:
        found |= more
    return sorted(found - {parent})


def alive(pid: int) -> bool:
    """Whether it runs; one that is dead and not yet buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


if __name__ == "__main__":
    import ast

    root, url, own_name, options = sys.argv[1:]
    try:
        work(store=root, board=url, name=own_name, **ast.literal_eval(options))
    except Invalid as error:
        sys.exit(str(error))
