"""The implicit derivative against exact solves, truncated training at rest, and ridge regression.

Legend of shape suffixes: K lanes, P coordinates that move, N weights of a lane, T the flat buffer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from sklearn import datasets
from torch import Tensor

from search_spaces.faults import Invalid
from trials.hypergradients.implicit import Implicit, rates
from trials.hypergradients.inner import Inner, State
from trials.hypergradients.unrolled import Unrolled
from trials.optimisers import Rule

N, P = 6, 3
EYE = torch.eye(N, dtype=torch.float64)
SGD = Rule(kind="sgd", uses=frozenset({"lr"}))
MOMENTUM = Rule(kind="sgd", uses=frozenset({"lr", "momentum"}))
ADAM = Rule(kind="adam", uses=frozenset({"lr", "beta1", "beta2"}))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spectrum(values_KN: Tensor, seed: int = 1) -> Tensor:
    """Symmetric matrices with these eigenvalues."""
    bases_KNN = torch.linalg.qr(numbers(len(values_KN), N, N, seed=seed))[0]
    return bases_KNN @ torch.diag_embed(values_KN) @ bases_KNN.mT


def conditioned(*conditions: float) -> Tensor:
    """Eigenvalues from 1 down, in even steps of their logarithm."""
    ends = [torch.logspace(0, -math.log10(condition), N, dtype=torch.float64) for condition in conditions]
    return spectrum(torch.stack(ends))


@dataclass
class Quadratics:
    """Train 1/2 w' H w - w' B h, look at 1/2 |w - d|^2 + c h: at rest w = H^-1 B h. Lanes lie interleaved."""

    h_KNN: Tensor
    lr: float = 0.5
    momentum: float = 0.0
    rule: Rule = SGD
    rests: Sequence[int] = ()
    spoilt: Sequence[int] = ()
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lanes = len(self.h_KNN)
        self.b_KNP, self.d_KN, self.c_P = numbers(self.lanes, N, P, seed=2), numbers(self.lanes, N, seed=3), numbers(P)
        self.h_KP = numbers(self.lanes, P, seed=4)
        self.moves_N = torch.ones(N, dtype=torch.float64).index_fill(0, torch.tensor(self.rests, dtype=torch.int64), 0)

    def losses(self, weights_T: Tensor, h_KP: Tensor, batch: str) -> Tensor:
        self.calls.append(batch)
        w_KN = weights_T.view(N, self.lanes).T
        if batch == "outer":
            bad_K = torch.tensor([math.nan if k in self.spoilt else 1.0 for k in range(self.lanes)])
            return 0.5 * bad_K * (w_KN - self.d_KN).square().sum(1) + h_KP @ self.c_P
        pull_KN = torch.einsum("knp,kp->kn", self.b_KNP, h_KP)
        return torch.einsum("kn,knm,km->k", w_KN, self.h_KNN, w_KN) / 2 - (w_KN * pull_KN).sum(1)

    def feedback(self, weights_T: Tensor, h_KP: Tensor, batch: str) -> Tensor:
        """A direction H w - B h, which is a gradient where H is symmetric."""
        pull_KN = torch.einsum("knp,kp->kn", self.b_KNP, h_KP)
        return (torch.einsum("knm,mk->kn", self.h_KNN, weights_T.view(N, self.lanes)) - pull_KN).T.flatten()

    def inner(self, *, by_feedback: bool = False) -> Inner:
        lr_T = (self.lr * self.moves_N).repeat_interleave(self.lanes)
        momentum_T = torch.full_like(lr_T, self.momentum)
        return Inner(
            rule=self.rule,
            lane_T=torch.arange(self.lanes).repeat(N),
            losses=self.losses,
            hyper=lambda h_KP: {"lr": lr_T, "momentum": momentum_T},
            feedback=self.feedback if by_feedback else None,
        )

    def rest(self) -> Tensor:
        """Where the weights stand that move, the others at 0: [K, N]."""
        pull_KN = torch.einsum("knp,kp->kn", self.b_KNP, self.h_KP) * self.moves_N
        return torch.linalg.solve(self.matrices(), pull_KN)

    def matrices(self, damping: float = 0.0) -> Tensor:
        moves_NN = torch.diag(self.moves_N)
        return moves_NN @ (self.h_KNN + damping * EYE) @ moves_NN + EYE - moves_NN

    def exact(self, damping: float = 0.0) -> Tensor:
        """dL/dh by an exact solve, [K, P]."""
        pull_KNP = self.moves_N[:, None] * self.b_KNP
        response_KNP = torch.linalg.solve(self.matrices(damping), pull_KNP)
        return self.c_P + torch.einsum("kn,knp->kp", self.rest() - self.d_KN, response_KNP)

    def found(self, method: Implicit, weights_KN: Tensor | None = None, **options: Any) -> Any:
        w_KN = self.rest() if weights_KN is None else weights_KN
        state = State.begin(self.rule, w_KN.T.flatten())
        return method.derivative(self.inner(**options), state, self.h_KP, ["train"], "outer")


# -- conjugate gradients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [1e-4, 0.5, 30.0])
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_conjugate_gradients_are_the_exact_solve(lr: float, damping: float) -> None:
    """Whatever the learning rate: it is no step size of theirs."""
    quadratics = Quadratics(conditioned(1, 10, 1e3, 1e6), lr=lr)
    found = quadratics.found(Implicit(solver="cg", terms=3 * N, damping=damping))
    torch.testing.assert_close(found.gradient_KP, quadratics.exact(damping), rtol=1e-8, atol=1e-9)
    assert found.residual_K.max() < 1e-12
    assert not found.flat_K.any()
    assert found.state is None
    assert quadratics.calls == ["outer", "train"]  # one graph for all products


def test_every_iterate_is_the_best_of_its_krylov_space() -> None:
    """Conjugate gradients minimise 1/2 u' H u - u' v over span(v, H v, ...): no product is half used."""
    quadratics = Quadratics(conditioned(30, 300))
    for terms in range(1, N + 1):
        found = quadratics.found(Implicit(solver="cg", terms=terms))
        for k in range(2):
            h_NN, v_N = quadratics.h_KNN[k], quadratics.rest()[k] - quadratics.d_KN[k]
            basis = torch.stack([torch.linalg.matrix_power(h_NN, j) @ v_N for j in range(terms)], 1)
            basis = torch.linalg.qr(basis)[0]
            u_N = basis @ torch.linalg.solve(basis.T @ h_NN @ basis, basis.T @ v_N)
            expected_P = quadratics.c_P + u_N @ quadratics.b_KNP[k]
            torch.testing.assert_close(found.gradient_KP[k], expected_P, rtol=1e-7, atol=1e-8)
            left = float((v_N - h_NN @ u_N).norm() / v_N.norm())
            assert found.residual_K[k].item() == pytest.approx(left, abs=1e-9)


def test_a_lane_that_is_done_freezes() -> None:
    """The first takes one iteration, the third asks for nothing; the second is done long before the last iteration."""
    quadratics = Quadratics(conditioned(1, 10, 10))
    quadratics.d_KN[2] = quadratics.rest()[2]
    short, long = (quadratics.found(Implicit(solver="cg", terms=terms)) for terms in (2 * N, 40 * N))
    torch.testing.assert_close(long.gradient_KP, short.gradient_KP, rtol=1e-13, atol=1e-13)
    assert long.gradient_KP[2].tolist() == quadratics.c_P.tolist()
    assert long.residual_K[2] == 0
    assert not long.flat_K.any()


def test_a_lane_at_a_saddle_stops_with_what_it_has_and_says_so() -> None:
    values_KN = torch.tensor([[1, 2, 3, 4, 5, 6], [-1, -2, -3, -4, -5, -6], [1, 2, 3, 4, 5, -1e-3], [1, 1, 1, 1, 1, 0]])
    quadratics = Quadratics(spectrum(values_KN.double()))
    weights_KN = numbers(4, N, seed=9)
    found = quadratics.found(Implicit(solver="cg", terms=10 * N), weights_KN)
    assert found.flat_K.tolist() == [False, True, True, True]
    exact_P = torch.linalg.solve(quadratics.h_KNN[0], quadratics.b_KNP[0]).T @ (weights_KN[0] - quadratics.d_KN[0])
    torch.testing.assert_close(found.gradient_KP[0], quadratics.c_P + exact_P)
    assert torch.equal(
        found.gradient_KP[1], quadratics.c_P
    )  # the very first direction: nothing is known of the weights
    assert found.gradient_KP.isfinite().all()
    assert found.residual_K[0] < 1e-10
    assert found.residual_K[1] == 1
    assert found.residual_K[3] > 1e-3
    assert not quadratics.found(Implicit(solver="cg", terms=3 * N, damping=7.0), weights_KN).flat_K.any()


# -- the series --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [0.3, 1.0, 1.9])
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_the_series_converges_to_the_exact_solve(lr: float, damping: float) -> None:
    quadratics = Quadratics(conditioned(1, 2, 5), lr=lr if damping == 0 else lr / 1.1)
    found = quadratics.found(Implicit(solver="neumann", terms=500, damping=damping))
    torch.testing.assert_close(found.gradient_KP, quadratics.exact(damping), rtol=1e-9, atol=1e-10)
    assert found.residual_K.max() < 1e-9


@pytest.mark.parametrize("terms", [1, 2, 7])
def test_at_rest_the_series_is_truncated_training(terms: int) -> None:
    """To rounding, with weights that rest among them (Lorraine et al. 2020, section 3.1)."""
    quadratics = Quadratics(conditioned(1, 10, 100), rests=(0, 4))
    found = quadratics.found(Implicit(solver="neumann", terms=terms))
    state = State(weights_T=quadratics.rest().T.flatten())
    unrolled = Unrolled().derivative(quadratics.inner(), state, quadratics.h_KP, ["train"] * terms, "outer")
    torch.testing.assert_close(found.gradient_KP, unrolled.gradient_KP, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("solver", ["neumann", "cg"])
def test_weights_that_rest_have_no_part_in_it(solver: str) -> None:
    quadratics = Quadratics(conditioned(2, 5), rests=(0, 4), lr=1.0)
    found = quadratics.found(Implicit(solver=solver, terms=400))
    torch.testing.assert_close(found.gradient_KP, quadratics.exact(), rtol=1e-10, atol=1e-11)


def test_the_series_is_stable_where_momentum_is() -> None:
    """Heavy ball bears rate times curvature up to 2 (1 + mu), the series of plain descent only 2."""
    quadratics = Quadratics(conditioned(2, 5), lr=3.4, momentum=0.8, rule=MOMENTUM)
    state = State.begin(MOMENTUM, numbers(2 * N))
    state = Unrolled(through=0).derivative(quadratics.inner(), state, quadratics.h_KP, ["train"] * 500, "outer").state
    assert state is not None
    torch.testing.assert_close(state.weights_T.view(N, 2).T, quadratics.rest())
    found = quadratics.found(Implicit(solver="neumann", terms=600))
    torch.testing.assert_close(found.gradient_KP, quadratics.exact(), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("lr", [1e-6, 1.0, 100.0])
@pytest.mark.parametrize("curvature", [1e-3, 1.0, 1e4])
def test_the_series_needs_no_rate_of_adams(lr: float, curvature: float) -> None:
    quadratics = Quadratics(curvature * conditioned(1, 3, 10), lr=lr, rule=ADAM, rests=(2,))
    found = quadratics.found(Implicit(solver="neumann", terms=400))
    torch.testing.assert_close(found.gradient_KP, quadratics.exact(), rtol=1e-9, atol=1e-10)


def test_feedback_has_a_jacobian_of_its_own_and_its_transpose_counts() -> None:
    matrices_KNN = EYE + 0.15 * numbers(2, N, N, seed=7)
    quadratics = Quadratics(matrices_KNN, lr=0.5)
    found = quadratics.found(Implicit(solver="neumann", terms=400), by_feedback=True)
    torch.testing.assert_close(found.gradient_KP, quadratics.exact(), rtol=1e-9, atol=1e-10)
    mirrored = Quadratics(matrices_KNN.mT)
    wrong_KP = mirrored.c_P + torch.einsum(
        "kn,knp->kp", quadratics.rest() - mirrored.d_KN, torch.linalg.solve(matrices_KNN.mT, mirrored.b_KNP)
    )
    assert not torch.allclose(found.gradient_KP, wrong_KP, rtol=0.05)
    with pytest.raises(
        Invalid, match="symmetric Jacobian, which only back-propagation has, but got learner 'feedback'"
    ):
        quadratics.found(Implicit(solver="cg"), by_feedback=True)


# -- both --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [SGD, ADAM])
@pytest.mark.parametrize("method", [Implicit(solver="neumann", terms=9), Implicit(solver="cg", terms=9)])
@pytest.mark.parametrize("where", ["weights", "outer loss", "coordinates"])
def test_a_broken_lane_has_no_derivative_and_the_others_keep_every_bit(
    method: Implicit, rule: Rule, where: str
) -> None:
    quadratics = Quadratics(conditioned(2, 5, 10), rule=rule)
    weights_KN = quadratics.rest()
    sound = quadratics.found(method, weights_KN)
    if where == "weights":
        weights_KN[1, 3] = math.inf
    elif where == "outer loss":
        quadratics.spoilt = (1,)
    else:
        quadratics.h_KP[1, 2] = math.nan
    found = quadratics.found(method, weights_KN)
    assert found.gradient_KP[1].isnan().all()
    for a, b in ((found.gradient_KP, sound.gradient_KP), (found.residual_K, sound.residual_K)):
        assert torch.equal(a[[0, 2]], b[[0, 2]])
        assert sound.gradient_KP.isfinite().all()


def test_rates_are_those_of_a_stable_descent() -> None:
    hyper = {"lr": torch.tensor([0.0, 0.2]), "momentum": torch.tensor([0.9, 0.6])}
    nesterov = Rule(kind="sgd", nesterov=True, uses=MOMENTUM.uses)
    assert [rates(rule, hyper).tolist() for rule in (SGD, nesterov)] == [hyper["lr"].tolist()] * 2
    assert rates(MOMENTUM, hyper).tolist() == pytest.approx([0.0, 0.125])


def test_its_own_arguments_are_judged() -> None:
    with pytest.raises(Invalid) as raised:
        Implicit(solver="neuman", terms=0, damping=-1.0)
    assert len(raised.value.faults) == 3
    with pytest.raises(Invalid, match="one train batch, but got 2"):
        Implicit().derivative(Quadratics(conditioned(1)).inner(), State(weights_T=numbers(N)), numbers(1, P), [0, 0], 0)


# -- ridge regression on diabetes --------------------------------------------------------------------------------------


class Diabetes:
    """Ridge without an intercept: 1/2 |X w - y|^2 + 1/2 lam |w|^2, summed over the first 221 rows of the permutation
    of RandomState(0), looked at by 1/2 of the mean square over the other 221. Every column of X and y has mean 0 and
    standard deviation 1 (that of a population) over all 442 rows; over the training rows alone the best lam is .33."""

    def __init__(self) -> None:
        x, y = datasets.load_diabetes(return_X_y=True)
        order = np.random.RandomState(0).permutation(len(y))
        rows = [torch.from_numpy((part - part.mean(0)) / part.std(0)) for part in (x, y)]
        self.train, self.outer = ([part[places] for part in rows] for places in (order[:221], order[221:]))

    def weights(self, lam_K: Tensor) -> Tensor:
        x, y = self.train
        return torch.linalg.solve(x.T @ x + lam_K[:, None, None] * torch.eye(x.shape[1]), x.T @ y)

    def loss(self, lam: float) -> float:
        x, y = self.outer
        return float(0.5 * (x @ self.weights(torch.tensor([lam], dtype=torch.float64))[0] - y).square().mean())

    def derivative(self, method: Implicit, lam_K: Tensor, as_rule: bool = True) -> Tensor:
        """At the weights where each lane rests. Its learning rate moves, too: the second coordinate."""
        lanes = len(lam_K)

        def losses(weights_T: Tensor, h_KP: Tensor, batch: str) -> Tensor:
            w_KN = weights_T.view(lanes, -1)
            if batch == "outer":
                return 0.5 * (w_KN @ self.outer[0].T - self.outer[1]).square().mean(1)
            penalty_K = 0.0 if as_rule else 0.5 * h_KP[:, 0] * w_KN.square().sum(1)
            return 0.5 * (w_KN @ self.train[0].T - self.train[1]).square().sum(1) + penalty_K

        weights_T = self.weights(lam_K).flatten()
        lane_T = torch.arange(lanes).repeat_interleave(len(weights_T) // lanes)
        uses = frozenset({"lr", "weight_decay"}) if as_rule else frozenset({"lr"})
        inner = Inner(
            rule=Rule(kind="sgd", uses=uses),
            lane_T=lane_T,
            losses=losses,
            hyper=lambda h_KP: {"weight_decay": h_KP[lane_T, 0], "lr": h_KP[lane_T, 1]},
        )
        h_KP = torch.stack([lam_K, torch.full_like(lam_K, 1e-3)], 1)
        return method.derivative(inner, State(weights_T=weights_T), h_KP, ["train"], "outer").gradient_KP


@pytest.mark.parametrize("as_rule", [True, False])
def test_ridge_on_diabetes(as_rule: bool) -> None:
    diabetes, cg = Diabetes(), Implicit(solver="cg", terms=40)
    lam_K = torch.logspace(-4, 4, 81, dtype=torch.float64)
    found_KP = diabetes.derivative(cg, lam_K, as_rule)
    assert found_KP[:, 1].tolist() == [0.0] * 81  # it is blind to how the minimum was reached
    for lam, derivative in list(zip(lam_K.tolist(), found_KP[:, 0].tolist(), strict=True))[::8]:
        step = 1e-3 * (1 + lam)
        near, far = (diabetes.loss(lam + by * step) - diabetes.loss(lam - by * step) for by in (1, 2))
        difference = (8 * near - far) / (12 * step)
        assert derivative == pytest.approx(difference, rel=1e-7, abs=1e-13)
    signs = found_KP[:, 0].sign()
    assert (signs != 0).all()
    assert int((signs[1:] != signs[:-1]).sum()) == 1  # one minimum
    best = optimize.brentq(
        lambda lam: diabetes.derivative(cg, torch.tensor([lam], dtype=torch.float64), as_rule)[0, 0].item(), 0.01, 10.0
    )
    assert best == pytest.approx(0.2440, abs=2e-4)
    assert diabetes.loss(best) == pytest.approx(0.245177, abs=5e-7)


def test_the_series_on_diabetes() -> None:
    """By terms, at the rate that training has: what is left shrinks as (1 - lr s)^terms of the least s."""
    diabetes, lam_K = Diabetes(), torch.tensor([30.0, 100.0], dtype=torch.float64)
    exact_KP = diabetes.derivative(Implicit(solver="cg", terms=40), lam_K)
    found_KP = diabetes.derivative(Implicit(solver="neumann", terms=1000), lam_K)
    torch.testing.assert_close(found_KP, exact_KP, rtol=1e-9, atol=1e-14)
