"""Networks as declarations: what a spec's `network:` section says, which parameters it gates, and its live sizes.

    >>> network = network_from_dict({"kind": "mlp", "layers": 2})
    >>> network.gates
    ('width.0', 'width.1')

No torch here; `search_spaces.mlp` builds the module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from search_spaces.cost import mlp_flops, mlp_parameters
from search_spaces.faults import Invalid, unknown
from search_spaces.parameters import Parameter, Value, Width, is_real
from search_spaces.space import Space

ACTIVATIONS = ("relu", "tanh", "gelu", "silu")  # each is 0 at 0, so a unit without members stays silent
MEMBERSHIPS = ("auto", "interval", "band")


@dataclass(frozen=True, kw_only=True)
class MLP:
    """A multi-layer perceptron with `layers` hidden layers, each gated by `width.i`.

    `width` is the size of the layers on which the space is silent; `membership: auto` takes the interval gate, and the
    band where a gradient moves the width. `tau` is the band's temperature (in log size), annealed to `tau_end`.
    """

    kind: ClassVar[str] = "mlp"

    layers: int = 2
    width: int = 64
    activation: str = "relu"
    membership: str = "auto"
    tau: float = 0.3
    tau_end: float = 0.05

    def faults(self) -> list[str]:
        """Broken rules of the declaration."""
        faults = []
        for key, least in (("layers", 0), ("width", 1)):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                faults.append(f"network.{key}: must be a whole number of at least {least}, but got {value!r}.")
        if self.activation not in ACTIVATIONS:
            faults.append(unknown("network.activation", self.activation, ACTIVATIONS, "activation"))
        if self.membership not in MEMBERSHIPS:
            faults.append(unknown("network.membership", self.membership, MEMBERSHIPS, "membership"))
        for key in ("tau", "tau_end"):
            value = getattr(self, key)
            if not is_real(value) or value <= 0:
                faults.append(f"network.{key}: must be a positive number, but got {value!r}.")
        return faults

    @property
    def gates(self) -> tuple[str, ...]:
        """The names of its continuous values."""
        return tuple(f"width.{i}" for i in range(self.layers))

    def space_faults(self, space: Space) -> list[str]:
        """Rules between the network and a space: every architecture parameter must belong to a gate."""
        faults = []
        for name, parameter in space.parameters.items():
            if parameter.type in ("stride", "depth", "topology"):
                faults.append(f"space.{name}: an mlp has no {parameter.type}; drop it or choose another network.")
            elif isinstance(parameter, Width) and name not in self.gates:
                faults.append(unknown(f"space.{name}", name, self.gates, "gate of this mlp"))
            elif name in self.gates and not isinstance(parameter, Width):
                faults.append(f"space.{name}: gates a layer, so its type must be width, but got {parameter.type}.")
            elif name == "activation":
                options = getattr(parameter, "options", None)
                if options is None:
                    faults.append(f"space.{name}: must be a choice among {', '.join(ACTIVATIONS)}.")
                else:
                    faults += [
                        unknown(f"space.{name}", o, ACTIVATIONS, "activation") for o in options if o not in ACTIVATIONS
                    ]
        return faults

    def owns(self, name: str) -> bool:
        """Whether a parameter of the space is the network's business."""
        return name in self.gates or name == "activation"

    def maxima(self, space: Space) -> tuple[int, ...]:
        """The greatest size of each hidden layer: the space's `high`, the network's own width where it is silent."""

        def maximum(parameter: Parameter | None) -> int:
            if not isinstance(parameter, Width):
                return self.width
            return max(int(parameter.high), self.width) if parameter.when else int(parameter.high)

        return tuple(maximum(space.parameters.get(gate)) for gate in self.gates)

    def sizes(self, point: Mapping[str, Value]) -> tuple[float, ...]:
        """The real size of each hidden layer at `point`."""
        return tuple(float(point.get(gate, self.width)) for gate in self.gates)  # type: ignore[arg-type]

    def rounded(self, point: Mapping[str, Value]) -> dict[str, Value]:
        """`point` with every gate's size, named in the space or not, as the nearest whole number (halves up)."""
        sizes = dict(zip(self.gates, self.sizes(point), strict=True))
        return {**point, **{gate: int(size + 0.5) for gate, size in sizes.items()}}

    def costs(self, sizes: Any, inputs: int, outputs: int) -> dict[str, Any]:
        """`parameters` and forward `flops` per example at real sizes (numbers or tensors)."""
        return {
            "parameters": mlp_parameters(inputs, sizes, outputs),
            "flops": mlp_flops(inputs, sizes, outputs),
        }

    def to_dict(self) -> dict[str, Any]:
        """The declaration as plain data."""
        return {"kind": self.kind, **asdict(self)}


NETWORKS = {MLP.kind: MLP}


def network_from_dict(data: object) -> MLP:
    """The network a spec's `network:` section declares. Raises `Invalid` with every fault."""
    if not isinstance(data, Mapping) or "kind" not in data:
        raise Invalid([f"network: must be a mapping with a `kind` ({', '.join(NETWORKS)}), but got {data!r}."])
    cls = NETWORKS.get(str(data["kind"]))
    if cls is None:
        raise Invalid([unknown("network.kind", data["kind"], NETWORKS, "network")])
    known = [item.name for item in fields(cls)]
    faults = [unknown("network", key, [*known, "kind"]) for key in data if key != "kind" and key not in known]
    network = cls(**{str(key): value for key, value in data.items() if key in known})
    if faults := faults + network.faults():
        raise Invalid(faults)
    return network
