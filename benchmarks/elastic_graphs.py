"""What a graph of real grades costs a training step: all edges beside the rounded graph and beside plain networks.

    relaxed    every edge and operation there may be, each by its grade: what a search trains
    rounded    the plain network of the edges that are kept
    ungraded   the plain network of every edge: exactly as many parameters as the relaxed one
    residual   a residual network of about as many parameters as the relaxed one

Vmapped lanes of a search have every edge, rounded or not; `rounded` and `ungraded` ones are what lanes of one and the
same whole graph would cost.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.elastic_cases import Case, begun, lane_step
from benchmarks.timing import LEAST, ratio, rounds
from search_spaces import Space, Topology
from search_spaces.cost import Costs
from search_spaces.flow import Flow
from search_spaces.flow_costs import costs_of
from search_spaces.graph_networks import TOPOLOGY, Cell, Fabric, Graphon, Wired
from search_spaces.materialise import materialise
from search_spaces.network import Size
from search_spaces.networks import Residual
from search_spaces.topology import grades
from trials.lanes.program import Program

Row = dict[str, Any]
OF_IMAGES = ("conv3", "max_pool", "skip")
WIDEST = 512
DRAWS = 15  # random graphs, of which the one of the median FLOPs is measured


@dataclass(frozen=True, kw_only=True)
class GraphScale:
    """How much is measured: each network with its graph and the shape of its rows."""

    networks: tuple[tuple[Wired, Topology, tuple[int, ...]], ...]
    batch: int = 32
    lanes: int = 4
    ways: tuple[str, ...] = ("per_lane", "grouped")
    repeats: int = 9
    least: float = LEAST


FULL = GraphScale(
    networks=(
        (Cell(cells=2, width=16), Topology(nodes=4, operations=OF_IMAGES), (3, 16, 16)),
        (Graphon(width=16), Topology(kind="graphon", nodes=6, operations=OF_IMAGES), (3, 16, 16)),
        (Fabric(width=16), Topology(kind="fabric", layers=4, scales=3, operations=("conv3", "skip")), (3, 16, 16)),
        (Graphon(width=64), Topology(kind="graphon", nodes=6, operations=("linear", "skip")), (64,)),
    )
)
QUICK = GraphScale(
    networks=(
        (Cell(cells=1, width=8), Topology(nodes=3, operations=OF_IMAGES), (3, 8, 8)),
        (Graphon(width=64), Topology(kind="graphon", nodes=4, operations=("linear", "skip")), (64,)),
    ),
    lanes=2,
    repeats=2,
)


def report(scale: GraphScale, device: torch.device) -> dict[str, list[Row]]:
    """Every figure."""
    rows = []
    for network, topology, shape in scale.networks:
        case = case_of(network, topology, shape, scale.batch, device)
        print(f"{case.name}: {topology.graph} ...", file=sys.stderr, flush=True)
        rows += [graph(case, way, scale) for way in scale.ways]
    return {"graphs": rows}


def case_of(network: Wired, topology: Topology, shape: tuple[int, ...], batch: int, device: torch.device) -> Case:
    """A network bound to its graph."""
    return Case(network=network, space=Space({TOPOLOGY: topology}), shape=shape, batch=batch, device=device)


def wired(case: Case) -> Topology:
    """The graph that the case is bound to."""
    topology = case.network.topology_of(TOPOLOGY)
    assert topology is not None
    return topology


def at(case: Case, units: tuple[int, ...]) -> dict[str, Size]:
    """The greatest widths with these units of the graph."""
    return {name: units if name == TOPOLOGY else n for name, n in case.maxima.items()}


def flops_of(case: Case, units: tuple[int, ...], *, graded: bool = False) -> float:
    """FLOPs of a lane's training step with these units of the graph, by the network's costs."""
    sizes = case.network.laid([at(case, units)[name] for name in case.network.gates])
    return case.batch * float(case.costs.training_flops(sizes, graded))


def numbers_of(case: Case) -> Tensor:
    """The median of random graphs by the FLOPs of what they round to, the same in every run: [P]."""
    topology = wired(case)
    generator = torch.Generator().manual_seed(0)
    draws = [torch.rand(topology.size, generator=generator, dtype=torch.float64) for _ in range(DRAWS)]
    return sorted(draws, key=lambda numbers_P: flops_of(case, topology.hard(numbers_P.tolist())))[DRAWS // 2]


def plain_flow(case: Case, units: tuple[int, ...]) -> Flow:
    """The plain network of these units, traced."""
    return Flow(materialise(case.flow, at(case, units)), torch.zeros(2, *case.shape))


def equal_case(case: Case, parameters: float) -> Case:
    """The residual network whose number of parameters is nearest."""

    def built(width: int) -> Case:
        network = Residual(stages=2, blocks=1, width=width)
        return Case(network=network, shape=case.shape, batch=case.batch, device=case.device)

    costs = built(1).costs  # by the names of the gates, so it knows every width

    def miss(width: int) -> float:
        return abs(float(costs.parameters(dict.fromkeys(built(1).network.gates, width))) - parameters)

    return built(min(range(1, WIDEST + 1), key=miss))


def relaxed(case: Case, way: str, count: int) -> Program:
    """Lanes that have every unit by its grade."""
    own_KU = grades(wired(case), numbers_of(case).expand(count, -1), 1.0)
    every = [own_KU if name == TOPOLOGY else torch.ones(count, n) for name, n in case.maxima.items()]
    sizes = [at(case, tuple(range(own_KU.shape[1])))] * count
    return begun(case.flow, case.network.gates, way, sizes, every, device=case.device)


def graph(case: Case, way: str, scale: GraphScale) -> Row:
    """All forms of one network: one lane, or several vmapped ones."""
    topology, count = wired(case), 1 if way == "per_lane" else scale.lanes
    kept, every = topology.hard(numbers_of(case).tolist()), tuple(range(len(topology.units)))
    flows = {"rounded": plain_flow(case, kept), "ungraded": plain_flow(case, every)}
    residual = equal_case(case, float(costs_of(flows["ungraded"]).parameters({})))
    programs = {"relaxed": relaxed(case, way, count), "residual": residual.lanes(way, count)}
    for name, flow in flows.items():
        programs[name] = begun(flow, (), way, [{}] * count, whole=True, device=case.device)
    works = {name: lane_step(program, case) for name, program in programs.items()}
    found = rounds(works, scale.repeats, case.device, scale.least)
    row: Row = {"case": case.name, "graph": topology.graph, "way": way, "lanes": count}
    row |= {"kept": len(kept), "units": len(topology.useful), "relaxed_ms": 1e3 * median(found["relaxed"])}
    row["relaxed_flops"] = count * flops_of(case, every, graded=True)
    costs: dict[str, tuple[Costs, Mapping[str, int]]] = {name: (costs_of(flow), {}) for name, flow in flows.items()}
    for name, (own, sizes) in {**costs, "residual": (residual.costs, residual.maxima)}.items():
        row[f"{name}_ms"] = 1e3 * median(found[name])
        row[f"{name}_parameters"] = int(own.parameters(sizes))
        row[f"{name}_flops"] = count * case.batch * float(own.training_flops(sizes))
        row[f"over_{name}"] = ratio(found, "relaxed", name)
        row[f"flops_over_{name}"] = row["relaxed_flops"] / row[f"{name}_flops"]
    return row
