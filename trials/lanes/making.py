"""From a plan to a program of lanes: which one, laid out how, and with which gates.

Multi-layer perceptrons are dense lanes; any other network, or one whose images are augmented lane by lane, runs by the
plan's `way`. Lanes have gates where their sizes are real, where the parametrisation multiplies at run time, where all
are laid out alike, and where the network cannot be traced and so not be cut to size.

Legend of shape suffixes: K lanes, G gates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from search_spaces import Point
from search_spaces.flow import Opaque
from search_spaces.networks import MLP, Network, Own
from search_spaces.parameters import Real
from search_spaces.realise import Realised, realise
from trials.lanes.dense import DenseShape
from trials.lanes.gated import DenseProgram
from trials.lanes.initial import Identity, Start
from trials.lanes.looped import LoopedLanes
from trials.lanes.program import Program
from trials.lanes.vmapped import VmappedLanes
from trials.optimisers import Rule
from trials.plan import Plan
from trials.widths import GateKind, Widths


def is_dense(plan: Plan) -> bool:
    """Whether the plan's lanes are dense ones, which read rows with a leading 1."""
    assert plan.task is not None
    return isinstance(plan.network, MLP) and not plan.augmented


def make(
    plan: Plan,
    points: Sequence[Point],
    identities: Sequence[Identity],
    rule: Rule,
    hyper: Mapping[str, Tensor],
    batch: int,
    device: torch.device,
) -> tuple[Program, Widths | None]:
    """Lanes ready for their first step, and their widths where they have gates.

    Args:
        points: each lane's point, its sizes as they are to be trained.
        hyper: each lane's hyperparameters, name -> [K].
    """
    network, task = plan.network, plan.task
    assert network is not None
    assert task is not None
    activation = str(points[0].get("activation", network.activation))
    maxima = network.maxima(plan.space)
    sizes_KG = torch.tensor([network.sizes(point) for point in points], dtype=torch.float64).reshape(len(points), -1)
    loss = "cross_entropy" if task.kind == "classification" else "mse"
    built = None if is_dense(plan) else _realised(network, task.shape, task.outputs, maxima, activation)
    opaque = built is not None and built.flow is None
    gated = plan.fractional or network.parametrisation == "ntk" or plan.padded or opaque
    kinds = gate_kinds(plan, points[0], maxima)
    widths = Widths(kinds, sizes_KG, factor=network.parametrisation == "ntk") if gated else None
    sizes = widths.reach() if widths else [tuple(int(n) for n in lane) for lane in sizes_KG.tolist()]
    if plan.padded:
        sizes = [plan.shape_class(point) for point in points]
    live = sizes_KG.tolist()
    lanes: DenseProgram | LoopedLanes | VmappedLanes
    if built is None:
        shape = DenseShape(
            inputs=task.inputs,
            outputs=task.outputs,
            activation=activation,
            loss=loss,
            parametrisation=network.parametrisation,
            maxima=maxima,
        )
        lanes = DenseProgram(shape, batch, gated=gated, growth=network.growth, device=device)
        lanes.begin(identities, sizes, live)
    else:
        flow = built.flow or Opaque(built.module, built.gates, built.example)
        start = Start(flow=flow, gates=network.gates, parametrisation=network.parametrisation, optimizer=rule.kind)
        if not plan.padded:
            lanes = LoopedLanes(start, loss=loss, gated=gated, growth=network.growth, device=device)
        else:
            lanes = VmappedLanes(start, way=plan.way, loss=loss, growth=network.growth, device=device)
        lanes.begin(identities, [network.named(lane) for lane in sizes], [network.named(lane) for lane in live])
    lanes.attach(rule, hyper)
    if widths is not None:
        lanes.regate(widths.members(), lanes.sizes, widths.sizes_KG)
    return lanes, widths


def gate_kinds(plan: Plan, point: Point, maxima: Sequence[int]) -> list[GateKind]:
    """The gates of the plan's network, and how each moves. A gate on which the point is silent is whole."""
    network = plan.network
    assert network is not None
    own = {name: kind for name, _, kind in network.found} if isinstance(network, Own) else {}
    usual = "band" if plan.gradient else "interval"
    found = []
    for name, maximum in zip(network.gates, maxima, strict=True):
        parameter = plan.space.moved().get(name) if plan.gradient else None
        membership = own.get(name, usual) if network.membership == "auto" else network.membership
        ends = (network.tau, network.tau_end or network.tau) if network.tau else None
        moves = isinstance(parameter, Real) and name in point
        scale = (parameter.low, parameter.high, parameter.log) if isinstance(parameter, Real) and moves else None
        found.append(
            GateKind(
                name=name,
                maximum=maximum,
                membership=membership if plan.fractional and name in point else "interval",
                scale=scale,
                tau=ends,
            )
        )
    return found


def _realised(
    network: Network, shape: tuple[int, ...], outputs: int, maxima: tuple[int, ...], activation: str
) -> Realised:
    # two functions of one name are two networks, though their declarations are equal
    return _built(network, getattr(network, "factory", None), shape, outputs, maxima, activation)


@functools.lru_cache(maxsize=8)
def _built(
    network: Network,
    factory: Callable[..., Any] | None,
    shape: tuple[int, ...],
    outputs: int,
    maxima: tuple[int, ...],
    activation: str,
) -> Realised:
    return realise(network, shape, outputs, network.named(maxima), activation)
