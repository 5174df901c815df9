"""Descent on noisy values by ask and tell, on losses whose best sizes are known.

Legend of shape suffixes: P points, Z sizes.
"""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from search_spaces import Invalid
from trials.capacity.descent import CapacityDescent

BEST = np.array([20.0, 50.0])


def bowl(sizes_PZ: np.ndarray) -> np.ndarray:
    return np.asarray((np.log(sizes_PZ / BEST) ** 2).sum(1))


def descent_of(**options: Any) -> CapacityDescent:
    return CapacityDescent(**{"low": [4, 4], "high": [128, 128], "pairs": 6, **options})


def run(
    descent: CapacityDescent, batches: int, noise: float = 0.0, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    rng, told = np.random.default_rng(seed), []
    for _ in range(batches):
        sizes_PZ = descent.ask()
        values_P = bowl(sizes_PZ) + noise * rng.standard_normal(len(sizes_PZ))
        descent.tell(values_P)
        told.append((sizes_PZ, values_P))
    return told


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_mean_comes_to_the_best_sizes(optimizer: str) -> None:
    descent = descent_of(start=[100, 6], optimizer=optimizer, lr={"adam": 0.1, "sgd": 0.2}[optimizer])
    run(descent, 60, noise=0.05)
    np.testing.assert_allclose(np.log(descent.mean / BEST), 0.0, atol=0.2)


@pytest.mark.slow
def test_what_is_recommended_is_better_than_the_luckiest_sample() -> None:
    """The noise is that of the loss at sizes 1.5 times the best ones; over ten seeds."""
    regret: dict[str, list[float]] = {"process": [], "luckiest": []}
    for seed in range(10):
        descent = descent_of(seed=seed)
        told = run(descent, 10, noise=0.3, seed=seed)
        sizes, values = (np.concatenate(part) for part in zip(*told, strict=True))
        found = descent.recommend()
        assert any((found == z).all() for z in sizes)
        regret["process"].append(float(bowl(found[None])[0]))
        regret["luckiest"].append(float(bowl(sizes[values.argmin()][None])[0]))
    assert np.mean(regret["process"]) < 0.7 * np.mean(regret["luckiest"])
    assert np.mean(regret["process"]) < 0.3 / 3  # a third of the noise of one value


def test_a_replay_asks_the_same() -> None:
    first = descent_of(seed=4)
    told = run(first, 5, noise=0.1)
    again = descent_of(seed=4)
    for sizes_PZ, values_P in told:
        np.testing.assert_array_equal(again.ask(), sizes_PZ)
        again.tell(values_P)
    np.testing.assert_array_equal(again.ask(), first.ask())
    np.testing.assert_array_equal(again.recommend(), first.recommend())
    assert not np.array_equal(descent_of(seed=5).ask(), told[0][0])


def test_batches_are_told_in_the_order_they_were_asked_for() -> None:
    """Two batches open at a time, as where generation g knows those up to g - 2."""
    descent = descent_of(start=[100, 6])
    open_ = [descent.ask(), descent.ask()]
    assert not np.array_equal(*open_)
    for _ in range(60):
        descent.tell(bowl(open_.pop(0)))
        open_.append(descent.ask())
    np.testing.assert_allclose(np.log(descent.mean / BEST), 0.0, atol=0.25)


def test_pairs_lie_on_either_side_of_the_mean() -> None:
    descent = descent_of(rounding="none", sigma=0.1, start=[20, 30])
    sizes_PZ = descent.ask()
    np.testing.assert_allclose(sizes_PZ[:6] * sizes_PZ[6:], [[400, 900]] * 6)


def test_only_order_counts_and_failures_are_worst() -> None:
    """A monotone map of the values moves the mean alike; NaN does as the worst value would, and is not recommended."""
    plain, mapped, failed, worst = (descent_of(seed=1) for _ in range(4))
    values = bowl(plain.ask())
    for descent in (mapped, failed, worst):
        descent.ask()
    plain.tell(values)
    mapped.tell(np.exp(values))
    np.testing.assert_array_equal(plain.mean, mapped.mean)
    lost, high = values.copy(), values.copy()
    lost[2], high[2] = math.nan, 1e9
    failed.tell(lost)
    worst.tell(high)
    np.testing.assert_array_equal(failed.mean, worst.mean)
    assert np.isfinite(failed.recommend()).all()


def test_a_batch_that_failed_altogether_moves_nothing() -> None:
    descent = descent_of()
    before = descent.mean
    descent.ask()
    descent.tell([math.nan] * 12)
    np.testing.assert_allclose(descent.mean, before, rtol=1e-12)
    np.testing.assert_array_equal(descent.recommend(), np.floor(before + 0.5))


def cost(sizes_Z: np.ndarray) -> float:
    """A network of 64 inputs and 10 outputs, over a bound of 8,000 FLOPs."""
    a, b = sizes_Z
    return float(2 * (64 * a + a * b + b * 10) / 8000 - 1)


def test_every_point_meets_the_bound_whole() -> None:
    descent = descent_of(excess=cost, sigma=0.6, start=[128, 128])
    assert cost(descent.mean) == pytest.approx(0.0, abs=1e-9)
    assert descent.mean[0] == pytest.approx(descent.mean[1])
    for _ in range(20):
        sizes_PZ = descent.ask()
        assert (sizes_PZ == sizes_PZ.round()).all()
        assert ((sizes_PZ >= 4) & (sizes_PZ <= 128)).all()
        assert max(map(cost, sizes_PZ)) <= 0
        descent.tell(-sizes_PZ.sum(1))
        assert cost(descent.mean) <= 1e-12
    assert cost(descent.recommend()) <= 0


def test_points_are_scaled_back_along_the_diagonal() -> None:
    free, bound = descent_of(rounding="none", start=[36, 36]), descent_of(rounding="none", start=[36, 36], excess=cost)
    asked, kept = free.ask(), bound.ask()
    over = np.array([cost(z) > 0 for z in asked])
    assert over.any()
    assert not over.all()
    np.testing.assert_array_equal(asked[~over], kept[~over])
    np.testing.assert_allclose(kept[over, 0] / kept[over, 1], asked[over, 0] / asked[over, 1])
    np.testing.assert_allclose([cost(z) for z in kept[over]], 0.0, atol=1e-9)


@pytest.mark.slow
def test_the_best_on_the_bound_is_found() -> None:
    """min -(log a + 3 log b) subject to a + b <= 80: a = 20, b = 60."""
    descent = descent_of(excess=lambda z: z.sum() / 80 - 1, start=[64, 8], pairs=8)
    for _ in range(60):
        sizes_PZ = descent.ask()
        descent.tell(-(np.log(sizes_PZ) @ [1.0, 3.0]))
    np.testing.assert_allclose(np.log(descent.mean / [20, 60]), 0.0, atol=0.15)
    found = descent.recommend()
    assert found.sum() <= 80
    assert np.log(found) @ [1, 3] > np.log([20, 60]) @ [1, 3] - 0.02


def test_faults_are_told_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        CapacityDescent([4, 0.5], [128, 2], sigma=-1, lr=0.0, pairs=0, optimizer="adamm", start=[1.0])
    assert len(caught.value.faults) == 6
    assert "Did you mean 'adam'" in str(caught.value)
    with pytest.raises(Invalid, match="raise the bound"):
        descent_of(excess=lambda z: 1.0)
    with pytest.raises(Invalid, match="a whole size must lie between"):
        CapacityDescent([4.2], [4.8])
    descent = descent_of()
    with pytest.raises(Invalid, match="ask first"):
        descent.tell([])
    descent.ask()
    with pytest.raises(Invalid, match="must have 12 values"):
        descent.tell([1.0])


def test_it_loads_no_torch() -> None:
    script = "import sys, trials.capacity, trials.capacity.slopes\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
