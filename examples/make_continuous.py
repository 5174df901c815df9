"""One line makes an ordinary network searchable: `python examples/make_continuous.py`.

The network below knows nothing of widths, nor of a depth. `make_continuous` follows its channels, ties what its sums
tie, puts a gate at every read and after every residual block, and returns the space of what they give a size to. Here
random search chooses among them; then the best is made a plain network again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from search_spaces.continuous import make_continuous
from service.driver import run
from service.networks import export_best
from service.spec import check
from trials.store import Store


class Block(nn.Module):
    """A residual block, as anybody writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(width, width), nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.second(torch.relu(self.norm(self.first(x))))
        return x + branch


def ordinary(inputs: int, outputs: int) -> nn.Module:
    """A stem, two blocks, a head."""
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), Block(64), Block(64), nn.ReLU(), nn.Linear(64, outputs))


def network(shape: Sequence[int], outputs: int) -> nn.Module:
    """The same with gates: what `network: "make_continuous:network"` names."""
    return make_continuous(ordinary(shape[0], outputs), width=(0.1, 1.0), depth=(0.5, 1.0), example=(2, *shape))[0]


def main() -> None:
    """Search widths and depth, and write the best network as a plain Python file with its weights."""
    _, space = make_continuous(ordinary(13, 3), width=(0.1, 1.0), depth=(0.5, 1.0), example=(2, 13))
    print("sizes found: " + ", ".join(f"{name} {p['low']:g} to {p['high']:g}" for name, p in space.to_dict().items()))
    data = {
        "name": "made-continuous",
        "task": "uci/wine",
        "network": "make_continuous:network",
        "space": {**space.to_dict(), "lr": {"type": "float", "low": 0.01, "high": 1.0, "log": True}},
        "training": {"batch_size": 32, "epochs": 10},
        "search": {"sampler": "random"},
        "constraints": {"parameters": {"max": 3000}},
        "budget": {"trials": 12},
        "resources": {"lanes": 6, "way": "per_lane"},
    }
    here = Path(__file__).parent
    spec, task = check(data, directory=here)
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory) / "store")
        result = run(spec, task, store, executor="here", directory=here)
        best = result.progress.best
        assert best is not None
        print(f"best: trial {best.number}, {spec.objective.metric} {best.value:.3f}, {best.rounded}")
        exported = export_best(store.search(result.search_id), Path(directory) / "best.py")
        print(f"as plain Python, {exported['parameters']:.0f} parameters:\n")
        print((Path(directory) / "best.py").read_text())


if __name__ == "__main__":
    main()
