"""Executors run the same loop in different places: worker slots that pull bundles until there are none.

here      one worker in this process
local     worker processes on this machine
ray_tune  worker slots as Ray Tune trials, on one machine or a cluster
worker    a worker process and who answers it, of which the last two are made
"""

from __future__ import annotations

from typing import Any, Protocol

from service.progress import Progress
from trials.goals import Goal

INSTALLERS = ("pip", "uv")  # of packages, into the environment that Ray gives a search


class Overseer(Protocol):
    """What a driver needs of a controller, wherever it lives."""

    def progress(self) -> Progress: ...

    def note(self, kind: str, body: dict[str, Any]) -> None: ...

    def adopt(self, goal: Goal) -> None: ...

    def drain(self) -> None: ...


class Crew(Protocol):
    """The workers of one search."""

    @property
    def controller(self) -> Overseer: ...

    def run(self) -> None:
        """Work until the controller is done or `stop` is called; called from a thread of its own."""

    def scale(self, workers: int) -> None:
        """So many workers from now on; safe from any thread. What one that leaves has in hand is finished first."""

    def live(self) -> int:
        """Worker slots at work now."""

    def capacity(self) -> int | None:
        """Worker slots that there is room for altogether; None: not known."""

    def stop(self) -> None:
        """Hand out nothing more and end the workers soon; safe from any thread."""

    def shutdown(self) -> None:
        """Release what was started."""
