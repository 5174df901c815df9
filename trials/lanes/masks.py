"""Which weights of a lane rest: those that a unit without membership would read or write.

Legend of shape suffixes: O outputs of a layer, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from search_spaces.flow import Flow, Segment, Use


def speaking(flow: Flow, member: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """For each parameter of each use: its path, whether each output speaks [O], and each input [I] (None: it has none).

    Args:
        member: for each gate, whether each unit that is laid out has a grade above 0.
    """
    for use in flow.uses:
        rows_O = _spread(use.outputs, member) & _there(flow, use, member)
        if use.kind == "parameter":
            yield use.path, rows_O, None
            continue
        yield f"{use.path}.weight", rows_O, _spread(use.inputs, member) if use.kind in ("linear", "conv") else None
        yield f"{use.path}.bias", rows_O, None


def as_long(flags: Tensor, length: int) -> Tensor:
    """Flags of as many units; those beyond were no members."""
    out = torch.zeros(length, dtype=torch.bool)
    shared = min(length, len(flags))
    out[:shared] = flags[:shared].cpu()
    return out


def silenced(gates: Sequence[str], grades: Sequence[Tensor], before: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """Grades, [K, N] a gate, in which units that were no members say nothing yet."""
    return [
        m_KN * torch.stack([as_long(lane[gate], m_KN.shape[1]) for lane in before]).to(m_KN)
        for gate, m_KN in zip(gates, grades, strict=True)
    ]


def newcomers(flow: Flow, before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """For each norm of a channel at a time: its path, and which channels have become members. Their running statistics
    begin anew, so that they do not depend on whether a resting channel was laid out."""
    for use in flow.uses:
        if use.kind != "norm":
            continue
        was = {name: as_long(before[name], len(flags)) for name, flags in now.items()}
        speaks_O, spoke_O = (_spread(use.outputs, flags) & _there(flow, use, flags) for flags in (now, was))
        yield use.path, speaks_O & ~spoke_O


def rest(view: Tensor, rows_O: Tensor, columns_I: Tensor | None) -> None:
    """Multiply a parameter's numbers, however shaped, by 0 where they rest."""
    of_rows = view.reshape(len(rows_O), -1)
    of_rows.mul_(rows_O.to(view).unsqueeze(1))
    if columns_I is not None:
        of_rows.view(len(rows_O), len(columns_I), -1).mul_(columns_I.to(view)[None, :, None])
    if of_rows.data_ptr() != view.data_ptr():
        view.copy_(of_rows.view(view.shape))


def _there(flow: Flow, use: Use, member: Mapping[str, Tensor]) -> Tensor:
    """Whether a layer's block or edge is there at all."""
    shares = [share for share in flow.shares.get(use.node, ()) if not share.absent]
    flags = [bool(member[share.gate][share.index : share.index + 1].any()) for share in shares]
    return torch.tensor(all(flags))


def _spread(segments: Sequence[Segment], member: Mapping[str, Tensor]) -> Tensor:
    """A flag for every channel of some segments."""
    parts = []
    for segment in segments:
        group = segment.group.root
        one = member[group.gate] if group.gate else torch.ones(group.size, dtype=torch.bool)
        parts.append(one.cpu().repeat_interleave(segment.repeat))
    return torch.cat(parts)
