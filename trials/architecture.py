"""What moves of a bundle's lanes, on its way: architecture and rates; moved, drawn at random, whole in the end.

A program's grades follow the widths, its optimiser the rates. Memberships that are random (nested, concrete) take fresh
uniforms at every step: a function of (search seed, trial number, replicate, step), so that a trial does not depend on
its bundle.

Legend of shape suffixes: K lanes, G gates, R rates that move, M coordinates of the gates and rates that move, P those
of M that move, S steps, B batch, O outputs, T the flat buffer of all weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from trials.hypergradients.hypernet import drawn
from trials.hypergradients.inner import Inner, State
from trials.hypergradients.kinds import Hypergradient, method_of
from trials.hypergradients.moves import Moves
from trials.lanes.initial import Identity
from trials.lanes.program import Batch, Program
from trials.lanes.saving import begin, part
from trials.noise import fold, normal, uniform
from trials.optimisers import Rule
from trials.plan import Plan
from trials.widths import Widths

T = TypeVar("T")

STEPS = 64  # for which uniforms are drawn at a time


class Architecture:
    """The gates and the rates of a program of lanes.

    Args:
        hyper: each lane's hyperparameters, name -> [K]; of these move what the plan's space says.
        batch: rows of a training batch.
    """

    def __init__(
        self,
        plan: Plan,
        lanes: Program,
        widths: Widths,
        identities: Sequence[Identity],
        rule: Rule,
        hyper: Mapping[str, Tensor],
        batch: int,
    ) -> None:
        self.plan, self.lanes, self.widths, self.identities = plan, lanes, widths, identities
        self.rule, self.batch = rule, batch
        self.hyper = {name: hyper[name].double() for name in sorted(hyper)}
        moved = plan.moved_rates if plan.gradient else ()
        self.rates = tuple(name for name in moved if name in self.hyper)  # others do not exist at these points
        self.moves = self._moves() if plan.gradient else None  # None: no gradient moves anything
        scales = self.moves.scales if self.moves is not None else []
        self.moving_M = torch.tensor([m for m, (low, high, _) in enumerate(scales) if low < high], dtype=torch.int64)
        self.random = any(widths.draws) or "dropout" in self.hyper
        self._known: dict[str, tuple[tuple[object, ...], Any]] = {}  # see `_kept`
        self._noise: tuple[int, list[Tensor | None]] = (-1, [])

    @property
    def rates_KR(self) -> Tensor:
        """The rates that move, as they are now."""
        if not self.rates:
            return self.widths.coordinates_KP.new_zeros(len(self.widths), 0)
        return torch.stack([self.hyper[name] for name in self.rates], 1)

    def _moves(self) -> Moves:
        widths, gates = self.widths, self.widths.coordinates_KP.shape[1]
        costs, names = self.plan.costs, {*self.plan.bounds, *self.plan.penalty}
        pressures = self.plan.method.pressures

        def cost(h_KM: Tensor) -> Mapping[str, Tensor]:
            coordinates_KP = h_KM[:, :gates]
            found = costs.of(widths.live(coordinates_KP), names) if names else {}
            return {**found, **(widths.wiring(coordinates_KP) if pressures else {})}

        moved = self.plan.space.moved()
        scales = [*widths.scales, *((moved[n].low, moved[n].high, moved[n].log) for n in self.rates)]
        penalty = {**self.plan.penalty, **pressures}
        return Moves(self.plan.method, scales, self._now(), self.plan.bounds, cost, penalty)

    def _now(self) -> Tensor:
        return torch.cat([self.widths.coordinates_KP, self.rates_KR], 1)

    # -- as the derivative sees it -----------------------------------------------------------------------------------

    def inner(self) -> Inner:
        """The training of the lanes, as they are laid out now, as a function of what moves."""
        functions, gates = self.lanes.functions(), self.widths.coordinates_KP.shape[1]
        like = self.lanes.stands()[0]
        now_KM = self._now()

        def rates(h_KP: Tensor) -> dict[str, Tensor]:
            first = h_KP.shape[1] - len(self.rates)
            moving = {name: h_KP[:, first + r] for r, name in enumerate(self.rates)}
            return {name: values_K.to(like) for name, values_K in {**self.hyper, **moving}.items()}

        def grades(h_KP: Tensor, batch: Batch) -> list[Tensor]:
            noise = self._uniforms(batch.step) if self.random else None
            h_KM = now_KM.index_copy(1, self.moving_M, h_KP)
            found = [m_KN.to(like) for m_KN in self.widths.grades_at(h_KM[:, :gates], noise)]
            return self._dropped(found, rates(h_KP), batch.step, len(batch.y_BO)) if batch.trains else found

        def hyper(h_KP: Tensor) -> dict[str, Tensor]:
            own = rates(h_KP)
            found = {name: functions.spread(name, own) for name in self.rule.uses}
            return {**found, "lr": found["lr"] * functions.rates_T}

        def losses(weights_T: Tensor, h_KP: Tensor, batch: Batch) -> Tensor:
            return functions.losses(weights_T, grades(h_KP, batch), batch)

        def rerun(weights_T: Tensor, h_KP: Tensor, batch: Batch) -> Tensor:
            return losses(weights_T, h_KP, batch._replace(remembers=False))

        def feedback(weights_T: Tensor, h_KP: Tensor, batch: Batch) -> Tensor:
            assert functions.feedback is not None
            return functions.feedback(weights_T, grades(h_KP, batch), batch)

        learns = None if functions.feedback is None else feedback
        return Inner(
            rule=self.rule,
            lane_T=functions.lane_T,
            losses=losses,
            hyper=hyper,
            feedback=learns,
            rerun=rerun,
            sums=functions.sums,
        )

    def state(self) -> State:
        """Where the training stands, copied."""
        weights_T, slots = self.lanes.stands()
        return State(weights_T=weights_T.clone(), slots={name: slot_T.clone() for name, slot_T in slots.items()})

    def adopt(self, state: State) -> None:
        """Go on training from a state."""
        weights_T, slots = self.lanes.stands()
        weights_T.copy_(state.weights_T)
        for name, slot_T in slots.items():
            slot_T.copy_(state.slots[name])

    @property
    def h_KP(self) -> Tensor:
        """The numbers that move, those of the gates first."""
        return self._now()[:, self.moving_M]

    def method(self) -> Hypergradient:
        """What takes the derivative, where the plan's method is not direct."""
        assert self.moves is not None
        moves, moving_M = self.moves, self.moving_M
        draw = drawn(self.identities, len(moving_M))
        return method_of(
            self.plan.method,
            units=lambda _: moves.units()[:, moving_M],
            room=lambda _: moves.room()[:, moving_M],
            draw=draw,
        )

    # -- its steps ---------------------------------------------------------------------------------------------------

    def draw(self, step: int) -> None:
        """The grades of one step, where they are random."""
        if not self.random:
            return
        like = self.lanes.stands()[0]
        if any(self.widths.draws):
            found = [m_KN.to(like) for m_KN in self.widths.grades(self._uniforms(step))]
        else:
            found = self._kept("grades", (self.widths.coordinates_KP, self.widths.share), self._steady, like)
        own = self._kept("rates", tuple(self.hyper.values()), self._rates_as, like)
        self.lanes.sample(self._dropped(found, own, step, self.batch))

    def _steady(self, like: Tensor) -> list[Tensor]:
        return [m_KN.to(like) for m_KN in self.widths.grades()]

    def _rates_as(self, like: Tensor) -> dict[str, Tensor]:
        return {name: values_K.to(like) for name, values_K in self.hyper.items()}

    def _kept(self, name: str, of: tuple[object, ...], find: Callable[[Tensor], T], like: Tensor) -> T:
        """What is found from some values, on the device of the lanes: found again when those are others, for the way
        to a GPU is long."""
        before = self._known.get(name)
        if before is None or len(before[0]) != len(of) or any(a is not b for a, b in zip(before[0], of, strict=True)):
            before = self._known[name] = of, find(like)
        found: T = before[1]
        return found

    def undropped(self, step: int) -> None:
        """The grades of one step without the noise of dropout: what moves sees the whole network."""
        if self.random:
            self.lanes.sample(self.widths.grades(self._uniforms(step)))

    def _dropped(self, grades: list[Tensor], rates: Mapping[str, Tensor], step: int, batch: int) -> list[Tensor]:
        """Grades times the noise of dropout, [K, N, B]; the same noise for all trials, as batches are."""
        if "dropout" not in rates:
            return grades
        found = []
        for i, m_KN in enumerate(grades):
            p_K = rates.get(f"dropout.{i}", rates["dropout"])
            some_K = p_K > 0  # the root has no slope at 0
            spread_K = torch.where(some_K, (torch.where(some_K, p_K, 0.5) / (1 - p_K)).sqrt(), 0.0)
            found.append(m_KN.unsqueeze(2) * (1 + spread_K[:, None, None] * self._normals(i, step, m_KN, batch)))
        return found

    def _normals(self, i: int, step: int, m_KN: Tensor, batch: int) -> Tensor:
        """Standard normal numbers for a layer's units, [K or 1, N, B]: a function of (search seed, replicate, step)."""
        whose = [(seed, replicate) for seed, _, replicate in self.identities]
        by_replicate = {
            who: normal(fold(who[0], "dropout", who[1], i, step), m_KN.shape[1], batch, m_KN.device).to(m_KN)
            for who in dict.fromkeys(whose)
        }
        return torch.stack([by_replicate[who] for who in (whose if len(by_replicate) > 1 else whose[:1])])

    def direct(self, step: int, x: Tensor, y_BO: Tensor) -> Tensor:
        """d(loss on a batch)/d(what moves) with the weights as they are, [K, P]."""
        self.undropped(step)
        noise = self._uniforms(step) if self.random else None
        by_gates = self.widths.pull(self.lanes.grade_gradients(x, y_BO), noise)
        return torch.cat([by_gates, torch.zeros_like(self.rates_KR)], 1)[:, self.moving_M]

    def move(
        self, gradient_KP: Tensor, share: float, batch: tuple[Tensor, Tensor], progress: float | None = None
    ) -> None:
        """One step of what moves by a derivative; `share` of the training is done, and `progress` of all moves; `batch`
        is what new units' gradients are taken on."""
        assert self.moves is not None
        gates = self.widths.coordinates_KP.shape[1]
        with torch.enable_grad():
            gradient_KM = torch.zeros_like(self.moves.n_KG).index_copy(1, self.moving_M, gradient_KP.double().cpu())
            h_KM = self.moves.step(gradient_KM, share if progress is None else progress).clone()
            self.widths.share = share  # sizes depend on the temperature
            h_KM[:, :gates] = self.widths.within(h_KM[:, :gates])
            h_KM = self.moves.place(h_KM).detach()
        self.widths.set(h_KM[:, :gates])
        if self.rates:
            self.hyper |= {name: h_KM[:, gates + r].clone() for r, name in enumerate(self.rates)}
            self.lanes.retune({name: values_K.to(self.lanes.stands()[0]) for name, values_K in self.hyper.items()})
        if self.plan.fractional:
            self.regate(share, batch)

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

    # -- as it stands ------------------------------------------------------------------------------------------------

    def saved(self) -> dict[str, Tensor]:
        """All that it is, by name, [K, ...]; copies."""
        found = {
            "widths.coordinates": self.widths.coordinates_KP.clone(),
            "widths.share": torch.full((len(self.widths),), self.widths.share, dtype=torch.float64),
        }
        return found | {f"outer.{name}": t for name, t in (self.moves.saved() if self.moves else {}).items()}

    def resume(self, state: Mapping[str, Tensor], lanes: Mapping[str, Tensor], hyper: Mapping[str, Tensor]) -> None:
        """Go on from what `saved` gave, with `lanes` as they were saved and their rates."""
        self.hyper = {name: hyper[name].clone() for name in self.hyper}
        self.widths.set(state["widths.coordinates"].clone())
        if self.plan.fractional:
            self.widths.share = float(state["widths.share"][0])  # else lanes keep the grades that they began with
        begin(self.lanes, lanes, self.widths.members(), self.widths.sizes_KG)
        self.widths.share = float(state["widths.share"][0])
        if self.moves is not None:
            self.moves.resume(part(state, "outer"))

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
