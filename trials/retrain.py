"""Retraining from scratch: what a found network is worth, apart from the luck of the training that found it.

The same parametrisation, optimiser and hyperparameters at the rounded sizes (rates that a gradient moved go the way
that they went), with fresh initialisations and fresh data orders (a search can fit those it shares), scored on the test
split, which nothing else reads. Both train and outer rows are trained on, whatever the arm.

Each retraining is a trial of a search of its own, so that it is stored and queried like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from search_spaces import Point
from trials.hypergradients.method import Method
from trials.noise import fold
from trials.plan import Plan, Schedule
from trials.records import Bundle, Checkpoint, Ending, Outcome, Trial
from trials.store import SearchStore
from trials.train import Trainer


def retrain(search: SearchStore, plan: Plan, points: Sequence[Point], seeds: int, device: str = "cpu") -> list[Outcome]:
    """Train each rounded point `seeds` times and score it on the test split; stored in `search` as they are done.

    Returns:
        The outcomes, point by point; `metrics` has `test_*`.
    """
    assert plan.task is not None, "only fused searches can be retrained"
    metric = plan.metric.replace("val_", "test_", 1)
    whole = [plan.rounded(point) for point in points for _ in range(seeds)]
    with search.lease() as lease:
        log = search.log_writer(lease.epoch)
        asked = [{"number": number, "point": point} for number, point in enumerate(whole)]
        log.append_many(
            [
                ("state", {"state": "running"}),
                ("asked", {"generation": 0, "trials": asked, "infeasible": []}),
            ]
        )
        outcomes = []
        for number, point in enumerate(whole):
            fresh = replace(
                plan,
                method=Method(),
                realise="rounded",
                bounds={},
                penalty={},
                seeds=1,
                evaluations=1,
                scored="test",
                metric=metric,
                seed=fold(plan.seed, "retrain", number % seeds) >> 2,
            )
            bundle = Bundle(
                search_id=search.id,
                id=f"b{number:06d}",
                generation=0,
                trials=(Trial(search_id=search.id, number=number, point=point, seed=fresh.seed),),
            )
            outcomes += list(_stored(search, Trainer(fresh, device), bundle))
            log.append("told", {"bundle": bundle.id, "attempt": 0, "numbers": [number]})
        log.append("state", {"state": "complete"})
    return outcomes


def schedules_of(search: SearchStore, plan: Plan, number: int) -> dict[str, Schedule]:
    """How the rates that a gradient moved went in a complete trial, from its reports: what its network was trained
    with."""
    if not plan.gradient or not plan.moved_rates:
        return {}
    outcome = next(o for o in search.outcomes() if o.number == number and o.ending is Ending.COMPLETE)
    (asked,) = (
        trial["point"]
        for event in search.log()
        if event.kind == "asked"
        for trial in event.body["trials"]
        if trial["number"] == number
    )
    # those of attempts that its own went on from included
    reports = [r for r in search.reports_table().to_pylist() if r["trial_id"] == outcome.trial_id]
    reports.sort(key=lambda report: int(report["step"]))
    return {
        name: ((0.0, float(asked[name])), *((r["step"] / outcome.step, float(r[f"arch.{name}"])) for r in reports))
        for name in plan.moved_rates
        if name in asked
    }


def _stored(search: SearchStore, trainer: Trainer, bundle: Bundle) -> Iterator[Outcome]:
    writer = search.attempt_writer(bundle.id, bundle.attempt)
    for record in trainer.train(bundle):
        assert not isinstance(record, Checkpoint)  # none is asked for
        writer.append(record)
        if isinstance(record, Outcome):
            yield record
    writer.close()
