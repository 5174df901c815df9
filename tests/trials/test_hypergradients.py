"""Gradients of the architecture and the steps they take, against finite differences and problems solved by hand.

Legend of shape suffixes: K lanes, G gates, B batch, I 1 + inputs, O outputs.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from search_spaces import Space
from search_spaces.membership import MEMBERSHIPS, annealed
from search_spaces.mlp import ACTIVATION_MODULES
from search_spaces.network import ACTIVATIONS
from search_spaces.networks import MLP
from trials.architecture import Architecture
from trials.fused import FusedRun
from trials.hypergradients import Method
from trials.hypergradients.moves import Moves
from trials.lanes.dense import DenseShape
from trials.lanes.gated import DenseProgram
from trials.optimisers import Rule
from trials.plan import Plan
from trials.records import Bundle, Outcome, Report, Trial
from trials.reproduce import plain_of
from trials.tasks import Split, load
from trials.train import Trainer
from trials.training import Training
from trials.widths import GateKind, Widths

INPUTS, OUTPUTS, BATCH, MAXIMUM = 4, 3, 8, 20
SIZES = [[2.3, 7.75, 11.2], [9.6, 1.5, 4.9]]  # two lanes, up to three layers


# -- the derivative ----------------------------------------------------------------------------------------------------


def grade_by_hand(membership: str, n: float, units: int, tau: float) -> Tensor:
    if membership == "interval":
        return torch.tensor([min(max(n - k, 0.0), 1.0) for k in range(units)], dtype=torch.float64)
    by_hand = [1 / (1 + math.exp((math.log(k + 0.5) - math.log(n)) / tau)) for k in range(units)]
    return torch.tensor(by_hand, dtype=torch.float64)


def dense_program(
    shape: DenseShape, maxima: tuple[int, ...], sizes: list[list[float]], membership: str
) -> tuple[DenseProgram, Widths]:
    """Gated lanes at some real sizes, and their widths."""
    kinds = [
        GateKind(name=f"width.{g}", maximum=maximum, membership=membership, scale=(1.0, float(maximum), True))
        for g, maximum in enumerate(maxima)
    ]
    widths = Widths(kinds, torch.tensor(sizes))
    lanes = DenseProgram(replace(shape, maxima=maxima), BATCH, gated=True, dtype=torch.float64)
    lanes.begin([(0, k, 0) for k in range(len(sizes))], widths.reach(), sizes)
    lanes.attach(Rule(), {"lr": torch.linspace(0.1, 0.2, len(sizes))})
    lanes.regate(widths.grades(), lanes.sizes, widths.sizes_KG)
    return lanes, widths


def loss_by_hand(
    matrices: list[Tensor], sizes: list[float], x_BI: Tensor, y_BO: Tensor, shape: DenseShape, membership: str
) -> float:
    h_BI = x_BI
    for matrix, n in zip(matrices[:-1], sizes, strict=True):
        h = ACTIVATION_MODULES[shape.activation]()(h_BI @ matrix.T) * grade_by_hand(membership, n, len(matrix), 0.3)
        h_BI = functional.pad(h, (1, 0), value=1.0)
    out_BO = h_BI @ matrices[-1].T
    if shape.loss == "mse":
        return float(0.5 * (out_BO - y_BO).pow(2).sum(1).mean())
    return float(-(out_BO.log_softmax(1) * y_BO).sum(1).mean())


@pytest.mark.parametrize("membership", ["interval", "band"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_size_gradients_equal_finite_differences(membership: str, layers: int, activation: str, loss: str) -> None:
    """One derivative serves both methods: `descent` takes it on training rows, `bilevel` on the outer ones."""
    shape = DenseShape(inputs=INPUTS, outputs=OUTPUTS, activation=activation, loss=loss)
    sizes = [lane[:layers] for lane in SIZES]
    lanes, widths = dense_program(shape, (MAXIMUM,) * layers, sizes, membership)
    x_BI = functional.pad(torch.randn(BATCH, INPUTS, dtype=torch.float64), (1, 0), value=1.0)
    y_BO = torch.randn(BATCH, OUTPUTS, dtype=torch.float64)
    if loss == "cross_entropy":
        y_BO = functional.one_hot(y_BO.argmax(1), OUTPUTS).double()
    lanes.step(x_BI, y_BO)  # so that biases are not all zero
    gradient_KG = widths.pull(lanes.grade_gradients(x_BI, y_BO))
    for k, g in np.ndindex(2, layers):
        matrices = [matrix.clone() for matrix in lanes.dense.matrices(k)]
        around = []
        for h in (1e-5, -1e-5):
            moved = [n + h * (i == g) for i, n in enumerate(torch.tensor(sizes[k]).tolist())]
            around.append(loss_by_hand(matrices, moved, x_BI, y_BO, shape, membership))
        difference = (around[0] - around[1]) / 2e-5
        assert float(gradient_KG[k, g]) == pytest.approx(difference, rel=1e-5, abs=1e-9), (k, g)


def test_a_size_at_its_maximum_feels_its_last_unit() -> None:
    shape = DenseShape(inputs=INPUTS, outputs=OUTPUTS)
    lanes, widths = dense_program(shape, (6,), [[6.0]], "interval")
    x_BI = functional.pad(torch.randn(BATCH, INPUTS, dtype=torch.float64), (1, 0), value=1.0)
    y_BO = functional.one_hot(torch.arange(BATCH) % OUTPUTS, OUTPUTS).double()
    at, below = (loss_by_hand(lanes.dense.matrices(0), [n], x_BI, y_BO, shape, "interval") for n in (6.0, 6.0 - 1e-6))
    assert float(widths.pull(lanes.grade_gradients(x_BI, y_BO))) == pytest.approx((at - below) / 1e-6, rel=1e-4)


# -- the step ----------------------------------------------------------------------------------------------------------


def no_cost(_: Tensor) -> dict[str, Tensor]:
    return {}


def moves_of(
    method: Method, scales: list[tuple[float, float, bool]], start: list[list[float]], **options: Any
) -> Moves:
    bounds, cost = options.get("bounds", {}), options.get("cost", no_cost)
    return Moves(method, scales, torch.tensor(start, dtype=torch.float64), bounds, cost)


SGD = Method(kind="bilevel", optimizer="sgd", lr=1e-3, warmup=0, every=1, clip=0.0)


def test_a_plain_step_descends_in_the_unit_cube() -> None:
    """-lr dF/du, with dF/du by finite differences through the scales (one logarithmic, one linear)."""
    low, high = 4.0, 128.0

    def sizes(u: np.ndarray) -> np.ndarray:
        return np.array([low * (high / low) ** u[0], low + u[1] * (high - low)])

    def f(n: np.ndarray) -> float:
        return float(0.01 * n[0] ** 2 - 0.3 * n[0] * n[1] / 100 + math.sin(n[1] / 20))

    u = np.array([0.4, 0.7])
    n = sizes(u)
    gradient = [0.02 * n[0] - 0.003 * n[1], -0.003 * n[0] + math.cos(n[1] / 20) / 20]
    difference = [(f(sizes(u + h)) - f(sizes(u - h))) / 2e-6 for h in 1e-6 * np.eye(2)]
    moves = moves_of(SGD, [(low, high, True), (low, high, False)], [list(n)])
    moved = moves.step(torch.tensor([gradient]))[0].tolist()
    assert moved == pytest.approx(sizes(u - SGD.lr * np.array(difference)).tolist(), rel=1e-9)


def test_adam_is_adam_in_the_unit_cube() -> None:
    """Against torch's own, with the moments of the declaration (0.9, 0.99)."""
    moves = moves_of(replace(SGD, optimizer="adam", lr=0.01), [(1.0, 11.0, False)], [[4.0], [6.0]])
    u = torch.tensor([[0.3], [0.5]], dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([u], lr=0.01, betas=(0.9, 0.99), eps=1e-12)
    for step in range(20):
        gradient = torch.tensor([[math.sin(step)], [1.0 + step]], dtype=torch.float64)
        u.grad = 10 * gradient
        adam.step()
        torch.testing.assert_close(moves.step(gradient), 1 + 10 * u.detach(), rtol=1e-12, atol=1e-12)


def test_sizes_stay_in_their_range_and_those_that_do_not_move_rest() -> None:
    moves = moves_of(replace(SGD, lr=10.0), [(4.0, 8.0, True), (1.0, 1.0, False)], [[5.0, 33.0]])
    assert moves.step(torch.tensor([[-1e9, 5.0]])).tolist() == [[8.0, 33.0]]
    assert moves.step(torch.tensor([[1e9, -5.0]])).tolist() == [[4.0, 33.0]]


def test_an_outer_rate_of_zero_moves_nothing_bitwise() -> None:
    start = [[math.pi, 7.3, 100.1], [127.9, 4.0, 128.0]]
    scales = [(3.0, 128.0, True), (4.0, 128.0, False), (4.0, 128.0, True)]
    for optimizer in ("adam", "sgd"):
        method = replace(SGD, optimizer=optimizer, lr=0.0)
        moves = moves_of(method, scales, start, bounds={"sum": 50.0}, cost=lambda n: {"sum": n.sum(1)})
        for seed in range(5):
            assert moves.step(torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))).tolist() == start


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_rests_its_lane_alone(optimizer: str, poison: float) -> None:
    def run(poisoned: bool) -> list[Tensor]:
        moves = moves_of(
            replace(SGD, optimizer=optimizer, lr={"adam": 0.02, "sgd": 2e-5}[optimizer]),
            [(4.0, 128.0, True)] * 2,
            [[20.0, 30.0], [40.0, 50.0], [60.0, 70.0]],
            bounds={"sum": 50.0},
            cost=lambda n: {"sum": n.sum(1)},
        )
        path = []
        for step in range(8):
            gradient = torch.tensor([[1.0, -1.0], [0.5, 1.0], [-1.0, 2.0]]) * (1 + step)
            if poisoned and 3 <= step < 6:
                gradient[1, 0] = poison
            path.append(moves.step(gradient).clone())
        return path

    sound, poisoned = run(False), run(True)
    for a, b in zip(sound, poisoned, strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])
        assert b.isfinite().all()
    for step in (3, 4, 5):
        assert torch.equal(poisoned[step][1], poisoned[2][1])  # both of its sizes, and no momentum carries it on
    assert not torch.equal(poisoned[6][1], poisoned[5][1])


def test_dual_ascent_finds_the_karush_kuhn_tucker_point() -> None:
    """min 1/2 |n - t|^2 subject to n_0 + n_1 <= C: n = t - mu (1, 1), mu = (sum t - C) / 2, and lambda = C mu, since
    the constraint is sum / C - 1. A lane whose bound is slack ends at t with lambda = 0."""
    target, bound = torch.tensor([[60.0, 40.0], [30.0, 20.0]], dtype=torch.float64), 80.0
    method = replace(SGD, lr=0.05 / 99**2, dual_lr=64.0)
    moves = moves_of(
        method,
        [(1.0, 100.0, False)] * 2,
        [[5.0, 90.0], [5.0, 90.0]],
        bounds={"sum": bound},
        cost=lambda n: {"sum": n.sum(1)},
    )
    for _ in range(1500):
        moves.step(moves.n_KG - target)
    assert moves.n_KG.flatten().tolist() == pytest.approx([50, 30, 30, 20], abs=1e-6)
    assert moves.dual_KC.flatten().tolist() == pytest.approx([bound * 10, 0], abs=1e-4)


def test_a_penalty_pulls_as_its_derivative_says() -> None:
    """min 1/2 |n - t|^2 + w (n_0 n_1): the stationary point solves n_0 + w n_1 = t_0, n_1 + w n_0 = t_1."""
    target, weight = torch.tensor([[60.0, 40.0]], dtype=torch.float64), 0.25
    moves = Moves(
        replace(SGD, lr=0.1 / 99**2),
        [(1.0, 100.0, False)] * 2,
        torch.tensor([[5.0, 90.0]], dtype=torch.float64),
        {},
        lambda n: {"product": n[:, 0] * n[:, 1]},
        {"product": weight},
    )
    for _ in range(2000):
        moves.step(moves.n_KG - target)
    solved = np.linalg.solve([[1, weight], [weight, 1]], [60.0, 40.0])
    assert moves.n_KG.flatten().tolist() == pytest.approx(solved.tolist(), abs=1e-6)


def test_first_order_bilevel_on_the_darts_toy() -> None:
    """L_v = a w - 2a + 1, L_t = (w - a)^2. At xi = 0 the gradient in a is w - 2, blind to w following a; so the loop
    settles at a = w = 2, where the true optimum of L_v(a, w*(a)) = (a - 1)^2 is 1."""

    def first_order(a: Tensor, w: Tensor) -> Tensor:
        a = a.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((a * w - 2 * a + 1).sum(), a)
        return gradient

    assert first_order(torch.tensor(2.0), torch.tensor(-2.0)).item() == -4.0
    span, lr = 20.0, 5e-5
    moves = moves_of(replace(SGD, lr=lr), [(-10.0, 10.0, False)], [[2.0], [-3.0], [7.0]])
    w = torch.tensor([[-2.0], [0.0], [5.0]], dtype=torch.float64)
    before = moves.n_KG.clone()
    torch.testing.assert_close(moves.step(first_order(before, w)), before - lr * span**2 * (w - 2))
    for _ in range(6000):
        w -= 0.05 * 2 * (w - moves.n_KG)
        moves.step(first_order(moves.n_KG, w))
    assert moves.n_KG.flatten().tolist() == pytest.approx([2.0] * 3, abs=1e-6)
    assert w.flatten().tolist() == pytest.approx([2.0] * 3, abs=1e-6)


def test_a_temperature_falls_geometrically_from_end_to_end() -> None:
    assert annealed(0.3, 0.05, 0.0) == 0.3
    assert annealed(0.3, 0.05, 1.0) == pytest.approx(0.05, rel=1e-15)
    assert annealed(0.3, 0.05, 0.5) == pytest.approx(math.sqrt(0.3 * 0.05))
    assert annealed(0.3, 0.05, -1.0) == 0.3
    assert annealed(0.3, 0.05, 2.0) == annealed(0.3, 0.05, 1.0)
    assert annealed(0.3, 0.3, 0.7) == 0.3


# -- in training -------------------------------------------------------------------------------------------------------


def plan_of(kind: str, **changes: Any) -> Plan:
    width = {"type": "width", "low": 2, "high": 12, **({"moved_by": "gradient"} if kind != "none" else {})}
    facts: dict[str, Any] = {
        "space": Space.from_dict({"width.0": width, "width.1": width}),
        "training": Training(epochs=8, batch_size=16, lr=0.1),
        "task": load("uci/iris"),
        "network": MLP(layers=2),
        "method": Method(kind=kind, warmup=4, every=2),
        "metric": "val_loss",
        "seed": 5,
    }
    return Plan(**{**facts, **changes})


def trained(plan: Plan, sizes: tuple[tuple[float, float], ...] = ((3.3, 7.5), (10.2, 4.0))) -> list[Any]:
    trials = tuple(Trial(search_id="s", number=i, point={"width.0": a, "width.1": b}) for i, (a, b) in enumerate(sizes))
    return list(Trainer(plan).train(Bundle(search_id="s", id="b", generation=0, trials=trials)))


def outcomes(records: list[Any]) -> list[Outcome]:
    return [record for record in records if isinstance(record, Outcome)]


def relabelled(plan: Plan, split: str) -> Plan:
    old = getattr(plan.task, split)
    return replace(plan, task=replace(plan.task, **{split: Split(x=old.x, y=(old.y + 1) % 3)}))


@pytest.mark.parametrize("kind", ["descent", "bilevel"])
@pytest.mark.parametrize("membership", ["interval", "band"])
def test_sizes_move_within_their_range_and_are_reported_on_the_way(kind: str, membership: str) -> None:
    plan = plan_of(kind, network=MLP(layers=2, membership=membership))
    records = trained(plan)
    for outcome in outcomes(records):
        asked = ((3.3, 7.5), (10.2, 4.0))[outcome.number]
        for gate, start in zip(("width.0", "width.1"), asked, strict=True):
            path = [r.architecture[gate] for r in records if isinstance(r, Report) and r.trial_id == outcome.trial_id]
            assert len(path) >= 24
            assert all(2 <= n <= 12 for n in path)
            assert path[-1] == outcome.point[gate] != start
            assert outcome.rounded[gate] == int(outcome.point[gate] + 0.5)


@pytest.mark.parametrize(
    ("kind", "split", "moves", "fits"),
    [
        ("descent", "outer", True, True),  # a single level: its rows are training rows
        ("bilevel", "outer", True, False),
        ("descent", "selection", False, False),
        ("bilevel", "selection", False, False),
        ("bilevel", "test", False, False),
    ],
)
def test_which_split_moves_the_sizes_and_which_the_weights_see(kind: str, split: str, moves: bool, fits: bool) -> None:
    """By changing the labels of one split. That weights do not see it is looked at where the sizes are held."""
    plan = plan_of(kind)
    points = [[o.point for o in outcomes(trained(p))] for p in (plan, relabelled(plan, split))]
    assert (points[0] != points[1]) == moves
    still = replace(plan, method=replace(plan.method, lr=0.0), scored="train")
    values = [[o.value for o in outcomes(trained(p))] for p in (still, relabelled(still, split))]
    assert (values[0] != values[1]) == fits


@pytest.mark.parametrize("membership", ["interval", "band"])
def test_an_outer_rate_of_zero_is_the_arm_without_a_gradient_bitwise(membership: str) -> None:
    """The control: same sizes, same weights, same score; what it costs is the hypergradient's passes."""
    network = MLP(layers=2, membership=membership, tau=0.2, tau_end=0.2)
    still = plan_of("descent", network=network, method=Method(kind="descent", lr=0.0, warmup=4, every=2))
    plain = plan_of("none", network=network, realise="fractional")
    for a, b in zip(outcomes(trained(still)), outcomes(trained(plain)), strict=True):
        assert a.point == b.point
        assert a.value == b.value
        assert a.spent.flops == b.spent.flops
        assert a.spent.executed_flops > b.spent.executed_flops


def test_bounds_pull_the_sizes_under_them() -> None:
    bounds = {"parameters": 60.0}
    plan = plan_of("descent", bounds=bounds, method=Method(kind="descent", warmup=0, every=1, dual_lr=0.5))
    for outcome in outcomes(trained(replace(plan, training=replace(plan.training, epochs=30)))):
        a, b = (float(outcome.point[f"width.{i}"]) for i in range(2))
        assert 5 * a + (a + 1) * b + (b + 1) * 3 <= 60.0 * 1.1
        assert outcome.metrics["parameters"] <= 60.0


def test_the_value_is_the_metric_and_the_price_of_the_network() -> None:
    """At the real sizes for the value, at whole ones for the rounded value; costs may be the objective themselves."""
    weight = 1e-3
    plain, priced = (
        outcomes(trained(plan_of("none", realise="fractional", **p))) for p in ({}, {"penalty": {"parameters": weight}})
    )
    for a, b in zip(plain, priced, strict=True):
        live, whole = ([float(point[f"width.{i}"]) for i in range(2)] for point in (b.point, b.rounded))
        parameters = [5 * m + (m + 1) * n + (n + 1) * 3 for m, n in (live, whole)]
        assert b.value == pytest.approx(a.value + weight * parameters[0], rel=1e-12)
        assert b.metrics["rounded_value"] == pytest.approx(
            a.metrics["rounded_value"] + weight * parameters[1], rel=1e-12
        )
        assert b.metrics["parameters"] == parameters[1]
    for outcome in outcomes(trained(plan_of("none", metric="forward_flops"))):
        m, n = (outcome.rounded[f"width.{i}"] for i in range(2))
        assert outcome.value == 2 * (4 * m + m * n + n * 3)


@pytest.mark.slow
@pytest.mark.parametrize("membership", list(MEMBERSHIPS))
@pytest.mark.parametrize("pull", [1.0, -1.0])
def test_no_membership_leaves_the_range_of_its_width(membership: str, pull: float) -> None:
    """Not even those without a size of their own, whose numbers know nothing of it: live sizes are where the point is
    said to be, so that what is scored and priced is what is told."""
    found = Architecture.move

    def pulled(self: Architecture, *arguments: Any) -> None:
        found(self, *arguments)
        sizes_KG = self.widths.sizes_KG
        assert bool((sizes_KG >= 3 - 1e-6).all())
        assert bool((sizes_KG <= 12 + 1e-6).all())

    method = Method(kind="descent", warmup=0, every=1, lr=0.2)
    width = {"type": "width", "low": 3, "high": 12, "moved_by": "gradient"}
    plan = plan_of(
        "descent",
        space=Space.from_dict({"width.0": width, "width.1": width}),
        network=MLP(layers=2, membership=membership),
        method=method,
        penalty={"parameters": 0.05} if pull > 0 else {},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Architecture, "move", pulled)
        for outcome in outcomes(trained(plan, ((4.0, 5.0), (10.0, 11.0)))):
            assert outcome.error is None
            assert all(3 <= float(outcome.point[gate]) <= 12 for gate in ("width.0", "width.1"))


def test_replicates_are_measured_whole_each_at_its_own_sizes() -> None:
    """Their sizes part; the rounded value is the mean of what each one's plain network is worth, priced at its size."""
    method, weight = Method(kind="bilevel", warmup=0, every=1, lr=0.1), 1e-3
    network = MLP(layers=2, membership="interval")
    plan = plan_of("bilevel", seeds=3, network=network, method=method, penalty={"parameters": weight})
    trial = Trial(search_id="s", number=0, point={"width.0": 3.3, "width.1": 7.5})
    lanes = FusedRun(
        plan,
        Bundle(search_id="s", id="b", generation=0, trials=(trial,)),
        Trainer(plan).rows,
        torch.device("cpu"),
    )
    (outcome,) = outcomes(list(lanes.records()))
    sizes = [[int(n + 0.5) for n in lane] for lane in lanes.numbers_KM.tolist()]
    assert len({tuple(lane) for lane in sizes}) > 1
    assert plan.task is not None
    x, y = (torch.from_numpy(part) for part in (plan.task.selection.x, plan.task.selection.y))
    worths = []
    for k, (a, b) in enumerate(sizes):
        narrow = plain_of(lanes.program.module(k), torch.zeros(2, INPUTS), {"width.0": a, "width.1": b})
        parameters = sum(p.numel() for p in narrow.parameters())
        assert parameters == 5 * a + (a + 1) * b + (b + 1) * 3
        with torch.no_grad():
            worths.append(float(functional.cross_entropy(narrow(x).double(), y)) + weight * parameters)
    assert outcome.metrics["rounded_value"] == pytest.approx(np.mean(worths), rel=1e-6)


def test_a_penalty_makes_moved_sizes_smaller() -> None:
    method = Method(kind="descent", warmup=0, every=1)
    sizes = [
        [sum(o.point.values()) for o in outcomes(trained(plan_of("descent", method=method, penalty=penalty)))]
        for penalty in ({}, {"flops": 0.1})
    ]
    assert all(priced < free for free, priced in zip(*sizes, strict=True))


def test_a_gate_that_does_not_exist_at_a_point_does_not_move() -> None:
    moved = {"type": "width", "low": 2, "high": 12, "moved_by": "gradient"}
    space = Space.from_dict(
        {
            "activation": {"type": "choice", "options": ["relu", "tanh"]},
            "width.0": moved,
            "width.1": {**moved, "when": {"activation": "tanh"}},
        }
    )
    plan = plan_of("descent", space=space, network=MLP(layers=2, width=6))
    trial = Trial(search_id="s", number=0, point={"activation": "relu", "width.0": 5.5})
    records = list(Trainer(plan).train(Bundle(search_id="s", id="b", generation=0, trials=(trial,))))
    (outcome,) = outcomes(records)
    assert space.faults(outcome.point) == []
    assert outcome.rounded["width.1"] == 6
    assert all(r.architecture["width.1"] == 6.0 for r in records if isinstance(r, Report))
