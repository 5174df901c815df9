"""CMA-ES, by Optuna and the package cmaes (Hansen 2016), over the numbers of a space.

    >>> sampler = CMAESSampler(space, seed=0)
    >>> asked = sampler.ask(history, n=16, generation=3)

A study is asked and told anew in the order of the history, so that asking is a pure function (some 5 ms a trial); one
that is just a generation behind the history is told that generation instead, with the same answer. Generation g knows
the outcomes of those up to g - 2, and Optuna drops trials that were drawn before the last update: so generations of
even and of odd number are two studies, each of which knows all its own trials when it is asked again. A population is
one of their generations, and no less than 4 + 3 ln(numbers).

Optuna's CMA-ES knows no choices, conditions or bounds: the first two are drawn at random, and a point beyond a bound
has its sizes scaled back (`service.samplers.numbers`), while CMA-ES is told its value where it was drawn. A failure is
worst. All arguments of Optuna's are given here, so that a resumed search does not change.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import create_trial

from search_spaces import Space
from service.samplers.contract import Asked, Excess, History, Known, always_feasible
from service.samplers.numbers import Numbers
from service.samplers.tpe import distribution_of
from trials.noise import fold

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Kept:
    """A study that has answered: the trials it was told, and those it was asked for since."""

    study: optuna.Study
    told: list[tuple[int, float | None, bool]]
    generation: int
    open: list[optuna.Trial]


class CMAESSampler:
    """Optuna's CMA-ES: full covariance, no restarts; it begins in the middle with a sixth of each range."""

    def __init__(self, space: Space, *, seed: int, mode: str = "min", excess: Excess = always_feasible) -> None:
        self.space, self.seed, self.sign = space, seed, 1.0 if mode == "min" else -1.0
        self.numbers = Numbers(space, excess)
        self.distributions = {name: distribution_of(p) for name, p in self.numbers.moved.items()}
        self._kept: dict[int, _Kept] = {}

    def ask(self, history: History, n: int, generation: int) -> Asked:
        chain = generation % 2
        own = [known for known in history.trials if known.generation % 2 == chain]
        study = self._brought_up(chain, own) or self._study(chain, own)
        trials = [study.ask(self.distributions) for _ in range(n)]
        self._kept[chain] = _Kept(study=study, told=list(map(_facts, own)), generation=generation, open=trials)
        points = []
        for i, trial in enumerate(trials):
            rest = np.random.default_rng(fold(self.seed, "cmaes rest", generation, i))
            points.append(self.numbers.within(self.numbers.places(trial.params), rest))
        return Asked(points=points)

    def _brought_up(self, chain: int, own: Sequence[Known]) -> optuna.Study | None:
        """The study that answered last, told the generation that it was asked for; None where that is not the one that
        the history adds. (The first generation settles the population, so it is asked anew.)"""
        kept = self._kept.pop(chain, None)
        if kept is None or not kept.told:
            return None
        before, new = own[: len(kept.told)], own[len(kept.told) :]
        same = list(map(_facts, before)) == kept.told and len(new) == len(kept.open)
        if not same or any(known.generation != kept.generation for known in new):
            return None
        self._tell(kept.study, kept.open, new)
        return kept.study

    def _study(self, chain: int, own: Sequence[Known]) -> optuna.Study:
        generations = [list(group) for _, group in itertools.groupby(own, lambda known: known.generation)]
        study = optuna.create_study(sampler=self._sampler(chain, generations))
        # Optuna learns the numbers from a trial that has ended; this one has no generation, so nothing else is learnt
        middle = {name: p.decode(0.5) for name, p in self.numbers.moved.items()}
        study.add_trial(create_trial(value=math.inf, params=middle, distributions=self.distributions))
        for group in generations:
            self._tell(study, [study.ask(self.distributions) for _ in group], group)
        return study

    def _tell(self, study: optuna.Study, trials: Sequence[optuna.Trial], group: Sequence[Known]) -> None:
        for trial, known in zip(trials, group, strict=True):
            if not known.running:
                study.tell(trial, self._value(known))

    def _sampler(self, chain: int, generations: Sequence[Sequence[Known]]) -> optuna.samplers.CmaEsSampler:
        least = 4 + math.floor(3 * math.log(max(len(self.distributions), 1)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.CmaEsSampler(
                n_startup_trials=1,
                popsize=max(least, len(generations[0]) if generations else 0),
                seed=fold(self.seed, "cmaes", chain) % 2**31,
                warn_independent_sampling=False,
                consider_pruned_trials=False,
                use_separable_cma=False,
                with_margin=False,
                lr_adapt=False,
            )

    def _value(self, known: Known) -> float:
        if known.failed or known.value is None or math.isnan(known.value):
            return math.inf
        return self.sign * known.value


def _facts(known: Known) -> tuple[int, float | None, bool]:
    """What a study is told of a trial."""
    return known.generation, known.value, known.failed
