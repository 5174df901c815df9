"""`continua up` as a user meets it: a real service on this machine, and the program against it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_cases import OBJECTIVE, QUIET, failing, strict

from service.cli import main
from service.client import AsyncClient, Client
from service.client.errors import Conflict

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]  # a whole service of several processes
PATIENCE = 240.0  # seconds; an upper guard, for machines that do much else
ROOT = Path(__file__).parents[2]
MORE = ("--allow-host", "searches.example.org", "--quota", "nobody=1")


class Service:
    """A running `continua up`, its store, and the directory of the user's code."""

    def __init__(self, home: Path) -> None:
        self.home, self.store, self.code = home, home / "store", home / "code"
        self.code.mkdir()
        body = "    time.sleep(0.05)\n    return (trial.point['x'] - 0.5) ** 2\n"
        (self.code / "sleeper.py").write_text(
            f"import time\n\ndef objective(trial):\n{body}\ndef broken(trial):\n    raise RuntimeError('no luck')\n"
        )
        self.spec = home / "sleeper.yaml"
        self.spec.write_text(OBJECTIVE.replace("mine", "sleeper"))
        self.environment = {
            **{name: value for name, value in QUIET.items() if not name.startswith("CONTINUA_")},
            "PYTHONPATH": str(ROOT),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "CONTINUA_STORE": str(self.store),
        }
        self.log = home / "up.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "up", "--port", "0", "--searches", "2", *MORE],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
            )
        try:
            until(self._is_up)
        except BaseException:
            self.end()
            raise
        self.url = json.loads((self.store / "server.json").read_text())["url"]

    def _is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return "continua is up" in self.log.read_text()

    def children(self) -> list[int]:
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(word) for word in text.split()]

    def end(self) -> int:
        """SIGTERM and time to end in order; its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()


def until(check: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("service"))
    try:
        yield running
    finally:
        running.end()


@pytest.fixture(autouse=True)
def ours(service: Service, alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of the service's user."""
    for name in ("XDG_CONFIG_HOME", "CONTINUA_STORE"):
        monkeypatch.setenv(name, service.environment[name])


Run = Callable[..., Any]


@pytest.fixture
def run(service: Service, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command against the service, and read the JSON that it prints."""

    def command(*words: str, code: int = 0, output: str = "json") -> Any:
        capsys.readouterr()
        assert main([*words, "-o", output]) == code, capsys.readouterr().err
        out = capsys.readouterr().out
        if output == "jsonl":
            return [strict(line) for line in out.splitlines()]
        assert out.count("\n") == 1
        return strict(out)

    return command


def submitting(service: Service, *more: str) -> list[str]:
    return ["submit", str(service.spec), "--code", str(service.code), *more]


def test_a_search_is_submitted_waited_for_and_looked_at(service: Service, run: Run) -> None:
    found = run(*submitting(service, "--wait", "--set", "resources.workers=2"))
    assert (found["state"], found["trials"], found["name"]) == ("complete", {"complete": 6}, "sleeper")
    search, at = found["search_id"], ("--url", service.url)
    assert run("show", search, *at)["best"] == found["best"]
    (row,) = [row for row in run("list", *at) if row["search_id"] == search]
    assert (row["state"], row["trials"], row["complete"]) == ("complete", 6, 6)
    sql = f"SELECT number, value FROM trials WHERE search_id = '{search}' ORDER BY number"
    assert run("query", sql, *at) == run("query", sql)
    assert run("best", search[:-2], *at) == run("best", search)
    shown = run("show", search)
    assert set(found) <= set(shown) == set(run("show", search, *at))
    assert {key: shown[key] for key in ("submitter", "wanted", "metric", "mode", "damaged")} == {
        key: run("show", search, *at)[key] for key in ("submitter", "wanted", "metric", "mode", "damaged")
    }
    assert {row["search_id"]: row for row in run("list")}[search] == row
    assert {key: shown[key] for key in ("state", "trials", "best", "spent")} == {
        key: found[key] for key in ("state", "trials", "best", "spent")
    }
    events = run("watch", search, *at, output="jsonl")
    assert events[-1]["event"] == "end"
    assert [event["data"]["state"] for event in events if event["event"] == "state"][-1] == "complete"
    with Client(service.url) as client:
        assert client.search(search).trials()["ending"].to_pylist() == ["complete"] * 6


def test_of_two_editors_of_one_version_one_is_told_so(
    service: Service, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ("--url", service.url)
    search = run(*submitting(service, "--set", "budget.trials=5000", "--priority", "1"))["search_id"]
    assert run("scale", search, "--workers", "3", "--if-version", "0", *at)["version"] == 1
    assert main(["prioritise", search, "--priority", "5", "--if-version", "0", *at]) == 5
    assert "is at version 1, but the edit was made for 0" in capsys.readouterr().err
    with Client(service.url) as client, pytest.raises(Conflict, match="made for 0"):
        client.search(search).edit("cancel", if_version=0)
    assert main(["cancel", search, "--if-version", "0"]) == 5, "the same without a service, on the store"
    assert run("cancel", search, "--if-version", "1", *at)["state"] == "cancel"


def test_the_asynchronous_client_does_the_same(service: Service, run: Run) -> None:
    async def go() -> tuple[str, list[str], int]:
        async with AsyncClient(service.url) as client:
            search = await client.submit(service.spec, code=service.code)
            kinds = [event.kind async for event in search.watch()]
            ended = await search.wait(timeout=PATIENCE)
            rows = await client.query(f"SELECT count(*) AS n FROM trials WHERE search_id = '{search.id}'")
            assert [found.id async for found in client.searches(name="sleep", state=["complete"])].count(search.id) == 1
            assert (await (await client.search(search.id)).best())["value"] < 1
            return ended.state, kinds, rows["n"].to_pylist()[0]

    state, kinds, trials = asyncio.run(go())
    assert (state, kinds[-1], trials) == ("complete", "end", 6)
    assert {"asked", "told", "state"} <= set(kinds)


def test_it_goes_by_the_names_that_it_is_told(service: Service) -> None:
    for host, status in (("searches.example.org", 200), ("other.example.org", 421)):
        assert httpx.get(f"{service.url}/healthz", headers={"Host": host}).status_code == status


@pytest.mark.long
def test_a_search_is_paused_scaled_resumed_and_extended(service: Service, run: Run) -> None:
    at = ("--url", service.url)
    search = run(*submitting(service, "--set", "budget.trials=400", "--set", "search.batch=8"))["search_id"]
    until(lambda: run("show", search, *at)["trials"].get("complete", 0) >= 4)
    assert run("scale", search, "--workers", "2", *at)["workers"] == 2
    assert run("pause", search, *at)["state"] == "pause"
    until(lambda: run("show", search, *at)["state"] == "paused")
    before = run("show", search, *at)["trials"]["complete"]
    assert before < 400
    assert run("narrow", search, "--space", _file(service, "x: {low: 0.0}"), *at)["space"]["x"]["low"] == 0.0
    assert run("resume", search, *at)["state"] == "run"
    until(lambda: run("show", search, *at)["trials"]["complete"] > before)
    run("stop", search, *at)
    until(lambda: run("show", search, *at)["state"] == "stopped")
    stopped = run("show", search, *at)["trials"]["complete"]
    small = run(*submitting(service, "--wait", "--set", "budget.trials=2"))
    extended = run("extend", small["search_id"], "--trials", "+3", *at)
    assert extended["budget"]["trials"] == 5
    ended = run("watch", small["search_id"], "-q", *at)
    assert (ended["state"], ended["trials"]) == ("complete", {"complete": 5})
    assert run("show", search, *at)["trials"]["complete"] == stopped
    assert run("cancel", search)["state"] == "cancel"  # on the store itself, which tells the board
    until(lambda: run("show", search, *at)["state"] == "cancelled")


def _file(service: Service, text: str) -> str:
    path = service.home / "narrow.yaml"
    path.write_text(text)
    return str(path)


def test_a_search_that_fails_exits_6_and_one_that_takes_too_long_7(
    service: Service, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(*submitting(service, "--watch", "--set", "task=sleeper:broken"), code=6)
    assert (found["state"], found["trials"]) == ("failed", {"error": 6})
    more = ["--set", "budget.trials=2000", "--wait", "--timeout", "0.5"]
    (error,) = failing(submitting(service, *more), 7, capsys)
    search = error.removeprefix("error: search ").partition(":")[0]
    run("cancel", search, "--url", service.url)


def test_each_mistake_has_its_exit_code_and_one_sentence(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--url", service.url]
    failing(["show", "nowhere", *at], 3, capsys)
    failing(["scale", "nowhere", "--workers", "2", *at], 3, capsys)
    assert "select" in " ".join(failing(["query", "SELEC 1", *at], 2, capsys)).lower()
    failing([*submitting(service), "--set", "space.x.low=3"], 2, capsys)
    failing([*submitting(service), "--priority", "1000"], 2, capsys)
    assert "--code" in failing(["submit", str(service.spec)], 2, capsys)[0]
    assert "leave one out" in failing(["list", "--store", "st", *at], 2, capsys)[0]
    assert "--store" in failing(["best", "x", "--export", "a.py", *at], 2, capsys)[0]
    monkeypatch.setenv("CONTINUA_TOKEN", "wrong")
    (error,) = failing(["list", *at], 4, capsys)
    assert "wrong" not in error
    failing(submitting(service), 4, capsys)
    monkeypatch.setenv("CONTINUA_STORE", str(tmp_path / "other"))
    assert "continua up" in failing(submitting(service), 2, capsys)[0]
    monkeypatch.setattr("service.client.calls.PAUSES", ())
    assert "does not answer" in failing(["list", "--url", "http://127.0.0.1:1"], 1, capsys)[0]


def test_nothing_is_sent_by_a_dry_run(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(service.url) as client:
        before = client.query("SELECT count(*) AS n FROM searches")
        assert main([*submitting(service, "--dry-run"), "-o", "json"]) == 0
        assert strict(capsys.readouterr().out)["spec"]["task"] == "sleeper:objective"
        assert client.query("SELECT count(*) AS n FROM searches") == before


def test_one_key_makes_one_search(service: Service, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (run(*submitting(service, "--key", "once")) for _ in range(2))
    assert first["search_id"] == second["search_id"]
    failing(submitting(service, "--key", "once", "--set", "seed=7"), 2, capsys)


def test_tokens_are_made_listed_and_revoked(
    service: Service, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--url", service.url]
    capsys.readouterr()
    assert main(["token", "add", "reader", "--scope", "read"]) == 0
    word = capsys.readouterr().out.strip()
    assert [row["name"] for row in run("token", "list")] == ["first", "reader"]
    assert word not in str(run("token", "list"))
    with monkeypatch.context() as theirs:
        theirs.setenv("CONTINUA_TOKEN", word)
        run("list", *at)
        failing(submitting(service), 4, capsys)
    assert main(["token", "revoke", "reader"]) == 0
    monkeypatch.setenv("CONTINUA_TOKEN", word)
    failing(["list", *at], 4, capsys)
    failing(["token", "revoke", "reader"], 2, capsys)
    rows = run("config", "show", "--origin")
    assert {"name": "token", "value": "(hidden)", "origin": "CONTINUA_TOKEN"} in rows
    assert word not in str(rows)


def test_a_store_is_served_once(service: Service) -> None:
    command = [sys.executable, "-m", "service.cli", "up", "--port", "0"]
    again = subprocess.run(
        command, env=service.environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert again.returncode == 5
    assert service.url in again.stderr
    assert (service.store / "server.json").exists()


def test_up_ends_all_in_order(service: Service) -> None:
    """The last one: it ends the service."""
    children = service.children()
    assert len(children) == 2
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(PATIENCE) == 0
    assert not (service.store / "server.json").exists()
    until(lambda: not any(map(is_alive, children)))
    said = service.log.read_text()
    assert said.count("continua is up") == 1
    assert os.environ["XDG_CONFIG_HOME"] in said  # where the token is, not what it is
    token = (service.home / "config" / "continua" / "token").read_text().strip()
    assert token not in said


@pytest.mark.long
def test_the_children_of_up_end_with_it(tmp_path: Path) -> None:
    running = Service(tmp_path)
    children = running.children()
    try:
        running.process.kill()
        until(lambda: not any(map(is_alive, children)))
        again = subprocess.run(  # what it left behind names a service that is gone
            [sys.executable, "-m", "service.cli", "list", "--url", running.url],
            env=running.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert again.returncode == 1
        assert "does not answer" in again.stderr
    finally:
        running.end()
