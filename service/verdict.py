"""What a comparison shows, in plain words: paired tests over search seeds, corrected for their number.

The unit of replication is a whole search, not a retraining: retrainings of one found network say how reproducible that
network is, only repeated searches say how good a method is. Arms share their search seeds, so they are compared in
pairs: Student's t on the differences, two-sided, Holm's correction (Holm 1979) over all pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from service.show import counted

LEVEL = 0.05
LEAST_REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two arms: mean difference a - b of their scores, its 95% interval, and Holm's adjusted p."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float

    @property
    def shown(self) -> bool:
        """Whether a difference is shown at the 5% level."""
        return self.p < LEVEL


def paired(scores: Mapping[str, Sequence[float]], noise: float = 0.0) -> list[Pair]:
    """All pairs of arms; `scores[arm]` has one number a repeat, in the order of repeats. Needs two repeats.

    `noise` is the standard error that a single score has already, from the few retrainings behind it: the spread of the
    differences is taken to be no less than it, since a handful of repeats may agree by luck.
    """
    raw = []
    for a, b in combinations(scores, 2):
        d = np.asarray(scores[a]) - np.asarray(scores[b])
        mean, spread = float(d.mean()), max(float(d.std(ddof=1)), 2**0.5 * noise) / len(d) ** 0.5
        if spread == 0.0:
            p = 1.0 if mean == 0.0 else 0.0
        else:
            p = float(2 * stats.t.sf(abs(mean) / spread, len(d) - 1))
        reach = float(stats.t.ppf(0.975, len(d) - 1)) * spread
        raw.append((p, Pair(a=a, b=b, difference=mean, low=mean - reach, high=mean + reach, p=p)))
    order = sorted(range(len(raw)), key=lambda i: raw[i][0])
    adjusted = [0.0] * len(raw)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(raw) - rank) * raw[i][0]))
        adjusted[i] = running
    return [
        Pair(a=pair.a, b=pair.b, difference=pair.difference, low=pair.low, high=pair.high, p=p)
        for (_, pair), p in zip(raw, adjusted, strict=True)
    ]


def in_words(scores: Mapping[str, Mapping[int, float]], what: str = "test error", noise: float = 0.0) -> str:
    """The verdict; smaller scores are better. `scores[arm]` has a score by the number of each repeat that came to one;
    arms without any are named, the others are compared on the repeats that all of them have."""
    whole = {arm: own for arm, own in scores.items() if own}
    absent = [arm for arm in scores if arm not in whole]
    ending = f" Not judged, for want of any score: {', '.join(absent)}." if absent else ""
    common = sorted(set.intersection(*map(set, whole.values()))) if whole else []
    repeats = len(common)
    if len(whole) < 2 or repeats < LEAST_REPEATS:
        needs = f"at least two arms and {LEAST_REPEATS} repeats (search seeds)"
        got = f"{len(whole)} of {len(scores)} arms with scores and {counted(repeats, 'repeat')} that they share"
        return f"No verdict: a comparison of methods needs {needs}, but got {got}.{ending}"
    return _judged({arm: [own[repeat] for repeat in common] for arm, own in whole.items()}, what, noise) + ending


def _judged(scores: Mapping[str, Sequence[float]], what: str, noise: float) -> str:
    pairs, repeats = paired(scores, noise), len(next(iter(scores.values())))
    shown = [pair for pair in pairs if pair.shown]
    basis = f"{repeats} search seeds each, paired t-tests with Holm's correction"
    if not shown:
        widest = max(max(abs(pair.low), abs(pair.high)) for pair in pairs)
        return (
            f"No difference shown in {what} between {', '.join(scores)} ({basis}; smallest p = "
            f"{min(pair.p for pair in pairs):.2f}). Differences up to {widest:.4f} cannot be ruled out."
        )
    lines = []
    for pair in shown:
        better, worse = (pair.a, pair.b) if pair.difference < 0 else (pair.b, pair.a)
        low, high = sorted((abs(pair.low), abs(pair.high)))
        lines.append(
            f"{better} beats {worse} in {what} by {abs(pair.difference):.4f} "
            f"(95% interval {low:.4f} to {high:.4f}, p = {pair.p:.3f})."
        )
    if len(shown) < len(pairs):
        lines.append("Between all other pairs no difference is shown.")
    return " ".join([*lines, f"({basis}.)"])
