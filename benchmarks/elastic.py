"""What a continuous architecture costs and saves: widths, strides (`elastic_strides`) and graphs (`elastic_graphs`).

    python -m benchmarks.elastic [--part widths|strides|graphs] [--quick] [--json FILE] [--device cuda]

Of widths: gated beside plain, materialised beside relaxed, many lanes beside one. Every ratio is of competitors that
took turns in one run, on one thread of the CPU: the median over the rounds of each round's ratio. Rows are noise,
float32, one batch. Gates lack half of their last unit, so that none could be left out. `--quick` takes less than a
minute; its figures are rough. Needs torch, not ray.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import elastic_graphs, elastic_strides
from benchmarks.elastic_cases import PART, Case, activation_bytes, lane_step, module_pass, module_step, parameter_bytes
from benchmarks.elastic_tables import GATE_GOAL, tables
from benchmarks.machine import facts, square_gflops
from benchmarks.timing import LEAST, Work, ratio, rounds, seconds
from search_spaces.networks import MLP, ConvNet, Network, Residual
from trials.allocator import keep_freed_memory
from trials.room import free_memory
from trials.training import WAYS

Row = dict[str, Any]
PARTS = ("widths", "strides", "graphs")
MEMORY_SHARE = 0.5  # of what is free that a program may take


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured. A column of lanes ends before a step that would take over `patience` seconds."""

    networks: tuple[Network, ...]
    images: tuple[tuple[int, int, int], ...]
    lane_image: tuple[int, int, int]
    shares: tuple[float, ...]
    lanes: tuple[int, ...]
    repeats: int
    lane_repeats: int
    patience: float
    strides: elastic_strides.StrideScale = elastic_strides.FULL
    graphs: elastic_graphs.GraphScale = elastic_graphs.FULL
    batch: int = 64
    least: float = LEAST


FULL = Scale(
    networks=(MLP(layers=2, width=128), ConvNet(layers=3, width=32), Residual(stages=2, blocks=1, width=32)),
    images=((3, 32, 32), (1, 28, 28)),
    lane_image=(1, 28, 28),
    shares=(0.25, 0.5, 0.75),
    lanes=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    repeats=15,
    lane_repeats=3,
    patience=2.5,
)
QUICK = Scale(
    networks=FULL.networks,
    images=((1, 28, 28),),
    lane_image=(1, 28, 28),
    shares=(0.5,),
    lanes=(1, 4),
    repeats=3,
    lane_repeats=2,
    patience=0.5,
    strides=elastic_strides.QUICK,
    graphs=elastic_graphs.QUICK,
    batch=32,
)


def gates(case: Case, scale: Scale) -> list[Row]:
    """A training step with gates beside one without, at maximum size: as a module under autograd, and as one lane."""
    full = {name: n - PART for name, n in case.maxima.items()}
    way = base_way(case.network)
    steps = {
        "module": {
            "gated": module_step(case.relaxed(full), case),
            "plain": module_step(case.plain(case.maxima), case),
        },
        way: {name: lane_step(case.lanes(way, gated=name == "gated"), case) for name in ("gated", "plain")},
    }
    rows = []
    for form, works in steps.items():
        found = rounds(works, scale.repeats, case.device, scale.least)
        rows.append(
            {
                "case": case.name,
                "form": form,
                "ratio": ratio(found, "gated", "plain"),
                "met": ratio(found, "gated", "plain") <= GATE_GOAL,
                "gated_ms": 1e3 * median(found["gated"]),
                "plain_ms": 1e3 * median(found["plain"]),
            }
        )
    return rows


def base_way(network: Network) -> str:
    """How one lane of a network runs when nothing else is said."""
    return "dense" if isinstance(network, MLP) else "per_lane"


def sizes(case: Case, share: float, scale: Scale) -> Row:
    """The relaxed network and the one materialised at a share of every width, with what the costs foretell."""
    whole = case.shares(share)
    relaxed, plain = case.relaxed({k: float(n) for k, n in whole.items()}), case.plain(whole)
    row: Row = {"case": case.name, "share": share}
    for name, make, flops in (
        ("forward", module_pass, case.costs.flops),
        ("training", module_step, case.costs.training_flops),
    ):
        works = {"relaxed": make(relaxed, case), "plain": make(plain, case)}
        found = rounds(works, max(3, scale.repeats // 2), case.device, scale.least)
        row[f"{name}_speedup"] = ratio(found, "relaxed", "plain")
        row[f"{name}_flops_ratio"] = flops(case.maxima) / flops(whole)
        row |= {f"{name}_{key}_ms": 1e3 * median(times) for key, times in found.items()}
    for name, module, at in (("relaxed", relaxed, case.maxima), ("plain", plain, whole)):
        row[f"{name}_parameter_bytes"] = parameter_bytes(module)
        row[f"{name}_activation_bytes"] = activation_bytes(module, case)
        row[f"{name}_parameter_bytes_foretold"] = 4 * case.costs.parameters(at)
        row[f"{name}_activation_bytes_foretold"] = case.costs.activation_bytes(at)
    return row


def lanes(case: Case, scale: Scale, peak_gflops: float) -> list[Row]:
    """Training steps a second by the number of lanes, in each way, each count beside one lane of the base way."""
    base = base_way(case.network)
    ways = ("dense", "per_lane") if base == "dense" else WAYS
    one = lane_step(case.lanes(base), case)
    rows: list[Row] = []
    last: dict[str, float] = {}  # seconds a lane at the count before
    for count in scale.lanes:
        for way in ways:
            stopped = _too_large(case, way, count, last.get(way, 0.0), scale.patience)
            row: Row = {"stopped": stopped} if stopped else _rates(case, way, count, one, scale)
            if "stopped" not in row:
                last[way] = 1 / row["lane_steps_per_s"]
                row["share_of_matmul"] = 1e-9 * case.training_flops() * row["lane_steps_per_s"] / peak_gflops
            elif row["stopped"] == "time":
                last[way] = scale.patience
            rows.append({"case": case.name, "way": way, "lanes": count, **row})
    return rows


def _rates(case: Case, way: str, count: int, one: Work, scale: Scale) -> Row:
    """So many lanes beside one."""
    gc.collect()  # programs hold themselves in their own closures
    if case.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        step = lane_step(case.lanes(way, count), case)
        if seconds(step, 1, case.device) > 2 * scale.patience:
            return {"stopped": "time"}
        found = rounds({"lanes": step, "one": one}, scale.lane_repeats, case.device, scale.least)
    except torch.OutOfMemoryError:
        return {"stopped": "memory"}
    rate = count / median(found["lanes"])
    return {
        "lane_steps_per_s": rate,
        "steps_per_s_a_lane": rate / count,
        "ratio_to_one": count * ratio(found, "one", "lanes"),
    }


def _too_large(case: Case, way: str, count: int, lane_seconds: float, patience: float) -> str | None:
    """Why a column ends before that many lanes."""
    if count * case.lane_bytes(way) > MEMORY_SHARE * free_memory(case.device):
        return "memory"
    return "time" if count * lane_seconds > patience else None


def report(scale: Scale, device: torch.device, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """Every figure. Gates and lanes come twice: as the process is, and when it keeps the memory that it frees, as in
    strides and graphs."""
    peak = square_gflops(8192 if device.type == "cuda" else 1024, device=str(device))
    found: dict[str, Any] = {
        "machine": facts(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "square_gflops": peak,
        "batch": scale.batch,
        "gate_goal": GATE_GOAL,
        "patience_s": scale.patience,
    }

    def cases(what: str, images: Sequence[tuple[int, int, int]]) -> Iterator[Case]:
        for network, shape in itertools.product(scale.networks, images):
            case = Case(network=network, shape=shape, batch=scale.batch, device=device)
            print(f"{case.name}: {what} ...", file=sys.stderr, flush=True)
            yield case

    def measure(suffix: str) -> None:
        found[f"gates{suffix}"] = [row for case in cases("gates", scale.images) for row in gates(case, scale)]
        found[f"lanes{suffix}"] = [
            row for case in cases("lanes", (scale.lane_image,)) for row in lanes(case, scale, peak)
        ]

    if "widths" in parts:
        measure("")
        found["sizes"] = [sizes(case, share, scale) for case in cases("sizes", scale.images) for share in scale.shares]
    kept = device.type == "cpu" and keep_freed_memory()  # from here on, for there is no way back
    if kept and "widths" in parts:
        measure("_memory_kept")
    if "strides" in parts:
        found |= elastic_strides.report(scale.strides, device)
    if "graphs" in parts:
        found |= elastic_graphs.report(scale.graphs, device)
    return found


def main(arguments: list[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small cases, few lanes: less than a minute")
    parser.add_argument("--part", choices=PARTS, help="measure that alone")
    parser.add_argument("--multiplier", type=float, metavar="M", help="of the widths of a ResNet-18 (strides)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there as one JSON object")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: torch must see a GPU, but it sees none; take --device cpu")
    torch.set_num_threads(1)
    scale = QUICK if options.quick else FULL
    if options.multiplier is not None:
        scale = replace(scale, strides=replace(scale.strides, multiplier=options.multiplier))
    parts = PARTS if options.part is None else (options.part,)
    found: Mapping[str, Any] = report(scale, torch.device(options.device), parts)
    if options.json is not None:
        options.json.write_text(json.dumps({**found, "quick": options.quick}) + "\n")
    print(tables(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
