"""What a driver process says of the end of its search, whatever that was."""

from __future__ import annotations

import io
import json
import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from search_spaces.faults import Invalid
from service import driver
from service.budgets import Budgets
from service.progress import Progress, SearchFailed
from service.runner import drive
from trials.records import Spent
from trials.store import Store

PROGRESS = Progress(
    asked=4,
    endings={"complete": 3},
    running=1,
    best=None,
    spent=Spent(),
    wall_s=1.0,
    budgets=Budgets(),
    done=False,
    failure=None,
)


def said(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def ended(tmp_path, monkeypatch, result: Any) -> dict[str, Any]:
    Store(tmp_path).create("s", {"name": "s", "spec": {}})

    def resume(*_: Any, **__: Any) -> Any:
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(driver, "resume", resume)
    orders: Any = SimpleNamespace(stop=threading.Event(), slots=None)
    teller = drive.Teller(drive.Channel(io.StringIO()))
    return drive.drive({"search": "s", "store": str(tmp_path)}, "here", orders, teller, None)


@pytest.mark.parametrize(
    ("error", "state", "words"),
    [
        (ConnectionError("no head at 10.0.0.1:6379"), "held", "cannot be reached now: no head at 10.0.0.1:6379"),
        (OSError(28, "No space left on device"), "held", "No space left on device"),
        (Invalid(["a: is wrong.", "b: is too."]), "failed", "a: is wrong.\nb: is too."),
        (SearchFailed("no worker could start"), "failed", "no worker could start"),
        (RuntimeError("a bug"), "crashed", "RuntimeError('a bug')"),
    ],
)
def test_what_may_pass_is_handed_back_and_what_is_wrong_fails(tmp_path, monkeypatch, capfd, error, state, words):
    end = ended(tmp_path, monkeypatch, error)
    assert (end["ended"], end["goal"]) == (state, 0)
    assert words in end["why"]
    assert ("Traceback" in capfd.readouterr().err) == (state == "crashed")


@pytest.mark.parametrize(("unwritable", "state"), [(True, "held"), (False, "failed")])
def test_a_full_disk_is_waited_for(tmp_path, monkeypatch, unwritable, state):
    failed = replace(PROGRESS, failure="the store cannot be written (full)", unwritable=unwritable)
    result = driver.Result(search_id="s", state="failed", progress=failed, lanes=1, goal=2)
    end = ended(tmp_path, monkeypatch, result)
    assert end == {"ended": state, "why": "the store cannot be written (full)", "goal": 2}


def test_signs_of_life_come_from_who_looks_after_the_search(monkeypatch):
    monkeypatch.setattr(drive, "ALIVE", 0.05)
    out = io.StringIO()
    teller = drive.Teller(drive.Channel(out))
    thread = threading.Thread(target=drive._live, args=(drive.Channel(out), teller))
    thread.start()
    time.sleep(0.2)
    assert said(out) == [{"alive": True}] * len(said(out)) != [], "while it gets ready"
    teller.watch(PROGRESS)
    thread.join(10)
    assert not thread.is_alive()
    before = len(said(out))
    time.sleep(0.2)
    assert len(said(out)) == before, "nobody looks after it, and it shows"
    teller.watch(PROGRESS)
    assert said(out)[before:] == [{"alive": True}]
