"""The slope of C_k in log sizes by reverse mode through all k steps and the initialisation, replicate by replicate.

    >>> found = unrolled_slope(MLP(layers=1, membership="band"), task, {"width.0": 12.5}, k=20, replicates=32)
    >>> found.gradient_Z, found.error_Z

It is the derivative of what `capacity_loss(..., fractional=True)` estimates, of the same initialisations and batches.
At whole sizes of an interval, which are kinks, it is the slope to one side; through long or unstable trainings it
explodes where evolution strategies smooth.

Legend of shape suffixes: R replicates (each a lane), Z sizes, B batch, I 1 + inputs, T the flat buffer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from search_spaces import Space, Value
from search_spaces.faults import Invalid
from search_spaces.membership import band, interval
from search_spaces.networks import MLP
from trials.capacity.lanes import DEFAULT, CapacityLanes
from trials.capacity.slopes import Slope
from trials.hypergradients.inner import Inner, State
from trials.hypergradients.unrolled import through
from trials.lanes.dense_functions import DenseFunctions
from trials.lanes.program import spread
from trials.tasks import Task
from trials.training import Training

TAU = 0.3  # of a band, where the network says none


class Rows(NamedTuple):
    """Inputs [R, B, I] and targets of a step, or [B, I] of all replicates."""

    x: Tensor
    y: Tensor


def unrolled_slope(
    network: MLP,
    task: Task,
    point: Mapping[str, Value],
    k: int,
    replicates: int,
    *,
    training: Training = DEFAULT,
    space: Space | None = None,
    splits: tuple[Sequence[str], str] = (("train",), "outer"),
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Slope:
    """d C_k / d log z at one point; the arguments are those of `capacity_loss`.

    Raises:
        Invalid: with every rule that the arguments break; and for parametrisations other than `sp`, whose learning
            rates or factors follow the sizes too.
    """
    if network.parametrisation != "sp":
        raise Invalid([f"network.parametrisation: must be sp, but got {network.parametrisation!r}; take differences."])
    lanes = CapacityLanes(
        network,
        task,
        [point],
        replicates,
        training=training,
        fractional=True,
        space=space,
        splits=splits,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    sizes_Z = torch.tensor(network.sizes(lanes.points[0]), dtype=torch.float64, device=lanes.device)
    log_RZ = sizes_Z.log().expand(replicates, -1)
    dense = lanes.lanes
    state = State.begin(dense.rule, dense.weights_T.clone())
    outer_x, outer_y = lanes.outer.batch(torch.arange(len(lanes.outer.y_R), device=lanes.device))
    outer = Rows(outer_x.to(dtype), outer_y.to(dtype))
    found, pull = through(_inner(lanes), state, log_RZ, [_batch(lanes, step) for step in range(k)], outer)
    return Slope.of((found.gradient_KP + _by_start(lanes, pull[0])).double().cpu().numpy())


def _inner(lanes: CapacityLanes) -> Inner:
    dense, network = lanes.lanes, lanes.network
    functions = DenseFunctions(dense)
    hyper = {name: spread(name, dense.hyper, dense.lane_T, None) for name in dense.rule.uses}
    hyper["lr"] = hyper["lr"] * dense.rates_T

    def grades(log_RZ: Tensor) -> list[Tensor]:
        n_ZR = log_RZ.exp().unbind(1)
        if network.membership == "band":
            found = [band(n_R, m, network.tau or TAU) for n_R, m in zip(n_ZR, lanes.maxima, strict=True)]
        else:
            found = [interval(n_R, m) for n_R, m in zip(n_ZR, lanes.maxima, strict=True)]
        return [m_RN.to(dense.dtype) for m_RN in found]

    def losses(weights_T: Tensor, log_RZ: Tensor, batch: Rows) -> Tensor:
        return functions.losses(weights_T, grades(log_RZ), *batch)

    return Inner(rule=dense.rule, lane_T=dense.lane_T, losses=losses, hyper=lambda _: hyper)


def _batch(lanes: CapacityLanes, step: int) -> Rows:
    places_RB = lanes.places(step)
    x, y = lanes.data.batch(places_RB.flatten())
    return Rows(*(t.view(*places_RB.shape, -1).to(lanes.dtype) for t in (x, y)))


def _by_start(lanes: CapacityLanes, by_weights_T: Tensor) -> Tensor:
    """What the loss feels of log sizes through the initial weights, [R, Z]: of a layer that reads n units they have the
    scale n^(-1/2) (He et al. 2015)."""
    dense = lanes.lanes
    products_T = by_weights_T * dense.weights_T
    columns = []
    for z in range(dense.hidden):
        reads_T = torch.where(dense.layer_T == z + 1, products_T, 0.0)
        columns.append(-0.5 * products_T.new_zeros(dense.lanes).index_add_(0, dense.lane_T, reads_T))
    return torch.stack(columns, 1)
