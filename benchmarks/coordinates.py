"""The coordinate check: how a network's scale and its best learning rate follow its width, by parametrisation.

    python -m benchmarks.coordinates            # a table, about a minute
    python -m benchmarks.coordinates --quick

Two hidden layers of equal width on UCI digits. `scale` is the exponent p of  |change of the logits| ~ width^p  after a
few steps: 0 says that a learning rate means the same at every width. `drift` is the greatest best learning rate over
the smallest, from a grid of powers of two, by training loss; the last columns are that rate and its loss at each width.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trials.batches import Rows
from trials.lanes.dense import DenseLanes, DenseShape
from trials.metrics import measure
from trials.noise import data_order
from trials.optimisers import Rule
from trials.tasks import load

WIDTHS = (8, 16, 32, 64, 128, 256, 512)
KINDS = ("sp", "mup", "ntk")
GRID = {"sgd": [2.0**i for i in range(-7, 3)], "adam": [2.0**i for i in range(-11, -2)]}
RATE = {"sgd": 0.125, "adam": 2.0**-8}  # at which the scale is measured
BATCH, STEPS = 64, 5


def lanes_of(kind: str, optimizer: str, width: int, rates: Sequence[float], seeds: int, top: int) -> DenseLanes:
    """Lanes of one width: each rate in turn, with each seed."""
    hyper = [rate for rate in rates for _ in range(seeds)]
    lanes = DenseLanes(
        DenseShape(inputs=64, outputs=10, parametrisation=kind, maxima=(top, top)),
        [(width, width)] * len(hyper),
        BATCH,
        gated=kind == "ntk",
    )
    lanes.initialise([(0, 0, seed) for _ in rates for seed in range(seeds)])
    uses = frozenset({"lr"} if optimizer == "sgd" else {"lr", "beta1", "beta2"})
    betas = {"beta1": torch.full((len(hyper),), 0.9), "beta2": torch.full((len(hyper),), 0.999)}
    lanes.attach(Rule(kind=optimizer, uses=uses), {"lr": torch.tensor(hyper), **betas})
    if kind == "ntk":
        lanes.grade([[torch.full((width,), (top / width) ** 0.5)] * 2 for _ in hyper])
    return lanes


def trained(lanes: DenseLanes, rows: Rows, steps: int) -> DenseLanes:
    """The lanes after that many steps."""
    order = torch.from_numpy(data_order(0, len(rows.y_R), BATCH, steps))
    for step in range(steps):
        lanes.step(*rows.batch(order[step]))
    return lanes


def best_rate(
    kind: str, optimizer: str, width: int, rows: Rows, epochs: int, seeds: int, top: int
) -> tuple[float, float]:
    """The learning rate of the grid with the least training loss, and that loss."""
    grid = GRID[optimizer]
    lanes = trained(lanes_of(kind, optimizer, width, grid, seeds, top), rows, epochs * len(rows.y_R) // BATCH)
    loss_K: Tensor = measure("classification", lanes.predict(rows.x), rows.y_R)["val_loss"]
    mean = loss_K.nan_to_num(math.inf, math.inf).view(len(grid), seeds).mean(1)
    return grid[int(mean.argmin())], float(mean.min())


def change(kind: str, optimizer: str, width: int, rows: Rows, seeds: int, top: int) -> float:
    """The root mean square by which logits change in the first steps."""
    lanes = lanes_of(kind, optimizer, width, [RATE[optimizer]], seeds, top)
    before = lanes.predict(rows.x).clone()
    return float((trained(lanes, rows, STEPS).predict(rows.x) - before).square().mean().sqrt())


def exponent(widths: Sequence[int], values: Sequence[float]) -> float:
    """The slope of log value against log width, by least squares."""
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (widths, values))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two epochs, one seed")
    quick = parser.parse_args().quick
    epochs, seeds, top = (2, 1, max(WIDTHS)) if quick else (5, 3, max(WIDTHS))
    rows = Rows.of(load("uci/digits"), "train", "outer", dense=True, device=torch.device("cpu"))
    heads = ["optimizer", "parametrisation", "scale", "drift", *(f"at {w}" for w in WIDTHS)]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * (len(WIDTHS) + 4))
    for optimizer in GRID:
        for kind in KINDS:
            changes = [change(kind, optimizer, width, rows, seeds, top) for width in WIDTHS]
            best = [best_rate(kind, optimizer, width, rows, epochs, seeds, top) for width in WIDTHS]
            rates = [rate for rate, _ in best]
            cells = [optimizer, kind, f"{exponent(WIDTHS, changes):+.2f}", f"{max(rates) / min(rates):g}x"]
            print("| " + " | ".join([*cells, *(f"{r:.3g} ({loss:.3f})" for r, loss in best)]) + " |", flush=True)


if __name__ == "__main__":
    main()
