"""Widths read off one training of the widest network: what `width_study.py` compares searches and gradients with.

    magnitude  a unit is worth the norm of its incoming weights times that of its outgoing ones, over the layer's mean
               (Han et al. 2015; the product, because a ReLU unit may be scaled up before and down behind without any
               change; over the mean, because a norm also counts how many weights there are)
    bn gamma   a unit is worth |gamma| of the batch norm before it, under an L1 penalty (Liu et al. 2017)
    elbo       a unit is worth its place: layer l's unit k is scaled by the density f_l(k) of a discretised exponential
               whose rate is learnt with the weights on an evidence lower bound; the width is the 0.9 quantile of f_l
               (the idea of Errica et al., "Adaptive Width Neural Networks"; written anew from it)

The first two drop the worthless units of all layers together until the bound is met. f_l is divided by f_l(0), a
constant that the next weights absorb, so that one learning rate suits every rate; the variational distributions are
narrow, so that their expectations are values at the mean, and the ELBO is the log-likelihood plus two log priors.

Legend of shape suffixes: K lanes, N units, B batch, I inputs, O outputs, R rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from search_spaces import Point
from trials.batches import Rows
from trials.noise import data_order, fold, normal
from trials.plan import Plan

KINDS = ("magnitude", "bn gamma", "elbo")
L1 = 1e-3  # the penalty on |gamma|
GAMMA = 0.5  # where gamma begins (Liu et al. 2017)
QUANTILE = 0.9  # of f_l: where a layer ends
SPREAD = 0.1  # the prior's standard deviation of log(rate)


class Widest:
    """K networks of the greatest widths, trained side by side: one batched product a layer, gradients by autograd.

    Args:
        rates: each lane's learning rate.
        uniform: the width that the bound allows both layers, at which the prior of `elbo` ends a layer.
    """

    def __init__(self, plan: Plan, kind: str, rates: Sequence[float], uniform: int) -> None:
        assert plan.task is not None
        assert plan.network is not None
        self.plan, self.kind, self.task = plan, kind, plan.task
        maxima = plan.network.maxima(plan.space)
        widths = [plan.task.inputs, *maxima, plan.task.outputs]
        lanes, hidden = len(rates), len(maxima)
        self.rate_K11 = torch.tensor(rates).view(-1, 1, 1)
        self.rate_mean = math.log(1 / (1 - QUANTILE)) / uniform
        # of a geometrically scaled layer only so many units speak: the squares of their scales sum to that
        speaking = 1 / (2 * self.rate_mean) if kind == "elbo" else math.inf
        fans = [widths[0], *(min(n, speaking) for n in maxima)]
        self.weights = [
            torch.stack([normal(fold(plan.seed, kind, k, i), b, a) for k in range(lanes)]) * (2 / fan) ** 0.5
            for i, (a, b, fan) in enumerate(zip(widths[:-1], widths[1:], fans, strict=True))
        ]
        self.biases = [torch.zeros(lanes, n, 1) for n in widths[1:]]
        self.scales = [torch.full((lanes, n, 1), GAMMA) for n in maxima] if kind == "bn gamma" else []
        self.log_rates = [torch.full((lanes, 1, 1), math.log(self.rate_mean)) for _ in maxima] if kind == "elbo" else []
        self.running = [(torch.zeros(lanes, n, 1), torch.ones(lanes, n, 1)) for n in maxima]
        self.parameters = [*self.weights, *self.biases, *self.scales, *self.log_rates]
        for parameter in self.parameters:
            parameter.requires_grad_()
        self.hidden, self.units = hidden, maxima

    # -- training ------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train on the rows and in the order that a search of the same seed would."""
        rows, training = self._rows(*self.plan.train_splits), self.plan.training
        steps = training.steps(len(rows.y_R))
        order = torch.from_numpy(data_order(self.plan.seed, len(rows.y_R), training.batch_size, steps))
        velocities = [torch.zeros_like(p) for p in self.parameters]
        for step in range(steps):
            x, y_BO = rows.batch(order[step])
            logits_KOB = self._forward(x.flatten(1), training=True)
            losses = -(functional.log_softmax(logits_KOB, 1) * y_BO.mT).sum(1).mean(1)
            gradients = torch.autograd.grad(losses.sum() + self._prior(len(rows.y_R)), self.parameters)
            with torch.no_grad():
                for p, v, g in zip(self.parameters, velocities, gradients, strict=True):
                    v.mul_(training.momentum).add_(g)
                    p.sub_(self.rate_K11 * v)

    def _prior(self, rows: int) -> Tensor:
        """What stands beside the mean loss of an example."""
        terms: list[Tensor] = []
        if self.kind == "bn gamma":
            terms = [L1 * gamma.abs().sum() for gamma in self.scales]
        if self.kind == "elbo":  # the log priors belong to the whole data set: a rows-th of them to an example
            far = [((rho - math.log(self.rate_mean)) / SPREAD).square().sum() for rho in self.log_rates]
            terms = [term / (2 * rows) for term in (*far, *(w.square().sum() for w in self.weights))]
        return torch.stack([torch.zeros(()), *terms]).sum()

    def _forward(self, x_BI: Tensor, *, training: bool = False, masks: Sequence[Tensor] = ()) -> Tensor:
        h_KNB = x_BI.mT.unsqueeze(0).expand(len(self.rate_K11), -1, -1)
        for i in range(self.hidden):
            if self.kind == "bn gamma":
                z_KNB = torch.bmm(self.weights[i], h_KNB)
                h_KNB = torch.relu(self.scales[i] * self._normalised(i, z_KNB, training) + self.biases[i])
            else:
                h_KNB = torch.relu(torch.baddbmm(self.biases[i], self.weights[i], h_KNB))
            if self.kind == "elbo":
                h_KNB = h_KNB * self._density(i)
            if masks:
                h_KNB = h_KNB * masks[i].unsqueeze(2)
        return torch.baddbmm(self.biases[-1], self.weights[-1], h_KNB)

    def _normalised(self, i: int, z_KNB: Tensor, training: bool) -> Tensor:
        """The normalisation of a batch norm: by the batch in training, by running statistics otherwise."""
        if training:
            mean, variance = z_KNB.mean(2, keepdim=True), z_KNB.var(2, keepdim=True, unbiased=False)
            with torch.no_grad():
                self.running[i] = tuple(  # type: ignore[assignment]
                    old.lerp(new, 0.1) for old, new in zip(self.running[i], (mean, variance), strict=True)
                )
        else:
            mean, variance = self.running[i]
        return (z_KNB - mean) / (variance + 1e-5).sqrt()

    def _density(self, i: int) -> Tensor:
        """f(k) / f(0) of the discretised exponential, [K, N, 1]; 0 beyond the layer's end."""
        rate_K11 = self.log_rates[i].exp()
        k_1N1 = torch.arange(self.units[i], dtype=torch.float32).view(1, -1, 1)
        return torch.exp(-rate_K11 * k_1N1) * (k_1N1 < self._ends(i).view(-1, 1, 1))

    def _ends(self, i: int) -> Tensor:
        """The quantile of the discretised exponential, [K]: 1 - exp(-rate n) first reaches it at n units."""
        return torch.ceil(math.log(1 / (1 - QUANTILE)) / self.log_rates[i].detach().exp()).flatten()

    # -- what it says --------------------------------------------------------------------------------------------------

    def worths(self) -> list[Tensor]:
        """What each unit is worth, [K, N] a layer."""
        with torch.no_grad():
            if self.kind == "bn gamma":
                return [gamma.abs().squeeze(2) for gamma in self.scales]
            if self.kind == "elbo":
                return [self._density(i).squeeze(2) for i in range(self.hidden)]
            into = [torch.cat([w, b], 2).norm(dim=2) for w, b in zip(self.weights, self.biases, strict=True)]
            worths = [into[i] * self.weights[i + 1].norm(dim=1) for i in range(self.hidden)]
            return [worth_KN / worth_KN.mean(1, keepdim=True) for worth_KN in worths]

    def widths(self) -> list[tuple[int, ...]]:
        """Each lane's widths within the bounds."""
        if self.kind != "elbo":
            worths = self.worths()
            return [self._cut([w_KN[k] for w_KN in worths]) for k in range(len(self.rate_K11))]
        ends = torch.stack([self._ends(i) for i in range(self.hidden)], 1)
        return [self._scaled(lane) for lane in ends.tolist()]

    def _cut(self, worths: Sequence[Tensor]) -> tuple[int, ...]:
        """Drop the least of all units until the bounds are met; each layer keeps what its range asks for."""
        sizes = [len(w_N) for w_N in worths]
        ranked = sorted((float(worth), g) for g, w_N in enumerate(worths) for worth in w_N)
        for _, g in ranked:
            if self.plan.excess(self._point(sizes)) <= 0:
                break
            sizes[g] = max(sizes[g] - 1, self._least(g))
        return tuple(sizes)

    def _scaled(self, sizes: Sequence[float]) -> tuple[int, ...]:
        """The same proportion as large as the bounds allow."""
        assert self.plan.network is not None
        most = max(self.units) / min(sizes)
        whole = self.plan.network.sizes(self.plan.rounded(self._point([n * most for n in sizes])))
        return tuple(min(int(n), top) for n, top in zip(whole, self.units, strict=True))

    def _least(self, g: int) -> int:
        assert self.plan.network is not None
        return int(getattr(self.plan.space.parameters[self.plan.network.gates[g]], "low", 1))

    def _point(self, sizes: Sequence[float]) -> Point:
        assert self.plan.network is not None
        return dict(zip(self.plan.network.gates, map(float, sizes), strict=True))

    def errors(self, widths: Sequence[tuple[int, ...]] | None = None) -> Tensor:
        """Each lane's error on the selection rows, [K]; with `widths`, after all but its most worthy units are cut."""
        masks = []
        for g, worth_KN in enumerate(self.worths() if widths else ()):
            place_KN = worth_KN.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            masks.append((place_KN < torch.tensor([lane[g] for lane in widths or ()]).unsqueeze(1)).float())
        rows = self._rows(self.plan.scored)
        with torch.no_grad():
            logits_KOR = torch.cat([self._forward(x.flatten(1), masks=masks) for x in rows.chunks()], 2)
        return (logits_KOR.argmax(1) != rows.y_R).float().mean(1)

    def _rows(self, *splits: str) -> Rows:
        return Rows.of(self.task, *splits, dense=False, device=torch.device("cpu"))


@dataclass(frozen=True, kw_only=True)
class Read:
    """What one training of the widest network says: widths within the bound, and what cutting to them cost the error
    with the weights as they are."""

    widths: tuple[int, ...]
    gap: float


def widest_flops(plan: Plan) -> float:
    """FLOPs of one training of the widest network, measured twice in the end."""
    assert plan.network is not None
    assert plan.task is not None
    sizes = plan.network.named(plan.network.maxima(plan.space))
    batches = plan.training.batch_size * plan.training.steps(len(plan.task.rows(*plan.train_splits)))
    measured = 2 * len(plan.task.rows(plan.scored))
    return float(plan.costs.training_flops(sizes) * batches + plan.costs.flops(sizes) * measured)


def read_off(plan: Plan, kind: str, rates: Sequence[float], uniform: int) -> list[Read]:
    """Train the widest network at each rate and read widths off it."""
    nets = Widest(plan, kind, rates, uniform)
    nets.train()
    widths = nets.widths()
    gaps = nets.errors(widths) - nets.errors()
    return [Read(widths=lane, gap=float(gap)) for lane, gap in zip(widths, gaps, strict=True)]
