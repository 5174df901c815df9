"""What a move costs beside the training steps that it goes through, in passes: forward and backward of one step.

>>> extra_passes(Method(kind="unrolled", every=20), coordinates=2)
41.0

Going back through a step is two passes (each product of its forward and backward pass has two derivatives), a tangent
of one is two beside the pass that it rides on, and the outer loss with its gradient is one.
"""

from __future__ import annotations

from trials.hypergradients.method import Method

OUTER = 1.0
POWER = 10  # products to measure the curvature; a start with a 2^-10th of the steepest gives half of it or more


def extra_passes(method: Method, coordinates: int, optimizer: str = "sgd") -> float:
    """Passes of one move of a method that is not direct, for so many `coordinates` that move; `optimizer` is the inner
    one, whose rates tell a Neumann series how far to step, or, where they do not, the curvature is measured."""
    steps = float(method.every)
    match method.kind:
        case "bilevel":
            return 1.0 + 2.0 + OUTER
        case "unrolled":
            return steps * (3.0 if method.checkpoints else 2.0) + OUTER
        case "truncated":
            return 2.0 * method.horizon + OUTER
        case "forward":
            return steps * (3.0 * coordinates - 1.0) + OUTER
        case "reversible":
            return 3.0 * steps + OUTER
        case "implicit":
            measured = POWER if method.solver == "neumann" and optimizer != "sgd" else 0
            return 1.0 + 2.0 * (method.terms + measured + 1) + OUTER
        case "hypernet":
            return steps + OUTER
    raise AssertionError(f"{method.kind} has no derivative of its own")
