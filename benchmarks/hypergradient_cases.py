"""Bundles whose architecture moves, as a search runs them, for `hypergradients`: one outer step at a time.

>>> one = Case("unrolled", steps=10, lanes=1)
>>> one.outer_step()  # ten training steps, the derivative through them, and the move

A multi-layer perceptron 64-32-32-10 on UCI digits, batches of 64, SGD with a momentum of 0.9. Both widths move, 4 to 32
by the default membership, so every lane is laid out at 32. The outer rate is 0: every move is computed, and none of
them changes the work of the next one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from search_spaces import Space
from search_spaces.networks import MLP
from trials.batches import Rows
from trials.fused import FusedRun
from trials.hypergradients import Method
from trials.hypergradients.inner import Derivative
from trials.lanes.program import Batch
from trials.plan import Plan
from trials.records import Bundle, Trial
from trials.tasks import load
from trials.training import Training

WIDTH, BATCH, MOMENTUM = 32, 64, 0.9
HORIZON = 10  # of `truncated`
PLAIN = "plain"
_METHODS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "descent": {"kind": "descent"},
    "bilevel": {"kind": "bilevel"},
    "bilevel second order": {"kind": "bilevel", "order": "second"},
    "implicit neumann": {"kind": "implicit", "terms": 10},
    "implicit cg": {"kind": "implicit", "solver": "cg", "terms": 10},
    "unrolled": {"kind": "unrolled"},
    "unrolled checkpoints": {"kind": "unrolled", "checkpoints": True},
    "truncated": {"kind": "truncated", "horizon": HORIZON},
    "forward": {"kind": "forward"},
    "reversible": {"kind": "reversible"},
    "hypernet": {"kind": "hypernet"},
}
INSTANT = tuple(name for name, own in _METHODS.items() if own and not Method(**own).window)  # a move after every step
THROUGH = tuple(
    name for name, own in _METHODS.items() if own and Method(**own).window
)  # a move after T steps of theirs


def method_named(name: str, steps: int) -> Method:
    """A method that moves after so many training steps, without a warmup."""
    if name == PLAIN:
        return Method()
    return Method(**{"every": steps, "warmup": 0, "lr": 0.0, **_METHODS[name]})


def plan_of(method: Method, steps: int, width: int) -> Plan:
    """A search by that method, whose trainings are long enough for one move."""
    moved = {} if method.kind == "none" else {"moved_by": "gradient"}
    space = {f"width.{i}": {"type": "width", "low": 4, "high": width, **moved} for i in range(2)}
    task = load("uci/digits")
    epochs = max(20, -(-2 * steps * BATCH // len(task.rows("train").y)))
    return Plan(
        space=Space.from_dict(space),
        task=task,
        network=MLP(layers=2),
        training=Training(batch_size=BATCH, lr=0.05, momentum=MOMENTUM, epochs=epochs),
        method=method,
    )


@functools.cache
def _rows(*splits: str) -> Rows:
    return Rows.of(load("uci/digits"), *splits, dense=True, device=torch.device("cpu"))


class Case:
    """One bundle by a method that moves after so many steps; `first` is the number of its first trial, `width` how wide
    it is laid out."""

    def __init__(self, name: str, *, steps: int = 1, lanes: int = 1, first: int = 0, width: int = WIDTH) -> None:
        self.name, self.steps = name, steps
        plan = plan_of(method_named(name, steps), steps, width)
        if name == PLAIN:  # as wide as the others are laid out
            points = [{"width.0": float(width), "width.1": float(width)}] * lanes
        else:
            points = [{"width.0": 20.3 + k % 8, "width.1": 27.6 - k % 8} for k in range(first, first + lanes)]
        trials = tuple(Trial(search_id="s", number=first + k, point=dict(p)) for k, p in enumerate(points))
        bundle = Bundle(search_id="s", id="b", generation=0, trials=trials)
        self.run = FusedRun(plan, bundle, _rows, torch.device("cpu"))
        assert self.run.program.sizes == [(width, width)] * lanes
        self.order = self.run._order(self.run.data, "order")
        self.outer_order = self.run._order(self.run.outer, "outer order")
        self._done = 0

    def outer_step(self) -> None:
        """The training steps of one move and the move; of `plain` one training step."""
        if self._done + self.steps > self.run.steps:
            self._done = 0
        with torch.inference_mode() if self.name == PLAIN else torch.no_grad():
            self._done += self.run._advance(self._done, self.order, self.outer_order)

    def parts(self) -> dict[str, Callable[[], object]]:
        """What a first-order move is made of: the derivative, the step of what moves, and what FLOPs cost from then."""
        run, architecture = self.run, self.run.architecture
        assert architecture is not None
        outer = run.outer.batch(self.outer_order[0])
        with torch.no_grad():
            gradient_KP = architecture.direct(0, *outer)

        def without_graph(work: Callable[[], object]) -> Callable[[], object]:
            def called() -> object:
                with torch.no_grad():
                    return work()

            return called

        return {
            "derivative": without_graph(lambda: architecture.direct(0, *outer)),
            "move": without_graph(lambda: architecture.move(gradient_KP, 0.0, outer)),
            "ledger": without_graph(run._set_rates),
        }

    def batches(self) -> tuple[list[Batch], Batch]:
        """What a derivative through so many steps reads: their batches, and the outer one."""
        outer = self.run.outer.batch(self.outer_order[0])
        return [self.run._batch(step, self.order) for step in range(self.steps)], Batch(*outer, self.steps)

    def derivative(self, batches: list[Batch], outer: Batch) -> Derivative:
        """The training steps and the derivative, without the move."""
        architecture, method = self.run.architecture, self.run.method
        assert architecture is not None
        assert method is not None
        with torch.no_grad():
            return method.derivative(architecture.inner(), architecture.state(), architecture.h_KP, batches, outer)
