"""Every method on every network and membership, against finite differences of the training that the lanes' own step
does: hand-derived gradients for multi-layer perceptrons, autograd's for one lane at a time, vmap for all at once.

`python tests/trials/test_method_matrix.py` prints the matrix.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import pytest
import torch
from method_cases import DEPTH, DROPOUT, STRIDE, WIDTHS, Course, network_cases, plan_of
from torch import Tensor

from search_spaces.networks import MLP, ConvNet, Residual
from trials.hypergradients.forward import Forward
from trials.hypergradients.hypernet import Hypernet
from trials.hypergradients.implicit import Implicit
from trials.hypergradients.reversible import Reversible
from trials.hypergradients.unrolled import Unrolled
from trials.training import Training

CASES = network_cases()
WAYS = ("per_lane", "unfolded", "grouped")
THROUGH: dict[str, Any] = {
    "unrolled": Unrolled(),
    "checkpoints": Unrolled(segments=True),
    "truncated": Unrolled(through=2),
    "ahead": Unrolled(adopts=False),
    "forward": Forward(),
    "reversible": Reversible(),
}
STEPS = 3
TOLERANCE = {"reversible": 3e-5}  # of a derivative by integers; the others'
EXACT = 1e-5
ALL = [(name, way) for name in CASES for way in (WAYS[:1] if name.startswith("mlp") else WAYS)]
QUICK = {
    ("mlp layer by layer", "per_lane"),
    ("mlp learner feedback", "per_lane"),
    ("mlp concrete", "per_lane"),
    ("convnet shrink", "per_lane"),
    ("cell", "unfolded"),
}
PAIRS = [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.long, id=" ".join(pair)) for pair in ALL]


@functools.lru_cache(maxsize=4)
def course_of(name: str, way: str) -> tuple[Course, Tensor]:
    network, space, points = CASES[name]
    learner = "feedback" if name.endswith("feedback") else "backprop"
    training = Training(batch_size=16, lr=0.05, momentum=0.9, epochs=1, learner=learner)
    course = Course(plan_of(network, space, way=way, training=training), points, STEPS)
    return course, course.differences()


def error(found_KP: Tensor, true_KP: Tensor) -> float:
    """The greatest error of a derivative, as a share of itself or of a thousandth of the greatest."""
    scale_KP = true_KP.abs().clamp(min=1e-3 * float(true_KP.abs().max()))
    return float(((found_KP - true_KP).abs() / scale_KP).max())


def truncated_differences(course: Course, through: int) -> Tensor:
    """The truth of a truncated derivative: differences of the last steps alone, from where the first ones lead."""
    early, batches, start = course.batches[:-through], course.batches, course.start
    course.architecture.adopt(start)
    for batch in early:
        course.architecture.draw(batch.step)
        course.program.step(batch.x, batch.y_BO)
    course.start, course.batches = course.architecture.state(), batches[-through:]
    found_KP = course.differences()
    course.start, course.batches = start, batches
    return found_KP


@pytest.mark.parametrize("method", THROUGH)
@pytest.mark.parametrize(("name", "way"), PAIRS)
def test_a_derivative_through_training_equals_finite_differences(name: str, way: str, method: str) -> None:
    course, true_KP = course_of(name, way)
    if method == "truncated":
        true_KP = truncated_differences(course, 2)
    found = course.derivative(THROUGH[method])
    assert error(found.gradient_KP, true_KP) < TOLERANCE.get(method, EXACT)
    assert (found.state is None) == (method == "ahead")


@pytest.mark.slow
@pytest.mark.parametrize("method", [m for m in THROUGH if m != "ahead"])
@pytest.mark.parametrize(("name", "way"), PAIRS)
def test_it_leaves_the_training_where_its_steps_lead(name: str, way: str, method: str) -> None:
    course, _ = course_of(name, way)
    course.architecture.adopt(course.start)
    for batch in course.batches:
        course.architecture.draw(batch.step)
        course.program.step(batch.x, batch.y_BO)
    there = course.architecture.state()
    found = course.derivative(THROUGH[method]).state
    for a, b in zip(found.tensors(), there.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6 if method == "reversible" else 1e-12)


SYMMETRIC = [pair for pair in PAIRS if "feedback" not in str(pair.id)]  # the other: test_implicit.py


@pytest.mark.parametrize(("name", "way"), SYMMETRIC)
def test_the_implicit_series_equals_one_of_differences(name: str, way: str) -> None:
    """u = A sum_j (I - J' A)^j v with every product J' u by differences of gradients: J is symmetric."""
    course, _ = course_of(name, way)
    sizes = course.derivative(Implicit(solver="neumann", terms=STEPS), course.batches[:1]).gradient_KP
    assert error(sizes[:, : architecture_only(course)], implicit_by_hand(course)) < 2e-5


def architecture_only(course: Course) -> int:
    return len(course.architecture.moving_M) - len(course.architecture.rates)


def implicit_by_hand(course: Course, h: float = 1e-6) -> Tensor:
    course.architecture.adopt(course.start)
    inner, state, h_KP = course.architecture.inner(), course.start, course.architecture.h_KP
    hyper, batch = inner.hyper(h_KP), course.batches[0]
    rate_T = hyper["lr"] / (1 + hyper["momentum"])  # what gradient descent may take where heavy ball is stable

    def force(weights_T: Tensor, at_KP: Tensor = h_KP) -> Tensor:
        return inner.force(weights_T, at_KP, batch).detach()

    def product(u_T: Tensor) -> Tensor:
        length = float(u_T.norm()) or 1.0
        step_T = u_T * (h / length)
        return (force(state.weights_T + step_T) - force(state.weights_T - step_T)) * (length / (2 * h))

    weights_T = state.weights_T.clone().requires_grad_()
    (v_T,) = torch.autograd.grad(inner.losses(weights_T, h_KP, course.outer).sum(), weights_T)
    v_T = torch.where(rate_T != 0, v_T, 0.0)
    term_T, sum_T = v_T, torch.zeros_like(v_T)
    for _ in range(STEPS):
        sum_T = sum_T + term_T
        term_T = term_T - product(rate_T * term_T)
    u_T = rate_T * sum_T
    columns = []
    for p in range(architecture_only(course)):
        shift_KP = torch.zeros_like(h_KP)
        shift_KP[:, p] = h
        direct_K = inner.losses(state.weights_T, h_KP + shift_KP, course.outer) - inner.losses(
            state.weights_T, h_KP - shift_KP, course.outer
        )
        change_T = force(state.weights_T, h_KP + shift_KP) - force(state.weights_T, h_KP - shift_KP)
        columns.append((direct_K.detach() - inner.dot(u_T, change_T, len(h_KP))) / (2 * h))
    return torch.stack(columns, 1)


ONE = {  # a single number that moves, on networks whose other sizes stay
    "mlp interval": (MLP(layers=2, membership="interval"), "width.0", (3.3, 2.7)),
    "mlp band": (MLP(layers=2, membership="band"), "width.0", (3.3, 2.7)),
    "mlp nested": (MLP(layers=2, membership="nested"), "width.1", (4.6, 5.2)),
    "mlp dropout": (MLP(layers=2), "dropout", (0.2, 0.4)),
    "convnet shrink": (ConvNet(layers=2, width=4, stride="shrink", activation="gelu"), "stride.0", (1.63, 2.3)),
    "convnet spectral": (ConvNet(layers=2, width=4, stride="spectral", activation="gelu"), "stride.0", (1.63, 2.3)),
    "residual": (Residual(stages=1, width=4, activation="gelu"), "depth.0", (1.3, 0.6)),
}
OWN = {**WIDTHS, **STRIDE, **DEPTH, "dropout": DROPOUT}


ONE_WAYS = [(name, way) for name in ONE for way in (WAYS[:1] if name.startswith("mlp") else WAYS[:2])]


def error_of_one(name: str, way: str) -> float:
    """How far a hypernet's derivative is from differences, where it looks around by next to nothing."""
    network, number, places = ONE[name]
    training = Training(batch_size=16, lr=0.05, epochs=1)
    plan = plan_of(network, {number: OWN[number]}, way=way, training=training)
    course = Course(plan, [{number: place} for place in places], STEPS)
    learned = Hypernet(scale=1e-5, units=torch.ones_like, draw=lambda step: torch.ones(2, 1, dtype=torch.float64))
    return error(course.derivative(learned).gradient_KP, course.differences())


@pytest.mark.parametrize(("name", "way"), ONE_WAYS)
def test_a_hypernet_of_one_number_is_differences_too(name: str, way: str) -> None:
    """Under plain SGD the response to a single number is then the tangent."""
    assert error_of_one(name, way) < 1e-4


def main() -> None:
    """The greatest relative error of every method on every network, way and membership."""
    torch.set_num_threads(1)
    names = [*THROUGH, "implicit"]
    print(f"{'':34s}" + "".join(f"{name:>12s}" for name in names))
    for name, way in ALL:
        course, true_KP = course_of(name, way)
        errors = []
        for method in THROUGH:
            truth_KP = truncated_differences(course, 2) if method == "truncated" else true_KP
            errors.append(error(course.derivative(THROUGH[method]).gradient_KP, truth_KP))
        found = course.derivative(Implicit(solver="neumann", terms=STEPS), course.batches[:1]).gradient_KP
        errors.append(error(found[:, : architecture_only(course)], implicit_by_hand(course)))
        print(f"{name + ' (' + way + ')':34s}" + "".join(f"{e:12.1e}" for e in errors), flush=True)
    print("\nhypernet of one number that moves, plain SGD")
    for name, way in ONE_WAYS:
        print(f"{name + ' (' + way + ')':34s}{error_of_one(name, way):12.1e}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
