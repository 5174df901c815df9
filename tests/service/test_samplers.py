"""Samplers: pure functions of what they are shown, within bounds and conditions; TPE is better than chance."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from search_spaces import Point, Space
from search_spaces.cost import mlp_parameters
from service.samplers import SAMPLERS, History, ListedSampler, NoRoom, make_sampler
from service.samplers.contract import Excess, Known
from service.samplers.tpe import LONGEST_HISTORY, TPESampler

WIDTH = {"type": "width", "low": 4, "high": 128}
MIXED = {
    "width.0": WIDTH,
    "lr": {"type": "float", "low": 1e-3, "high": 1.0, "log": True},
    "epochs": {"type": "int", "low": 1, "high": 20, "log": True},
    "optimizer": {"type": "choice", "options": ["sgd", "adam", None, True, 3]},
    "momentum": {"type": "float", "low": 0.0, "high": 0.95, "when": {"optimizer": ["sgd", "adam"]}},
    "nesterov": {"type": "choice", "options": [True, False], "when": {"optimizer": "sgd"}},
    "t": {"type": "topology", "nodes": 2, "when": {"optimizer": 3}},
}


def value(point: Point) -> float:
    return math.log(float(point["lr"]) / 0.03) ** 2 + float(point["epochs"]) / 20  # type: ignore[arg-type]


def history_of(points: list[Point], running: int = 0, failed: tuple[int, ...] = ()) -> History:
    """The last `running` points have no value yet."""
    return History(
        trials=[
            Known(
                number=i,
                point=point,
                value=None if i >= len(points) - running or i in failed else value(point),
                failed=i in failed,
                generation=i // 8,
            )
            for i, point in enumerate(points)
        ]
    )


def some_points(space: Space, count: int, seed: int = 0) -> list[Point]:
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(count)]


@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_same_history_gives_the_same_points(kind: str) -> None:
    """From a fresh sampler, from one that has answered before, and from a history that has been stored as JSON."""
    space = Space.from_dict(MIXED)
    points = some_points(space, 40)
    history = history_of(points, running=8, failed=(3, 5))
    first = make_sampler(kind, space, seed=1)
    asked = first.ask(history, 8, 5)
    assert first.ask(history, 8, 5) == asked
    first.ask(History(), 4, 6)
    assert first.ask(history, 8, 5) == asked
    stored = history_of(json.loads(json.dumps(points)), running=8, failed=(3, 5))
    assert make_sampler(kind, Space.from_dict(json.loads(json.dumps(MIXED))), seed=1).ask(stored, 8, 5) == asked
    more = [Known(number=40 + i, point=point, generation=5) for i, point in enumerate(asked.points)]
    assert first.ask(History(trials=[*history.trials, *more]), 8, 6) != asked
    assert make_sampler(kind, space, seed=2).ask(history, 8, 5) != asked
    assert history == history_of(points, running=8, failed=(3, 5))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_conditions_hold_in_every_point(kind: str) -> None:
    space = Space.from_dict(MIXED)
    sampler = make_sampler(kind, space, seed=0)
    points: list[Point] = []
    for generation in range(6):
        points += sampler.ask(history_of(points, running=min(len(points), 10)), 10, generation).points
    assert len(points) == 60
    assert all(space.faults(point) == [] for point in points)
    assert {repr(point["optimizer"]) for point in points} == {"'sgd'", "'adam'", "None", "True", "3"}
    assert {"t.0" in point for point in points} == {True, False}


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_fixed_start_stands_in_every_point(kind: str) -> None:
    fixed = {**WIDTH, "moved_by": "gradient", "start": 17}
    space = Space.from_dict({**MIXED, "width.0": fixed, "width.1": {**WIDTH, "moved_by": "gradient"}})
    sampler = make_sampler(kind, space, seed=0)
    points = sampler.ask(History(), 20, 0).points
    points += sampler.ask(history_of(points), 4, 1).points
    assert {point["width.0"] for point in points} == {17.0}
    assert len({point["width.1"] for point in points}) == 24
    assert all(space.faults(point) == [] for point in points)


def test_random_is_uniform_on_each_scale() -> None:
    space = Space.from_dict({name: MIXED[name] for name in ("width.0", "lr", "epochs", "optimizer")})
    sampler = make_sampler("random", space, seed=0)
    points = [point for g in range(50) for point in sampler.ask(History(), 20, g).points]
    place = [[space.parameters[name].encode(p[name]) for p in points] for name in ("width.0", "lr")]
    assert all(stats.kstest(u, "uniform").pvalue > 0.01 for u in place)
    assert abs(stats.spearmanr(*place).statistic) < 0.1
    assert (
        stats.chisquare([sum(p["optimizer"] is o for p in points) for o in MIXED["optimizer"]["options"]]).pvalue > 0.01
    )
    expected = [1000 * math.log((v + 0.5) / (v - 0.5)) / math.log(20.5 / 0.5) for v in range(1, 21)]
    assert stats.chisquare([sum(p["epochs"] == v for p in points) for v in range(1, 21)], expected).pvalue > 0.01


def bounded(most: float) -> tuple[Space, Excess]:
    space = Space.from_dict({"width.0": WIDTH, "width.1": WIDTH, "lr": MIXED["lr"]})

    def excess(point: Point) -> float:
        sizes = [int(float(point[f"width.{i}"]) + 0.5) for i in range(2)]  # type: ignore[arg-type]
        return mlp_parameters(64, sizes, 10) / most - 1

    return space, excess


@pytest.mark.parametrize("kind", SAMPLERS)
def test_bounds_are_met_by_every_point(kind: str) -> None:
    space, excess = bounded(2000)
    assert sum(excess(point) <= 0 for point in some_points(space, 200)) < 80  # so that it takes some doing
    sampler = make_sampler(kind, space, seed=0, excess=excess)
    points: list[Point] = []
    for generation in range(5):
        known = [Known(number=i, point=p, value=float(p["lr"])) for i, p in enumerate(points)]  # type: ignore[arg-type]
        points += sampler.ask(History(trials=known), 8, generation).points
    assert len(points) == 40
    assert all(excess(point) <= 0 for point in points)


def test_points_that_break_a_bound_are_recorded_and_learnt_from() -> None:
    space, excess = bounded(1000)
    sampler = make_sampler("tpe", space, seed=0, excess=excess)
    points = sampler.ask(History(), 24, 0)
    assert points.infeasible
    assert all(excess(point) > 0 and space.faults(point) == [] for point in points.infeasible)
    known = [Known(number=i, point=p, value=float(p["lr"])) for i, p in enumerate(points.points)]  # type: ignore[arg-type]
    shown = sampler.ask(History(trials=known, infeasible=points.infeasible), 12, 1)
    kept_from_it = sampler.ask(History(trials=known), 12, 1)
    assert shown != kept_from_it
    assert len(shown.infeasible) < len(points.infeasible) / 2  # random ones miss more often than fitted ones


@pytest.mark.parametrize("kind", SAMPLERS)
def test_no_room_is_said_at_once(kind: str) -> None:
    space = Space.from_dict({"lr": MIXED["lr"]})
    sampler = make_sampler(kind, space, seed=0, excess=lambda point: 1.0)
    with pytest.raises(NoRoom, match="20000 random points all broke a bound of `constraints`; raise it or lower the"):
        sampler.ask(History(), 1, 0)


def best_found(kind: str, seed: int) -> float:
    """A quadratic with its optimum off the middle, asked as a search asks: knowing all but the last generation."""
    space = Space.from_dict({f"x.{i}": {"type": "float", "low": -1, "high": 1} for i in range(4)})
    sampler = make_sampler(kind, space, seed=seed)

    def loss(point: Point) -> float:
        return sum((float(x) - 0.3 + 0.2 * i) ** 2 for i, x in enumerate(point.values()))  # type: ignore[arg-type]

    points: list[Point] = []
    for generation in range(13):
        shown = 6 * max(0, generation - 1)
        known = [Known(number=i, point=p, value=loss(p) if i < shown else None) for i, p in enumerate(points)]
        points += sampler.ask(History(trials=known), 6, generation).points
    return min(map(loss, points))


@pytest.mark.slow
def test_tpe_beats_random_on_a_quadratic() -> None:
    seeds = range(7)
    tpe, random = ([best_found(kind, seed) for seed in seeds] for kind in ("tpe", "random"))
    assert np.median(tpe) < np.median(random) / 2
    assert sum(a < b for a, b in zip(tpe, random, strict=True)) >= 6


def test_tpe_maximises_what_it_minimises_with_the_sign_turned() -> None:
    space = Space.from_dict(MIXED)
    points = some_points(space, 40)
    low = history_of(points)
    high = History(trials=[Known(number=k.number, point=k.point, value=-(k.value or 0.0)) for k in low.trials])
    asked = make_sampler("tpe", space, seed=0, mode="min").ask(low, 6, 3)
    assert make_sampler("tpe", space, seed=0, mode="max").ask(high, 6, 3) == asked
    assert make_sampler("tpe", space, seed=0, mode="max").ask(low, 6, 3) != asked


def test_tpe_begins_with_random_points_and_startup_says_how_many() -> None:
    space = Space.from_dict({"lr": MIXED["lr"]})
    near = [{"lr": 0.03 * 1.001**i} for i in range(20)]
    known = [Known(number=i, point=p, value=float(i > 9)) for i, p in enumerate(near)]

    def spread(startup: int) -> float:
        sampler = make_sampler("tpe", space, seed=0, options={"startup": startup})
        return float(np.std([math.log(float(p["lr"])) for p in sampler.ask(History(trials=known), 12, 1).points]))

    assert spread(10) < spread(1000)
    uniform = math.log(1000) / math.sqrt(12)
    assert spread(1000) == pytest.approx(uniform, rel=0.4)


def test_failures_teach_nothing_and_running_trials_keep_others_away() -> None:
    space = Space.from_dict(MIXED)
    points = some_points(space, 40)
    sampler = make_sampler("tpe", space, seed=0)
    with_failures = history_of(points, failed=(1, 7))
    without = History(trials=[known for known in with_failures.trials if not known.failed])
    assert sampler.ask(with_failures, 6, 3) == sampler.ask(without, 6, 3)
    assert sampler.ask(history_of(points, running=6), 6, 3) != sampler.ask(history_of(points[:-6]), 6, 3)


def test_a_long_history_is_cut_to_its_best_and_latest() -> None:
    space = Space.from_dict({"lr": MIXED["lr"]})
    count = LONGEST_HISTORY + 500
    known = [Known(number=i, point={"lr": 0.1}, value=float((i * 7919) % count)) for i in range(count)]
    sampler = TPESampler(space, seed=0)
    kept = sampler._recent(known)
    assert len(kept) == LONGEST_HISTORY
    assert [k.number for k in kept] == sorted(k.number for k in kept)
    numbers = {k.number for k in kept}
    best = sorted(known, key=lambda k: float(k.value or 0.0))[: LONGEST_HISTORY // 4]
    assert {k.number for k in best} <= numbers
    assert set(range(count - LONGEST_HISTORY // 2, count)) <= numbers
    assert sampler._recent(known[:LONGEST_HISTORY]) == known[:LONGEST_HISTORY]


def test_listed_points_are_replayed_once_in_order() -> None:
    points: list[Point] = [{"x": float(i)} for i in range(7)]
    sampler = ListedSampler(points)
    asked: list[Any] = []
    for generation in range(4):
        known = [Known(number=i, point=p) for i, p in enumerate(asked)]
        asked += sampler.ask(History(trials=known), 3, generation).points
    assert asked == points
    asked[0]["x"] = 9.0
    assert points[0] == {"x": 0.0}


def test_an_unknown_sampler_is_named() -> None:
    with pytest.raises(ValueError, match="unknown sampler 'tep'; known: random, tpe, cmaes, capacity"):
        make_sampler("tep", Space.from_dict(MIXED), seed=0)
