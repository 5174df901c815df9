"""What a real stride costs a training step: maps that shrink in place beside the network that really strides.

Three forms of one network at one stride, each as one `per_lane` lane:

    plain      the network that really strides, by the nearest whole stride
    cropped    maps cropped to what the greatest whole stride below leaves of them: what lanes bundled by stride pay
    unshrunk   every map of the image's size, whatever the stride

And vmapped lanes of different strides: one bundle, whose maps have room for its least stride, beside bundles by stride.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.elastic_cases import Case, begun, executed_flops, lane_step
from benchmarks.timing import LEAST, Work, ratio, rounds
from search_spaces import Space, Stride, Width
from search_spaces.extent import KINDS
from search_spaces.layered import Striding
from search_spaces.network import Size
from search_spaces.networks import ConvNet, Residual
from trials.lanes.program import Program

Row = dict[str, Any]
IMAGE = (3, 32, 32)
STRIDES = Stride(low=1.0, high=4.0)
FULL_WIDTH = 64  # of a ResNet-18's first stage


@dataclass(frozen=True, kw_only=True)
class StrideScale:
    """How much is measured. `multiplier`: of a ResNet-18's widths; `bundle`: each lane's stride."""

    multiplier: float = 0.25
    width: int = 32
    image: tuple[int, int, int] = IMAGE
    batch: int = 16  # torch has a slow kernel for 1x1 convolutions of fewer rows on one thread
    kinds: tuple[str, ...] = KINDS
    strides: tuple[float, ...] = (2.0, 2.4, 1.6)
    bundle: tuple[float, ...] = (1.5, 2.5, 3.5) * 2
    bundle_kinds: tuple[str, ...] = ("shrink", "spectral")
    bundle_multiplier: float = 0.125
    ways: tuple[str, ...] = ("grouped", "unfolded")
    repeats: int = 5
    bundle_repeats: int = 3
    least: float = LEAST


FULL = StrideScale()
QUICK = StrideScale(
    multiplier=0.0625,
    width=16,
    image=(3, 16, 16),
    batch=4,
    kinds=("shrink",),
    strides=(2.4,),
    bundle=(1.5, 2.5),
    bundle_kinds=("shrink",),
    bundle_multiplier=0.0625,
    ways=("grouped",),
    repeats=2,
    bundle_repeats=2,
)


def convnet(width: int) -> tuple[Striding, Space]:
    """Three convolutions, each with a stride."""
    return ConvNet(layers=3, width=width), Space({f"stride.{i}": STRIDES for i in range(3)})


def resnet18(multiplier: float) -> tuple[Striding, Space]:
    """A ResNet-18 of small images (He et al. 2016): 4 stages of 2 blocks, each twice as wide as the one before it, the
    strides between them real."""
    network = Residual(stages=4, blocks=2)
    first = max(2, round(FULL_WIDTH * multiplier))  # a width has a range
    widths = {name: Width(low=1, high=first * 2 ** int(name.split(".")[1])) for name in network.widths}
    return network, Space({**widths, **{f"stride.{s}": STRIDES for s in range(1, 4)}})


def report(scale: StrideScale, device: torch.device) -> dict[str, list[Row]]:
    """Every figure."""
    alone = cases(scale, scale.kinds, scale.multiplier, device)
    strides = [forms(case, s, scale) for case in alone for s in scale.strides]
    mixed = cases(scale, scale.bundle_kinds, scale.bundle_multiplier, device)
    return {"strides": strides, "bundles": [bundles(case, way, scale) for case in mixed for way in scale.ways]}


def cases(scale: StrideScale, kinds: Sequence[str], multiplier: float, device: torch.device) -> Iterator[Case]:
    """Both networks, with strides of each kind."""
    for kind in kinds:
        for network, space in (convnet(scale.width), resnet18(multiplier)):
            own = replace(network, stride=kind)
            case = Case(network=own, space=space, shape=scale.image, batch=scale.batch, device=device)
            print(f"{named(case)}: {kind} ...", file=sys.stderr, flush=True)
            yield case


def named(case: Case) -> str:
    """A case by its network, image and widths."""
    widths = [case.maxima[name] for name in case.network.widths]
    wide = f"{min(widths)}" if min(widths) == max(widths) else f"{min(widths)}-{max(widths)}"
    return f"{case.name}, {wide} wide"


def kind_of(case: Case) -> str:
    """The kind of its strides."""
    assert isinstance(case.network, Striding)
    return case.network.stride


def laid(case: Case, stride: int) -> dict[str, Size]:
    """The greatest widths, and one stride everywhere."""
    return {g: stride if case.network.role(g) == "stride" else n for g, n in case.maxima.items()}


def graded(case: Case, strides: Sequence[float]) -> list[Tensor]:
    """The grades of lanes of all units, each of one stride everywhere: [K, N] a gate."""
    s_K1 = torch.tensor(strides).unsqueeze(1)
    return [s_K1 if case.network.role(g) == "stride" else torch.ones(len(strides), n) for g, n in case.maxima.items()]


def bundle(case: Case, way: str, strides: Sequence[float], rooms: Sequence[int]) -> Program:
    """Lanes of these strides, whose maps have room for what the whole strides `rooms` leave."""
    sizes = [laid(case, room) for room in rooms]
    return begun(case.flow, case.network.gates, way, sizes, graded(case, strides), device=case.device)


def striding(case: Case, way: str, strides: Sequence[int]) -> Program:
    """Lanes that really stride; vmapped ones all alike."""
    sizes = [laid(case, s) for s in strides]
    return begun(case.flow, case.network.gates, way, sizes, whole=True, device=case.device)


def foretold_flops(case: Case, room: int, *, relaxed: bool) -> float:
    """FLOPs of a lane's training step by the network's costs."""
    return float(case.batch * case.costs.training_flops(laid(case, room), relaxed))


def forms(case: Case, s: float, scale: StrideScale) -> Row:
    """The three forms at one stride."""
    nearest, room = int(s + 0.5), math.floor(s)
    programs = {"plain": striding(case, "per_lane", [nearest]), "cropped": bundle(case, "per_lane", [s], [room])}
    if room > 1:  # or cropped maps are the unshrunk ones
        programs["unshrunk"] = bundle(case, "per_lane", [s], [1])
    works = {name: lane_step(program, case) for name, program in programs.items()}
    flops = {name: executed_flops(work) for name, work in works.items()}
    found = rounds(works, scale.repeats, case.device, scale.least)
    if room == 1:
        found["unshrunk"], flops["unshrunk"] = found["cropped"], flops["cropped"]
    row: Row = {"case": named(case), "kind": kind_of(case), "stride": s, "nearest": nearest, "room": room}
    for name in ("plain", "cropped", "unshrunk"):
        row |= {f"{name}_ms": 1e3 * median(found[name]), f"{name}_flops": flops[name]}
        row |= {f"{name}_time": ratio(found, name, "plain"), f"{name}_flops_ratio": flops[name] / flops["plain"]}
    row["cropping_gain"] = ratio(found, "unshrunk", "cropped")
    return row


def bundles(case: Case, way: str, scale: StrideScale) -> Row:
    """Lanes of different strides: in one bundle, in bundles by stride, in those at whole strides, and one by one."""
    rooms = [math.floor(s) for s in scale.bundle]
    apart = {r: [s for s, room in zip(scale.bundle, rooms, strict=True) if room == r] for r in sorted(set(rooms))}
    programs: Mapping[str, list[Program]] = {
        "mixed": [bundle(case, way, scale.bundle, rooms)],
        "bundled": [bundle(case, way, strides, [r] * len(strides)) for r, strides in apart.items()],
        "striding": [striding(case, way, [r] * len(strides)) for r, strides in apart.items()],
        "per_lane": [bundle(case, "per_lane", scale.bundle, rooms)],
    }
    works = {name: _all(own, case) for name, own in programs.items()}
    found = rounds(works, scale.bundle_repeats, case.device, scale.least)
    row: Row = {"case": named(case), "kind": kind_of(case), "way": way, "strides": list(scale.bundle)}
    row |= {f"{name}_ms": 1e3 * median(times) for name, times in found.items()}
    row |= {f"{name}_gain": ratio(found, "mixed", name) for name in ("bundled", "striding", "per_lane")}
    mixed = len(rooms) * foretold_flops(case, min(rooms), relaxed=True)
    for name, relaxed in (("bundled", True), ("striding", False)):
        row[f"{name}_flops_gain"] = mixed / sum(foretold_flops(case, r, relaxed=relaxed) for r in rooms)
    return row


def _all(programs: Sequence[Program], case: Case) -> Work:
    steps = [lane_step(program, case) for program in programs]

    def step() -> None:
        for own in steps:
            own()

    return step
