"""What keeps a moving parameter in its range, how its rate falls and when a derivative is cut short, each against an
independent truth. What `Moves` does otherwise: test_hypergradients.py.

Legend of shape suffixes: K lanes, G parameters that move.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trials.hypergradients import Method
from trials.hypergradients.moves import INSIDE, Moves, scheduled

Scale = tuple[float, float, bool]

SGD = Method(kind="bilevel", optimizer="sgd", lr=1e-2, warmup=0, every=1, clip=0.0)
SCALES: list[Scale] = [(3.0, 11.0, False), (4.0, 128.0, True)]
ENDS = ("clamp", "reflect", "sigmoid")


def moves_of(method: Method, start: list[list[float]], scales: list[Scale] | None = None, **options: Any) -> Moves:
    bounds, cost = options.get("bounds", {}), options.get("cost", lambda _: {})
    return Moves(method, scales or SCALES, torch.tensor(start, dtype=torch.float64), bounds, cost)


def place_of(n: float, scale: Scale) -> float:
    """Where in the unit interval a size is, by the definition of its scale."""
    low, high, log = scale
    return math.log(n / low) / math.log(high / low) if log else (n - low) / (high - low)


def size_at(u: float, scale: Scale) -> float:
    low, high, log = scale
    return low * (high / low) ** u if log else low + u * (high - low)


def per_unit(n: float, scale: Scale) -> float:
    """dn/du by central differences."""
    u, h = place_of(n, scale), 1e-6
    return (size_at(u + h, scale) - size_at(u - h, scale)) / (2 * h)


def travelled(method: Method, start: float, scale: Scale, distance: float) -> float:
    """Where one step ends that goes so far, in units of the unit interval."""
    moves = moves_of(method, [[start]], [scale])
    return float(moves.step(torch.tensor([[-distance / (method.lr * float(moves.units()))]], dtype=torch.float64)))


# -- the ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("distance", [0.1, 0.9, 1.3, 2.05, 3.77, 10.4, -0.3, -1.9, -7.61])
def test_reflection_is_a_triangle_wave(scale: Scale, distance: float) -> None:
    """Off each wall as often as it takes: the wave arccos(cos(pi v)) / pi, and the same by bouncing by hand."""
    u = 0.37
    found = place_of(travelled(replace(SGD, ends="reflect"), size_at(u, scale), scale, distance), scale)
    v = u + distance
    assert found == pytest.approx(math.acos(math.cos(math.pi * v)) / math.pi, abs=1e-7)
    while not 0 <= v <= 1:
        v = -v if v < 0 else 2 - v
    assert found == pytest.approx(v, abs=1e-9)


@pytest.mark.parametrize("scale", SCALES)
def test_a_clamp_cuts_off_and_is_free_to_come_back(scale: Scale) -> None:
    method = replace(SGD, ends="clamp")
    for distance, end in ((0.2, 0.57), (0.7, 1.0), (-0.5, 0.0)):
        found = travelled(method, size_at(0.37, scale), scale, distance)
        assert place_of(found, scale) == pytest.approx(end, abs=1e-9)
    at_end = travelled(method, scale[1], scale, -0.25)
    assert place_of(at_end, scale) == pytest.approx(0.75, abs=1e-9)


def loss(n: float) -> float:
    return math.sin(n) + n**2 / 50


def slope(n: float) -> float:
    return math.cos(n) + n / 25


@pytest.mark.parametrize("scale", SCALES)
def test_a_sigmoid_step_is_gradient_descent_in_its_own_coordinate(scale: Scale) -> None:
    """v = log(u / (1 - u)) / 4, and dL/dv by differences through the scale, step after step."""

    def size(v: float) -> float:
        return size_at(1 / (1 + math.exp(-4 * v)), scale)

    start = size_at(0.2, scale)
    moves = moves_of(replace(SGD, ends="sigmoid"), [[start]], [scale])
    u = place_of(start, scale)
    v, h = math.log(u / (1 - u)) / 4, 1e-6
    for _ in range(20):
        n = float(moves.n_KG)
        v -= SGD.lr * (loss(size(v + h)) - loss(size(v - h))) / (2 * h)
        moves.step(torch.tensor([[slope(n)]], dtype=torch.float64))
        assert float(moves.n_KG) == pytest.approx(size(v), rel=1e-7)
    assert float(moves.n_KG) != pytest.approx(start, rel=1e-2)


@pytest.mark.parametrize("scale", SCALES)
def test_a_sigmoid_is_as_fast_as_the_unit_interval_in_the_middle(scale: Scale) -> None:
    middle = size_at(0.5, scale)
    units = [float(moves_of(replace(SGD, ends=ends), [[middle]], [scale]).units()) for ends in ("clamp", "sigmoid")]
    assert units == pytest.approx([per_unit(middle, scale)] * 2, rel=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("pull", [1.0, -1.0, 1e6, -1e6])
def test_a_sigmoid_never_arrives_at_an_end_and_comes_back(optimizer: str, pull: float) -> None:
    moves = moves_of(replace(SGD, ends="sigmoid", optimizer=optimizer, lr=0.5), [[5.0, 40.0]])
    for _ in range(300):
        moves.step(torch.full((1, 2), pull, dtype=torch.float64))
        for n, (low, high, _log) in zip(moves.n_KG[0].tolist(), SCALES, strict=True):
            assert low < n < high
    assert bool((moves.units() > 0).all())  # a derivative of 0 could never bring it back
    if optimizer == "adam":
        there = moves.n_KG.clone()
        for _ in range(100):
            moves.step(torch.full((1, 2), -pull, dtype=torch.float64))
        assert bool(((moves.n_KG - there) * pull > 0).all())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("end", [0, 1])
def test_a_start_at_an_end_is_put_just_inside(scale: Scale, end: int) -> None:
    moves = moves_of(replace(SGD, ends="sigmoid"), [[scale[end]]], [scale])
    assert float(moves.step(torch.zeros(1, 1))) == scale[end]  # nothing has moved it
    nudge = 1e-9 if end else -1e-9
    found = float(moves.step(torch.tensor([[nudge]])))
    inside = size_at(abs(end - INSIDE), scale)
    assert found == pytest.approx(inside, rel=1e-8)
    assert found != scale[end]


@pytest.mark.parametrize("ends", ENDS)
def test_a_place_that_is_the_same_keeps_every_bit(ends: str) -> None:
    """And what is put elsewhere is there to the last bit, and goes on from there."""
    start, gradient = [[math.pi, 7.3], [10.1, 99.7]], torch.tensor([[0.3, -0.01], [-0.2, 0.02]], dtype=torch.float64)
    alone, placed = (moves_of(replace(SGD, ends=ends), start) for _ in range(2))
    for _ in range(3):
        alone.step(gradient)
        placed.step(gradient)
        assert torch.equal(placed.place(placed.n_KG.clone()), alone.n_KG)
    elsewhere = placed.n_KG.clone()
    elsewhere[1, 0] = 5.123456789
    assert torch.equal(placed.place(elsewhere), elsewhere)
    alone.step(gradient)
    placed.step(gradient)
    same = torch.tensor([[True, True], [False, True]])
    assert torch.equal(placed.n_KG == alone.n_KG, same)
    fresh = moves_of(replace(SGD, ends=ends), [[5.123456789]], SCALES[:1])
    assert float(placed.n_KG[1, 0]) == pytest.approx(float(fresh.step(gradient[1:, :1])), rel=1e-12)


# -- the rate ----------------------------------------------------------------------------------------------------------

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda s: 1.0,
    "linear": lambda s: 1.0 - s,
    "cosine": lambda s: math.cos(math.pi * s / 2) ** 2,
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.85, 1.0])
def test_a_schedule_lowers_the_step(schedule: str, share: float) -> None:
    assert scheduled(schedule, share) == pytest.approx(SCHEDULES[schedule](share), abs=1e-15)
    gradient = torch.tensor([[0.1, -0.02]], dtype=torch.float64)
    full, lowered = (moves_of(replace(SGD, schedule=name), [[7.0, 30.0]]) for name in ("constant", schedule))
    steps = [
        [place_of(n, scale) for n, scale in zip(moves.step(gradient, share)[0].tolist(), SCALES, strict=True)]
        for moves in (full, lowered)
    ]
    for scale, start, whole, less in zip(SCALES, (7.0, 30.0), *steps, strict=True):
        there = place_of(start, scale)
        assert less - there == pytest.approx((whole - there) * SCHEDULES[schedule](share), abs=1e-13)
        assert abs(whole - there) > 1e-3


# -- the clip ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_long_derivative_is_shortened_in_its_own_lane_alone(optimizer: str) -> None:
    start = [[7.0, 30.0], [6.0, 20.0]]
    short, long = torch.tensor([0.01, -0.003]), torch.tensor([30.0, 9.0])
    clipped, free = (moves_of(replace(SGD, optimizer=optimizer, clip=clip), start) for clip in (2.0, 0.0))
    for step in range(4):
        first = long if step % 2 == 0 else short
        gradient = torch.stack([first, short]).double()
        assert torch.equal(clipped.step(gradient)[1], free.step(gradient)[1])
        assert not torch.equal(clipped.n_KG[0], free.n_KG[0])
    assert clipped.clipped_K.tolist() == [2, 0]
    assert free.clipped_K.tolist() == [0, 0]
    assert clipped.moved == free.moved == 4


def test_a_shortened_derivative_keeps_its_direction() -> None:
    start, gradient = [7.0, 30.0], [3.0, -0.4]
    moves = moves_of(replace(SGD, clip=2.0), [start])
    after = moves.step(torch.tensor([gradient], dtype=torch.float64))[0].tolist()
    full = [g * per_unit(n, scale) for g, n, scale in zip(gradient, start, SCALES, strict=True)]
    length = math.hypot(*full)
    assert length > 2
    shift = [place_of(b, s) - place_of(a, s) for a, b, s in zip(start, after, SCALES, strict=True)]
    assert shift == pytest.approx([-SGD.lr * 2.0 * f / length for f in full], rel=1e-6)


def test_the_pull_of_a_bound_is_not_shortened() -> None:
    """g(n) = n_0 / 4 - 1 at n_0 = 10, so the pull is (lambda + damping g) dg/dn, 1.5 (1 + dual_lr) / 4 a unit."""

    def cost(n_KG: Tensor) -> dict[str, Tensor]:
        return {"sum": n_KG[:, 0]}

    method = replace(SGD, clip=0.1, dual_lr=0.5)
    moves = moves_of(method, [[10.0, 30.0]], bounds={"sum": 4.0}, cost=cost)
    after = float(moves.step(torch.zeros(1, 2))[0, 0])
    pull = (method.dual_lr * 1.5 + method.damping * 1.5) / 4.0 * 8.0
    assert pull > 10 * method.clip
    assert after == pytest.approx(10.0 - method.lr * pull * 8.0, rel=1e-12)
    assert moves.clipped_K.tolist() == [0]


# -- whatever comes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("poison", [1.7e308, -1.7e308, math.nan, math.inf])
def test_a_lane_rests_where_numbers_overflow_and_goes_on_after(poison: float, ends: str, optimizer: str) -> None:
    """A finite derivative may be none in units of the unit interval."""
    moves = moves_of(replace(SGD, ends=ends, optimizer=optimizer, clip=10.0), [[7.0, 30.0]])
    gradient = torch.tensor([[0.1, -0.02]], dtype=torch.float64)
    before = moves.step(gradient).clone()
    assert torch.equal(moves.step(torch.tensor([[poison, 0.1]], dtype=torch.float64)), before)
    after = moves.step(gradient)
    assert float(after[0, 0]) < float(before[0, 0])
    assert float(after[0, 1]) > float(before[0, 1])


@pytest.mark.parametrize("ends", ENDS)
def test_an_outer_rate_of_zero_moves_nothing_bitwise_whatever_the_ends(ends: str) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [
        [size_at(float(u), s) for u, s in zip(torch.rand(2, generator=generator), SCALES, strict=True)]
        for _ in range(50)
    ]
    moves = moves_of(replace(SGD, ends=ends, lr=0.0), start)
    for _ in range(3):
        assert moves.step(torch.randn(50, 2, generator=generator)).tolist() == start


NUMBERS = st.floats(width=64, allow_nan=True, allow_infinity=True) | st.sampled_from(
    [0.0, 1e-300, 1.0, -1.0, 1e150, -1e200, 1.7e308, -1.7e308, math.nan, math.inf, -math.inf]
)
GRADIENTS = st.lists(st.lists(NUMBERS, min_size=6, max_size=6), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    gradients=GRADIENTS,
    ends=st.sampled_from(ENDS),
    optimizer=st.sampled_from(("adam", "sgd")),
    clip=st.sampled_from((0.0, 10.0)),
    lr=st.sampled_from((0.0, 0.05, 3.0, 1e6)),
    places=st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4),
)
def test_whatever_the_gradients_sizes_stay_finite_and_in_their_range(
    gradients: list[list[float]], ends: str, optimizer: str, clip: float, lr: float, places: list[float]
) -> None:
    scales: list[Scale] = [*SCALES, (1.0, 1.0, False)]
    start = [
        [*(min(max(size_at(u, s), s[0]), s[1]) for u, s in zip(places[k : k + 2], SCALES, strict=True)), 33.0]
        for k in (0, 2)
    ]
    method = Method(kind="bilevel", optimizer=optimizer, ends=ends, clip=clip, lr=lr)
    moves = moves_of(method, start, scales, bounds={"sum": 20.0}, cost=lambda n_KG: {"sum": n_KG[:, :2].sum(1)})
    for numbers in gradients:
        before = moves.n_KG.clone()
        gradient_KG = torch.tensor(numbers, dtype=torch.float64).view(2, 3)
        after = moves.step(gradient_KG)
        for k in range(2):
            assert all(low <= n <= high for n, (low, high, _) in zip(after[k, :2].tolist(), SCALES, strict=True))
            assert float(after[k, 2]) == 33.0
            if not gradient_KG[k].isfinite().all():
                assert torch.equal(after[k], before[k])
    assert bool(moves.dual_KC.isfinite().all())
