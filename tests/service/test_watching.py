"""Following a search: one line a change, the end as the service tells it, and what happens when it tells nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from service import live
from service.cli import watching
from service.cli.watching import OutOfTime, follow
from service.client import Event, Unreachable


class Played:
    """A search of a service that tells these events, then raises or keeps silent."""

    id = "played-0a1b2c"

    def __init__(self, *events: tuple[str, Any], then: Exception | None = None, state: str = "running") -> None:
        self.events, self.then, self.state = events, then, state

    def goal(self) -> dict[str, Any]:
        return {"budget": {"trials": 8}}

    def refresh(self) -> Played:
        return self

    def watch(self) -> Iterator[Event]:
        for kind, data in self.events:
            yield Event(id="", kind=kind, data=data)
        if self.then is not None:
            raise self.then
        time.sleep(60)


@pytest.fixture(autouse=True)
def every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "EVERY", 0.0)


def progress(state: str, **told: Any) -> tuple[str, Any]:
    return "progress", {"state": state, "job": {"why": told.pop("why", ""), "progress": told}}


def test_each_change_is_a_line_and_the_end_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    best = {"number": 2, "value": 0.25, "point": None}
    search = Played(
        progress("queued"),
        progress("queued"),
        ("state", {"state": "running"}),
        progress("running"),
        progress("running", finished=3, running=2, endings={"complete": 2, "error": 1}, best=best, spent={}),
        ("goal", {"budget": {"trials": 16}}),
        progress("running", finished=4, running=2, endings={"complete": 3, "error": 1}, best=best, wall_seconds=1.0),
        progress("paused", finished=4, why="five failures"),
        ("end", {"state": "complete"}),
    )
    assert follow(search, quiet=False) == "complete"  # type: ignore[arg-type]
    lines = [line.partition(" | ETA")[0].partition(" | 0")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines[:2] == ["queued", "running"]
    assert lines[2].startswith("3/8 trials (1 failed) | best 0.25 (trial 2)")
    assert lines[3].startswith("4/16 trials (1 failed) | best 0.25 (trial 2)")
    assert lines[4:] == ["paused, 4 trials: five failures"]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    search = Played(progress("queued"), progress("running", finished=3), ("end", {"state": "failed"}))
    assert follow(search, quiet=True) == "failed"  # type: ignore[arg-type]
    assert capsys.readouterr() == ("", "")


def test_a_service_that_tells_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "ASK", 0.05)
    assert follow(Played(state="stopped"), quiet=True) == "stopped"  # type: ignore[arg-type]


def test_time_runs_out_and_what_goes_wrong_is_raised() -> None:
    with pytest.raises(OutOfTime, match=r"played-0a1b2c: is still running after 0.1 s; it goes on"):
        follow(Played(), quiet=True, timeout=0.1)  # type: ignore[arg-type]
    with pytest.raises(Unreachable, match="gone"):
        follow(Played(then=Unreachable("gone")), quiet=True)  # type: ignore[arg-type]
