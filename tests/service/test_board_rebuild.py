"""The board from the store: every search as it stands there, and nothing to do where the board knows it all."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from board_cases import Rig, job

from service.board import Unreachable
from service.board.rebuild import rebuild
from service.goal import Edit, change
from trials import layout
from trials.store import SearchStore, Store

SPEC = {"budget": {"trials": 4}, "resources": {"workers": 2}}


def made(store: Store, id: str, *events: tuple[str, dict[str, Any]], **facts: Any) -> SearchStore:
    search = store.create(id, {"name": "n", "labels": {}, "spec": SPEC, "submitted": True, **facts})
    if events:
        search.log_writer(1).append_many(events)
    return search


def ended(state: str, why: str | None = None, **more: Any) -> tuple[str, dict[str, Any]]:
    return "state", {"state": state, "why": why, **more}


RUNNING = ("state", {"state": "running"})


@pytest.mark.parametrize(
    ("events", "verbs", "status", "why"),
    [
        ([], [], "queued", ""),
        ([RUNNING], [], "queued", ""),  # its driver was killed
        ([RUNNING, ended("interrupted")], [], "queued", ""),
        ([RUNNING, ended("complete")], [], "complete", ""),
        ([RUNNING, ended("failed", "no data")], [], "failed", "no data"),
        ([RUNNING, ended("paused")], ["pause"], "paused", ""),
        ([], ["stop"], "stopped", ""),
        ([RUNNING, ended("cancelled")], ["cancel"], "cancelled", ""),
        ([RUNNING, ended("paused")], ["pause", "resume"], "queued", ""),
        ([RUNNING, ended("complete")], ["extend"], "queued", ""),  # nobody has seen the extension yet
        ([RUNNING, ("goal", {"version": 1}), ended("complete")], ["extend"], "complete", ""),
        ([RUNNING, ended("complete"), ("goal", {"version": 1}), RUNNING], ["extend"], "queued", ""),
        ([RUNNING, ("goal", {"version": 1}), ended("failed", "x")], ["extend", "extend"], "queued", ""),
        ([RUNNING, ended("complete", goal=1)], ["extend"], "complete", ""),
        ([RUNNING, ("goal", {"version": 1}), ended("complete", goal=0)], ["extend"], "queued", ""),
    ],
)
def test_a_search_is_posted_as_it_stands(
    rig: Rig, store: Store, events: list[Any], verbs: list[str], status: str, why: str
) -> None:
    search = made(store, "a", *events, owner="ada", priority=42)
    for n, verb in enumerate(verbs):
        change(search, Edit(verb=verb, budget={"trials": 8 + n} if verb == "extend" else None))
    assert rebuild(store, rig.board) == 1
    told = rig.board.get("a")
    assert (told.status, told.why, told.goal, told.workers) == (status, why, len(verbs), 2)
    assert (told.name, told.owner, told.priority, told.by_hand) == ("n", "ada", 42, False)
    assert abs(told.created - time.time()) < 3600
    assert rebuild(store, rig.board) == 0


@pytest.mark.parametrize(
    ("facts", "verb", "by_hand"),
    [
        ({"submitted": False}, None, True),
        ({"submitted": False}, "resume", False),  # controlled since
        ({"replay": True}, None, True),
        ({"replay": True}, "resume", True),
        ({"labels": {"comparison": "c", "arm": "x", "role": "search"}}, "resume", True),
        ({"labels": {"role": "retrain", "retrain_of": "b"}}, None, True),
        ({"labels": {"team": "vision"}}, None, False),
    ],
)
def test_what_no_runner_was_asked_to_drive_is_not_claimed(
    rig: Rig, store: Store, facts: dict[str, Any], verb: str | None, by_hand: bool
) -> None:
    search = made(store, "a", **facts)
    if verb:
        change(search, Edit(verb=verb))
    assert rebuild(store, rig.board) == 1
    assert rig.board.get("a").by_hand == by_hand
    assert (rig.board.claim("r", 60.0) is None) == by_hand


def test_goals_that_the_board_missed_are_told(rig: Rig, store: Store) -> None:
    for id, facts in {"a": {}, "b": {}, "replayed": {"replay": True}}.items():
        made(store, id, **facts)
    rebuild(store, rig.board)
    held = rig.board.claim("r", 60.0)
    assert held is not None
    change(store.search("a"), Edit(verb="scale", workers=7))
    change(store.search("a"), Edit(verb="pause"))
    change(store.search("replayed"), Edit(verb="pause"))
    assert rebuild(store, rig.board) == 1
    told = rig.board.get("a")
    assert (told.goal, told.workers, told.status, told.epoch) == (2, 7, "pausing", held.epoch)
    assert rig.board.get("replayed").by_hand
    assert rebuild(store, rig.board) == 0


def test_a_board_that_knows_more_is_left_alone(rig: Rig, store: Store) -> None:
    made(store, "a")
    rig.board.post(job("a", goal=5, wanted="pause"))
    rig.board.post(job("elsewhere"))
    assert rebuild(store, rig.board) == 0
    assert rig.board.get("a").goal == 5


def test_the_first_submitted_is_the_first_posted(rig: Rig, store: Store) -> None:
    for n, id in enumerate(["c", "a", "b"]):
        os.utime(layout.spec(made(store, id).path), (1000 + n, 1000 + n))
    rebuild(store, rig.board)
    assert [found.id for found in rig.board.list()] == ["b", "a", "c"]


def damage(path: Path, kind: str) -> None:
    spec = layout.spec(path)
    if kind == "spec":
        spec.write_bytes(b"\xff{")
    elif kind == "list":
        spec.write_text("[]")
    elif kind == "workers":
        spec.write_text('{"spec": {"resources": {"workers": "many"}}}')
    elif kind == "priority":
        spec.write_text('{"priority": 1000, "spec": {}}')
    elif kind == "log":
        for name in os.listdir(layout.log(path)):
            os.truncate(layout.log(path) / name, 40)
    elif kind == "no log":
        layout.log(path).rename(path / "elsewhere")


@pytest.mark.parametrize("kind", ["spec", "list", "workers", "priority", "no log"])
def test_a_damaged_search_does_not_keep_the_others_off(rig: Rig, store: Store, kind: str) -> None:
    for id in ("a", "b", "c"):
        made(store, id, RUNNING)
    damage(store.search("b").path, kind)
    told: list[str] = []
    assert rebuild(store, rig.board, skipped=lambda id, error: told.append(id)) == 2
    assert told == ["b"]
    assert {found.id for found in rig.board.list()} == {"a", "c"}


def test_a_damaged_search_is_logged(rig: Rig, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    damage(made(store, "b").path, "spec")
    assert rebuild(store, rig.board) == 0
    assert "search b is not on the board" in caplog.text


def test_a_search_whose_log_is_damaged_is_to_be_gone_on_with(rig: Rig, store: Store) -> None:
    damage(made(store, "a", RUNNING, ended("complete")).path, "log")
    assert rebuild(store, rig.board) == 1
    assert rig.board.get("a").status == "queued"


def test_a_goal_that_cannot_be_read_is_no_goal(rig: Rig, store: Store) -> None:
    search = made(store, "a")
    rebuild(store, rig.board)
    change(search, Edit(verb="pause"))
    (layout.goals(search.path) / layout.goal_name(1)).write_text("torn")
    assert rebuild(store, rig.board) == 0
    assert rig.board.get("a").status == "queued"


def test_an_unreachable_board_is_not_a_damaged_search(store: Store, tmp_path: Path) -> None:
    class Away:
        def list(self, **_: Any) -> Any:
            raise Unreachable("away")

    with pytest.raises(Unreachable):
        rebuild(store, Away())  # type: ignore[arg-type]


def test_nothing_to_do_reads_no_search(rig: Rig, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(20):
        change(made(store, f"s{n}"), Edit(verb="scale", workers=3))
    assert rebuild(store, rig.board) == 20

    def never(*_: Any) -> Any:
        raise AssertionError("read")

    for name in ("spec", "log", "goals", "state"):
        monkeypatch.setattr(SearchStore, name, never)
    assert rebuild(store, rig.board, skipped=never) == 0
