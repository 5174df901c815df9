"""The graphs of a search's topologies in words.

>>> graphs_of(spec["space"], best["rounded"])
{'topology': '0 -> 1 conv3; 1 -> 2 conv3, skip'}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces.declarations import parameter_from_dict
from search_spaces.drawing import words
from search_spaces.wiring import Topology
from trials.records import Outcome


def topologies(space: Mapping[str, Any]) -> dict[str, Topology]:
    """The topologies of a space given as plain data, by name."""
    found = {name: parameter_from_dict(name, data)[0] for name, data in space.items()}
    return {name: parameter for name, parameter in found.items() if isinstance(parameter, Topology)}


def graphs_of(space: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, str]:
    """The rounded graph of each topology at a point."""
    found = {}
    for name, topology in topologies(space).items():
        numbers = [point.get(number) for number in topology.coordinates(name)]
        if all(isinstance(number, int | float) for number in numbers):
            found[name] = words(topology, topology.hard(numbers))  # type: ignore[arg-type]
    return found


def moves_of(
    space: Mapping[str, Any], asked: Mapping[str, Any], ended: Outcome, *, own: bool = False
) -> dict[str, tuple[float, float]]:
    """Where a gradient moved topologies, `edges` (the sum of grades) and `undecided` (mean bits an edge) at the start
    and at the end, summed over all of the network as its metrics are, those that stay where they are too.

    Nothing where none moved, or where the space may be silent on a topology of the user's `own` network.
    """
    graphs, metrics = topologies(space), ended.metrics
    numbers = {name: [asked.get(number) for number in t.coordinates(name)] for name, t in graphs.items()}
    if not ("edges" in metrics and "undecided" in metrics) or not all(
        isinstance(number, int | float) for given in numbers.values() for number in given
    ):
        return {}
    known = {*space, *(number for name, t in graphs.items() for number in t.coordinates(name))}
    if own and any(name not in known and name.rpartition(".")[2].isdecimal() for name in ended.rounded):
        return {}
    moved = [number for name, t in graphs.items() if t.moved_by == "gradient" for number in t.coordinates(name)]
    if all(asked.get(number) == ended.point.get(number) for number in moved):
        return {}
    starts = [_statistics(topology, numbers[name]) for name, topology in graphs.items()]  # type: ignore[arg-type]
    edges, undecided = (sum(column) for column in zip(*starts, strict=True))
    return {"edges": (edges, metrics["edges"]), "undecided": (undecided, metrics["undecided"])}


def _statistics(topology: Topology, numbers: Sequence[float]) -> tuple[float, float]:
    """The sum of the grades that a network has use for, and their mean entropy in bits, as `search_spaces.topology` has
    them, without torch."""
    grade_U = topology.grades(numbers)
    useful = [grade_U[unit] for unit in topology.useful]
    bits = [-sum(p * math.log2(p) for p in (grade, 1 - grade) if p > 0) for grade in useful]
    return sum(useful), sum(bits) / len(bits)


def without_numbers(point: Mapping[str, Any], graphs: Mapping[str, str]) -> dict[str, Any]:
    """A point without the numbers of graphs that are told in words."""
    return {name: n for name, n in point.items() if name.rpartition(".")[0] not in graphs}
