"""What `width_study.py` found, as tables and a picture.

An arm is compared with `uniform` seed by seed: the mean difference of their test errors, a 95% bootstrap interval of
it alone, and the exact sign-flip test (Fisher 1935) corrected by Holm (1979) over the arms of a table.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window, no display

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from scipy import stats

BASE = "uniform"
LEVEL = 0.05
RESAMPLES = 4000


@dataclass(frozen=True, kw_only=True)
class Run:
    """One arm with one search seed. `chosen` is the selection error for which it was chosen, `gap` what becoming whole
    cost in it; `flops` are those of the found network's forward pass, `spent` and `budget` those that the search
    executed and might have."""

    setting: str
    bound: int
    seed: int
    arm: str
    widths: tuple[int, ...]
    lr: float
    chosen: float
    gap: float
    trials: int
    spent: float
    budget: float
    test_error: float
    flops: float


@dataclass(frozen=True, kw_only=True)
class Split:
    """A network that fills a bound, trained with the best of the rates."""

    setting: str
    bound: int
    widths: tuple[int, int]
    test_error: float


@dataclass(frozen=True, kw_only=True)
class Versus:
    """An arm's test error less that of `uniform`: mean, 95% interval, p after Holm."""

    mean: float
    low: float
    high: float
    p: float

    @property
    def words(self) -> str:
        if self.p >= LEVEL:
            return "not shown"
        return "better" if self.mean < 0 else "worse"


# -- statistics --------------------------------------------------------------------------------------------------------


def sign_flip(differences: np.ndarray) -> float:
    """Two-sided p of no difference: the share of sign patterns whose mean is as far from 0. All patterns up to 2^16, as
    many random ones beyond."""
    n = len(differences)
    if n <= 16:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    else:
        signs = np.random.default_rng(0).choice((1.0, -1.0), (2**16, n))
        signs[0] = 1.0
    means = np.abs(signs @ differences)
    return float((means >= abs(differences.sum()) - 1e-12).mean())


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p by name."""
    adjusted, running = {}, 0.0
    for rank, name in enumerate(sorted(ps, key=lambda name: ps[name])):
        running = max(running, min(1.0, (len(ps) - rank) * ps[name]))
        adjusted[name] = running
    return adjusted


def against_uniform(runs: Sequence[Run]) -> dict[str, Versus]:
    """Every other arm of one table against `uniform`."""
    errors = {arm: np.array([r.test_error for r in own]) for arm, own in by_arm(runs).items()}
    return judged({arm: values - errors[BASE] for arm, values in errors.items() if arm != BASE})


def over_all(runs: Sequence[Run]) -> dict[str, Versus]:
    """Every other arm against `uniform` over all tables: a seed's difference is the mean log ratio of its errors."""
    tables = [by_arm(own) for own in by_table(runs).values()]
    logs = {arm: np.mean([[np.log(r.test_error) for r in t[arm]] for t in tables], axis=0) for arm in tables[0]}
    return judged({arm: values - logs[BASE] for arm, values in logs.items() if arm != BASE})


def judged(differences: Mapping[str, np.ndarray]) -> dict[str, Versus]:
    """The seeds' differences from one arm, by the name of the other."""
    adjusted = holm({arm: sign_flip(d) for arm, d in differences.items()})
    found = {}
    for arm, d in differences.items():
        picks = np.random.default_rng(0).integers(len(d), size=(RESAMPLES, len(d)))
        low, high = np.quantile(d[picks].mean(1), (0.025, 0.975))
        found[arm] = Versus(mean=float(d.mean()), low=float(low), high=float(high), p=adjusted[arm])
    return found


def ranked(scores: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float, float]]:
    """Kendall's tau-b between each kind of score and the retrained ones, with a 95% bootstrap interval over points."""
    truth = np.asarray(scores["retrained"])
    rng, found = np.random.default_rng(0), {}
    for name, values in scores.items():
        if name == "retrained":
            continue
        own = np.asarray(values)
        picks = [rng.integers(len(own), size=len(own)) for _ in range(500)]
        taus = [float(stats.kendalltau(own[pick], truth[pick]).statistic) for pick in picks]
        low, high = np.nanquantile(taus, (0.025, 0.975))
        found[name] = (float(stats.kendalltau(own, truth).statistic), float(low), float(high))
    return found


def by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs in the order of their seeds, arm by arm."""
    return {
        arm: sorted((r for r in runs if r.arm == arm), key=lambda r: r.seed)
        for arm in dict.fromkeys(r.arm for r in runs)
    }


def by_table(runs: Sequence[Run]) -> dict[tuple[str, int], list[Run]]:
    """Runs of each task and bound."""
    keys = dict.fromkeys((run.setting, run.bound) for run in runs)
    return {key: [run for run in runs if (run.setting, run.bound) == key] for key in keys}


# -- Markdown ----------------------------------------------------------------------------------------------------------


def as_markdown(
    runs: Sequence[Run], splits: Sequence[Split], scores: Mapping[str, Mapping[str, Sequence[float]]]
) -> str:
    """All tables: one for each task and bound, the arms over all of them, what there is to gain, how scores rank."""
    parts = [_table(name, bound, own) for (name, bound), own in by_table(runs).items()]
    return "\n".join([*parts, _overall(runs), _along(splits), _ranking(scores)])


def _table(name: str, bound: int, runs: Sequence[Run]) -> str:
    versus, arms = against_uniform(runs), by_arm(runs)
    budget, seeds = runs[0].budget / 1e9, len(arms[BASE])
    lines = [
        f"**{name}, at most {bound:,} FLOPs a forward pass** ({seeds} seeds; each arm may execute {budget:.1f} GFLOP)",
        "",
        "| arm | widths | FLOPs | chosen at % | test error % | gap % | trials | GFLOP | against uniform, % | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, own in arms.items():
        widths = " ".join(f"{np.mean(n):.1f}" for n in zip(*(r.widths for r in own), strict=True))
        error, gap = (_spread([getattr(r, what) for r in own]) for what in ("test_error", "gap"))
        flops, trials, spent = (
            float(np.mean([getattr(r, what) for r in own])) for what in ("flops", "trials", "spent")
        )
        v = versus.get(arm)
        chosen = 100 * np.mean([r.chosen for r in own])
        against = f"{100 * v.mean:+.2f} [{100 * v.low:+.2f}, {100 * v.high:+.2f}] | {v.words}" if v else "|"
        lines.append(
            f"| {arm} | {widths} | {flops:,.0f} | {chosen:.2f} | {error} | {gap} | {trials:.0f} | {spent / 1e9:.1f} "
            f"| {against} |"
        )
    return "\n".join([*lines, ""])


def _spread(values: Sequence[float]) -> str:
    return f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1) if len(values) > 1 else 0.0:.2f}"


def _overall(runs: Sequence[Run]) -> str:
    tables = [against_uniform(own) for own in by_table(runs).values()]
    lines = [
        f"**Over all {len(tables)} tables**: the geometric mean of test error over that of uniform, and single tables",
        "",
        "| arm | error / uniform's | | p | better in | worse in | not shown in |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, v in over_all(runs).items():
        counts = [sum(table[arm].words == word for table in tables) for word in ("better", "worse", "not shown")]
        ratio, low, high = (float(np.exp(value)) for value in (v.mean, v.low, v.high))
        lines.append(
            f"| {arm} | {ratio:.2f} [{low:.2f}, {high:.2f}] | {v.words} | {v.p:.3f} | {' | '.join(map(str, counts))} |"
        )
    return "\n".join([*lines, ""])


def _along(splits: Sequence[Split]) -> str:
    lines = [
        "**What there is to gain: test error, %, of networks that fill the bound, layer by layer** (best of the rates)",
        "",
        "| task | FLOPs | best | nearest to uniform | all, from a wide second layer to a wide first one |",
        "|---|---|---|---|---|",
    ]
    for name, bound in dict.fromkeys((split.setting, split.bound) for split in splits):
        own = [split for split in splits if (split.setting, split.bound) == (name, bound)]
        best = min(own, key=lambda split: split.test_error)
        even = min(own, key=lambda split: abs(np.log(split.widths[0] / split.widths[1])))
        lines.append(f"| {name} | {bound:,} | {_split(best)} | {_split(even)} | {', '.join(map(_split, own))} |")
    return "\n".join([*lines, ""])


def _split(split: Split) -> str:
    return f"{split.widths[0]}-{split.widths[1]}: {100 * split.test_error:.2f}"


def _ranking(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    lines = [
        "**How scores rank random networks: Kendall's tau with their retrained test errors** (95% intervals)",
        "",
        "| task | points | score | tau |",
        "|---|---|---|---|",
    ]
    for name, found in scores.items():
        for score, (tau, low, high) in ranked(found).items():
            lines.append(f"| {name} | {len(found['retrained'])} | {score} | {tau:.2f} [{low:.2f}, {high:.2f}] |")
    return "\n".join([*lines, ""])


# -- the picture -------------------------------------------------------------------------------------------------------


def draw(runs: Sequence[Run], path: Path) -> Path:
    """Test error above, end widths below, a column for each bound and two rows for each task."""
    tables, tasks = by_table(runs), list(dict.fromkeys(run.setting for run in runs))
    columns = max(sum(name == task for name, _ in tables) for task in tasks)
    figure = Figure(figsize=(1.6 + 3.6 * columns, 6.4 * len(tasks)), layout="constrained")
    grid = figure.subplots(2 * len(tasks), columns, squeeze=False, sharey=True)
    for t, task in enumerate(tasks):
        bounds = [bound for name, bound in tables if name == task]
        for column, bound in enumerate(bounds):
            own = tables[task, bound]
            _errors(grid[2 * t, column], own, f"{task}, {bound:,} FLOPs")
            _widths(grid[2 * t + 1, column], own, legend=column == 0)
    figure.savefig(path, dpi=110)
    return path


def _errors(axes: Axes, runs: Sequence[Run], title: str) -> None:
    arms, versus = by_arm(runs), against_uniform(runs)
    colours = {"better": "tab:green", "worse": "tab:red", "not shown": "0.35"}
    for y, (arm, own) in enumerate(arms.items()):
        errors = 100 * np.array([run.test_error for run in own])
        colour = colours[versus[arm].words] if arm in versus else "tab:blue"
        axes.plot(errors, np.full(len(errors), y), ".", color=colour, alpha=0.35, ms=4)
        reach = 1.96 * errors.std(ddof=1) / len(errors) ** 0.5 if len(errors) > 1 else 0.0
        axes.errorbar(errors.mean(), y, xerr=reach, fmt="o", color=colour, ms=6, capsize=3)
    axes.axvline(100 * float(np.mean([run.test_error for run in arms[BASE]])), color="tab:blue", lw=0.8, ls=":")
    axes.set(title=title, xlabel="test error, % (mean, 95%; green/red: better/worse than uniform)", xscale="log")
    axes.xaxis.label.set_fontsize(7)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="both", labelsize=7)
    _names(axes, list(arms))


def _widths(axes: Axes, runs: Sequence[Run], *, legend: bool) -> None:
    arms = by_arm(runs)
    for y, own in enumerate(arms.values()):
        for layer, (colour, dy) in enumerate((("tab:purple", -0.16), ("tab:orange", 0.16))):
            sizes = np.array([run.widths[layer] for run in own])
            label = f"layer {layer + 1}" if y == 0 else None
            axes.plot([sizes.min(), sizes.max()], [y + dy] * 2, color=colour, lw=1.5, alpha=0.5)
            axes.plot(sizes.mean(), y + dy, "o", color=colour, ms=5, label=label)
    axes.set(xlabel="units (mean, and range over seeds)", xscale="log", xlim=(1.8, 72))
    axes.set_xticks([2, 4, 8, 16, 32, 64], ["2", "4", "8", "16", "32", "64"])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.label.set_fontsize(7)
    axes.tick_params(axis="x", labelsize=7)
    if legend:
        axes.legend(fontsize=7)
    _names(axes, list(arms))


def _names(axes: Axes, arms: Sequence[str]) -> None:
    axes.set_yticks(range(len(arms)), list(arms), fontsize=8)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.grid(alpha=0.3, which="major")
