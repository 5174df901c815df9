"""Grouped dense lanes laid out: all begin, and all are laid anew, layer by layer rather than lane by lane.

A lane's numbers are the same as if it were alone; what there is room for beyond its own is 0.

Legend of shape suffixes: K lanes, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from trials.noise import fold, normals

if TYPE_CHECKING:
    from trials.lanes.dense import DenseLanes


def initialise(lanes: DenseLanes) -> None:
    """The weights that lanes begin with."""
    for i in range(lanes.hidden + 1):
        lanes.layout.stack(lanes.weights_T, i).copy_(_fresh(lanes, i))


def draw_feedback(lanes: DenseLanes) -> None:
    """Every lane's fixed matrices."""
    for i, heard in enumerate(lanes.heard):
        drawn = _normals(lanes, "feedback", i, *heard.room[0])
        drawn *= _std(lanes, lanes.hidden).to(drawn)
        heard.stack(lanes.feedback[i], 0).copy_(drawn * heard.own(0, lanes.device))


def resize(lanes: DenseLanes, sizes: Sequence[Sequence[int]]) -> None:
    """Lay lanes anew: in the buffers that there are, while those have room and are not twice as large as need be."""
    old, before = lanes.layout, {"weights": lanes.weights_T, **lanes.optimiser.state}
    was = [old.own(i, lanes.device) for i in range(lanes.hidden + 1)]
    stays = _fits(widest(sizes), lanes.room)
    if stays:
        lanes.place(sizes)
        lanes.set_rates()
    else:
        lanes.lay(sizes)
        lanes.attach(lanes.rule, lanes.hyper)
    buffers = {"weights": lanes.weights_T, **lanes.optimiser.state}
    for i, was_KRC in enumerate(was):
        room = lanes.layout.room[i]
        kept_KRC = _fitted(was_KRC, room) & lanes.layout.own(i, lanes.device)
        for name, buffer_T in buffers.items():
            begin = _fresh(lanes, i) if name == "weights" else float(name.startswith("power"))
            known_KRC = _fitted(old.stack(before[name], i), room)
            lanes.layout.stack(buffer_T, i).copy_(torch.where(kept_KRC, known_KRC, begin))
    lanes.draw_feedback()


def widest(sizes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The most units that a lane has, of each layer."""
    return tuple(int(max(layer)) for layer in zip(*sizes, strict=True))


def _fits(needed: Sequence[int], room: Sequence[int]) -> bool:
    return all(n <= r < 2 * n for n, r in zip(needed, room, strict=True))


def _fitted(views: Tensor, room: tuple[int, int]) -> Tensor:
    """Matrices [K, rows, columns] cut off, or with zeros beyond, to [K, R, C]."""
    rows, columns = (b - a for a, b in zip(views.shape[1:], room, strict=True))
    return functional.pad(views, (0, columns, 0, rows))


def _fresh(lanes: DenseLanes, i: int) -> Tensor:
    """The weights of a layer that lanes begin with, [K, R, C]: of each lane what `DenseLanes.initial` gives."""
    rows, columns = lanes.layout.room[i]
    weights = _normals(lanes, "init", i, rows, columns - 1).to(lanes.dtype) * _std(lanes, i)
    return functional.pad(weights, (1, 0)) * lanes.layout.own(i, lanes.device)


def _normals(lanes: DenseLanes, purpose: str, i: int, rows: int, columns: int) -> Tensor:
    keys = [fold(seed, purpose, number, replicate, i) for seed, number, replicate in lanes.identities]
    return normals(keys, rows, columns, lanes.device)


def _std(lanes: DenseLanes, i: int) -> Tensor:
    """The standard deviation of each lane's first weights of a layer, [K, 1, 1]."""
    found = [lanes.scaling(live, i, "sgd").std for live in lanes.live]
    return torch.tensor(found, dtype=lanes.dtype, device=lanes.device).view(-1, 1, 1)
