"""One worker, in this process: for a single core, a debugger, or a notebook."""

from __future__ import annotations

from service.controller import Controller
from service.slot import Assignment, serve


class Here:
    """Trains bundles in the thread that calls `run`. One worker is all there can be, and no time limit ends it."""

    def __init__(self, controller: Controller, job: Assignment) -> None:
        self.controller, self.job = controller, job
        self._working = False

    def run(self) -> None:
        """Train until the controller is done."""
        search, trainer = self.job.open()
        self._working = True
        try:
            serve(self.controller, search, trainer, "here", self.job.checkpoint_every)
        finally:
            self._working = False

    def scale(self, workers: int) -> None:
        """Nothing: there is one worker, whatever is wanted."""

    def live(self) -> int:
        """One while `run` trains."""
        return int(self._working)

    def capacity(self) -> int | None:
        """One."""
        return 1

    def stop(self) -> None:
        """The bundle in hand is finished, no other begun."""
        self.controller.close()

    def shutdown(self) -> None:
        """Only the controller's thread is left."""
        self.controller.close()
