"""One bundle of fused trials on its way: lanes, data order, architecture, evaluation and ledger.

Legend of shape suffixes: K lanes, G gates, B batch, O outputs, R rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from search_spaces import Point, Value
from search_spaces.cost import COST_METRICS
from search_spaces.network import Size
from trials import resuming
from trials.architecture import Architecture
from trials.augment import augment_noise, augmented
from trials.batches import Rows, Window
from trials.hypergradients.cost import extra_passes
from trials.hypergradients.hypernet import Hypernet
from trials.lanes.gated import DenseProgram
from trials.lanes.graphed import Steps
from trials.lanes.making import make
from trials.lanes.program import Batch
from trials.metrics import measure
from trials.noise import data_order
from trials.optimisers import Rule
from trials.plan import Plan
from trials.records import Bundle, Checkpoint, Ending, Outcome, Report, Spent, Trial, outcome_of
from trials.training import Training, rate_of

T = TypeVar("T")
TRAJECTORY = 24  # how often the architecture is reported while a gradient moves it


def lane_rule(plan: Plan, training: Training, trials: Sequence[Trial]) -> tuple[Rule, dict[str, Tensor]]:
    """The update rule of a bundle and each lane's hyperparameters, name -> [K].

    Which hyperparameters are in use is a fact of the search (its space and training section), never of a bundle:
    otherwise a lane's arithmetic would depend on its neighbours.
    """
    names = {"lr", "momentum"} if training.optimizer == "sgd" else {"lr", "beta1", "beta2"}
    uses = {n for n in names | {"weight_decay"} if n not in ("momentum", "weight_decay") or plan.uses(n)}
    told = uses | ({"dropout"} if plan.uses("dropout") else set())
    hyper = {
        name: torch.tensor(
            [float(trial.point.get(name, getattr(training, name))) for trial in trials], dtype=torch.float64
        )
        for name in told
    }
    for name, value in trials[0].point.items():  # which of them exist is equal for all
        if name not in told and isinstance(value, float | int) and rate_of(name) in told:
            values = [float(trial.point[name]) for trial in trials]  # type: ignore[arg-type]
            hyper[name] = torch.tensor(values, dtype=torch.float64)
    return Rule(kind=training.optimizer, nesterov=training.nesterov and "momentum" in uses, uses=frozenset(uses)), hyper


class OutOfTime(Exception):
    """The bundle's seconds are up."""


class FusedRun:
    """Trains the trials of a bundle together. All of them share a signature; each has `plan.seeds` lanes."""

    def __init__(
        self,
        plan: Plan,
        bundle: Bundle,
        rows: Callable[..., Rows],
        device: torch.device,
        worker: str = "",
        start: Checkpoint | None = None,
        *,
        grouped: bool | None = None,
    ) -> None:
        assert plan.task is not None
        assert plan.network is not None
        self.plan, self.bundle, self.device, self.worker = plan, bundle, device, worker
        self.task, self.network = plan.task, plan.network
        self.started, self.clock = [time.time()] * len(bundle.trials), time.perf_counter()
        self.earlier_s, self.done = [0.0] * len(bundle.trials), 0  # seconds of attempts that it goes on from; steps
        self.lanes = [(trial, replicate) for trial in bundle.trials for replicate in range(plan.seeds)]
        self.training = plan.training.at(bundle.trials[0].point)  # only structural values are read, equal for all
        self.data, self.scored = rows(*plan.train_splits), rows(plan.scored)
        self.outer = rows("outer") if plan.gradient and plan.method.split == "outer" else self.data
        self.batch = self.training.batch_size
        self.steps = self.training.steps(len(self.data.y_R))
        self.flops_K = np.zeros(len(self.lanes))
        self.executed_K = np.zeros(len(self.lanes))
        self.told: dict[str, Tensor] = {}  # of the last derivative
        self._costs = plan.costs
        self._priced: list[tuple[Size, ...]] = []  # as computed when rates were last set
        self._moves = frozenset(plan.method.moves(self.steps) if plan.gradient else ())
        self._window = plan.method.window if plan.gradient else 0
        self._last_move, self.made = max(self._moves, default=0) or 1, 0
        self._steps: Steps | None = None  # of grouped lanes
        self._found: dict[str, Any] = {}  # see `_once`
        self._begin(grouped)
        if start is not None:
            resuming.resume(self, start)
        self._set_rates()

    def _begin(self, grouped: bool | None) -> None:
        plan, trials = self.plan, [trial for trial, _ in self.lanes]
        rule, hyper = lane_rule(plan, self.training, trials)
        self.hyper = hyper
        self._changes = {  # step -> the rates that change there
            step: {
                name: value
                for name, path in plan.schedules.items()
                for share, value in path
                if self._at_share(share) == step
            }
            for step in {self._at_share(share) for path in plan.schedules.values() for share, _ in path}
        }
        self.identities = [(plan.seed, trial.number, replicate) for trial, replicate in self.lanes]
        self._points = [trial.point if plan.fractional else plan.rounded(trial.point) for trial in trials]
        what = (plan, self._points, self.identities, rule, hyper, self.batch, self.device)
        self.program, widths = make(*what, grouped=grouped)
        self.architecture: Architecture | None = None
        if widths is not None:
            self.architecture = Architecture(plan, self.program, widths, self.identities, rule, hyper, self.batch)
        direct = not self._moves or plan.method.direct or self.architecture is None
        self.method = None if direct else self.architecture.method()  # type: ignore[union-attr]

    @property
    def numbers_KM(self) -> Tensor:
        """The numbers of every lane's architecture: real sizes, and a topology's."""
        if self.architecture is not None:
            return self.architecture.widths.numbers_KM
        sizes = [self.network.sizes(point) for point in self._points]
        return torch.tensor(sizes, dtype=torch.float64).reshape(len(sizes), -1)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def records(self, checkpoint_every: float | None = None) -> Iterator[Report | Outcome | Checkpoint]:
        """Trains to the end, or until the bundle's time is up; reports at even steps, then one outcome per trial.
        Between steps a checkpoint, whenever so many seconds have passed since the last (None: never)."""
        # inference mode spares dense lanes autograd's bookkeeping, a tenth of the time; what it makes has no gradients
        mode = torch.inference_mode if self.data.dense and not self.plan.gradient else torch.no_grad
        return mode()(self._trained)(checkpoint_every)

    def _trained(self, checkpoint_every: float | None) -> Iterator[Report | Outcome | Checkpoint]:
        order = self._order(self.data, "order")
        outer_order = self._order(self.outer, "outer order") if self.outer is not self.data else order
        if isinstance(self.program, DenseProgram) and self.program.grouped:
            self._steps = Steps(self.program, self.data, order, graphed=self.device.type == "cuda")
        measured_at = self._evenly(self.plan.evaluations)
        looked_at = self._evenly(TRAJECTORY) if self.plan.gradient else set()
        trials = range(len(self.bundle.trials))
        metrics: dict[str, np.ndarray] = {}
        stops = [stop for stop in sorted(measured_at | looked_at) if stop > self.done]
        kept_at = time.perf_counter()
        while stops:
            try:
                self.done += self._advance(self.done, order, outer_order)
            except OutOfTime:
                yield from (self._outcome(i, self.done) for i in trials)
                return
            passed = {stop for stop in stops if stop <= self.done}  # a window may lead beyond several
            if passed:
                stops = [stop for stop in stops if stop > self.done]
                metrics = self._measured(order if self.done == self.steps else None) if passed & measured_at else {}
                yield from (self._report(i, self.done, metrics) for i in trials)
            # after the reports of its step: who goes on from it does not tell them again
            if stops and checkpoint_every is not None and time.perf_counter() - kept_at >= checkpoint_every:
                yield resuming.checkpoint_of(self)
                kept_at = time.perf_counter()
        whole = self._measured_whole(metrics, order)
        yield from (self._outcome(i, self.done, metrics, whole) for i in trials)

    def _advance(self, step: int, order: Tensor, outer_order: Tensor) -> int:
        """Train on: one step, or the steps that a method takes itself before its next move. Returns how many; raises
        `OutOfTime`."""
        if self._out_of_time():
            raise OutOfTime
        self._found.clear()
        if step in self._changes:
            self._reschedule(step)
        if self._window and step >= self.plan.method.warmup and step + self._window in self._moves:
            self._move(step, order, outer_order)
            return self._window
        if not self._window and step in self._moves:
            self._move(step, order, outer_order)
        if self.architecture is not None:
            self.architecture.draw(step)
        if self._steps is not None:
            self._steps.train(step)
        else:
            x, y_BO = self.data.batch(order[step])
            self.program.step(self._varied(x, step), y_BO)
        self._charge_steps(1)
        return 1

    def _move(self, step: int, order: Tensor, outer_order: Tensor) -> None:
        """One move, after the training steps that its method takes itself."""
        assert self.architecture is not None
        method, done = self.plan.method, step + self._window
        outer = self.outer.batch(outer_order[min(done, self.steps - 1)])
        if self.method is None:
            gradient_KP = self.architecture.direct(step, *outer)
            self.executed_K += self._grade_rate_K
        else:
            batches = Window(lambda s: self._batch(s, order), range(step, step + max(self._window, 1)))
            h_KP, inner = self.architecture.h_KP, self.architecture.inner()
            whose_T = self.program.functions().whose_T
            found = self.method.derivative(
                inner,
                self.architecture.state(),
                h_KP,
                batches,
                Batch(*outer, min(done, self.steps - 1)),
            )
            gradient_KP, self.told = found.gradient_KP, found.told()
            if found.state is not None:
                self.architecture.adopt(found.state)
                self._charge_steps(self._window)
            self.executed_K += extra_passes(method, h_KP.shape[1], self.training.optimizer) * self._executed_rate_K
        laid = self.program.sizes
        self.architecture.move(gradient_KP, done / self._last_move, outer, self.made / len(self._moves))
        self.made += 1
        if self.program.sizes != laid and isinstance(self.method, Hypernet):
            same = [k for k, (now, was) in enumerate(zip(self.program.sizes, laid, strict=True)) if now == was]
            self.method.relaid(whose_T, self.program.functions().whose_T, same)
        self._set_rates()
        self.executed_K += self._grade_rate_K if self.plan.grows_by_gradient else 0.0

    def _at_share(self, share: float) -> int:
        return round(share * self.steps)

    def _reschedule(self, step: int) -> None:
        """The rates that a schedule changes at a step."""
        for name, value in self._changes[step].items():
            self.hyper[name] = torch.full_like(self.hyper[name], value)
        if self.architecture is not None:
            self.architecture.hyper |= {name: self.hyper[name] for name in self._changes[step]}
        self.program.retune(self.hyper if self.architecture is None else self.architecture.hyper)

    def _batch(self, step: int, order: Tensor) -> Batch:
        if self._out_of_time():
            raise OutOfTime
        x, y_BO = self.data.batch(order[step])
        return Batch(self._varied(x, step), y_BO, step, remembers=self._window > 0, trains=True)

    def _charge_steps(self, steps: int) -> None:
        self.flops_K += steps * self._rate_K
        self.executed_K += steps * self._executed_rate_K

    def _varied(self, x_BCHW: Tensor, step: int) -> Tensor:
        """Images as each lane sees them at a step, [K, B, C, H, W], where they vary."""
        if not self.plan.augmented:
            return x_BCHW
        noise_KB3 = torch.stack(
            [augment_noise(*identity[:3], step, self.batch, self.device) for identity in self.identities]
        )
        x_KBCHW = x_BCHW.expand(len(self.identities), *x_BCHW.shape)
        varied: Tensor = augmented(x_KBCHW, noise_KB3, self.task.augment)
        return varied

    def _evenly(self, times: int) -> set[int]:
        """Steps at even distances, the last one included."""
        return {-(-i * self.steps // times) for i in range(1, times + 1)}

    def _order(self, rows: Rows, purpose: str) -> Tensor:
        places = data_order(self.plan.seed, len(rows.y_R), self.batch, self.steps, purpose)
        return torch.from_numpy(places).to(self.device)

    def _out_of_time(self) -> bool:
        seconds = self.bundle.seconds
        return seconds is not None and time.perf_counter() - self.clock > seconds

    # -- measuring ---------------------------------------------------------------------------------------------------

    def _set_rates(self) -> None:
        """FLOPs of one step, lane by lane: at the live sizes, and as computed."""
        costs, relaxed, sizes = self._costs, self.program.in_place, self.program.executed
        self._rate_K = self.batch * self._by_lane(costs.training_flops(self._live_numbers()))
        if sizes == self._priced:
            return
        self._priced, laid = list(sizes), self._laid()
        self._executed_rate_K = self.batch * self._by_lane(costs.training_flops(laid, relaxed))
        self._grade_rate_K = self.batch * self._by_lane(costs.grade_flops(laid))
        self._forward_K = self._by_lane(costs.flops(laid, relaxed))

    def _live_numbers(self) -> Mapping[str, Any]:
        """The live sizes for costs that nobody differentiates: plain widths in numpy, whose calls take less."""
        live = self._live()
        alike = all(self.network.role(gate) == "width" for gate in live)
        return {gate: n_K.numpy() for gate, n_K in live.items()} if alike else live

    def _live(self) -> dict[str, Tensor]:
        """What costs know the lanes by: real sizes, [K] a gate, and the grades that a topology's units have, [K, U]."""
        if self.architecture is None:
            return self.network.named(list(self.numbers_KM.unbind(1)), whole=True)
        widths = self.architecture.widths
        return widths.live(widths.coordinates_KP)

    def _laid(self) -> dict[str, Tensor]:
        """The sizes at which the lanes are computed, [K] a gate (a topology's units [K, U])."""
        places = {sizes: place for place, sizes in enumerate(dict.fromkeys(self.program.executed))}
        laid, whose_K = [self.network.laid(sizes) for sizes in places], [places[n] for n in self.program.executed]
        return {
            gate: torch.stack([torch.as_tensor(each[gate], dtype=torch.float64) for each in laid])[whose_K]
            for gate in self.network.gates
        }

    def _by_lane(self, cost: Tensor | float) -> np.ndarray:
        return np.broadcast_to(np.asarray(cost, dtype=np.float64), (len(self.lanes),))

    def _measured(self, order: Tensor | None) -> dict[str, np.ndarray]:
        """The metrics of now; for the last time where there is an order of rows to calibrate norms on."""
        if self.architecture is not None:
            self.architecture.settle()
        if order is not None:
            self._recalibrate(order)
        if self.architecture is None:
            return self._scores()
        widths, moves = self.architecture.widths, self.architecture.moves
        told = {**widths.wiring(widths.coordinates_KP), **self.told}
        if moves is not None and moves.moved:
            told["clipped"] = moves.clipped_K / moves.moved
        return {**self._scores(), **{name: value_K.double().cpu().numpy() for name, value_K in told.items()}}

    def _scores(self) -> dict[str, np.ndarray]:
        logits_KOR = torch.cat([self.program.predict(x) for x in self.scored.chunks()], 2)
        self.executed_K += len(self.scored.y_R) * self._forward_K
        prefix = "test_" if self.plan.scored == "test" else "val_"
        found = measure(self.task.kind, logits_KOR, self.scored.y_R, prefix)
        return dict(zip(found, torch.stack(list(found.values())).cpu().numpy(), strict=True))  # one way from the device

    def _measured_whole(self, metrics: dict[str, np.ndarray], order: Tensor) -> dict[str, np.ndarray]:
        """The metrics at whole sizes, with the weights as they are; each replicate at its own."""
        if self.architecture is None or not self.plan.fractional:
            return metrics
        sizes = [self.network.sizes(point) for point in self.whole_points]
        self.architecture.make_whole(torch.tensor(sizes, dtype=torch.float64))
        self._recalibrate(order)
        return self._scores()

    def _recalibrate(self, order: Tensor) -> None:
        """Batch norms take their statistics from training rows as the finished network sees them."""
        if not self.program.normed:
            return
        batches = [self.data.batch(places)[0] for places in order[: self.training.norm_steps(len(self.data.y_R))]]
        self.program.recalibrate(batches)
        self.executed_K += len(batches) * self.batch * self._forward_K

    @property
    def whole_points(self) -> list[Point]:
        """Each lane's point, whole."""
        if not (self.plan.gradient or self.plan.fractional):
            return self._points

        def whole() -> list[Point]:
            each = zip(self.lanes, self._named_KM[1].tolist(), strict=True)
            return [self.plan.rounded(self._at(trial.point, numbers_M)) for (trial, _), numbers_M in each]

        return self._once("whole points", whole)

    def _of(self, i: int, values_K: np.ndarray) -> np.ndarray:
        return values_K[i * self.plan.seeds : (i + 1) * self.plan.seeds]

    def _sum(self, i: int, values_K: np.ndarray) -> float:
        return float(values_K[i] if self.plan.seeds == 1 else self._of(i, values_K).sum())

    def spent(self, i: int) -> Spent:
        """What a trial has cost so far, in attempts that it goes on from included."""
        share = (time.perf_counter() - self.clock) / len(self.bundle.trials)
        return Spent(
            flops=self._sum(i, self.flops_K),
            executed_flops=self._sum(i, self.executed_K),
            device_s=self.earlier_s[i] + share,
        )

    @property
    def _named_KM(self) -> tuple[tuple[str, ...], np.ndarray]:
        """What a gradient may have moved, by name: the architecture's numbers, and rates; of every lane."""

        def found() -> tuple[tuple[str, ...], np.ndarray]:
            if self.architecture is None:
                return tuple(self.network.numbers), self.numbers_KM.numpy()
            all_KM = torch.cat([self.numbers_KM, self.architecture.rates_KR], 1)
            return (*self.network.numbers, *self.architecture.rates), all_KM.numpy()

        return self._once("named", found)

    def _once(self, name: str, find: Callable[[], T]) -> T:
        """What every trial asks between two steps, found once."""
        if name not in self._found:
            self._found[name] = find()
        return self._found[name]  # type: ignore[no-any-return]

    def _architecture_of(self, i: int) -> dict[str, float]:
        if not self.plan.gradient:
            return {}
        names, all_KM = self._named_KM
        return {name: float(n) for name, n in zip(names, self._of(i, all_KM).mean(0), strict=True)}

    def _point(self, i: int) -> Point:
        """Where a trial's point is now: what moved, within its range; replicates' mean."""
        if not self.plan.gradient:
            return dict(self.bundle.trials[i].point)
        return self._at(self.bundle.trials[i].point, self._of(i, self._named_KM[1]).mean(0))

    def _at(self, point: Point, numbers_M: Sequence[float]) -> Point:
        """A point with the sizes and rates to which it moved."""
        if not self.plan.gradient:
            return dict(point)
        names = self._named_KM[0]
        moved, numbers = self.plan.space.moved(), dict(zip(names, map(float, numbers_M), strict=True))

        def now(name: str, value: Value) -> Value:
            if name not in numbers or name not in moved:
                return value
            return float(min(max(numbers[name], moved[name].low), moved[name].high))

        return {name: now(name, value) for name, value in point.items()}

    def _worth(self, i: int, metrics: Mapping[str, np.ndarray], costs: Sequence[Mapping[str, float]]) -> float:
        """The mean worth of a trial's replicates, each at its lane's own costs."""
        lanes = range(i * self.plan.seeds, (i + 1) * self.plan.seeds)
        each = [self.plan.valued({name: float(v[k]) for name, v in metrics.items()}, costs[k]) for k in lanes]
        return float(np.mean(each)) if len(each) > 1 else each[0]

    def _costs_of(self, sizes: Mapping[str, Any]) -> list[dict[str, float]]:
        """What each lane's network costs, at sizes [K] by gate."""
        if all(self.network.role(gate) == "width" for gate in sizes):
            return self.plan.priced_together({gate: np.asarray(n_K) for gate, n_K in sizes.items()}, len(self.lanes))
        return [self.plan.priced({gate: n_K[k] for gate, n_K in sizes.items()}) for k in range(len(self.lanes))]

    def _whole_costs(self) -> list[dict[str, float]]:
        lanes = [self._named(point) for point in self.whole_points]
        return self._costs_of({gate: [lane[gate] for lane in lanes] for gate in self.network.gates})

    def _named(self, whole: Point) -> dict[str, Any]:
        return self.network.named(self.network.sizes(whole), whole=True)

    def _means(self, i: int, metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {name: self._sum(i, values_K) / self.plan.seeds for name, values_K in metrics.items()}

    def _report(self, i: int, step: int, metrics: Mapping[str, np.ndarray]) -> Report:
        return Report(
            trial_id=self.bundle.trials[i].id,
            bundle_id=self.bundle.id,
            attempt=self.bundle.attempt,
            step=step,
            metrics=self._means(i, metrics),
            architecture=self._architecture_of(i),
            spent=self.spent(i),
        )

    def _overshot(self, rounded: Point, costs: Mapping[str, float]) -> str:
        """The bounds that the rounded network overshoots, in words."""
        if self.plan.excess(rounded) <= 0:
            return ""
        each = ((name, costs[COST_METRICS[name]], bound) for name, bound in self.plan.bounds.items())
        return ", ".join(f"{name} {cost:,.0f} > {bound:,.0f}" for name, cost, bound in each if cost > bound)

    def _outcome(
        self,
        i: int,
        step: int,
        metrics: Mapping[str, np.ndarray] | None = None,
        whole: Mapping[str, np.ndarray] | None = None,
    ) -> Outcome:
        trial, point = self.bundle.trials[i], self._point(i)
        alone = self.plan.seeds == 1 or not self.plan.gradient  # replicates' mean is each one's own
        rounded = self.whole_points[i * self.plan.seeds] if alone else self.plan.rounded(point)
        means, value, found = self._means(i, metrics or {}), math.nan, {}
        if metrics and whole:
            costs = self._once("costs", lambda: self._costs_of(self._live()))
            at_whole = self._once("whole costs", self._whole_costs)
            value, rounded_value = self._worth(i, metrics, costs), self._worth(i, whole, at_whole)
            gap = {"rounded_value": rounded_value, "discretisation_gap": rounded_value - value}
            priced = at_whole[i * self.plan.seeds] if alone else self.plan.priced(self._named(rounded))
            found = {**means, **priced, **gap}
        ending = Ending.COMPLETE if math.isfinite(value) else Ending.NAN if metrics else Ending.CANCELLED
        overshot = self._overshot(rounded, found) if ending is Ending.COMPLETE and self.plan.gradient else ""
        if overshot:
            ending = Ending.INFEASIBLE
        return outcome_of(
            trial,
            self.bundle,
            ending,
            point=point,
            value=value if ending is Ending.COMPLETE else None,
            metrics=found,
            error=f"no whole network near where it moved meets the bounds: {overshot}" if overshot else None,
            rounded=rounded,
            step=step,
            spent=self.spent(i),
            started=self.started[i],
            ended=time.time(),
            worker=self.worker,
        )
