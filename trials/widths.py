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

from search_spaces.membership import MEMBERSHIPS, Membership, Parameters, annealed

Scale = tuple[float, float, bool]  # low, high, log

#: the ranges of numbers that belong to an index rather than to a width
RANGES: dict[str, Scale] = {"z": (-8.0, 4.0, False), "f": (-3.0, 3.0, False), "log_alpha": (-10.0, 10.0, False)}
STILL: Scale = (1.0, 1.0, False)
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
            place_KN = torch.argsort(torch.argsort(grades_KN, dim=1, descending=True, stable=True), dim=1, stable=True)
            ones_KN = (place_KN < sizes_KG[:, g : g + 1]).double()
            found.append(ones_KN * self._factor(sizes_KG[:, g].double(), self.gates[g]))
        return found

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
