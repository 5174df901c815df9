"""Dense lanes as a program: at exact whole sizes, or of real sizes, whose grades a gradient reaches.

    >>> lanes = DenseProgram(shape, batch=64, gated=True)
    >>> lanes.begin(identities, sizes=widths.reach(), live=widths.sizes_KG.tolist())
    >>> lanes.attach(rule, hyper)
    >>> lanes.regate(widths.grades(), widths.reach(lanes.sizes), widths.sizes_KG)
    >>> gradient_KP = widths.pull(lanes.grade_gradients(x_BI, y_BO))

A gated lane is laid out for the units that its membership can reach now, and anew when it outgrows them or leaves more
than a block unused; so a narrow lane costs a narrow network even where its bound is wide.

Legend of shape suffixes: K lanes, G gates, N units of a gate, B batch, I 1 + inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from search_spaces.growth import Units, grown
from search_spaces.mlp import GatedMLP
from search_spaces.network import Size
from search_spaces.width import HeldGate, gates_of, held
from trials.lanes.dense import DenseLanes, DenseShape
from trials.lanes.dense_functions import DenseFunctions
from trials.lanes.growing import AWAKE
from trials.lanes.masks import as_long
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
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shape, self.batch, self.gated, self.growth = shape, batch, gated, growth
        self.device, self.dtype = torch.device(device), dtype

    def begin(
        self,
        identities: Sequence[Identity],
        sizes: Sequence[Sequence[int]],
        live: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Fresh lanes, laid out at `sizes` and initialised for the real sizes `live`."""
        self.dense = DenseLanes(self.shape, sizes, self.batch, gated=self.gated, device=self.device, dtype=self.dtype)
        self.dense.initialise(identities, live=live)
        self._members: list[list[Tensor]] = []

    @property
    def sizes(self) -> list[tuple[Size, ...]]:
        """Each lane's sizes as laid out."""
        return list(self.dense.sizes)

    @property
    def in_place(self) -> bool:
        return False

    def attach(self, rule: Rule, hyper: Mapping[str, Tensor]) -> None:
        self.dense.attach(rule, hyper)

    def retune(self, hyper: Mapping[str, Tensor]) -> None:
        self.dense.retune(hyper)

    def functions(self) -> Functions:
        own = DenseFunctions(self.dense)
        learns = self.shape.learner == "feedback"
        return Functions(
            lane_T=self.dense.lane_T,
            layer_T=self.dense.layer_T,
            rates_T=self.dense.rates_T,
            losses=lambda weights_T, grades, batch: own.losses(weights_T, grades, *batch[:2]),
            feedback=(lambda weights_T, grades, batch: own.feedback(weights_T, grades, *batch[:2])) if learns else None,
        )

    def stands(self) -> tuple[Tensor, dict[str, Tensor]]:
        return self.dense.weights_T, self.dense.optimiser.state

    def regate(
        self,
        grades: Sequence[Tensor],
        reach: Sequence[tuple[Size, ...]],
        live: Tensor,
        batch: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.dense.forget()
        self.dense.now = [tuple(lane) for lane in live.tolist()]
        units = [tuple(n for n in lane if isinstance(n, int)) for lane in reach]
        if units != self.dense.sizes:
            self.dense.resize(units)
        by_lane = self._by_lane(grades)
        if self._members and self.growth != "fresh":
            self._grow(by_lane, batch)
        self._members = [[m_N > 0 for m_N in lane] for lane in by_lane]
        self.dense.grade(by_lane)

    def _grow(self, by_lane: Sequence[Sequence[Tensor]], batch: tuple[Tensor, Tensor] | None) -> None:
        """Rewrite the weights of units that have become members."""
        matrices = None
        if self.growth == "gradmax" and batch is not None:
            self.dense.sample(
                [
                    [m_N * as_long(was_N, len(m_N)).to(m_N) for m_N, was_N in zip(*lane, strict=True)]
                    for lane in zip(by_lane, self._members, strict=True)
                ]
            )
            matrices = self.dense.growth_matrices(*batch)
        for k, lane in enumerate(by_lane):
            for g, grades_N in enumerate(lane):
                living_N = as_long(self._members[k][g], len(grades_N)).to(grades_N.device)
                new_N = (grades_N > 0) & ~living_N
                if not new_N.any():
                    continue
                seed, number, replicate = self.dense.identities[k]
                own, start = self.dense.matrices(k), self.dense.initial(k)
                units = Units(incoming=(own[g],), outgoing=(own[g + 1][:, 1:],))
                after = grown(
                    self.growth,
                    units,
                    Units(incoming=(start[g],), outgoing=(start[g + 1][:, 1:],)),
                    living_N=living_N,
                    new_N=new_N,
                    grades_N=grades_N,
                    uniform_N2=uniform(fold(seed, "growth", number, replicate, g), len(new_N), 2).to(own[g]),
                    matrix_WC=None if matrices is None else matrices[k][g],
                    incoming=AWAKE,
                )
                units.incoming[0].copy_(after.incoming[0])
                units.outgoing[0].copy_(after.outgoing[0])

    def sample(self, grades: Sequence[Tensor]) -> None:
        self.dense.sample(self._by_lane(grades))

    def _by_lane(self, grades: Sequence[Tensor]) -> list[list[Tensor]]:
        return [
            [m_KN[k, :n].to(self.device, self.dtype) for m_KN, n in zip(grades, lane, strict=True)]
            for k, lane in enumerate(self.dense.sizes)
        ]

    def step(self, x: Tensor, y_BO: Tensor) -> None:
        self.dense.step(x, y_BO)

    def grade_gradients(self, x: Tensor, y_BO: Tensor) -> list[Tensor]:
        by_lane = self.dense.grade_gradients(x, y_BO)
        found = []
        for g, maximum in enumerate(self.shape.maxima):
            found.append(torch.zeros(len(by_lane), maximum, dtype=self.dtype, device=self.device))
            for k, lane in enumerate(by_lane):
                found[g][k, : len(lane[g])] = lane[g]
        return found

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
                    gate.m = grades.clone()
        return module
