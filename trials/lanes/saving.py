"""Lanes as they are, taken out of a program and put back into another beside other neighbours.

    >>> state = saved(program)                              # name -> [K, ...]
    >>> begin(other, {name: value[[2, 0]] for name, value in state.items()}, grades, live_KG)

A lane's numbers are kept in an order of its own, so that they do not depend on where in a program it lies: weights and
optimiser state, sizes as laid out, running statistics, and what a lane that has shrunk left behind. Grades and rates
are the architecture's.

Legend of shape suffixes: K lanes, G gates, N units of a gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from search_spaces.network import Size
from search_spaces.width import HeldGate

if TYPE_CHECKING:
    from trials.lanes.program import Program

NO_NUMBER = -1  # in place of a size that is none: the units of a topology, which stay as they are laid out


def saved(program: Program) -> dict[str, Tensor]:
    """All that a program's lanes are, as copies."""
    weights_T, slots = program.stands()
    sizes = [[n if isinstance(n, int) else NO_NUMBER for n in lane] for lane in program.sizes]
    return {
        "weights": program.by_lane(weights_T),
        **{slot: program.by_lane(state_T) for slot, state_T in slots.items()},
        "sizes": torch.tensor(sizes, dtype=torch.int64).reshape(len(sizes), -1),
        **program.memory(),
    }


def begin(
    program: Program, state: Mapping[str, Tensor], grades: Sequence[Tensor] | None = None, live: Tensor | None = None
) -> None:
    """Fresh lanes become those that were saved; `grades` and real sizes are those that they had (None: no gates)."""
    program.again([_sizes(now, own) for now, own in zip(program.sizes, state["sizes"].tolist(), strict=True)])
    if grades is not None and live is not None:
        program.regate(grades, program.sizes, live)
    weights_T, slots = program.stands()
    for name, buffer_T in {"weights": weights_T, **slots}.items():
        program.take(state[name].to(buffer_T), buffer_T)
    program.remember(state)


def part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """What of a state stands under `name.`."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def _sizes(now: tuple[Size, ...], own: Sequence[int]) -> tuple[Size, ...]:
    return tuple(laid if n == NO_NUMBER else n for laid, n in zip(now, own, strict=True))


def remembered(module: nn.Module) -> dict[str, Tensor]:
    """A module's buffers by path, but for the grades of its gates."""
    grades = {id(gate.m) for gate in module.modules() if isinstance(gate, HeldGate)}
    return {name: buffer for name, buffer in module.named_buffers() if id(buffer) not in grades}


def stacked(lanes: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Each lane's tensors by name as rows, [K, M]; 0 beyond a lane's own, and for one that has none of that name."""
    first = {name: value for lane in reversed(lanes) for name, value in lane.items()}
    none = {name: value.new_zeros(0) for name, value in first.items()}
    return {
        name: pad_sequence([lane.get(name, none[name]).flatten() for lane in lanes], batch_first=True)
        for name in sorted(first)
    }
