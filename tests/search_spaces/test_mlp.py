"""The gated MLP, its cost and its rounding against independent truths: formulas by hand, finite differences, real
counts, conservation laws.

Legend of shape suffixes: B batch, D inputs, O outputs.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from search_spaces import Space
from search_spaces.cost import mlp_flops, mlp_parameters, mlp_training_flops
from search_spaces.materialise import plain
from search_spaces.mlp import ACTIVATION_MODULES, GatedMLP
from search_spaces.network import ACTIVATIONS
from search_spaces.networks import MLP
from search_spaces.rounding import excess, round_within
from search_spaces.width import WidthGate, gates_of

INPUTS, OUTPUTS, BATCH = 5, 3, 16


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_BD = torch.randn(BATCH, INPUTS, generator=generator, dtype=torch.float64)
    return x_BD, torch.randint(OUTPUTS, (BATCH,), generator=generator)


def gated(maxima: tuple[int, ...], sizes: tuple[float, ...], activation: str = "relu", **options: Any) -> GatedMLP:
    network = GatedMLP(INPUTS, maxima, OUTPUTS, activation=activation, **options).double()
    for gate, n in zip(gates_of(network).values(), sizes, strict=True):
        gate.n.data.fill_(n)
    return network


def loss_of(network: nn.Module, seed: int = 0) -> Tensor:
    x_BD, y_B = data(seed)
    return functional.cross_entropy(network(x_BD), y_B)


# -- derivatives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n", [0.3, 2.5, 3.99, 6.75])
def test_the_derivative_by_a_width_is_that_of_its_boundary_unit(activation: str, n: float) -> None:
    """dF/dgamma = (dF/dout) y_k W_k for gamma in (k, k + 1): the unit's activation times its outgoing weights."""
    network, (x_BD, y_B), k = gated((8,), (n,), activation), data(), int(n)
    loss_of(network).backward()
    hidden, out = network.linears
    with torch.no_grad():
        h = ACTIVATION_MODULES[activation]()(x_BD @ hidden.weight.T + hidden.bias)
        m = torch.tensor([min(max(n - i, 0.0), 1.0) for i in range(8)], dtype=torch.float64)
        d_out = ((h * m) @ out.weight.T + out.bias).softmax(1) - functional.one_hot(y_B, OUTPUTS)
        by_hand = float((d_out * (h[:, k : k + 1] * out.weight[:, k])).sum() / BATCH)
    gate = gates_of(network)["width.0"]
    assert float(gate.n.grad) == pytest.approx(by_hand, rel=1e-12)

    losses = []
    for side in (1e-6, -1e-6):
        gate.n.data.fill_(n + side)
        losses.append(loss_of(network).item())
    assert by_hand == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_gated_unit_and_its_weights_pull_alike(activation: str) -> None:
    """m dL/dm = <v, dL/dv> over a unit's outgoing weights, always; over its incoming weights and bias for relu alone,
    which is homogeneous of degree one."""
    network = gated((1,), (0.7,), activation)
    loss_of(network).backward()
    n, (hidden, out) = gates_of(network)["width.0"].n, network.linears
    pull = (n * n.grad).item()
    incoming = ((hidden.weight * hidden.weight.grad).sum() + (hidden.bias * hidden.bias.grad).sum()).item()
    assert pull == pytest.approx((out.weight * out.weight.grad).sum().item(), rel=1e-12)
    assert (pull == pytest.approx(incoming, rel=1e-12)) == (activation == "relu")


def test_gradient_flow_conserves_the_difference_of_squares() -> None:
    """d/dt (m^2 - |W|^2) = -2 (m dL/dm - <W, dL/dW>) = 0, so Euler's drift over a fixed time is of first order."""

    def drift(steps: int) -> tuple[float, float]:
        torch.manual_seed(1)
        network = gated((1,), (0.4,))
        n, (hidden, out) = gates_of(network)["width.0"].n, network.linears

        def charges() -> tuple[float, float]:
            squares = n.item() ** 2
            return (
                squares - (out.weight**2).sum().item(),
                squares - ((hidden.weight**2).sum() + (hidden.bias**2).sum()).item(),
            )

        before = charges()
        for _ in range(steps):
            network.zero_grad()
            loss_of(network).backward()
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter -= 6.0 / steps * parameter.grad
        assert 0 < n.item() < 1
        assert abs(n.item() - 0.4) > 0.1  # it did flow
        after = charges()
        return abs(after[0] - before[0]), abs(after[1] - before[1])

    coarse, fine, finest = drift(200), drift(400), drift(800)
    for i in range(2):
        assert coarse[i] / fine[i] == pytest.approx(2.0, rel=0.05)
        assert fine[i] / finest[i] == pytest.approx(2.0, rel=0.05)
        assert finest[i] < 2e-3


# -- masked and narrow -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("maxima", "sizes"), [((8,), (3,)), ((8, 6), (5, 2)), ((4, 4, 4), (1, 4, 3)), ((), ())])
def test_masked_is_the_narrow_network(activation: str, maxima: tuple[int, ...], sizes: tuple[float, ...]) -> None:
    """At whole sizes: the same outputs, the same gradients, and masked weights whose gradient is exactly 0."""
    network = gated(maxima, sizes, activation)
    narrow = plain(network, data()[0])
    x_BD, _ = data()
    linears = [layer for layer in narrow.modules() if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linears] == [*sizes, OUTPUTS]
    torch.testing.assert_close(network(x_BD), narrow(x_BD), rtol=1e-13, atol=1e-14)
    loss_of(network).backward()
    loss_of(narrow).backward()
    for wide, layer in zip(network.linears, linears, strict=True):
        rows, columns = layer.weight.shape
        torch.testing.assert_close(wide.weight.grad[:rows, :columns], layer.weight.grad, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(wide.bias.grad[:rows], layer.bias.grad, rtol=1e-12, atol=1e-14)
        assert not wide.weight.grad[rows:].any()
        assert not wide.weight.grad[:, columns:].any() or columns == wide.in_features
        assert not wide.bias.grad[rows:].any()


def test_what_is_materialised_is_a_copy_at_the_nearest_whole_sizes() -> None:
    network = gated((8, 6), (2.5, 5.49))
    narrow = plain(network, data()[0])
    assert [tuple(p.shape) for p in narrow.parameters()] == [(3, 5), (3,), (5, 3), (5,), (3, 5), (3,)]
    before = network.linears[0].weight.clone()
    for parameter in narrow.parameters():
        parameter.data.zero_()
    assert torch.equal(network.linears[0].weight, before)


def test_a_gate_along_channels() -> None:
    gate = WidthGate("width.0", 4, dim=1)
    gate.n.data.fill_(2.5)
    x = torch.randn(2, 4, 3, 3)
    for k, m in enumerate([1, 1, 0.5, 0]):
        assert torch.equal(gate(x)[:, k], x[:, k] * m)


# -- cost --------------------------------------------------------------------------------------------------------------

SIZES = [(), (1,), (7,), (4, 9), (12, 3, 5)]


@pytest.mark.parametrize("sizes", SIZES)
def test_costs_equal_real_counts(sizes: tuple[int, ...]) -> None:
    network = plain(gated(sizes, sizes), data()[0])
    x_BD, y_B = data()
    assert mlp_parameters(INPUTS, sizes, OUTPUTS) == sum(p.numel() for p in network.parameters())
    with FlopCounterMode(display=False) as forward:
        out = network(x_BD)
    assert mlp_flops(INPUTS, sizes, OUTPUTS) * BATCH == forward.get_total_flops()
    with FlopCounterMode(display=False) as backward:
        functional.cross_entropy(out, y_B).backward()
    total = forward.get_total_flops() + backward.get_total_flops()
    assert mlp_training_flops(INPUTS, sizes, OUTPUTS) * BATCH == total


@pytest.mark.parametrize("sizes", SIZES)
def test_costs_by_name_are_the_closed_forms(sizes: tuple[int, ...]) -> None:
    network = MLP(layers=len(sizes))
    costs, named = network.costs((INPUTS,), OUTPUTS), network.named(sizes)
    assert costs.parameters(named) == mlp_parameters(INPUTS, sizes, OUTPUTS)
    assert costs.flops(named) == mlp_flops(INPUTS, sizes, OUTPUTS)
    assert costs.training_flops(named) == mlp_training_flops(INPUTS, sizes, OUTPUTS)
    widths = [INPUTS, *sizes, OUTPUTS]
    backward = sum(2 * a * b for a, b in pairwise(widths[1:]))  # through all but the first layer
    assert costs.grade_flops(named) == costs.flops(named) + backward
    assert costs.activation_bytes(named) == 4 * (2 * sum(sizes) + OUTPUTS)


@pytest.mark.parametrize("cost", [mlp_parameters, mlp_flops, mlp_training_flops])
@pytest.mark.parametrize("sizes", [(4.5,), (4.25, 9.75), (12.1, 3.3, 5.9)])
def test_gradients_of_costs_equal_finite_differences(cost: Any, sizes: tuple[float, ...]) -> None:
    n = torch.tensor(sizes, dtype=torch.float64, requires_grad=True)
    value = cost(INPUTS, list(n), OUTPUTS)
    value.backward()
    assert value.item() == pytest.approx(cost(INPUTS, sizes, OUTPUTS), rel=1e-15)
    for i in range(len(sizes)):
        up, down = ([s + side * (j == i) for j, s in enumerate(sizes)] for side in (1e-4, -1e-4))
        difference = (cost(INPUTS, up, OUTPUTS) - cost(INPUTS, down, OUTPUTS)) / 2e-4
        assert float(n.grad[i]) == pytest.approx(difference, rel=1e-7)


def test_costs_have_a_lane_axis_where_sizes_do() -> None:
    sizes = torch.tensor([[3.0, 5.0], [7.0, 2.0]], dtype=torch.float64)
    costs = MLP(layers=2).costs((INPUTS,), OUTPUTS).of(MLP(layers=2).named(sizes.unbind(1)))
    for k in range(2):
        alone = MLP(layers=2).costs((INPUTS,), OUTPUTS).of(MLP(layers=2).named(sizes[k].tolist()))
        assert {name: float(values[k]) for name, values in costs.items()} == alone


# -- rounding ----------------------------------------------------------------------------------------------------------

COSTS = MLP().costs((64,), 10)


@given(
    st.tuples(st.floats(1, 12), st.floats(1, 12)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.floats(20, 3000),
    st.sampled_from(["parameters", "flops"]),
)
def test_rounding_meets_the_bound_and_shrinks_as_little_as_needed(
    lows: tuple[float, float], places: tuple[float, float], bound: float, cost: str
) -> None:
    space = Space.from_dict({f"width.{i}": {"type": "width", "low": low, "high": 40} for i, low in enumerate(lows)})
    point = {f"width.{i}": low + u * (40 - low) for i, (low, u) in enumerate(zip(lows, places, strict=True))}
    network = MLP(layers=2)
    costs = network.costs((INPUTS,), OUTPUTS)

    def value(sizes: list[int]) -> float:
        return float(costs.of(network.named(sizes))[cost])

    def shrunk(factor: float) -> list[int]:
        return [int(max(n * factor, math.ceil(low)) + 0.5) for n, low in zip(point.values(), lows, strict=True)]

    rounded = round_within(network, {**point, "lr": 0.5}, {cost: bound}, costs, space)
    sizes = [rounded[f"width.{i}"] for i in range(2)]
    assert rounded["lr"] == 0.5
    assert all(type(n) is int and math.ceil(low) <= n <= 40 for n, low in zip(sizes, lows, strict=True))
    least = [math.ceil(low) for low in lows]
    if value(least) > bound:
        assert sizes == least
        return
    assert value(sizes) <= bound
    best = next(shrunk(i / 500) for i in range(500, -1, -1) if value(shrunk(i / 500)) <= bound)
    assert all(ours >= theirs for ours, theirs in zip(sizes, best, strict=True))
    if value(shrunk(1.0)) <= bound:
        assert sizes == shrunk(1.0)


def test_sizes_that_meet_their_bounds_stay_as_they_are() -> None:
    space = Space.from_dict({f"width.{i}": {"type": "width", "low": 4, "high": 128} for i in range(2)})
    point = {"width.0": 17, "width.1": 5, "lr": 0.1}
    assert round_within(MLP(), point, {"parameters": 6000}, COSTS, space) == point
    assert round_within(MLP(), point, {}, COSTS, space) == point
    exact = (64 + 1) * 17 + 18 * 5 + 6 * 10
    assert round_within(MLP(), point, {"parameters": exact}, COSTS, space) == point
    below = round_within(MLP(), point, {"parameters": exact - 1}, COSTS, space)
    assert below["width.0"] == 16
    assert excess(MLP(), point, {"parameters": exact, "flops": 1.0}, COSTS) == mlp_flops(64, (17, 5), 10) - 1.0


def test_layers_on_which_the_space_is_silent_keep_the_networks_width() -> None:
    space = Space.from_dict({"width.0": {"type": "width", "low": 4, "high": 128}})
    rounded = round_within(MLP(width=20), {"width.0": 100.0}, {"parameters": 2000}, COSTS, space)
    assert rounded["width.1"] == 20
    assert (
        mlp_parameters(64, (rounded["width.0"], 20), 10) <= 2000 < mlp_parameters(64, (rounded["width.0"] + 1, 20), 10)
    )
    conditional = {"width.0": {"type": "width", "low": 4, "high": 8, "when": {"c": "own"}}}
    space = Space.from_dict({**conditional, "c": {"type": "choice", "options": ["own", "usual"]}})
    assert MLP(layers=1, width=20).maxima(space) == (20,)
    assert MLP(layers=1, width=20).sizes({"c": "usual"}) == (20.0,)
