"""What does one more neuron buy, and when does it show? The immediate loss says "shrink" where capacity is missing.

    python examples/capacity_sign_flip.py --picture docs/capacity.png    # about two minutes on one core
    python examples/capacity_sign_flip.py --quick                        # seconds: two teachers, 64 neurons
    python examples/capacity_sign_flip.py --json                         # one JSON object instead of the table

A teacher of 20 inputs, 10 hidden units and 10 outputs labels 512 train and 1,024 validation rows; a student of 5 units
is trained on them until it has converged, by gradient descent. Then 256 different sixth neurons are tried, each in five
ways (`search_spaces.growth`), and all 1,280 grown students train on, SGD at 0.05 with batches of 64, beside one student
that is left as it was: lanes of one program. A neuron hurts at k if, k steps on, the grown student's validation loss is
above that of the student left as it was, which has trained for as long (`trials.capacity.growing`).

    fresh     a random neuron of full scale: the case for which local search is misled
    scaled    the same, its outgoing weights times 0.1
    zero, net2net, gradmax   growth that leaves the function as it is: no harm at k = 0

All of it again with noise on the labels. Everything is float64, tanh, He initialisation, half the squared error; five
teachers, each with its own rows, student and neurons, so that no single one is luck.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window, no display

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from trials.capacity.growing import KINDS, GrowthChange, GrowthRows, growth_change
from trials.lanes.dense import DenseLanes, DenseShape
from trials.noise import fold, normal
from trials.optimisers import Rule
from trials.train import threads
from trials.training import Training

INPUTS, TEACHER, STUDENT, OUTPUTS = 20, 10, 5, 10
SHAPE = DenseShape(inputs=INPUTS, outputs=OUTPUTS, activation="tanh", loss="mse")
ROWS, VALIDATION = 512, 1024
CONVERGED = 4000  # full-batch steps of the student before it grows
LR, BATCH = 0.05, 64
KS = (0, 5, 20, 50, 100, 200)
NOISE = 0.5  # standard deviation of label noise, in standard deviations of the labels
COLOURS = dict(zip(KINDS, ("tab:red", "tab:orange", "tab:green", "tab:purple", "tab:blue"), strict=True))
#: the same table as it was found before, with a teacher and neurons that were not kept
BEFORE = {"fresh": (99.6, 97.7, 94.1, 61.3, 17.2, 0.4), "scaled": (65.6, 47.7, 12.1, 1.2, 0.0, 0.0)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One teacher, with or without label noise; how many neurons are tried, and rows of a batch."""

    seed: int
    noise: float
    candidates: int
    batch: int


# -- the problem -------------------------------------------------------------------------------------------------------


def rows_of(case: Case) -> GrowthRows:
    """What the teacher says of normal inputs; the noise differs on train and validation rows."""
    teacher = DenseLanes(SHAPE, [(TEACHER,)], 1, dtype=torch.float64)
    teacher.initialise([(case.seed, 0, 0)])
    x_RI, y_RO = _labelled(teacher, case, "train", ROWS)
    x_VI, y_VO = _labelled(teacher, case, "validation", VALIDATION)
    return GrowthRows(x_RI=x_RI, y_RO=y_RO, validation_x=x_VI, validation_y=y_VO)


def _labelled(teacher: DenseLanes, case: Case, part: str, rows: int) -> tuple[Tensor, Tensor]:
    x_RI = functional.pad(normal(fold(case.seed, f"{part} inputs"), rows, INPUTS).double(), (1, 0), value=1.0)
    y_RO = teacher.predict(x_RI)[0].mT
    noise_RO = normal(fold(case.seed, f"{part} noise"), rows, OUTPUTS).double()
    return x_RI, (y_RO + case.noise * y_RO.std() * noise_RO).contiguous()


def students(cases: Sequence[Case], rows: Sequence[GrowthRows]) -> list[list[Tensor]]:
    """The converged students of all cases, trained together, each on its own rows: weights layer by layer."""
    lanes = DenseLanes(SHAPE, [(STUDENT,)] * len(cases), ROWS, grouped=True, dtype=torch.float64)
    lanes.initialise([(case.seed, 1, 0) for case in cases])
    lanes.attach(Rule(), {"lr": torch.full((len(cases),), LR)})
    x_KRI, y_KRO = torch.stack([r.x_RI for r in rows]), torch.stack([r.y_RO for r in rows])
    for _ in range(CONVERGED):
        lanes.step(x_KRI, y_KRO)
    return [[matrix.clone() for matrix in lanes.matrices(k)] for k in range(len(cases))]


def measured(cases: Sequence[Case]) -> list[GrowthChange]:
    """Every case's growth, each one program."""
    rows, found = [rows_of(case) for case in cases], []
    for case, own, weights in zip(cases, rows, students(cases, rows), strict=True):
        training = Training(lr=LR, batch_size=case.batch)
        found.append(
            growth_change(SHAPE, weights, own, KS, candidates=case.candidates, training=training, seed=case.seed)
        )
        hurts = ", ".join(f"{100 * share:.1f}" for share in found[-1].hurts_VS()[0])
        print(f"teacher {case.seed}, label noise {case.noise:g}: fresh neurons hurt {hurts}%", file=sys.stderr)
    return found


# -- what it says ------------------------------------------------------------------------------------------------------


def summary(found: Sequence[GrowthChange]) -> dict[str, Any]:
    """Each kind's figures over all teachers (which have as many neurons each)."""
    summed = {}
    for v, kind in enumerate(KINDS):
        hurts_TS = np.stack([one.hurts_VS()[v] for one in found])
        change_TCS = np.stack([one.change_VCS()[v] for one in found])
        summed[kind] = {
            "hurts": hurts_TS.mean(0).tolist(),
            "hurts_least": hurts_TS.min(0).tolist(),
            "hurts_most": hurts_TS.max(0).tolist(),
            "hurts_against_converged": np.mean([one.hurts_VS("converged")[v] for one in found], 0).tolist(),
            "change": change_TCS.mean((0, 1)).tolist(),
            "change_by_teacher": change_TCS.mean(1).tolist(),
            "largest_change_at_0": float(np.abs(change_TCS[:, :, 0]).max()),
            "gradient_says_shrink": float(np.mean([(one.gradients_VC[v] > 0).mean() for one in found])),
            "gradient_says_shrink_at_0": float(np.mean([(one.begin_gradients_VC[v] > 0).mean() for one in found])),
        }
    losses = {"converged": [one.converged for one in found], "trained": [one.trained_S.tolist() for one in found]}
    return {"kinds": summed, "losses": losses}


def document(found: Sequence[GrowthChange], noisy: Sequence[GrowthChange], given: argparse.Namespace) -> dict[str, Any]:
    """Everything, as plain data; `hurts` and `hurts_scaled` are shares without label noise, one a k."""
    clean = summary(found)
    return {
        "k": list(KS),
        "hurts": clean["kinds"]["fresh"]["hurts"],
        "hurts_scaled": clean["kinds"]["scaled"]["hurts"],
        "gradient_says_shrink": {kind: clean["kinds"][kind]["gradient_says_shrink"] for kind in KINDS},
        "clean": clean,
        "label_noise": {"deviation": NOISE, **summary(noisy)},
        "teachers": given.teachers,
        "candidates": given.candidates,
        "lanes": len(KINDS) * given.candidates + 1,
        "batch": given.batch,
        "torch": torch.__version__,
    }


def as_text(told: dict[str, Any]) -> str:
    """The table: the share that hurts, %, and the mean change of the loss."""
    lines = [
        f"| label noise | new neuron | {' | '.join(f'k = {k}' for k in told['k'])} | dL/dgamma > 0 | at its start |",
        f"|---|---|{'---|' * len(told['k'])}---|---|",
    ]
    for noise, part in (("none", told["clean"]), (f"{NOISE:g} sd", told["label_noise"])):
        for kind, own in part["kinds"].items():
            ranges = zip(own["hurts"], own["hurts_least"], own["hurts_most"], strict=True)
            cells = [f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for mean, low, high in ranges]
            signs = [f"{100 * own[f'gradient_says_shrink{end}']:.1f}" for end in ("", "_at_0")]
            lines.append(f"| {noise} | {kind} | {' | '.join([*cells, *signs])} |")
    for kind, shares in BEFORE.items():
        lines.append(f"| none | {kind}, earlier run | {' | '.join(f'{share:.1f}' for share in shares)} | | |")
    lines += ["", f"| label noise | mean dC_k | {' | '.join(f'k = {k}' for k in told['k'])} |"]
    lines.append(f"|---|---|{'---|' * len(told['k'])}")
    for noise, part in (("none", told["clean"]), (f"{NOISE:g} sd", told["label_noise"])):
        lines += [
            f"| {noise} | {kind} | {' | '.join(f'{change:+.4f}' for change in own['change'])} |"
            for kind, own in part["kinds"].items()
        ]
    return "\n".join(lines)


def draw(told: dict[str, Any], path: Path) -> None:
    """The share that hurts, and the mean change, by k; bands are the range over teachers."""
    figure = Figure(figsize=(10.4, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = np.arange(len(told["k"]))
    for part, line in ((told["clean"], "-"), (told["label_noise"], ":")):
        for kind, own in part["kinds"].items():
            label = kind if line == "-" else None
            left.plot(places, 100 * np.array(own["hurts"]), line, color=COLOURS[kind], marker="o", ms=4, label=label)
            right.plot(places, own["change"], line, color=COLOURS[kind], marker="o", ms=4)
            if line == "-":
                low, high = (100 * np.array(own[f"hurts_{end}"]) for end in ("least", "most"))
                left.fill_between(places, low, high, color=COLOURS[kind], alpha=0.15, lw=0)
    left.set_ylabel("new neurons that raise validation loss, %")
    right.set_ylabel("mean change of validation loss, dC_k")
    right.set_yscale("symlog", linthresh=0.01)
    right.axhline(0.0, color="0.5", lw=0.8)
    for axes in (left, right):
        axes.set_xticks(places, list(map(str, told["k"])))
        axes.set_xlabel("k, steps since the neuron was added")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, title="solid: clean, dotted: label noise", fontsize=9)
    figure.suptitle(f"A sixth neuron: {told['candidates']} tried for each of {told['teachers']} teachers")
    figure.savefig(path, dpi=110)


# -- the program -------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, and print one table or one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two teachers, 64 neurons")
    parser.add_argument("--teachers", type=int, default=None, help="default: 5")
    parser.add_argument("--candidates", type=int, default=None, help="neurons of each teacher (default: 256)")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"rows of a batch, {ROWS} for all (default: {BATCH})")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--picture", type=Path, help="draw it here (.png)")
    given = parser.parse_args(arguments)
    given.teachers = given.teachers or (2 if given.quick else 5)
    given.candidates = given.candidates or (64 if given.quick else 256)
    began = time.perf_counter()
    cases = [
        Case(seed=seed, noise=noise, candidates=given.candidates, batch=given.batch)
        for noise in (0.0, NOISE)
        for seed in range(given.teachers)
    ]
    with threads(1):
        found = measured(cases)
    told = document(found[: given.teachers], found[given.teachers :], given)
    told["seconds"] = time.perf_counter() - began
    if given.json:
        print(json.dumps(told))
    else:
        facts = f"{told['teachers']} teachers, {told['lanes']} lanes a program, batches of {told['batch']}"
        print(f"{as_text(told)}\n\n{facts}, torch {told['torch']}: {told['seconds']:.0f} s.")
    if given.picture:
        draw(told, given.picture)


if __name__ == "__main__":
    main()
