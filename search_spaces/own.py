"""The user's own network, `module:attribute`, as a declaration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from search_spaces.cost import Costs
from search_spaces.layered import JITTER, stride_faults
from search_spaces.network import GROWTHS, Network
from search_spaces.parameters import Depth, Stride, Width
from search_spaces.space import Space
from search_spaces.wiring import Topology


@dataclass(frozen=True, kw_only=True)
class Found:
    """A gate in the user's network: how many grades it has, its membership, and what it gives a size to.

    `starts` is where its numbers stand when the space is silent (default: at its maximum); `topology` what a topology's
    gate knows. A stride has its kind, the side of the map that it meets where all strides are 1, and a spectral one its
    ramp in frequencies.
    """

    name: str
    maximum: int
    membership: str = "interval"
    role: str = "width"
    starts: tuple[float, ...] = ()
    topology: Topology | None = None
    stride: str = ""
    side: int = 0
    ramp: int = 0


@dataclass(frozen=True, kw_only=True)
class Own(Network):
    """The user's own network: `factory(...)` returns a module with gates. `reference` is `module:attribute`; `options`
    are passed on, as are `shape` (of a row) and `outputs` where the function has such parameters.

    Before `resolved` has found the function, the gates are not known.
    """

    kind: ClassVar[str] = "own"
    HIDDEN: ClassVar[tuple[str, ...]] = (
        "asked",
        "reference",
        "factory",
        "found",
        "priced",
        "alone",
        "whole",
        "width",
        "activation",
    )

    reference: str = field(default="", repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    factory: Callable[..., Any] | None = field(default=None, repr=False, compare=False)
    found: tuple[Found, ...] = field(default=(), repr=False)
    priced: Costs | None = field(default=None, repr=False, compare=False)
    alone: bool = field(default=False, repr=False)  # its lanes cannot run as one batched program
    whole: bool = field(default=False, repr=False)  # gated lanes keep its greatest sizes

    def faults(self) -> list[str]:
        faults = super().faults()
        options: object = self.options
        if not isinstance(options, Mapping):
            faults.append(f"network.options: must be a mapping of the function's arguments, but got {options!r}.")
        if self.parametrisation == "ntk":
            faults.append("network.parametrisation: ntk needs one of our networks; take sp or mup for your own.")
        if self.growth in GROWTHS and self.growth != "fresh":
            faults.append(f"network.growth: {self.growth} needs one of our networks; take fresh for your own.")
        return faults

    @property
    def gates(self) -> tuple[str, ...]:
        return tuple(sorted(self.offers, key=lambda name: self.offers[name] == "topology"))

    @property
    def widths(self) -> tuple[str, ...]:
        return tuple(gate.name for gate in self.found if gate.role == "width")

    @property
    def offers(self) -> Mapping[str, str]:
        return {gate.name: gate.role for gate in self.found}

    def topology_of(self, gate: str) -> Topology | None:
        return self._of(gate).topology

    def _of(self, name: str) -> Found:
        return next(gate for gate in self.found if gate.name == name)

    def beside(self, gate: str) -> float:
        return JITTER if self._of(gate).stride == "shrink" else 0.0

    def shape_faults(self, shape: Sequence[int], space: Space | None = None) -> list[str]:
        faults = []
        for gate in self.found:
            parameter = None if space is None else space.parameters.get(gate.name)
            if isinstance(parameter, Stride) and gate.side:
                faults += stride_faults(gate.name, parameter, gate.side, gate.ramp, "a Stride of another kind")
        return faults

    def within(self, space: Space) -> Own:
        return self  # all its gates are there, whether the space names them or not

    @property
    def words(self) -> str:
        return f"the network {self.reference}"

    def owns(self, name: str) -> bool:
        return name in self.gates

    def default(self, number: str) -> float:
        owner = next(gate for gate in self.found if number in self.numbers_of(gate.name))
        return owner.starts[self.numbers_of(owner.name).index(number)] if owner.starts else owner.maximum

    def maxima(self, space: Space | None = None) -> tuple[int, ...]:
        return tuple(self._of(gate).maximum for gate in self.gates)

    def space_faults(self, space: Space) -> list[str]:
        if not self.found:
            return []  # judged when it is resolved
        faults = super().space_faults(space)
        for gate in self.found:
            parameter = space.parameters.get(gate.name)
            if isinstance(parameter, Width | Depth) and parameter.type == gate.role and parameter.high > gate.maximum:
                what = "units of the layer that the gate follows" if gate.role == "width" else "blocks that it counts"
                way = "widen the layer" if gate.role == "width" else "add blocks"
                faults.append(
                    f"space.{gate.name}.high: must be at most the {gate.maximum} {what}, but got {parameter.high:g}; "
                    f"lower it, or {way}."
                )
            if isinstance(parameter, Topology) and gate.topology is not None and parameter.graph != gate.topology.graph:
                faults.append(
                    f"space.{gate.name}: must be the graph that the gate was made for ({gate.topology.graph}), but got "
                    f"{parameter.graph}."
                )
        return faults

    def costs(self, shape: tuple[int, ...], outputs: int) -> Costs:
        assert self.priced is not None, "an own network is resolved before it is priced"
        return self.priced

    def resolved(
        self,
        factory: Callable[..., Any],
        gates: Sequence[Found],
        costs: Costs,
        *,
        alone: bool = False,
        whole: bool = False,
    ) -> Own:
        """The network with its function, and what is known of what it returns: gates, costs, how lanes may run."""
        return replace(self, factory=factory, found=tuple(gates), priced=costs, alone=alone, whole=whole)

    def abroad(self) -> Own:
        """The same without its function: for where the user's code cannot be imported."""
        return replace(self, factory=None)

    def to_dict(self) -> dict[str, Any]:
        data = super().to_dict()
        data["kind"] = self.reference
        return {key: value for key, value in data.items() if key not in ("width", "activation")}
