"""The report of `benchmarks.elastic` as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
GATE_GOAL = 1.1  # of a step's time without gates


def tables(found: Mapping[str, Any]) -> str:
    """The whole report."""
    machine = found["machine"]
    where = f"{machine['cpu']}, one thread" if found["device"] == "cpu" else found["device"]
    head = (
        f"{where}; torch {machine['torch']}, float32; widths in batches of {found['batch']}; "
        f"square matmul {found['square_gflops']:.0f} GFLOP/s; load {machine['load'][0]:.1f} on {machine['cores']} cores"
    )
    parts = [head]
    if "gates" in found:
        parts += ["## Gated / plain, a training step", gate_table(found)]
        parts += ["## Materialised / relaxed", size_table(found["sizes"])]
        parts += ["## Lanes", *lane_tables(found["lanes"], found["patience_s"])]
    if "lanes_memory_kept" in found:
        parts += ["## Lanes, freed memory kept", *lane_tables(found["lanes_memory_kept"], found["patience_s"])]
    if "strides" in found:
        parts += ["## Strides, a training step", stride_table(found["strides"])]
        parts += ["## Lanes of different strides", bundle_table(found["bundles"])]
    if "graphs" in found:
        parts += ["## Graphs, a training step", graph_table(found["graphs"])]
    return "\n\n".join(parts)


def gate_table(found: Mapping[str, Any]) -> str:
    """What gates cost a step, and whether the goal is met; once more where freed memory is kept."""
    kept = found.get("gates_memory_kept")
    heads = ["network", "form", "gated / plain", f"goal {found['gate_goal']:g}", "plain ms", "gated ms"]
    heads += ["gated / plain, memory kept", "goal", "plain ms"] if kept else []
    rows = []
    for i, row in enumerate(found["gates"]):
        cells = [row["case"], row["form"], f"**{row['ratio']:.3f}**", _met(row)]
        cells += [f"{row['plain_ms']:.2f}", f"{row['gated_ms']:.2f}"]
        cells += [f"**{kept[i]['ratio']:.3f}**", _met(kept[i]), f"{kept[i]['plain_ms']:.2f}"] if kept else []
        rows.append(cells)
    return markdown(heads, rows)


def _met(row: Row) -> str:
    return "met" if row["met"] else "missed"


def size_table(rows: Sequence[Row]) -> str:
    """What a materialised network saves, beside what the costs foretell."""
    heads = ["network", "of each width", "forward speed-up", "by FLOPs", "training speed-up", "by FLOPs"]
    heads += ["parameters kB (foretold)", "activations kB an example (foretold)", "relaxed: parameters, activations kB"]
    return markdown(
        heads,
        [
            [
                row["case"],
                f"{row['share']:.0%}",
                f"**{row['forward_speedup']:.2f}**",
                f"{row['forward_flops_ratio']:.2f}",
                f"**{row['training_speedup']:.2f}**",
                f"{row['training_flops_ratio']:.2f}",
                _bytes(row, "plain_parameter_bytes"),
                _bytes(row, "plain_activation_bytes"),
                f"{row['relaxed_parameter_bytes'] / 1e3:.1f}, {row['relaxed_activation_bytes'] / 1e3:.1f}",
            ]
            for row in rows
        ],
    )


def _bytes(row: Row, key: str) -> str:
    return f"{row[key] / 1e3:.1f} ({row[f'{key}_foretold'] / 1e3:.1f})"


def lane_tables(rows: Sequence[Row], patience: float) -> list[str]:
    """A table for each network: ways in columns, lane counts in rows."""
    parts = []
    for case in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == case]
        ways = list(dict.fromkeys(row["way"] for row in own))
        at = {(row["way"], row["lanes"]): row for row in own}
        heads = ["lanes", *(f"{way}: x one lane (steps/s of all lanes, share of matmul)" for way in ways)]
        body = [
            [str(count), *(_lane_cell(at[way, count], patience) for way in ways)]
            for count in dict.fromkeys(row["lanes"] for row in own)
        ]
        parts += [f"{case}; one lane is {ways[0]}", markdown(heads, body)]
    return parts


def _lane_cell(row: Row, patience: float) -> str:
    if "stopped" in row:
        return f"stopped: over {patience:g} s a step" if row["stopped"] == "time" else "stopped: memory"
    return f"**{row['ratio_to_one']:.2f}** ({row['lane_steps_per_s']:.3g}, {row['share_of_matmul']:.0%})"


def stride_table(rows: Sequence[Row]) -> str:
    """What maps that shrink in place cost beside the network that really strides, in time and in FLOPs."""
    heads = ["network", "kind", "stride", "plain ms (at stride)"]
    heads += ["cropped / plain", "by FLOPs", "unshrunk / plain", "by FLOPs", "cropping gains"]

    def cells(row: Row) -> list[str]:
        plain = f"{row['plain_ms']:.1f} ({row['nearest']})"
        found = [row["case"], row["kind"], f"{row['stride']:g}", plain]
        for name in ("cropped", "unshrunk"):
            found += [f"**{row[f'{name}_time']:.2f}**", f"{row[f'{name}_flops_ratio']:.2f}"]
        return [*found, "nothing" if row["room"] == 1 else f"{row['cropping_gain']:.2f}"]

    return markdown(heads, [cells(row) for row in rows])


def bundle_table(rows: Sequence[Row]) -> str:
    """What bundling by stride gains: how much faster than one bundle at the least stride."""
    heads = ["network", "kind", "way", "strides", "one bundle ms", "by stride", "by FLOPs"]
    heads += ["by stride, really striding", "by FLOPs", "`per_lane`"]
    return markdown(
        heads,
        [
            [
                row["case"],
                row["kind"],
                row["way"],
                f"{len(row['strides'])} of {', '.join(f'{s:g}' for s in sorted(set(row['strides'])))}",
                f"{row['mixed_ms']:.0f}",
                *(f"**{row['bundled_gain']:.2f}**", f"{row['bundled_flops_gain']:.2f}"),
                *(f"{row['striding_gain']:.2f}", f"{row['striding_flops_gain']:.2f}"),
                f"{row['per_lane_gain']:.2f}",
            ]
            for row in rows
        ],
    )


def graph_table(rows: Sequence[Row]) -> str:
    """What all edges cost beside the rounded graph and beside plain networks of as many parameters."""
    heads = ["network", "graph", "units kept", "lanes", "relaxed ms"]
    for name in ("rounded", "ungraded", "residual"):
        heads += [f"relaxed / {name}", "by FLOPs"]
    body = []
    for row in rows:
        cells = [row["case"], row["graph"], f"{row['kept']} of {row['units']}"]
        cells += [f"{row['lanes']} {row['way']}", f"{row['relaxed_ms']:.1f}"]
        for name in ("rounded", "ungraded", "residual"):
            cells += [f"**{row[f'over_{name}']:.2f}**", f"{row[f'flops_over_{name}']:.2f}"]
        body.append(cells)
    return markdown(heads, body)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """One table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
