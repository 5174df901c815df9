"""Training that is undone bit for bit, against integers, matrix powers, torch's own SGD and the other way to go back.

Legend of shape suffixes: K lanes, N weights of a lane, P coordinates that move, T the flat buffer; B rows, I inputs, H
hidden units.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from search_spaces.faults import Invalid
from trials.hypergradients.fixed_point import LIMIT, Tape, ratio
from trials.hypergradients.inner import Inner, State
from trials.hypergradients.reversible import Course, Reversible
from trials.hypergradients.unrolled import Unrolled
from trials.optimisers import Rule

RULE = Rule(kind="sgd", uses=frozenset({"lr", "momentum", "weight_decay"}))
INPUTS, HIDDEN, ROWS = 2, 3, 4
WEIGHTS = HIDDEN * (INPUTS + 1) + HIDDEN
CURVATURE_N = torch.linspace(0.5, 2.0, WEIGHTS, dtype=torch.float64)
Loss = Callable[[Tensor, Tensor, Any], Tensor]


def quadratic(w_N: Tensor, target: Tensor, batch: Any) -> Tensor:
    return (0.5 * CURVATURE_N.to(w_N) * (w_N - target * batch[2]) ** 2).sum()


def network(w_N: Tensor, target: Tensor, batch: Any) -> Tensor:
    """Two layers; no function that a kernel might round otherwise in another place."""
    x_BI, y_B, _ = batch
    first, second = w_N[: HIDDEN * (INPUTS + 1)].view(HIDDEN, INPUTS + 1), w_N[HIDDEN * (INPUTS + 1) :]
    z_BH = x_BI @ first[:, 1:].T + first[:, 0]
    return 0.5 * ((z_BH / (1 + z_BH**2)) @ second - target * y_B).pow(2).mean()


def inner_of(loss: Loss, lanes: int, rule: Rule = RULE, awake_N: Tensor | None = None, mapped: bool = False) -> Inner:
    """h is (a number in the loss, lr, momentum, weight decay) of each lane."""
    lane_T = torch.arange(lanes).repeat_interleave(WEIGHTS)

    def hyper(h_KP: Tensor) -> Mapping[str, Tensor]:
        lr_T = h_KP[:, 1][lane_T] * (1.0 if awake_N is None else awake_N.repeat(lanes))
        return {"lr": lr_T, "momentum": h_KP[:, 2][lane_T], "weight_decay": h_KP[:, 3][lane_T]}

    def losses(weights_T: Tensor, h_KP: Tensor, batch: Any) -> Tensor:
        if mapped:
            return torch.func.vmap(loss, in_dims=(0, 0, None))(weights_T.view(lanes, WEIGHTS), h_KP[:, 0], batch)
        return torch.stack([loss(w, h[0], batch) for w, h in zip(weights_T.view(lanes, WEIGHTS), h_KP, strict=True)])

    return Inner(rule=rule, lane_T=lane_T, losses=losses, hyper=hyper)


def batches_of(steps: int, dtype: torch.dtype = torch.float64) -> list[Any]:
    return [
        tuple(torch.randn(shape, dtype=dtype) for shape in ((ROWS, INPUTS), (ROWS,), (WEIGHTS,))) for _ in range(steps)
    ]


def state_of(lanes: int, dtype: torch.dtype = torch.float64) -> State:
    """Weights and velocities that are multiples of 2**-16, so that nothing is rounded before the first step."""
    weights_T, velocity_T = (torch.randn(2, lanes * WEIGHTS) * 2**16).round().to(dtype) / 2**16
    return State(weights_T=weights_T, slots={"velocity": velocity_T})


def h_of(*lanes: Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(lanes, dtype=dtype)


LANES = h_of((1.0, 0.1, 0.9, 0.01), (0.7, 0.05, 0.5, 0.1), (1.3, 0.02, 0.99, 0.0))


# -- integers ----------------------------------------------------------------------------------------------------------


@given(
    places=st.lists(
        st.tuples(st.integers(-LIMIT, LIMIT), st.floats(0.0, 1.0) | st.sampled_from([0.9, 0.5, 0.99, 0.1])),
        min_size=1,
        max_size=6,
    ),
    steps=st.integers(0, 150),
    again=st.integers(0, 150),
    seed=st.integers(0, 2**20),
)
@example(places=[(LIMIT, 0.0), (-LIMIT, 1e-7), (-1, 1.0), (0, 0.3)], steps=150, again=70, seed=0)
@settings(max_examples=60)
def test_products_are_undone_whatever_the_integers(
    places: list[tuple[int, float]], steps: int, again: int, seed: int
) -> None:
    """Also after going back some of the way and forth again; each product is less than n from what it should be."""
    generator = torch.Generator().manual_seed(seed)
    c_T, tape = torch.tensor([c for c, _ in places]), Tape(torch.tensor([b for _, b in places], dtype=torch.float64))
    ratios = [ratio(b) for _, b in places]
    added: list[Tensor] = []
    path = [c_T]

    def forth(count: int) -> None:
        for _ in range(count):
            product_T = tape.times(path[-1])
            for c, product, (n, d) in zip(path[-1].tolist(), product_T.tolist(), ratios, strict=True):
                assert abs(Fraction(c * n, d) - product) < n
            added.append(torch.randint(-(2**50), 2**50, (len(places),), generator=generator))
            path.append(product_T + added[-1])

    def back(count: int) -> None:
        c_T = path[-1]
        for _ in range(count):
            path.pop()
            c_T = tape.undo(c_T - added.pop())
            assert torch.equal(c_T, path[-1])

    forth(steps)
    back(steps // 2)
    forth(again)
    back(len(added))
    assert tape.bits == 64 * len(places)


@given(beta=st.floats(0.0, 1.0))
@example(beta=0.0)
@example(beta=float(torch.tensor(0.9)))
def test_a_factor_is_met_closely_by_small_numbers(beta: float) -> None:
    n, d = ratio(beta)
    assert 1 <= n <= 2**14
    assert n <= d <= 2**24 + 1
    beta = max(beta, 2.0**-24)
    assert abs(Fraction(n, d) - Fraction(beta)) <= Fraction(beta) * Fraction(beta * 2**-14 + 2**-23)
    assert ratio(float(torch.tensor(0.9))) == ratio(0.9) == (9, 10)
    assert ratio(0.0) == (1, 2**24)


@pytest.mark.parametrize(("beta", "least"), [(0.9, 0.152), (0.5, 1.0), (0.99, 0.0145), (0.0, 24.0)])
def test_what_is_remembered_is_what_is_lost_and_a_head(beta: float, least: float) -> None:
    """-log2(beta) bits a weight-step; over all steps at most a head of 64 more, and the bits that the smallest numbers
    waste before a digit weighs what it should."""
    steps, places = 1000, 8
    tape, c_T = Tape(torch.full((places,), beta, dtype=torch.float64)), torch.randint(-(2**50), 2**50, (places,))
    for _ in range(steps):
        c_T = tape.times(c_T) + torch.randint(-(2**50), 2**50, (places,))
    information, measured = tape.information / places, tape.bits / places / steps
    assert information == pytest.approx(least, abs=1e-3)
    assert information <= measured <= information + (64 - math.log2(1 - beta)) / steps


def test_training_tells_what_it_remembered() -> None:
    """At a momentum of 0.9: three words of 32 bits and a head of 64, for 1000 steps."""
    batches = batches_of(20) * 50
    found = Reversible().derivative(inner_of(quadratic, 1), state_of(1), LANES[:1], batches, batches[0])
    assert found.information == pytest.approx(-math.log2(0.9))
    assert found.bits_per_weight_step == 0.160


# -- the way back ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "dtype"), [(quadratic, torch.float64), (network, torch.float32)])
def test_the_start_is_found_bit_for_bit(loss: Loss, dtype: torch.dtype) -> None:
    """After 1000 steps, at ratios that are small, that are not, and at none."""
    steps, betas = 1000, (0.9, 0.5, 0.99, 0.0, 0.8734621)
    h_KP = h_of(*((1.0, 0.02, beta, 0.01) for beta in betas), dtype=dtype)
    start, batches = state_of(len(betas), dtype), batches_of(20, dtype)
    course = Course(inner_of(loss, len(betas), mapped=True), start, h_KP)
    for step in range(steps):
        course.step(batches[step % 20])
    end = course.state()
    assert (end.weights_T - start.weights_T).abs().view(len(betas), -1).amax(1).min() > 0.1
    for step in reversed(range(steps)):
        course.undo(batches[step % 20])
    for found, began in zip(course.state().tensors(), start.tensors(), strict=True):
        assert torch.equal(found, began)


def test_floats_do_not_find_back() -> None:
    """What the integers are for: the same steps, undone in float64."""
    inner, h_KP, start, batches = inner_of(quadratic, 3), LANES, state_of(3), batches_of(200)
    hyper = inner.hyper(h_KP)
    w_T, v_T = start.weights_T, start.slots["velocity"]

    def push(w_T: Tensor, batch: Any) -> Tensor:
        return inner.direction(w_T, h_KP, batch, graph=False) + hyper["weight_decay"] * w_T

    for batch in batches:
        v_T = hyper["momentum"] * v_T + push(w_T, batch)
        w_T = w_T - hyper["lr"] * v_T
    for batch in reversed(batches):
        w_T = w_T + hyper["lr"] * v_T
        v_T = (v_T - push(w_T, batch)) / hyper["momentum"]
    assert (w_T - start.weights_T).view(3, -1).abs().amax(1)[1] > 1.0


def test_no_step_is_held_in_memory() -> None:
    """By counting what autograd keeps: no more for 40 steps than for 10."""

    class Kept:
        def __init__(self, saved: Tensor) -> None:
            self.saved = saved

    def most(method: Any, steps: int) -> int:
        kept: weakref.WeakSet[Kept] = weakref.WeakSet()
        counts = [0]

        def pack(saved: Tensor) -> Kept:
            holder = Kept(saved.detach())
            kept.add(holder)
            counts.append(len(kept))
            return holder

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.saved):
            method.derivative(inner_of(quadratic, 1), state_of(1), LANES[:1], batches_of(steps), batches_of(1)[0])
        return max(counts)

    assert 0 < most(Reversible(), 40) == most(Reversible(), 10)
    assert most(Unrolled(), 40) > 3 * most(Unrolled(), 10)


def test_training_is_about_as_rough_as_float32() -> None:
    """Against float64: the weights of float32 are off by its rounding, those of integers by that of the gradients and
    by 0.9 being 9/10 again, which float32 puts 2e-8 beside it."""
    inner, single, h_KP = inner_of(quadratic, 3, mapped=True), batches_of(100, torch.float32), LANES.float()
    double, start = [tuple(t.double() for t in batch) for batch in single], state_of(3)
    start32 = start.like([t.float() for t in start.tensors()])
    true = Unrolled().derivative(inner, start, h_KP.double(), double, double[0]).state
    plain = Unrolled().derivative(inner, start32, h_KP, single, single[0]).state
    ours = Reversible().derivative(inner, start32, h_KP, single, single[0]).state
    assert true is not None
    assert plain is not None
    assert ours is not None
    rough, found = (float((s.weights_T - true.weights_T).square().mean().sqrt()) for s in (plain, ours))
    assert 0 < found < 3 * rough


# -- the derivative ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [quadratic, network])
@pytest.mark.parametrize("decays", [True, False])
@pytest.mark.parametrize("rests", [True, False])
def test_derivatives_are_those_of_unrolling(loss: Loss, decays: bool, rests: bool) -> None:
    """To 1e-8 where the momentum is a ratio of small numbers: what 2**-44 n is against these derivatives."""
    rule = RULE if decays else Rule(kind="sgd", uses=frozenset({"lr", "momentum"}))
    awake_N = (torch.arange(WEIGHTS) % 3 != 0).double() if rests else None
    inner, start, (outer, *batches) = inner_of(loss, 3, rule, awake_N), state_of(3), batches_of(41)
    found = Reversible().derivative(inner, start, LANES, batches, outer)
    true = Unrolled().derivative(inner, start, LANES, batches, outer)
    assert found.state is not None
    assert true.state is not None
    torch.testing.assert_close(found.gradient_KP, true.gradient_KP, rtol=1e-8, atol=1e-9)
    assert true.gradient_KP.abs().amax(0)[:3].min() > 1e-2
    for a, b in zip(found.state.tensors(), true.state.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    if awake_N is not None:
        asleep_T = awake_N.repeat(3) == 0
        assert torch.equal(found.state.weights_T[asleep_T], start.weights_T[asleep_T])


def test_derivatives_at_any_momentum_are_close() -> None:
    """At a ratio of large numbers, near 1, and at 0, where the momentum in use is another one by up to 6e-8."""
    h_KP = h_of(*((1.0, 0.05, beta, 0.01) for beta in (0.8734621, 0.31415926, 0.9951, 0.0, 1e-5)))
    inner, start, (outer, *batches) = inner_of(network, 5), state_of(5), batches_of(41)
    found, true = (m.derivative(inner, start, h_KP, batches, outer) for m in (Reversible(), Unrolled()))
    torch.testing.assert_close(found.gradient_KP, true.gradient_KP, rtol=1e-5, atol=1e-7)


def test_a_learner_with_its_own_direction_is_followed() -> None:
    def feedback(weights_T: Tensor, h_KP: Tensor, batch: Any) -> Tensor:
        return (weights_T.view(2, -1) * h_KP[:, :1]).sin().flatten() + batch[2].repeat(2)

    plain = inner_of(network, 2)
    inner = Inner(rule=RULE, lane_T=plain.lane_T, losses=plain.losses, hyper=plain.hyper, feedback=feedback)
    start, (outer, *batches) = state_of(2), batches_of(31)
    found, true = (m.derivative(inner, start, LANES[:2], batches, outer) for m in (Reversible(), Unrolled()))
    torch.testing.assert_close(found.gradient_KP, true.gradient_KP, rtol=1e-8, atol=1e-9)


def test_derivatives_on_a_quadratic_are_those_of_a_matrix_power() -> None:
    """(v, w) -> M (v, w) with M = [[beta, a + decay], [-lr beta, 1 - lr (a + decay)]], the loss a w^2 / 2 at the end:
    d/dh = a w_T sum_t [M^(T-1-t) dM/dh M^t s_0]_w for h = lr, beta, decay."""
    steps, a = 60, CURVATURE_N.numpy()
    start, batches = state_of(1), [(None, None, torch.zeros(WEIGHTS, dtype=torch.float64))] * steps
    found = Reversible().derivative(inner_of(quadratic, 1), start, LANES[:1], batches, batches[0])
    _, lr, beta, decay = LANES[0].tolist()
    true = np.zeros(3)
    for n in range(WEIGHTS):
        s = np.array([float(start.slots["velocity"][n]), float(start.weights_T[n])])
        c = a[n] + decay
        matrix = np.array([[beta, c], [-lr * beta, 1 - lr * c]])
        slopes = [[[0, 0], [-beta, -c]], [[1, 0], [-lr, 0]], [[0, 1], [0, -lr]]]
        end = np.linalg.matrix_power(matrix, steps) @ s
        for i, slope in enumerate(slopes):
            for t in range(steps):
                before = np.linalg.matrix_power(matrix, t) @ s
                true[i] += a[n] * end[1] * (np.linalg.matrix_power(matrix, steps - 1 - t) @ slope @ before)[1]
    assert np.abs(true).min() > 1e-3
    np.testing.assert_allclose(found.gradient_KP[0, 1:].numpy(), true, rtol=1e-8)


def test_derivatives_equal_finite_differences_of_torchs_own_sgd() -> None:
    start, (outer, *batches) = state_of(2), batches_of(26)

    def ended(k: int, h: list[float]) -> float:
        w_N = start.weights_T.view(2, -1)[k].clone().requires_grad_()
        sgd = torch.optim.SGD([w_N], lr=h[1], momentum=h[2], weight_decay=h[3])
        sgd.state[w_N]["momentum_buffer"] = start.slots["velocity"].view(2, -1)[k].clone()
        for batch in batches:
            sgd.zero_grad()
            network(w_N, h_of(h)[0, 0], batch).backward()
            sgd.step()
        return float(network(w_N.detach(), h_of(h)[0, 0], outer))

    found = Reversible().derivative(inner_of(network, 2), start, LANES[:2], batches, outer)
    for k, p in np.ndindex(2, 4):
        around = []
        for step in (1e-5, -1e-5):
            h = LANES[k].tolist()
            h[p] += step
            around.append(ended(k, h))
        assert float(found.gradient_KP[k, p]) == pytest.approx((around[0] - around[1]) / 2e-5, rel=1e-5, abs=1e-8), (
            k,
            p,
        )


# -- lanes -------------------------------------------------------------------------------------------------------------

POISONS = [(math.nan, 0.1, 0.9, 0.0), (1.0, 1e9, 0.9, 0.0), (1.0, 0.1, 1.5, 0.0), (1.0, math.inf, 0.9, 0.0)]


@pytest.mark.parametrize("poison", POISONS)
def test_a_lane_that_leaves_the_integers_is_nan_alone(poison: tuple[float, float, float, float]) -> None:
    start, (outer, *batches) = state_of(3), batches_of(31)
    poisoned = LANES.clone()
    poisoned[1] = h_of(poison)
    sound, found = (
        Reversible().derivative(inner_of(network, 3), start, h_KP, batches, outer) for h_KP in (LANES, poisoned)
    )
    assert sound.gradient_KP.isfinite().all()
    assert found.gradient_KP[1].isnan().all()
    assert torch.equal(found.gradient_KP[[0, 2]], sound.gradient_KP[[0, 2]])
    assert found.state is not None
    assert sound.state is not None
    for a, b in zip(found.state.tensors(), sound.state.tensors(), strict=True):
        assert a.view(3, -1)[1].isnan().all()
        assert torch.equal(a.view(3, -1)[[0, 2]], b.view(3, -1)[[0, 2]])


@pytest.mark.parametrize("weight", [math.nan, math.inf, -131073.0])
def test_a_lane_that_starts_outside_the_integers_is_nan_alone(weight: float) -> None:
    start, (outer, *batches) = state_of(2), batches_of(5)
    start.weights_T[3] = weight
    unread_KP = torch.cat([LANES[:2], torch.zeros(2, 1, dtype=torch.float64)], 1)  # a coordinate without a say
    found = Reversible().derivative(inner_of(network, 2), start, unread_KP, batches, outer)
    assert found.gradient_KP.isnan().all(1).tolist() == [True, False]
    assert found.gradient_KP[1].isfinite().all()
    assert found.state is not None
    assert found.state.weights_T.view(2, -1).isnan().all(1).tolist() == [True, False]


def test_a_lane_alone_is_what_it_is_in_company() -> None:
    """Bit for bit, over more steps than the words of one of them last."""
    start, (outer, *batches) = state_of(3), batches_of(101)
    together = Reversible().derivative(inner_of(network, 3), start, LANES, batches, outer)
    assert together.state is not None
    for k in range(3):
        own = start.like([t.view(3, -1)[k].clone() for t in start.tensors()])
        alone = Reversible().derivative(inner_of(network, 1), own, LANES[k : k + 1], batches, outer)
        assert alone.state is not None
        assert torch.equal(alone.gradient_KP[0], together.gradient_KP[k])
        for a, b in zip(alone.state.tensors(), together.state.tensors(), strict=True):
            assert torch.equal(a, b.view(3, -1)[k])


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "got"),
    [
        (Rule(kind="sgd"), "sgd without momentum"),
        (Rule(kind="sgd", nesterov=True, uses=frozenset({"lr", "momentum"})), "sgd with nesterov"),
        (Rule(kind="adam", uses=frozenset({"lr", "beta1", "beta2"})), "adam"),
        (Rule(kind="adamw", uses=frozenset({"lr", "beta1", "beta2", "weight_decay"})), "adamw"),
    ],
)
def test_steps_that_cannot_be_undone_are_refused(rule: Rule, got: str) -> None:
    start, batches = State.begin(rule, state_of(1).weights_T), batches_of(1)
    with pytest.raises(Invalid, match=rf"^search.hypergradient.kind: 'reversible' .* got {got}\. .*'unrolled'\.$"):
        Reversible().derivative(inner_of(network, 1, rule), start, LANES[:1], batches, batches[0])


def test_a_loss_that_draws_for_itself_is_told() -> None:
    """After one step too, where only the velocity shows it."""

    def drawn(w_N: Tensor, target: Tensor, batch: Any) -> Tensor:
        return network(w_N, target, batch) * torch.rand((), dtype=torch.float64)

    batches = batches_of(1)
    with pytest.raises(RuntimeError, match="Draw what is random with the batch"):
        Reversible().derivative(inner_of(drawn, 1), state_of(1), LANES[:1], batches, batches[0])


def test_no_steps_leave_the_direct_derivative() -> None:
    inner, start, (outer,) = inner_of(network, 3), state_of(3), batches_of(1)
    found, true = (m.derivative(inner, start, LANES, [], outer) for m in (Reversible(), Unrolled()))
    assert torch.equal(found.gradient_KP, true.gradient_KP)
