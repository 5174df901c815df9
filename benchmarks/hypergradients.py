"""What derivatives with respect to the architecture cost: time and memory of every method beside plain training.

    python -m benchmarks.hypergradients [--quick] [--json] [--part times|memory|fused]

The cases are those of `hypergradient_cases`, each run as a search runs it, on one thread. Times are of competitors that
took turns in one run, a ratio is the median of the rounds' own; memory is that of `hypergradient_memory`. `--quick`
takes less than a minute; its figures are rough, and its memory is of too few steps for the goals. Needs torch, not ray.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from benchmarks.hypergradient_cases import BATCH, HORIZON, INSTANT, MOMENTUM, PLAIN, THROUGH, WIDTH, Case
from benchmarks.hypergradient_memory import alone
from benchmarks.machine import Others, facts
from benchmarks.timing import LEAST, Work, ratio, rounds

Row = dict[str, Any]
PARTS = ("times", "memory", "fused")
BILEVEL_GOAL = 2.2  # plain steps that one with a first-order move takes
REVERSIBLE_GOAL, CHECKPOINTS_GOAL = 1 / 100, 1 / 10  # of the memory of `unrolled`, without and with checkpoints
FUSED_GOAL = 1 / 4  # of the time of single runs
GOAL_STEPS = 1000  # at which memory has its goals
UNROLLED, CHECKPOINTS, REVERSIBLE = "unrolled", "unrolled checkpoints", "reversible"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured: by lanes, the training steps between two moves (`forward` up to `forward_steps` alone);
    the steps at which memory is counted, and of which methods; the lanes of a fused program."""

    steps: dict[int, tuple[int, ...]]
    forward_steps: int
    memory: dict[int, tuple[str, ...]]
    fused_lanes: int
    fused_steps: int
    repeats: int
    long_repeats: int  # where a round takes many seconds
    least: float = LEAST


_MEMORY = (UNROLLED, CHECKPOINTS, "truncated", "forward", REVERSIBLE)
FULL = Scale(
    steps={1: (10, 100, 1000), 64: (10, 100)},
    forward_steps=100,
    memory={10: _MEMORY, 100: _MEMORY, 1000: _MEMORY},
    fused_lanes=64,
    fused_steps=10,
    repeats=9,
    long_repeats=3,
)
QUICK = Scale(
    steps={1: (10,)},
    forward_steps=10,
    memory={20: (UNROLLED, CHECKPOINTS, REVERSIBLE)},
    fused_lanes=16,
    fused_steps=10,
    repeats=3,
    long_repeats=3,
    least=0.0,
)


# -- time --------------------------------------------------------------------------------------------------------------


def instant(lanes: int, scale: Scale) -> list[Row]:
    """A training step and a move after it, of the methods that take no steps themselves, over a plain step."""
    works = {name: Case(name, lanes=lanes).outer_step for name in (PLAIN, *INSTANT)}
    found = rounds(works, scale.repeats, least=scale.least)
    return [{"lanes": lanes, "method": name, **_compared(found, name)} for name in works]


def through(lanes: int, steps: int, scale: Scale) -> list[Row]:
    """So many training steps and one move, of the methods that go through them, over a plain step."""
    names = [name for name in THROUGH if name != "forward" or steps <= scale.forward_steps]
    works = {name: Case(name, steps=steps, lanes=lanes).outer_step for name in names}
    repeats = scale.repeats if steps * lanes < 500 else scale.long_repeats
    found = rounds({PLAIN: Case(PLAIN, lanes=lanes).outer_step, **works}, repeats, least=scale.least)
    rows = [{"lanes": lanes, "method": name, "steps": steps, **_compared(found, name)} for name in names]
    for row in rows:
        row |= {"ms_a_step": row["ms"] / steps, "over_plain_a_step": row["over_plain"] / steps}
    return rows


def parts(lanes: int, scale: Scale) -> Row:
    """What a first-order move is made of, in milliseconds."""
    found = rounds(Case("bilevel", lanes=lanes).parts(), scale.repeats, least=scale.least)
    return {"lanes": lanes, **{f"{name}_ms": 1e3 * median(times) for name, times in found.items()}}


def _compared(found: dict[str, list[float]], name: str) -> Row:
    spread = sorted(a / b for a, b in zip(found[name], found[PLAIN], strict=True))
    row = {"ms": 1e3 * median(found[name]), "over_plain": ratio(found, name, PLAIN)}
    return row | {"least_over_plain": spread[0], "most_over_plain": spread[-1]}


# -- many lanes --------------------------------------------------------------------------------------------------------


def fused(name: str, steps: int, scale: Scale) -> Row:
    """One outer step of many lanes in one program, over that of as many single runs one after the other."""
    together = Case(name, steps=steps, lanes=scale.fused_lanes)
    singles = [Case(name, steps=steps, first=k) for k in range(scale.fused_lanes)]

    def one_after_the_other() -> None:
        for single in singles:
            single.outer_step()

    works: dict[str, Work] = {"fused": together.outer_step, "singles": one_after_the_other}
    found = rounds(works, scale.repeats, least=scale.least)
    spread = sorted(a / b for a, b in zip(found["fused"], found["singles"], strict=True))
    row: Row = {"method": name, "steps": steps, "lanes": scale.fused_lanes}
    row |= {f"{key}_ms": 1e3 * median(times) for key, times in found.items()}
    return row | {"ratio": ratio(found, "fused", "singles"), "least_ratio": spread[0], "most_ratio": spread[-1]}


# -- the report --------------------------------------------------------------------------------------------------------


def report(scale: Scale, chosen: Sequence[str] = PARTS) -> dict[str, Any]:
    """Every figure."""
    network = {"layers": [64, WIDTH, WIDTH, 10], "batch": BATCH, "momentum": MOMENTUM, "moving": 2, "horizon": HORIZON}
    found: dict[str, Any] = {"machine": facts(), "network": network, "scale": asdict(scale)}
    with Others() as others:
        if "times" in chosen:
            found |= {"instant": [], "through": [], "parts": []}
            for lanes, counts in scale.steps.items():
                _say(f"moves of {lanes} lanes")
                found["instant"] += instant(lanes, scale)
                found["parts"].append(parts(lanes, scale))
                for steps in counts:
                    _say(f"derivatives through {steps} steps of {lanes} lanes")
                    found["through"] += through(lanes, steps, scale)
        if "fused" in chosen:
            _say(f"{scale.fused_lanes} lanes beside as many single runs")
            cases = ((PLAIN, 1), ("bilevel", 1), (UNROLLED, scale.fused_steps))
            found["fused"] = [fused(name, steps, scale) for name, steps in cases]
        if "memory" in chosen:
            found["memory"] = []
            for steps, names in scale.memory.items():
                _say(f"memory of {steps} steps")
                found["memory"] += [alone(name, steps) for name in names]
    return {**found, "others_cores": others.cores, "goals": goals(found)}


def goals(found: dict[str, Any]) -> list[Row]:
    """What the methods are to cost at most, and whether they did here; memory counts where it is of enough steps."""
    rows: list[Row] = []
    for row in found.get("instant", ()):
        if row["method"] == "bilevel":
            rows.append(_goal(f"step and bilevel move / step, {_lanes(row)}", row["over_plain"], BILEVEL_GOAL))
    for row in found.get("fused", ()):
        if row["method"] != PLAIN:
            rows.append(_goal(f"{row['method']}, {_lanes(row)} / single runs", row["ratio"], FUSED_GOAL))
    by = {(row["method"], row["steps"]): row for row in found.get("memory", ())}
    for under, goal in ((UNROLLED, REVERSIBLE_GOAL), (CHECKPOINTS, CHECKPOINTS_GOAL)):
        if (REVERSIBLE, GOAL_STEPS) in by and (under, GOAL_STEPS) in by:
            for kind in ("live", "resident"):
                over, base = (by[name, GOAL_STEPS][f"{kind}_bytes"] for name in (REVERSIBLE, under))
                rows.append(_goal(f"{kind} memory, reversible / {under}, {GOAL_STEPS} steps", over / base, goal))
    return rows


def _goal(name: str, measured: float, goal: float) -> Row:
    return {"name": name, "measured": measured, "goal": goal, "met": measured <= goal}


def _lanes(row: Row) -> str:
    return "1 lane" if row["lanes"] == 1 else f"{row['lanes']} lanes"


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


# -- output ------------------------------------------------------------------------------------------------------------


def tables(found: dict[str, Any]) -> str:
    """The report for people, in Markdown."""
    out = []
    if "instant" in found:
        heads = ("a step and a move after it", "lanes", "ms", "over a plain step", "(rounds)")
        rows = [
            (r["method"], r["lanes"], f"{r['ms']:.2f}", f"{r['over_plain']:.1f}", _spread(r, "over_plain"))
            for r in found["instant"]
        ]
        out += _table(heads, rows)
        heads = ("a bilevel move, ms", "derivative", "step of what moves", "FLOPs anew")
        keys = ("derivative_ms", "move_ms", "ledger_ms")
        out += _table(heads, [(_lanes(r), *(f"{r[key]:.2f}" for key in keys)) for r in found["parts"]])
        heads = ("T steps and a move", "lanes", "T", "ms", "over a plain step", "(rounds)", "that, a step")
        out += _table(heads, [_through_row(r) for r in found["through"]])
    if "fused" in found:
        heads = ("one outer step", "T", "lanes", "fused ms", "single runs ms", "ratio", "(rounds)")
        rows = [
            (r["method"], r["steps"], r["lanes"], f"{r['fused_ms']:.1f}", f"{r['singles_ms']:.1f}")
            + (f"{r['ratio']:.3f}", _spread(r, "ratio", ".3f"))
            for r in found["fused"]
        ]
        out += _table(heads, rows)
    if "memory" in found:
        heads = ("peak memory of one lane", "T", "tensors MB", "resident MB", "the batches MB", "bits a weight-step")
        out += _table(heads, [_memory_row(r) for r in found["memory"]])
    heads = ("goal", "measured", "at most", "")
    rows = [(g["name"], f"{g['measured']:.3g}", f"{g['goal']:.3g}", _met(g)) for g in found["goals"]]
    return "\n".join(out + _table(heads, rows)).strip()


def _met(goal: Row) -> str:
    return "met" if goal["met"] else "**missed**"


def _through_row(r: Row) -> tuple[object, ...]:
    figures = (f"{r['ms']:.0f}", f"{r['over_plain']:.0f}", _spread(r, "over_plain", ".0f"))
    return (r["method"], r["lanes"], r["steps"], *figures, f"{r['over_plain_a_step']:.1f}")


def _memory_row(r: Row) -> tuple[object, ...]:
    bits = ""
    if "bits_per_weight_step" in r:
        bits = f"{r['bits_per_weight_step']:.3f} (information {r['information_bits']:.3f})"
    megabytes = (f"{r[f'{kind}_bytes'] / 1e6:.2f}" for kind in ("live", "resident", "batch"))
    return (r["method"], r["steps"], *megabytes, bits)


def _spread(row: Row, key: str, form: str = ".1f") -> str:
    return f"{row[f'least_{key}']:{form}}-{row[f'most_{key}']:{form}}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines] + [""]


def main(arguments: list[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object with every figure")
    parser.add_argument("--quick", action="store_true", help="few steps and lanes: less than a minute, rough figures")
    parser.add_argument("--part", choices=PARTS, help="measure that alone")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    began = time.perf_counter()
    found = report(QUICK if options.quick else FULL, PARTS if options.part is None else (options.part,))
    found |= {"quick": options.quick, "seconds": time.perf_counter() - began}
    print(json.dumps(found, allow_nan=False) if options.json else tables(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
