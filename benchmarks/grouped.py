"""Lanes as a GPU trains them: padded to their shape class, batched, a class's whole step one CUDA graph.

    >>> program = Program(groups_of(Data("cuda"), count=256, classes="powers"), graphed=True)
    >>> errors = program.train()

A lane is padded with silent units: their weights are zero, and relu keeps them so. Classes run side by side on streams
of their own. Without a graph the very same step runs eagerly, on a CPU too.

Legend of shape suffixes: K lanes, S steps, B batch, T a whole flat buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import job
from search_spaces.cost import mlp_training_flops
from trials.batches import Rows
from trials.lanes.dense import DenseLanes, DenseShape
from trials.metrics import measure
from trials.noise import data_order
from trials.optimisers import Rule

CLASSES = ("powers", "one")  # each width padded to a power of two, or all to the widest
LEAST = 4  # the smallest padded width
WARM_UPS = 3  # eager steps before a capture, in which libraries allocate and choose their kernels


class Data:
    """Rows and the data order on the device."""

    def __init__(self, device: str, epochs: int = job.EPOCHS) -> None:
        task, self.device = job.task(), torch.device(device)
        self.train = Rows.of(task, "train", "outer", dense=True, device=self.device)
        self.selection = Rows.of(task, "selection", dense=True, device=self.device)
        self.steps = job.steps(epochs)
        order = data_order(job.SEED, len(self.train.y_R), job.BATCH, self.steps)
        self.order_SB = torch.from_numpy(order).to(self.device)


class Group:
    """All lanes of one shape class: `trials` are (number, point), `padded` the class's hidden sizes."""

    def __init__(
        self, data: Data, trials: Sequence[tuple[int, dict[str, Any]]], padded: tuple[int, ...], *, grouped: bool = True
    ) -> None:
        self.data, self.numbers = data, [number for number, _ in trials]
        task, self.live = job.task(), [widths(point) for _, point in trials]
        shape = DenseShape(inputs=task.inputs, outputs=task.outputs)
        sizes = [padded] * len(trials) if grouped else self.live
        self.lanes = DenseLanes(shape, sizes, job.BATCH, grouped=grouped, device=data.device)
        self.lanes.initialise([(job.SEED, number, 0) for number in self.numbers], live=self.live)
        self._silence()
        self._begin_T = self.lanes.weights_T.clone()
        hyper = {name: torch.tensor([float(point[name]) for _, point in trials]) for name in ("lr", "momentum")}
        self.lanes.attach(Rule(kind="sgd", uses=frozenset(hyper)), hyper)
        self._at = torch.zeros(1, dtype=torch.int64, device=data.device)

    def _silence(self) -> None:
        """Weights of units beyond the live ones are zero; relu then gives them no gradient, so they stay zero."""
        for lane, live in enumerate(self.live):
            for i, matrix in enumerate(self.lanes.matrices(lane)):
                if i < len(live):
                    matrix[live[i] :] = 0.0
                if i:
                    matrix[:, 1 + live[i - 1] :] = 0.0

    def step(self) -> None:
        """One training step; all that changes from step to step lies on the device, so it can be a CUDA graph."""
        rows_B = self.data.order_SB.index_select(0, self._at).view(-1)
        self.lanes.step(*self.data.train.batch(rows_B))
        self._at.add_(1)

    def rewind(self) -> None:
        """Back to before the first step, in the same buffers."""
        self.lanes.weights_T.copy_(self._begin_T)
        for state_T in self.lanes.optimiser.state.values():
            state_T.zero_()
        self._at.zero_()

    def errors(self) -> dict[int, float]:
        """Each trial's selection error."""
        rows = self.data.selection
        error_K: Tensor = measure(job.task().kind, self.lanes.predict(rows.x), rows.y_R)["val_error"]
        return dict(zip(self.numbers, error_K.tolist(), strict=True))

    def executed_flops(self) -> float:
        """FLOPs of one step, padding included."""
        task = job.task()
        return float(job.BATCH * sum(mlp_training_flops(task.inputs, s, task.outputs) for s in self.lanes.sizes))


def widths(point: dict[str, Any]) -> tuple[int, int]:
    """The hidden sizes of a point."""
    return int(point["width.0"]), int(point["width.1"])


def padded(sizes: Sequence[int], classes: str) -> tuple[int, ...]:
    """The shape class of a network."""
    if classes == "one":
        return (job.WIDTHS[1],) * len(sizes)
    return tuple(max(LEAST, 1 << (size - 1).bit_length()) for size in sizes)


def groups_of(data: Data, count: int, classes: str) -> list[Group]:
    """The first `count` trials by their shape class."""
    members: dict[tuple[int, ...], list[tuple[int, dict[str, Any]]]] = {}
    for number, point in enumerate(job.points(count)):
        members.setdefault(padded(widths(point), classes), []).append((number, point))
    return [Group(data, trials, sizes) for sizes, trials in sorted(members.items())]


class Program:
    """Groups that train together. `graphed` captures each group's step once, on a stream of its own: a stream has its
    own cuBLAS workspace, so the graphs of two groups may run at the same time (two that share a stream take turns)."""

    def __init__(self, groups: Sequence[Group], *, graphed: bool) -> None:
        self.groups = list(groups)
        self.graphs = [self._captured(group) for group in groups] if graphed else []

    @staticmethod
    def _captured(group: Group) -> tuple[torch.cuda.CUDAGraph, torch.cuda.Stream]:
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                group.step()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            group.step()
        torch.cuda.synchronize()
        return graph, stream

    def train(self) -> dict[int, float]:
        """All steps from the beginning: each trial's selection error."""
        for group in self.groups:
            group.rewind()
        self._synchronize()
        for _ in range(self.groups[0].data.steps):
            if self.graphs:
                for graph, stream in self.graphs:
                    with torch.cuda.stream(stream):
                        graph.replay()
            else:
                for group in self.groups:
                    group.step()
        self._synchronize()
        return {number: error for group in self.groups for number, error in group.errors().items()}

    def _synchronize(self) -> None:
        if self.groups[0].data.device.type == "cuda":
            torch.cuda.synchronize()
