"""Random numbers as a function of their purpose: known answers, nesting, moments, independence, the data order."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trials.noise import bits, data_order, fold, normal

MASK = (1 << 64) - 1

FROZEN_KEY = 14660216712442075837
FROZEN_ORDER_KEY = 11862231662352054031
FROZEN_NORMAL = [[0.5036571025848389, -2.189523696899414], [1.7889459133148193, -0.22208218276500702]]
FROZEN_DATA_ORDER = [[4, 3, 1, 0], [2, 4, 3, 2], [1, 0, 1, 2]]


def splitmix64(state: int) -> int:
    """The generator's finaliser, in plain whole numbers."""
    z = state & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_the_published_sequence_of_splitmix64() -> None:
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [z & MASK for z in bits(1234567, 1, 5)[0].tolist()] == published


@given(st.integers(0, MASK), st.integers(1, 4), st.integers(1, 4))
def test_bits_are_the_hash_of_key_and_place(key: int, rows: int, columns: int) -> None:
    for row, line in enumerate(bits(key, rows, columns).tolist()):
        for column, z in enumerate(line):
            place = (row << 32) + column + 1
            assert z & MASK == splitmix64(place * 0x9E3779B97F4A7C15 + key)


def test_normal_numbers_are_box_mullers_of_the_bits() -> None:
    key = fold(0, "init", 17, 0, 2)
    for row, line in enumerate(normal(key, 5, 7).tolist()):
        for column, got in enumerate(line):
            z = splitmix64(((row << 32) + column + 1) * 0x9E3779B97F4A7C15 + key)
            radius = math.sqrt(-2 * math.log(((z >> 32) + 0.5) / 2**32))
            assert got == pytest.approx(radius * math.cos(2 * math.pi * (z & 0xFFFFFFFF) / 2**32), rel=1e-6, abs=1e-9)


def test_the_generator_has_not_changed() -> None:
    """Frozen: another value here means that no stored search can be repeated."""
    assert fold(0, "init", 17, 0, 2) == FROZEN_KEY
    assert fold(1, "order", 3) == FROZEN_ORDER_KEY
    assert normal(FROZEN_KEY, 2, 2).numpy() == pytest.approx(np.array(FROZEN_NORMAL), rel=1e-6)
    assert data_order(7, 5, 4, 3).tolist() == FROZEN_DATA_ORDER


def test_a_key_tells_every_purpose_apart() -> None:
    places = [
        (seed, purpose, *numbers)
        for seed in range(-2, 3)
        for purpose in ("init", "order", "tpe", "random")
        for length in range(3)
        for numbers in itertools.product(range(4), repeat=length)
    ]
    assert len({fold(*place) for place in places}) == len(places)
    assert fold(1, "a", 23) != fold(1, "a", 2, 3)


@given(
    st.integers(0, MASK),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_nested_by_prefix_exactly(key: int, inner: tuple[int, int], more: tuple[int, int]) -> None:
    rows, columns = inner
    whole = normal(key, rows + more[0], columns + more[1])
    assert torch.equal(normal(key, rows, columns), whole[:rows, :columns])


def test_moments_and_distribution() -> None:
    x = normal(fold(0, "init", 0), 500, 1000).double().flatten()
    n = len(x)
    assert abs(x.mean().item()) < 4 / math.sqrt(n)
    assert abs(x.var().item() - 1) < 4 * math.sqrt(2 / n)
    assert abs((x**3).mean().item()) < 4 * math.sqrt(15 / n)
    assert abs((x**4).mean().item() - 3) < 4 * math.sqrt(96 / n)
    assert stats.kstest(x[:20_000].numpy(), "norm").pvalue > 0.01
    assert x.isfinite().all()
    assert 4 < x.abs().max().item() < 7


def test_keys_and_places_are_independent() -> None:
    """Between keys of neighbouring trials, replicates and layers; and between neighbours within one matrix."""
    shape = 400, 500
    base = normal(fold(0, "init", 5, 0, 1), *shape).double()
    others = [
        (0, "init", 6, 0, 1),
        (0, "init", 5, 1, 1),
        (0, "init", 5, 0, 2),
        (1, "init", 5, 0, 1),
        (0, "other", 5, 0, 1),
    ]
    pairs = [(base, normal(fold(*other), *shape).double()) for other in others]
    pairs += [(base[1:], base[:-1]), (base[:, 1:], base[:, :-1])]
    for a, b in pairs:
        limit = 4 / math.sqrt(a.numel())
        assert abs((a * b).mean().item()) < limit
        assert abs(((a**2 - 1) * (b**2 - 1) / 2).mean().item()) < limit


# -- the data order ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**63), st.integers(1, 30), st.integers(1, 40), st.integers(1, 12))
def test_each_epoch_is_a_permutation_and_the_last_batch_wraps(seed: int, rows: int, batch: int, steps: int) -> None:
    order = data_order(seed, rows, batch, steps)
    assert order.shape == (steps, batch)
    stream = order.flatten()
    for begin in range(0, len(stream), rows):
        epoch = stream[begin : begin + rows]
        assert len(set(epoch)) == len(epoch)
        assert len(epoch) < rows or sorted(epoch) == list(range(rows))


@given(st.integers(0, 99), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_a_longer_training_and_another_batch_size_see_the_same_stream(
    seed: int, rows: int, batch: int, other: int, steps: int
) -> None:
    one, two = data_order(seed, rows, batch, steps).flatten(), data_order(seed, rows, other, 2 * steps).flatten()
    common = min(len(one), len(two))
    assert np.array_equal(one[:common], two[:common])


def test_orders_differ_between_seeds_and_epochs() -> None:
    orders = [tuple(data_order(seed, 50, 50, 3)[epoch]) for seed in range(4) for epoch in range(3)]
    assert len(set(orders)) == len(orders)
