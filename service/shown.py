"""What the sampler of a search is shown, kept from one generation to the next: only what is new is looked at.

>>> shown = Shown()
>>> shown.history(generations, ended=3, told=told, infeasible=[], space=None)
History(trials=[Known(number=0, ...), ...], infeasible=[])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search_spaces import Point, Space
from service.samplers import History
from service.samplers.contract import Known
from trials.records import Ending, Outcome, Trial


class Shown:
    """Points and outcomes of generations as a sampler is to know them. For one thread."""

    def __init__(self) -> None:
        self._space: Space | None = None
        self._forget()

    def _forget(self) -> None:
        self._ended: list[Known] = []
        self._generations = 0
        self._infeasible: list[Point] = []
        self._tried = 0

    def history(
        self,
        generations: Sequence[Sequence[Trial]],
        *,
        ended: int,
        told: Mapping[int, Outcome],
        infeasible: Sequence[Point],
        space: Space | None,
    ) -> History:
        """The trials of `generations`, of whose first `ended` the outcomes are known; each of the arguments has grown
        since the last time, if anything. Of a narrowed `space`, only what lies in it."""
        if space is not self._space:
            self._space = space
            self._forget()
        for g in range(self._generations, ended):
            self._ended += self._known(g, generations[g], told)
        self._generations = ended
        self._infeasible += [point for point in infeasible[self._tried :] if self._holds(point)]
        self._tried = len(infeasible)
        running = [known for g in range(ended, len(generations)) for known in self._known(g, generations[g], {})]
        return History(trials=[*self._ended, *running], infeasible=list(self._infeasible))

    def _known(self, generation: int, trials: Sequence[Trial], told: Mapping[int, Outcome]) -> list[Known]:
        found = []
        for trial in trials:
            if self._holds(trial.point):
                outcome = told.get(trial.number)
                failed = outcome is not None and outcome.ending is not Ending.COMPLETE
                value = outcome.value if outcome is not None else None
                known = Known(number=trial.number, point=trial.point, value=value, failed=failed, generation=generation)
                found.append(known)
        return found

    def _holds(self, point: Point) -> bool:
        return self._space is None or not self._space.faults(point)
