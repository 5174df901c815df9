"""Bundles in float64 whose training can be gone through, and the same training by the lanes' own step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from search_spaces import Space
from search_spaces.networks import MLP, Cell, ConvNet, Fabric, Graphon, Network, Residual
from trials.architecture import Architecture
from trials.batches import Rows
from trials.fused import lane_rule
from trials.hypergradients import Method
from trials.lanes.making import is_dense, make
from trials.lanes.program import Batch, loss_of
from trials.plan import Plan
from trials.records import Trial
from trials.tasks import load
from trials.training import Training

WIDTHS = {f"width.{i}": {"type": "width", "low": 2, "high": 6} for i in range(2)}
STRIDE = {"stride.0": {"type": "stride", "low": 1, "high": 3}}
DEPTH = {"depth.0": {"type": "depth", "low": 0, "high": 2}}
MEMBERSHIPS = ("interval", "band", "nested", "support", "support_nodes", "fuzzy", "concrete")
STRIDES = ("shrink", "resize", "spectral")
RATES = {
    "lr": {"type": "float", "low": 1e-3, "high": 1.0, "log": True},
    "momentum": {"type": "float", "low": 0.0, "high": 0.95},
    "weight_decay": {"type": "float", "low": 0.0, "high": 0.1},
}
DROPOUT = {"type": "float", "low": 0.01, "high": 0.9}


def plan_of(network: Network, space: dict[str, Any], **facts: Any) -> Plan:
    """A plan in which a gradient moves the whole space."""
    moved = {name: {**own, "moved_by": "gradient"} for name, own in space.items()}
    task = load("uci/digits" if isinstance(network, MLP) else "uci/digits-images")
    training = facts.pop("training", Training(batch_size=16, lr=0.05, momentum=0.9, epochs=1))
    method = facts.pop("method", Method(kind="unrolled"))
    return Plan(space=Space.from_dict(moved), task=task, network=network, training=training, method=method, **facts)


class Course:
    """Two lanes of a plan at points of their own, and the batches of a few steps."""

    def __init__(self, plan: Plan, points: Sequence[dict[str, Any]], steps: int = 3) -> None:
        assert plan.task is not None
        self.plan, self.steps = plan, steps
        self.trials = [Trial(search_id="s", number=k, point=point) for k, point in enumerate(points)]
        self.identities = [(0, k, 0) for k in range(len(points))]
        rule, hyper = lane_rule(plan, plan.training, self.trials)
        batch = plan.training.batch_size
        cpu = torch.device("cpu")
        self.program, widths = make(plan, points, self.identities, rule, hyper, batch, cpu, torch.float64)
        assert widths is not None
        self.architecture = Architecture(plan, self.program, widths, self.identities, rule, hyper, batch)
        rows = Rows.of(plan.task, "train", dense=is_dense(plan), device=torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        self.rows = [torch.randint(len(rows.y_R), (batch,), generator=generator) for _ in range(steps + 1)]
        pairs = [rows.batch(places) for places in self.rows]
        self.batches = [Batch(x.double(), y_BO.double(), step, True, True) for step, (x, y_BO) in enumerate(pairs)]
        self.outer = self.batches.pop()._replace(remembers=False, trains=False)
        for batch_ in self.batches:  # so that momentum and biases are not all zero
            self.architecture.draw(batch_.step)
            self.program.step(batch_.x, batch_.y_BO)
        self.start = self.architecture.state()

    def loss(self, h_KP: Tensor) -> Tensor:
        """Every lane's loss on the outer batch after the lanes' own steps at h, [K]: nothing is differentiated."""
        architecture = self.architecture
        architecture.adopt(self.start)
        before = architecture.widths.coordinates_KP.clone(), dict(architecture.hyper)
        full_KM = torch.cat([before[0], architecture.rates_KR], 1).index_copy(1, architecture.moving_M, h_KP)
        gates = before[0].shape[1]
        architecture.widths.set(full_KM[:, :gates])
        hyper = {name: full_KM[:, gates + r] for r, name in enumerate(architecture.rates)}
        architecture.hyper |= hyper
        self.program.retune(architecture.hyper)
        self.program.sample(architecture.widths.grades())
        for batch in self.batches:
            architecture.draw(batch.step)
            self.program.step(batch.x, batch.y_BO)
        architecture.undropped(self.outer.step)
        found = [self._lane_loss(k) for k in range(len(h_KP))]
        architecture.widths.set(before[0])
        architecture.hyper = dict(before[1])
        self.program.retune(architecture.hyper)
        self.program.sample(architecture.widths.grades())
        architecture.adopt(self.start)
        return torch.stack(found)

    def _lane_loss(self, lane: int) -> Tensor:
        assert self.plan.task is not None
        kind = "cross_entropy" if self.plan.task.kind == "classification" else "mse"
        x = self.outer.x[:, 1:] if is_dense(self.plan) else self.outer.x
        with torch.no_grad():
            return loss_of(kind, self.program.module(lane)(x), self.outer.y_BO)

    def differences(self, h: float = 1e-6) -> Tensor:
        """d(outer loss)/dh by central differences, [K, P]."""
        h_KP = self.architecture.h_KP
        columns = []
        for p in range(h_KP.shape[1]):
            shift = torch.zeros_like(h_KP)
            shift[:, p] = h
            columns.append((self.loss(h_KP + shift) - self.loss(h_KP - shift)) / (2 * h))
        return torch.stack(columns, 1)

    def derivative(self, method: Any, batches: Sequence[Batch] | None = None) -> Any:
        """What a method finds on the same course."""
        self.architecture.adopt(self.start)
        given = self.batches if batches is None else batches
        return method.derivative(
            self.architecture.inner(), self.architecture.state(), self.architecture.h_KP, given, self.outer
        )


def _edges(**topology: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A space with a topology and a rate, and a point for each lane."""
    space = {"topology": {"type": "topology", "operations": ["conv1", "skip"], **topology}, "lr": RATES["lr"]}
    names = [name for name in Space.from_dict(space).coordinates if name != "lr"]
    return space, [{n: 0.3 + 0.05 * (i % 8) + 0.1 * k for i, n in enumerate(names)} | _rates(k) for k in range(2)]


def _rates(k: int) -> dict[str, float]:
    return {"lr": 0.05 * (k + 1)}


def network_cases() -> dict[str, tuple[Network, dict[str, Any], list[dict[str, Any]]]]:
    """Name -> a small network, what of it moves, and where two lanes are."""
    sizes = [{"width.0": 3.3, "width.1": 4.6}, {"width.0": 2.7, "width.1": 5.2}]
    others = [{"lr": 0.05, "momentum": 0.8, "weight_decay": 0.01}, {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.02}]
    rows = [{**a, **b} for a, b in zip(sizes, others, strict=True)]
    cases: dict[str, tuple[Network, dict[str, Any], list[dict[str, Any]]]] = {
        f"mlp {membership}": (MLP(layers=2, membership=membership), {**WIDTHS, **RATES}, rows)
        for membership in MEMBERSHIPS
    }
    cases["mlp learner feedback"] = (MLP(layers=2), {**WIDTHS, **RATES}, rows)
    own = {"lr.1": RATES["lr"], "weight_decay.0": RATES["weight_decay"], "momentum.2": RATES["momentum"]}
    own |= {"dropout": DROPOUT, "dropout.1": DROPOUT}
    layers = {"lr.1": 0.02, "weight_decay.0": 0.03, "momentum.2": 0.4, "dropout": 0.2, "dropout.1": 0.4}
    cases["mlp layer by layer"] = (MLP(layers=2), {**WIDTHS, **RATES, **own}, [{**row, **layers} for row in rows])
    maps = [{"width.0": 3.3, "stride.0": 1.63}, {"width.0": 2.4, "stride.0": 2.3}]  # 8 cells: not 1.6, a kink
    for stride in STRIDES:
        network = ConvNet(layers=2, width=4, stride=stride, activation="gelu")
        space = {"width.0": {**WIDTHS["width.0"], "high": 4}, **STRIDE, "lr": RATES["lr"]}
        cases[f"convnet {stride}"] = (network, space, [{**own, **_rates(k)} for k, own in enumerate(maps)])
    depths = [{"depth.0": d, **_rates(k)} for k, d in enumerate((1.3, 0.6))]
    cases["residual"] = (Residual(stages=1, width=4), {**DEPTH, "lr": RATES["lr"]}, depths)
    cases["cell"] = (Cell(width=3), *_edges(nodes=2))
    cases["graphon"] = (Graphon(width=3), *_edges(kind="graphon", nodes=2))
    cases["fabric"] = (Fabric(width=3), *_edges(kind="fabric", layers=2, scales=2))
    return cases
