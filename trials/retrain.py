"""Retraining from scratch: what a found network is worth, apart from the luck of the training that found it.

The same parametrisation, optimiser and hyperparameters at the rounded sizes, with fresh initialisations and fresh data
orders (a search can fit those it shares), scored on the test split, which nothing else reads. Both train and outer
rows are trained on, whatever the arm.

Each retraining is a trial of a search of its own, so that it is stored and queried like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from search_spaces import Point
from trials.hypergradients.method import Method
from trials.noise import fold
from trials.plan import Plan
from trials.records import Bundle, Outcome, Trial
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


def _stored(search: SearchStore, trainer: Trainer, bundle: Bundle) -> Iterator[Outcome]:
    writer = search.attempt_writer(bundle.id, bundle.attempt)
    for record in trainer.train(bundle):
        writer.append(record)
        if isinstance(record, Outcome):
            yield record
    writer.close()
