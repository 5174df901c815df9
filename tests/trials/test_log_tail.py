"""Following a log: every event once and in order, each segment read once, whatever the listing shows when."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from trials import log as log_module
from trials.log import LogTail, LogWriter, events
from trials.segments import Reader


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.mkdir()
    return path


def places(found: list[Any]) -> list[tuple[int, int]]:
    return [(event.epoch, event.seq) for event in found]


def test_what_is_new_comes_once(directory: Path) -> None:
    read: list[Path] = []

    def reading(path: Path) -> Any:
        read.append(path)
        return Reader().read(path)

    tail = LogTail(directory, reading)
    assert tail.new() == []
    first, second = LogWriter(directory, 1), LogWriter(directory, 2)
    first.append("state", {"state": "running"})
    first.append_many([("a", {}), ("b", {})])
    assert places(tail.new()) == [(1, 0), (1, 1), (1, 2)]
    assert tail.new() == []
    first.append("c", {})
    second.append("d", {})
    assert [event.kind for event in tail.new()] == ["c", "d"]
    assert tail.new() == []
    assert len(read) == len(set(read)) == 4
    assert LogTail(directory, reading).new() == events(directory, reading)


def test_a_directory_that_rests_is_not_listed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tail = LogTail(directory, Reader().read)
    LogWriter(directory, 1).append("a", {})
    os.utime(directory, ns=(0, 10**18))
    assert len(tail.new()) == 1
    with monkeypatch.context() as patch:
        patch.setattr(log_module.os, "listdir", lambda *_: pytest.fail("it was listed"))
        assert tail.new() == []
    LogWriter(directory, 2).append("b", {})
    assert len(tail.new()) == 1


def test_a_listing_that_misses_a_name_loses_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a listing shows of names made meanwhile is not defined: here the first misses the earlier of two."""
    tail = LogTail(directory, Reader().read)
    writer = LogWriter(directory, 1)
    writer.append("a", {})
    (early,) = os.listdir(directory)
    writer.append("b", {})
    real, calls = os.listdir, []

    def listdir(path: Path) -> list[str]:
        calls.append(path)
        return [name for name in real(path) if len(calls) > 1 or name != early]

    monkeypatch.setattr(log_module.os, "listdir", listdir)
    assert [event.kind for event in tail.new()] == ["a", "b"]


def test_a_damaged_segment_is_passed_over(directory: Path) -> None:
    writer = LogWriter(directory, 1)
    for kind in "abc":
        writer.append(kind, {})
    names = sorted(os.listdir(directory))
    tail = LogTail(directory, lambda path: None if path.name == names[1] else Reader().read(path))
    assert [event.kind for event in tail.new()] == ["a", "c"]


def test_one_that_follows_a_writer_sees_all_of_it(directory: Path) -> None:
    writer, tail, seen = LogWriter(directory, 1), LogTail(directory, Reader().read), []

    def write() -> None:
        for i in range(200):
            writer.append("a", {"i": i})

    thread = threading.Thread(target=write)
    thread.start()
    while thread.is_alive():
        seen += tail.new()
    thread.join()
    seen += tail.new()
    assert [event.body["i"] for event in seen] == list(range(200))
