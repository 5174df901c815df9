"""A disk of 1 MB that fills up: nothing is acknowledged, reading goes on, and all goes on when there is room again."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_cases import SPEC, run_by_hand
from cli_cases import QUIET
from runner_cases import OBJECTIVE, ROOT, Place, exact, finished, runner, until

from service import driver
from service.board import open_board
from service.driver import Result, resume, run
from service.executors.local import Bench
from service.goal import Edit, change
from service.spec import check
from trials import checkpoints, layout
from trials.records import Ending
from trials.store import SearchStore, Store

PAGE = 4096
PROBLEM = {"type", "title", "status", "code", "detail", "hint", "faults"}


class Disk:
    """A file system of 1 MB."""

    def __init__(self, path: Path) -> None:
        self.path, self._filler = path, path / "filler"

    def room(self) -> int:
        """Bytes that are free."""
        facts = os.statvfs(self.path)
        return facts.f_bavail * facts.f_frsize

    def fill(self, pages: int = 0) -> None:
        """Leave room for so many pages."""
        with self._filler.open("ab", buffering=0) as file:
            while self.room() > pages * PAGE and file.write(b"x" * PAGE):
                pass

    def free(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def whole(search: SearchStore) -> SearchStore:
    """A search whose every file can be read."""
    assert SearchStore(search.id, search.path).verify() == []
    assert not list(search.path.rglob("*.tmp"))
    return search


# -- the API -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def api(disk: Disk, tmp_path: Path) -> Iterator[httpx.Client]:
    """A server in a process of its own, whose store and board lie on the disk."""
    environment = {name: value for name, value in QUIET.items() if not name.startswith("CONTINUA_")}
    environment |= {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    log = tmp_path / "serve.log"
    with log.open("wb") as out:
        argv = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--store", str(disk.path / "store")]
        process = subprocess.Popen(argv, cwd=tmp_path, stdin=subprocess.DEVNULL, stderr=out, env=environment)
    try:
        line = until(lambda: "answers at http" in log.read_text() and log.read_text(), 60, log.read_text)
        token = (tmp_path / "config" / "continua" / "token").read_text().strip()
        url = line.partition("answers at ")[2].split()[0]
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30) as client:
            yield client
    finally:
        process.terminate()
        assert process.wait(60) is not None


def refused(answer: httpx.Response) -> None:
    """An answer that says that the disk is full, as every problem is said."""
    assert answer.status_code == 507, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) == PROBLEM
    assert (problem["code"], problem["status"]) == ("disk-full", 507)
    assert "acknowledged" in problem["hint"]


def code_zip() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("mine.py", os.urandom(4 * PAGE).hex())
    return packed.getvalue()


@pytest.mark.slow
def test_submits_are_refused_reading_goes_on_and_what_was_refused_is_sent_again(api: httpx.Client, disk: Disk) -> None:
    store = Store.open_for_reading(disk.path / "store")
    first = api.post("/v1/searches", json={"spec": SPEC}).json()["search_id"]
    run_by_hand(store.search(first), [(Ending.COMPLETE, 0.5), (Ending.COMPLETE, 0.25), (Ending.NAN, None)])
    waiting = api.post("/v1/searches", json={"spec": SPEC}).json()["search_id"]
    acknowledged = [first, waiting]
    disk.fill(12)
    answers: list[httpx.Response] = []

    def submit(key: str) -> httpx.Response:
        headers = {"Idempotency-Key": key}
        return api.post("/v1/searches", json={"spec": {**SPEC, "name": "x" * 200}}, headers=headers)

    while not answers or answers[-1].status_code == 201:  # to the last byte
        answers.append(submit(f"key-{len(answers)}"))
    last = f"key-{len(answers) - 1}"
    acknowledged += [answer.json()["search_id"] for answer in answers[:-1]]
    disk.fill()
    for answer in (answers[-1], submit(last), submit("another key")):
        refused(answer)
    zipped = code_zip()
    refused(api.put(f"/v1/code/{sha256(zipped).hexdigest()}", content=zipped))
    more = {"verb": "extend", "budget": {"trials": "+4"}}
    for search_id, edit in ((first, more), (waiting, {"verb": "pause"}), (waiting, {"verb": "scale", "workers": 7})):
        refused(api.patch(f"/v1/searches/{search_id}/goal", json=edit))

    assert sorted(path.name for path in (disk.path / "store/searches").iterdir()) == sorted(acknowledged)
    listed = [item["search_id"] for item in api.get("/v1/searches", params={"limit": 100}).json()["items"]]
    assert sorted(listed) == sorted(acknowledged)
    shown = api.get(f"/v1/searches/{first}").json()
    assert (shown["best"]["value"], shown["trials"]) == (0.25, {"complete": 2, "nan": 1})
    assert [api.get(f"/v1/searches/{name}/goal").json()["version"] for name in (first, waiting)] == [0, 0]
    trials = api.get(f"/v1/searches/{first}/trials", headers={"Accept": "application/json"})
    assert [row["value"] for row in trials.json()["items"]] == [0.5, 0.25, None]
    asked = api.post("/v1/query", json={"sql": "SELECT count(*) AS n FROM reports"})
    assert asked.status_code == 200, asked.text
    assert asked.json()["items"] == [{"n": 6}]
    assert "continua_searches" in api.get("/metrics").text
    assert api.get("/healthz").status_code == 200
    ready = api.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "degraded")
    assert "No space left" in ready.json()["checks"]["store"]

    disk.free()
    again = [submit(last), submit(last)]
    assert [answer.json().get("new") for answer in again] == [True, False], again[0].text
    assert again[0].json()["search_id"] == again[1].json()["search_id"] not in acknowledged
    assert api.patch(f"/v1/searches/{first}/goal", json=more).json()["version"] == 1
    assert api.get("/readyz").status_code == 200
    assert len(store.searches()) == len(acknowledged) + 1
    states = {item["state"] for item in api.get("/v1/searches", params={"limit": 100}).json()["items"]}
    assert states == {"queued"}
    for search_id in store.searches():
        whole(store.search(search_id))


# -- a search at work --------------------------------------------------------------------------------------------------


class Driving:
    """A search that is driven in a thread of this process, its workers in processes of their own."""

    def __init__(self, drive: Callable[[], Result]) -> None:
        self.results: list[Result] = []
        self._drive = drive
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.results.append(self._drive())

    def ended(self) -> Result:
        self._thread.join(120)
        (result,) = self.results
        return result


REPORTS = OBJECTIVE.replace(
    "time.sleep(0.1)", "time.sleep(0.05)\n    for step in range(200):\n        trial.report(step, loss=step / 7)"
)


def spec_of(objective: str, trials: int) -> dict[str, Any]:
    return {
        "name": "filling",
        "task": f"filling_objectives:{objective}",
        "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
        "search": {"sampler": "random", "batch": 4},
        "budget": {"trials": trials},
        "resources": {"workers": 1, "lanes": 1},
        "seed": 5,
    }


@pytest.mark.slow
def test_a_worker_that_cannot_write_ends_no_trial_and_the_search_goes_on(disk: Disk, tmp_path: Path) -> None:
    """Decisions are small, what trials report is not: while there is room for those alone, none may end a trial."""
    (tmp_path / "filling_objectives.py").write_text(REPORTS)
    store = Store(disk.path / "store")
    spec, task = check(spec_of("slow", 12), directory=tmp_path)
    bench = Bench()
    driving = Driving(lambda: run(spec, task, store, search_id="s", directory=tmp_path, bench=bench))
    search = until(lambda: "s" in store.searches() and store.search("s"))
    until(lambda: finished(search) >= 3)
    disk.fill(pages=9)
    result = driving.ended()
    assert (result.state, result.progress.unwritable) == ("failed", True)
    assert "No space left" in (result.progress.failure or "")
    told = {o.number: o.value for o in whole(search).outcomes()}
    assert 3 <= len(told) < 12
    assert None not in told.values(), "a trial was given up for the disk's sake"
    assert not [event for event in search.log() if event.kind == "failed"], "nobody is to blame"
    assert search.state() == "interrupted"
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        resume(store, "s", directory=tmp_path)
    with pytest.raises(OSError, match="No space left"):
        change(search, Edit(verb="extend", budget={"trials": "+4"}))
    assert (search.goal_version(), search.state()) == (0, "interrupted")
    disk.free()
    change(search, Edit(verb="extend", budget={"trials": "+4"}))
    with bench:
        assert resume(store, "s", directory=tmp_path, bench=bench).state == "complete"
    exact(whole(search), 16)
    assert told.items() <= {o.number: o.value for o in search.outcomes()}.items()


@pytest.mark.slow
def test_a_checkpoint_that_finds_no_room_costs_nothing_but_itself(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits_spec: Callable[..., dict[str, Any]]
) -> None:
    wide = {f"width.{i}": {"type": "width", "low": 200, "high": 256} for i in range(2)}
    data = digits_spec(budget={"trials": 4}, resources={"workers": 1, "lanes": 4}, search={"sampler": "random"})
    spec, task = check({**data, "space": {**data["space"], **wide}})
    roomy = Store(tmp_path / "roomy")
    assert run(spec, task, roomy, search_id="s", executor="here").state == "complete"
    monkeypatch.setattr(driver, "CHECKPOINT_EVERY", 0.0)
    seen: list[int] = []

    def look(_: object) -> None:
        seen.append(len(list(checkpoints.files(layout.checkpoints(store.search("s").path)))))

    store = Store(disk.path / "store")
    disk.fill(pages=40)
    result = run(spec, task, store, search_id="s", executor="here", watch=look)
    assert result.state == "complete"
    assert set(seen) == {0}, "there was no room for one"
    found = whole(store.search("s"))
    assert found.attempts() == roomy.search("s").attempts(), "nothing was trained twice"
    assert {o.number: o.value for o in found.outcomes()} == {o.number: o.value for o in roomy.search("s").outcomes()}
    assert not list(layout.checkpoints(found.path).iterdir())


class Split(Place):
    """A store on the disk; its board on it too, or beside it."""

    def __init__(self, path: Path, disk: Disk, board: Path) -> None:
        self.path, self.url = path, f"sqlite:///{board / 'board.sqlite'}"
        self.store = Store(disk.path / "store")
        (path / "runner_objectives.py").write_text(OBJECTIVE)
        self.board = open_board(self.url)


@pytest.mark.long
@pytest.mark.parametrize("shared", [True, False], ids=["board on the disk", "board elsewhere"])
def test_a_runner_waits_for_room_and_goes_on_by_itself(disk: Disk, tmp_path: Path, shared: bool) -> None:
    place = Split(tmp_path, disk, disk.path / "store" if shared else tmp_path)
    search = place.submit("slow", trials=30, workers=2)
    try:
        with runner(place, "one") as one:
            until(lambda: finished(search) >= 4)
            disk.fill()
            until(lambda: "No space left" in one.said())
            acknowledged = {o.number: o.value for o in whole(search).outcomes()}
            assert 4 <= len(acknowledged) < 30
            deadline = time.monotonic() + 15  # so long that it is tried again, and again
            while time.monotonic() < deadline:
                assert {o.number: o.value for o in search.outcomes()} == acknowledged
                assert place.board.get(search.id).over == ""
                time.sleep(0.2)
            disk.fill()  # drivers that came and went may have left a page
            with pytest.raises(OSError, match="No space left"):
                change(search, Edit(verb="scale", workers=1))
            disk.free()
            place.edit(search, "scale", workers=1)
            job = place.until(search, "complete")
        assert job.failures == 0
        assert job.progress["endings"] == {"complete": 30}
        exact(whole(search), 30)
        assert acknowledged.items() <= {o.number: o.value for o in search.outcomes()}.items()
    finally:
        place.board.close()
