"""Live progress: what a line says, its rate and ETA by hand, and how often it is said."""

from __future__ import annotations

import pytest

from service.budgets import Budgets
from service.controller import Progress
from service.live import EVERY, Live, fraction, line
from trials.records import Ending, Outcome, Spent

NOTHING = Spent()


def progress(ended: int, budgets: Budgets, *, failed: int = 0, spent: Spent = NOTHING, wall: float = 0.0) -> Progress:
    best = Outcome(trial_id="t", number=7, bundle_id="b", attempt=0, ending=Ending.COMPLETE, point={}, value=0.125)
    return Progress(
        asked=ended + 4,
        endings={"complete": ended - failed, "nan": failed},
        running=4,
        best=best if ended else None,
        spent=spent,
        wall_s=wall,
        budgets=budgets,
        done=False,
        failure=None,
    )


def test_a_line_says_what_is_known() -> None:
    budgets = Budgets(trials=256)
    assert line(progress(0, budgets), 0.0, None) == "0/256 trials | 4 running"
    full = "64/256 trials (2 failed) | best 0.125 (trial 7) | 12.1 trials/s | ETA 0:01:16 | 4 running"
    assert line(progress(64, budgets, failed=2), 12.08, 75.6) == full
    assert line(progress(3, Budgets(wall_seconds=10.0)), 0.0, None).startswith("3 trials | ")


def test_the_budget_nearest_its_end_counts() -> None:
    budgets = Budgets(trials=100, flops=1e6, device_seconds=50.0, wall_seconds=40.0)
    spent = Spent(flops=1.0, executed_flops=3e5, device_s=10.0)
    assert fraction(progress(10, budgets, spent=spent, wall=4.0)) == pytest.approx(0.3)
    assert fraction(progress(10, budgets, spent=spent, wall=36.0)) == pytest.approx(0.9)
    assert fraction(progress(10, budgets, wall=80.0)) == 1.0
    assert fraction(progress(10, Budgets(epochs=3.0))) is None


def test_rate_and_eta_are_those_of_the_last_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    with Live(clock=lambda: now[0]) as live:
        for second in range(61):  # 1 trial a second for half a minute, then 4
            now[0] = float(second)
            live.show(progress(second if second <= 30 else 30 + 4 * (second - 30), Budgets(trials=200)))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 60 // int(EVERY) + 1  # one at the start, then one every so many seconds
    assert "| 1 trials/s | ETA 0:02:50 |" in said[30 // int(EVERY)]  # 30 of 200
    assert "| 4 trials/s | ETA 0:00:12 |" in said[60 // int(EVERY)]  # 150 of 200


def test_nothing_new_is_not_said_again_and_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    for quiet, lines in ((False, 1), (True, 0)):
        with Live(quiet=quiet, clock=lambda: now[0]) as live:
            for _ in range(20):
                live.show(progress(0, Budgets(trials=8)))
                now[0] += 1.0
        assert len(capsys.readouterr().err.splitlines()) == lines
