"""Fused lanes of multi-layer perceptrons: K trainings, each at its own exact sizes, as one program without autograd.

    >>> lanes = DenseLanes(DenseShape(inputs=64, outputs=10), sizes=[(17, 40), (5, 128)], batch=64)
    >>> lanes.initialise([(0, 0, 0), (0, 1, 0)])
    >>> lanes.attach(Rule(), {"lr": torch.tensor([0.1, 0.3])})
    >>> lanes.step(x_BI, y_BO)

Weights lie as [out, 1 + in] with the bias in column 0, activations as [1 + units, batch] with a row of ones on top: a
layer is one matrix product, its bias included. Each lane's products run at the lane's own sizes; everything elementwise
runs once over the flat buffers of all lanes. A lane's arithmetic is therefore bitwise the same whatever the other lanes
are, and a NaN stays in its lane.

`grouped` gives every lane the room of the widest and runs batched products instead: the GPU's form. What a lane has
beyond its own sizes is silent: weights of 0 in and out, which every activation (0 at 0) and every rule leave at 0. The
step allocates nothing and writes in place all that it reads, so that it can be one CUDA graph (`graphed.py`) until the
lanes are laid anew: see `resize`.

Legend of shape suffixes: K lanes, B batch, I 1 + inputs, O outputs, R rows, T a whole flat buffer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from search_spaces.parametrisation import REFERENCE, Scaling, scaling
from trials.lanes import together
from trials.lanes.layout import Layout
from trials.lanes.program import spread
from trials.noise import fold, normal
from trials.optimisers import Optimiser, Rule

aten = torch.ops.aten

AT_ONCE = 1 << 26  # numbers of a layer that grouped lanes predict at a time
FUNCTION = {"relu": torch.relu, "tanh": torch.tanh, "gelu": functional.gelu, "silu": functional.silu}


@dataclass(frozen=True, kw_only=True)
class DenseShape:
    """What all lanes of a program share. `loss` is cross_entropy, or mse: half the squared error over all outputs.
    `maxima` are the greatest hidden sizes, which the ntk `parametrisation` is relative to. `learner` is backprop, or
    feedback: every hidden layer hears of the error through a fixed random matrix of its own, delta_l = (B_l e) phi'
    (direct feedback alignment, Nokland 2016), which begins as the last layer's weights do."""

    inputs: int
    outputs: int
    activation: str = "relu"
    loss: str = "cross_entropy"
    parametrisation: str = "sp"
    maxima: tuple[int, ...] = ()
    learner: str = "backprop"


class DenseLanes:
    """K multi-layer perceptrons that train together.

    Args:
        sizes: each lane's hidden sizes; lanes may differ in them, not in their number.
        batch: rows of a training batch.
        gated: each unit is multiplied by a grade (`grade`); without it, sizes alone say which units exist.
        grouped: every lane has the room of the widest, and batched products serve them all.
    """

    def __init__(
        self,
        shape: DenseShape,
        sizes: Sequence[Sequence[int]],
        batch: int,
        *,
        gated: bool = False,
        grouped: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shape, self.batch, self.gated, self.grouped = shape, batch, gated, grouped
        self.device, self.dtype = torch.device(device), dtype
        self._product = torch.bmm if grouped else torch.mm
        self.lay(sizes)

    # -- buffers -----------------------------------------------------------------------------------------------------

    def lay(self, sizes: Sequence[Sequence[int]]) -> None:
        """Allocate every buffer for `sizes` and cut the views that the step works on."""
        self.room = together.widest(sizes)
        self.place(sizes)
        self.weights_T = self.layout.zeros(self.device, self.dtype)
        self.gradients_T = self.layout.zeros(self.device, self.dtype)
        self._act = [self._with_ones(units) for units in self.units]
        self._delta = [units.zeros(self.device, self.dtype) for units in self.units]
        keeps_pre = self.shape.activation in ("gelu", "silu")  # their derivative needs the value before the activation
        self._pre = [units.zeros(self.device, self.dtype) for units in self.units] if keeps_pre else self._act
        self._grade = [torch.ones_like(h_T) for h_T in self._act] if self.gated else []
        self._told = [units.pieces(m_T) for units, m_T in zip(self.units, self._grade, strict=self.gated)]
        self._gated = [self._with_ones(units) for units in self.units] if self.gated else self._act
        self.feedback = [heard.zeros(self.device, self.dtype) for heard in self.heard]
        self.logits_KOB = torch.zeros(self.lanes, self.shape.outputs, self.batch, device=self.device, dtype=self.dtype)
        self._top_KOB = torch.zeros_like(self.logits_KOB)
        self._cut()

    def place(self, sizes: Sequence[Sequence[int]]) -> None:
        """Say where lanes of `sizes` lie in the buffers."""
        self.sizes = [tuple(int(n) for n in lane) for lane in sizes]
        self.hidden, self.lanes = len(self.sizes[0]), len(self.sizes)
        first, last = self.shape.inputs, self.shape.outputs
        self.layout = self._layout(lambda n: [(b, a + 1) for a, b in pairwise((first, *n, last))])
        self.units = [self._layout_of(i, 1, self.batch) for i in range(self.hidden)]
        heard = range(self.hidden if self.shape.learner == "feedback" else 0)
        self.heard = [self._layout_of(i, 0, last) for i in heard]
        self._owners: tuple[Tensor, Tensor] | None = None
        self._alive_T: Tensor | None = None
        self._speak: list[Tensor] = []  # which units have a grade above 0, [K, N] a layer

    def _layout(self, shapes: Callable[[tuple[int, ...]], list[tuple[int, int]]]) -> Layout:
        return Layout([shapes(lane) for lane in self.sizes], room=shapes(self.room) if self.grouped else None)

    def _layout_of(self, i: int, more: int, columns: int) -> Layout:
        """Of a matrix a lane, with a row for each unit of a layer and some `more`."""
        return self._layout(lambda n: [(n[i] + more, columns)])

    @property
    def lane_T(self) -> Tensor:
        """Whose each weight is."""
        self._owners = self._owners or self.layout.owners(self.device)
        return self._owners[0]

    @property
    def layer_T(self) -> Tensor:
        """Of which layer each weight is."""
        self._owners = self._owners or self.layout.owners(self.device)
        return self._owners[1]

    @property
    def own_T(self) -> Tensor | None:
        """Which weights are a lane's own; None: all but the rest of a span."""
        if not self.grouped:
            return None
        return torch.cat([self.layout.own(i, self.device).flatten() for i in range(self.hidden + 1)])

    def _with_ones(self, units: Layout) -> Tensor:
        h_T = units.zeros(self.device, self.dtype)
        for view in units.views(h_T, 0):
            view[..., 0, :] = 1.0
        return h_T

    def _cut(self) -> None:
        """The operands of every matrix product, cut once: the step only loops over these lists."""

        def cells(layouts: Sequence[Layout], buffers: Sequence[Tensor]) -> list[list[Tensor]]:
            return [layout.views(buffer_T, 0) for layout, buffer_T in zip(layouts, buffers, strict=True)]

        w = [self.layout.views(self.weights_T, i) for i in range(self.hidden + 1)]
        g = [self.layout.views(self.gradients_T, i) for i in range(self.hidden + 1)]
        h = cells(self.units, self._gated)
        tops = [[t] if self.grouped else list(t.unbind(0)) for t in (self.logits_KOB, self._top_KOB)]
        into = [[v[..., 1:, :] for v in layer] for layer in cells(self.units, self._pre)] + [tops[0]]
        down = [[v[..., 1:, :] for v in layer] for layer in cells(self.units, self._delta)] + [tops[1]]
        self._weights = w
        self._first = list(zip(w[0], into[0], strict=True))
        self._first_gradient = list(zip(down[0], g[0], strict=True))
        later = range(1, self.hidden + 1)
        self._up = [list(zip(w[i], h[i - 1], into[i], strict=True)) for i in later]
        self._down = [list(zip([v[..., 1:].mT for v in w[i]], down[i], down[i - 1], strict=True)) for i in later]
        if self.heard:
            matrices = cells(self.heard, self.feedback)
            self._down = [list(zip(matrices[i - 1], down[-1], down[i - 1], strict=True)) for i in later]
        self._gradient = [list(zip(down[i], [v.mT for v in h[i - 1]], g[i], strict=True)) for i in later]
        self._ones = [
            torch.cat([torch.arange(self.batch) + offset[0] for offset in units.offsets]).to(self.device)
            for units in self.units
        ]

    # -- weights -----------------------------------------------------------------------------------------------------

    def initialise(
        self, identities: Sequence[tuple[int, int, int]], live: Sequence[Sequence[float]] | None = None
    ) -> None:
        """He initialisation at live fan-in, biases zero; nested by prefix of rows and columns.

        Args:
            identities: (search seed, trial number, replicate) of each lane: its weights are a function of these alone.
            live: each lane's real hidden sizes, where they differ from the sizes laid out.
        """
        self.identities, self.live = list(identities), [tuple(lane) for lane in live or self.sizes]
        self.now = self.live
        if self.grouped:
            together.initialise(self)
        else:
            for lane in range(self.lanes):
                self._initialise_lane(lane)
        self.draw_feedback()

    def draw_feedback(self) -> None:
        """Every lane's fixed matrices, nested by prefix of rows."""
        if self.grouped:
            together.draw_feedback(self)
            return
        for lane, i in itertools.product(range(self.lanes), range(len(self.heard))):
            seed, number, replicate = self.identities[lane]
            view = self.heard[i].lane_view(self.feedback[i], lane, 0)
            drawn = normal(fold(seed, "feedback", number, replicate, i), view.shape[0], view.shape[1], self.device)
            view.copy_(drawn * self.scaling(self.live[lane], self.hidden, "sgd").std)

    def _initialise_lane(self, lane: int) -> None:
        for view, start in zip(self.matrices(lane), self.initial(lane), strict=True):
            view.copy_(start)

    def initial(self, lane: int) -> list[Tensor]:
        """The weights that a lane begins with, as it is laid out."""
        seed, number, replicate = self.identities[lane]
        found = []
        for i, view in enumerate(self.matrices(lane)):
            drawn = normal(fold(seed, "init", number, replicate, i), view.shape[0], view.shape[1] - 1, self.device)
            weights = drawn.to(self.dtype) * self.scaling(self.live[lane], i, "sgd").std
            found.append(functional.pad(weights, (1, 0)))
        return found

    def scaling(self, sizes: Sequence[float], i: int, optimizer: str) -> Scaling:
        """The scaling of a layer at real hidden sizes."""
        live = [self.shape.inputs, *sizes, self.shape.outputs]
        relative = [REFERENCE] * self.hidden if self.shape.parametrisation == "mup" else self.shape.maxima or sizes
        base = [self.shape.inputs, *relative, self.shape.outputs]
        return scaling(
            self.shape.parametrisation,
            optimizer,
            fan_in=live[i],
            base_in=base[i],
            fan_out=live[i + 1],
            base_out=base[i + 1],
            reads=i > 0,
            writes=i < self.hidden,
        )

    def attach(self, rule: Rule, hyper: Mapping[str, Tensor]) -> None:
        """Begin an optimiser with each lane's own hyperparameters, name -> [K]."""
        self.rule = rule
        self.optimiser = Optimiser(rule, {n: torch.zeros_like(self.weights_T) for n in rule.uses}, self.weights_T)
        self._lr_T = torch.zeros_like(self.weights_T) if self._rated else self.optimiser.hyper["lr"]
        self.retune(hyper)

    def retune(self, hyper: Mapping[str, Tensor]) -> None:
        """Other hyperparameters from here on, name -> [K]; the optimiser's state stays."""
        self.hyper = {name: values_K.to(self.device, self.dtype) for name, values_K in hyper.items()}
        for name in self.rule.uses:
            self._spread(name, self._lr_T if name == "lr" else self.optimiser.hyper[name])
        self.set_rates()

    def _spread(self, name: str, into_T: Tensor) -> None:
        """Put a hyperparameter at each weight: its lane's, or its layer's own where that has one."""
        if not self.grouped:
            into_T.copy_(spread(name, self.hyper, self.lane_T, self.layer_T))
            return
        for i in range(self.hidden + 1):
            values_K = self.hyper.get(f"{name}.{i}", self.hyper[name])
            self.layout.stack(into_T, i).copy_(values_K.view(-1, 1, 1))

    @property
    def _rated(self) -> bool:
        """Whether learning rates differ within a layer of a lane."""
        return self.gated or self.shape.parametrisation == "mup"

    @property
    def rates_T(self) -> Tensor:
        """By how much a weight's learning rate differs from its lane's, [T]; 0 where it rests."""
        return self._rates_T if self._rated else torch.ones_like(self.weights_T)

    def set_rates(self) -> None:
        """Learning rates as the parametrisation wants them, and 0 where a weight is no member."""
        if not self._rated:
            return
        self._rates_T = torch.ones_like(self.weights_T) if self._alive_T is None else self._alive_T.clone()
        for i in range(self.hidden + 1 if self.shape.parametrisation == "mup" else 0):
            found = [self.scaling(now, i, self.rule.kind) for now in self.now]
            if self.grouped:
                bias_K, weight_K = self._rates_T.new_tensor([(rates.bias_lr, rates.weight_lr) for rates in found]).T
                every = self.layout.stack(self._rates_T, i)
                every[..., 0] *= bias_K[:, None]
                every[..., 1:] *= weight_K[:, None, None]
                continue
            for lane, rates in enumerate(found):
                view = self.layout.lane_view(self._rates_T, lane, i)
                view[:, 0] *= rates.bias_lr
                view[:, 1:] *= rates.weight_lr
        torch.mul(self._lr_T, self._rates_T, out=self.optimiser.hyper["lr"])

    def matrices(self, lane: int, buffer_T: Tensor | None = None) -> list[Tensor]:
        """A lane's weights (or the same places of another buffer), views [out, 1 + in] with the bias in column 0."""
        buffer_T = self.weights_T if buffer_T is None else buffer_T
        return [self.layout.lane_view(buffer_T, lane, i) for i in range(self.hidden + 1)]

    def save_lane(self, lane: int) -> dict[str, Tensor]:
        """Copies of a lane's weights and optimiser state, by name."""
        buffers = {"weights": self.weights_T, **self.optimiser.state}
        return {f"{name}.{i}": m.clone() for name, b in buffers.items() for i, m in enumerate(self.matrices(lane, b))}

    def load_lane(self, lane: int, saved: Mapping[str, Tensor]) -> None:
        """Put back what `save_lane` gave; where sizes differ, the leading units that both have."""
        for name, buffer_T in {"weights": self.weights_T, **self.optimiser.state}.items():
            for i, matrix in enumerate(self.matrices(lane, buffer_T)):
                old = saved[f"{name}.{i}"].to(self.device, self.dtype)
                rows, columns = (min(a, b) for a, b in zip(matrix.shape, old.shape, strict=True))
                matrix[:rows, :columns] = old[:rows, :columns]

    def resize(self, sizes: Sequence[Sequence[int]]) -> None:
        """Lay the lanes anew: units that stay keep weights and state; new ones begin as at initialisation."""
        if self.grouped:
            together.resize(self, sizes)
            return
        saved, before = [self.save_lane(lane) for lane in range(self.lanes)], self.sizes
        self.lay(sizes)
        self.attach(self.rule, self.hyper)
        for lane, tensors in enumerate(saved):
            if self.sizes[lane] != before[lane]:
                self._initialise_lane(lane)
            self.load_lane(lane, tensors)
        self.draw_feedback()

    # -- gates -------------------------------------------------------------------------------------------------------

    def grade(self, grades: Sequence[Sequence[Tensor]]) -> None:
        """Set every unit's grade, `grades[lane][layer]` [units]; units of grade 0 rest, their state is forgotten."""
        self.grade_together(_padded(grades))

    def grade_together(self, grades: Sequence[Tensor]) -> None:
        """The same by layer, [K, N] each, N at least as many as there is room for."""
        self.sample_together(grades)
        speak = [m_KN > 0 for m_KN in grades]
        still = self._alive_T is not None and all(map(torch.equal, speak, self._speak))
        self.forget()  # what units that speak again gathered while they rested
        if not still:
            self._speak, self._alive_T = speak, self._alive(speak)
            self.forget()
        if not still or self.shape.parametrisation == "mup":  # whose rates follow the real sizes
            self.set_rates()

    def _alive(self, speak: Sequence[Tensor]) -> Tensor:
        """1 where a weight is read and written by units that speak, [T]; 0 elsewhere."""
        alive_T = torch.ones_like(self.weights_T)
        for i, speak_KN in enumerate(speak):
            for lanes, own_KOI in self.layout.pieces(alive_T, i):
                own_KOI.mul_(speak_KN[lanes, : own_KOI.shape[1], None])
            for lanes, own_KOI in self.layout.pieces(alive_T, i + 1):
                own_KOI[..., 1:].mul_(speak_KN[lanes, None, : own_KOI.shape[2] - 1])
        return alive_T

    def forget(self) -> None:
        """Whatever resting units gathered is gone, before lanes are laid anew or a unit speaks again."""
        if self._alive_T is not None:
            self.optimiser.forget(self._alive_T)

    def lane_grades(self, lane: int) -> list[Tensor]:
        """A lane's grades, [units] a layer."""
        return [units.lane_view(m_T, lane, 0)[1:, 0] for units, m_T in zip(self.units, self._grade, strict=True)]

    def sample(self, grades: Sequence[Sequence[Tensor]]) -> None:
        """Set every unit's grade for the coming steps ([units], or [units, batch] for each row its own); which units
        rest is left as it is."""
        self.sample_together(_padded(grades))

    def sample_together(self, grades: Sequence[Tensor]) -> None:
        """The same by layer, [K, N] or [K, N, B] each, N at least as many as any lane has."""
        for told, m in zip(self._told, grades, strict=True):
            for lanes, own_KNB in told:
                own = m[lanes, : own_KNB.shape[1] - 1]
                own_KNB[:, 1:] = own if own.dim() > 2 else own.unsqueeze(2)

    def grade_gradients(self, x_BI: Tensor, y_BO: Tensor) -> list[list[Tensor]]:
        """d(lane loss on this batch) / d(grade), `[lane][layer]` [units]; the weights' gradients are left alone."""
        found = self.grade_gradients_together(x_BI, y_BO)
        return [[m_KN[k, :n] for m_KN, n in zip(found, lane, strict=True)] for k, lane in enumerate(self.sizes)]

    def grade_gradients_together(self, x_BI: Tensor, y_BO: Tensor) -> list[Tensor]:
        """The same by layer, [K, N] each; 0 beyond a lane's units."""
        self.forward(x_BI)
        found: list[Tensor] = []
        self._loss_gradient(y_BO)
        for i in range(self.hidden - 1, -1, -1):
            for wt, d, out in self._down[i]:
                self._product(wt, d, out=out)
            sums = [m_KNB[:, 1:].sum(2) for _, m_KNB in self.units[i].pieces(self._delta[i] * self._act[i])]
            found.insert(0, sums[0] if len(sums) == 1 else pad_sequence([m_1N[0] for m_1N in sums], batch_first=True))
            self._through(i)
        return found

    def growth_matrices(self, x_BI: Tensor, y_BO: Tensor) -> list[list[Tensor]]:
        """GradMax's matrix for every hidden layer of every lane, `[lane][layer]` [next, 1 + inputs]: dL/d(what the next
        layer writes) times what the layer reads, biases included."""
        self.grade_gradients(x_BI, y_BO)

        def matrix(lane: int, i: int) -> Tensor:
            last = i + 1 == self.hidden
            delta_RB = self._top_KOB[lane] if last else self.units[i + 1].lane_view(self._delta[i + 1], lane, 0)[1:]
            return delta_RB @ (x_BI if i == 0 else self.units[i - 1].lane_view(self._gated[i - 1], lane, 0).mT)

        return [[matrix(lane, i) for i in range(self.hidden)] for lane in range(self.lanes)]

    # -- the step ----------------------------------------------------------------------------------------------------

    def step(self, x_BI: Tensor, y_BO: Tensor) -> None:
        """One training step of every lane on the same batch (inputs with a leading column of ones, targets as rows)."""
        self.forward(x_BI)
        self.backward(x_BI, y_BO)
        self.optimiser.step(self.weights_T, self.gradients_T)

    def forward(self, x_BI: Tensor) -> Tensor:
        """Every lane's logits on a batch, [K, O, B]; valid until the next call."""
        x_IB = x_BI.mT.expand(self.lanes, -1, -1) if self.grouped else x_BI.mT
        for w, out in self._first:
            self._product(w, x_IB, out=out)
        for i in range(self.hidden):
            self._activate(i)
            for w, h, out in self._up[i]:
                self._product(w, h, out=out)
        return self.logits_KOB

    def backward(self, x_BI: Tensor, y_BO: Tensor) -> None:
        """Gradients of the sum of lane losses with respect to every weight, into `gradients_T`; follows `forward`."""
        self._loss_gradient(y_BO)
        for i in range(self.hidden - 1, -1, -1):
            for d, ht, g in self._gradient[i]:
                self._product(d, ht, out=g)
            for wt, d, out in self._down[i]:
                self._product(wt, d, out=out)
            self._through(i)
        x = x_BI.expand(self.lanes, -1, -1) if self.grouped else x_BI
        for d, g in self._first_gradient:
            self._product(d, x, out=g)

    def _activate(self, i: int) -> None:
        h_T = self._act[i]
        if self.shape.activation == "relu":
            h_T.clamp_(min=0)
        else:
            if self.shape.activation == "tanh":
                h_T.tanh_()
            elif self.shape.activation == "gelu":
                aten.gelu.out(self._pre[i], out=h_T)
            else:
                aten.silu.out(self._pre[i], out=h_T)
            h_T.index_fill_(0, self._ones[i], 1.0)
        if self.gated:
            torch.mul(h_T, self._grade[i], out=self._gated[i])

    def _through(self, i: int) -> None:
        """From d/d(gated unit) to d/d(unit before its activation), in place."""
        delta_T = self._delta[i]
        if self.gated:
            delta_T.mul_(self._grade[i])
        if self.shape.activation == "relu":
            aten.threshold_backward.grad_input(delta_T, self._act[i], 0, grad_input=delta_T)
        elif self.shape.activation == "tanh":
            aten.tanh_backward.grad_input(delta_T, self._act[i], grad_input=delta_T)
        elif self.shape.activation == "gelu":
            aten.gelu_backward.grad_input(delta_T, self._pre[i], grad_input=delta_T)
        else:
            aten.silu_backward.grad_input(delta_T, self._pre[i], grad_input=delta_T)

    def _loss_gradient(self, y_BO: Tensor) -> None:
        if self.shape.loss == "cross_entropy":
            torch.softmax(self.logits_KOB, 1, out=self._top_KOB)
            self._top_KOB.sub_(y_BO.mT)
        else:
            torch.sub(self.logits_KOB, y_BO.mT, out=self._top_KOB)
        self._top_KOB.mul_(1.0 / self.batch)

    # -- evaluation --------------------------------------------------------------------------------------------------

    def predict(self, x_RI: Tensor) -> Tensor:
        """Every lane's logits on any number of rows, [K, O, R]; touches no buffer of the step."""
        grades = [units.views(m_T, 0) for units, m_T in zip(self.units, self._grade, strict=self.gated)]
        if not self.grouped:
            each = [([w[k] for w in self._weights], [m[k] for m in grades]) for k in range(self.lanes)]
            return torch.stack([self._outputs(*own, x_RI) for own in each])
        some = max(1, AT_ONCE // max(1, max((*self.room, self.shape.outputs)) * len(x_RI)))
        parts = [slice(k, k + some) for k in range(0, self.lanes, some)]
        weights, own = [w[0] for w in self._weights], [m[0] for m in grades]
        return torch.cat([self._outputs([w[part] for w in weights], [m[part] for m in own], x_RI) for part in parts])

    def _outputs(self, weights: Sequence[Tensor], grades: Sequence[Tensor], x_RI: Tensor) -> Tensor:
        act, h = FUNCTION[self.shape.activation], x_RI.mT
        for i, matrix in enumerate(weights):
            z = torch.matmul(matrix, h)
            if i < self.hidden:
                z = act(z)
                if self.gated:
                    z = z * grades[i][..., 1:, :1]
                h = functional.pad(z, (0, 0, 1, 0), value=1.0)
        return z


def _padded(by_lane: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """From `[lane][layer]` [units, ...] to [K, N, ...] a layer, 0 beyond a lane's units."""
    return [pad_sequence(list(layer), batch_first=True) for layer in zip(*by_lane, strict=True)]
