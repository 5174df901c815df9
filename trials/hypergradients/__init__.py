"""Derivatives of an objective with respect to the architecture and rates, taken while the weights train.

    none        nothing moves
    descent     the training loss of now (single level: the local search of the 2017 draft)
    bilevel     the outer loss of now, first order, or exactly through one step ahead
    unrolled    the outer loss through the steps since the last move, reverse mode
    truncated   the same through the last of them
    forward     the same by tangents
    reversible  the same, undoing the steps in integers
    implicit    a training at rest, by the implicit function theorem
    hypernet    a best response that is learned with the weights

The problem is the task and its network, the loop is `trials.lanes`, the derivative is here; `moves` takes the step.
Importing this package loads no torch.
"""

from trials.hypergradients.method import KINDS, Method

__all__ = ["KINDS", "Method"]
