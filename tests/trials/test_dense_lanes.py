"""The fused program against autograd, torch.optim, the module under vmap, and itself in other company."""

import pytest
import torch
from torch.nn import functional

from search_spaces.membership import interval
from search_spaces.mlp import ACTIVATION_MODULES, GatedMLP, plain_mlp
from search_spaces.width import gates_of
from trials.lanes.dense import DenseLanes, DenseShape
from trials.optimisers import Rule

INPUTS, OUTPUTS, BATCH = 7, 4, 32


def data(loss="cross_entropy", dtype=torch.float32, rows=BATCH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, INPUTS, generator=generator, dtype=dtype)
    y = torch.randint(OUTPUTS, (rows,), generator=generator)
    y_rows = functional.one_hot(y, OUTPUTS).to(dtype)
    if loss == "mse":
        y_rows = torch.randn(rows, OUTPUTS, generator=generator, dtype=dtype)
        y = y_rows
    return functional.pad(x, (1, 0), value=1.0), y_rows, x, y


def torch_loss(name):
    if name == "cross_entropy":
        return functional.cross_entropy
    return lambda z, y: 0.5 * (z - y).pow(2).sum(1).mean()


def twin(lanes, lane, activation):
    """The plain torch network with a lane's present weights."""
    matrices = [m.clone() for m in lanes.matrices(lane)]
    return plain_mlp([m[:, 1:] for m in matrices], [m[:, 0] for m in matrices], activation)


def state_of(network):
    return [torch.cat([m.bias[:, None], m.weight], 1) for m in network if isinstance(m, torch.nn.Linear)]


RULES = {
    "sgd": (Rule(uses=frozenset({"lr"})), lambda p, h: torch.optim.SGD(p, lr=h["lr"])),
    "momentum": (
        Rule(uses=frozenset({"lr", "momentum", "weight_decay"})),
        lambda p, h: torch.optim.SGD(p, lr=h["lr"], momentum=h["momentum"], weight_decay=h["weight_decay"]),
    ),
    "nesterov": (
        Rule(nesterov=True, uses=frozenset({"lr", "momentum"})),
        lambda p, h: torch.optim.SGD(p, lr=h["lr"], momentum=h["momentum"], nesterov=True),
    ),
    "adam": (
        Rule(kind="adam", uses=frozenset({"lr", "beta1", "beta2", "weight_decay"})),
        lambda p, h: torch.optim.Adam(p, lr=h["lr"], betas=(h["beta1"], h["beta2"]), weight_decay=h["weight_decay"]),
    ),
    "adamw": (
        Rule(kind="adamw", uses=frozenset({"lr", "beta1", "beta2", "weight_decay"})),
        lambda p, h: torch.optim.AdamW(p, lr=h["lr"], betas=(h["beta1"], h["beta2"]), weight_decay=h["weight_decay"]),
    ),
}


def hyperparameters(lanes):
    pick = torch.arange(lanes)
    return {
        "lr": torch.tensor([0.05, 0.01, 0.1, 0.003])[pick % 4],
        "momentum": torch.tensor([0.9, 0.3, 0.7, 0.5])[pick % 4],
        "weight_decay": torch.tensor([0.01, 0.0, 0.1, 0.001])[pick % 4],
        "beta1": torch.tensor([0.9, 0.8, 0.7, 0.95])[pick % 4],
        "beta2": torch.tensor([0.999, 0.99, 0.95, 0.9])[pick % 4],
    }


def fused(sizes, *, activation="relu", loss="cross_entropy", rule="momentum", dtype=torch.float32, first=0, **kwargs):
    lanes = DenseLanes(
        DenseShape(inputs=INPUTS, outputs=OUTPUTS, activation=activation, loss=loss),
        sizes,
        BATCH,
        dtype=dtype,
        **kwargs,
    )
    lanes.initialise([(3, first + k, 0) for k in range(len(sizes))])
    lanes.attach(RULES[rule][0], {n: v.to(dtype) for n, v in hyperparameters(len(sizes)).items()})
    return lanes


@pytest.mark.parametrize("activation", list(ACTIVATION_MODULES))
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("sizes", [[(5, 9), (16, 3)], [(6,), (2,)], [(), ()]], ids=["two", "one", "none"])
def test_gradients_equal_autograd(activation, loss, sizes):
    x1, y_rows, x, y = data(loss, torch.float64)
    lanes = fused(sizes, activation=activation, loss=loss, dtype=torch.float64)
    lanes.forward(x1)
    lanes.backward(x1, y_rows)
    for k in range(len(sizes)):
        network = twin(lanes, k, activation)
        torch_loss(loss)(network(x), y).backward()
        expected = [torch.cat([m.bias.grad[:, None], m.weight.grad], 1) for m in network if hasattr(m, "weight")]
        for got, want in zip(lanes.matrices(k, lanes.gradients_T), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", list(RULES))
def test_training_equals_torch_optim_lane_by_lane(rule):
    sizes = [(5, 9), (16, 3), (1, 1), (8, 8)]
    lanes = fused(sizes, rule=rule, dtype=torch.float64)
    hyper = hyperparameters(4)
    networks = [twin(lanes, k, "relu") for k in range(4)]
    optimisers = [
        RULES[rule][1](n.parameters(), {name: float(v[k].double()) for name, v in hyper.items()})
        for k, n in enumerate(networks)
    ]
    for step in range(25):
        x1, y_rows, x, y = data(dtype=torch.float64, seed=step)
        lanes.step(x1, y_rows)
        for network, optimiser in zip(networks, optimisers, strict=True):
            optimiser.zero_grad()
            functional.cross_entropy(network(x), y).backward()
            optimiser.step()
    for k, network in enumerate(networks):
        for got, want in zip(lanes.matrices(k), state_of(network), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("activation", list(ACTIVATION_MODULES))
@pytest.mark.parametrize("rule", ["momentum", "adam"])
def test_a_lane_is_bitwise_the_same_in_any_company_and_order(activation, rule):
    sizes = [(5, 9), (16, 3), (1, 1), (8, 8), (31, 17)]

    def trained(order):
        lanes = DenseLanes(
            DenseShape(inputs=INPUTS, outputs=OUTPUTS, activation=activation), [sizes[k] for k in order], BATCH
        )
        lanes.initialise([(3, k, 0) for k in order])
        hyper = {name: values[list(order)] for name, values in hyperparameters(5).items()}
        lanes.attach(RULES[rule][0], hyper)
        for step in range(30):
            x1, y_rows, _, _ = data(seed=step)
            lanes.step(x1, y_rows)
        return {k: lanes.matrices(i) for i, k in enumerate(order)}

    reference = trained(range(5))
    companies = [(0,), (4, 3, 2, 1, 0), (2, 4), (1, 3, 0)]
    for order in companies:
        for k, matrices in trained(order).items():
            assert all(torch.equal(a, b) for a, b in zip(matrices, reference[k], strict=True)), (order, k)


def test_a_nan_lane_leaves_its_neighbours_bitwise_alone():
    sizes = [(5, 9), (16, 3), (8, 8)]
    sound, poisoned = fused(sizes), fused(sizes)
    poisoned.matrices(1)[0][0, 0] = float("nan")
    for step in range(10):
        x1, y_rows, _, _ = data(seed=step)
        sound.step(x1, y_rows)
        poisoned.step(x1, y_rows)
    assert poisoned.predict(x1)[1].isnan().any()
    for k in (0, 2):
        assert torch.equal(sound.predict(x1)[k], poisoned.predict(x1)[k])


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_grouped_lanes_equal_separate_ones(activation):
    sizes = [(6, 10)] * 3
    a, b = fused(sizes, activation=activation), fused(sizes, activation=activation, grouped=True)
    for step in range(20):
        x1, y_rows, _, _ = data(seed=step)
        a.step(x1, y_rows)
        b.step(x1, y_rows)
    torch.testing.assert_close(a.predict(x1), b.predict(x1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", list(ACTIVATION_MODULES))
def test_gated_lanes_equal_modules_trained_one_by_one(activation):
    """Gated modules under autograd with torch's Adam are the unfused truth; sizes may be fractional."""
    maxima, sizes = (9, 6), torch.tensor([[4.3, 5.0], [8.7, 2.25], [9.0, 6.0]], dtype=torch.float64)
    rule = Rule(kind="adam", uses=frozenset({"lr", "beta1", "beta2"}))
    hyper = {n: v.double() for n, v in hyperparameters(3).items()}
    lanes = fused([maxima] * 3, activation=activation, rule="adam", dtype=torch.float64, gated=True)
    lanes.attach(rule, hyper)
    modules = [GatedMLP(INPUTS, maxima, OUTPUTS, activation=activation).double() for _ in range(3)]
    adams = []
    for k, module in enumerate(modules):
        for linear, matrix in zip(module.linears, lanes.matrices(k), strict=True):
            linear.weight.data.copy_(matrix[:, 1:])
            linear.bias.data.copy_(matrix[:, 0])
        for gate, n in zip(gates_of(module).values(), sizes[k], strict=True):
            gate.set(float(n))
        adams.append(RULES["adam"][1](module.linears.parameters(), {n: float(v[k]) for n, v in hyper.items()}))
        adams[k].param_groups[0]["weight_decay"] = 0.0
    lanes.grade([[interval(sizes[k, i], maxima[i]) for i in range(2)] for k in range(3)])
    for step in range(50):
        x1, y_rows, x, y = data(dtype=torch.float64, seed=step)
        by_grade = lanes.grade_gradients(x1, y_rows)
        lanes.step(x1, y_rows)
        for k, module in enumerate(modules):
            module.zero_grad()
            functional.cross_entropy(module(x), y).backward()
            for i, gate in enumerate(gates_of(module).values()):
                n = sizes[k, i].clone().requires_grad_()
                (by_size,) = torch.autograd.grad(interval(n, maxima[i]), n, by_grade[k][i])
                torch.testing.assert_close(by_size, gate.n.grad, rtol=1e-8, atol=1e-11)
            adams[k].step()
            for linear, matrix in zip(module.linears, lanes.matrices(k), strict=True):
                torch.testing.assert_close(
                    matrix, torch.cat([linear.bias[:, None], linear.weight], 1), rtol=1e-6, atol=1e-8
                )


def test_a_masked_lane_is_the_narrow_network():
    """Gated at a whole size = really that narrow: forward, training, and exactly no motion of the masked weights."""
    wide = fused([(16, 16)], gated=True, rule="momentum")
    narrow = DenseLanes(DenseShape(inputs=INPUTS, outputs=OUTPUTS), [(5, 9)], BATCH)
    wide.initialise([(3, 0, 0)], live=[(5, 9)])
    narrow.initialise([(3, 0, 0)])
    narrow.attach(RULES["momentum"][0], hyperparameters(1))
    wide.grade([[interval(torch.tensor(5.0), 16), interval(torch.tensor(9.0), 16)]])
    before = [m.clone() for m in wide.matrices(0)]
    for step in range(40):
        x1, y_rows, _, _ = data(seed=step)
        wide.step(x1, y_rows)
        narrow.step(x1, y_rows)
    torch.testing.assert_close(wide.predict(x1), narrow.predict(x1), rtol=1e-5, atol=1e-6)
    first, second, last = wide.matrices(0)
    assert torch.equal(first[5:], before[0][5:])
    assert torch.equal(second[9:], before[1][9:])
    assert torch.equal(second[:, 6:], before[1][:, 6:])
    assert torch.equal(last[:, 10:], before[2][:, 10:])
    assert not torch.equal(last[:, :10], before[2][:, :10])


def test_saved_lanes_go_on_bitwise_in_another_bundle():
    whole = fused([(5, 9), (16, 3), (8, 8)])
    half = fused([(5, 9), (16, 3), (8, 8)])
    batches = [data(seed=step)[:2] for step in range(40)]
    for batch in batches:
        whole.step(*batch)
    for batch in batches[:20]:
        half.step(*batch)
    saved = half.save_lane(1)
    other = DenseLanes(DenseShape(inputs=INPUTS, outputs=OUTPUTS), [(2, 2), (16, 3)], BATCH)
    other.initialise([(3, 7, 0), (3, 1, 0)])
    other.attach(RULES["momentum"][0], {n: v[:2] for n, v in hyperparameters(3).items()})
    other.load_lane(1, saved)
    for batch in batches[20:]:
        other.step(*batch)
    assert all(torch.equal(a, b) for a, b in zip(whole.matrices(1), other.matrices(1), strict=True))


def test_resize_keeps_what_stays_and_initialises_what_is_new():
    lanes = fused([(5, 9), (8, 8)], gated=True)
    fresh = fused([(7, 9), (8, 4)], gated=True)
    for step in range(5):
        lanes.step(*data(seed=step)[:2])
    before, velocity = (
        [m.clone() for m in lanes.matrices(0, b)] for b in (lanes.weights_T, lanes.optimiser.state["velocity"])
    )
    lanes.resize([(7, 9), (8, 4)])
    first, second, _ = lanes.matrices(0)
    assert torch.equal(first[:5], before[0])
    assert torch.equal(second[:, :6], before[1])
    scale = (7 / 5) ** 0.5  # the fan-in of the lane's start, not of today
    torch.testing.assert_close(second[:, 6:], fresh.matrices(0)[1][:, 6:] * scale)
    assert torch.equal(lanes.matrices(0, lanes.optimiser.state["velocity"])[0][:5], velocity[0])
    assert not lanes.matrices(0, lanes.optimiser.state["velocity"])[0][5:].any()
    assert [tuple(m.shape) for m in lanes.matrices(1)] == [(8, 8), (4, 9), (4, 5)]


def test_two_gates_of_one_name_are_refused():
    module = GatedMLP(3, (4, 4), 2)
    module.gates[1].name = "width.0"
    with pytest.raises(ValueError, match=r"two gates are called 'width\.0'"):
        gates_of(module)
