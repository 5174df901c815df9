"""The architecture of a bundle's lanes on its way: moved, drawn at random, whole in the end.

A program's grades follow the widths. Memberships that are random (nested, concrete) take fresh uniforms at every step:
a function of (search seed, trial number, replicate, step), so that a trial does not depend on its bundle.

Legend of shape suffixes: K lanes, G gates, P coordinates, S steps, B batch, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trials.hypergradients.moves import Moves
from trials.lanes.initial import Identity
from trials.lanes.program import Program
from trials.noise import fold, uniform
from trials.plan import Plan
from trials.widths import Widths

STEPS = 64  # for which uniforms are drawn at a time


class Architecture:
    """The gates of a program of lanes. `moves` is None where no gradient moves them."""

    def __init__(self, plan: Plan, lanes: Program, widths: Widths, identities: Sequence[Identity]) -> None:
        self.plan, self.lanes, self.widths, self.identities = plan, lanes, widths, identities
        self.moves = self._moves() if plan.gradient else None
        self.random = any(widths.draws)
        self._noise: tuple[int, list[Tensor | None]] = (-1, [])

    def _moves(self) -> Moves:
        widths = self.widths
        costs, names = self.plan.costs, {*self.plan.bounds, *self.plan.penalty}
        pressures = self.plan.method.pressures

        def cost(coordinates_KP: Tensor) -> Mapping[str, Tensor]:
            found = costs.of(widths.live(coordinates_KP), names) if names else {}
            return {**found, **(widths.wiring(coordinates_KP) if pressures else {})}

        penalty = {**self.plan.penalty, **pressures}
        return Moves(self.plan.method, widths.scales, widths.coordinates_KP, self.plan.bounds, cost, penalty)

    def draw(self, step: int) -> None:
        """The grades of one step, where they are random."""
        if self.random:
            self.lanes.sample(self.widths.grades(self._uniforms(step)))

    def move(self, step: int, share: float, x: Tensor, y_BO: Tensor) -> None:
        """One step of the architecture by the gradient of the loss on a batch; `share` of the training is done."""
        assert self.moves is not None
        noise = self._uniforms(step) if self.random else None
        if noise is not None:
            self.lanes.sample(self.widths.grades(noise))
        gradient_KP = self.widths.pull(self.lanes.grade_gradients(x, y_BO), noise)
        with torch.enable_grad():
            coordinates_KP = self.moves.step(gradient_KP)
            self.widths.share = share  # sizes depend on the temperature
            self.widths.set(self.moves.place(self.widths.within(coordinates_KP)))
        self.regate(share, (x, y_BO))

    def regate(self, share: float, batch: tuple[Tensor, Tensor] | None = None) -> None:
        """Bring the program's grades up to date."""
        self.widths.share = share
        self.lanes.regate(self.widths.members(), self.widths.reach(self.lanes.sizes), self.widths.sizes_KG, batch)

    def settle(self) -> None:
        """The deterministic grades, by which lanes are measured."""
        if self.random:
            self.lanes.sample(self.widths.grades())

    def make_whole(self, numbers_KM: Tensor) -> None:
        """The grades of whole numbers: each gate's surest units, whole strides, edges that are there or not."""
        self.lanes.sample(self.widths.whole_grades(numbers_KM))

    def _uniforms(self, step: int) -> list[Tensor | None]:
        block, place = divmod(step, STEPS)
        if self._noise[0] != block:
            self._noise = block, [self._drawn(g, draws, block) for g, draws in enumerate(self.widths.draws)]
        return [None if noise_KSN is None else noise_KSN[:, place] for noise_KSN in self._noise[1]]

    def _drawn(self, g: int, draws: int, block: int) -> Tensor | None:
        if not draws:
            return None
        keys = [fold(seed, "grades", number, replicate, g, block) for seed, number, replicate in self.identities]
        noise_KSN = torch.stack([uniform(key, STEPS, draws) for key in keys]).double()
        return noise_KSN.clamp(1e-7, 1 - 1e-7)
