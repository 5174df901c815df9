"""Slots are shared fairly: the rules, and every small case against all that could have been given."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.runner.shares import Demand, shares

OWNERS = ("ada", "bob", "eve")


@st.composite
def demands_of(draw: st.DrawFn, most: int = 4, wants: int = 4) -> list[Demand]:
    count = draw(st.integers(0, most))
    return [
        Demand(
            id=f"s{i}",
            owner=draw(st.sampled_from(OWNERS)),
            priority=draw(st.sampled_from([1, 2, 3, 10, 100])),
            workers=draw(st.integers(1, wants)),
        )
        for i in range(count)
    ]


capacities = st.none() | st.integers(0, 12)
quotas_of = st.dictionaries(st.sampled_from([*OWNERS, "*"]), st.integers(0, 5), max_size=3)


def quota(owner: str, quotas: Mapping[str, int]) -> float:
    return quotas.get(owner, quotas.get("*", math.inf))


def allowed(found: Sequence[int], capacity: int | None, demands: Sequence[Demand], quotas: Mapping[str, int]) -> bool:
    """Whether nobody has more than is wanted, allowed, or there."""
    by_owner: Counter[str] = Counter()
    for slots, demand in zip(found, demands, strict=True):
        if not 0 <= slots <= demand.workers:
            return False
        by_owner[demand.owner] += slots
    within = all(slots <= quota(owner, quotas) for owner, slots in by_owner.items())
    return within and (capacity is None or sum(found) <= capacity)


def admitted(capacity: int | None, demands: Sequence[Demand], quotas: Mapping[str, int]) -> set[int]:
    """Who gets the first slots: one after the other by priority, then age, while there is room."""
    chosen: set[int] = set()
    for i in sorted(range(len(demands)), key=lambda i: (-demands[i].priority, i)):
        trial = [int(j in chosen or j == i) for j in range(len(demands))]
        if allowed(trial, capacity, demands, quotas):
            chosen.add(i)
    return chosen


def fairness(found: Sequence[int], demands: Sequence[Demand]) -> list[Fraction]:
    """What is to be as great as can be, the worst off first: slots by priority."""
    return sorted(Fraction(slots, demand.priority) for slots, demand in zip(found, demands, strict=True))


@settings(max_examples=300)
@given(capacities, demands_of(), quotas_of)
def test_nothing_that_could_have_been_given_is_fairer(capacity, demands, quotas):
    given_slots = shares(capacity, demands, quotas)
    assert list(given_slots) == [demand.id for demand in demands]
    found = list(given_slots.values())
    assert allowed(found, capacity, demands, quotas)
    first = admitted(capacity, demands, quotas)
    assert {i for i, slots in enumerate(found) if slots} == first
    all_there_are = itertools.product(*(range(int(i in first), d.workers + 1) for i, d in enumerate(demands)))
    best = max(
        (fairness([*other], demands), sum(other))
        for other in all_there_are
        if allowed(other, capacity, demands, quotas)
    )
    assert (fairness(found, demands), sum(found)) == best


@given(capacities, demands_of(8, 50), quotas_of)
def test_no_slot_idles_that_somebody_may_use(capacity, demands, quotas):
    found = list(shares(capacity, demands, quotas).values())
    assert allowed(found, capacity, demands, quotas)
    for i in range(len(demands)):
        more = [slots + (j == i) for j, slots in enumerate(found)]
        assert not allowed(more, capacity, demands, quotas)


@given(st.integers(0, 30), demands_of(8, 50), quotas_of)
def test_more_room_takes_nothing_from_the_whole(capacity, demands, quotas):
    less, more = (sum(shares(n, demands, quotas).values()) for n in (capacity, capacity + 1))
    assert less <= more <= less + 1


def demand(name: str, workers: int, priority: int = 10, owner: str = "ada") -> Demand:
    return Demand(id=name, owner=owner, priority=priority, workers=workers)


@pytest.mark.parametrize(
    ("capacity", "demands", "quotas", "expected"),
    [
        (None, [demand("a", 3), demand("b", 70000)], {}, {"a": 3, "b": 70000}),
        (8, [demand("a", 2), demand("b", 9), demand("c", 9)], {}, {"a": 2, "b": 3, "c": 3}),
        (7, [demand("a", 9), demand("b", 9)], {}, {"a": 4, "b": 3}),  # the older one has the odd slot
        (12, [demand("a", 99, 10), demand("b", 99, 20)], {}, {"a": 4, "b": 8}),
        (2, [demand("a", 1, 10), demand("b", 1, 10), demand("c", 4, 90)], {}, {"a": 1, "b": 0, "c": 1}),
        (9, [demand("a", 9), demand("b", 9, owner="bob")], {"ada": 2}, {"a": 2, "b": 7}),
        (9, [demand("a", 9), demand("b", 9, owner="bob")], {"ada": 5, "*": 3}, {"a": 5, "b": 3}),
        (9, [demand("a", 9), demand("b", 9, owner="bob")], {"*": 0}, {"a": 0, "b": 0}),
        (0, [demand("a", 1)], {}, {"a": 0}),
        (4, [], {}, {}),
    ],
)
def test_shares(capacity, demands, quotas, expected):
    assert shares(capacity, demands, quotas) == expected
