"""Dense lanes as a program: at exact whole sizes, or of real sizes, whose grades a gradient reaches.

    >>> lanes = DenseProgram(shape, batch=64, gated=True)
    >>> lanes.begin(identities, sizes=widths.reach(), live=widths.sizes_KG.tolist())
    >>> lanes.attach(rule, hyper)
    >>> lanes.regate(widths.grades(), widths.reach(lanes.sizes), widths.sizes_KG)
    >>> gradient_KP = widths.pull(lanes.grade_gradients(x_BI, y_BO))

A gated lane is laid out for the units that its membership can reach now, and anew when it outgrows them or leaves more
than a block unused; so a narrow lane costs a narrow network even where its bound is wide. `grouped` lanes cost what the
widest of them does (`executed`), which is nothing beside what a GPU takes for one product a lane.

Legend of shape suffixes: K lanes, G gates, N units of a gate, B batch, I 1 + inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.growth import Units, grown
from search_spaces.mlp import GatedMLP
from search_spaces.network import Size
from search_spaces.width import HeldGate, gates_of, held
from trials.lanes.dense import DenseLanes, DenseShape
from trials.lanes.dense_functions import DenseFunctions, GroupedFunctions
from trials.lanes.growing import AWAKE
from trials.lanes.program import Functions, Identity
from trials.noise import fold, uniform
from trials.optimisers import Rule


class DenseProgram:
    """K multi-layer perceptrons. `shape.maxima` are the greatest sizes of the hidden layers."""

    def __init__(
        self,
        shape: DenseShape,
        batch: int,
        *,
        gated: bool = False,
        growth: str = "fresh",
        alike: bool = False,
        grouped: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shape, self.batch, self.gated, self.growth, self.alike = shape, batch, gated, growth, alike
        self.grouped, self.device, self.dtype = grouped, torch.device(device), dtype

    def begin(
        self,
        identities: Sequence[Identity],
        sizes: Sequence[Sequence[int]],
        live: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Fresh lanes, laid out at `sizes` and initialised for the real sizes `live`."""
        where: Any = {"device": self.device, "dtype": self.dtype}
        self.dense = DenseLanes(self.shape, sizes, self.batch, gated=self.gated, grouped=self.grouped, **where)
        self.dense.initialise(identities, live=live)
        self._members: list[Tensor] = []  # where growth asks: which units had a grade, [K, N] a gate

    @property
    def sizes(self) -> list[tuple[Size, ...]]:
        """Each lane's sizes as laid out."""
        return list(self.dense.sizes)

    @property
    def executed(self) -> list[tuple[Size, ...]]:
        """The sizes at which each lane is computed."""
        return [self.dense.room] * self.dense.lanes if self.grouped else self.sizes

    @property
    def in_place(self) -> bool:
        return False

    @property
    def buffers(self) -> object:
        """Something that is another as soon as a step works on other buffers."""
        return self.dense.optimiser

    def attach(self, rule: Rule, hyper: Mapping[str, Tensor]) -> None:
        self.dense.attach(rule, hyper)

    def retune(self, hyper: Mapping[str, Tensor]) -> None:
        self.dense.retune(hyper)

    def functions(self) -> Functions:
        own = GroupedFunctions(self.dense) if self.grouped else DenseFunctions(self.dense, alike=self.alike)
        learns = self.shape.learner == "feedback"
        return Functions(
            lane_T=self.dense.lane_T,
            layer_T=self.dense.layer_T,
            rates_T=self.dense.rates_T,
            own_T=self.dense.own_T,
            sums=self.dense.layout.sums if self.grouped else None,
            losses=lambda weights_T, grades, batch: own.losses(weights_T, grades, *batch[:2]),
            feedback=(lambda weights_T, grades, batch: own.feedback(weights_T, grades, *batch[:2])) if learns else None,
        )

    def stands(self) -> tuple[Tensor, dict[str, Tensor]]:
        return self.dense.weights_T, self.dense.optimiser.state

    def by_lane(self, buffer: Tensor) -> Tensor:
        return self.dense.layout.by_lane(buffer)

    def take(self, rows: Tensor, buffer: Tensor) -> None:
        self.dense.layout.take(rows, buffer)

    def memory(self) -> dict[str, Tensor]:
        return {}

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        pass

    def again(self, sizes: Sequence[tuple[Size, ...]]) -> None:
        units = [tuple(n for n in lane if isinstance(n, int)) for lane in sizes]
        if units != self.dense.sizes:
            self.dense.resize(units)
        self._members = []

    def regate(
        self,
        grades: Sequence[Tensor],
        reach: Sequence[tuple[Size, ...]],
        live: Tensor,
        batch: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.dense.now = [tuple(lane) for lane in live.tolist()]
        units = [tuple(n for n in lane if isinstance(n, int)) for lane in reach]
        if units != self.dense.sizes:
            self.dense.forget()
            self.dense.resize(units)
        own = [m_KN.to(self.device, self.dtype) for m_KN in grades]
        if self.growth != "fresh":
            members = [m_KN > 0 for m_KN in own]
            if self._members:
                self._grow(own, members, batch)
            self._members = members
        self.dense.grade_together(own)

    def _grow(self, grades: Sequence[Tensor], members: Sequence[Tensor], batch: tuple[Tensor, Tensor] | None) -> None:
        """Rewrite the weights of units that have become members."""
        new = [now_KN & ~was_KN for now_KN, was_KN in zip(members, self._members, strict=True)]
        matrices = None
        if self.growth == "gradmax" and batch is not None:
            self.dense.sample_together([m_KN * was_KN for m_KN, was_KN in zip(grades, self._members, strict=True)])
            matrices = self.dense.growth_matrices(*batch)
        for g, new_KN in enumerate(new):
            for k in new_KN.any(1).nonzero().flatten().tolist():
                seed, number, replicate = self.dense.identities[k]
                units_N = slice(self.dense.sizes[k][g])
                places, start = self.dense.matrices(k), [m.cpu() for m in self.dense.initial(k)]
                own = [m.cpu() for m in places]  # a GPU adds up what units gave in whatever order
                units = Units(incoming=(own[g],), outgoing=(own[g + 1][:, 1:],))
                after = grown(
                    self.growth,
                    units,
                    Units(incoming=(start[g],), outgoing=(start[g + 1][:, 1:],)),
                    living_N=self._members[g][k, units_N].cpu(),
                    new_N=new_KN[k, units_N].cpu(),
                    grades_N=grades[g][k, units_N].cpu(),
                    uniform_N2=uniform(fold(seed, "growth", number, replicate, g), len(own[g]), 2).to(own[g]),
                    matrix_WC=None if matrices is None else matrices[k][g].cpu(),
                    incoming=AWAKE,
                )
                places[g].copy_(after.incoming[0])
                places[g + 1][:, 1:].copy_(after.outgoing[0])

    def sample(self, grades: Sequence[Tensor]) -> None:
        self.dense.sample_together(grades)

    def step(self, x: Tensor, y_BO: Tensor) -> None:
        self.dense.step(x, y_BO)

    def grade_gradients(self, x: Tensor, y_BO: Tensor) -> list[Tensor]:
        found = self.dense.grade_gradients_together(x, y_BO)
        return [
            functional.pad(m_KN, (0, maximum - m_KN.shape[1]))
            for m_KN, maximum in zip(found, self.shape.maxima, strict=True)
        ]

    @property
    def normed(self) -> bool:
        return False

    def recalibrate(self, batches: Sequence[Tensor]) -> None:
        pass

    def predict(self, x: Tensor) -> Tensor:
        return self.dense.predict(x)

    def module(self, lane: int) -> nn.Module:
        sizes, shape = self.dense.sizes[lane], self.shape
        module = held(GatedMLP(shape.inputs, sizes, shape.outputs, activation=shape.activation)).to(self.dtype)
        gates = gates_of(module)
        with torch.no_grad():
            for i, matrix in enumerate(self.dense.matrices(lane)):
                module.get_parameter(f"linears.{i}.weight").copy_(matrix[:, 1:])
                module.get_parameter(f"linears.{i}.bias").copy_(matrix[:, 0])
            if self.gated:
                for g, grades in enumerate(self.dense.lane_grades(lane)):
                    gate = gates[f"width.{g}"]
                    assert isinstance(gate, HeldGate)
                    gate.m = grades.cpu().clone()
        return module
