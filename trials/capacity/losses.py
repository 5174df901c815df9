"""C_k(z) = E over (initialisation, batches) of the outer loss of a network of sizes z, trained k steps from scratch.

    >>> found = capacity_loss(MLP(layers=1), task, [{"width.0": 8}, {"width.0": 16}], k=200, replicates=32)
    >>> found.estimate_P, found.error_P
    >>> found.difference(1, 0)                  # C(16) - C(8) and its standard error, replicate by replicate

All replicates of all points are lanes of one program, with common random numbers (`trials.capacity.lanes`): so a
difference between points has far less variance than either value.

Legend of shape suffixes: P points, R replicates, Z sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from search_spaces import Point, Space, Value
from search_spaces.faults import Invalid
from search_spaces.networks import MLP
from trials.capacity.lanes import DEFAULT, CapacityLanes, named
from trials.capacity.slopes import Loss
from trials.tasks import Task
from trials.training import Training

Points = Mapping[str, Value] | Sequence[Mapping[str, Value]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Capacity:
    """C_k at P points, from R replicates each: `values_PR` are the outer losses (mean cross-entropy in nats, or half
    the squared error in standardised units). Where a replicate diverged, its value and its point's estimate are NaN.
    `flops_P`: what training all replicates of a point costs at its live sizes."""

    points: tuple[Point, ...]
    k: int
    values_PR: np.ndarray
    flops_P: np.ndarray

    @property
    def estimate_P(self) -> np.ndarray:
        """The mean over replicates."""
        return np.asarray(self.values_PR.mean(1))

    @property
    def error_P(self) -> np.ndarray:
        """The standard error of each estimate; NaN of a single replicate."""
        return _error(self.values_PR)

    def difference(self, i: int, j: int = 0) -> tuple[float, float]:
        """C_k at point i less that at point j, and its standard error over replicates, which they share."""
        paired_R = self.values_PR[i] - self.values_PR[j]
        return float(paired_R.mean()), float(_error(paired_R[None])[0])


def _error(values_PR: np.ndarray) -> np.ndarray:
    count = values_PR.shape[1]
    if count == 1:
        return np.full(len(values_PR), np.nan)
    return np.asarray(values_PR.std(1, ddof=1) / math.sqrt(count))


def capacity_loss(
    network: MLP,
    task: Task,
    point: Points,
    k: int,
    replicates: int,
    *,
    training: Training = DEFAULT,
    fractional: bool = False,
    space: Space | None = None,
    numbers: Sequence[int] | None = None,
    splits: tuple[Sequence[str], str] = (("train",), "outer"),
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Capacity:
    """C_k at one point, or at several in the same program.

    Args:
        point: widths by gate name (`width.0`, ...; the network's own where it is silent), and any of lr, momentum,
            weight_decay, beta1, beta2 that stand in for the training's. One or several.
        k: optimiser steps from scratch; `training.epochs` is not read.
        replicates: initialisations and orders of batches.
        fractional: train at the real sizes, by the network's membership (`auto`: interval), rather than the nearest
            whole ones. A band's maximum is the space's `high`, or the network's own `width`.
        numbers: for each point, the number of its random numbers; points of one number share them (default: all).
        splits: what the weights are trained on, and whose loss is measured.
        dtype: float64 for derivatives by finite differences.

    Raises:
        Invalid: with every rule that the arguments break.
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 0:
        raise Invalid([f"k: must be a whole number of steps of at least 0, but got {k!r}."])
    lanes = CapacityLanes(
        network,
        task,
        [point] if isinstance(point, Mapping) else list(point),
        replicates,
        training=training,
        fractional=fractional,
        space=space,
        numbers=numbers,
        splits=splits,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    lanes.train(k)
    return Capacity(points=tuple(lanes.points), k=k, values_PR=lanes.losses_PR(), flops_P=lanes.flops_P)


def objective(
    network: MLP,
    task: Task,
    k: int,
    replicates: int = 1,
    *,
    point: Mapping[str, Value] | None = None,
    fractional: bool = False,
    training: Training = DEFAULT,
    space: Space | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Loss:
    """C_k as a function of sizes, as `trials.capacity.slopes` asks for it: all points of a call in one program, those
    of one number with the same initialisation and batches. `point` gives what is the same for all, such as the lr."""

    def loss(sizes_PZ: np.ndarray, numbers_P: np.ndarray) -> np.ndarray:
        points = [{**(point or {}), **named(network, sizes_Z)} for sizes_Z in sizes_PZ]
        found = capacity_loss(
            network,
            task,
            points,
            k,
            replicates,
            training=training,
            fractional=fractional,
            space=space,
            numbers=[int(number) for number in numbers_P],
            seed=seed,
            dtype=dtype,
        )
        return found.estimate_P

    return loss
