"""Stores that earlier versions wrote are opened, listed, queried and resumed as if this version had written them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_cases import strict

from service.board.rebuild import rebuild
from service.board.sqlite import SQLiteBoard
from service.cli import main
from service.driver import resume
from service.goal import Edit, change
from trials import layout
from trials.attempts import start_of, tables
from trials.records import Ending
from trials.segments import Reader
from trials.store import SearchStore, Store

STORES = Path(__file__).parents[1] / "fixtures" / "stores"
VERSIONS = sorted(path.name for path in STORES.iterdir() if path.is_dir())
pytestmark = pytest.mark.usefixtures("alone")


class Old:
    """A copy of an old store, and what its own version said of it."""

    def __init__(self, version: str, path: Path) -> None:
        self.root = path / "old"
        shutil.copytree(STORES / version, self.root)
        self.expected: dict[str, dict[str, Any]] = json.loads((self.root / "expected.json").read_text())
        for name in self.expected:
            for part in ("log", "metrics", "checkpoints"):  # empty ones are not kept with the source
                (self.root / "searches" / name / part).mkdir(exist_ok=True)
        self.store = Store(self.root)

    def search(self, name: str) -> SearchStore:
        return self.store.search(name)


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Old:
    return Old(request.param, tmp_path)


def values(search: SearchStore) -> dict[str, float | None]:
    return {str(outcome.number): outcome.value for outcome in search.outcomes()}


def said(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """What a command answers, as JSON."""
    capsys.readouterr()
    assert main([*words, "-o", "json"]) == 0, capsys.readouterr().err
    return strict(capsys.readouterr().out)


def test_there_are_some() -> None:
    assert len(VERSIONS) >= 4


def test_it_is_listed_shown_queried_and_sound(old: Old, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--store", str(old.root))
    listed = {row["search_id"]: row["state"] for row in said(capsys, "list", *at)}
    assert listed == {name: "complete" if name == "finished" else "interrupted" for name in old.expected}
    for name, expected in old.expected.items():
        search = old.search(name)
        assert search.verify() == []
        assert values(search) == expected["told"]
    finished = old.expected["finished"]
    best = said(capsys, "best", "finished", *at)
    assert (best["trial"], best["value"]) == (finished["number"], finished["best"])
    shown = said(capsys, "show", "finished", *at)
    assert (shown["state"], shown["trials"]) == ("complete", {"complete": finished["trials"]})
    sql = "SELECT search_id, number, value FROM trials WHERE ending = 'complete' ORDER BY search_id, number"
    asked = [(row["search_id"], str(row["number"]), row["value"]) for row in said(capsys, "query", sql, *at)]
    assert asked == [
        (name, number, value) for name in sorted(old.expected) for number, value in old.expected[name]["told"].items()
    ]
    assert said(capsys, "query", "SELECT count(*) AS n FROM reports WHERE search_id = 'finished'", *at)[0]["n"] > 0
    assert said(capsys, "doctor", *at) == []


def test_it_is_posted_on_a_new_board(old: Old, tmp_path: Path) -> None:
    board = SQLiteBoard(tmp_path / "board.sqlite")
    assert rebuild(old.store, board) == len(old.expected)
    assert board.get("finished").status == "complete"
    goals = {name: old.search(name).goal_version() for name in old.expected}
    assert {name: board.get(name).goal for name in old.expected} == goals
    board.close()


def test_what_was_interrupted_goes_on_to_the_last_trial(old: Old) -> None:
    told = old.expected["interrupted"]["told"]
    assert 2 <= len(told) < 10
    search = old.search("interrupted")
    result = resume(old.store, "interrupted", executor="here", directory=STORES)
    total = old.expected["interrupted"]["trials"]
    assert (result.state, result.progress.endings) == ("complete", {"complete": total})
    outcomes = search.outcomes()
    assert sorted(outcome.number for outcome in outcomes) == list(range(total))
    assert all(o.value == (float(str(o.point["x"])) - 0.3) ** 2 for o in outcomes)
    assert told.items() <= values(search).items(), "what was told before is told as it was"
    tellings = [number for event in search.log() if event.kind == "told" for number in event.body["numbers"]]
    assert sorted(tellings) == list(range(total))


@pytest.mark.parametrize("version", [v for v in VERSIONS if (STORES / v / "searches" / "cut").is_dir()])
def test_lanes_go_on_from_their_checkpoint(version: str, tmp_path: Path) -> None:
    old = Old(version, tmp_path)
    search = old.search("cut")
    ((place, step),) = search.checkpoints().items()
    result = resume(old.store, "cut", executor="here")
    total = old.expected["cut"]["trials"]
    assert (result.state, result.progress.endings) == ("complete", {"complete": total})
    outcomes = search.outcomes()
    assert sorted(outcome.number for outcome in outcomes) == list(range(total))
    assert {outcome.ending for outcome in outcomes} == {Ending.COMPLETE}
    (attempt,) = {layout.attempt(search.path, o.bundle_id, o.attempt) for o in outcomes}
    start = start_of(tables(attempt, Reader().read))
    assert start is not None, "they began at the beginning"
    assert (start.bundle_id, start.attempt, start.step) == (*place, step)


def test_a_finished_search_is_extended(old: Old) -> None:
    more = old.expected["finished"]["trials"] + 2
    change(old.search("finished"), Edit(verb="extend", budget={"trials": more}))
    result = resume(old.store, "finished", executor="here")
    assert (result.state, result.progress.endings) == ("complete", {"complete": more})
    told = old.expected["finished"]["told"]
    assert told.items() <= values(old.search("finished")).items()
