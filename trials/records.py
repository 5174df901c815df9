"""What travels between the controller, the workers and the store: frozen values, no behaviour beyond their own facts.

    Trial    one point of the space, followed across rungs
    Bundle   trials of equal signature, trained together; one *lane* per (trial, replicate)
    Start    the checkpoint that a bundle goes on from
    Report   what a trial measured at a step
    Outcome  how one attempt at a trial ended, and where gradients left its point

`Trial.point` is what was asked; `Outcome.point` is where it ended. They are equal where nothing was moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from search_spaces import Point


class Ending(StrEnum):
    """How an attempt at a trial ended. Only COMPLETE carries a value; the others are told to a sampler as failures."""

    COMPLETE = "complete"
    PRUNED = "pruned"  # not promoted to the next rung
    NAN = "nan"  # the loss left the finite numbers
    INFEASIBLE = "infeasible"  # a gradient moved it to where no whole network near it meets the bounds
    OOM = "oom"
    ERROR = "error"  # user code raised
    TIMEOUT = "timeout"
    PREEMPTED = "preempted"  # its worker died or was withdrawn; retried
    CANCELLED = "cancelled"

    @property
    def retried(self) -> bool:
        """Whether another attempt may do better: the cause lies in the machine, not in the trial."""
        return self in (Ending.PREEMPTED, Ending.OOM)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of a search. `number` counts from 0 in the order asked; `seed` is the search's own."""

    search_id: str
    number: int
    point: Point
    seed: int = 0

    @property
    def id(self) -> str:
        """Unique over all searches of a store."""
        return trial_id(self.search_id, self.number)


def trial_id(search_id: str, number: int) -> str:
    """The one place that knows how a trial's id is spelt."""
    return f"{search_id}-t{number:06d}"


@dataclass(frozen=True, kw_only=True)
class Start:
    """A checkpoint that another bundle's lanes, or some of them, go on from: whose it is, and after how many steps."""

    bundle_id: str
    attempt: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Trials of equal signature that train as one program. `attempt` counts from 0; `seconds` is how long it may take
    before its trials end as CANCELLED (None: without limit); `start` is where its lanes go on (None: at the start)."""

    search_id: str
    id: str
    attempt: int = 0
    generation: int
    trials: tuple[Trial, ...]
    seconds: float | None = None
    start: Start | None = None


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What something cost. FLOPs count 2 per multiply-add of the layers; padding and hypergradient passes stand in
    `executed_flops` only."""

    flops: float = 0.0
    executed_flops: float = 0.0
    device_s: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            flops=self.flops + other.flops,
            executed_flops=self.executed_flops + other.executed_flops,
            device_s=self.device_s + other.device_s,
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a trial measured after `step` steps: metrics (NaN and inf included), live architecture, cost so far."""

    trial_id: str
    bundle_id: str
    attempt: int
    step: int
    metrics: Mapping[str, float]
    architecture: Mapping[str, float] = field(default_factory=dict)
    spent: Spent = Spent()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one attempt at a trial ended. `value` is the objective's mean over replicates (None unless COMPLETE);
    `started`, `ended` are Unix seconds; `error` the tail of a traceback, `said` of what the user's code printed."""

    trial_id: str
    number: int
    bundle_id: str
    attempt: int
    ending: Ending
    point: Point
    value: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    rounded: Point = field(default_factory=dict)
    step: int = 0
    spent: Spent = Spent()
    started: float = 0.0
    ended: float = 0.0
    worker: str = ""
    checkpoint: str | None = None
    error: str | None = None
    said: str | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that an attempt's lanes are after `step` steps, as named tensors whose first axis is the lane or the trial
    (`trials` gives the order), so that any of its trials can go on in another bundle. `code` is the digest of the
    user's own code that trained them ("": none did)."""

    bundle_id: str
    attempt: int
    step: int
    trials: tuple[int, ...]
    tensors: Mapping[str, Any]
    code: str = ""


def outcome_of(trial: Trial, bundle: Bundle, ending: Ending, **facts: Any) -> Outcome:
    """The outcome of one of a bundle's trials; its point is the one asked, unless `facts` has another."""
    own = {"trial_id": trial.id, "number": trial.number, "bundle_id": bundle.id, "attempt": bundle.attempt}
    return Outcome(**{"point": trial.point, **facts, **own}, ending=ending)
