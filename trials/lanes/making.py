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
from search_spaces.network import Size
from search_spaces.networks import MLP, Network, Own
from search_spaces.realise import Realised, realise
from trials.lanes.dense import DenseShape
from trials.lanes.gated import DenseProgram
from trials.lanes.initial import Identity, Start
from trials.lanes.looped import LoopedLanes
from trials.lanes.program import Program
from trials.lanes.vmapped import VmappedLanes
from trials.noise import fold, uniform
from trials.optimisers import Rule
from trials.plan import Plan
from trials.widths import GateKind, Widths

PREFIXES = ("interval", "band", "nested")  # memberships whose surest units are the first
NEAR = 0.05  # how close to a whole stride one that a gradient moves begins beside it


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
    dtype: torch.dtype = torch.float32,
    *,
    grouped: bool | None = None,
) -> tuple[Program, Widths | None]:
    """Lanes ready for their first step, and their widths where they have gates.

    Args:
        points: each lane's point, its sizes as they are to be trained.
        hyper: each lane's hyperparameters, name -> [K].
        grouped: whether dense lanes run as batched products at the sizes of the widest (None: on a GPU).
    """
    network, task = plan.network, plan.task
    assert network is not None
    assert task is not None
    activation = str(points[0].get("activation", network.activation))
    maxima = network.maxima(plan.space)
    numbers_KM = torch.tensor([network.sizes(point) for point in points], dtype=torch.float64).reshape(len(points), -1)
    loss = "cross_entropy" if task.kind == "classification" else "mse"
    built = None if is_dense(plan) else _realised(network, task.shape, task.outputs, maxima, activation)
    opaque = built is not None and built.flow is None
    gated = (
        plan.gradient
        or plan.fractional
        or plan.uses("dropout")
        or network.parametrisation == "ntk"
        or plan.padded
        or opaque
    )
    kinds = gate_kinds(plan, points[0], maxima)
    start_KM = jittered(plan, kinds, numbers_KM, identities)
    widths = Widths(kinds, start_KM, factor=network.parametrisation == "ntk") if gated else None
    sizes: list[tuple[Size, ...]] = (
        list((widths or Widths(kinds, start_KM)).reach())
        if plan.fractional
        else [tuple(network.whole_sizes(point).values()) for point in points]
    )
    if plan.padded:
        sizes = [plan.shape_class(point) for point in points]
    live = (widths or Widths(kinds, numbers_KM)).sizes_KG.tolist()
    lanes: DenseProgram | LoopedLanes | VmappedLanes
    where: Any = {"device": device, "dtype": dtype}
    if built is None:
        shape = DenseShape(
            inputs=task.inputs,
            outputs=task.outputs,
            activation=activation,
            loss=loss,
            parametrisation=network.parametrisation,
            maxima=maxima,
            learner=plan.training.learner,
        )
        # whatever bundle a lane is in: an interval is laid out for as much as it needs, the others for all
        alike = plan.fractional and all(kind.membership != "interval" for kind in kinds)
        grouped = device.type == "cuda" if grouped is None else grouped
        form: Any = {"gated": gated, "growth": network.growth, "alike": alike, "grouped": grouped}
        lanes = DenseProgram(shape, batch, **form, **where)
        lanes.begin(identities, [tuple(map(int, lane)) for lane in sizes], live)  # type: ignore[arg-type]
    else:
        flow = built.flow or Opaque(built.module, built.gates, built.example)
        start = Start(flow=flow, gates=network.gates, parametrisation=network.parametrisation, optimizer=rule.kind)
        whole = not plan.fractional
        if not plan.padded:
            lanes = LoopedLanes(start, loss=loss, gated=gated, whole=whole, growth=network.growth, **where)
        else:
            lanes = VmappedLanes(start, way=plan.way, loss=loss, growth=network.growth, whole=whole, **where)
        by_gate = [dict(zip(network.gates, lane, strict=True)) for lane in sizes]
        lanes.begin(identities, by_gate, [dict(zip(network.gates, lane, strict=True)) for lane in live])
    lanes.attach(rule, hyper)
    if widths is not None:
        lanes.regate(widths.members(), lanes.sizes, widths.sizes_KG)
    return lanes, widths


def gate_kinds(plan: Plan, point: Point, maxima: Sequence[int]) -> list[GateKind]:
    """The gates of the plan's network, and how each moves. A gate on which the point is silent is whole."""
    network = plan.network
    assert network is not None
    moved = plan.space.moved() if plan.moves_sizes else {}
    found = []
    for name, maximum in zip(network.gates, maxima, strict=True):
        numbers = network.numbers_of(name)
        parameter, there = moved.get(numbers[0]), numbers[0] in point
        ends = (network.tau, network.tau_end or network.tau) if network.tau else None
        role = network.role(name)
        found.append(
            GateKind(
                name=name,
                maximum=maximum,
                membership=_membership(plan, name) if plan.fractional and there else "interval",
                scale=(parameter.low, parameter.high, parameter.log) if parameter is not None and there else None,
                tau=ends if role in ("width", "depth") else None,
                role=role,
                topology=network.topology_of(name),
                whole=not plan.fractional,
            )
        )
    return found


def moving(plan: Plan, point: Point) -> int:
    """How many numbers a gradient moves: coordinates of gates, and rates."""
    assert plan.network is not None
    kinds = gate_kinds(plan, point, plan.network.maxima(plan.space))
    widths = Widths(kinds, torch.tensor([plan.network.sizes(point)], dtype=torch.float64).reshape(1, -1))
    return sum(low < high for low, high, _ in widths.scales) + len(plan.moved_rates)


def _membership(plan: Plan, gate: str) -> str:
    """The membership of a gate: the network's, or by default an interval, and a band for a width that moves."""
    network = plan.network
    assert network is not None
    role = network.role(gate)
    if role in ("stride", "topology"):
        return "interval"
    if network.membership != "auto":
        # costs count a depth's first blocks, so others than the first must not be kept
        return network.membership if role == "width" or network.membership in PREFIXES else "interval"
    if isinstance(network, Own):
        return next(found.membership for found in network.found if found.name == gate)
    return "band" if plan.gradient and role == "width" else "interval"


def jittered(plan: Plan, kinds: Sequence[GateKind], numbers_KM: Tensor, identities: Sequence[Identity]) -> Tensor:
    """Where lanes begin: a stride that a gradient moves begins beside a whole one, where its derivative would jump."""
    network, start_KM = plan.network, numbers_KM.clone()
    assert network is not None
    first = 0
    for g, kind in enumerate(kinds):
        if kind.scale is not None and kind.role == "stride" and (jitter := network.beside(kind.name)):
            keys = [fold(seed, "jitter", number, replicate, g) for seed, number, replicate in identities]
            u_K = torch.cat([uniform(key, 1, 1).reshape(1) for key in keys]).double()
            s_K = start_KM[:, first]
            near_K = (s_K - s_K.round()).abs() < NEAR
            shift_K = jitter * (2 * u_K - 1)
            # at an end of the range, the other way: what is cut off there would begin at the whole stride
            inside_K = (s_K + shift_K >= kind.scale[0]) & (s_K + shift_K <= kind.scale[1])
            aside_K = (s_K + torch.where(inside_K, shift_K, -shift_K)).clamp(kind.scale[0], kind.scale[1])
            start_KM[:, first] = torch.where(near_K, aside_K, s_K)
        first += kind.numbers
    return start_KM


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
    return realise(network, shape, outputs, dict(zip(network.gates, maxima, strict=True)), activation)
