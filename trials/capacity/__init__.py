"""Capacity: what a network of some size is worth after k steps, and how to descend on it.

The central question of the 2017 draft is whether the immediate loss codes for it. Two objects, never conflated:

    C_k(z)          E over (initialisation, batches) of the outer loss of a network of sizes z trained k steps from
                    scratch: `losses.capacity_loss`
    dC_k(theta, z)  the change in validation loss k steps after a trained network theta of sizes z was grown, against
                    the same network trained k steps further without growing: `growing.growth_change`

    losses      C_k of many points and replicates as one program of fused lanes
    lanes       what they train: points and replicates that go on as told, the particles of persistent ES
    growing     dC_k of many candidates and kinds of growth as one program of fused lanes
    slopes      dC_k / d log z by evolution strategies, central differences, persistent evolution strategies
    descent     ask and tell over sizes: descent on noisy values of C_k under a bound

Importing this package, `slopes` or `descent` loads no torch.
"""

from trials.capacity.descent import CapacityDescent
from trials.capacity.slopes import PersistentES, Slope, central_differences, evolution_strategies

__all__ = ["CapacityDescent", "PersistentES", "Slope", "central_differences", "evolution_strategies"]
