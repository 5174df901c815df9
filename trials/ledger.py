"""What a trial will cost at most, known before it trains: so that a budget in FLOPs or epochs is never overrun."""

from __future__ import annotations

from search_spaces import Point
from search_spaces.networks import MLP
from trials.hypergradients.cost import extra_passes
from trials.plan import Plan


def most_flops(plan: Plan, point: Point) -> float:
    """The FLOPs that a trial at `point` executes, or an upper bound where a gradient moves its sizes."""
    if plan.task is None or plan.network is None:
        return 0.0
    training = plan.training.at(point)
    trained = len(plan.task.rows(*plan.train_splits).y)
    steps = training.steps(trained)
    named, relaxed = plan.laid(point), plan.fractional
    step = training.batch_size * plan.costs.training_flops(named, relaxed)
    moves = len(plan.method.moves(steps)) if plan.gradient else 0
    grades = training.batch_size * plan.costs.grade_flops(named)
    move = (
        (
            grades
            if plan.method.direct
            else step * extra_passes(plan.method, coordinates(plan, point), training.optimizer)
        )
        if moves
        else 0
    )
    move += grades if moves and plan.grows_by_gradient else 0
    measured = min(plan.evaluations, steps) + plan.fractional  # once more at whole sizes
    rows = len(plan.task.rows(plan.scored).y) * measured
    if not isinstance(plan.network, MLP):  # batch norms see training rows anew before the last measurement, and whole
        rows += training.batch_size * training.norm_steps(trained) * (1 + plan.fractional)
    forward = plan.costs.flops(named, relaxed)
    return float(plan.seeds * (steps * step + moves * move + rows * forward))


def coordinates(plan: Plan, point: Point) -> int:
    """How many numbers a gradient moves, where what a move costs depends on it; else 0."""
    if plan.method.kind != "forward":
        return 0
    from trials.lanes.making import moving  # torch, which no other method needs here

    return moving(plan, point)


def epochs(plan: Plan, point: Point) -> float:
    """The passes over the training data that a trial at `point` makes, replicates included."""
    return float(plan.seeds * plan.training.at(point).epochs) if plan.task is not None else 0.0
