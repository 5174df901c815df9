"""Networks as declarations: what a spec's `network:` section says, which widths it gates, and its live sizes.

    >>> network = network_from_dict({"kind": "convnet", "layers": 3})
    >>> network.gates
    ('width.0', 'width.1', 'width.2')

    mlp              hidden layers of one task's rows (an image is a row of its pixels)
    convnet          convolutions of an image, halved between, then one average over all places
    residual         stages of residual blocks, of images or of rows; what a sum ties has one width
    module:attribute the user's own: a function that returns an nn.Module with gates (`search_spaces.width.WidthGate`)

No torch here: `search_spaces.realise` builds the modules and their costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from search_spaces.cost import Costs, dense_costs
from search_spaces.faults import Invalid, unknown
from search_spaces.parameters import Parameter, Value, Width, is_real
from search_spaces.space import Space

ACTIVATIONS = ("relu", "tanh", "gelu", "silu")  # each is 0 at 0, so a unit without members stays silent
MEMBERSHIPS = ("auto", "interval", "band", "nested", "support", "support_nodes", "fuzzy", "concrete")
PARAMETRISATIONS = ("sp", "mup", "ntk")
GROWTHS = ("fresh", "zero", "scaled", "net2net", "gradmax")
NORMS = ("batch", "none")


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

    OPTIONS: ClassVar[dict[str, tuple[Sequence[str], str]]] = {
        "activation": (ACTIVATIONS, "activation"),
        "membership": (MEMBERSHIPS, "membership"),
        "parametrisation": (PARAMETRISATIONS, "parametrisation"),
        "growth": (GROWTHS, "growth"),
    }
    COUNTS: ClassVar[dict[str, int]] = {"width": 1}  # whole numbers, each with its least value
    DEEP: ClassVar[str] = "layers"  # what says how deep it is
    HIDDEN: ClassVar[tuple[str, ...]] = ()  # fields that a spec does not write

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
        """The names of its continuous values."""
        raise NotImplementedError

    def default(self, gate: str) -> int:
        """The size of a gate's layer where the space is silent."""
        return self.width

    def shape_faults(self, shape: Sequence[int]) -> list[str]:
        """Rules between the network and the shape of a task's rows."""
        return []

    def space_faults(self, space: Space) -> list[str]:
        """Rules between the network and a space: every architecture parameter must belong to a gate."""
        faults = []
        for name, parameter in space.parameters.items():
            if parameter.type in ("stride", "depth", "topology"):
                faults.append(f"space.{name}: {self.words} has no {parameter.type}; drop it or choose another network.")
            elif isinstance(parameter, Width) and name not in self.gates:
                kind = "network" if self.kind == "own" else self.kind
                faults.append(unknown(f"space.{name}", name, self.gates, f"gate of this {kind}"))
            elif name in self.gates and not isinstance(parameter, Width):
                faults.append(f"space.{name}: gates a layer, so its type must be width, but got {parameter.type}.")
            elif name == "activation" and self.owns(name):
                faults += _activation_faults(name, parameter)
        return faults

    @property
    def words(self) -> str:
        """The network in a sentence."""
        return f"an {self.kind}" if self.kind[0] in "aeiom" else f"a {self.kind}"

    def owns(self, name: str) -> bool:
        """Whether a parameter of the space is the network's business."""
        return name in self.gates or name == "activation"

    def maxima(self, space: Space) -> tuple[int, ...]:
        """The greatest size of each gate: the space's `high`, the network's own width where it is silent."""

        def maximum(gate: str) -> int:
            parameter, own = space.parameters.get(gate), self.default(gate)
            if not isinstance(parameter, Width):
                return own
            return max(int(parameter.high), own) if parameter.when else int(parameter.high)

        return tuple(maximum(gate) for gate in self.gates)

    def sizes(self, point: Mapping[str, Value]) -> tuple[float, ...]:
        """The real size of each gate at `point`."""
        return tuple(float(point.get(gate, self.default(gate))) for gate in self.gates)  # type: ignore[arg-type]

    def named(self, sizes: Sequence[Any]) -> dict[str, Any]:
        """Sizes by the names of their gates."""
        return dict(zip(self.gates, sizes, strict=True))

    def rounded(self, point: Mapping[str, Value]) -> dict[str, Value]:
        """`point` with every gate's size, named in the space or not, as the nearest whole number (halves up)."""
        return {**point, **{gate: int(size + 0.5) for gate, size in self.named(self.sizes(point)).items()}}

    def costs(self, shape: tuple[int, ...], outputs: int) -> Costs:
        """Costs as a function of the gates' sizes, for rows of `shape`."""
        from search_spaces.realise import costs  # torch, which declarations do without

        return costs(self, shape, outputs)

    def to_dict(self) -> dict[str, Any]:
        """The declaration as plain data, without what is absent."""
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.init and item.repr}
        return {"kind": self.kind, **{key: value for key, value in own.items() if value is not None}}


@dataclass(frozen=True, kw_only=True)
class MLP(Network):
    """A multi-layer perceptron with `layers` hidden layers, each gated by `width.i`."""

    kind: ClassVar[str] = "mlp"
    COUNTS: ClassVar[dict[str, int]] = {"layers": 0, "width": 1}

    layers: int = 2

    @property
    def gates(self) -> tuple[str, ...]:
        return tuple(f"width.{i}" for i in range(self.layers))

    def costs(self, shape: tuple[int, ...], outputs: int) -> Costs:
        return dense_costs(math.prod(shape), outputs, self.gates)


@dataclass(frozen=True, kw_only=True)
class ConvNet(Network):
    """`layers` convolutions of side `kernel`, each with norm, activation and gate `width.i`, halved while the image is
    at least 4 wide; then the average over all places and one linear layer."""

    kind: ClassVar[str] = "convnet"
    COUNTS: ClassVar[dict[str, int]] = {"layers": 1, "width": 1, "kernel": 1}
    OPTIONS: ClassVar[dict[str, tuple[Sequence[str], str]]] = {**Network.OPTIONS, "norm": (NORMS, "norm")}

    layers: int = 3
    width: int = 32
    kernel: int = 3
    norm: str = "batch"

    @property
    def gates(self) -> tuple[str, ...]:
        return tuple(f"width.{i}" for i in range(self.layers))

    def shape_faults(self, shape: Sequence[int]) -> list[str]:
        if len(shape) == 3:
            return _kernel_faults(self.kernel, shape)
        return ["network.kind: a convnet reads images, but the task has plain rows; take an mlp or a residual network."]


@dataclass(frozen=True, kw_only=True)
class Residual(Network):
    """`stages` of `blocks` residual blocks (He et al. 2016), halved between stages; on plain rows, of linear layers.

    The stream of stage s has the width `width.s`, the inside of its block b the width `width.s.b`.
    """

    kind: ClassVar[str] = "residual"
    COUNTS: ClassVar[dict[str, int]] = {"stages": 1, "blocks": 1, "width": 1, "kernel": 1}
    DEEP: ClassVar[str] = "stages and blocks"
    OPTIONS: ClassVar[dict[str, tuple[Sequence[str], str]]] = ConvNet.OPTIONS

    stages: int = 2
    blocks: int = 1
    width: int = 32
    kernel: int = 3
    norm: str = "batch"

    def shape_faults(self, shape: Sequence[int]) -> list[str]:
        return _kernel_faults(self.kernel, shape) if len(shape) == 3 else []

    @property
    def depth(self) -> int:
        return self.stages * self.blocks

    @property
    def gates(self) -> tuple[str, ...]:
        return tuple(
            name for s in range(self.stages) for name in (f"width.{s}", *(f"width.{s}.{b}" for b in range(self.blocks)))
        )


@dataclass(frozen=True, kw_only=True)
class Own(Network):
    """The user's own network: `factory(...)` returns a module with gates. `reference` is `module:attribute`; `options`
    are passed on, as are `shape` (of a row) and `outputs` where the function has such parameters.

    Before `resolved` has found the function, the gates are not known.
    """

    kind: ClassVar[str] = "own"
    HIDDEN: ClassVar[tuple[str, ...]] = (
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
    found: tuple[tuple[str, int, str], ...] = field(default=(), repr=False)  # gate, its maximum, its membership
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
        return tuple(name for name, _, _ in self.found)

    @property
    def words(self) -> str:
        return f"the network {self.reference}"

    def owns(self, name: str) -> bool:
        return name in self.gates

    def default(self, gate: str) -> int:
        return next(maximum for name, maximum, _ in self.found if name == gate)

    def maxima(self, space: Space) -> tuple[int, ...]:
        return tuple(maximum for _, maximum, _ in self.found)

    def space_faults(self, space: Space) -> list[str]:
        if not self.found:
            return []  # judged when it is resolved
        return super().space_faults(space) + [
            f"space.{name}.high: must be at most the {maximum} units of the layer that the gate follows, but got "
            f"{space.parameters[name].high:g}; lower it, or widen the layer."  # type: ignore[attr-defined]
            for name, maximum, _ in self.found
            if isinstance(space.parameters.get(name), Width) and space.parameters[name].high > maximum  # type: ignore[attr-defined]
        ]

    def costs(self, shape: tuple[int, ...], outputs: int) -> Costs:
        assert self.priced is not None, "an own network is resolved before it is priced"
        return self.priced

    def resolved(
        self,
        factory: Callable[..., Any],
        gates: Sequence[tuple[str, int, str]],
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


def _kernel_faults(kernel: int, shape: Sequence[int]) -> list[str]:
    side = min(shape[1:])
    return [] if kernel <= side else [f"network.kernel: must be at most {side}, the image's side, but got {kernel}."]


def _activation_faults(name: str, parameter: Parameter) -> list[str]:
    options = getattr(parameter, "options", None)
    if options is None:
        return [f"space.{name}: must be a choice among {', '.join(ACTIVATIONS)}."]
    return [unknown(f"space.{name}", o, ACTIVATIONS, "activation") for o in options if o not in ACTIVATIONS]


NETWORKS: dict[str, type[Network]] = {cls.kind: cls for cls in (MLP, ConvNet, Residual)}


def network_from_dict(data: object) -> Network:
    """The network a spec's `network:` section declares. Raises `Invalid` with every fault."""
    if isinstance(data, str) and ":" in data:
        data = {"kind": data}
    known_kinds = [*NETWORKS, "module:attribute"]
    if not isinstance(data, Mapping) or "kind" not in data:
        raise Invalid([f"network: must be a mapping with a `kind` ({', '.join(known_kinds)}), but got {data!r}."])
    kind = data["kind"]
    own = isinstance(kind, str) and ":" in kind
    cls = Own if own else NETWORKS.get(str(kind))
    if cls is None:
        raise Invalid([unknown("network.kind", kind, known_kinds, "network")])
    known = cls.written()
    faults = [unknown("network", key, [*known, "kind"]) for key in data if key != "kind" and key not in known]
    given = {str(key): value for key, value in data.items() if key in known}
    network = cls(**given, **({"reference": kind} if own else {}))
    if faults := faults + network.faults():
        raise Invalid(faults)
    return network
