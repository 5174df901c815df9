"""What is wanted of a search, by version: durable, written once, and nothing of a damaged one is believed."""

from __future__ import annotations

import threading

import pytest

from trials import layout
from trials.goals import Goal
from trials.store import Conflict, Store


@pytest.fixture
def search(tmp_path):
    return Store(tmp_path).create("s", {"name": "s"})


def test_a_version_comes_back_as_it_was_written(search):
    goal = Goal(version=1, state="pause", workers=3, budget={"trials": 8, "flops": 1e9}, space={"lr": {"low": 0.1}})
    search.set_goal(goal)
    assert search.goals() == [goal]
    assert search.goal_version() == 1


def test_without_a_change_there_is_no_version(search):
    assert search.goals() == []
    assert search.goal_version() == 0


def test_of_many_writers_of_one_version_one_wins(search):
    won, lost = [], []

    def write(number: int) -> None:
        try:
            search.set_goal(Goal(version=1, workers=number))
            won.append(number)
        except Conflict:
            lost.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 15
    assert search.goals() == [Goal(version=1, workers=won[0])]


def test_a_damaged_version_is_passed_over_and_told_and_its_number_stays_taken(search):
    search.set_goal(Goal(version=1, workers=2))
    search.set_goal(Goal(version=2, workers=3))
    path = layout.goals(search.path) / layout.goal_name(2)
    text = path.read_bytes()
    path.write_bytes(text.replace(b'"workers": 3', b'"workers": 9').replace(b'"workers":3', b'"workers":9'))
    assert path.read_bytes() != text
    assert search.goals() == [Goal(version=1, workers=2)]
    assert [damage.path for damage in search.damaged] == [path]
    assert [damage.path for damage in search.verify()] == [path]
    assert search.goal_version() == 2


def test_a_version_that_cannot_be_made_durable_is_not_there(search, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    search.set_goal(Goal(version=1))
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        search.set_goal(Goal(version=2))
    assert search.goal_version() == 1
    assert [path.name for path in layout.goals(search.path).iterdir()] == [layout.goal_name(1)]
