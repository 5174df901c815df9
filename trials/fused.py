"""One bundle of fused trials on its way: lanes, data order, architecture, evaluation and ledger.

Legend of shape suffixes: K lanes, G gates, B batch, I 1 + inputs, O outputs, R rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from search_spaces.cost import mlp_flops, mlp_training_flops
from search_spaces.parameters import Real
from trials.hypergradients.moves import Moves, annealed
from trials.lanes.dense import DenseLanes, DenseShape
from trials.lanes.gated import GatedLanes
from trials.metrics import measure
from trials.noise import data_order
from trials.optimisers import Rule
from trials.plan import Plan
from trials.records import Bundle, Ending, Outcome, Report, Spent, Trial, outcome_of
from trials.tasks import Split
from trials.training import LANE, Training

TRAJECTORY = 24  # how often the architecture is reported while a gradient moves it


@dataclass(frozen=True)
class Rows:
    """A split on the device: inputs with a leading column of ones, labels, and targets as rows."""

    x_RI: Tensor
    y_R: Tensor
    y_RO: Tensor

    def batch(self, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some rows."""
        return self.x_RI.index_select(0, rows_B), self.y_RO.index_select(0, rows_B)


def prepared(split: Split, outputs: int, device: torch.device) -> Rows:
    """A split's tensors."""
    x_RI = functional.pad(torch.from_numpy(split.x), (1, 0), value=1.0).to(device)
    y_R = torch.from_numpy(split.y).to(device)
    y_RO = functional.one_hot(y_R, outputs).float() if y_R.dtype == torch.int64 else y_R.float().unsqueeze(1)
    return Rows(x_RI.contiguous(), y_R, y_RO.contiguous())


def lane_rule(plan: Plan, training: Training, trials: Sequence[Trial]) -> tuple[Rule, dict[str, Tensor]]:
    """The update rule of a bundle and each lane's hyperparameters, name -> [K].

    Which hyperparameters are in use is a fact of the search (its space and training section), never of a bundle:
    otherwise a lane's arithmetic would depend on its neighbours.
    """
    names = {"lr", "momentum"} if training.optimizer == "sgd" else {"lr", "beta1", "beta2"}
    uses = {n for n in names | {"weight_decay"} if n not in ("momentum", "weight_decay") or _in_use(plan, n)}
    hyper = {
        name: torch.tensor([float(trial.point.get(name, getattr(training, name))) for trial in trials]) for name in uses
    }
    return Rule(kind=training.optimizer, nesterov=training.nesterov and "momentum" in uses, uses=frozenset(uses)), hyper


def _in_use(plan: Plan, name: str) -> bool:
    assert name in LANE
    return name in plan.space.coordinates or getattr(plan.training, name) != 0


class FusedRun:
    """Trains the trials of a bundle together. All of them share a signature; each has `plan.seeds` lanes."""

    def __init__(
        self, plan: Plan, bundle: Bundle, rows: Callable[..., Rows], device: torch.device, worker: str = ""
    ) -> None:
        assert plan.task is not None
        assert plan.network is not None
        self.plan, self.bundle, self.device, self.worker = plan, bundle, device, worker
        self.task, self.network = plan.task, plan.network
        self.started, self.clock = time.time(), time.perf_counter()
        self.lanes = [(trial, replicate) for trial in bundle.trials for replicate in range(plan.seeds)]
        self.training = plan.training.at(bundle.trials[0].point)  # only structural values are read, equal for all
        self.data, self.scored = rows(*plan.train_splits), rows(plan.scored)
        self.outer = rows("outer") if plan.gradient and plan.method.split == "outer" else self.data
        self.batch = self.training.batch_size
        self.steps = self.training.steps(len(self.data.y_R))
        self.flops_K = np.zeros(len(self.lanes))
        self.executed_K = np.zeros(len(self.lanes))
        self._begin()

    def _begin(self) -> None:
        plan, trials = self.plan, [trial for trial, _ in self.lanes]
        shape = DenseShape(
            inputs=self.task.inputs,
            outputs=self.task.outputs,
            activation=str(trials[0].point.get("activation", self.network.activation)),
            loss="cross_entropy" if self.task.kind == "classification" else "mse",
        )
        rule, hyper = lane_rule(plan, self.training, trials)
        identities = [(plan.seed, trial.number, replicate) for trial, replicate in self.lanes]
        points = [trial.point if plan.fractional else plan.rounded(trial.point) for trial in trials]
        sizes = [self.network.sizes(point) for point in points]
        self.sizes_KG = torch.tensor(sizes, dtype=torch.float64).reshape(len(sizes), -1)
        self._moved = {name: p for name, p in plan.space.moved().items() if name in trials[0].point}
        self.gated: GatedLanes | None = None
        if plan.fractional:
            maxima, kind = self.network.maxima(plan.space), self._membership()
            self.gated = GatedLanes(
                shape, maxima, self.batch, membership=kind, tau=self.network.tau, device=self.device
            )
            self.gated.begin(identities, self.sizes_KG, rule, hyper)
            self.moves = self._moves()
        else:
            self.dense = DenseLanes(shape, [[int(n) for n in lane] for lane in sizes], self.batch, device=self.device)
            self.dense.initialise(identities)
            self.dense.attach(rule, hyper)
        self._set_rates()

    def _membership(self) -> str:
        if self.network.membership != "auto":
            return self.network.membership
        return "band" if self.plan.gradient else "interval"

    def _moves(self) -> Moves:
        scales = [
            (p.low, p.high, p.log) if isinstance(p := self._moved.get(gate), Real) else (1.0, 1.0, False)
            for gate in self.network.gates
        ]

        def cost(sizes: list[Tensor]) -> Mapping[str, Tensor]:
            return self.network.costs(sizes, self.task.inputs, self.task.outputs)

        return Moves(self.plan.method, scales, self.sizes_KG, self.plan.bounds, cost)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def records(self) -> Iterator[Report | Outcome]:
        """Trains to the end, or until the bundle's time is up; reports at even steps, then one outcome per trial."""
        # inference mode spares every call autograd's bookkeeping, a tenth of the time; what it makes has no gradients
        mode = torch.no_grad if self.plan.gradient else torch.inference_mode
        return mode()(self._trained)()

    def _trained(self) -> Iterator[Report | Outcome]:
        order = self._order(self.data, "order")
        outer_order = self._order(self.outer, "outer order") if self.outer is not self.data else order
        measured_at = self._evenly(self.plan.evaluations)
        looked_at = self._evenly(TRAJECTORY) if self.plan.gradient else set()
        done = 0
        metrics: dict[str, np.ndarray] = {}
        for stop in sorted(measured_at | looked_at):
            for step in range(done, stop):
                if self._out_of_time():
                    yield from (self._outcome(i, step, {}) for i in range(len(self.bundle.trials)))
                    return
                if self._moves_at(step):
                    self._move(step, outer_order[step])
                self._lanes().step(*self.data.batch(order[step]))
                self.flops_K += self._rate_K
                self.executed_K += self._executed_rate_K
            done = stop
            metrics = self._measured() if stop in measured_at else {}
            for i in range(len(self.bundle.trials)):
                yield self._report(i, done, metrics)
        for i in range(len(self.bundle.trials)):
            yield self._outcome(i, done, metrics)

    def _evenly(self, times: int) -> set[int]:
        """Steps at even distances, the last one included."""
        return {-(-i * self.steps // times) for i in range(1, times + 1)}

    def _order(self, rows: Rows, purpose: str) -> Tensor:
        places = data_order(self.plan.seed, len(rows.y_R), self.batch, self.steps, purpose)
        return torch.from_numpy(places).to(self.device)

    def _lanes(self) -> DenseLanes:
        return self.dense if self.gated is None else self.gated.dense

    def _out_of_time(self) -> bool:
        seconds = self.bundle.seconds
        return seconds is not None and time.perf_counter() - self.clock > seconds

    def _moves_at(self, step: int) -> bool:
        method = self.plan.method
        return self.plan.gradient and step >= method.warmup and (step - method.warmup) % method.every == 0

    def _move(self, step: int, rows_B: Tensor) -> None:
        """One step of the architecture."""
        assert self.gated is not None
        with torch.enable_grad():
            gradient_KG = self.gated.size_gradients(*self.outer.batch(rows_B))
            self.sizes_KG = self.moves.step(gradient_KG)
        self.executed_K += self._executed_rate_K  # one more pass forward and back, less the weights' own gradients
        self.gated.tau = annealed(self.network.tau, self.network.tau_end, step / self.steps)
        self.gated.set(self.sizes_KG)
        self._set_rates()

    # -- measuring ---------------------------------------------------------------------------------------------------

    def _set_rates(self) -> None:
        def rate(sizes: Sequence[float]) -> float:
            return self.batch * float(mlp_training_flops(self.task.inputs, sizes, self.task.outputs))

        self._rate_K = np.array([rate(lane) for lane in self.sizes_KG.tolist()])
        self._executed_rate_K = np.array([rate(lane) for lane in self._lanes().sizes])

    def _measured(self) -> dict[str, np.ndarray]:
        rows = self.scored
        logits_KOR = self._lanes().predict(rows.x_RI)
        self.executed_K += [
            len(rows.y_R) * mlp_flops(self.task.inputs, lane, self.task.outputs) for lane in self._lanes().sizes
        ]
        prefix = "test_" if self.plan.scored == "test" else "val_"
        found = measure(self.task.kind, logits_KOR, rows.y_R, prefix)
        return {name: values_K.cpu().numpy() for name, values_K in found.items()}

    def _of(self, i: int, values_K: np.ndarray) -> np.ndarray:
        return values_K[i * self.plan.seeds : (i + 1) * self.plan.seeds]

    def _spent(self, i: int) -> Spent:
        share = (time.perf_counter() - self.clock) / len(self.bundle.trials)
        return Spent(
            flops=float(self._of(i, self.flops_K).sum()),
            executed_flops=float(self._of(i, self.executed_K).sum()),
            device_s=share,
        )

    def _architecture(self, i: int) -> dict[str, float]:
        if not self.plan.gradient:
            return {}
        sizes_G = self._of(i, self.sizes_KG.numpy()).mean(0)
        return {gate: float(n) for gate, n in zip(self.network.gates, sizes_G, strict=True)}

    def _means(self, i: int, metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {name: float(self._of(i, values_K).mean()) for name, values_K in metrics.items()}

    def _report(self, i: int, step: int, metrics: Mapping[str, np.ndarray]) -> Report:
        return Report(
            trial_id=self.bundle.trials[i].id,
            bundle_id=self.bundle.id,
            attempt=self.bundle.attempt,
            step=step,
            metrics=self._means(i, metrics),
            architecture=self._architecture(i),
            spent=self._spent(i),
        )

    def _outcome(self, i: int, step: int, metrics: Mapping[str, np.ndarray]) -> Outcome:
        trial, means = self.bundle.trials[i], self._means(i, metrics)
        point = {**trial.point, **{gate: n for gate, n in self._architecture(i).items() if gate in self._moved}}
        value = means.get(self.plan.metric, math.nan)
        finite = math.isfinite(value)
        rounded = self.plan.rounded(point)
        costs = self.network.costs(self.network.sizes(rounded), self.task.inputs, self.task.outputs)
        ending = Ending.COMPLETE if finite else Ending.NAN if metrics else Ending.CANCELLED
        return outcome_of(
            trial,
            self.bundle,
            ending,
            point=point,
            value=value if finite else None,
            metrics={**means, "parameters": float(costs["parameters"])} if means else {},
            rounded=rounded,
            step=step,
            spent=self._spent(i),
            started=self.started,
            ended=time.time(),
            worker=self.worker,
        )
