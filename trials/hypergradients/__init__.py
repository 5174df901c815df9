"""Derivatives of an objective with respect to the architecture, taken while the weights train.

    none      nothing moves
    descent   the training loss itself (single level: the local search of the 2017 draft)
    bilevel   the loss on the outer split, first order (DARTS, Liu et al. 2019, eq. 7 at xi = 0)

The problem is the task and its network, the loop is `trials.lanes`, the derivative is here; `moves` takes the step.
Importing this package loads no torch.
"""

from trials.hypergradients.method import METHODS, Method

__all__ = ["METHODS", "Method"]
