"""A network of your own with three gates, whose widths are searched: `python examples/own_network.py`.

A gate multiplies what a layer wrote by grades in [0, 1]; its real size is a parameter of the space under the gate's
name. Put it after the norm and activation, where the next layer reads. The same search from a file is
`network: "own_network:network"`, in a YAML beside this module.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from search_spaces.width import WidthGate
from service.driver import run
from service.spec import check
from trials.store import Store


class Network(nn.Module):
    """Two branches that read the same rows, side by side, and a head."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.smooth = nn.Sequential(nn.Linear(inputs, 48), nn.Tanh(), WidthGate("smooth", 48))
        self.sharp = nn.Sequential(nn.Linear(inputs, 64), nn.BatchNorm1d(64), nn.ReLU(), WidthGate("sharp", 64))
        self.mixed = nn.Sequential(nn.Linear(48 + 64, 32), nn.ReLU(), WidthGate("mixed", 32))
        self.head = nn.Linear(32, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.mixed(torch.cat([self.smooth(x), self.sharp(x)], 1)))
        return out


def network(shape: Sequence[int], outputs: int) -> nn.Module:
    """What `network: "own_network:network"` names: it is given the shape of a row and the number of outputs."""
    return Network(shape[0], outputs)


SPEC = {
    "name": "own-network",
    "task": "uci/wine",
    "network": "own_network:network",
    "space": {
        "smooth": {"type": "width", "low": 1, "high": 48, "moved_by": "gradient"},
        "sharp": {"type": "width", "low": 1, "high": 64, "moved_by": "gradient"},
        "mixed": {"type": "width", "low": 1, "high": 32, "moved_by": "gradient"},
        "lr": {"type": "float", "low": 0.01, "high": 1.0, "log": True},
    },
    "training": {"batch_size": 32, "epochs": 20},
    "search": {"hypergradient": {"kind": "bilevel", "warmup": 10}},
    "constraints": {"parameters": {"max": 600}},
    "budget": {"trials": 12},
    "resources": {"lanes": 6, "way": "per_lane"},
}


def main() -> None:
    """Search, and say where the widths of the best trial began and ended."""
    here = Path(__file__).parent
    spec, task = check(SPEC, directory=here)
    with tempfile.TemporaryDirectory() as store:
        result = run(spec, task, Store(store), executor="here", directory=here)
    best = result.progress.best
    assert best is not None
    print(f"best: trial {best.number}, {spec.objective.metric} {best.value:.3f}")
    for gate in ("smooth", "sharp", "mixed"):
        print(f"  {gate}: ended at {best.point[gate]:.2f}, {best.rounded[gate]} units when whole")
    gap = best.metrics["discretisation_gap"]
    print(f"  {best.metrics['parameters']:.0f} parameters, discretisation gap {gap:+.3f}")


if __name__ == "__main__":
    main()
