"""A service of processes that die and are started again, and a customer who remembers each answer that it got.

`Service` is an API, a runner with its drivers and workers, and a board; `Customer` submits one search whose objective
writes into a file of its own whatever it evaluates, and in the end holds the service to all that it ever said.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crash_points
import httpx
from board_cases import RedisServer
from nursery import Nursery
from runner_cases import alive, offspring, until

from service.access import add
from service.board import open_board
from service.code import packed
from service.runner.fence import DRIVE
from trials.records import Outcome
from trials.store import SearchStore, Store

OBJECTIVE = """
import os, time

def note(*words):
    handle = os.open({oracle!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, (" ".join(map(str, words)) + chr(10)).encode())
    os.fsync(handle)
    os.close(handle)

def objective(trial):
    note("began", trial.number, repr(trial["x"]))
    time.sleep({seconds})
    value = (trial["x"] - 0.3) ** 2
    note("ended", trial.number, repr(trial["x"]), repr(value))
    return value
"""
TRIALS, MORE, LANES = 12, 4, 2
PATIENCE = 120.0  # seconds; what is waited for takes a tenth of that


def spec(name: str, trials: int = TRIALS) -> dict[str, Any]:
    """Each generation's points follow from what the one before the last came to."""
    return {
        "name": name,
        "task": "killed_objective:objective",
        "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
        "search": {"sampler": {"kind": "tpe", "startup": 4}, "batch": 4},
        "budget": {"trials": trials},
        "resources": {"workers": 1, "lanes": LANES},
        "seed": 5,
    }


def objective_in(directory: Path, oracle: Path, seconds: float) -> Path:
    """A new directory with the objective, which writes into `oracle`."""
    directory.mkdir()
    (directory / "killed_objective.py").write_text(OBJECTIVE.format(oracle=str(oracle), seconds=seconds))
    return directory


class Service:
    """An API and a runner as processes, each started again when it is found dead. `executor` is its drivers'."""

    def __init__(self, path: Path, executor: str, server: RedisServer | None = None) -> None:
        self.path, self.executor, self.server = path, executor, server
        self.store = Store(path / "store")
        self.board_url = server.url if server else f"sqlite://{path / 'store' / 'board.sqlite'}"
        token = add("ada", "submit", path=path / "tokens.json")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}/v1", headers={"Authorization": f"Bearer {token}"}, timeout=30
        )
        # `fence` knows a driver by the name of its module among its words
        self.nursery = Nursery.started(path / "nursery.log", crash_points.__file__, DRIVE)
        self.processes: dict[str, int] = {}

    def watch(self) -> None:
        """Start again what is dead; but not the API while the runner is to die of what that left undone."""
        for role, more in (
            ("api", (str(self.port), str(self.path / "tokens.json"))),
            ("work", ("runner", self.executor)),
        ):
            process = self.processes.get(role)
            waits = role == "api" and crash_points.found_down(self.path)
            if process is None or not (alive(process) or waits):
                self.processes[role] = self._start(role, *more)

    def _start(self, role: str, *more: str) -> int:
        words = [role, str(self.path), str(self.store.root), self.board_url, *more]
        with open(os.devnull) as nothing, (self.path / f"{role}.log").open("ab") as log:
            return self.nursery.born(words, [nothing.fileno(), log.fileno(), log.fileno()])

    def kill_all(self) -> None:
        """Everything at once: the API, the runner, its drivers, their workers, and a board with all that it knew."""
        everybody = [*self.processes.values()]
        everybody += [pid for parent in everybody for pid in offspring(parent)]
        for pid in everybody:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.server is not None:
            self.server.kill()
        until(lambda: not any(alive(pid) for pid in everybody), 20)
        if self.server is not None:
            self.server.start()

    def get(self, path: str, **facts: Any) -> Any:
        """An answer, however often it takes."""
        return self.insist(lambda: self.http.get(path, **facts)).json()

    def insist(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """The first answer that comes whole."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self.watch()
            try:
                answer = send()
            except httpx.TransportError:
                assert time.monotonic() < deadline, self.said()
                time.sleep(0.05)
                continue
            assert answer.status_code < 500, answer.text
            return answer

    def said(self) -> str:
        """What its programs said."""
        logs = [self.path / "api.log", self.path / "work.log", *self.store.root.glob("searches/*/driver.log")]
        return "\n".join(f"{log}:\n{log.read_text()[-3000:]}" for log in logs if log.exists())

    def close(self) -> None:
        """End everything, the friendly way."""
        everybody = [pid for parent in self.processes.values() for pid in (parent, *offspring(parent))]
        try:
            for process in self.processes.values():
                os.kill(process, signal.SIGTERM)
            until(lambda: not any(alive(pid) for pid in everybody), 30, self.said)
        finally:
            for pid in filter(alive, everybody):
                os.kill(pid, signal.SIGKILL)
            self.nursery.close()
            self.http.close()


@contextlib.contextmanager
def service_at(path: Path, executor: str, server: RedisServer | None = None) -> Iterator[Service]:
    made = Service(path, executor, server)
    try:
        made.watch()
        yield made
    finally:
        made.close()


class Customer:
    """One who has one search made, and forgets no answer: `acknowledged` by key, goals by version, trials by number."""

    def __init__(self, service: Service, name: str, *, trials: int = TRIALS, seconds: float = 0.1) -> None:
        self.service, self.name, self.trials = service, name, trials
        self.oracle = service.path / f"{name}.oracle"
        self.code = packed(objective_in(service.path / f"{name}.code", self.oracle, seconds))
        self.search_id = ""
        self.goals: dict[int, dict[str, Any]] = {}
        self.seen: dict[int, dict[str, Any]] = {}

    # -- what it asks for ----------------------------------------------------------------------------------------------

    def submit(self) -> None:
        """Until it is acknowledged; and once more, as one does who did not hear the answer."""
        http, sha = self.service.http, self.code.sha256
        zipped = {"Content-Type": "application/zip"}
        kept = self.service.insist(lambda: http.put(f"/code/{sha}", content=self.code.payload, headers=zipped))
        assert kept.status_code == 201, kept.text
        body, key = {"spec": spec(self.name, self.trials), "code": sha}, {"Idempotency-Key": f"key of {self.name}"}
        answers = [self.service.insist(lambda: http.post("/searches", json=body, headers=key)) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [201, 201], answers[0].text
        self.search_id, again = (answer.json()["search_id"] for answer in answers)
        assert again == self.search_id

    def edit(self, **edit: Any) -> None:
        """A change of the version that it knows, until it is acknowledged or seen to be durable."""
        path = f"/searches/{self.search_id}/goal"
        known = self.service.get(path)["version"]
        match = {"If-Match": f'"{known}"'}
        answer = self.service.insist(lambda: self.service.http.patch(path, json=edit, headers=match))
        if answer.status_code != 202:  # the one of which no answer came was durable
            assert answer.json()["code"] == "goal-changed", answer.text
            answer = self.service.insist(lambda: self.service.http.get(path))
        goal = answer.json()
        assert (goal["version"], goal["verb"]) == (known + 1, edit["verb"])
        self.goals[goal["version"]] = goal

    def extend(self, more: int = MORE) -> None:
        """So many trials more."""
        self.edit(verb="extend", budget={"trials": f"+{more}"})
        self.trials += more

    def look(self) -> int:
        """How many trials the API shows to have ended; none is gone, none is another than it was."""
        rows = self.service.get(f"/searches/{self.search_id}/trials", params={"limit": 1000})["items"]
        ended = {row["number"]: row for row in rows if row["ending"] not in (None, "running")}
        assert len(ended) == len([row for row in rows if row["number"] in ended]), "a trial has two rows"
        kept = ("value", "ending", "point", "attempt", "bundle_id", "device_seconds")
        for number, before in self.seen.items():
            assert number in ended, f"trial {number} was shown, and is gone"
            assert {name: ended[number][name] for name in kept} == before
        self.seen = {number: {name: row[name] for name in kept} for number, row in ended.items()}
        return len(ended)

    def until(self, *states: str) -> dict[str, Any]:
        """The search in one of those states, having looked all the time."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self.look()
            found: dict[str, Any] = self.service.get(f"/searches/{self.search_id}")
            if found["state"] in states:
                return found
            assert time.monotonic() < deadline, f"is {found}\n{self.service.said()}"
            time.sleep(0.1)

    def until_ended(self, trials: int) -> None:
        """So many trials have ended."""
        until(lambda: self.look() >= trials, PATIENCE, self.service.said)

    # -- what it holds the service to ----------------------------------------------------------------------------------

    def verify(self, points: dict[int, float]) -> None:
        """All is there, once; the trials have the `points` that an undisturbed search has."""
        found = self.until("complete", "failed")
        assert found["state"] == "complete", found["why"]
        search = self.service.store.search(self.search_id)
        self._exists_once(search)
        outcomes = self._trials_are_exact(search, points)
        assert set(self.seen) == set(range(self.trials)), "the API does not show every trial"
        best = min(outcomes, key=lambda outcome: (outcome.value, outcome.number))
        assert found["best"]["trial"] == best.number
        assert best.value == min(float(words[3]) for words in self.evaluations("ended"))
        assert found["trials"]["complete"] == self.trials
        spent = sum(outcome.spent.device_s for outcome in outcomes)
        assert math.isclose(found["spent"]["device_seconds"], spent, rel_tol=1e-9)
        self._board_knows(spent)
        assert search.verify() == []
        assert (left := crash_points.armed(self.service.path)) == [], f"nobody came to {left}"

    def _exists_once(self, search: SearchStore) -> None:
        listed = self.service.get("/searches", params={"name": self.name})["items"]
        assert [row["search_id"] for row in listed] == [self.search_id]
        there = [name for name in self.service.store.searches() if name.rpartition("-")[0] == self.name]
        assert there == [self.search_id]
        goals = {goal.version: goal.to_dict() for goal in search.goals()}
        assert list(goals) == list(range(1, len(goals) + 1))
        for version, goal in self.goals.items():
            assert goals[version] == {name: goal[name] for name in goals[version]}
        assert len(goals) == len(self.goals), "a change took effect twice"

    def _trials_are_exact(self, search: SearchStore, points: dict[int, float]) -> list[Outcome]:
        events = search.log()
        asked = [trial for event in events if event.kind == "asked" for trial in event.body["trials"]]
        assert [trial["number"] for trial in asked] == list(range(self.trials)), "asked are others than the budget's"
        assert {trial["number"]: trial["point"]["x"] for trial in asked} == points
        told = sorted(number for event in events if event.kind == "told" for number in event.body["numbers"])
        assert told == list(range(self.trials)), "a trial was lost, or told twice"
        outcomes = sorted(search.outcomes(), key=lambda outcome: outcome.number)
        assert [outcome.number for outcome in outcomes] == told
        evaluated = {int(words[1]): (float(words[2]), float(words[3])) for words in self.evaluations("ended")}
        assert {o.number: (o.point["x"], o.value) for o in outcomes} == evaluated
        for outcome in outcomes:
            shown = self.seen[outcome.number]
            assert (shown["value"], shown["attempt"]) == (outcome.value, outcome.attempt)
            assert json.loads(shown["point"]) == outcome.point
        return outcomes

    def _board_knows(self, spent: float) -> None:
        """The board too comes to say that it is complete, under the last goal, and nobody holds it."""
        with contextlib.closing(open_board(self.service.board_url)) as board:

            def settled() -> bool:
                self.service.watch()
                job = board.get(self.search_id)
                return not job.leased and job.status == "complete"

            until(settled, PATIENCE, lambda: f"{board.get(self.search_id)}\n{self.service.said()}")
            job = board.get(self.search_id)
            assert (job.goal, job.why) == (max(self.goals, default=0), "")
            if job.progress:
                assert (job.progress["finished"], job.progress["asked"]) == (self.trials, self.trials)
                assert math.isclose(job.progress["spent"]["device_seconds"], spent, rel_tol=1e-9)

    def evaluations(self, kind: str) -> list[list[str]]:
        """What the objective wrote: `began NUMBER X` and `ended NUMBER X VALUE`."""
        lines = [line.split() for line in self.oracle.read_text().splitlines()]
        return [words for words in lines if words[0] == kind]
