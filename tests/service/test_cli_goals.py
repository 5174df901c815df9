"""The verbs that change a search and `watch`, on a store alone; and what the service's commands refuse at once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_cases import failing, python, strict

from service.board import Job, open_board
from service.cli import main
from trials.store import Store

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def ours(done: tuple[Path, str], tmp_path: Path) -> tuple[str, str]:
    """A store of our own with one complete search of 8 trials, and its id."""
    store, search_id = done
    shutil.copytree(store, tmp_path / "st")
    return "st", search_id


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert main([*words, "-o", "json"]) == code
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    return strict(out), err


def test_a_complete_search_is_extended_narrowed_and_goes_on(
    ours: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, search = ours
    at = ("--store", store)
    goal, err = run(capsys, "extend", search, "--trials", "+4", *at)
    assert (goal["search_id"], goal["version"], goal["budget"]) == (search, 1, {"trials": 12})
    assert f"continua run --resume {search} --store" in err
    (tmp_path / "narrow.yaml").write_text("space: {width.0: {high: 4}}\n")
    goal, _ = run(capsys, "narrow", search, "--space", "narrow.yaml", *at)
    assert (goal["version"], goal["space"]["width.0"]["high"]) == (2, 4)
    goal, _ = run(capsys, "scale", search, "--workers", "2", *at)
    assert (goal["version"], goal["workers"], goal["verb"]) == (3, 2, "scale")
    found, _ = run(capsys, "run", "--resume", search, *at, "--executor", "here", "-q")
    assert (found["state"], found["trials"]) == ("complete", {"complete": 12})
    asked = Store.open_for_reading(store).search(search).log()
    widths = [t["point"]["width.0"] for e in asked if e.kind == "asked" for t in e.body["trials"] if t["number"] >= 8]
    assert len(widths) == 4
    assert all(width <= 4 for width in widths)


def test_what_was_paused_goes_on_only_when_that_is_wanted(
    ours: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    store, search = ours
    at = ("--store", store)
    run(capsys, "extend", search, "--trials", "10", *at)
    run(capsys, "pause", search, *at)
    assert run(capsys, "show", search, *at)[0]["trials"] == {"complete": 8}
    found, _ = run(capsys, "run", "--resume", search, *at, "--executor", "here", "-q")
    assert (found["state"], found["trials"]) == ("complete", {"complete": 10})
    goals = Store.open_for_reading(store).search(search).goals()
    assert [goal.verb for goal in goals] == ["extend", "pause", "resume"]
    assert all(goal.by for goal in goals)


def test_the_board_of_the_store_hears_of_a_change(ours: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    store, search = ours
    url = f"sqlite://{Path(store).absolute()}/board.sqlite"
    board = open_board(url)
    board.post(Job(id=search, name="iris"))
    run(capsys, "extend", search, "--trials", "+4", "--store", store)
    run(capsys, "stop", search, "--store", store)
    assert (board.get(search).status, board.get(search).goal) == ("stopped", 2)
    goal, err = run(capsys, "resume", search, "--store", store)
    assert (board.get(search).status, goal["version"]) == ("queued", 3)
    assert "nobody runs it" not in err
    board.close()


def test_the_words_of_a_goal_stand_in_a_table(ours: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["extend", ours[1], "--trials", "+4", "--store", ours[0]]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (lines["goal"], lines["state"], lines["budget"]) == ("version 1: extend", "run", "trials=12")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["extend", "ID"], 2, "needs a budget"),
        (["extend", "ID", "--trials", "2"], 2, "can only be raised"),
        (["extend", "ID", "--trials", "many"], 2, "--trials: must be a number such as 512"),
        (["extend", "ID", "--wall-seconds", "+5"], 2, "wall_seconds"),
        (["scale", "ID", "--workers", "0"], 2, "goal.workers"),
        (["scale", "ID"], 2, "--workers"),
        (["narrow", "ID", "--space", "wider.yaml"], 2, "must be at most"),
        (["narrow", "ID", "--space", "nowhere.yaml"], 2, "no such file"),
        (["pause", "nobody"], 3, "nobody"),
        (["watch", "nobody"], 3, "nobody"),
        (["watch", "ID", "-o", "jsonl"], 2, "name a service"),
    ],
)
def test_a_change_that_cannot_be_is_refused(
    words: list[str],
    code: int,
    said: str,
    ours: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "wider.yaml").write_text("width.0: {high: 640}\n")
    errors = failing([ours[1] if word == "ID" else word for word in words] + ["--store", ours[0]], code, capsys)
    assert any(said in error for error in errors), errors
    assert Store.open_for_reading(ours[0]).search(ours[1]).goal_version() == 0


def test_watching_a_store_ends_as_the_search_did(
    ours: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, err = run(capsys, "watch", ours[1], "--store", ours[0])
    assert (found["state"], found["trials"]) == ("complete", {"complete": 8})
    assert "8/8 trials" in err
    spec = python(tmp_path, "raise RuntimeError('no luck')", "watched_to_fail")
    run(capsys, "run", str(spec), "--store", "st", "--executor", "here", "-q", code=6)
    found, err = run(capsys, "watch", "watched-to-fail", "--store", "st", code=6)
    assert found["state"] == "failed"
    assert "error: the search failed" in err


def test_a_store_that_is_named_overrules_a_service_of_the_environment(
    ours: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONTINUA_URL", "http://127.0.0.1:1")
    monkeypatch.setattr("service.client.calls.PAUSES", ())
    assert main(["list", "--store", ours[0], "-o", "json"]) == 0
    assert len(strict(capsys.readouterr().out)) == 1
    monkeypatch.setenv("CONTINUA_STORE", ours[0])
    assert "does not answer" in failing(["list"], 1, capsys)[0]
    assert "does not answer" in failing(["pause", ours[1]], 1, capsys)[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", "spec.yaml"], "continua up"),
        (["submit", "nowhere.yaml"], "no such file"),
        (["submit", "arms.yaml"], "is a comparison"),
        (["submit", "spec.yaml", "--requirements", "nowhere.txt"], "requirements: nowhere.txt cannot be read"),
        (["submit", "spec.yaml", "--set", "budget.trials=0"], "budget.trials"),
        (["submit", "spec.yaml", "--url", "localhost"], "must be a service's URL"),
        (["work", "--quota", "ada"], "must be OWNER=N"),
        (["work", "--board", "mysql://x"], "board"),
        (["up", "--host", "203.0.113.7", "--port", "0"], "host: must be an address of this machine"),
        (["serve", "--host", "0.0.0.0", "--port", "0"], "must be a loopback address while there are no tokens"),
        (["token", "add", "ada", "--scope", "all"], "scope"),
        (["token", "revoke", "ada"], "ada"),
    ],
)
def test_the_service_s_commands_refuse_what_cannot_be(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cli_cases import IRIS

    (tmp_path / "spec.yaml").write_text(IRIS)
    (tmp_path / "arms.yaml").write_text("arms: {a: {}}\n")
    errors = failing(words, 2, capsys)
    assert any(said in error for error in errors), errors
