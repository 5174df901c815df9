"""What of a relaxed network is kept when it becomes whole: units, blocks, edges, and how far each map strides.

    >>> kept_units(flow, {"width.0": 17, "stride.0": 2, "depth": 3})

A whole size is a number of units or blocks (the surest are kept), a whole stride, or for a topology the indices of the
units that are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.blocks import Mix, Passing
from search_spaces.faults import Invalid, unknown
from search_spaces.flow import Flow
from search_spaces.network import Size
from search_spaces.stride import Stride, StrideGate
from search_spaces.topology import TopologyGate
from search_spaces.width import Gate, MemberGate, gates_of

ROLES: dict[type[nn.Module], str] = {Stride: "stride", Passing: "depth", Mix: "topology"}


def roles_of(module: nn.Module) -> dict[str, str]:
    """What each gate gives a size to: a width, a stride, a depth or a topology."""
    found = {name: gate.role for name, gate in gates_of(module).items()}
    for child in module.modules():
        for kind, role in ROLES.items():
            if isinstance(child, kind):
                found[child.gate.name] = role  # type: ignore[union-attr, index]
    return found


def whole(n: float, maximum: int, least: int = 1) -> int:
    """The nearest whole size in least .. N, halves up."""
    return max(least, min(int(n + 0.5), maximum))


def members(gate: Gate, size: int) -> Tensor:
    """The indices of the `size` surest members, rising; lower indices first among equals."""
    training = gate.training
    try:
        grades = gate.eval().grades().detach()  # without noise: who is a member is no matter of chance
    finally:
        gate.train(training)
    order = torch.argsort(grades, descending=True, stable=True)
    return order[:size].sort().values


def sizes_of(module: nn.Module) -> dict[str, Size]:
    """The whole size nearest to each gate's real one; of a gate that is held, its greatest."""
    roles = roles_of(module)
    return {name: _size_of(gate, roles[name]) for name, gate in gates_of(module).items()}


def _size_of(gate: Gate, role: str) -> Size:
    if isinstance(gate, TopologyGate):
        return gate.topology.hard(gate.w.detach().tolist())
    if isinstance(gate, StrideGate):
        return max(1, int(float(gate.size().detach()) + 0.5))
    if isinstance(gate, MemberGate):
        return whole(float(gate.size().detach()), gate.maximum, _least(role))
    return 1 if role == "stride" else tuple(range(gate.maximum)) if role == "topology" else gate.maximum


def _least(role: str) -> int:
    return 0 if role == "depth" else 1


def kept_units(flow: Flow, sizes: Mapping[str, Size] | None = None) -> dict[str, Tensor]:
    """What is kept of each gate's index set, and of a stride its whole value. Raises `Invalid` for sizes that no gate
    has."""
    roles, wanted = roles_of(flow.graph), wanted_sizes(flow.graph, sizes)
    return {name: _kept(gate, roles[name], wanted[name]) for name, gate in flow.gates.items()}


def _kept(gate: Gate, role: str, size: Any) -> Tensor:
    if role in ("stride", "topology"):
        return torch.tensor(size if role == "topology" else [size], dtype=torch.long)
    return members(gate, size)


def sizes_kept(flow: Flow, kept: Mapping[str, Tensor]) -> dict[str, Size]:
    """What is kept as whole sizes."""
    roles = roles_of(flow.graph)
    as_size: dict[str, Any] = {"stride": int, "topology": lambda units: tuple(units.tolist())}
    return {name: as_size.get(roles[name], len)(units) for name, units in kept.items()}


def strides_of(flow: Flow, kept: Mapping[str, Tensor]) -> dict[str, int]:
    """The whole strides among what is kept."""
    return {name: int(kept[name]) for name, role in roles_of(flow.graph).items() if role == "stride"}


def wanted_sizes(module: nn.Module, sizes: Mapping[str, Size] | None) -> dict[str, Size]:
    """The whole size of each gate: as given, or its own. Raises `Invalid` for sizes that no gate has."""
    gates, roles = gates_of(module), roles_of(module)
    wanted = {**sizes_of(module), **(sizes or {})}
    faults = [unknown("sizes", name, gates, "gate") for name in wanted if name not in gates]
    for name, gate in gates.items():
        faults += _size_faults(f"sizes.{name}", gate, roles[name], wanted[name])
    if faults:
        raise Invalid(faults)
    return wanted


def _size_faults(where: str, gate: Gate, role: str, size: Any) -> list[str]:
    if role == "topology":
        good = isinstance(size, tuple) and all(unit in range(gate.maximum) for unit in size)
        return [] if good else [f"{where}: must be units in 0 .. {gate.maximum - 1}, but got {size!r}."]
    if role == "stride":
        good = not isinstance(size, tuple) and size >= 1 and size == int(size)
        return [] if good else [f"{where}: must be a whole stride of at least 1, but got {size}."]
    if _least(role) <= size <= gate.maximum:
        return []
    return [f"{where}: must lie in {_least(role)} .. {gate.maximum}, but got {size}."]
