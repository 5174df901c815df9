"""What derivatives with respect to the architecture cost: time and memory of every method beside plain training.

    python -m benchmarks.hypergradients [--quick] [--json] [--part times|widths|memory|fused]

The cases are those of `hypergradient_cases`, each run as a search runs it, on one thread. Times are of competitors that
took turns in one run, a ratio is the median of the rounds' own; memory is that of `hypergradient_memory`. `--quick`
takes less than a minute; its figures are rough, and its memory is of too few steps for the goals. Needs torch, not ray.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from benchmarks.hypergradient_cases import BATCH, HORIZON, INSTANT, MOMENTUM, PLAIN, THROUGH, WIDTH, Case
from benchmarks.hypergradient_memory import alone
from benchmarks.machine import Others, facts
from benchmarks.timing import LEAST, Work, ratio, rounds

Row = dict[str, Any]
PARTS = ("times", "widths", "memory", "fused")
BILEVEL_GOAL = 2.2  # plain steps that one with a first-order move takes
REVERSIBLE_GOAL, CHECKPOINTS_GOAL = 1 / 100, 1 / 10  # of the memory of `unrolled`, without and with checkpoints
FUSED_GOAL = 1 / 4  # of the time of single runs
GOAL_STEPS = 1000  # at which memory has its goals
UNROLLED, CHECKPOINTS, REVERSIBLE = "unrolled", "unrolled checkpoints", "reversible"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured: by lanes, the training steps between two moves (`forward` up to `forward_steps` alone);
    the other widths of first-order moves; by steps, the methods whose memory is counted; the lanes of a fused
    program."""

    steps: dict[int, tuple[int, ...]]
    forward_steps: int
    widths: tuple[int, ...]
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
    widths=(128, 512),
    memory={10: _MEMORY, 100: _MEMORY, 1000: _MEMORY},
    fused_lanes=64,
    fused_steps=10,
    repeats=9,
    long_repeats=3,
)
QUICK = Scale(
    steps={1: (10,)},
    forward_steps=10,
    widths=(128,),
    memory={20: (UNROLLED, CHECKPOINTS, REVERSIBLE)},
    fused_lanes=8,
    fused_steps=10,
    repeats=3,
    long_repeats=3,
    least=0.01,
)


# -- time --------------------------------------------------------------------------------------------------------------


def instant(lanes: int, scale: Scale) -> list[Row]:
    """A training step and a move after it, of the methods that take no steps themselves, over a plain step."""
    works = {name: Case(name, lanes=lanes).outer_step for name in (PLAIN, *INSTANT)}
    found = rounds(works, scale.repeats, least=scale.least)
    return [{"lanes": lanes, "method": name, **_compared(found, name)} for name in works]


def by_width(width: int, scale: Scale) -> Row:
    """A training step and a first-order move over a plain step, of one lane of another width."""
    works = {name: Case(name, width=width).outer_step for name in (PLAIN, "bilevel")}
    found = rounds(works, scale.repeats, least=scale.least)
    return {"width": width, "plain_ms": 1e3 * median(found[PLAIN]), **_compared(found, "bilevel")}


def through(lanes: int, steps: int, scale: Scale) -> list[Row]:
    """So many training steps and one move, of the methods that go through them, over a plain step."""
    names = [name for name in THROUGH if name != "forward" or steps <= scale.forward_steps]
    works = {name: Case(name, steps=steps, lanes=lanes).outer_step for name in names}
    repeats = scale.repeats if steps * lanes < 100 else scale.long_repeats
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
                _say(f"moves, {_lanes(lanes)}")
                found["instant"] += instant(lanes, scale)
                found["parts"].append(parts(lanes, scale))
                for steps in counts:
                    _say(f"derivatives through {steps} steps, {_lanes(lanes)}")
                    found["through"] += through(lanes, steps, scale)
        if "widths" in chosen:
            _say("moves at other widths")
            found["widths"] = [by_width(width, scale) for width in scale.widths]
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
    rows = [
        _goal(f"a step and a bilevel move / a step, {_lanes(row['lanes'])}", row["over_plain"], BILEVEL_GOAL)
        for row in found.get("instant", ())
        if row["method"] == "bilevel"
    ]
    rows += [
        _goal(f"{row['method']}, {_lanes(row['lanes'])} / single runs", row["ratio"], FUSED_GOAL)
        for row in found.get("fused", ())
        if row["method"] != PLAIN
    ]
    by = {(row["method"], row["steps"]): row for row in found.get("memory", ())}
    for under, goal in ((UNROLLED, REVERSIBLE_GOAL), (CHECKPOINTS, CHECKPOINTS_GOAL)):
        if (REVERSIBLE, GOAL_STEPS) in by and (under, GOAL_STEPS) in by:
            for kind in ("live", "resident"):
                over, base = (by[name, GOAL_STEPS][f"{kind}_bytes"] for name in (REVERSIBLE, under))
                rows.append(_goal(f"{kind} memory, reversible / {under}, {GOAL_STEPS} steps", over / base, goal))
    return rows


def _goal(name: str, measured: float, goal: float) -> Row:
    return {"name": name, "measured": measured, "goal": goal, "met": measured <= goal}


def _lanes(lanes: int) -> str:
    return "1 lane" if lanes == 1 else f"{lanes} lanes"


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


# -- output ------------------------------------------------------------------------------------------------------------


def tables(found: dict[str, Any]) -> str:
    """The report for people, in Markdown."""
    out: list[str] = []
    if "instant" in found:
        heads = "a step and a move after it | lanes | ms | over a plain step | (rounds)"
        out += _table(heads, map(_instant_row, found["instant"]))
        out += _table("a bilevel move, ms | derivative | step | its FLOPs", map(_parts_row, found["parts"]))
        heads = "T steps and a move | lanes | T | ms | over a plain step | (rounds) | that, a step"
        out += _table(heads, map(_through_row, found["through"]))
    if "widths" in found:
        heads = "a step and a bilevel move, width | plain ms | ms | over a plain step | (rounds)"
        out += _table(heads, map(_width_row, found["widths"]))
    if "fused" in found:
        heads = "one outer step | T | lanes | fused ms | single runs ms | ratio | (rounds)"
        out += _table(heads, map(_fused_row, found["fused"]))
    if "memory" in found:
        heads = "peak memory of one lane | T | tensors MB | resident MB | batches MB | bits a weight-step (information)"
        out += _table(heads, map(_memory_row, found["memory"]))
    return "\n".join(out + _table("goal | measured | at most | ", map(_goal_row, found["goals"]))).strip()


def _instant_row(r: Row) -> tuple[object, ...]:
    return (r["method"], r["lanes"], f"{r['ms']:.2f}", f"{r['over_plain']:.1f}", _spread(r, "over_plain"))


def _parts_row(r: Row) -> tuple[object, ...]:
    return (_lanes(r["lanes"]), *(f"{r[f'{name}_ms']:.2f}" for name in ("derivative", "move", "ledger")))


def _width_row(r: Row) -> tuple[object, ...]:
    times = (f"{r['plain_ms']:.2f}", f"{r['ms']:.2f}")
    return (r["width"], *times, f"{r['over_plain']:.1f}", _spread(r, "over_plain"))


def _fused_row(r: Row) -> tuple[object, ...]:
    times = (f"{r['fused_ms']:.1f}", f"{r['singles_ms']:.1f}")
    return (r["method"], r["steps"], r["lanes"], *times, f"{r['ratio']:.3f}", _spread(r, "ratio", ".3f"))


def _goal_row(g: Row) -> tuple[object, ...]:
    return (g["name"], f"{g['measured']:.3g}", f"{g['goal']:.3g}", "met" if g["met"] else "**missed**")


def _through_row(r: Row) -> tuple[object, ...]:
    figures = (f"{r['ms']:.0f}", f"{r['over_plain']:.0f}", _spread(r, "over_plain", ".0f"))
    return (r["method"], r["lanes"], r["steps"], *figures, f"{r['over_plain_a_step']:.1f}")


def _memory_row(r: Row) -> tuple[object, ...]:
    bits = ""
    if "bits_per_weight_step" in r:
        bits = f"{r['bits_per_weight_step']:.3f} ({r['information_bits']:.3f})"
    megabytes = (f"{r[f'{kind}_bytes'] / 1e6:.2f}" for kind in ("live", "resident", "batch"))
    return (r["method"], r["steps"], *megabytes, bits)


def _spread(row: Row, key: str, form: str = ".1f") -> str:
    return f"{row[f'least_{key}']:{form}}-{row[f'most_{key}']:{form}}"


def _table(heads: str, rows: Iterable[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return [f"| {heads} |", "|" + "---|" * (heads.count("|") + 1), *lines, ""]


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
