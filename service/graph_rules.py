"""Rules between a network whose wiring is a topology, the space that has it, and the gradient that moves it.

>>> size_faults(Cell(cells=2), Space({"topology": Topology(nodes=40, operations=("conv3", "skip"))}))
['space.topology.nodes: ... at most 800 operations, but 40 nodes ... make 3280; lower `nodes` to at most 19.']
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from search_spaces import Space, Topology
from search_spaces.graph_networks import Fabric, Wired
from search_spaces.network import Network
from search_spaces.wiring import OWN_KEYS

PRESSURES = ("entropy", "sparsity")  # of a hypergradient, on a topology that it moves
MOST_OPERATIONS = 800  # a network of eight DARTS cells has 784; each is built, traced and costed, some 6 ms apiece


def network_faults(network: Network, space: Space, faulty: Collection[str] = ()) -> list[str]:
    """The network's own rules for its space; a topology among the `faulty` names is not there, but is not missing."""
    if isinstance(network, Wired) and any(
        network.role(name) == "topology" for name in faulty if name in network.offers
    ):
        # how many widths a fabric has is for its topology to say
        return [] if isinstance(network, Fabric) else Network.space_faults(network, space)
    return network.space_faults(space) + (size_faults(network, space) if isinstance(network, Wired) else [])


def size_faults(network: Wired, space: Space) -> list[str]:
    """What makes a network of more operations than can be built and costed in a few seconds."""
    bound = network.within(space)
    assert isinstance(bound, Wired)
    topology, cells = bound.wired, int(getattr(network, "cells", 1))
    if topology is None or _operations(topology) * cells <= MOST_OPERATIONS:
        return []
    made, kinds = _operations(topology) * cells, ", ".join(topology.operations)
    if topology.kind == "fabric":
        key, got = "layers", f"{topology.layers} layers of {topology.scales} scales with {kinds}"
        way = "lower `layers` or `scales`"
    else:
        key, got = "nodes", f"{topology.nodes} nodes with {kinds}" + (f" in {cells} cells" if cells > 1 else "")
        fits = [n for n in range(1, 2 * MOST_OPERATIONS) if _edges(n) * _flowing(topology) * cells <= MOST_OPERATIONS]
        way = f"lower `nodes` to at most {fits[-1]}" if fits else "lower network.cells"
    return [
        f"space.topology.{key}: a network has at most {MOST_OPERATIONS} operations on its edges, each of which is "
        f"built and costed by itself, but {got} make {made}; {way}."
    ]


def foreign_faults(where: str, data: Mapping[str, Any]) -> list[str]:
    """Keys of a topology's declaration that mean nothing to its kind."""
    kind = str(data.get("kind", Topology.kind))
    return [
        f"{where}.{key}: belongs to kind {' or '.join(others)}, but this topology is {kind}, which is given by "
        f"{' and '.join(OWN_KEYS[kind])}; drop it, or take another kind."
        for key, others in _foreign(data).items()
    ]


def _foreign(data: Mapping[str, Any]) -> dict[str, list[str]]:
    """Those keys, each with the kinds of topology that have it."""
    own = OWN_KEYS.get(str(data.get("kind", Topology.kind)))
    if data.get("type") != Topology.type or own is None:
        return {}
    keys = {key: [other for other, known in OWN_KEYS.items() if key in known] for key in data}
    return {key: others for key, others in keys.items() if others and key not in own}


def without_unused(data: Mapping[str, Any]) -> dict[str, Any]:
    """A stored spec without the keys that the rules about unused ones refuse: they did nothing, and were once allowed,
    so that they must not keep a search from being resumed or its best from being exported."""
    space, search = data.get("space", {}), data.get("search", {})
    kept = {name: {key: value for key, value in own.items() if key not in _foreign(own)} for name, own in space.items()}
    moved = any(own.get("type") == Topology.type and own.get("moved_by") == "gradient" for own in space.values())
    method = search.get("hypergradient")
    if isinstance(method, Mapping) and "clip" not in method:  # it was stored before derivatives were clipped
        method = {**method, "clip": 0.0}
        search = {**search, "hypergradient": method}
    if isinstance(method, Mapping) and not moved:
        search = {**search, "hypergradient": {key: value for key, value in method.items() if key not in PRESSURES}}
    return {**data, "space": kept, "search": search}


def _edges(nodes: int) -> int:
    return nodes * (nodes + 1) // 2


def _flowing(topology: Topology) -> int:
    """Operations that an edge is built with."""
    return sum(operation != "zero" for operation in topology.operations)


def _operations(topology: Topology) -> int:
    """How many operations one cell has; counted, for a list of them may not fit into memory."""
    if topology.kind == "fabric":
        return topology.size // len(topology.operations) * _flowing(topology)
    return _edges(topology.nodes) * _flowing(topology)


def pressure_faults(method: Any, space: Space) -> list[str]:
    """`entropy` and `sparsity` where there is nothing that they could press on."""
    moved = any(isinstance(p, Topology) and p.moved_by == "gradient" for p in space.parameters.values())
    graphs = [name for name, p in space.parameters.items() if isinstance(p, Topology)]
    way = f"give {graphs[0]} `moved_by: gradient`, or drop it" if graphs else "drop it"
    return [
        f"search.hypergradient.{key}: presses on a topology while a gradient moves it, but got "
        f"{getattr(method, key):g} and no topology that one moves; {way}."
        for key in PRESSURES
        if getattr(method, key) and not moved
    ]
