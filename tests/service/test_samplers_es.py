"""`capacity` and `cmaes`: what they learn, from which trials, and how points come to meet a bound.

Legend of shape suffixes: P trials, N pairs, Z numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from search_spaces import Invalid, Point, Space
from service.cli import main
from service.samplers import History, Sampler, make_sampler
from service.samplers.capacity import CapacitySampler
from service.samplers.contract import Known
from service.samplers.numbers import Numbers, recommended
from service.spec import Sampler as Declared
from service.spec import SearchSpec
from trials.capacity.descent import CapacityDescent
from trials.noise import fold

KINDS = ("capacity", "cmaes")
WIDTH = {"type": "width", "low": 4, "high": 128}
WIDTHS = {"width.0": WIDTH, "width.1": WIDTH}
RATE = {"type": "float", "low": 1e-3, "high": 1.0, "log": True}
SPACE = Space.from_dict(WIDTHS)
BEST = np.array([10.0, 60.0])
#: numbers of every kind, and what is no number
MIXED = Space.from_dict(
    {
        **WIDTHS,
        "lr": RATE,
        "momentum": {"type": "float", "low": 0.0, "high": 0.9},
        "batch_size": {"type": "int", "low": 8, "high": 64, "log": True},
        "optimizer": {"type": "choice", "options": ["sgd", "adam"]},
        "beta1": {"type": "float", "low": 0.5, "high": 0.9, "when": {"optimizer": "adam"}},
    }
)


def sizes_of(point: Point) -> np.ndarray:
    return np.array([float(point[name] or 0.0) for name in WIDTHS])


def bowl(point: Point) -> float:
    return float((np.log(sizes_of(point) / BEST) ** 2).sum())


def searched(
    sampler: Sampler, generations: int, n: int, loss: Callable[[Point, int], float | None]
) -> tuple[list[Known], list[list[Point]]]:
    """A search as the service runs it: generation g knows the outcomes of those up to g - 2, and that g - 1 runs. All
    trials with their values, and the points of each generation. A loss of None is a failure."""
    trials: list[Known] = []
    asked = []
    for generation in range(generations):
        seen = [k if k.generation <= generation - 2 else replace(k, value=None, failed=False) for k in trials]
        asked.append(sampler.ask(History(trials=seen), n, generation).points)
        for point in asked[-1]:
            value = loss(point, len(trials))
            trials.append(
                Known(number=len(trials), point=point, value=value, failed=value is None, generation=generation)
            )
    return trials, asked


def noisy(seed: int, noise: float) -> Callable[[Point, int], float]:
    draws = np.random.default_rng(seed).standard_normal(2000)
    return lambda point, number: bowl(point) + noise * float(draws[number])


# -- what both do ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_to_the_best_sizes(kind: str) -> None:
    """From 22, 22; noise as large as the loss at 1.4 times the best sizes."""
    ends = []
    for seed in range(3):
        _, asked = searched(make_sampler(kind, SPACE, seed=seed), 24, 16, noisy(seed, 0.1))
        ends.append(np.mean([np.log(sizes_of(p) / BEST) for p in (*asked[-2], *asked[-1])], axis=0))
    assert np.abs(ends).max() < 0.35, ends
    assert np.abs(np.log(22.6 / BEST)).min() > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_it_maximises_what_it_minimises_with_the_sign_turned(kind: str) -> None:
    trials, _ = searched(make_sampler(kind, MIXED, seed=0), 6, 16, noisy(0, 0.1))
    turned = [replace(k, value=-(k.value or 0.0)) for k in trials]
    low = make_sampler(kind, MIXED, seed=0, mode="min")
    high = make_sampler(kind, MIXED, seed=0, mode="max")
    assert high.ask(History(trials=turned), 16, 6) == low.ask(History(trials=trials), 16, 6)
    assert high.ask(History(trials=trials), 16, 6) != low.ask(History(trials=trials), 16, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_is_worst(kind: str) -> None:
    """A failed trial, one that failed with a value, and one whose value is not a number: all as a greatest value."""
    trials, _ = searched(make_sampler(kind, SPACE, seed=0), 4, 16, noisy(0, 0.0))
    sampler = make_sampler(kind, SPACE, seed=0)
    answers = []
    for change in (
        {"value": 1e9},
        {"value": None, "failed": True},
        {"value": 0.0, "failed": True},
        {"value": math.nan},
    ):
        told = [replace(k, **change) if k.number == 5 else k for k in trials]  # type: ignore[arg-type]
        answers.append(sampler.ask(History(trials=told), 16, 4))
    assert answers == [answers[0]] * 4
    assert sampler.ask(History(trials=trials), 16, 4) != answers[0]


@pytest.mark.parametrize("kind", KINDS)
def test_all_may_fail(kind: str) -> None:
    trials, _ = searched(make_sampler(kind, MIXED, seed=0), 5, 8, lambda point, number: None)
    assert all(MIXED.faults(k.point) == [] for k in trials)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_beyond_a_bound_are_scaled_back_together(kind: str) -> None:
    """To the bound, along the diagonal, and nothing else moves."""

    def excess(point: Point) -> float:
        return float(sizes_of(point).prod()) / 100 - 1

    free = make_sampler(kind, MIXED, seed=0).ask(History(), 12, 0).points
    numbers = Numbers(MIXED, excess)
    for point in free:
        met = numbers.within(numbers.places(point), np.random.default_rng(0))
        if excess(point) > 0:
            assert excess(met) == pytest.approx(0.0, abs=1e-9)
            assert excess(met) <= 0
            shrunk = sizes_of(met) / sizes_of(point)
            assert shrunk[0] == pytest.approx(shrunk[1]) or 4.0 in sizes_of(met)
        else:
            np.testing.assert_allclose(sizes_of(met), sizes_of(point))
        assert met["lr"] == pytest.approx(point["lr"])
        assert met["batch_size"] == point["batch_size"]
    bound = make_sampler(kind, MIXED, seed=0, excess=excess)
    trials, _ = searched(bound, 20, 8, lambda point, number: -float(sizes_of(point)[0]))
    assert all(excess(k.point) <= 0 and MIXED.faults(k.point) == [] for k in trials)
    assert np.mean([sizes_of(k.point)[0] for k in trials[-16:]]) > 1.5 * np.mean(
        [sizes_of(k.point)[0] for k in trials[:16]]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_space_of_one_number_or_of_none(kind: str) -> None:
    for space in (Space.from_dict({"lr": RATE}), Space.from_dict({"c": {"type": "choice", "options": [1, 2, 3]}})):
        trials, _ = searched(make_sampler(kind, space, seed=0), 5, 8, lambda point, number: float(number))
        assert len({repr(k.point) for k in trials}) >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_is_the_same_with_other_workers(kind: str, tmp_path: Any) -> None:
    (tmp_path / "bowl.py").write_text("def objective(trial):\n    return (float(trial['x']) - 0.3) ** 2\n")
    spec = {"task": "bowl:objective", "space": {"x": {"type": "float", "low": -2, "high": 2}, "y": RATE}}
    spec |= {"budget": {"trials": 20}, "search": {"sampler": kind, "batch": 4}}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    found = []
    for lanes in (1, 3):
        store = str(tmp_path / f"store{lanes}")
        given = ["run", str(tmp_path / "spec.json"), "--store", store, "--quiet", "--executor", "here"]
        assert main([*given, "--set", f"resources.lanes={lanes}"]) == 0
        found.append(points_in(store))
    assert len(found[0]) == 20
    assert found[0] == found[1]


def points_in(store: str) -> list[Point]:
    from trials.store import Store

    opened = Store.open_for_reading(store)
    (search,) = opened.searches()
    return [o.point for o in sorted(opened.search(search).outcomes(), key=lambda o: o.number)]


# -- capacity ----------------------------------------------------------------------------------------------------------


def test_capacity_steps_as_the_descent_it_wraps() -> None:
    """Two batches open at a time, whole batches a generation, no bound, widths alone: the sampler's points are those of
    `CapacityDescent`, whose sizes are in units of the least."""
    sampler = CapacitySampler(SPACE, seed=3, pairs=4, sigma=0.2, lr=0.15)
    _, asked = searched(sampler, 8, 8, noisy(1, 0.1))
    descent = CapacityDescent([1, 1], [32, 32], pairs=4, sigma=0.2, lr=0.15, rounding="none", seed=fold(3, "capacity"))
    loss, number, waiting = noisy(1, 0.1), 0, []
    for points in asked:
        if len(waiting) == 2:
            descent.tell(waiting.pop(0))
        sizes_PZ = 4 * descent.ask()
        rows = np.stack([sizes_of(point) for point in points])
        np.testing.assert_allclose(np.concatenate([rows[::2], rows[1::2]]), sizes_PZ, rtol=1e-9)
        values_P = np.array([loss(point, number + i) for i, point in enumerate(points)])
        waiting.append(np.concatenate([values_P[::2], values_P[1::2]]))
        number += len(points)


def test_pairs_are_antithetic_and_share_what_is_drawn_at_random() -> None:
    points = CapacitySampler(MIXED, seed=0, pairs=3).ask(History(), 6, 0).points
    for plus, minus in zip(points[::2], points[1::2], strict=True):
        np.testing.assert_allclose(np.log(sizes_of(plus) * sizes_of(minus)), 2 * np.log(math.sqrt(4 * 128)))
        assert math.log(float(plus["lr"]) * float(minus["lr"])) == pytest.approx(math.log(1e-3))  # type: ignore[arg-type]
        assert plus["optimizer"] == minus["optimizer"]
        assert plus.get("beta1") == minus.get("beta1")
    assert len({point["optimizer"] for point in CapacitySampler(MIXED, seed=0).ask(History(), 16, 0).points}) == 2


def test_generations_of_any_size_fill_the_same_batches() -> None:
    """Where nothing was told yet, the first trials are the same however many are asked at a time."""
    sampler = CapacitySampler(SPACE, seed=0, pairs=4)
    whole = sampler.ask(History(), 12, 0).points
    trials: list[Known] = []
    for generation in range(4):
        points = sampler.ask(History(trials=trials), 3, generation).points
        trials += [Known(number=len(trials) + i, point=p, generation=generation) for i, p in enumerate(points)]
    assert [k.point for k in trials] == whole


def test_a_batch_counts_once_all_of_it_has_ended() -> None:
    sampler = CapacitySampler(SPACE, seed=0, pairs=2)
    trials, _ = searched(sampler, 3, 4, noisy(0, 0.1))
    begun = sampler.mean(History())
    running = [replace(k, value=None) if k.number == 3 else k for k in trials]
    assert sampler.mean(History(trials=running)) == begun
    one = sampler.mean(History(trials=[*trials[:4], *(replace(k, value=None) for k in trials[4:])]))
    assert begun != one != sampler.mean(History(trials=trials))


def test_what_is_recommended_is_better_than_the_luckiest() -> None:
    regret = []
    for seed in range(6):
        sampler = CapacitySampler(SPACE, seed=seed)
        trials, _ = searched(sampler, 8, 16, noisy(seed, 0.4))
        found = sampler.recommend(History(trials=trials))
        assert found in [k.point for k in trials]
        luckiest = min(trials, key=lambda k: k.value or 0.0)
        regret.append((bowl(found), bowl(luckiest.point)))
        turned = [replace(k, value=-(k.value or 0.0)) for k in trials]
        assert recommended(SPACE, History(trials=turned), "max") == found
    ours, theirs = np.mean(regret, axis=0)
    assert ours < 0.6 * theirs
    with pytest.raises(ValueError, match="at least one trial with a value"):
        recommended(SPACE, History(trials=[replace(trials[0], value=None, failed=True)]))


# -- cmaes -------------------------------------------------------------------------------------------------------------


def test_cmaes_moves_to_the_weighted_mean_of_the_better_half() -> None:
    """One generation of 32 told: the next is drawn around sum_i w_i x_i, w_i ~ ln((n + 1) / 2) - ln i over the better
    half (Hansen 2016, eq. 41 and 49)."""
    space = Space.from_dict({f"x.{i}": {"type": "float", "low": -1, "high": 1} for i in range(2)})
    sampler, numbers = make_sampler("cmaes", space, seed=0), Numbers(space)
    trials, _ = searched(sampler, 1, 32, lambda point, number: (float(point["x.0"] or 0.0) - 0.2) ** 2)
    drawn = sampler.ask(History(trials=trials), 400, 2).points
    ranked = sorted(trials, key=lambda k: k.value or 0.0)[:16]
    weights = np.log(16.5) - np.log(np.arange(1, 17))
    expected_Z = (weights / weights.sum()) @ np.stack([numbers.places(k.point) for k in ranked])
    places_PZ = np.stack([numbers.places(point) for point in drawn])
    error_Z = places_PZ.std(0, ddof=1) / 20
    assert (np.abs(places_PZ.mean(0) - expected_Z) < 4 * error_Z).all()
    assert abs(0.5 - expected_Z[0]) > 8 * error_Z[0]


def test_cmaes_that_goes_on_answers_as_one_that_begins_anew() -> None:
    going_on, trials = make_sampler("cmaes", MIXED, seed=0), []
    for generation in range(7):
        seen = [k if k.generation <= generation - 2 else replace(k, value=None) for k in trials]
        asked = going_on.ask(History(trials=seen), 12, generation)
        assert make_sampler("cmaes", MIXED, seed=0).ask(History(trials=seen), 12, generation) == asked
        kept = asked.points[:7] if generation == 3 else asked.points  # as where the budget holds no more
        trials += [
            Known(number=len(trials) + i, point=p, value=bowl(p), generation=generation) for i, p in enumerate(kept)
        ]


def test_cmaes_learns_from_every_second_generation() -> None:
    """Those of the other parity are drawn from another distribution, and still run when they might be of use."""
    sampler = make_sampler("cmaes", SPACE, seed=0)
    trials, _ = searched(sampler, 5, 16, noisy(0, 0.1))
    shown = [k for k in trials if k.generation < 4]
    asked = sampler.ask(History(trials=shown), 16, 4)
    odd = [replace(k, value=float(k.number)) if k.generation % 2 else k for k in shown]
    even = [k if k.generation % 2 else replace(k, value=float(k.number)) for k in shown]
    assert sampler.ask(History(trials=odd), 16, 4) == asked
    assert sampler.ask(History(trials=even), 16, 4) != asked


# -- in a spec ---------------------------------------------------------------------------------------------------------


def test_samplers_are_declared_by_name_or_with_options() -> None:
    assert Declared.read("capacity").to_dict() == {"kind": "capacity", "pairs": 8, "sigma": 0.25, "lr": 0.1}
    assert Declared.read({"kind": "capacity", "pairs": 3, "lr": 0.2}).to_dict() == {
        "kind": "capacity",
        "pairs": 3,
        "sigma": 0.25,
        "lr": 0.2,
    }
    assert Declared.read("cmaes").to_dict() == {"kind": "cmaes"}
    with pytest.raises(Invalid, match="unknown option of cmaes 'pairs'"):
        Declared.read({"kind": "cmaes", "pairs": 3})
    with pytest.raises(Invalid, match=r"search\.sampler\.sigma: must be a number above 0, but got 0"):
        Declared.read({"kind": "capacity", "sigma": 0})


def test_the_options_of_a_spec_reach_the_sampler() -> None:
    from service.planning import sampler_of
    from trials.plan import Plan

    data = {"task": "a:b", "space": WIDTHS, "budget": {"trials": 8}}
    spec = SearchSpec.from_dict({**data, "search": {"sampler": {"kind": "capacity", "pairs": 3, "sigma": 0.5}}})
    assert SearchSpec.from_dict(spec.to_dict()) == spec
    sampler = sampler_of(spec, Plan(space=spec.space, training=spec.training, seed=4))
    assert isinstance(sampler, CapacitySampler)
    assert (sampler.pairs, sampler.sigma, sampler.lr, sampler.seed) == (3, 0.5, 0.1, spec.seed)
