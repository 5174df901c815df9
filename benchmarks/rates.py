"""From the times of single trials to rates, and from the errors of two systems to whether they did the same work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.rivals import Trained


def steady(trained: Sequence[Trained]) -> float:
    """Trials per second while every worker is at work: from the last worker's first beginning to the first worker's
    last end. A trial counts by the share of its own time that lies in there, so a bundle's edge cuts no rate."""
    by_worker: dict[str, list[Trained]] = {}
    for trial in trained:
        by_worker.setdefault(trial.worker, []).append(trial)
    low = max(min(t.started for t in trials) for trials in by_worker.values())
    high = min(max(t.ended for t in trials) for trials in by_worker.values())
    if high <= low:
        return whole(trained)
    inside = sum(max(0.0, min(t.ended, high) - max(t.started, low)) / (t.ended - t.started) for t in trained)
    return inside / (high - low)


def whole(trained: Sequence[Trained]) -> float:
    """Trials per second from the first beginning to the last end."""
    return len(trained) / (max(t.ended for t in trained) - min(t.started for t in trained))


def agreement(ours: Sequence[Trained], theirs: Sequence[Trained]) -> dict[str, Any]:
    """How alike the selection errors of two systems are over the trials that both ran.

    Rounding differs between libraries and long trainings are chaotic, so single trials may part; the median must not.
    """
    a, b = ({t.number: t.val_error for t in trials} for trials in (ours, theirs))
    common = sorted(a.keys() & b.keys())
    pairs = np.array([(a[n], b[n]) for n in common], dtype=np.float64).reshape(-1, 2)
    finite = np.isfinite(pairs)
    both = pairs[finite.all(1)]
    return {
        "trials": len(common),
        "not_finite": [int(n) for n in (~finite).sum(0)],
        "median_abs_difference": float(np.median(np.abs(both[:, 0] - both[:, 1]))) if len(both) else None,
        "equal_share": float((both[:, 0] == both[:, 1]).mean()) if len(both) else None,
        "rank_correlation": rank_correlation(both[:, 0], both[:, 1]),
    }


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's, with mean ranks for ties; None where it is undefined."""
    ranks = [_ranks(a), _ranks(b)]
    if len(a) < 2 or any(np.ptp(r) == 0 for r in ranks):
        return None
    return float(np.corrcoef(np.stack(ranks))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: np.ndarray = (ends - (counts - 1) / 2.0)[places]
    return means
