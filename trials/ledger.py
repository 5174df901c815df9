"""What a trial will cost at most, known before it trains: so that a budget in FLOPs or epochs is never overrun."""

from __future__ import annotations

from search_spaces import Point
from search_spaces.cost import mlp_flops, mlp_training_flops
from trials.plan import Plan


def most_flops(plan: Plan, point: Point) -> float:
    """The FLOPs that a trial at `point` executes, or an upper bound where a gradient moves its sizes."""
    if plan.task is None or plan.network is None:
        return 0.0
    training = plan.training.at(point)
    steps = training.steps(len(plan.task.rows(*plan.train_splits).y))
    sizes = plan.network.maxima(plan.space) if plan.fractional else plan.network.sizes(plan.rounded(point))
    step = training.batch_size * mlp_training_flops(plan.task.inputs, sizes, plan.task.outputs)
    moves = -(-max(steps - plan.method.warmup, 0) // plan.method.every) if plan.gradient else 0
    rows = len(plan.task.rows(plan.scored).y) * min(plan.evaluations, steps)
    forward = mlp_flops(plan.task.inputs, sizes, plan.task.outputs)
    return float(plan.seeds * ((steps + moves) * step + rows * forward))


def epochs(plan: Plan, point: Point) -> float:
    """The passes over the training data that a trial at `point` makes, replicates included."""
    return float(plan.seeds * plan.training.at(point).epochs) if plan.task is not None else 0.0
