"""Networks of layers one after the other: `mlp`, `convnet`, `residual`. Declarations; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from search_spaces.cost import Costs, dense_costs
from search_spaces.extent import KINDS, least_stride, smoothness_of
from search_spaces.network import Network
from search_spaces.parameters import Depth, Stride, is_real
from search_spaces.space import Space

NORMS = ("batch", "none")
STRIDES = ("auto", *KINDS)
LEAST_SIDE = 4  # a map is halved while it is at least so wide
STRIDE = "shrink"  # what `auto` is: of as many FLOPs, strided convolutions are worth most (docs/benchmarks.md)
JITTER = 0.25  # how far beside a whole number one that shrinks begins


@dataclass(frozen=True, kw_only=True)
class MLP(Network):
    """A multi-layer perceptron with `layers` hidden layers, each gated by `width.i`."""

    kind: ClassVar[str] = "mlp"
    COUNTS: ClassVar[dict[str, int]] = {"layers": 0, "width": 1}

    layers: int = 2

    @property
    def widths(self) -> tuple[str, ...]:
        return tuple(f"width.{i}" for i in range(self.layers))

    def costs(self, shape: tuple[int, ...], outputs: int) -> Costs:
        return dense_costs(math.prod(shape), outputs, self.gates)


@dataclass(frozen=True, kw_only=True)
class Striding(Network):
    """What networks over maps share: each of their strides may be real, which it is where the space names it.

    `stride` says how a real stride makes the cells after it (`search_spaces.stride`). One that shrinks is trapped at
    whole strides, where its derivative jumps: a gradient begins up to `jitter` beside them.
    """

    COUNTS: ClassVar[dict[str, int]] = {"width": 1, "kernel": 1}
    OPTIONS: ClassVar[dict[str, tuple[Sequence[str], str]]] = {
        **Network.OPTIONS,
        "norm": (NORMS, "norm"),
        "stride": (STRIDES, "kind of stride"),
    }

    width: int = 32
    kernel: int = 3
    norm: str = "batch"
    stride: str = "auto"
    jitter: float = JITTER

    def faults(self) -> list[str]:
        faults, jitter = super().faults(), self.jitter
        if not is_real(jitter) or not 0 <= jitter < 0.5:
            faults.append(f"network.jitter: must be a number of at least 0 and below 0.5, but got {jitter!r}.")
        return faults

    def beside(self, gate: str) -> float:
        return self.jitter if self.stride_kind == "shrink" else 0.0

    @property
    def stride_kind(self) -> str:
        """How its real strides work."""
        return STRIDE if self.stride == "auto" else self.stride

    def side(self, gate: str, image: int) -> int:
        """The side of the map that a stride meets where all real ones are 1."""
        raise NotImplementedError

    def shape_faults(self, shape: Sequence[int], space: Space | None = None) -> list[str]:
        side = min(shape[1:])
        faults = []
        if self.kernel > side:
            faults.append(f"network.kernel: must be at most {side}, the image's side, but got {self.kernel}.")
        for name, parameter in ({} if space is None else space.parameters).items():
            if isinstance(parameter, Stride) and self.offers.get(name) == "stride":
                met = self.side(name, side)
                ramp = smoothness_of(met) if self.stride_kind == "spectral" else 0
                faults += stride_faults(name, parameter, met, ramp, "network.stride: shrink or resize")
        return faults


@dataclass(frozen=True, kw_only=True)
class ConvNet(Striding):
    """`layers` convolutions of side `kernel`, each with norm, activation and gate `width.i`, halved while the image is
    at least 4 wide; then the average over all places and one linear layer.

    A stride `stride.i` takes the place of the halving after layer i.
    """

    kind: ClassVar[str] = "convnet"
    COUNTS: ClassVar[dict[str, int]] = {"layers": 1, **Striding.COUNTS}

    layers: int = 3

    @property
    def widths(self) -> tuple[str, ...]:
        return tuple(f"width.{i}" for i in range(self.layers))

    @property
    def offers(self) -> Mapping[str, str]:
        return {**super().offers, **{f"stride.{i}": "stride" for i in range(self.layers)}}

    def default(self, number: str) -> float:
        return 2.0 if self.role(number) == "stride" else self.width

    def side(self, gate: str, image: int) -> int:
        for i in range(int(gate.split(".")[1])):
            image = image // 2 if f"stride.{i}" not in self.asked and image >= LEAST_SIDE else image
        return image

    def shape_faults(self, shape: Sequence[int], space: Space | None = None) -> list[str]:
        if len(shape) == 3:
            return super().shape_faults(shape, space)
        return ["network.kind: a convnet reads images, but the task has plain rows; take an mlp or a residual network."]


@dataclass(frozen=True, kw_only=True)
class Residual(Striding):
    """`stages` of `blocks` residual blocks (He et al. 2016), halved between stages; on plain rows, of linear layers.

    The stream of stage s has the width `width.s`, the inside of its block b the width `width.s.b`. A stride `stride.s`
    takes the place of the halving before stage s (at `stride.0` there is none else), a depth `depth.s` counts the
    blocks of stage s.
    """

    kind: ClassVar[str] = "residual"
    COUNTS: ClassVar[dict[str, int]] = {"stages": 1, "blocks": 1, **Striding.COUNTS}
    DEEP: ClassVar[str] = "stages and blocks"

    stages: int = 2
    blocks: int = 1

    @property
    def depth(self) -> int:
        return self.stages * self.blocks

    @property
    def widths(self) -> tuple[str, ...]:
        return tuple(
            name for s in range(self.stages) for name in (f"width.{s}", *(f"width.{s}.{b}" for b in range(self.blocks)))
        )

    @property
    def offers(self) -> Mapping[str, str]:
        strides = {f"stride.{s}": "stride" for s in range(self.stages)}
        return {**super().offers, **strides, **{f"depth.{s}": "depth" for s in range(self.stages)}}

    def default(self, number: str) -> float:
        usual = {"stride": 1.0 if number == "stride.0" else 2.0, "depth": float(self.blocks)}
        return usual.get(self.role(number), self.width)

    def side(self, gate: str, image: int) -> int:
        for s in range(1, int(gate.split(".")[1])):
            image = image if f"stride.{s}" in self.asked else -(-image // 2)
        return image

    def space_faults(self, space: Space) -> list[str]:
        return super().space_faults(space) + [
            f"space.{name}.high: must be at most {self.blocks}, the blocks of a stage, but got {parameter.high:g}; "
            "raise network.blocks."
            for name, parameter in space.parameters.items()
            if isinstance(parameter, Depth) and name in self.offers and parameter.high > self.blocks
        ]

    def shape_faults(self, shape: Sequence[int], space: Space | None = None) -> list[str]:
        if len(shape) == 3 and self.kernel % 2 == 0:
            return [f"network.kernel: must be odd, or a block would write a larger map, but got {self.kernel}."]
        if len(shape) == 3:
            return super().shape_faults(shape, space)
        named = [] if space is None else [n for n, p in space.parameters.items() if isinstance(p, Stride)]
        return [
            f"space.{name}: a stride moves over a map, but the task has plain rows; drop it, or take a task of images."
            for name in named
            if name in self.offers
        ]


def stride_faults(name: str, parameter: Stride, side: int, ramp: int, other: str) -> list[str]:
    """Rules between a stride's range and the map of that side that it meets; `ramp` is R of a spectral one, else 0, and
    `other` what to take instead of it."""
    faults, least = [], least_stride("spectral", side, ramp) if ramp else 1.0
    if parameter.high > side:
        faults.append(
            f"space.{name}.high: must be at most {side}, the side of the map before it, but got {parameter.high:g}."
        )
    if parameter.low < least:
        faults.append(
            f"space.{name}.low: a spectral stride must be at least H / (H - R) = {least:.4g} (a map of side H={side}, "
            f"a ramp of R={ramp} frequencies), below which no gradient moves it, but got {parameter.low:g}; raise it, "
            f"or take {other}."
        )
    return faults
