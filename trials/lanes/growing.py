"""Growth in a lane of any traced module: its weights are rewritten where a unit's grade has just left 0.

    >>> growing = Growing(start, "gradmax", loss="cross_entropy")
    >>> growing.grow(lane, batch)

What each kind does stands in `search_spaces.growth`. A unit that comes back begins anew, as one that never was; with
`fresh`, for which nothing is to be done here, it goes on with the weights that it left.

Legend of shape suffixes: N units of a gate, O outputs, I inputs, C numbers that a unit reads, W that it writes into.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.flow import Segment, Use
from search_spaces.growth import Units, Window, gradient_matrix, grown
from trials.lanes.initial import Identity, Start
from trials.lanes.masks import as_long
from trials.lanes.program import loss_of, still
from trials.noise import fold, uniform

AWAKE = 1e-3  # share of the initial weights by which gradmax's units are off 0, where a relu has no slope


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One lane as growth sees it: views of its parameters and running statistics by path, as many initial ones, whose
    they are, a module of the same weights, and for each gate which units were and are members, and their grades."""

    views: Mapping[str, Tensor]
    initial: Mapping[str, Tensor]
    identity: Identity
    module: nn.Module
    before: Mapping[str, Tensor]
    now: Mapping[str, Tensor]
    grades: Mapping[str, Tensor]


class Growing:
    """The growth of one program's lanes."""

    def __init__(self, start: Start, kind: str, loss: str) -> None:
        self.uses, self.gates, self.kind, self.loss = start.flow.uses, start.gates, kind, loss
        self.widths = frozenset(start.flow.groups)  # a block or an edge begins with the weights that it has

    def grow(self, lane: Lane, batch: tuple[Tensor, Tensor] | None) -> None:
        """Rewrite the weights of units that have become members, in place."""
        passed = None
        for g, gate in enumerate(self.gates):
            living_N = as_long(lane.before[gate], len(lane.now[gate]))
            new_N = lane.now[gate].cpu() & ~living_N
            if gate not in self.widths or not new_N.any():
                continue
            if self.kind == "gradmax" and batch is not None and passed is None:
                passed = _passed(lane.module, self._layers(lane.views), self.loss, batch)
            units, initial = self._units(gate, lane.views), self._units(gate, lane.initial)
            if not units.outgoing:
                continue  # its block is not laid out
            device = units.outgoing[0].device
            key = fold(lane.identity[0], "growth", *lane.identity[1:], g)
            after = grown(
                self.kind,
                units,
                initial,
                living_N=living_N.to(device),
                new_N=new_N.to(device),
                grades_N=lane.grades[gate].to(units.outgoing[0]),
                uniform_N2=uniform(key, len(new_N), 2).to(device),
                matrix_WC=None if passed is None else self._matrix(gate, lane.module, passed),
                incoming=AWAKE,
            )
            for old, new in zip(everything(units), everything(after), strict=True):
                old.copy_(new)

    def _units(self, gate: str, views: Mapping[str, Tensor]) -> Units:
        """The parts of a lane's tensors that belong to a gate's units."""
        incoming: list[Tensor] = []
        outgoing: list[Tensor] = []
        norms: list[Tensor] = []
        for use in {use.path: use for use in reversed(self.uses)}.values():
            names = [f"{use.path}.{n}" for n in ("weight", "bias", "running_mean", "running_var")]
            for place, _ in _runs(use.outputs, gate, views, names[0] if use.kind != "parameter" else use.path):
                own = [views[name][place] for name in names if name in views]
                (incoming if use.kind in ("linear", "conv") else norms).extend(own)
            if use.kind in ("linear", "conv") and names[0] in views:
                weight = views[names[0]]
                for place, repeat in _runs(use.inputs, gate, views, names[0], axis=1):
                    part = weight[:, place]
                    outgoing.append(part.view(len(part), -1, repeat) if repeat > 1 else part)
        return Units(incoming=tuple(incoming), outgoing=tuple(outgoing), norms=tuple(norms))

    def _layers(self, views: Mapping[str, Tensor]) -> dict[str, Use]:
        """The layers that mix channels, of those that a lane has."""
        mixing = {use.path: use for use in self.uses if use.kind in ("linear", "conv")}
        return {path: use for path, use in mixing.items() if f"{path}.weight" in views}

    def _matrix(self, gate: str, module: nn.Module, passed: Passed) -> Tensor:
        """GradMax's matrix of all the gate's readers (below each other) and writers (beside each other)."""
        (read, delta, sides) = passed
        layers = {use.path: use for use in self.uses if use.path in read}
        writers = [path for path, use in layers.items() if _has(use.outputs, gate)]
        readers = [path for path, use in layers.items() if _has(use.inputs, gate)]
        normed = any(use.kind == "norm" and _has(use.outputs, gate) for use in self.uses)
        rows = []
        for path in readers:
            blocks = []
            for other in writers:
                writer, reader = module.get_submodule(other), module.get_submodule(path)
                x = read[other] - read[other].mean([i for i in range(read[other].dim()) if i != 1], keepdim=True)
                blocks.append(_block(writer, reader, x if normed else read[other], delta[path], sides[path]))
            rows.append(torch.cat(blocks, 1))
        return torch.cat(rows, 0)


def everything(units: Units) -> Iterator[Tensor]:
    """All tensors of some units."""
    yield from (*units.incoming, *units.outgoing, *units.norms)


def _has(segments: Sequence[Segment], gate: str) -> bool:
    return any(segment.group.root.gate == gate for segment in segments)


def _runs(
    segments: Sequence[Segment], gate: str, views: Mapping[str, Tensor], name: str, axis: int = 0
) -> Iterator[tuple[slice, int]]:
    """Where a gate's units lie among the channels of a tensor, and how often each stands; whatever is not the gate's
    has as many channels as at the network's maximum unless it stands alone."""
    if not _has(segments, gate) or name not in views:
        return
    if len(segments) == 1:
        yield slice(None), segments[0].repeat
        return
    raise ValueError(f"growth: {name} reads or writes several widths side by side; take growth: fresh")


Passed = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, tuple[int, ...]]]


def _passed(module: nn.Module, paths: Iterable[str], loss: str, batch: tuple[Tensor, Tensor]) -> Passed:
    """One pass there and back: what each layer reads, the gradient by what it writes, the shape of what it reads."""
    read: dict[str, Tensor] = {}
    written: dict[str, Tensor] = {}
    hooks = []

    def watch(path: str) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            read[path], written[path] = inputs[0].detach(), output

        hooks.append(module.get_submodule(path).register_forward_hook(hook))

    for path in paths:
        watch(path)
    try:
        with torch.enable_grad(), still(module):
            x, y_BO = batch
            gradients = torch.autograd.grad(loss_of(loss, module(x), y_BO), [written[path] for path in paths])
    finally:
        for hook in hooks:
            hook.remove()
    return read, dict(zip(paths, gradients, strict=True)), {path: tuple(x.shape[1:]) for path, x in read.items()}


def _block(writer: nn.Module, reader: nn.Module, x: Tensor, delta: Tensor, sides: tuple[int, ...]) -> Tensor:
    """The matrix of one writer and one reader; poolings between them count as averages."""

    def between(read: Tensor) -> Tensor:
        if read.dim() == 2:
            return read
        if len(sides) > 1:
            return read if read.shape[2:] == sides[1:] else functional.adaptive_avg_pool2d(read, sides[1:])  # type: ignore[arg-type]
        return read.mean((2, 3))

    bias = getattr(writer, "bias", None) is not None
    return gradient_matrix(x, delta, writer=_window(writer), reader=_window(reader), bias=bias, between=between)


def _window(layer: nn.Module) -> Window | None:
    if not isinstance(layer, nn.Conv2d):
        return None
    assert not isinstance(layer.padding, str)
    return Window(
        kernel=layer.kernel_size,  # type: ignore[arg-type]
        stride=layer.stride,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        dilation=layer.dilation,  # type: ignore[arg-type]
    )
