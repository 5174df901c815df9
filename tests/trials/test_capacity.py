"""C_k and dC_k by fused lanes, against plain networks that torch trains one at a time.

Legend of shape suffixes: P points, R replicates, B batch, I 1 + inputs, O outputs, V kinds of growth, C candidates.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from search_spaces import Invalid, Space
from search_spaces.networks import MLP, ConvNet
from trials.capacity.growing import KINDS, GrowthChange, GrowthRows, growth_change
from trials.capacity.lanes import CapacityLanes
from trials.capacity.losses import Capacity, capacity_loss, objective
from trials.capacity.slopes import PersistentES, central_differences
from trials.lanes.dense import DenseShape
from trials.noise import data_order, normal
from trials.noise import fold as key_of
from trials.tasks import Task, load
from trials.training import Training

DOUBLE = torch.float64
TRAINING = Training(lr=0.2, batch_size=16)


@pytest.fixture(scope="module")
def iris() -> Task:
    return load("uci/iris")


# -- plain networks ----------------------------------------------------------------------------------------------------


def ones_before(x: Tensor) -> Tensor:
    return functional.pad(x, (1, 0), value=1.0)


def output(matrices: list[Tensor], grades: list[Tensor], x_BI: Tensor) -> Tensor:
    """tanh layers with graded units, [out, 1 + in] matrices with the bias first."""
    h = x_BI
    for matrix, m in zip(matrices[:-1], grades, strict=True):
        h = ones_before(torch.tanh(h @ matrix.T) * m)
    return h @ matrices[-1].T


def unrolled(task: Task, n: Tensor, grades: Tensor, k: int, number: int = 0, replicate: int = 0) -> Tensor:
    """C_k of one replicate of a net of one hidden layer, differentiable by its real size and grades."""
    units = len(grades)
    first = normal(key_of(0, "init", number, replicate, 0), units, task.inputs).double()
    last = normal(key_of(0, "init", number, replicate, 1), task.outputs, units).double()
    matrices = [
        functional.pad(first * math.sqrt(2 / task.inputs), (1, 0)),
        functional.pad(last * (2 / n).sqrt(), (1, 0)),
    ]
    matrices = [m if m.requires_grad else m.requires_grad_() for m in matrices]  # the last may depend on n
    train, outer = task.train, task.outer
    x, y = ones_before(torch.from_numpy(train.x).double()), torch.from_numpy(train.y)
    order = data_order(0, len(y), TRAINING.batch_size, max(k, 1), f"capacity order {number}/{replicate}")
    for places in torch.from_numpy(order)[:k]:
        loss = functional.cross_entropy(output(matrices, [grades], x[places]), y[places])
        gradients = torch.autograd.grad(loss, matrices, create_graph=True)
        matrices = [m - TRAINING.lr * g for m, g in zip(matrices, gradients, strict=True)]
    logits = output(matrices, [grades], ones_before(torch.from_numpy(outer.x).double()))
    return functional.cross_entropy(logits, torch.from_numpy(outer.y))


def interval_by_hand(n: Tensor, units: int) -> Tensor:
    return torch.stack([(n - i).clamp(0.0, 1.0) for i in range(units)])


def band_by_hand(n: Tensor, units: int) -> Tensor:
    return torch.stack([torch.sigmoid((n.log() - math.log(i + 0.5)) / 0.3) for i in range(units)])


def net(membership: str = "auto", **options: Any) -> MLP:
    return MLP(layers=1, width=7, activation="tanh", membership=membership, **options)


def measured(task: Task, sizes: list[float], k: int, replicates: int, **options: Any) -> Capacity:
    points = [{"width.0": n} for n in sizes]
    facts = {"training": TRAINING, "dtype": DOUBLE, **options}
    return capacity_loss(facts.pop("network", net()), task, points, k, replicates, **facts)


# -- C_k ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 7])
def test_each_lane_is_a_plain_network_of_its_size(iris: Task, k: int) -> None:
    found = measured(iris, [2, 5, 3], k, 2)
    for p, n in enumerate((2, 5, 3)):
        for r in range(2):
            plain = unrolled(iris, torch.tensor(float(n), dtype=DOUBLE), torch.ones(n, dtype=DOUBLE), k, replicate=r)
            assert found.values_PR[p, r] == pytest.approx(plain.item(), rel=1e-10)


def test_the_estimate_is_the_mean_with_its_standard_error(iris: Task) -> None:
    found = measured(iris, [3, 6], 4, 5)
    for p in range(2):
        values = found.values_PR[p].tolist()
        mean = sum(values) / 5
        assert found.estimate_P[p] == pytest.approx(mean)
        assert found.error_P[p] == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 4 / 5))
    paired = found.values_PR[1] - found.values_PR[0]
    assert found.difference(1) == (pytest.approx(paired.mean()), pytest.approx(paired.std(ddof=1) / math.sqrt(5)))
    assert np.isnan(measured(iris, [3], 1, 1).error_P).all()


def test_training_flops_are_those_of_live_sizes(iris: Task) -> None:
    found = measured(iris, [2, 5], 4, 3)
    for p, n in enumerate((2, 5)):
        step = 2 * (3 * (4 * n + n * 3) - 4 * n)  # three products a layer, but none for the gradient of inputs
        assert found.flops_P[p] == step * 16 * 4 * 3


def test_a_point_does_not_depend_on_its_company(iris: Task) -> None:
    alone, beside = measured(iris, [3], 20, 3), measured(iris, [6, 3, 1], 20, 3)
    np.testing.assert_allclose(alone.values_PR[0], beside.values_PR[1], rtol=1e-11)


def test_common_random_numbers_make_differences_precise(iris: Task) -> None:
    """Twelve units and thirteen, 24 replicates: the paired error against that of independent replicates."""
    shared = measured(iris, [12, 13], 30, 24)
    apart = measured(iris, [12, 13], 30, 24, numbers=[0, 1])
    independent = math.hypot(*apart.error_P)
    assert shared.difference(1)[1] < 0.6 * independent
    assert apart.difference(1)[1] > 0.6 * independent
    np.testing.assert_array_equal(shared.values_PR[0], apart.values_PR[0])


def test_hyperparameters_of_a_point_are_its_own(iris: Task) -> None:
    points = [{"width.0": 4, "lr": 0.05}, {"width.0": 4, "lr": 0.2}, {"width.0": 4}]
    found = capacity_loss(net(), iris, points, 6, 2, training=TRAINING, dtype=DOUBLE).values_PR
    np.testing.assert_array_equal(found[1], found[2])
    assert (found[0] != found[1]).all()


def test_a_diverged_replicate_makes_its_own_point_nan(iris: Task) -> None:
    points = [{"width.0": 4, "lr": 1e308}, {"width.0": 4}]
    found = capacity_loss(net(), iris, points, 6, 2, training=TRAINING, dtype=DOUBLE)
    assert np.isnan(found.estimate_P[0])
    np.testing.assert_array_equal(found.values_PR[1], measured(iris, [4], 6, 2).values_PR[0])


def test_every_fault_is_told_at_once(iris: Task) -> None:
    with pytest.raises(Invalid) as caught:
        capacity_loss(net(), iris, [{"width.1": 3}, {"width.0": 0.2, "batch_size": 8}], 3, 0, numbers=[1])
    told = "\n".join(caught.value.faults)
    for words in ("width.1", "at least one unit", "replicates", "agree in batch_size", "numbers"):
        assert words in told
    with pytest.raises(Invalid, match="k: must be a whole number"):
        capacity_loss(net(), iris, {}, -1, 1)
    with pytest.raises(Invalid, match="must be an MLP"):
        capacity_loss(ConvNet(), iris, {}, 1, 1)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="interval and band"):
        measured(iris, [3.5], 1, 1, network=net("fuzzy"), fractional=True)
    with pytest.raises(Invalid, match="at most 7"):
        measured(iris, [8.0], 1, 1, network=net("band"), fractional=True)


# -- its derivative ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("membership", ["interval", "band"])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_differences_in_real_width_are_the_unrolled_gradient(iris: Task, membership: str, k: int) -> None:
    """d C_k / d log n at n = 4.6, through k steps and the initialisation, by autograd in float64."""
    loss = objective(net(membership), iris, k, fractional=True, training=TRAINING, dtype=DOUBLE)
    found = central_differences(loss, np.log([4.6]), step=1e-5, repeats=2)
    by_hand = {"interval": lambda n: interval_by_hand(n, 5), "band": lambda n: band_by_hand(n, 7)}[membership]
    for number in range(2):
        log_n = torch.tensor(math.log(4.6), dtype=DOUBLE, requires_grad=True)
        value = unrolled(iris, log_n.exp(), by_hand(log_n.exp()), k, number=number)
        (gradient,) = torch.autograd.grad(value, log_n)
        assert found.samples_NZ[number, 0] == pytest.approx(gradient.item(), rel=1e-6)


def test_a_training_in_pieces_is_the_training(iris: Task) -> None:
    points = [{"width.0": 3.5}, {"width.0": 6.2}]
    lanes = CapacityLanes(net("band"), iris, points, 2, training=TRAINING, fractional=True, dtype=DOUBLE)
    sizes_PZ = np.array([[3.5], [6.2]])
    pieces = [lanes.advance(sizes_PZ, steps) for steps in (3, 1, 4)]
    whole = measured(iris, [3.5, 6.2], 8, 2, network=net("band"), fractional=True)
    np.testing.assert_allclose(pieces[-1], whole.estimate_P, rtol=1e-12)
    np.testing.assert_allclose(lanes.flops_P, whole.flops_P)


def test_particles_change_their_sizes_on_the_way(iris: Task) -> None:
    """Persistent evolution strategies over fused lanes: a pair without perturbation differs by nothing, and a size
    beyond the space is refused."""
    space = Space.from_dict({"width.0": {"type": "width", "low": 2, "high": 12}})
    lanes = CapacityLanes(
        net(), iris, [{"width.0": 5}] * 4, 3, training=TRAINING, space=space, numbers=[0, 1, 0, 1], dtype=DOUBLE
    )
    pes = PersistentES(lanes, sigma=1e-9, pairs=2, seed=0)
    assert pes.step(np.log([5.0]), 4).gradient_Z.tolist() == [0.0]  # both ends of a pair round to 5
    pes.sigma = 0.3
    slopes = [pes.step(np.log([5.0]), 4) for _ in range(3)]
    assert all(np.isfinite(slope.gradient_Z).all() and slope.gradient_Z[0] != 0 for slope in slopes)
    with pytest.raises(Invalid, match=r"at most \[12.0\]"):
        lanes.advance(np.full((4, 1), 13.0), 1)


# -- dC_k --------------------------------------------------------------------------------------------------------------

SHAPE = DenseShape(inputs=4, outputs=2, activation="tanh", loss="mse")
KS = (0, 1, 6)


def problem(seed: int = 0) -> tuple[list[Tensor], GrowthRows]:
    g = torch.Generator().manual_seed(seed)
    x, v = (ones_before(torch.randn(rows, 4, generator=g, dtype=DOUBLE)) for rows in (32, 80))
    trained = [torch.randn(*shape, generator=g, dtype=DOUBLE) * 0.6 for shape in ((3, 5), (2, 4))]
    y, w = (torch.sin(part[:, 1:3] * 2) for part in (x, v))
    return trained, GrowthRows(x_RI=x, y_RO=y, validation_x=v, validation_y=w)


def grown_case(**options: Any) -> tuple[list[Tensor], GrowthRows, GrowthChange]:
    trained, rows = problem()
    facts: dict[str, Any] = {"candidates": 5, "training": Training(lr=0.1, batch_size=8), "seed": 3}
    return trained, rows, growth_change(SHAPE, trained, rows, KS, **{**facts, **options})


def half_square(matrices: list[Tensor], m: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (output(matrices, [m], x) - y).square().sum(1).mean()


def by_torch(matrices: list[Tensor], rows: GrowthRows, steps: int) -> float:
    """The validation loss of a plain network after so many steps."""
    open_ = torch.ones(len(matrices[0]), dtype=DOUBLE)
    matrices = [m.clone().requires_grad_() for m in matrices]
    for places in torch.from_numpy(data_order(3, 32, 8, KS[-1], "growth order"))[:steps]:
        loss = half_square(matrices, open_, rows.x_RI[places], rows.y_RO[places])
        gradients = torch.autograd.grad(loss, matrices)
        matrices = [(m - 0.1 * g).detach().requires_grad_() for m, g in zip(matrices, gradients, strict=True)]
    return half_square(matrices, open_, rows.validation_x, rows.validation_y).item()


def with_fresh_unit(trained: list[Tensor], candidate: int, share: float = 1.0) -> list[Tensor]:
    into = normal(key_of(3, "init", candidate, 0, 0), 4, 4)[3:].double() * math.sqrt(2 / 4)
    out = normal(key_of(3, "init", candidate, 0, 1), 2, 4)[:, 3:].double() * math.sqrt(2 / 4)
    return [torch.cat([trained[0], functional.pad(into, (1, 0))]), torch.cat([trained[1], share * out], 1)]


def test_grown_and_left_lanes_are_plain_networks() -> None:
    trained, rows, found = grown_case()
    for s, k in enumerate(KS):
        assert found.trained_S[s] == pytest.approx(by_torch(trained, rows, k), rel=1e-11)
        for c in range(5):
            for v, share in ((KINDS.index("fresh"), 1.0), (KINDS.index("scaled"), 0.1), (KINDS.index("zero"), 0.0)):
                plain = by_torch(with_fresh_unit(trained, c, share), rows, k)
                assert found.grown_VCS[v, c, s] == pytest.approx(plain, rel=1e-11)


def test_the_gate_gradient_is_a_finite_difference_at_either_end() -> None:
    trained, rows, found = grown_case(kinds=("fresh",))
    for c in range(5):
        matrices = with_fresh_unit(trained, c)
        for m, at in ((1.0, found.gradients_VC), (0.0, found.begin_gradients_VC)):
            ends = [
                half_square(matrices, torch.tensor([1, 1, 1, m + h], dtype=DOUBLE), rows.x_RI, rows.y_RO).item()
                for h in (1e-6, -1e-6)
            ]
            assert at[0, c] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


def test_growth_that_preserves_the_function_does_no_harm_at_first() -> None:
    _, _, found = grown_case()
    at_0 = found.change_VCS()[:, :, 0]
    assert np.abs(at_0[[KINDS.index(kind) for kind in ("zero", "net2net", "gradmax")]]).max() < 1e-14
    assert np.abs(at_0[KINDS.index("fresh")]).min() > 1e-4
    np.testing.assert_allclose(at_0, found.change_VCS("converged")[:, :, 0], atol=0)
    hurts_VS = found.hurts_VS()
    assert hurts_VS[[2, 3, 4], 0].tolist() == [0, 0, 0]
    np.testing.assert_allclose(hurts_VS[0], (found.change_VCS()[0] > 0).mean(0))
    later = found.change_VCS()[:, :, -1]
    assert all(len(set(row.tolist())) == 5 for row in later)  # five candidates of each kind, not one five times


def test_gradmax_falls_fastest_of_those_that_preserve_the_function() -> None:
    """Evci et al. 2022, eq. 6: of all outgoing weights of that norm, its have the steepest gradient; to first order the
    loss then falls by lr |gradient|^2 more. All rows are the batch, for GradMax and for the step."""
    trained, rows, found = grown_case(kinds=("gradmax",), candidates=1, training=Training(lr=1e-4, batch_size=32))
    gain = -found.change_VCS()[0, 0, 1]
    assert gain > 0
    norm = trained[1][:, 1:].norm(dim=0).mean()
    train_rows = GrowthRows(x_RI=rows.x_RI, y_RO=rows.y_RO, validation_x=rows.x_RI, validation_y=rows.y_RO)
    one = growth_change(
        SHAPE, trained, train_rows, (1,), kinds=("gradmax",), candidates=1, training=Training(lr=1e-4, batch_size=32)
    )
    delta = (output(trained, [torch.ones(3, dtype=DOUBLE)], rows.x_RI) - rows.y_RO) / 32
    steepest = torch.linalg.matrix_norm(delta.T @ rows.x_RI, 2) * norm
    # its direction is that of a quarter of the rows, so no more than the steepest of all, and not far from it
    assert 0.5 * steepest**2 < -one.change_VCS()[0, 0, 0] / 1e-4 < 1.001 * steepest**2


def test_growth_faults_are_told_at_once() -> None:
    trained, rows = problem()
    with pytest.raises(Invalid) as caught:
        growth_change(SHAPE, trained, rows, (-1,), kinds=("net3net",), candidates=0, layer=1)
    assert len(caught.value.faults) == 4
    assert "Did you mean 'net2net'" in str(caught.value)
    _, _, found = grown_case(kinds=("zero",))
    with pytest.raises(Invalid, match="baseline"):
        found.change_VCS("ungrown")
