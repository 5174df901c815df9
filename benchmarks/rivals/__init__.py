"""Other ways to run the fixed job, each one file that imports nothing of continua and reads its inputs as arrays.

numpy_pair   worker processes of hand-written numpy: the honest bar on a CPU
torch_plain  one training as anybody writes it in torch; what the next two tune
optuna_pair  worker processes of Optuna that share a journal file
ray_optuna   Ray Tune with its OptunaSearch
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One trial of a replay: its selection error (NaN where the network left the finite numbers), when it began and
    ended (Unix seconds), and which worker trained it. Trials of a bundle began and ended together."""

    number: int
    val_error: float
    started: float
    ended: float
    worker: str


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The job's arrays (`benchmarks.job.inputs` says which)."""

    arrays: dict[str, np.ndarray]

    @classmethod
    def load(cls, path: Path | str) -> Inputs:
        """Everything in the file, read once."""
        with np.load(path) as stored:
            return cls(arrays=dict(stored))

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __len__(self) -> int:
        return len(self["lr"])

    def weights(self, number: int) -> list[np.ndarray]:
        """A trial's initial weights, [out, in] for each layer."""
        return [self[f"weights.{number}.{i}"] for i in range(self["widths"].shape[1] + 1)]

    def number_of(self, widths: tuple[int, int], lr: float, momentum: float) -> int:
        """The trial whose point this is."""
        same = (self["widths"] == widths).all(1) & (self["lr"] == lr) & (self["momentum"] == momentum)
        return int(np.flatnonzero(same)[0])


def evaluation_steps(steps: int, evaluations: int = 4) -> set[int]:
    """After which steps the selection rows are measured, the last step included."""
    return {-(-steps * part // evaluations) for part in range(1, evaluations + 1)}


def error_rate(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of rows whose largest logit is not their label's, logits [rows, classes]."""
    if not np.isfinite(logits).all():
        return float("nan")
    return float((logits.argmax(1) != labels).mean())
