"""How rows are dealt to the four splits: in the given fractions, in each class as overall.

    >>> parts = deal(np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]), DEFAULT_FRACTIONS, seed=0)
    >>> {name: len(rows) for name, rows in parts.items()}
    {'train': 4, 'outer': 2, 'selection': 2, 'test': 2}

The rows are shuffled, sorted by class, and dealt one by one to the split that lags furthest behind its fraction, so
that no split is off by more than a row or two, neither in all nor in a class. The first row of each class goes to
train.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

DEFAULT_FRACTIONS = {"train": 0.4, "outer": 0.2, "selection": 0.2, "test": 0.2}


def deal(groups: np.ndarray, fractions: Mapping[str, float], seed: int) -> dict[str, np.ndarray]:
    """Row numbers of each split, in shuffled order; `groups` holds each row's class (equal numbers: no classes).

    Every row is in exactly one split; a split may stay empty where there are too few rows for its fraction.
    """
    # The legacy generator's stream is frozen for good: a later numpy must not move rows from train to test.
    order = np.random.RandomState(seed).permutation(len(groups))
    order = order[np.argsort(groups[order], kind="stable")]
    starts = np.concatenate([[True], np.diff(groups[order]) != 0])
    names = list(fractions)
    shares = [fractions[name] for name in names]
    first = names.index("train")
    counts = [0] * len(names)
    places = np.empty(len(groups), np.int64)
    for i in range(len(groups)):
        lags = [share * (i + 1) - count for share, count in zip(shares, counts, strict=True)]
        place = first if starts[i] else lags.index(max(lags))
        places[i] = place
        counts[place] += 1
    return {name: order[places == place] for place, name in enumerate(names)}
