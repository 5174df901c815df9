"""What every network is as a declaration: a spec's `network:` section, the gates it has, and its live sizes.

No torch here: `search_spaces.realise` builds the modules and their costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeAlias

from search_spaces.cost import Costs
from search_spaces.faults import unknown
from search_spaces.parameters import Parameter, Real, Value, Width, is_real
from search_spaces.space import Point, Space
from search_spaces.wiring import Topology

ACTIVATIONS = ("relu", "tanh", "gelu", "silu")  # each is 0 at 0, so a unit without members stays silent
MEMBERSHIPS = ("auto", "interval", "band", "nested", "support", "support_nodes", "fuzzy", "concrete")
PARAMETRISATIONS = ("sp", "mup", "ntk")
GROWTHS = ("fresh", "zero", "scaled", "net2net", "gradmax")
Size: TypeAlias = "int | tuple[int, ...]"  # a whole size: of a topology, the units that are kept
ARCHITECTURE = ("width", "stride", "depth", "topology")


@dataclass(frozen=True, kw_only=True)
class Network:
    """What every network shares.

    `width` is the size of the layers on which the space is silent. `membership: auto` takes the interval gate, and the
    band where a gradient moves the width (a network of the user's own: what its gates say). `tau` is the membership's
    temperature, annealed to `tau_end` (default: the membership's own). `parametrisation` says how initialisation and
    learning rates follow the widths, `growth` what a unit begins with when its grade leaves 0.
    """

    kind: ClassVar[str] = ""

    width: int = 64
    activation: str = "relu"
    membership: str = "auto"
    tau: float | None = None
    tau_end: float | None = None
    parametrisation: str = "sp"
    growth: str = "fresh"
    asked: tuple[str, ...] = field(default=(), repr=False)  # strides and depths that the space has; see `within`

    OPTIONS: ClassVar[dict[str, tuple[Sequence[str], str]]] = {
        "activation": (ACTIVATIONS, "activation"),
        "membership": (MEMBERSHIPS, "membership"),
        "parametrisation": (PARAMETRISATIONS, "parametrisation"),
        "growth": (GROWTHS, "growth"),
    }
    COUNTS: ClassVar[dict[str, int]] = {"width": 1}  # whole numbers, each with its least value
    DEEP: ClassVar[str] = "layers"  # what says how deep it is
    HIDDEN: ClassVar[tuple[str, ...]] = ("asked",)  # fields that a spec does not write

    @classmethod
    def written(cls) -> list[str]:
        """The keys that a spec may write beside `kind`."""
        return [item.name for item in fields(cls) if item.name not in cls.HIDDEN]

    @property
    def depth(self) -> int:
        """Layers, about: what building it costs."""
        return int(getattr(self, self.DEEP, 1))

    def faults(self) -> list[str]:
        """Broken rules of the declaration."""
        faults = []
        for key, least in self.COUNTS.items():
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                faults.append(f"network.{key}: must be a whole number of at least {least}, but got {value!r}.")
        for key, (names, what) in self.OPTIONS.items():
            if (value := getattr(self, key)) not in names:
                faults.append(unknown(f"network.{key}", value, names, what))
        for key in ("tau", "tau_end"):
            value = getattr(self, key)
            if value is not None and (not is_real(value) or value <= 0):
                faults.append(f"network.{key}: must be a positive number, but got {value!r}.")
        return faults

    @property
    def gates(self) -> tuple[str, ...]:
        """The names of its gates, those of a topology last: what its lanes have grades for."""
        return (*self.widths, *(name for name in self.asked if name not in self.widths))

    @property
    def widths(self) -> tuple[str, ...]:
        """The names of its widths, which are gated whether the space names them or not."""
        raise NotImplementedError

    @property
    def offers(self) -> Mapping[str, str]:
        """What a space may ask of it: the role of each gate by name (width, stride, depth or topology)."""
        return dict.fromkeys(self.widths, "width")

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of its continuous values: the gates', and each of a topology's numbers."""
        return tuple(n for gate in self.gates for n in self.numbers_of(gate))

    def numbers_of(self, gate: str) -> tuple[str, ...]:
        """The names of a gate's numbers."""
        found = self.topology_of(gate)
        return (gate,) if found is None else tuple(found.coordinates(gate))

    def topology_of(self, gate: str) -> Topology | None:
        """The topology behind a gate, if it is one's."""
        return None

    def role(self, gate: str) -> str:
        """What a gate gives a size to: width, stride, depth or topology."""
        return self.offers[gate]

    def beside(self, gate: str) -> float:
        """How far beside a whole number a stride begins that a gradient moves: where it is trapped there."""
        return 0.0

    def within(self, space: Space) -> Network:
        """The network with the strides and depths that the space asks for; where it does not, they are whole."""
        asked = tuple(
            name for name, role in self.offers.items() if role in ("stride", "depth") and name in space.parameters
        )
        return self if asked == self.asked else replace(self, asked=asked)

    def default(self, number: str) -> float:
        """The size of a gate on which the space is silent."""
        return self.width

    def shape_faults(self, shape: Sequence[int], space: Space | None = None) -> list[str]:
        """Rules between the network, the shape of a task's rows, and a space."""
        return []

    def space_faults(self, space: Space) -> list[str]:
        """Rules between the network and a space: every architecture parameter must belong to a gate."""
        faults = []
        for name, parameter in space.parameters.items():
            role = self.offers.get(name)
            if parameter.type in ARCHITECTURE and role is None:
                faults.append(self._stranger(name, parameter.type))
            elif role is not None and parameter.type != role:
                what = {"width": "gates a layer", "stride": "strides", "depth": "counts blocks"}.get(role, "is a graph")
                faults.append(f"space.{name}: {what}, so its type must be {role}, but got {parameter.type}.")
            elif name == "activation" and self.owns(name):
                faults += _activation_faults(name, parameter)
            if role == "stride" and self.growth == "gradmax":
                faults.append(
                    f"network.growth: gradmax compares maps place by place, which the real stride space.{name} between "
                    "them resamples; take fresh, zero, scaled or net2net."
                )
        return list(dict.fromkeys(faults))

    def _stranger(self, name: str, kind: str) -> str:
        known = [gate for gate, role in self.offers.items() if role == kind]
        if not known:
            return f"space.{name}: {self.words} has no {kind}; drop it or choose another network."
        gate = "gate" if kind == "width" else kind
        return unknown(f"space.{name}", name, known, f"{gate} of this {'network' if self.kind == 'own' else self.kind}")

    @property
    def words(self) -> str:
        """The network in a sentence."""
        return f"an {self.kind}" if self.kind[0] in "aeiom" else f"a {self.kind}"

    def owns(self, name: str) -> bool:
        """Whether a parameter of the space is the network's business."""
        return name in self.offers or name == "activation"

    def maxima(self, space: Space | None = None) -> tuple[int, ...]:
        """How many grades each gate has: of a width, the space's `high`, or the network's own where it is silent."""

        def maximum(gate: str) -> int:
            parameter = None if space is None else space.parameters.get(gate)
            topology = self.topology_of(gate)
            if topology is not None or self.role(gate) == "stride":
                return 1 if topology is None else len(topology.units)
            own = int(self.default(gate))
            if not isinstance(parameter, Width):
                return own
            return max(int(parameter.high), own) if parameter.when else int(parameter.high)

        return tuple(maximum(gate) for gate in self.gates)

    def sizes(self, point: Mapping[str, Value]) -> tuple[float, ...]:
        """Each of its numbers at `point`."""
        return tuple(float(point.get(number, self.default(number))) for number in self.numbers)  # type: ignore[arg-type]

    def named(self, sizes: Sequence[Any], *, whole: bool = False) -> dict[str, Any]:
        """Numbers by the names of their gates, a topology's as the grades of its units: those that its numbers give
        them, or 0 and 1 where they are `whole`."""
        own = dict(zip(self.numbers, sizes, strict=True))
        return {
            gate: own[gate] if topology is None else _grades(topology, [own[n] for n in self.numbers_of(gate)], whole)
            for gate in self.gates
            for topology in [self.topology_of(gate)]
        }

    def rounded(self, point: Mapping[str, Value]) -> dict[str, Value]:
        """`point` with every size, named in the space or not, as the nearest whole number (halves up), and a topology's
        numbers as its rounding leaves them."""
        own = dict(zip(self.numbers, self.sizes(point), strict=True))
        found: dict[str, Value] = {}
        for gate in self.gates:
            topology, names = self.topology_of(gate), self.numbers_of(gate)
            if topology is None:
                found[gate] = max(int(own[gate] + 0.5), int(self.role(gate) == "stride"))
            else:
                found |= dict(zip(names, topology.whole([own[n] for n in names]), strict=True))
        return {**point, **found}

    def whole_sizes(self, point: Mapping[str, Value]) -> dict[str, Size]:
        """What is kept of each gate at a rounded point: so many units or blocks, a whole stride, these edges."""
        own = dict(zip(self.numbers, self.sizes(point), strict=True))
        return {
            gate: int(own[gate]) if topology is None else topology.hard([own[n] for n in self.numbers_of(gate)])
            for gate in self.gates
            for topology in [self.topology_of(gate)]
        }

    def laid(self, sizes: Sequence[Size]) -> dict[str, Any]:
        """Whole sizes, gate by gate, as costs know them: a topology's units as grades of 0 and 1."""
        found: dict[str, Any] = {}
        for gate, size in zip(self.gates, sizes, strict=True):
            topology = self.topology_of(gate)
            if topology is None:
                found[gate] = size
            else:
                there = range(len(topology.units)) if isinstance(size, int) else size
                found[gate] = _indicator(len(topology.units), there)
        return found

    def ends(self, space: Space) -> tuple[Point, Point]:
        """Its cheapest and its dearest point, as far as its gates go."""
        least: Point = {}
        most: Point = {}
        for number in self.numbers:
            parameter = space.coordinates.get(number)
            own = self.default(number)
            low, high = (parameter.low, parameter.high) if isinstance(parameter, Real) else (own, own)
            if parameter is not None and parameter.when:
                low, high = min(low, own), max(high, own)
            cheap, dear = (high, low) if self.offers.get(number) == "stride" else (low, high)
            least[number], most[number] = cheap, dear
        return least, most

    def costs(self, shape: tuple[int, ...], outputs: int) -> Costs:
        """Costs as a function of the gates' sizes, for rows of `shape`."""
        from search_spaces.realise import costs  # torch, which declarations do without

        return costs(self, shape, outputs)

    def to_dict(self) -> dict[str, Any]:
        """The declaration as plain data, without what is absent."""
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.init and item.repr}
        return {"kind": self.kind, **{key: value for key, value in own.items() if value is not None}}


def _indicator(units: int, there: Iterable[int]) -> Any:
    import torch

    found_U = torch.zeros(units, dtype=torch.float64)
    found_U[list(there)] = 1.0
    return found_U


def _grades(topology: Topology, numbers: Sequence[Any], whole: bool) -> Any:
    """The grades of a topology's units, [..., U]; numbers or tensors [...]."""
    import torch  # which declarations do without

    from search_spaces.topology import grades, hard_grades

    numbers_P = torch.stack([torch.as_tensor(n, dtype=torch.float64) for n in numbers], -1)
    if not whole:
        return grades(topology, numbers_P, 1.0)
    flat_KP = numbers_P.reshape(-1, numbers_P.shape[-1])
    return hard_grades(topology, flat_KP).reshape(*numbers_P.shape[:-1], -1)


def _activation_faults(name: str, parameter: Parameter) -> list[str]:
    options = getattr(parameter, "options", None)
    if options is None:
        return [f"space.{name}: must be a choice among {', '.join(ACTIVATIONS)}."]
    return [unknown(f"space.{name}", o, ACTIVATIONS, "activation") for o in options if o not in ACTIVATIONS]
