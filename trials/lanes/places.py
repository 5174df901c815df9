"""Which rows and columns of a parameter of maximum size a lane has, and moving numbers between the two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from search_spaces.flow import Flow
from search_spaces.materialise import places_of

#: rows and columns of a full tensor; None: all
Places: TypeAlias = "tuple[Tensor | None, Tensor | None]"


def places(flow: Flow, kept: Mapping[str, Tensor], device: torch.device) -> dict[str, Places]:
    """For each parameter of a use, by its path, what a network of the `kept` units has of it."""
    found: dict[str, Places] = {}
    for use in flow.uses:
        rows = places_of(use.outputs, kept).to(device)
        if use.kind == "parameter":
            found[use.path] = (rows, None)
            continue
        columns = places_of(use.inputs, kept).to(device) if use.kind in ("linear", "conv") else None
        found[f"{use.path}.weight"] = (rows, columns)
        found[f"{use.path}.bias"] = (rows, None)
    return found


def cut(full: Tensor, place: Places | None) -> Tensor:
    """The rows and columns of a full tensor that a lane has."""
    rows, columns = place or (None, None)
    out = full if rows is None else full.index_select(_channel_axis(full, rows), rows)
    return out if columns is None else out.index_select(1, columns)


def paste(full: Tensor, part: Tensor, place: Places | None) -> None:
    """Put what a lane has back into the full tensor."""
    rows, columns = place or (None, None)
    if rows is None:
        full.copy_(part)
    elif columns is None:
        full.index_copy_(_channel_axis(full, rows), rows, part)
    else:
        full[rows.unsqueeze(1), columns] = part


def _channel_axis(full: Tensor, rows: Tensor) -> int:
    """Layers have their channels along the first axis; a bare parameter such as [1, C, 1, 1] where it is long."""
    if full.shape[0] > 1 or not len(rows) or int(rows.max()) == 0:
        return 0
    return max(range(full.dim()), key=lambda i: full.shape[i])
