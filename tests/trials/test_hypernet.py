"""The learned best response against dw*/dh of quadratics, against forward mode, and on the way to the best ridge.

Legend of shape suffixes: K lanes, P coordinates that move, N weights of a lane, T the flat buffer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from search_spaces.faults import Invalid
from trials.hypergradients.forward import Forward
from trials.hypergradients.hypernet import Hypernet, drawn
from trials.hypergradients.implicit import Implicit
from trials.hypergradients.inner import Inner, State
from trials.hypergradients.unrolled import plain
from trials.optimisers import Rule

N = 5
EYE = torch.eye(N, dtype=torch.float64)
SGD = Rule(kind="sgd", uses=frozenset({"lr"}))
DECAYED = Rule(kind="sgd", uses=frozenset({"lr", "weight_decay"}))
MOMENTUM = Rule(kind="sgd", uses=frozenset({"lr", "momentum"}))
ADAM = Rule(kind="adam", uses=frozenset({"lr", "beta1", "beta2"}))
IDENTITIES = [(0, 3, 0), (0, 5, 0), (0, 5, 1)]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass
class Quadratics:
    """Train 1/2 w' H w - w' (B h + b), look at 1/2 |w - d|^2 + c h; `bend` adds its share of h^2 to h. Eigenvalues go
    from 1/4 to 1, the lanes' weights lie one lane after the other. The last weights rest, as many as `rests`."""

    coordinates: int
    lanes: int = 3
    lr: float = 0.8
    rule: Rule = SGD
    bend: float = 0.0
    rests: int = 0

    def __post_init__(self) -> None:
        bases_KNN = torch.linalg.qr(numbers(self.lanes, N, N, seed=1))[0]
        self.h_KNN = bases_KNN @ torch.diag(torch.linspace(0.25, 1.0, N, dtype=torch.float64)) @ bases_KNN.mT
        self.b_KNP, self.b_KN = numbers(self.lanes, N, self.coordinates, seed=2), numbers(self.lanes, N, seed=5)
        self.d_KN, self.c_P = numbers(self.lanes, N, seed=3), numbers(self.coordinates)
        self.h_KP = numbers(self.lanes, self.coordinates, seed=4)
        self.lane_T = torch.arange(self.lanes).repeat_interleave(N)
        self.moves_N = (torch.arange(N) < N - self.rests).double()

    def losses(self, weights_T: Tensor, h_KP: Tensor, batch: str) -> Tensor:
        w_KN = weights_T.view(-1, N)
        if batch == "outer":
            return 0.5 * (w_KN - self.d_KN).square().sum(1) + h_KP @ self.c_P
        pull_KN = torch.einsum("knp,kp->kn", self.b_KNP, h_KP + self.bend * h_KP**2) + self.b_KN
        return torch.einsum("kn,knm,km->k", w_KN, self.h_KNN, w_KN) / 2 - (w_KN * pull_KN).sum(1)

    def hyper(self, h_KP: Tensor) -> dict[str, Tensor]:
        every_T = torch.ones(len(self.lane_T), dtype=torch.float64)
        lr_T = self.lr * self.moves_N.repeat(self.lanes)
        rates = {"lr": lr_T, "momentum": 0.6 * every_T, "beta1": 0.9 * every_T, "beta2": 0.99 * every_T}
        return {**rates, "weight_decay": h_KP[self.lane_T, 0]}

    @property
    def inner(self) -> Inner:
        return Inner(rule=self.rule, lane_T=self.lane_T, losses=self.losses, hyper=self.hyper)

    def begin(self) -> State:
        return State.begin(self.rule, (numbers(self.lanes, N, seed=6) * self.moves_N).flatten())

    def response(self) -> Tensor:
        """dw*/dh of the weights that move: [K, N, P]."""
        moves_NN = torch.diag(self.moves_N)
        return torch.linalg.solve(moves_NN @ self.h_KNN @ moves_NN + EYE - moves_NN, self.moves_N[:, None] * self.b_KNP)


def hypernet(coordinates: int, identities: Sequence[tuple[int, int, int]] = IDENTITIES, **options: Any) -> Hypernet:
    facts: dict[str, Any] = {"scale": 0.1, "units": torch.ones_like, "draw": drawn(identities, coordinates)}
    return Hypernet(**{**facts, **options})


def signs(step: int) -> Tensor:
    return torch.tensor([[1.0], [-1.0], [1.0 - 2.0 * (step % 2)]], dtype=torch.float64)


def as_lanes(response_PT: Tensor | None, lanes: int = 3) -> Tensor:
    assert response_PT is not None
    return response_PT.view(-1, lanes, N).permute(1, 2, 0)


# -- on quadratics -----------------------------------------------------------------------------------------------------


def test_one_coordinate_on_a_quadratic_is_forward_mode() -> None:
    """The response's step along the direction tried is the tangent's own: J' = J - lr (H J - B)."""
    quadratics = Quadratics(1)
    learned = hypernet(1, draw=signs)
    for steps in (1, 2, 7):
        learned.reset()
        arguments = (quadratics.inner, quadratics.begin(), quadratics.h_KP, ["train"] * steps, "outer")
        found, exact = learned.derivative(*arguments), Forward().derivative(*arguments)
        torch.testing.assert_close(found.gradient_KP, exact.gradient_KP, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("rests", [0, 2])
def test_the_response_converges_to_that_of_the_minimum(rests: int) -> None:
    """And the derivative to the implicit one, whatever the units in which it looks around."""
    quadratics = Quadratics(3, rests=rests)
    learned = hypernet(3, units=lambda h_KP: torch.tensor([1.0, 1e-3, 50.0], dtype=torch.float64))
    state = quadratics.begin()
    found = learned.derivative(quadratics.inner, state, quadratics.h_KP, ["train"] * 450, "outer")
    assert found.state is not None
    response_KNP = as_lanes(learned.response_PT)
    torch.testing.assert_close(response_KNP, quadratics.response(), rtol=1e-7, atol=1e-7)
    assert (response_KNP[:, N - rests :] == 0).all()
    implicit = Implicit(solver="cg", terms=3 * N)
    exact = implicit.derivative(quadratics.inner, found.state, quadratics.h_KP, ["train"], "outer")
    torch.testing.assert_close(found.gradient_KP, exact.gradient_KP, rtol=1e-7, atol=1e-7)
    direct_KP = quadratics.c_P.expand_as(exact.gradient_KP)
    assert (exact.gradient_KP - direct_KP).abs().min() > 1e-3  # all of the response is in it


def test_the_response_is_stable_where_descent_is() -> None:
    """At rate times curvature 1.8: without |z|^2 in the step, six coordinates bear no more than 2 / (6 + 2)."""
    quadratics, learned = Quadratics(6, lr=1.8), hypernet(6)
    learned.derivative(quadratics.inner, quadratics.begin(), quadratics.h_KP, ["train"] * 600, "outer")
    torch.testing.assert_close(as_lanes(learned.response_PT), quadratics.response(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", [MOMENTUM, ADAM])
def test_other_rules_lead_to_the_same_response(rule: Rule) -> None:
    """Heavy ball at a rate that it bears and plain descent would not."""
    quadratics = Quadratics(2, rule=rule, lr=2.4 if rule is MOMENTUM else 0.3)
    learned = hypernet(2)
    found = learned.derivative(quadratics.inner, quadratics.begin(), quadratics.h_KP, ["train"] * 500, "outer")
    assert found.state is not None
    torch.testing.assert_close(as_lanes(learned.response_PT), quadratics.response(), rtol=1e-6, atol=1e-6)
    exact_KP = quadratics.c_P + torch.einsum(
        "kn,knp->kp", found.state.weights_T.view(-1, N) - quadratics.d_KN, quadratics.response()
    )
    torch.testing.assert_close(found.gradient_KP, exact_KP, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", [SGD, DECAYED, MOMENTUM, ADAM])
def test_what_is_tried_cancels_in_the_weights(rule: Rule) -> None:
    """On a quadratic to rounding: the training is the plain one, slots and all."""
    quadratics = Quadratics(2, rule=rule, lr=0.1)
    quadratics.h_KP = quadratics.h_KP.abs()
    batches = ["train"] * 40
    found = hypernet(2).derivative(quadratics.inner, quadratics.begin(), quadratics.h_KP, batches, "outer")
    alone = plain(quadratics.inner, quadratics.begin(), quadratics.h_KP, batches)
    assert found.state is not None
    assert not torch.allclose(alone.weights_T, quadratics.begin().weights_T)
    for a, b in zip(found.state.tensors(), alone.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_the_response_is_a_slope_over_the_reach_and_exact_as_it_shrinks() -> None:
    """Where w* bends with h: (h + e)^2 - (h - e)^2 = 4 h e is still exact, so a bend of 1 changes nothing but the slope
    itself, 1 + 2 h; and W settles at the mean of w* over the reach, off by the square of it."""
    gaps = []
    for scale in (0.2, 0.1):
        quadratics, learned = Quadratics(1, bend=1.0), hypernet(1, draw=signs, scale=scale)
        found = learned.derivative(quadratics.inner, quadratics.begin(), quadratics.h_KP, ["train"] * 130, "outer")
        assert found.state is not None
        slope_KNP = quadratics.response() * (1 + 2 * quadratics.h_KP)[:, None]
        torch.testing.assert_close(as_lanes(learned.response_PT), slope_KNP, rtol=1e-9, atol=1e-9)
        rest = plain(quadratics.inner, quadratics.begin(), quadratics.h_KP, ["train"] * 130)
        gaps.append((found.state.weights_T - rest.weights_T).view(3, N))
        torch.testing.assert_close(gaps[-1], scale**2 * quadratics.response()[:, :, 0], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gaps[0], 4 * gaps[1], rtol=1e-6, atol=1e-9)


# -- ridge -------------------------------------------------------------------------------------------------------------


def test_it_finds_the_best_ridge_while_it_trains() -> None:
    """Train 1/2 a (w - c)^2 under the rule's weight decay, look at 1/2 (w - d)^2: lam* = a c / d - a, .25 and .6 here.
    lam moves on the scale of its logarithm, three steps of training between two moves; nothing is trained again."""
    a, c, d_K = 1.0, 2.0, torch.tensor([1.6, 1.25], dtype=torch.float64)

    def losses(w: Tensor, h: Tensor, batch: str) -> Tensor:
        return 0.5 * (w - d_K) ** 2 if batch == "outer" else 0.5 * a * (w - c) ** 2

    lane_T, lr_T = torch.arange(2), torch.full((2,), 0.5, dtype=torch.float64)
    inner = Inner(rule=DECAYED, lane_T=lane_T, losses=losses, hyper=lambda h: {"lr": lr_T, "weight_decay": h[:, 0]})
    learned = hypernet(1, IDENTITIES[:2], units=lambda h_KP: h_KP, scale=0.02)
    state, lam_KP = State(weights_T=torch.zeros(2).double()), torch.tensor([[1.5], [0.01]]).double()
    for _ in range(200):
        found = learned.derivative(inner, state, lam_KP, ["train"] * 3, "outer")
        assert found.state is not None
        state, lam_KP = found.state, lam_KP * (-1.0 * lam_KP * found.gradient_KP).exp()
    assert lam_KP[:, 0].tolist() == pytest.approx([0.25, 0.6], abs=2e-4)
    assert learned.response_PT is not None
    slope_K = -a * c / (a + lam_KP[:, 0]) ** 2
    torch.testing.assert_close(learned.response_PT[0], slope_K, rtol=2e-3, atol=0)


# -- windows, draws and lanes ------------------------------------------------------------------------------------------


def test_the_response_lasts_from_window_to_window() -> None:
    quadratics, batches = Quadratics(2), ["train"] * 6
    whole, parts = hypernet(2), hypernet(2)
    one = whole.derivative(quadratics.inner, quadratics.begin(), quadratics.h_KP, batches * 2, "outer")
    half = parts.derivative(quadratics.inner, quadratics.begin(), quadratics.h_KP, batches, "outer")
    assert half.state is not None
    kept_PT = parts.response_PT
    two = parts.derivative(quadratics.inner, half.state, quadratics.h_KP, batches, "outer")
    assert torch.equal(one.gradient_KP, two.gradient_KP)
    later = hypernet(2, step=6)  # the draws of a run that goes on from there
    later.response_PT = kept_PT
    three = later.derivative(quadratics.inner, half.state, quadratics.h_KP, batches, "outer")
    assert torch.equal(one.gradient_KP, three.gradient_KP)
    parts.reset()
    four = parts.derivative(quadratics.inner, half.state, quadratics.h_KP, [], "outer")
    assert torch.equal(four.gradient_KP, quadratics.c_P.expand(3, 2))  # nothing follows yet


def test_lanes_laid_out_anew_begin_without_a_response() -> None:
    learned, wide, narrow = hypernet(2), Quadratics(2), Quadratics(2, lanes=2)
    learned.derivative(wide.inner, wide.begin(), wide.h_KP, ["train"] * 3, "outer")
    learned.draw = drawn(IDENTITIES[:2], 2)
    found = learned.derivative(narrow.inner, narrow.begin(), narrow.h_KP, [], "outer")
    assert torch.equal(found.gradient_KP, narrow.c_P.expand(2, 2))


def test_a_coordinate_of_no_unit_is_not_tried() -> None:
    quadratics = Quadratics(2)
    learned = hypernet(2, units=lambda h_KP: torch.tensor([[0.0, 1.0]] * 2 + [[0.0, 0.0]], dtype=torch.float64))
    found = learned.derivative(quadratics.inner, quadratics.begin(), quadratics.h_KP, ["train"] * 200, "outer")
    response_KNP = as_lanes(learned.response_PT)
    torch.testing.assert_close(response_KNP[:2, :, 1], quadratics.response()[:2, :, 1], rtol=1e-7, atol=1e-7)
    assert (response_KNP[:, :, 0] == 0).all()
    assert torch.equal(found.gradient_KP[2], quadratics.c_P)


def test_only_what_is_tried_counts_and_nothing_tried_is_nothing_learned() -> None:
    """From no response one step leads to lr B, whatever else was drawn."""
    quadratics = Quadratics(2)
    for drawn_for, share in ((1.0, 1.0), (0.0, 0.0)):
        learned = hypernet(
            2,
            units=lambda h_KP: torch.tensor([0.0, 1.0], dtype=torch.float64),
            draw=lambda step, drawn_for=drawn_for: torch.full((3, 2), drawn_for),
        )
        learned.derivative(quadratics.inner, quadratics.begin(), quadratics.h_KP, ["train"], "outer")
        expected_KN = share * quadratics.lr * quadratics.b_KNP[:, :, 1]
        torch.testing.assert_close(as_lanes(learned.response_PT)[:, :, 1], expected_KN, rtol=1e-10, atol=1e-12)


def test_draws_belong_to_a_trial_and_a_step() -> None:
    draw = drawn(IDENTITIES, 4)
    assert torch.equal(draw(7)[1:2], drawn(IDENTITIES[1:2], 4)(7))
    assert torch.equal(draw(7)[:, :2], drawn(IDENTITIES, 2)(7))
    many = torch.cat([draw(step) for step in range(1500)])
    assert len(many.unique(dim=0)) == len(many)
    assert many.mean().abs() < 0.03
    assert many.std().item() == pytest.approx(1, abs=0.03)
    torch.testing.assert_close((many.T @ many) / len(many), torch.eye(4), rtol=0, atol=0.07)


@pytest.mark.parametrize("rule", [SGD, ADAM])
@pytest.mark.parametrize("where", ["weights", "coordinates"])
def test_a_lane_of_nan_leaves_the_others_every_bit(rule: Rule, where: str) -> None:
    quadratics = Quadratics(2, rule=rule)

    def run(state: State) -> Any:
        return hypernet(2).derivative(quadratics.inner, state, quadratics.h_KP, ["train"] * 5, "outer")

    sound, state = run(quadratics.begin()), quadratics.begin()
    if where == "weights":
        state.weights_T[N + 2] = math.nan
    else:
        quadratics.h_KP[1, 1] = math.nan
    found = run(state)
    assert found.gradient_KP[1].isnan().all()
    assert torch.equal(found.gradient_KP[[0, 2]], sound.gradient_KP[[0, 2]])
    others = torch.arange(3 * N).view(3, N)[[0, 2]]
    for a, b in zip(found.state.tensors(), sound.state.tensors(), strict=True):
        assert torch.equal(a[others], b[others])


def test_a_perturbation_stays_within_the_room_that_there_is() -> None:
    """Both ends alike, so that what they share still cancels; where there is no room nothing is tried."""
    quadratics, seen = Quadratics(2, rule=SGD), []
    low, high = quadratics.h_KP - torch.tensor([0.5, 0.02]), quadratics.h_KP + torch.tensor([0.03, 0.4])
    low[0, 0] = quadratics.h_KP[0, 0]  # this one stands at an end

    def losses(weights_T: Tensor, h_KP: Tensor, batch: Any) -> Tensor:
        seen.append(h_KP.detach().clone())
        return quadratics.inner.losses(weights_T, h_KP, batch)

    inner = replace(quadratics.inner, losses=losses)
    learned = hypernet(2, scale=1.0, room=lambda h_KP: torch.minimum(h_KP - low, high - h_KP))
    found = learned.derivative(inner, quadratics.begin(), quadratics.h_KP, ["train"] * 40, "outer")
    tried = torch.stack(seen[:-1])  # the last is the outer loss
    assert ((tried >= low - 1e-12) & (tried <= high + 1e-12)).all()
    assert (tried[:, 0, 0] == quadratics.h_KP[0, 0]).all()
    torch.testing.assert_close((tried[::2] + tried[1::2]) / 2, quadratics.h_KP.expand_as(tried[::2]))
    assert (as_lanes(learned.response_PT)[0, :, 0] == 0).all()
    assert (as_lanes(learned.response_PT)[0, :, 1] != 0).any()
    assert found.gradient_KP.isfinite().all()


def test_a_unit_that_begins_to_speak_follows_nothing_yet() -> None:
    quadratics = Quadratics(2, rule=SGD)
    learned = hypernet(2)
    at = {"rests": False}

    def hyper(h_KP: Tensor) -> dict[str, Tensor]:
        found = dict(quadratics.inner.hyper(h_KP))
        rested_T = torch.arange(3 * N) % N == 1
        return {**found, "lr": torch.where(rested_T, 0.0, found["lr"]) if at["rests"] else found["lr"]}

    inner = replace(quadratics.inner, hyper=hyper)
    state = learned.derivative(inner, quadratics.begin(), quadratics.h_KP, ["train"] * 9, "outer").state
    assert (as_lanes(learned.response_PT)[:, 1] != 0).all()
    at["rests"] = True
    learned.derivative(inner, state, quadratics.h_KP, [], "outer")
    at["rests"] = False
    learned.derivative(inner, state, quadratics.h_KP, [], "outer")
    assert (as_lanes(learned.response_PT)[:, 1] == 0).all()
    assert (as_lanes(learned.response_PT)[:, 0] != 0).all()


def test_a_scale_is_above_zero() -> None:
    with pytest.raises(Invalid, match=r"hypernet.scale: must be a number above 0, but got 0.0"):
        hypernet(2, scale=0.0)
