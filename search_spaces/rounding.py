"""From real sizes to whole ones that still meet the bounds.

>>> round_within(network, {"width.0": 40.6, "width.1": 70.2, "lr": 0.1}, {"parameters": 6000}, costs, space)
{'width.0': 41, 'width.1': 69, 'lr': 0.1}
"""

from __future__ import annotations

from collections.abc import Mapping

from search_spaces.cost import Costs
from search_spaces.networks import Network
from search_spaces.parameters import Real, Value
from search_spaces.space import Point, Space


def excess(network: Network, point: Mapping[str, Value], bounds: Mapping[str, float], costs: Costs) -> float:
    """The largest cost / bound - 1 of the network at `point`: at most 0 when every bound is met."""
    found = costs.of(network.named(network.sizes(point), whole=True), bounds)
    return max((float(found[name]) / bound - 1.0 for name, bound in bounds.items()), default=0.0)


def round_within(
    network: Network, point: Mapping[str, Value], bounds: Mapping[str, float], costs: Costs, space: Space
) -> Point:
    """The nearest whole sizes that meet the bounds: all widths, depths and edges shrink by one common factor, as little
    as needed (of a graphon, each kernel's constant; where that does not do, its kernels are flat, which leaves one
    path); strides round as they are.

    No size falls below the least whole number its range allows; where even those overshoot, they are returned.
    """

    shrinking = {gate for gate in network.gates if network.role(gate) in ("width", "depth")}
    flat: Point = {}
    for gate in network.gates:
        if (topology := network.topology_of(gate)) is not None:
            each = topology.coefficients if topology.kind == "graphon" else 1
            numbers = network.numbers_of(gate)
            shrinking.update(numbers[::each])
            flat |= {number: 0.5 for number in numbers if number not in shrinking and number in point}

    def shrunk(factor: float) -> Point:
        scaled = {
            name: max(float(value) * factor, _least(space, name)) if name in shrinking else value  # type: ignore[arg-type]
            for name, value in point.items()
        }
        return network.rounded(scaled if factor else {**scaled, **flat})

    nearest = shrunk(1.0)
    if not bounds or excess(network, nearest, bounds, costs) <= 0:
        return nearest
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        meets = excess(network, shrunk(middle), bounds, costs) <= 0
        low, high = (middle, high) if meets else (low, middle)
    return shrunk(low)


def _least(space: Space, name: str) -> float:
    parameter = space.coordinates.get(name)
    return float(-(-parameter.low // 1)) if isinstance(parameter, Real) else 1.0
