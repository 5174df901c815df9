"""The architecture of many lanes as coordinates that a step can move: widths, strides, depths, topologies.

    >>> widths = Widths(gates, n_KG, [scale_or_None, ...])
    >>> lanes.regate(widths.grades(), widths.reach())
    >>> gradient_KP = widths.pull(lanes.grade_gradients(x, y))

A membership with a size of its own (interval, band, nested, fuzzy) has the coordinate n, on the scale of its parameter
in the space; numbers for each index (fuzzy's z, a support's f, concrete's log_alpha) are coordinates on fixed scales.
A stride is its own coordinate and its own only grade; a topology's numbers are coordinates w in [0, 1]. A gate that
nothing moves keeps its coordinates. Everything is float64.

Under `ntk` a unit's grade carries the run-time factor sqrt(N / n), so that what is read keeps its scale at every size.

Legend of shape suffixes: K lanes, G gates, M numbers (a topology has several), P coordinates, N units of a gate.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from search_spaces.membership import BISECTIONS, MEMBERSHIPS, Membership, Parameters, annealed, cosines
from search_spaces.network import Size
from search_spaces.topology import TEMPERATURE, edges_kept, grades, hard_grades, skip_share, undecided
from search_spaces.wiring import Topology

Scale = tuple[float, float, bool]  # low, high, log

#: the ranges of numbers that belong to an index rather than to a width
RANGES: dict[str, Scale] = {"z": (-8.0, 4.0, False), "f": (-3.0, 3.0, False), "log_alpha": (-10.0, 10.0, False)}
RANGES["w"] = (0.0, 1.0, False)  # a topology's
STILL: Scale = (1.0, 1.0, False)
FAINT = 1e-30  # a grade that makes a unit a member and lets it say nothing
LEAST = 1e-3  # the size below which memberships in log size do not begin
BLOCK = 8  # a lane is laid out in blocks of units, so that it is not laid anew at every move


def _as_it_is(n: Tensor, maximum: int, t: float) -> dict[str, Tensor]:
    return {"n": n.clone()}


STRIDE = Membership(
    "stride", _as_it_is, lambda p, maximum, t, noise: p["n"].unsqueeze(-1), lambda p, maximum, t: p["n"]
)


@functools.lru_cache(maxsize=64)
def _graph(topology: Topology, whole: bool) -> Membership:
    """A topology's numbers as a membership of its units, which with `whole` are there or not."""
    return Membership(
        "topology",
        lambda n, maximum, t: {"w": n.clone()},
        lambda p, maximum, t, noise: hard_grades(topology, p["w"]) if whole else grades(topology, p["w"], t),
        lambda p, maximum, t: p["w"],
        sized=False,
        temperature=TEMPERATURE,
    )


@dataclass(frozen=True, kw_only=True)
class GateKind:
    """One gate of a program: its name, how many grades it has, its membership, and the scale on which it moves (None:
    it stays where it is). `role` is what it gives a size to, `topology` whose units it grades (`whole`: they
    are there or not). `tau` are the temperatures that training begins and ends with."""

    name: str
    maximum: int
    membership: str = "interval"
    scale: Scale | None = None
    tau: tuple[float, float] | None = None
    role: str = "width"
    topology: Topology | None = None
    whole: bool = False

    @property
    def kind(self) -> Membership:
        if self.topology is not None:
            return _graph(self.topology, self.whole)
        return STRIDE if self.role == "stride" else MEMBERSHIPS[self.membership]

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return 1 if self.topology is None else self.topology.size

    def temperature(self, share: float) -> float:
        """The temperature when that share of the training is done."""
        ends = self.tau or self.kind.temperature or (1.0, 1.0)
        return annealed(*ends, share)


class Widths:
    """The architecture of K lanes.

    Args:
        start: the numbers where the lanes begin, [K, M]: real sizes, and a topology's.
        factor: whether grades carry the run-time factor of `ntk`.
    """

    def __init__(self, gates: Sequence[GateKind], start: Tensor, *, factor: bool = False) -> None:
        self.gates, self.factor, self.share = list(gates), factor, 0.0
        start = start.double()
        self.places: list[dict[str, slice]] = []
        self.scales: list[Scale] = []
        columns: list[Tensor] = []
        first = 0
        for gate in self.gates:
            places = {}
            own_KM = start[:, first : first + gate.numbers]
            first += gate.numbers
            n = own_KM if gate.topology is not None else own_KM[:, 0]
            if gate.membership != "interval":
                n = n.clamp(min=LEAST)
            for name, value in gate.kind.start(n, gate.maximum, gate.temperature(0.0)).items():
                value_KP = value.unsqueeze(1) if value.dim() == 1 else value
                places[name] = slice(len(self.scales), len(self.scales) + value_KP.shape[1])
                moving = gate.scale if name == "n" else RANGES[name]
                self.scales += [moving if gate.scale and moving else STILL] * value_KP.shape[1]
                columns.append(value_KP)
            self.places.append(places)
        self.coordinates_KP = torch.cat(columns, 1) if columns else start.new_zeros(len(start), 0)
        self._trace: tuple[Tensor, float, Tensor, list[Tensor]] | None = None  # grades with their graph, and of what
        self._least_P = torch.full((len(self.scales),), -math.inf, dtype=torch.float64)
        for gate, places in zip(self.gates, self.places, strict=True):
            if gate.membership != "interval" and "n" in places and gate.role in ("width", "depth"):
                self._least_P[places["n"]] = LEAST

    def set(self, coordinates_KP: Tensor) -> None:
        """Move the lanes; a size on a log scale of its membership stays above 0, where that has no slope."""
        self.coordinates_KP = torch.maximum(coordinates_KP, self._least_P)

    def live(self, coordinates_KP: Tensor) -> dict[str, Tensor]:
        """What costs know each gate by, as a differentiable function of the coordinates: its real size, [K]; of a
        topology the grades that its units have at the temperature of now, [K, U]."""
        sizes = [
            self._size(g, coordinates_KP) if gate.topology is None else self._grade(g, coordinates_KP)
            for g, gate in enumerate(self.gates)
        ]
        return {gate.name: size for gate, size in zip(self.gates, sizes, strict=True)}

    def _size(self, g: int, coordinates_KP: Tensor) -> Tensor:
        gate = self.gates[g]
        return gate.kind.size(self._parameters(g, coordinates_KP), gate.maximum, gate.temperature(self.share))

    @property
    def numbers_KM(self) -> Tensor:
        """The numbers, [K, M]."""
        numbers = [self._size(g, self.coordinates_KP) for g in range(len(self.gates))]
        columns = [n.unsqueeze(1) if n.dim() == 1 else n for n in numbers]
        return torch.cat(columns, 1) if columns else self.coordinates_KP.new_zeros(len(self.coordinates_KP), 0)

    @property
    def sizes_KG(self) -> Tensor:
        """Each gate's real size, [K, G]; 0 of a topology, which has none."""
        sizes = [
            self._size(g, self.coordinates_KP) if gate.topology is None else self.coordinates_KP.new_zeros(len(self))
            for g, gate in enumerate(self.gates)
        ]
        return torch.stack(sizes, 1) if sizes else self.coordinates_KP.new_zeros(len(self), 0)

    def __len__(self) -> int:
        return len(self.coordinates_KP)

    @property
    def draws(self) -> list[int]:
        """How many uniform numbers each gate's grades want for one step."""
        return [gate.kind.draws(gate.maximum) for gate in self.gates]

    def grades(self, noise: Sequence[Tensor | None] | None = None) -> list[Tensor]:
        """Each gate's grades, [K, N]; `noise` [K, draws] a gate, or the deterministic ones."""
        return self._grades(self.coordinates_KP, noise)

    def grades_at(self, coordinates_KP: Tensor, noise: Sequence[Tensor | None] | None = None) -> list[Tensor]:
        """The same as a differentiable function of the coordinates, at the temperature of now."""
        return self._grades(coordinates_KP, noise)

    def members(self) -> list[Tensor]:
        """The deterministic grades, but above 0 for every unit that a random grade may let speak, [K, N] a gate."""
        draws = self.draws
        if not any(draws):
            return [m_KN.detach() for m_KN in self._traced()[1]]
        return [m_KN.clamp(min=FAINT) if drawn else m_KN for drawn, m_KN in zip(draws, self.grades(), strict=True)]

    def wiring(self, coordinates_KP: Tensor) -> dict[str, Tensor]:
        """What is told of topologies, [K] each, summed over them: how `undecided` their edges are (mean bits), how many
        `edges` there are, and the `skip_share` of these that are skips; nothing where there is no topology."""
        found: dict[str, Tensor] = {}
        graphs = [(g, gate.topology) for g, gate in enumerate(self.gates) if gate.topology is not None]
        for topology, m_KU in ((topology, self._grade(g, coordinates_KP)) for g, topology in graphs):
            own = {
                "undecided": undecided(topology, m_KU),
                "edges": edges_kept(topology, m_KU),
                "skip_share": skip_share(topology, m_KU),
            }
            found = {name: found.get(name, 0.0) + value for name, value in own.items()}
        return found

    def pull(self, by_grade: Sequence[Tensor], noise: Sequence[Tensor | None] | None = None) -> Tensor:
        """From d(loss)/d(grades), [K, N] a gate, to d(loss)/d(coordinates), [K, P]."""
        coordinates_KP, grades = self._traced(noise)
        self._trace = None  # its graph goes with the derivative
        (gradient_KP,) = torch.autograd.grad(grades, coordinates_KP, [g.cpu().double() for g in by_grade])
        return gradient_KP

    def _traced(self, noise: Sequence[Tensor | None] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Coordinates and the grades there, with their graph. Deterministic ones are kept: the derivative of a move is
        taken where the move before it led, whose grades were asked for then."""
        if self._trace is not None and noise is None:
            at_KP, share, coordinates_KP, grades = self._trace
            if at_KP is self.coordinates_KP and share == self.share:
                return coordinates_KP, grades
        with torch.enable_grad():
            coordinates_KP = self.coordinates_KP.clone().requires_grad_()
            grades = self._grades(coordinates_KP, noise)
        self._trace = None if noise else (self.coordinates_KP, self.share, coordinates_KP, grades)
        return coordinates_KP, grades

    def whole_grades(self, numbers_KM: Tensor) -> list[Tensor]:
        """The grades of whole numbers: 1 for each gate's surest units, as many as its size says, and 0 for the others;
        a stride itself; a topology's units as they round."""
        found, first = [], 0
        for g, grades_KN in enumerate(self._grades(self.coordinates_KP, None)):
            gate, own_KM = self.gates[g], numbers_KM[:, first : first + self.gates[g].numbers].double()
            first += gate.numbers
            if gate.topology is not None:
                found.append(hard_grades(gate.topology, own_KM))
            elif gate.role == "stride":
                found.append(own_KM)
            else:
                sure_KN = self._sureness(g, grades_KN)
                place_KN = torch.argsort(
                    torch.argsort(sure_KN, dim=1, descending=True, stable=True), dim=1, stable=True
                )
                found.append((place_KN < own_KM).double() * self._factor(own_KM[:, 0], gate))
        return found

    def _sureness(self, g: int, grades_KN: Tensor) -> Tensor:
        """What ranks a gate's units: grades are 0 or 1 for many, the numbers behind them differ."""
        p = self._parameters(g, self.coordinates_KP)
        for name in ("log_alpha", "z"):
            if name in p:
                return p[name]
        if "f" in p:
            return p["f"] if p["f"].shape[1] == grades_KN.shape[1] else cosines(p["f"], grades_KN.shape[1])
        return grades_KN

    def within(self, coordinates_KP: Tensor) -> Tensor:
        """Coordinates at which every gate that moves has a size in its range: those of an index are shifted together,
        as little as needed."""
        found_KP = coordinates_KP.clone()
        for g, (gate, places) in enumerate(zip(self.gates, self.places, strict=True)):
            if gate.scale is None or "n" in places or gate.topology is not None:
                continue
            (place,) = places.values()
            low, high, _ = gate.scale
            n_K = self._size(g, found_KP)
            for bound, out_K in ((low, n_K < low), (high, n_K > high)):
                if out_K.any():
                    shifted_KP = self._shifted(found_KP, g, place, bound)
                    found_KP = torch.where(out_K.unsqueeze(1), shifted_KP, found_KP)
        return found_KP

    def _shifted(self, coordinates_KP: Tensor, g: int, place: slice, size: float) -> Tensor:
        """A gate's numbers moved by one constant to where its size is `size`, by bisection."""
        name = next(iter(self.places[g]))
        reach = 2 * (RANGES[name][1] - RANGES[name][0])
        low_K1 = torch.full((len(coordinates_KP), 1), -reach, dtype=torch.float64)
        high_K1 = -low_K1
        moved_KP = coordinates_KP
        for _ in range(BISECTIONS):
            middle_K1 = (low_K1 + high_K1) / 2
            moved_KP = coordinates_KP.clone()
            # a support's first cosine is its constant
            end = place.start + 1 if self.gates[g].membership == "support" else place.stop
            moved_KP[:, place.start : end] += middle_K1
            large_K1 = (self._size(g, moved_KP) > size).unsqueeze(1)
            low_K1, high_K1 = torch.where(large_K1, low_K1, middle_K1), torch.where(large_K1, middle_K1, high_K1)
        return moved_KP

    def reach(self, laid: Sequence[Sequence[Size]] | None = None) -> list[tuple[Size, ...]]:
        """What to lay out, lane by lane: the units that may speak now, in blocks, given how many are laid out now; the
        greatest whole stride whose map has room for the live cells; all units of a topology."""
        needed_KG = [
            [self._needed(gate, n) for gate, n in zip(self.gates, lane, strict=True)] for lane in self.sizes_KG.tolist()
        ]
        before: Sequence[Sequence[Size]] = laid or [[0] * len(self.gates)] * len(needed_KG)
        return [
            tuple(self._laid(gate, n, now) for gate, n, now in zip(self.gates, lane, old, strict=True))
            for lane, old in zip(needed_KG, before, strict=True)
        ]

    @staticmethod
    def _laid(gate: GateKind, n: int, now: Size) -> Size:
        if gate.topology is not None or isinstance(now, tuple):
            return tuple(range(gate.maximum))
        if gate.role == "stride":
            return now if n - 1 <= now <= n and now > 0 else n  # not laid anew while it hovers about a whole one
        if gate.scale is None:
            return max(n, now)
        block = BLOCK if gate.role == "width" else 1
        return now if n <= now <= n + block else min(-(-n // block) * block, gate.maximum)

    @staticmethod
    def _needed(gate: GateKind, n: float) -> int:
        """Units that may have a grade above 0: where it moves, the half-open boundary unit of an interval included."""
        if gate.role == "stride":
            return max(int(n), 1)
        if gate.membership != "interval" or gate.topology is not None:
            return gate.maximum
        return min(math.ceil(n) if gate.scale is None else int(n) + 1, gate.maximum)

    def _parameters(self, g: int, coordinates_KP: Tensor) -> Parameters:
        return {
            name: coordinates_KP[:, place.start] if name == "n" else coordinates_KP[:, place]
            for name, place in self.places[g].items()
        }

    def _grades(self, coordinates_KP: Tensor, noise: Sequence[Tensor | None] | None) -> list[Tensor]:
        return [self._grade(g, coordinates_KP, noise[g] if noise else None) for g in range(len(self.gates))]

    def _grade(self, g: int, coordinates_KP: Tensor, noise: Tensor | None = None) -> Tensor:
        gate, p = self.gates[g], self._parameters(g, coordinates_KP)
        t = gate.temperature(self.share)
        m_KN = gate.kind.grades(p, gate.maximum, t, noise)
        return m_KN * self._factor(gate.kind.size(p, gate.maximum, t), gate) if self._has_factor(gate) else m_KN

    def _has_factor(self, gate: GateKind) -> bool:
        return self.factor and gate.role == "width"

    def _factor(self, n_K: Tensor, gate: GateKind) -> Tensor | float:
        return (gate.maximum / n_K.clamp(min=1e-9)).sqrt().unsqueeze(1) if self._has_factor(gate) else 1.0
