"""Live progress of a search on stderr: one line that moves on a terminal, plain lines every few seconds elsewhere.

>>> with Live() as live:
...     run(spec, task, store, watch=live.show)
64/256 trials (1 failed) | best 0.0312 (trial 40) | 12.1 trials/s | ETA 0:16 | 8 running
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from service.show import console_for, say

if TYPE_CHECKING:
    from service.controller import Progress

EVERY = 2.0  # seconds between plain lines
WINDOW = 30.0  # seconds that the rate is taken over


class Live:
    """Shows a `Progress` each time it is told one; use as a context. `quiet` shows nothing."""

    def __init__(self, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._quiet, self._clock = quiet, clock
        self._seen: deque[tuple[float, int, float]] = deque()
        self._bar: Any = None
        self._label = ""
        self._said, self._said_at = "", -EVERY

    def __enter__(self) -> Live:
        if not self._quiet and (console := console_for("stderr")):
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

            text = TextColumn("{task.description}", markup=False)
            self._bar = Progress(SpinnerColumn(), BarColumn(bar_width=20), text, console=console, transient=True)
            self._task = self._bar.add_task("starting", total=None)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show_under(self, label: str, progress: Progress) -> None:
        """The same for one of several searches in turn; the pace begins anew with each."""
        if label != self._label:
            self._label = label
            self._seen.clear()
        self.show(progress)

    def show(self, progress: Progress) -> None:
        """Take note of a progress; print it when it is time to."""
        if self._quiet:
            return
        now, done = self._clock(), fraction(progress)
        self._seen.append((now, progress.finished, done or 0.0))
        while now - self._seen[0][0] > WINDOW:
            self._seen.popleft()
        text = (f"{self._label}: " if self._label else "") + line(progress, *self._pace(done))
        if self._bar is not None:
            self._bar.update(self._task, description=text, total=None if done is None else 1.0, completed=done or 0.0)
        elif now - self._said_at >= EVERY and text != self._said:
            self._said, self._said_at = text, now
            say(text)

    def tell(self, text: str) -> None:
        """Print a line of somebody else's instead of a progress."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.update(self._task, description=text, total=None)
        elif text != self._said:
            self._said, self._said_at = text, self._clock()
            say(text)

    def _pace(self, done: float | None) -> tuple[float, float | None]:
        """Trials a second, and the seconds that are left at the present pace where that can be told."""
        (then, finished, before), (now, finished_now, _) = self._seen[0], self._seen[-1]
        if now <= then:
            return 0.0, None
        gained = (done or 0.0) - before
        left = None if done is None or gained <= 0 else max(0.0, 1.0 - done) * (now - then) / gained
        return (finished_now - finished) / (now - then), left


def fraction(progress: Progress) -> float | None:
    """How much of the search is done: the share of whichever budget is nearest its end; None when none can be told."""
    budgets, spent = progress.budgets, progress.spent
    pairs = (
        (progress.finished, budgets.trials),
        (spent.executed_flops, budgets.flops),
        (spent.device_s, budgets.device_seconds),
        (progress.wall_s, budgets.wall_seconds),
    )
    return min(1.0, max(shares)) if (shares := [used / most for used, most in pairs if most]) else None


def line(progress: Progress, rate: float, left: float | None) -> str:
    """A progress in one line; `rate` in trials a second, `left` in seconds."""
    finished, most, best = progress.finished, progress.budgets.trials, progress.best
    failed = finished - progress.endings.get("complete", 0) - progress.endings.get("pruned", 0)
    parts = [f"{finished}/{most} trials" if most else f"{finished} trials"]
    parts[0] += f" ({failed} failed)" if failed else ""
    if best is not None and best.value is not None:
        parts.append(f"best {best.value:.6g} (trial {best.number})")
    if rate > 0:
        parts.append(f"{rate:.3g} trials/s")
    if left is not None:
        parts.append(f"ETA {timedelta(seconds=round(left))}")
    return " | ".join([*parts, f"{progress.running} running"])
