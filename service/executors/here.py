"""One worker, in this process: for a single core, a debugger, or a notebook."""

from __future__ import annotations

from service.controller import Controller
from service.slot import Assignment, serve


class Here:
    """Trains bundles in the thread that calls `run`."""

    def __init__(self, controller: Controller, job: Assignment) -> None:
        self.controller, self.job = controller, job

    def run(self) -> None:
        """Train until the controller is done."""
        search, trainer = self.job.open()
        serve(self.controller, search, trainer, "here")

    def stop(self) -> None:
        """The bundle in hand is finished, no other begun."""
        self.controller.close()

    def shutdown(self) -> None:
        """Nothing was started."""
