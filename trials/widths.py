"""The widths of many lanes on their way: memberships' parameters as coordinates that a step can move.

    >>> widths = Widths(gates, n_KG, [scale_or_None, ...])
    >>> lanes.regate(widths.grades(), widths.reach())
    >>> gradient_KP = widths.pull(lanes.grade_gradients(x, y))

A membership with a size of its own (interval, band, nested, fuzzy) has the coordinate n, on the scale of its parameter
in the space; numbers for each index (fuzzy's z, a support's f, concrete's log_alpha) are coordinates on fixed scales.
A gate that nothing moves keeps its coordinates. Everything is float64.

Under `ntk` a unit's grade carries the run-time factor sqrt(N / n), so that what is read keeps its scale at every size.

Legend of shape suffixes: K lanes, G gates, P coordinates, N units of a gate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from search_spaces.membership import BISECTIONS, MEMBERSHIPS, Membership, Parameters, annealed, cosines

Scale = tuple[float, float, bool]  # low, high, log

#: the ranges of numbers that belong to an index rather than to a width
RANGES: dict[str, Scale] = {"z": (-8.0, 4.0, False), "f": (-3.0, 3.0, False), "log_alpha": (-10.0, 10.0, False)}
STILL: Scale = (1.0, 1.0, False)
FAINT = 1e-30  # a grade that makes a unit a member and lets it say nothing
BLOCK = 8  # a lane is laid out in blocks of units, so that it is not laid anew at every move


@dataclass(frozen=True, kw_only=True)
class GateKind:
    """One gate of a program: its name, its greatest size, its membership, and the scale on which it moves (None: it
    stays where it is). `tau` are the temperatures that training begins and ends with."""

    name: str
    maximum: int
    membership: str = "interval"
    scale: Scale | None = None
    tau: tuple[float, float] | None = None

    @property
    def kind(self) -> Membership:
        return MEMBERSHIPS[self.membership]

    def temperature(self, share: float) -> float:
        """The temperature when that share of the training is done."""
        ends = self.tau or self.kind.temperature or (1.0, 1.0)
        return annealed(*ends, share)


class Widths:
    """The architecture of K lanes.

    Args:
        start: the real sizes where the lanes begin, [K, G].
        factor: whether grades carry the run-time factor of `ntk`.
    """

    def __init__(self, gates: Sequence[GateKind], start: Tensor, *, factor: bool = False) -> None:
        self.gates, self.factor, self.share = list(gates), factor, 0.0
        start = start.double()
        self.places: list[dict[str, slice]] = []
        self.scales: list[Scale] = []
        columns: list[Tensor] = []
        for g, gate in enumerate(self.gates):
            places = {}
            for name, value in gate.kind.start(start[:, g], gate.maximum, gate.temperature(0.0)).items():
                value_KP = value.unsqueeze(1) if value.dim() == 1 else value
                places[name] = slice(len(self.scales), len(self.scales) + value_KP.shape[1])
                moving = gate.scale if name == "n" else RANGES[name]
                self.scales += [moving if gate.scale and moving else STILL] * value_KP.shape[1]
                columns.append(value_KP)
            self.places.append(places)
        self.coordinates_KP = torch.cat(columns, 1) if columns else start.new_zeros(len(start), 0)

    def set(self, coordinates_KP: Tensor) -> None:
        """Move the lanes."""
        self.coordinates_KP = coordinates_KP

    def sizes_of(self, coordinates_KP: Tensor) -> list[Tensor]:
        """Each gate's real size, [K], as a differentiable function of the coordinates."""
        return [
            gate.kind.size(p, gate.maximum, gate.temperature(self.share))
            for gate, p in zip(self.gates, self._parameters(coordinates_KP), strict=True)
        ]

    @property
    def sizes_KG(self) -> Tensor:
        """The real sizes, [K, G]."""
        sizes = self.sizes_of(self.coordinates_KP)
        return torch.stack(sizes, 1) if sizes else self.coordinates_KP.new_zeros(len(self.coordinates_KP), 0)

    @property
    def draws(self) -> list[int]:
        """How many uniform numbers each gate's grades want for one step."""
        return [gate.kind.draws(gate.maximum) for gate in self.gates]

    def grades(self, noise: Sequence[Tensor | None] | None = None) -> list[Tensor]:
        """Each gate's grades, [K, N]; `noise` [K, draws] a gate, or the deterministic ones."""
        return self._grades(self.coordinates_KP, noise)

    def members(self) -> list[Tensor]:
        """The deterministic grades, but above 0 for every unit that a random grade may let speak, [K, N] a gate."""
        return [
            m_KN.clamp(min=FAINT) if gate.kind.draws(gate.maximum) else m_KN
            for gate, m_KN in zip(self.gates, self.grades(), strict=True)
        ]

    def pull(self, by_grade: Sequence[Tensor], noise: Sequence[Tensor | None] | None = None) -> Tensor:
        """From d(loss)/d(grades), [K, N] a gate, to d(loss)/d(coordinates), [K, P]."""
        with torch.enable_grad():
            coordinates_KP = self.coordinates_KP.clone().requires_grad_()
            grades = self._grades(coordinates_KP, noise)
            (gradient_KP,) = torch.autograd.grad(grades, coordinates_KP, [g.cpu().double() for g in by_grade])
        return gradient_KP

    def whole_grades(self, sizes_KG: Tensor) -> list[Tensor]:
        """Grades 1 for each gate's surest units, as many as its whole size says, and 0 for the others."""
        found = []
        for g, grades_KN in enumerate(self._grades(self.coordinates_KP, None)):
            sure_KN = self._sureness(g, grades_KN)
            place_KN = torch.argsort(torch.argsort(sure_KN, dim=1, descending=True, stable=True), dim=1, stable=True)
            ones_KN = (place_KN < sizes_KG[:, g : g + 1]).double()
            found.append(ones_KN * self._factor(sizes_KG[:, g].double(), self.gates[g]))
        return found

    def _sureness(self, g: int, grades_KN: Tensor) -> Tensor:
        """What ranks a gate's units: grades are 0 or 1 for many, the numbers behind them differ."""
        p = self._parameters(self.coordinates_KP)[g]
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
            if gate.scale is None or "n" in places:
                continue
            (place,) = places.values()
            low, high, _ = gate.scale
            n_K = self.sizes_of(found_KP)[g]
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
            large_K1 = (self.sizes_of(moved_KP)[g] > size).unsqueeze(1)
            low_K1, high_K1 = torch.where(large_K1, low_K1, middle_K1), torch.where(large_K1, middle_K1, high_K1)
        return moved_KP

    def reach(self, laid: Sequence[Sequence[int]] | None = None) -> list[tuple[int, ...]]:
        """Units to lay out, lane by lane: those that may speak now, in blocks, given how many are laid out now."""
        needed_KG = [
            [self._needed(gate, n) for gate, n in zip(self.gates, lane, strict=True)] for lane in self.sizes_KG.tolist()
        ]
        before = laid or [[0] * len(self.gates)] * len(needed_KG)
        return [
            tuple(self._laid(gate, n, now) for gate, n, now in zip(self.gates, lane, old, strict=True))
            for lane, old in zip(needed_KG, before, strict=True)
        ]

    @staticmethod
    def _laid(gate: GateKind, n: int, now: int) -> int:
        if gate.scale is None:
            return max(n, now)
        return now if n <= now <= n + BLOCK else min(-(-n // BLOCK) * BLOCK, gate.maximum)

    @staticmethod
    def _needed(gate: GateKind, n: float) -> int:
        """Units that may have a grade above 0: where it moves, the half-open boundary unit of an interval included."""
        if gate.membership != "interval":
            return gate.maximum
        return min(math.ceil(n) if gate.scale is None else int(n) + 1, gate.maximum)

    def _parameters(self, coordinates_KP: Tensor) -> list[Parameters]:
        return [
            {
                name: coordinates_KP[:, place].squeeze(1) if name == "n" else coordinates_KP[:, place]
                for name, place in p.items()
            }
            for p in self.places
        ]

    def _grades(self, coordinates_KP: Tensor, noise: Sequence[Tensor | None] | None) -> list[Tensor]:
        found = []
        for g, (gate, p) in enumerate(zip(self.gates, self._parameters(coordinates_KP), strict=True)):
            t = gate.temperature(self.share)
            m_KN = gate.kind.grades(p, gate.maximum, t, noise[g] if noise else None)
            found.append(m_KN * self._factor(gate.kind.size(p, gate.maximum, t), gate))
        return found

    def _factor(self, n_K: Tensor, gate: GateKind) -> Tensor | float:
        return (gate.maximum / n_K.clamp(min=1e-9)).sqrt().unsqueeze(1) if self.factor else 1.0
