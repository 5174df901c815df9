"""Tree-structured Parzen estimators, by Optuna (Bergstra et al. 2011; Watanabe 2023 for the multivariate form).

The study lives in memory for one `ask` and is rebuilt from the history, so that asking is a pure function. Optuna's
arguments whose defaults have changed between releases are given here, so that a resumed search does not change.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from search_spaces import Choice, Int, Parameter, Point, Space, Value
from search_spaces.parameters import Real
from search_spaces.space import fixed_start
from service.samplers.contract import Asked, Excess, History, Known, always_feasible
from service.samplers.random import draw
from trials.noise import fold

optuna.logging.set_verbosity(optuna.logging.WARNING)

LONGEST_HISTORY = 500  # fitting is linear in the history: 2 ms a point at 256 trials, 30 to 40 at 2,000
TRIES_PER_POINT = 25  # points that break a bound before a random one is drawn


class TPESampler:
    """Optuna's TPE with constant liar and, under bounds, its constrained split of good and bad trials."""

    def __init__(
        self,
        space: Space,
        *,
        seed: int,
        mode: str = "min",
        excess: Excess = always_feasible,
        startup: int = 16,
        candidates: int = 24,
        multivariate: bool = True,
    ) -> None:
        self.space, self.seed, self.excess = space, seed, excess
        self.direction: Literal["minimize", "maximize"] = "minimize" if mode == "min" else "maximize"
        self.mode, self.startup, self.candidates, self.multivariate = mode, startup, candidates, multivariate
        self.distributions = {name: distribution_of(p) for name, p in space.searched().items()}

    def ask(self, history: History, n: int, generation: int) -> Asked:
        rng = np.random.default_rng(fold(self.seed, "tpe", generation))
        study = self._study(history, int(rng.integers(2**31)))
        points: list[Point] = []
        infeasible: list[Point] = []
        while len(points) < n:
            if len(infeasible) >= TRIES_PER_POINT * n:
                points.append(draw(self.space, rng, self.excess))
                continue
            trial = study.ask()
            point = self._suggested(trial)
            excess = self.excess(point)
            if excess <= 0:
                points.append(point)
            else:
                infeasible.append(point)
                trial.set_constraint("bounds", excess)
                study.tell(trial, 0.0)
        return Asked(points=points, infeasible=infeasible)

    def _study(self, history: History, seed: int) -> optuna.Study:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=self.startup,
                n_ei_candidates=self.candidates,
                multivariate=self.multivariate,
                group=self.multivariate and any(p.when for p in self.space.parameters.values()),
                constant_liar=True,
                seed=seed,
            )
        study = optuna.create_study(direction=self.direction, sampler=sampler)
        study.add_trials([self._frozen(known) for known in self._recent(history.trials) if not known.failed])
        broken = list(history.infeasible)[-LONGEST_HISTORY:]
        study.add_trials([self._frozen_infeasible(point) for point in broken])
        return study

    def _recent(self, trials: Any) -> list[Known]:
        """The best quarter and the latest of a history that has grown too long to fit."""
        if len(trials) <= LONGEST_HISTORY:
            return list(trials)
        sign = 1.0 if self.mode == "min" else -1.0
        ranked = sorted((t for t in trials if t.value is not None), key=lambda t: (sign * t.value, t.number))
        kept = {t.number for t in ranked[: LONGEST_HISTORY // 4]}
        for known in reversed(trials):
            if len(kept) >= LONGEST_HISTORY:
                break
            kept.add(known.number)
        return [t for t in trials if t.number in kept]

    def _frozen(self, known: Known) -> FrozenTrial:
        params = {name: known.point[name] for name in self.distributions if name in known.point}
        return create_trial(
            state=TrialState.RUNNING if known.value is None else TrialState.COMPLETE,
            value=known.value,
            params=params,
            distributions={name: self.distributions[name] for name in params},
            constraints={"bounds": 0.0},
        )

    def _frozen_infeasible(self, point: Point) -> FrozenTrial:
        params = {name: point[name] for name in self.distributions if name in point}
        return create_trial(
            value=0.0,
            params=params,
            distributions={name: self.distributions[name] for name in params},
            constraints={"bounds": self.excess(point)},
        )

    def _suggested(self, trial: optuna.Trial) -> Point:
        point: Point = {}
        for name, parameter in self.space.coordinates.items():
            if self.space.exists(name, point):
                fixed = fixed_start(parameter)
                point[name] = _suggest(trial, name, parameter) if fixed is None else fixed
        return point


def _suggest(trial: optuna.Trial, name: str, parameter: Parameter) -> Value:
    if isinstance(parameter, Real):
        return trial.suggest_float(name, float(parameter.low), float(parameter.high), log=parameter.log)
    if isinstance(parameter, Int):
        return trial.suggest_int(name, parameter.low, parameter.high, log=parameter.log)
    assert isinstance(parameter, Choice)
    return trial.suggest_categorical(name, parameter.options)


def distribution_of(parameter: Parameter) -> BaseDistribution:
    """Optuna's name for a parameter's range."""
    if isinstance(parameter, Real):
        return FloatDistribution(float(parameter.low), float(parameter.high), log=parameter.log)
    if isinstance(parameter, Int):
        return IntDistribution(parameter.low, parameter.high, log=parameter.log)
    assert isinstance(parameter, Choice)
    return CategoricalDistribution(parameter.options)
