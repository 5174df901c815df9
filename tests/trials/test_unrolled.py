"""Derivatives through training against closed forms, finite differences of whole trainings, and one another.

Legend of shape suffixes: K lanes, P coordinates that move, N weights of a lane, T the flat buffer, B batch, I inputs, H
hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from trials.hypergradients.forward import Forward
from trials.hypergradients.inner import Inner, State
from trials.hypergradients.unrolled import Unrolled, plain
from trials.optimisers import Optimiser, Rule

torch_options: dict[str, Any] = {"dtype": torch.float64}
INPUTS, HIDDEN, BATCH, STEPS = 3, 4, 6, 11
WEIGHTS = HIDDEN * (INPUTS + 1)
START = {"lr": 0.2, "momentum": 0.8, "weight_decay": 0.05, "beta1": 0.85, "beta2": 0.95}
SGD, DECAYED = frozenset({"lr"}), frozenset({"lr", "weight_decay"})
ADAM = DECAYED | {"beta1", "beta2"}
RULES = {
    "sgd": Rule(kind="sgd", uses=SGD),
    "decayed": Rule(kind="sgd", uses=DECAYED),
    "momentum": Rule(kind="sgd", uses=DECAYED | {"momentum"}),
    "nesterov": Rule(kind="sgd", nesterov=True, uses=DECAYED | {"momentum"}),
    "adam": Rule(kind="adam", uses=ADAM),
    "adamw": Rule(kind="adamw", uses=ADAM),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


@dataclass(frozen=True)
class Nets:
    """Lanes of a net y = sum_i v_i tanh(theta_i (U x)_i): the first coordinate is the gate theta of its first unit, the
    others are the rule's. The lanes' weights lie anyhow in the buffer, and the first of each rests."""

    rule: Rule
    places_KN: Tensor

    @property
    def names(self) -> list[str]:
        return sorted(self.rule.uses)

    @property
    def lane_T(self) -> Tensor:
        lane_T = torch.empty(self.places_KN.numel(), dtype=torch.int64)
        lane_T[self.places_KN] = torch.arange(len(self.places_KN))[:, None]
        return lane_T

    def losses(self, weights_T: Tensor, h_KP: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        x_BI, y_B = batch
        weights_KN = weights_T[self.places_KN]
        u_KHI = weights_KN[:, HIDDEN:].unflatten(1, (HIDDEN, INPUTS))
        gates_KH = torch.cat([h_KP[:, :1], torch.ones(len(h_KP), HIDDEN - 1, **torch_options)], 1)
        z_KBH = (u_KHI[:, None] * x_BI[None, :, None]).sum(3)
        out_KB = ((z_KBH * gates_KH[:, None]).tanh() * weights_KN[:, None, :HIDDEN]).sum(2)
        return 0.5 * (out_KB - y_B).square().mean(1)

    def hyper(self, h_KP: Tensor) -> dict[str, Tensor]:
        found = {name: h_KP[:, 1 + i][self.lane_T] for i, name in enumerate(self.names)}
        moves_T = torch.ones(len(self.lane_T), **torch_options).index_fill(0, self.places_KN[:, 0], 0.0)
        return {**found, "lr": found["lr"] * moves_T}

    @property
    def inner(self) -> Inner:
        return Inner(rule=self.rule, lane_T=self.lane_T, losses=self.losses, hyper=self.hyper)

    def h(self) -> Tensor:
        rates = torch.tensor(
            [START[name] * (0.1 if "adam" in self.rule.kind and name == "lr" else 1) for name in self.names]
        )
        lanes_K1 = torch.linspace(1.0, 0.9, len(self.places_KN), **torch_options)[:, None]
        return torch.cat([torch.full((len(lanes_K1), 1), 0.7, **torch_options), rates.double() * lanes_K1], 1)

    def begin(self) -> State:
        weights_T = torch.zeros(self.places_KN.numel(), **torch_options)
        weights_T[self.places_KN] = torch.randn(self.places_KN.shape, generator=seed(1), **torch_options)
        return State.begin(self.rule, weights_T)

    def trained(self, h_KP: Tensor, batches: Sequence[Any], state: State) -> State:
        """By the optimiser that trains lanes in place, which knows of no derivative."""
        optimiser = Optimiser(self.rule, self.hyper(h_KP), state.weights_T)
        optimiser.state = {name: slot.clone() for name, slot in state.slots.items()}
        weights_T = state.weights_T.clone()
        for batch in batches:
            leaf_T = weights_T.clone().requires_grad_()
            (gradient_T,) = torch.autograd.grad(self.losses(leaf_T, h_KP, batch).sum(), leaf_T)
            optimiser.step(weights_T, gradient_T)
        return State(weights_T=weights_T, slots=optimiser.state)


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def nets(rule: Rule, lanes: int = 2) -> Nets:
    return Nets(rule, torch.randperm(lanes * WEIGHTS, generator=seed(0)).view(lanes, WEIGHTS))


def data(steps: int = STEPS) -> tuple[list[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """Another batch each step, and one to look at."""
    x = torch.randn(steps + 1, BATCH, INPUTS, generator=seed(2), **torch_options)
    pairs = list(zip(x, x.sum(2).sin(), strict=True))
    return pairs[:-1], pairs[-1]


def differences(net: Nets, h_KP: Tensor, state: State, held: int, batches: Sequence[Any], outer: Any) -> Tensor:
    """d(outer loss)/dh by central differences of the fourth order, through a whole training whose first `held` steps
    do not feel the change."""
    step, state = 5e-5, net.trained(h_KP, batches[:held], state)

    def loss(by: float, p: int) -> Tensor:
        changed_KP = h_KP.clone()
        changed_KP[:, p] += by * step
        return net.losses(net.trained(changed_KP, batches[held:], state).weights_T, changed_KP, outer)

    places = range(h_KP.shape[1])
    return torch.stack([8 * (loss(1, p) - loss(-1, p)) - (loss(2, p) - loss(-2, p)) for p in places], 1) / (12 * step)


# -- the step ----------------------------------------------------------------------------------------------------------


@every_rule
def test_the_step_as_a_function_is_the_step_in_place(rule: Rule) -> None:
    net = nets(rule)
    batches, _ = data(60)
    by_hand, found = net.trained(net.h(), batches, net.begin()), plain(net.inner, net.begin(), net.h(), batches)
    assert not torch.allclose(found.weights_T, net.begin().weights_T)
    for a, b in zip(found.tensors(), by_hand.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


# -- through the whole training ----------------------------------------------------------------------------------------


@every_rule
def test_reverse_forward_and_segments_are_the_finite_difference_of_the_training(rule: Rule) -> None:
    """In a parameter of the loss and in every hyperparameter of the rule, lane by lane."""
    net = nets(rule)
    batches, outer = data()
    arguments = (net.inner, net.begin(), net.h(), batches, outer)
    reverse = Unrolled().derivative(*arguments)
    expected_KP = differences(net, net.h(), net.begin(), 0, batches, outer)
    assert expected_KP.abs().min() > 1e-5  # every coordinate has a say
    torch.testing.assert_close(reverse.gradient_KP, expected_KP, rtol=1e-7, atol=1e-10)
    by_hand = net.trained(net.h(), batches, net.begin())
    for method in (Forward(), Unrolled(segments=True), Unrolled(through=STEPS)):
        found = method.derivative(*arguments)
        torch.testing.assert_close(found.gradient_KP, reverse.gradient_KP, rtol=1e-10, atol=1e-13)
        assert found.state is not None
        for a, b in zip(found.state.tensors(), by_hand.tensors(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@every_rule
def test_truncation_is_the_derivative_of_the_last_steps(rule: Rule) -> None:
    """As if the steps before them had been taken at an h of their own; the derivative of all of them differs."""
    net = nets(rule)
    batches, outer = data()
    arguments = (net.inner, net.begin(), net.h(), batches, outer)
    whole_KP = Unrolled().derivative(*arguments).gradient_KP
    for through in (0, 6):
        expected_KP = differences(net, net.h(), net.begin(), STEPS - through, batches, outer)
        assert not torch.allclose(expected_KP, whole_KP, rtol=1e-3)
        for segments in (False, True):
            found = Unrolled(through=through, segments=segments).derivative(*arguments)
            torch.testing.assert_close(found.gradient_KP, expected_KP, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5])
def test_segments_of_any_number_of_steps(steps: int) -> None:
    net = nets(RULES["adam"])
    batches, outer = data()
    a, b = (
        Unrolled(segments=segments).derivative(net.inner, net.begin(), net.h(), batches[:steps], outer)
        for segments in (False, True)
    )
    torch.testing.assert_close(a.gradient_KP, b.gradient_KP, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
@pytest.mark.parametrize("method", [Unrolled(), Forward()])
def test_a_weight_without_a_gradient_has_a_finite_derivative(kind: str, method: Unrolled | Forward) -> None:
    """Adam's root has no slope at 0: an input that is always 0 leaves the second moment of its weights there."""
    net = nets(Rule(kind=kind, uses=ADAM - {"weight_decay"}))
    batches, outer = data()
    for x_BI, _ in [*batches, outer]:
        x_BI[:, 0] = 0.0
    found = method.derivative(net.inner, net.begin(), net.h(), batches, outer)
    assert found.state is not None
    assert (found.state.slots["square"] == 0).sum() == 2 * HIDDEN
    expected_KP = differences(net, net.h(), net.begin(), 0, batches, outer)
    torch.testing.assert_close(found.gradient_KP, expected_KP, rtol=1e-7, atol=1e-10)


# -- lanes -------------------------------------------------------------------------------------------------------------

every_method = pytest.mark.parametrize("method", [Unrolled(), Unrolled(through=3, segments=True), Forward()])
some_rules = pytest.mark.parametrize("rule", [RULES["nesterov"], RULES["adam"]])


@some_rules
@every_method
def test_a_lane_of_nan_leaves_the_others_every_bit(rule: Rule, method: Unrolled | Forward) -> None:
    net = nets(rule, lanes=3)
    batches, outer = data()
    sound = method.derivative(net.inner, net.begin(), net.h(), batches, outer)
    broken = net.begin()
    broken.weights_T[net.places_KN[1, -1]] = math.nan
    found = method.derivative(net.inner, broken, net.h(), batches, outer)
    assert found.gradient_KP[1].isnan().any()
    assert torch.equal(found.gradient_KP[[0, 2]], sound.gradient_KP[[0, 2]])
    assert found.state is not None
    assert sound.state is not None
    for a, b in zip(found.state.tensors(), sound.state.tensors(), strict=True):
        assert torch.equal(a[net.places_KN[[0, 2]]], b[net.places_KN[[0, 2]]])


@some_rules
@every_method
def test_a_lane_alone_is_the_lane_in_company(rule: Rule, method: Unrolled | Forward) -> None:
    """To the last bit in any company of as many, and to rounding alone: a sum of another shape has another order."""
    net = nets(rule, lanes=3)
    batches, outer = data()
    start, h_KP = net.begin(), net.h()
    company = method.derivative(net.inner, start, h_KP, batches, outer).gradient_KP
    others = start.weights_T.clone()
    others[net.places_KN[[0, 2]]] *= 1.5
    moved_KP = h_KP * torch.tensor([[1.1], [1.0], [0.9]], **torch_options)
    found = method.derivative(net.inner, State.begin(rule, others), moved_KP, batches, outer).gradient_KP
    assert torch.equal(found[1], company[1])
    assert not torch.isclose(found[[0, 2]], company[[0, 2]]).all(1).any()
    alone = Nets(rule, torch.arange(WEIGHTS)[None])
    begun = State.begin(rule, start.weights_T[net.places_KN[1]])
    found = method.derivative(alone.inner, begun, h_KP[1:2], batches, outer).gradient_KP
    torch.testing.assert_close(found[0], company[1], rtol=1e-11, atol=1e-14)


# -- problems solved by hand -------------------------------------------------------------------------------------------


def scalar(rule: Rule, losses: Any, hyper: Any, lanes: int) -> Inner:
    """One weight a lane."""
    return Inner(rule=rule, lane_T=torch.arange(lanes), losses=losses, hyper=hyper)


def test_the_derivative_of_descent_in_its_rate() -> None:
    """SGD on 1/2 a D^2: after T steps D (1 - eta a)^T is left, so dL/d eta = -T a^2 (1 - eta a)^(2T - 1) D^2."""
    a_K, distance_K = torch.tensor([1.0, 0.3, 2.5], **torch_options), torch.tensor([2.0, -1.0, 0.5], **torch_options)
    h_KP = torch.tensor([[0.1], [0.7], [0.5]], **torch_options)
    inner = scalar(RULES["sgd"], lambda w, h, batch: 0.5 * a_K * w**2, lambda h: {"lr": h[:, 0]}, 3)
    for steps in (1, 5, 20):
        expected_K = -steps * a_K**2 * (1 - h_KP[:, 0] * a_K) ** (2 * steps - 1) * distance_K**2
        for method in (Unrolled(), Unrolled(segments=True), Forward()):
            state = State(weights_T=distance_K)
            found = method.derivative(inner, state, h_KP, [None] * steps, None)
            torch.testing.assert_close(found.gradient_KP[:, 0], expected_K, rtol=1e-12, atol=1e-15)


A, C, D, ETA = 1.0, 2.0, 1.6, 0.3


def ridge(as_rule: bool, lanes: int = 1) -> Inner:
    """Train 1/2 a (w - c)^2 + 1/2 lam w^2, look at 1/2 (w - d)^2; lam is a term of the loss, or the rule's decay."""

    def losses(w: Tensor, h: Tensor, batch: str) -> Tensor:
        if batch == "outer":
            return 0.5 * (w - D) ** 2
        return 0.5 * A * (w - C) ** 2 + (0.0 if as_rule else 0.5 * h[:, 0] * w**2)

    def hyper(h: Tensor) -> dict[str, Tensor]:
        lr = torch.full((len(h),), ETA, **torch_options)
        return {"lr": lr, "weight_decay": h[:, 0]} if as_rule else {"lr": lr}

    return scalar(RULES["decayed" if as_rule else "sgd"], losses, hyper, lanes)


@pytest.mark.parametrize("as_rule", [False, True])
def test_ridge_in_one_dimension(as_rule: bool) -> None:
    """w* = a c / (a + lam), dL/dlam = -(w* - d) w* / (a + lam), and lam* = a c / d - a. A truncation to K steps keeps
    the share 1 - (1 - eta (a + lam))^K."""
    inner = ridge(as_rule, lanes=3)
    h_KP = torch.tensor([[0.1], [0.25], [1.0]], **torch_options)
    rest_KP = A * C / (A + h_KP)
    expected_KP = -(rest_KP - D) * rest_KP / (A + h_KP)
    for method in (Unrolled(), Unrolled(segments=True), Forward()):
        zero = State(weights_T=torch.zeros(3, **torch_options))
        found = method.derivative(inner, zero, h_KP, ["train"] * 100, "outer")
        torch.testing.assert_close(found.gradient_KP, expected_KP, rtol=1e-10, atol=1e-12)
    state = plain(inner, State(weights_T=torch.zeros(3, **torch_options)), h_KP, ["train"] * 150)
    for through, share in ((1, 0.33), (5, 0.865), (10, 0.982)):
        found = Unrolled(through=through).derivative(inner, state, h_KP, ["train"] * 20, "outer")
        shares_KP = 1 - (1 - ETA * (A + h_KP)) ** through
        torch.testing.assert_close(found.gradient_KP, expected_KP * shares_KP, rtol=1e-10, atol=1e-12)
        assert (found.gradient_KP / expected_KP)[0].item() == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize(
    ("method", "as_rule"),
    [(Unrolled(), True), (Unrolled(through=2), False), (Unrolled(through=2), True), (Forward(), True)],
)
def test_descending_finds_the_best_ridge(method: Unrolled | Forward, as_rule: bool) -> None:
    """lam* = a c / d - a = .25. A truncation shortens the derivative of one coordinate, and keeps its sign."""
    inner, state, h_KP = ridge(as_rule), State(weights_T=torch.zeros(1, **torch_options)), torch.ones(1, 1).double()
    for _ in range(60):
        found = method.derivative(inner, state, h_KP, ["train"] * 3, "outer")
        assert found.state is not None
        state, h_KP = found.state, h_KP - 0.5 * found.gradient_KP
    assert h_KP.item() == pytest.approx(A * C / D - A, abs=1e-6)


def darts(xi: Sequence[float]) -> Inner:
    """L_t = (w - a)^2 with a rate of xi, L_v = a w - 2 a + 1."""

    def losses(w: Tensor, h: Tensor, batch: str) -> Tensor:
        return h[:, 0] * w - 2 * h[:, 0] + 1 if batch == "outer" else (w - h[:, 0]) ** 2

    return scalar(RULES["sgd"], losses, lambda h: {"lr": torch.tensor(xi, **torch_options)}, len(xi))


def test_the_toy_of_darts() -> None:
    """Lanes of a rate of their own look `steps` ahead, training follows. They settle where the derivative through those
    steps vanishes, a = 2 / (2 - (1 - 2 xi)^K): first order at 2, though the best a is 1."""
    one = Unrolled(adopts=False).derivative(
        darts([0.1]), State(weights_T=torch.tensor([-2.0]).double()), torch.tensor([[2.0]]).double(), ["train"], "outer"
    )
    assert one.gradient_KP.item() == pytest.approx(-2.8, rel=1e-14)
    assert one.state is None
    ahead, follows = darts([0.0, 0.1, 0.5]), darts([0.25] * 3)
    for steps, ends in ((0, [2.0, 2.0, 2.0]), (1, [2.0, 2 / 1.2, 1.0]), (5, [2.0, 1.19594, 1.0])):
        state, h_KP = State(weights_T=torch.tensor([-2.0, 0.0, 5.0]).double()), torch.full((3, 1), 3.0).double()
        for _ in range(250):
            found = Unrolled(adopts=False).derivative(ahead, state, h_KP, ["train"] * steps, "outer")
            h_KP = h_KP - 0.2 * found.gradient_KP
            state = plain(follows, state, h_KP, ["train"] * 2)
        assert h_KP[:, 0].tolist() == pytest.approx(ends, abs=5e-6)
