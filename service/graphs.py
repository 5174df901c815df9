"""The graphs of a search's topologies in words.

>>> graphs_of(spec["space"], best["rounded"])
{'topology': '0 -> 1 conv3; 1 -> 2 conv3, skip'}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.declarations import parameter_from_dict
from search_spaces.drawing import words
from search_spaces.wiring import Topology


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


def without_numbers(point: Mapping[str, Any], graphs: Mapping[str, str]) -> dict[str, Any]:
    """A point without the numbers of graphs that are told in words."""
    return {name: n for name, n in point.items() if name.rpartition(".")[0] not in graphs}
