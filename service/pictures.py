"""Pictures of a comparison: how the best score fell with the compute spent, and where the widths went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")  # no window, no display

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from service.report import Report
from trials.query import query
from trials.store import Store

if TYPE_CHECKING:
    import pandas as pd

_MEASURES = {"width": "units (real)", "stride": "stride in cells (real)", "depth": "blocks (real)"}
BY_RATIO = ("width", "lr", "weight_decay")
MOST_LINES = 60  # trials drawn beside the best ones

_HISTORY = """SELECT s.arm, s.repeat, t.number, t.executed_flops, t.value FROM trials t
JOIN searches s USING (search_id) WHERE s.comparison = '{comparison}' AND s.role = 'search'
ORDER BY s.arm, s.repeat, t.number"""
_TRAJECTORIES = """SELECT s.arm, s.repeat, r.trial_id, r.step, {columns} FROM reports r
JOIN searches s USING (search_id) WHERE s.comparison = '{comparison}' AND s.role = 'search' AND ({there})
ORDER BY s.arm, r.trial_id, r.step"""


def history(store: Store, report: Report, path: Path, mode: str = "min") -> Path:
    """Best score so far against executed FLOPs: the mean over repeats, and the range between them."""
    table = query(store, _HISTORY.format(comparison=report.comparison.replace("'", "''"))).to_pandas()
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for arm, rows in table.groupby("arm"):
        curves = []
        for _, one in rows.groupby("repeat"):
            values = one["value"].fillna(np.inf if mode == "min" else -np.inf).to_numpy()
            best = np.minimum.accumulate(values) if mode == "min" else np.maximum.accumulate(values)
            curves.append((np.cumsum(one["executed_flops"].fillna(0).to_numpy()) / 1e9, best))
        grid = np.linspace(max(c[0][0] for c in curves), min(c[0][-1] for c in curves), 200)
        on_grid = np.array([best[np.searchsorted(spent, grid, side="right") - 1] for spent, best in curves])
        (line,) = axes.plot(grid, on_grid.mean(0), label=str(arm))
        axes.fill_between(grid, on_grid.min(0), on_grid.max(0), color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set(xlabel="executed GFLOP", ylabel="best selection score so far", title="What the compute bought")
    axes.set_yscale("log")
    _plain_log(axes)
    axes.legend(title="arm (mean and range over repeats)", fontsize=8, title_fontsize=8)
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=120)
    return path


def _plain_log(axes: Axes) -> None:
    """1, 2, 5, 10... in plain figures."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def trajectories(store: Store, report: Report, path: Path) -> Path | None:
    """Each moved size against the step, a panel a size and a line a trial; None where nothing moved."""
    moving = [arm for arm in report.moved if any(r["start"] != r["end"] for r in report.moved[arm])]
    if not moving:
        return None
    trials = [trial for arm in moving for trial in report.moved[arm]]
    gates = [gate for g, gate in enumerate(report.gates) if any(t["start"][g] != t["end"][g] for t in trials)]
    columns = [f'r."arch.{gate}"' for gate in gates]
    sql = _TRAJECTORIES.format(
        comparison=report.comparison.replace("'", "''"),
        columns=", ".join(f'{c} AS "{gate}"' for c, gate in zip(columns, gates, strict=True)),
        there=" OR ".join(f"{c} IS NOT NULL" for c in columns),
    )
    table: pa.Table = query(store, sql)
    frame = table.to_pandas()
    frame = frame[frame["arm"].isin(moving)]
    frame["number"] = frame["trial_id"].str.rpartition("-t")[2].astype(int)
    figure = Figure(figsize=(4.2 * len(gates), 4.2 * len(moving)), layout="constrained")
    grid = figure.subplots(len(moving), len(gates), squeeze=False)
    for row, arm in zip(grid, moving, strict=True):
        for axes, gate in zip(row, gates, strict=True):
            _draw_trials(axes, report, frame[frame["arm"] == arm], arm, gate)
    for kind in {_kind(gate) for gate in gates}:
        panels = [axes for row in grid for axes, gate in zip(row, gates, strict=True) if _kind(gate) == kind]
        _alike([axes for axes in panels if axes.lines])
    figure.suptitle("the first trials of each search seed (a colour each); thick: its best trial", fontsize=9)
    figure.savefig(path, dpi=120)
    return path


def _draw_trials(axes: Axes, report: Report, own: pd.DataFrame, arm: str, gate: str) -> None:
    """One size or rate of an arm's trials: a width, learning rate or weight decay by ratio."""
    g, trials = report.gates.index(gate), [r for r in report.moved[arm] if r["value"] is not None]
    per_repeat = -(-MOST_LINES // (1 + max(r["repeat"] for r in trials)))
    best = {b["repeat"]: b["number"] for b in report.bests if b["arm"] == arm}
    for trial in trials:
        is_best = best[trial["repeat"]] == trial["number"]
        if not is_best and trial["number"] >= per_repeat:
            continue
        one = own[(own["repeat"] == trial["repeat"]) & (own["number"] == trial["number"])]
        if one[gate].isna().all():
            continue
        style: dict[str, Any] = {"lw": 2.2, "zorder": 3} if is_best else {"lw": 0.8, "alpha": 0.5}
        sizes = [trial["start"][g], *one[gate]]
        axes.plot([0, *one["step"]], sizes, color=f"C{trial['repeat']}", **style)
    axes.set(xlabel="step", title=f"{arm}: {gate}", ylabel=_MEASURES.get(_kind(gate), gate))
    if not axes.lines:
        axes.set_visible(False)  # an arm that has no such number of its own
    if _kind(gate) in BY_RATIO and all(np.min(line.get_ydata()) > 0 for line in axes.lines):
        axes.set_yscale("log")
        _plain_log(axes)
    axes.grid(alpha=0.3)


def _kind(gate: str) -> str:
    return gate.split(".")[0]


def _alike(panels: Sequence[Axes]) -> None:
    """The same range in all panels, so that they can be compared."""
    low, high = (pick(axes.get_ylim()[end] for axes in panels) for end, pick in enumerate((min, max)))
    for axes in panels:
        axes.set_ylim(low, high)
