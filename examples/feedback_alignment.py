"""Does feedback alignment train weights as well as backprop does, and does it tell gates the truth?

    python examples/feedback_alignment.py --picture feedback.png       # about a minute on one core
    python examples/feedback_alignment.py --quick --json               # seconds: two seeds, fewer epochs

Digits, one to three hidden layers of 64 units. Under direct feedback alignment (Nokland 2016) each of them hears of the
error through a fixed random matrix of its own, delta_l = (B_l e) . phi'. Both learners train by SGD with momentum 0.9,
each scored at the best of the same learning rates, on rows that no weight has seen. Where feedback has led, the
derivative of the loss in each unit's gate as feedback has it is held against the true one: the share of signs that are
right, layer by layer, at the start, in the middle and at the end of training (chance is 50 %).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window, no display

import torch
from matplotlib.figure import Figure
from torch import Tensor

from trials.batches import Rows
from trials.lanes.dense import DenseLanes, DenseShape
from trials.lanes.dense_functions import DenseFunctions
from trials.noise import data_order
from trials.optimisers import Rule
from trials.tasks import load
from trials.train import threads

LRS, UNITS, BATCH = (0.03, 0.1, 0.3, 1.0), 64, 64
WHEN = ("start", "middle", "end")


def agreement(lanes: DenseLanes, rows: Rows) -> list[float]:
    """By hidden layer, the share of gates whose derivative has the sign of the true one, over all lanes and batches."""
    found: list[list[Tensor]] = [[] for _ in range(lanes.hidden)]
    for places in torch.arange(len(rows.y_R) // BATCH * BATCH).view(-1, BATCH):
        told = lanes.grade_gradients(*rows.batch(places))
        by_lane = [lanes.lane_grades(k) for k in range(lanes.lanes)]
        grades = [torch.stack([lane[i] for lane in by_lane]).requires_grad_() for i in range(lanes.hidden)]
        losses_K = DenseFunctions(lanes).losses(lanes.weights_T, grades, *rows.batch(places))
        for i, true_KN in enumerate(torch.autograd.grad(losses_K.sum(), grades)):
            found[i].append((torch.stack([lane[i] for lane in told]) * true_KN).sign().flatten())
    signs = [torch.cat(layer) for layer in found]  # 0: a unit that is silent on the batch
    return [float((layer[layer != 0] > 0).double().mean()) for layer in signs]


def trained(layers: int, activation: str, learner: str, given: argparse.Namespace) -> dict[str, Any]:
    """The selection error of each rate, in %, and how signs agree at the best one."""
    task, cpu = load("uci/digits"), torch.device("cpu")
    train = Rows.of(task, "train", "outer", dense=True, device=cpu)
    selection = Rows.of(task, "selection", dense=True, device=cpu)
    shape = DenseShape(inputs=64, outputs=10, activation=activation, learner=learner)
    identities = [(0, layers, seed) for _ in LRS for seed in range(given.seeds)]
    steps = given.epochs * len(train.y_R) // BATCH
    order = torch.from_numpy(data_order(0, len(train.y_R), BATCH, steps))

    def begun(identities: Sequence[tuple[int, int, int]], lr_K: Tensor) -> DenseLanes:
        lanes = DenseLanes(shape, [(UNITS,) * layers] * len(identities), BATCH, gated=True)
        lanes.initialise(identities)
        lanes.attach(Rule(uses=frozenset({"lr", "momentum"})), {"lr": lr_K, "momentum": torch.full_like(lr_K, 0.9)})
        return lanes

    lanes = begun(identities, torch.tensor(LRS).repeat_interleave(given.seeds))
    for places in order:
        lanes.step(*train.batch(places))
    (x_RI,) = selection.chunks()
    wrong_K = (lanes.predict(x_RI).argmax(1) != selection.y_R).double().mean(1)
    errors = [100 * float(error) for error in wrong_K.view(len(LRS), given.seeds).mean(1)]
    best = errors.index(min(errors))
    told: dict[str, Any] = {"errors": errors, "lr": LRS[best], "error": errors[best]}
    if learner == "feedback":
        again, shares = begun(identities[: given.seeds], torch.full((given.seeds,), LRS[best])), []
        for part in (order[:0], order[: steps // 2], order[steps // 2 :]):
            for places in part:
                again.step(*train.batch(places))
            shares.append(agreement(again, selection))
        told["agree"] = dict(zip(WHEN, shares, strict=True))
    return told


def document(given: argparse.Namespace) -> dict[str, Any]:
    """Everything, as plain data."""
    rows = []
    for activation in ("relu", "tanh"):
        for layers in (1, 2, 3):
            back, feed = (trained(layers, activation, learner, given) for learner in ("backprop", "feedback"))
            row = {"activation": activation, "layers": layers, "backprop": back, "feedback": feed}
            rows.append({**row, "points": feed["error"] - back["error"]})
    return {"rows": rows, "lrs": list(LRS), "seeds": given.seeds, "epochs": given.epochs, "torch": torch.__version__}


def as_text(told: dict[str, Any]) -> str:
    """The table, and what holds."""
    title = f"| hidden layers | backprop, % (lr) | feedback, % (lr) | points | signs right, %: {' | '.join(WHEN)} |"
    lines = [title, "|---|---|---|---|---|---|---|"]
    for row in told["rows"]:
        errors = [f"{row[name]['error']:.2f} ({row[name]['lr']:g})" for name in ("backprop", "feedback")]
        signs = [" / ".join(f"{100 * share:.0f}" for share in row["feedback"]["agree"][when]) for when in WHEN]
        cells = [f"{row['layers']} {row['activation']}", *errors, f"{row['points']:+.2f}", *signs]
        lines.append(f"| {' | '.join(cells)} |")
    within = [f"{row['layers']} {row['activation']}" for row in told["rows"] if row["points"] < 1]
    lines += ["", f"Feedback is within a point of backprop for: {', '.join(within) or 'none of them'}."]
    ends = [round(100 * share) for row in told["rows"] for share in row["feedback"]["agree"]["end"]]
    lines.append(f"At the end {min(ends)} to {max(ends)} % of the gates' signs are right.")
    return "\n".join(lines)


def draw(told: dict[str, Any], path: Path) -> None:
    """The share of signs that agree, over training."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = dict(zip(("relu", "tanh"), figure.subplots(1, 2, sharey=True), strict=True))
    for row in told["rows"]:
        for layer, shares in enumerate(zip(*row["feedback"]["agree"].values(), strict=True)):
            name = f"{row['activation']}, layer {layer + 1} of {row['layers']}"
            panels[row["activation"]].plot(WHEN, [100 * share for share in shares], marker="o", label=name)
    for axes in panels.values():
        axes.legend(frameon=False, fontsize=8)
    figure.supylabel("gate signs that agree, %")
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, and print one table or one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two seeds, 8 epochs")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--picture", type=Path, help="draw it here (.png)")
    given = parser.parse_args(arguments)
    given.seeds, given.epochs = (2, 8) if given.quick else (5, 30)
    began = time.perf_counter()
    with threads(1):
        told = document(given)
    told["seconds"] = time.perf_counter() - began
    facts = f"{told['seeds']} seeds, {told['epochs']} epochs, torch {told['torch']}: {told['seconds']:.0f} s."
    print(json.dumps(told) if given.json else f"{as_text(told)}\n\n{facts}")
    if given.picture:
        draw(told, given.picture)


if __name__ == "__main__":
    main()
