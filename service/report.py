"""A comparison as a table, a verdict and two pictures, all read back from the store by SQL.

    >>> print(text(report_of(store, "digits-width-1a2b3c")))

Nothing here is computed from memory: the statement behind the table is `report.sql`, and `continua query` prints the
same table from it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from service.graphs import graphs_of
from service.summary import summary
from service.verdict import in_words
from trials.query import query
from trials.store import NotFound, Store
from trials.training import rate_of

_ARMS = """WITH s AS (SELECT search_id, arm, repeat, role FROM searches WHERE comparison = '{comparison}'),
  t AS (SELECT * FROM trials JOIN s USING (search_id)),
  arms AS (SELECT DISTINCT arm FROM s WHERE role = 'search'),
  cost AS (SELECT arm, count(*) AS trials, sum(flops) / 1e9 AS live_gflop, sum(executed_flops) / 1e9 AS executed_gflop,
    sum(device_seconds) AS device_s FROM t WHERE role = 'search' GROUP BY arm),
  best AS (SELECT arm, avg(value) AS selection FROM (SELECT arm, repeat, {best}(value) AS value FROM t
    WHERE role = 'search' GROUP BY arm, repeat) GROUP BY arm),
  seed AS (SELECT arm, repeat, avg({metric}) AS score, stddev_samp({metric}) AS seed_sd, avg(parameters) AS parameters
    FROM t WHERE role = 'retrain' GROUP BY arm, repeat),
  retrained AS (SELECT arm, avg(score) AS test, stddev_samp(score) AS search_sd, avg(seed_sd) AS seed_sd,
    avg(parameters) AS parameters FROM seed GROUP BY arm)
SELECT arm, coalesce(trials, 0) AS trials, coalesce(live_gflop, 0) AS live_gflop,
  coalesce(executed_gflop, 0) AS executed_gflop, coalesce(device_s, 0) AS device_s, selection, test, search_sd, seed_sd,
  parameters
FROM arms LEFT JOIN cost USING (arm) LEFT JOIN best USING (arm) LEFT JOIN retrained USING (arm)
ORDER BY test NULLS LAST, arm"""

_BESTS = """WITH s AS (SELECT search_id, arm, repeat, role FROM searches WHERE comparison = '{comparison}'),
  t AS (SELECT * FROM s LEFT JOIN trials USING (search_id)),
  best AS (SELECT arm, repeat, arg_{best}(number, value) AS number, {best}(value) AS selection,
    arg_{best}(asked, value) AS asked, arg_{best}(point, value) AS point, arg_{best}(rounded, value) AS rounded,
    any_value(search_id) AS search_id FROM t WHERE role = 'search' GROUP BY arm, repeat),
  seed AS (SELECT arm, repeat, avg({metric}) AS test, stddev_samp({metric}) AS seed_sd, avg(parameters) AS parameters,
    count(*) AS retrainings FROM t WHERE role = 'retrain' GROUP BY arm, repeat)
SELECT * FROM best LEFT JOIN seed USING (arm, repeat) ORDER BY arm, repeat"""

_MOVED = """WITH s AS (SELECT search_id, arm, repeat FROM searches
  WHERE comparison = '{comparison}' AND role = 'search')
SELECT arm, repeat, number, asked, point, rounded, value FROM trials JOIN s USING (search_id)
WHERE ending = 'complete' ORDER BY arm, repeat, number"""


SIZED = ("width", "stride", "depth")


@dataclass(frozen=True, kw_only=True)
class Report:
    """A comparison's result. `arms` has a row an arm, `bests` a row a search that has a best trial, `moved` the trials
    with moved sizes, `absent` why an arm that competes has no score in some repeats."""

    comparison: str
    sql: str
    arms: list[dict[str, Any]]
    bests: list[dict[str, Any]]
    moved: dict[str, list[dict[str, Any]]]
    gates: list[str]
    absent: dict[str, str]
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "comparison": self.comparison,
            "arms": self.arms,
            "bests": self.bests,
            "moved": self.moved,
            "absent": self.absent,
            "verdict": self.verdict,
            "sql": self.sql,
        }


def report_of(store: Store, comparison: str) -> Report:
    """Reads a comparison back. Raises NotFound when there is none of that name, or nothing in it is retrained yet."""
    metric, mode = _judged_by(store, comparison)
    names = {"comparison": comparison.replace("'", "''"), "metric": metric, "best": mode}
    sql = _ARMS.format(**names)
    arms, searches = _rows(query(store, sql)), _rows(query(store, _BESTS.format(**names)))
    bests, rates = [row for row in searches if row["number"] is not None], set[str]()
    for row in bests:
        row.update({key: json.loads(row[key]) for key in ("asked", "point", "rounded")})
        space = store.search(row["search_id"]).spec()["spec"]["space"]
        row["graphs"] = graphs_of(space, row["rounded"])
        rates |= {name for name, own in space.items() if own.get("moved_by") == "gradient" and rate_of(name)}
    known = {name for row in bests for name in row["rounded"] if name.split(".")[0] in SIZED} | rates
    gates = sorted(known, key=_by_kind)
    absent = _absent(store, searches)
    sign = 1.0 if mode == "min" else -1.0
    scores: dict[str, dict[int, float]] = {arm: {} for arm in absent}
    for row in searches:
        if row["test"] is not None:
            scores.setdefault(row["arm"], {})[row["repeat"]] = sign * row["test"]
    return Report(
        comparison=comparison,
        sql=" ".join(sql.split()),
        arms=arms,
        bests=bests,
        moved=_moved(_rows(query(store, _MOVED.format(**names))), gates),
        gates=gates,
        absent=absent,
        verdict=in_words(scores, what=metric.replace("_", " "), noise=_noise(bests)),
    )


def _judged_by(store: Store, comparison: str) -> tuple[str, str]:
    """The metric of the retrained networks, and the direction in which it is better."""
    found = _rows(
        query(store, "SELECT comparison, arm, repeat, search_id, role FROM searches WHERE comparison IS NOT NULL")
    )
    known = sorted({row["comparison"] for row in found})
    if comparison not in known:
        near = difflib.get_close_matches(comparison, known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise NotFound(f"comparison: no comparison {comparison!r} in {store.root}.{hint}")
    retrained = [r["search_id"] for r in found if r["comparison"] == comparison and r["role"] == "retrain"]
    if not retrained:
        searches = [{**row, "test": None} for row in found if row["comparison"] == comparison]
        reasons = "".join(f" {arm}: {why}." for arm, why in _absent(store, searches).items())
        raise NotFound(
            f"comparison: {comparison!r} has no retrained network yet; let at least one search end.{reasons}"
        )
    objective = store.search(retrained[0]).spec()["spec"]["objective"]
    return objective["metric"].replace("val_", "test_", 1), objective["mode"]


def _absent(store: Store, searches: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Of arms that compete, those with searches whose best was not retrained: in how many repeats, and why."""
    found: dict[str, str] = {}
    for arm in sorted({row["arm"] for row in searches}):
        own = [row for row in searches if row["arm"] == arm]
        lacking = [row for row in own if row["test"] is None]
        if not lacking or store.search(lacking[0]["search_id"]).spec().get("replay"):
            continue  # a control's best is not retrained
        end = summary(store.search(lacking[0]["search_id"]))
        found[arm] = (
            f"no score in {len(lacking)} of {len(own)} repeats: {end['why'] or 'its search is ' + end['state']}"
        )
    return found


def _noise(bests: Sequence[dict[str, Any]]) -> float:
    """The standard error that retraining leaves in one search's score, pooled over all of them."""
    variances = [row["seed_sd"] ** 2 / row["retrainings"] for row in bests if row["seed_sd"] is not None]
    return (sum(variances) / len(variances)) ** 0.5 if variances else 0.0


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _moved(rows: Sequence[dict[str, Any]], gates: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Of arms in which something moved: each trial's sizes at the start and at the end, beside the controls' trials."""
    plain = [
        {
            "arm": row["arm"],
            "repeat": row["repeat"],
            "number": row["number"],
            "start": [json.loads(row["asked"]).get(gate) for gate in gates],
            "end": [json.loads(row["point"]).get(gate) for gate in gates],
            "rounded": [json.loads(row["rounded"]).get(gate) for gate in gates],
            "value": row["value"],
        }
        for row in rows
    ]
    arms = {row["arm"] for row in plain if row["start"] != row["end"]}
    starts = {(row["repeat"], row["number"], tuple(row["start"])) for row in plain if row["arm"] in arms}
    found: dict[str, list[dict[str, Any]]] = {arm: [r for r in plain if r["arm"] == arm] for arm in sorted(arms)}
    for arm in sorted({row["arm"] for row in plain} - arms):
        own = [row for row in plain if row["arm"] == arm]
        if arms and own and all((r["repeat"], r["number"], tuple(r["start"])) in starts for r in own):
            found[arm] = own  # a control: the very trials of a gradient arm, unmoved
    return found


# -- in words --------------------------------------------------------------------------------------------------------


def text(report: Report) -> str:
    """The report for a terminal: the moved trials, the best networks, and last the table of arms and the verdict."""
    head = ("arm", "trials", "live GFLOP", "exec GFLOP", "device s", "selection", "test", "± searches", "± seeds")
    rows = [
        [
            row["arm"],
            str(row["trials"]),
            _number(row["live_gflop"], 1),
            _number(row["executed_gflop"], 1),
            _number(row["device_s"], 1),
            _number(row["selection"], 4),
            _number(row["test"], 4),
            _number(row["search_sd"], 4),
            _number(row["seed_sd"], 4),
            _number(row["parameters"], 0),
        ]
        for row in report.arms
    ]
    arms = _table([*head, "parameters"], rows)
    bests = [
        [
            row["arm"],
            str(row["repeat"]),
            str(row["number"]),
            _sizes({**row["rounded"], **row["asked"]}, report.gates),
            _sizes({**row["rounded"], **row["point"]}, report.gates),
            _sizes(row["rounded"], report.gates, digits=0),
            _number(row["parameters"], 0),
            _number(row["selection"], 4),
            _number(row["test"], 4) + (f" ± {row['seed_sd']:.4f}" if row["seed_sd"] is not None else ""),
        ]
        for row in report.bests
    ]
    head = ("arm", "repeat", "trial", "start", "end", "rounded", "parameters", "selection", "test ± seeds")
    sizes = f" (sizes: {', '.join(report.gates)})" if report.gates else ""
    told = f"The best trial of each search{sizes}:"
    parts = [told, _table(head, bests)]
    if report.moved:
        shown = _asked(report)
        moves = (
            f"Sizes ({', '.join(report.gates[g] for g in shown)}) at the start and at the end of every moved trial, "
        )
        parts = [moves + "beside its control:", _moves_table(report, shown), *parts]
    if graphs := [f"{r['arm']}, repeat {r['repeat']}: {w}" for r in report.bests for w in r["graphs"].values()]:
        parts += ["Their graphs, rounded:\n" + "\n".join(graphs)]
    names = f"comparison {report.comparison}: test scores are means over retrainings of each search's best"
    parts += [names, arms]
    parts += ["\n".join(f"{arm}: {why}." for arm, why in report.absent.items())] if report.absent else []
    parts += [f"Verdict: {report.verdict}"]
    return "\n\n".join(parts)


def _asked(report: Report) -> list[int]:
    """The places of the gates that stand in the moved trials' points; the network has the others as they are."""
    trials = [trial for own in report.moved.values() for trial in own]
    return [g for g in range(len(report.gates)) if any(trial["start"][g] is not None for trial in trials)]


def _moves_table(report: Report, shown: Sequence[int]) -> str:
    arms = list(report.moved)
    keys = sorted({(r["repeat"], r["number"]) for arm in arms for r in report.moved[arm]})
    by_arm = {arm: {(r["repeat"], r["number"]): r for r in report.moved[arm]} for arm in arms}
    head = ["repeat", "trial", "start", *(f"{arm} end" for arm in arms), *(f"{arm} value" for arm in arms)]
    rows = []
    for key in keys:
        found = [by_arm[arm].get(key) for arm in arms]
        names = [report.gates[g] for g in shown]
        start = next((_sizes(_by_gate(report, r["start"]), names) for r in found if r), "")
        ends = [_sizes(_by_gate(report, r["end"]), names) if r else "-" for r in found]
        values = [_number(r["value"], 4) if r else "-" for r in found]
        rows.append([str(key[0]), str(key[1]), start, *ends, *values])
    return _table(head, rows)


def _by_gate(report: Report, sizes: Sequence[float | None]) -> dict[str, float | None]:
    return dict(zip(report.gates, sizes, strict=True))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    lines = [
        [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in [head, *rows]
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _by_kind(gate: str) -> tuple[int, str]:
    """Widths before strides before depths before rates."""
    kind = gate.split(".")[0]
    return (SIZED.index(kind) if kind in SIZED else len(SIZED)), gate


def _sizes(point: Mapping[str, Any], gates: Sequence[str], digits: int = 1) -> str:
    """Sizes to so many digits, and rates to three."""

    def word(gate: str, size: float | None) -> str:
        return "-" if size is None else f"{size:.{digits}f}" if gate.split(".")[0] in SIZED else f"{size:.3g}"

    return " ".join(word(gate, point.get(gate)) for gate in gates)
