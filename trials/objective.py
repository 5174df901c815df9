"""Plain Python objectives: a bundle is a sequence of calls, one trial after the other.

>>> def objective(trial):
...     for epoch in range(10):
...         trial.report(epoch, loss=...)
...     return loss
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from search_spaces import Value
from trials.allocator import give_back
from trials.plan import Plan
from trials.records import Bundle, Ending, Outcome, Report, Spent, Trial, outcome_of
from trials.room import out_of_memory
from trials.said import listening


class LiveTrial:
    """What an objective is given: the point to try, and a place to report to."""

    def __init__(self, trial: Trial) -> None:
        self.number, self.point, self.seed = trial.number, dict(trial.point), trial.seed
        self.reports: list[tuple[int, dict[str, float]]] = []

    def __getitem__(self, name: str) -> Value:
        """The value of a parameter. Raises KeyError with the names that exist at this point."""
        if name not in self.point:
            raise KeyError(f"no parameter {name!r} at this point; there are {', '.join(self.point)}")
        return self.point[name]

    def report(self, step: int, **metrics: float) -> None:
        """Record what was measured after `step` steps."""
        self.reports.append((int(step), {name: float(value) for name, value in metrics.items()}))


def call_objective(plan: Plan, bundle: Bundle, worker: str) -> Iterator[Report | Outcome]:
    """Reports and outcome of every trial, in order. An exception of the user's code ends its own trial alone."""
    assert plan.objective is not None
    began = time.perf_counter()
    for trial in bundle.trials:
        if bundle.seconds is not None and time.perf_counter() - began > bundle.seconds:
            now = time.time()
            yield outcome_of(trial, bundle, Ending.CANCELLED, started=now, ended=now, worker=worker)
            continue
        live, started, clock = LiveTrial(trial), time.time(), time.perf_counter()
        error: str | None = None
        result: Any = None
        ending = Ending.COMPLETE
        with listening() as said:
            try:
                result = plan.objective(live)
                metrics = _metrics(plan, result)
            except (Exception, SystemExit) as raised:  # sys.exit in an objective ends that trial, not the worker
                if out_of_memory(raised):
                    traceback.clear_frames(raised.__traceback__)  # what they hold would leave none to tell it in
                    ending = Ending.OOM
                    give_back()
                else:
                    ending = Ending.ERROR
                error, metrics = traceback.format_exc()[-2000:], {}
        spent = Spent(device_s=time.perf_counter() - clock)
        for step, found in live.reports:
            yield Report(
                trial_id=trial.id, bundle_id=bundle.id, attempt=bundle.attempt, step=step, metrics=found, spent=spent
            )
        value = metrics.get(plan.metric)
        if ending is Ending.COMPLETE and (value is None or not math.isfinite(value)):
            ending = Ending.NAN
        yield outcome_of(
            trial,
            bundle,
            ending,
            value=value if ending is Ending.COMPLETE else None,
            metrics=metrics,
            rounded=dict(trial.point),
            step=live.reports[-1][0] if live.reports else 0,
            spent=spent,
            started=started,
            ended=time.time(),
            worker=worker,
            error=error,
            said=said() or None,
        )


def _metrics(plan: Plan, result: Any) -> dict[str, float]:
    """What an objective returned: a number (the metric itself) or a mapping of metrics that holds it."""
    if isinstance(result, Mapping):
        if plan.metric not in result:
            raise TypeError(f"the objective returned {sorted(result)}, but the search needs {plan.metric!r} among them")
        return {str(name): float(value) for name, value in result.items()}
    if isinstance(result, bool) or not hasattr(result, "__float__"):
        raise TypeError(f"the objective must return a number or a mapping of numbers, but returned {result!r}")
    return {plan.metric: float(result)}
