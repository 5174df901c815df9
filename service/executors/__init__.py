"""Executors run the same loop in different places: worker slots that pull bundles until there are none.

here      one worker in this process
local     worker processes on this machine
ray_tune  worker slots as Ray Tune trials, on one machine or a cluster
"""

from __future__ import annotations

from typing import Any, Protocol

from service.controller import Progress


class Overseer(Protocol):
    """What a driver needs of a controller, wherever it lives."""

    def progress(self) -> Progress: ...

    def note(self, kind: str, body: dict[str, Any]) -> None: ...


class Crew(Protocol):
    """The workers of one search."""

    @property
    def controller(self) -> Overseer: ...

    def run(self) -> None:
        """Work until the controller is done or `stop` is called; called from a thread of its own."""

    def stop(self) -> None:
        """Hand out nothing more and end the workers soon; safe from any thread."""

    def shutdown(self) -> None:
        """Release what was started."""
