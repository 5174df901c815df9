"""Networks that are graphs: `cell`, `graphon`, `fabric`. Declarations; no torch.

The graph itself, its nodes and operations, is the space's parameter `topology`; the network says what is around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from search_spaces.faults import unknown
from search_spaces.layered import NORMS
from search_spaces.network import Network
from search_spaces.space import Space
from search_spaces.wiring import Topology, operation_faults

TOPOLOGY = "topology"  # the name of the graph in the space


@dataclass(frozen=True, kw_only=True)
class Wired(Network):
    """What networks share whose layers are the edges of a graph. `wired` is the space's topology, see `within`."""

    OPTIONS: ClassVar[dict[str, tuple[Sequence[str], str]]] = {**Network.OPTIONS, "norm": (NORMS, "norm")}
    HIDDEN: ClassVar[tuple[str, ...]] = ("asked", "wired")
    KINDS: ClassVar[tuple[str, ...]] = ()  # of topology that it can be made of

    width: int = 16
    norm: str = "batch"
    wired: Topology | None = field(default=None, repr=False)

    @property
    def offers(self) -> Mapping[str, str]:
        return {**super().offers, TOPOLOGY: "topology"}

    @property
    def gates(self) -> tuple[str, ...]:
        return self.widths if self.wired is None else (*self.widths, TOPOLOGY)

    def topology_of(self, gate: str) -> Topology | None:
        return self.wired if gate == TOPOLOGY else None

    def within(self, space: Space) -> Network:
        found = space.parameters.get(TOPOLOGY)
        wired = replace(found, when={}) if isinstance(found, Topology) and found.kind in self.KINDS else None
        return self if wired == self.wired else replace(self, wired=wired)

    def default(self, number: str) -> float:
        return 1.0 if number.startswith(f"{TOPOLOGY}.") else self.width

    def faults(self) -> list[str]:
        faults = super().faults()
        if self.growth != "fresh":
            faults.append(f"network.growth: units of {self.words} begin fresh, but got {self.growth!r}; drop it.")
        return faults

    def space_faults(self, space: Space) -> list[str]:
        found, kinds = space.parameters.get(TOPOLOGY), " or ".join(self.KINDS)
        if found is None:
            if named := [name for name, parameter in space.parameters.items() if isinstance(parameter, Topology)]:
                return [unknown(f"space.{name}", name, [TOPOLOGY], f"topology of {self.words}") for name in named]
            usual = f"{{type: topology, kind: {self.KINDS[0]}}}"
            return [f"space.{TOPOLOGY}: is missing, but {self.words} is a graph; add {usual}."]
        if isinstance(found, Topology) and found.kind not in self.KINDS:
            return [f"space.{TOPOLOGY}.kind: must be {kinds} for {self.words}, but got {found.kind!r}."]
        if found.when:
            return [f"space.{TOPOLOGY}.when: the graph of the network must always exist; drop the condition."]
        bound = self.within(space)  # which knows its widths
        return Network.space_faults(bound, space)

    def shape_faults(self, shape: Sequence[int], space: Space | None = None) -> list[str]:
        found = None if space is None else space.parameters.get(TOPOLOGY)
        if not isinstance(found, Topology):
            return []
        return operation_faults(f"space.{TOPOLOGY}.operations", found.operations, len(shape) == 3)


@dataclass(frozen=True, kw_only=True)
class Cell(Wired):
    """`cells` cells of one topology, one after the other (Liu et al. 2019), all of the same grades, each of its own
    weights.

    All nodes of cell c have the width `width.c`. Between cells a convolution halves the image while it is at least 4
    wide; on plain rows, a linear layer stands there.
    """

    kind: ClassVar[str] = "cell"
    COUNTS: ClassVar[dict[str, int]] = {"cells": 1, "width": 1}
    DEEP: ClassVar[str] = "cells"
    KINDS: ClassVar[tuple[str, ...]] = ("free", "graphon")

    cells: int = 2

    @property
    def widths(self) -> tuple[str, ...]:
        return tuple(f"width.{c}" for c in range(self.cells))


@dataclass(frozen=True, kw_only=True)
class Graphon(Wired):
    """One graph whose edges are a smooth kernel: a few numbers, for any number of nodes. All have one width."""

    kind: ClassVar[str] = "graphon"
    KINDS: ClassVar[tuple[str, ...]] = ("graphon",)

    @property
    def cells(self) -> int:
        """There is one."""
        return 1

    @property
    def widths(self) -> tuple[str, ...]:
        return ("width.0",)


@dataclass(frozen=True, kw_only=True)
class Fabric(Wired):
    """A trellis of layers and scales (Saxena & Verbeek 2016); nodes of scale s have the width `width.s`, and for images
    a side of the image's over 2^s."""

    kind: ClassVar[str] = "fabric"
    KINDS: ClassVar[tuple[str, ...]] = ("fabric",)

    @property
    def widths(self) -> tuple[str, ...]:
        return tuple(f"width.{s}" for s in range(1 if self.wired is None else self.wired.scales))

    def shape_faults(self, shape: Sequence[int], space: Space | None = None) -> list[str]:
        faults = super().shape_faults(shape, space)
        if self.wired is not None and len(shape) == 3 and 2 ** (self.wired.scales - 1) > min(shape[1:]):
            faults.append(
                f"space.{TOPOLOGY}.scales: each scale halves the map, so a side of {min(shape[1:])} allows at most "
                f"{min(shape[1:]).bit_length()}, but got {self.wired.scales}."
            )
        return faults
