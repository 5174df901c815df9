"""The training steps of grouped lanes on rows that lie on the device; on a GPU a whole step is one CUDA graph.

    >>> steps = Steps(program, rows, order_SB, graphed=True)
    >>> steps.train(0)

A graph replays the very same kernels on the very same buffers, so all that changes from step to step lies on the device
and is written in place: which rows come next, weights, rates, grades. It is captured after a few steps as they are, in
which libraries choose and load their kernels, and anew when the program's lanes are laid out in other buffers.

Legend of shape suffixes: S steps, B batch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from trials.batches import Rows
from trials.lanes.gated import DenseProgram

WARM_UPS = 2  # steps before a capture


class Replayed(Protocol):
    """What has been captured."""

    def replay(self) -> None:
        """Do it again."""


class Steps:
    """Trains a program on the batches of an order, [S, B] places of rows. Without `graphed` each step runs as it is."""

    def __init__(self, program: DenseProgram, rows: Rows, order_SB: Tensor, *, graphed: bool) -> None:
        self.program, self.rows, self.order_SB, self.graphed = program, rows, order_SB, graphed
        self._at = torch.zeros(1, dtype=torch.int64, device=order_SB.device)  # the step to come
        self._next, self._warm = 0, 0
        self._graph: Replayed | None = None
        self._buffers: object = None  # those that the graph works on

    def train(self, step: int) -> None:
        """One training step of every lane, by its number."""
        if self._next != step:
            self._at.fill_(step)
        self._next = step + 1
        if not self.graphed:
            self._step()
            return
        if self._buffers is not self.program.buffers:
            self._graph, self._warm, self._buffers = None, 0, self.program.buffers
        if self._graph is None and self._warm >= WARM_UPS:
            self._graph = captured(self._step, self._at.device)
        if self._graph is not None:
            self._graph.replay()
        else:
            aside(self._step, self._at.device)
            self._warm += 1

    def _step(self) -> None:
        rows_B = self.order_SB.index_select(0, self._at).view(-1)
        self.program.step(*self.rows.batch(rows_B))
        self._at.add_(1)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all captures of a process: libraries keep a workspace for every stream that they have seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@functools.cache
def _anchor(device: torch.device) -> torch.cuda.CUDAGraph:
    """A graph that nobody replays and that is always there, with the pool of memory that all captures of a process
    share, for one of them is replayed at a time. (The pool of a graph that is gone is kept and never used again; a pool
    without a graph cannot be captured into.)"""
    graph, nothing = torch.cuda.CUDAGraph(), torch.zeros(1, device=device)

    def capture() -> None:
        graph.capture_begin(capture_error_mode="thread_local")
        nothing.add_(1.0)
        graph.capture_end()

    aside(capture, device)
    return graph


def aside(work: Callable[[], None], device: torch.device) -> None:
    """Do something in the stream of captures, after all that has been asked for and before all that comes."""
    stream = _stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream(device).wait_stream(stream)


def captured(work: Callable[[], None], device: torch.device) -> Replayed:
    """Something as a CUDA graph; it is not done yet. (`torch.cuda.graph` would wait for the device and hand back all
    memory that torch keeps, which takes longer than many steps.)"""
    graph, pool = torch.cuda.CUDAGraph(), _anchor(device).pool()

    def capture() -> None:
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            work()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # what is wrong with the capture is what went wrong in it
                graph.capture_end()
            raise
        graph.capture_end()

    aside(capture, device)
    return graph
