"""What `local_search_stalls.py` found, as tables, words and a picture.

A run grew, stalled or shrank by the ratio of its real widths' geometric mean to that of its start: stalled is less than
a tenth either way. Intervals are 95% bootstrap intervals over seeds, of one arm or one difference alone; differences
are taken seed by seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window, no display

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

NONE, NOISE, WIDEST = "none", "noise", "widest"
STALLED = math.log(1.1)
RESAMPLES = 4000
IMMEDIATE = ("descent", "bilevel")  # they see the loss of now alone
COLUMNS = (
    "membership",
    "method",
    "outer lr",
    "widths",
    "of the bound %",
    "grew, stalled, shrank %",
    "last third x",
    "test error %",
    "less none's",
    "less noise's",
    "less widest's",
    "FLOPs / own",
    "/ widest's",
    "clipped %",
)
COLOURS = {"": "0.25", "band": "tab:blue", "interval": "tab:red", "interval gradmax": "tab:orange"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One seed of one arm at one outer rate. `ended` are its real widths, `path` their geometric mean on the way,
    `widths` the whole ones within the bound, of which they have `filled` that share;
    `chosen` is the selection error that rates are chosen by, `gap` what becoming whole cost in it; `plain` are the
    FLOPs of its training at the live sizes, `spent` those executed, hypergradients and padding included."""

    method: str
    membership: str
    lr: float
    seed: int
    start: tuple[float, ...]
    ended: tuple[float, ...]
    path: tuple[float, ...]
    widths: tuple[int, ...]
    filled: float
    chosen: float
    gap: float
    clipped: float
    ending: str
    plain: float
    spent: float
    test_error: float = math.nan

    @property
    def arm(self) -> tuple[str, str]:
        return self.membership, self.method

    @property
    def log_ratio(self) -> float:
        """The log of its widths' geometric mean over that of the start."""
        return float(np.mean(np.log(self.ended)) - np.mean(np.log(self.start)))

    @property
    def late(self) -> float:
        """By what factor that mean changed in the last third of the training."""
        return self.path[-1] / self.path[2 * len(self.path) // 3 - 1] if self.path else 1.0


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over seeds and its interval."""

    mean: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """Of a difference of errors."""
        return "better" if self.high < 0 else "worse" if self.low > 0 else "not told apart"


# -- statistics --------------------------------------------------------------------------------------------------------


def by_arm(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """Runs by membership and method, in the order of their seeds."""
    return {
        arm: sorted((r for r in runs if r.arm == arm), key=lambda r: (r.lr, r.seed))
        for arm in dict.fromkeys(r.arm for r in runs)
    }


def chosen(tried: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """Each arm's runs at the outer rate of the least mean selection error."""
    found = {}
    for arm, own in by_arm(tried).items():
        errors = {lr: np.mean([r.chosen for r in own if r.lr == lr]) for lr in dict.fromkeys(r.lr for r in own)}
        best = min(errors, key=lambda lr: errors[lr])
        found[arm] = [r for r in own if r.lr == best]
    return found


def mean_of(values: Sequence[float] | np.ndarray) -> Mean:
    own = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(0).integers(len(own), size=(RESAMPLES, len(own)))
    low, high = np.quantile(own[picks].mean(1), (0.025, 0.975))
    return Mean(mean=float(own.mean()), low=float(low), high=float(high))


def less(own: Sequence[Run], other: Sequence[Run]) -> Mean:
    """The test error of some runs less that of others, seed by seed."""
    return mean_of([a.test_error - b.test_error for a, b in zip(own, other, strict=True)])


def shares(own: Sequence[Run]) -> tuple[float, float, float]:
    """Which share of the runs grew, stalled, shrank."""
    logs = np.array([r.log_ratio for r in own])
    return float((logs >= STALLED).mean()), float((abs(logs) < STALLED).mean()), float((logs <= -STALLED).mean())


def verdicts(runs: Sequence[Run]) -> list[str]:
    """For each membership, in words: who grew, and what it was worth."""
    arms, said = by_arm(runs), []
    references = {name: arms["", name] for name in (NONE, NOISE, WIDEST)}
    for membership in dict.fromkeys(m for m, _ in arms if m):
        own = {method: found for (m, method), found in arms.items() if m == membership}
        grew = {method: shares(found)[0] for method, found in own.items()}
        counts = {
            name: [less(found, other).words for found in own.values()].count("better")
            for name, other in references.items()
        }
        short = [less(found, references[WIDEST]).words for found in own.values()].count("worse")
        stalls = all(grew[method] <= 0.5 for method in IMMEDIATE)
        said.append(
            f"{membership}: {sum(share > 0.5 for share in grew.values())} of {len(own)} methods grew in most runs. "
            f"Retrained, {counts[NONE]} are better than the start, {counts[NOISE]} better than noise; "
            f"{short} are worse than the widest, {counts[WIDEST]} better. That search on the loss of now stalls "
            f"{'holds' if stalls else 'does not hold'}: of `descent` {100 * grew['descent']:.0f}% of the runs grew, of "
            f"`bilevel` {100 * grew['bilevel']:.0f}%."
        )
    return said


# -- Markdown ----------------------------------------------------------------------------------------------------------


def as_markdown(runs: Sequence[Run], tried: Sequence[Run]) -> str:
    """What each arm came to at its best outer rate, where all rates led, and the verdicts."""
    return "\n".join([*_table(runs), "", *_rates(tried), "", *(f"- {words}" for words in verdicts(runs))])


def _table(runs: Sequence[Run]) -> list[str]:
    arms = by_arm(runs)
    whole = float(np.mean([r.spent for r in arms["", WIDEST]]))
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    for (membership, method), own in arms.items():
        widths = ", ".join(
            f"{np.mean(n):.1f} ± {np.std(n, ddof=1):.1f}" for n in zip(*(r.widths for r in own), strict=True)
        )
        differences = ["" if method == name else _signed(less(own, arms["", name])) for name in (NONE, NOISE, WIDEST)]
        error = mean_of([r.test_error for r in own])
        cells = [
            membership or "-",
            method,
            f"{own[0].lr:g}" if own[0].lr else "-",
            widths,
            f"{100 * np.mean([r.filled for r in own]):.0f}",
            ", ".join(f"{100 * share:.0f}" for share in shares(own)),
            f"{math.exp(np.mean(np.log([r.late for r in own]))):.2f}" if membership else "-",
            f"{100 * error.mean:.1f} [{100 * error.low:.1f}, {100 * error.high:.1f}]",
            *differences,
            f"{np.mean([r.spent / r.plain for r in own]):.1f}",
            f"{np.mean([r.spent for r in own]) / whole:.1f}",
            f"{100 * np.mean([r.clipped for r in own]):.1f}" if membership else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _signed(difference: Mean) -> str:
    return f"{100 * difference.mean:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _rates(tried: Sequence[Run]) -> list[str]:
    moving = [r for r in tried if r.lr]
    rates = sorted({r.lr for r in moving})
    lines = [
        "Times the start's width (geometric mean over layers and seeds), share that grew, mean selection error:",
        "",
        f"| membership | method | {' | '.join(f'outer lr {lr:g}' for lr in rates)} |",
        f"|---|---|{'---|' * len(rates)}",
    ]
    for (membership, method), own in by_arm(moving).items():
        cells = []
        for lr in rates:
            at = [r for r in own if r.lr == lr]
            times, errors = math.exp(np.mean([r.log_ratio for r in at])) if at else 0.0, [r.chosen for r in at]
            cells.append(f"{times:.1f}, {100 * shares(at)[0]:.0f}%, {100 * np.mean(errors):.1f}%" if at else "")
        lines.append(f"| {' | '.join([membership or '-', method, *cells])} |")
    return lines


# -- the picture -------------------------------------------------------------------------------------------------------


def draw(runs: Sequence[Run], path: Path, title: str) -> None:
    """End widths left, retrained test errors right; a row a method, a colour a membership."""
    arms = by_arm(runs)
    methods = list(dict.fromkeys(method for _, method in arms))
    figure = Figure(figsize=(11.5, 7.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for (membership, method), own in arms.items():
        places = [m for m, other in arms if other == method]
        y = methods.index(method) + 0.25 * (places.index(membership) - (len(places) - 1) / 2)
        _marks(left, y, np.array([math.prod(r.widths) ** 0.5 for r in own]), membership, log=True)
        _marks(right, y, 100 * np.array([r.test_error for r in own]), membership)
    left.axvline(math.prod(arms["", NONE][0].widths) ** 0.5, color="0.25", lw=0.8, ls=":")
    left.set(xscale="log", xlabel="whole widths at the end, mean of both layers\n(geometric; dots: runs)")
    left.set_xticks([2, 4, 8, 16, 32, 64], ["2", "4", "8", "16", "32", "64"])
    right.set(xscale="log", xlabel="test error, retrained, %\n(dots: runs; large: mean, 95%)")
    right.set_xticks([3, 5, 10, 20, 40], ["3", "5", "10", "20", "40"])
    for name, style in ((NONE, ":"), (WIDEST, "--")):
        mean = float(np.mean([r.test_error for r in arms["", name]]))
        right.axvline(100 * mean, color="0.25", lw=0.8, ls=style)
    for axes in (left, right):
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_yticks(range(len(methods)), methods)
    left.set_ylim(len(methods) - 0.4, -0.6)
    handles = [left.plot([], [], "o", color=colour, label=name)[0] for name, colour in _told(arms).items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def _told(arms: Mapping[tuple[str, str], object]) -> dict[str, str]:
    return {name or "reference": COLOURS[name] for name in dict.fromkeys(membership for membership, _ in arms)}


def _marks(axes: Axes, y: float, values: np.ndarray, membership: str, *, log: bool = False) -> None:
    colour = COLOURS[membership]
    axes.plot(values, np.full(len(values), y), ".", color=colour, alpha=0.35, ms=5)
    if log:
        axes.plot(math.exp(np.log(values).mean()), y, "o", color=colour, ms=6)
        return
    found = mean_of(values)
    reach = [[found.mean - found.low], [found.high - found.mean]]
    axes.errorbar(found.mean, y, xerr=reach, fmt="o", color=colour, ms=6, capsize=3)
