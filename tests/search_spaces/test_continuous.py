"""`make_continuous` on networks as people write them: nothing changes at full width, narrow is really narrow, costs are
real counts, and what it does not know is named."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from network_cases import IMAGE, ORDINARY, OUTPUTS, BasicBlock
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from search_spaces import Invalid
from search_spaces.continuous import make_continuous
from search_spaces.flow import Flow, Untraceable
from search_spaces.flow_costs import costs_of
from search_spaces.materialise import materialise
from search_spaces.width import Gate, WidthGate, gates_of

WIDTHS = {
    "mlp": ["width.0", "width.3"],
    "vgg": ["width.features.0", "width.features.4", "width.classifier.0"],
    "resnet": [
        "width.conv1",
        "width.layer1.0.conv1",
        "width.layer1.1.conv1",
        "width.layer2.0.conv1",
        "width.layer2.0.conv2",
    ],
    "mobilenet": ["width.stem.0", "width.expand.0", "width.se.conv_reduce"],
    "convnext": ["width.stem", "width.pw1"],
    "densenet": ["width.first", "width.second", "width.third"],
    "convnext_2d": ["width.stem.0", "width.fc1"],
    "dense_layers": ["width.stem", "width.convs.0", "width.convs.1", "width.transition"],
    "excite": ["width.conv", "width.fc.0"],
    "twice": ["width.stem"],
    "bare": ["width.stem"],
    "sequence": ["width.body.0", "width.body.4"],
    "groups": ["width.first", "width.second"],
    "tokens": ["width.embed", "width.up"],
}
DEPTHWISE = ("mobilenet", "convnext", "convnext_2d")  # torch counts the gradient of all pairs of their channels
SIZES = [0.15, 0.4, 0.75]  # shares of the full width


def continuous(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """An ordinary network, the same with gates, and an input; in float64, with statistics of some data."""
    make, shape = ORDINARY[name]
    torch.manual_seed(0)
    module = make().double()
    example = torch.randn(6, *shape, dtype=torch.float64)
    module.train()
    for _ in range(2):
        module(torch.randn(12, *shape, dtype=torch.float64))
    for norm in module.modules():
        if isinstance(norm, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm | nn.BatchNorm1d | nn.BatchNorm2d):
            for parameter in norm.parameters():
                nn.init.uniform_(parameter, 0.3, 1.5)
    gated, _ = make_continuous(copy.deepcopy(module), example=example)
    return module, gated.double(), example


def set_sizes(gated: nn.Module, share: float) -> dict[str, int]:
    sizes = {}
    for i, (name, gate) in enumerate(gates_of(gated).items()):
        assert isinstance(gate, WidthGate)
        sizes[name] = max(1, min(round(gate.maximum * share) + i % 2, gate.maximum))
        gate.set(sizes[name])
    return sizes


@pytest.mark.parametrize("name", list(ORDINARY))
def test_the_space_names_each_width_for_the_layer_that_first_writes_it(name: str) -> None:
    make, shape = ORDINARY[name]
    gated, space = make_continuous(make(), width=(0.25, 0.5), example=(2, *shape))
    assert list(space.parameters) == WIDTHS[name]
    for width, declared in space.to_dict().items():
        units = gates_of(gated)[width].maximum
        assert (declared["low"], declared["high"]) == (max(1.0, 0.25 * units), int(0.5 * units))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", list(ORDINARY))
def test_at_full_width_nothing_has_changed(name: str, training: bool) -> None:
    module, gated, example = continuous(name)
    torch.testing.assert_close(gated.train(training)(example), module.train(training)(example), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("share", SIZES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", list(ORDINARY))
def test_materialised_is_the_relaxed_network_at_whole_sizes(name: str, training: bool, share: float) -> None:
    """Outputs, running statistics, and gradients: those of members equal the narrow network's, all others are 0."""
    _, gated, example = continuous(name)
    set_sizes(gated, share)
    gated.train(training)
    narrow = materialise(Flow(gated, example)).train(training)
    assert not any(isinstance(child, Gate) for child in narrow.modules())
    left = dict(narrow.named_parameters())
    assert sum(p.numel() for p in left.values()) < sum(p.numel() for p in gated.parameters())
    y = torch.arange(len(example)) % OUTPUTS
    wide_out, narrow_out = gated(example), narrow(example)
    torch.testing.assert_close(wide_out, narrow_out, rtol=1e-10, atol=1e-11)
    functional.cross_entropy(wide_out, y).backward()
    functional.cross_entropy(narrow_out, y).backward()
    places = kept_places(gated, example)
    for path, parameter in left.items():
        wide, narrow_gradient = gated.get_parameter(path).grad, parameter.grad
        assert wide is not None
        assert narrow_gradient is not None
        members = wide.flatten()[places[path]]
        torch.testing.assert_close(members, narrow_gradient.flatten(), rtol=1e-8, atol=1e-12)
        others = torch.ones(wide.numel(), dtype=torch.bool)
        others[places[path]] = False
        assert not wide.flatten()[others].any()
    for path, b in _statistics(narrow):
        torch.testing.assert_close(gated.get_buffer(path)[places[path]], b, rtol=1e-10, atol=1e-12)


def kept_places(gated: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """Where each number of the narrow network lies in the wide one: narrow a copy whose every tensor counts."""
    counting = copy.deepcopy(gated)
    gates = {id(p) for gate in gates_of(counting).values() for p in gate.parameters()}
    for tensor in [*counting.parameters(), *counting.buffers()]:
        if id(tensor) not in gates:
            tensor.data = torch.arange(tensor.numel()).to(tensor.dtype).reshape(tensor.shape)
    return {path: t.detach().flatten().long() for path, t in materialise(Flow(counting, example)).state_dict().items()}


def _statistics(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, b) for name, b in module.named_buffers() if name.endswith(("running_mean", "running_var")))


@pytest.mark.parametrize("share", SIZES)
@pytest.mark.parametrize("name", list(ORDINARY))
def test_costs_are_real_counts_of_the_narrow_network(name: str, share: float) -> None:
    """torch counts the backward pass of a depthwise convolution as if each output read all inputs, so training is
    compared where there is none."""
    _, gated, example = continuous(name)
    sizes = set_sizes(gated, share)
    flow = Flow(gated, example)
    costs, narrow = costs_of(flow), materialise(flow)
    assert costs.parameters(sizes) == sum(p.numel() for p in narrow.parameters())
    with FlopCounterMode(display=False) as counter:
        out = narrow(example)
    forward = counter.get_total_flops()
    assert costs.flops(sizes) * len(example) == forward
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    if name not in DEPTHWISE:
        assert costs.training_flops(sizes) * len(example) == forward + counter.get_total_flops()


@pytest.mark.parametrize("name", list(ORDINARY))
def test_costs_have_the_gradient_of_their_finite_differences(name: str) -> None:
    _, gated, example = continuous(name)
    costs = costs_of(Flow(gated, example))
    sizes = {gate: 1.7 + i for i, gate in enumerate(gates_of(gated))}
    at = {gate: torch.tensor(n, dtype=torch.float64, requires_grad=True) for gate, n in sizes.items()}
    for cost in (costs.parameters, costs.flops, costs.training_flops, costs.activation_bytes):
        gradients = torch.autograd.grad(cost(at), list(at.values()))
        for gate, gradient in zip(at, gradients, strict=True):
            around = [cost({**sizes, gate: sizes[gate] + h}) for h in (1e-4, -1e-4)]
            assert gradient.item() == pytest.approx((around[0] - around[1]) / 2e-4, rel=1e-6)


@pytest.mark.parametrize("name", list(ORDINARY))
def test_activation_bytes_are_those_that_are_really_written(name: str) -> None:
    """Every result in memory of its own, and those that are written in place."""
    _, gated, example = continuous(name)
    sizes = set_sizes(gated, 0.5)
    flow = Flow(gated, example)
    narrow, written = materialise(flow).eval(), []

    class Counting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            out = super().run_node(n)
            if n.op in ("call_module", "call_function", "call_method") and isinstance(out, Tensor):
                storage = out.untyped_storage().data_ptr()
                read = [self.env[source] for source in n.all_input_nodes if isinstance(self.env[source], Tensor)]
                view = any(value.untyped_storage().data_ptr() == storage for value in read)
                if not view or n.target is operator.iadd:
                    written.append(4 * out[0].numel())
            return out

    Counting(narrow, garbage_collect_values=False).run(example)
    assert costs_of(flow).activation_bytes(sizes) == sum(written)


# -- what it does not know ---------------------------------------------------------------------------------------------


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.sort(self.a(x), dim=1).values)
        return out


class Branching(Odd):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x)) if x.sum() > 0 else self.b(self.a(-x))
        return out


def test_a_pattern_that_is_not_known_is_named_and_what_follows_on_it_is_not() -> None:
    with pytest.raises(Invalid) as caught:
        make_continuous(Odd(), example=(2, 5))
    (fault,) = caught.value.faults
    assert "channels cannot be followed through `sort`" in fault


class Normed(nn.Module):
    """A norm that is not known, in a block, between layers that are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.block = nn.Sequential(nn.Conv2d(8, 6, 1), nn.InstanceNorm2d(6, affine=True))
        self.last, self.head = nn.Conv2d(6, 5, 1), nn.Linear(5, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.block(torch.relu(self.first(x))))
        out: Tensor = self.head(torch.relu(self.last(x)).mean((2, 3)))
        return out


@pytest.mark.parametrize("left", ["block", "block.1"])
def test_what_is_not_known_may_be_left(left: str) -> None:
    """What it reads and writes keeps its width; its numbers still count."""
    with pytest.raises(Invalid, match=r"`block\.1 \(InstanceNorm2d\)`; write it .* or name the layer in `leave`"):
        make_continuous(Normed(), example=(2, *IMAGE))
    gated, space = make_continuous(Normed(), leave=[left], example=(2, *IMAGE))
    assert list(space.parameters) == ["width.first", "width.last"]
    sizes, example = set_sizes(gated.eval(), 0.5), torch.randn(4, *IMAGE)
    flow = Flow(gated, example)
    narrow = materialise(flow)
    torch.testing.assert_close(narrow(example), gated(example), rtol=1e-5, atol=1e-6)
    assert costs_of(flow).parameters(sizes) == sum(p.numel() for p in narrow.parameters())


class Sort(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sort(x, 1).values


def test_an_operation_may_be_left_by_the_module_that_calls_it() -> None:
    module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), Sort(), nn.Linear(6, OUTPUTS))
    with pytest.raises(Invalid, match="sort"):
        make_continuous(module)
    _, space = make_continuous(module, leave=["3"])
    assert list(space.parameters) == ["width.0"]


class Cut(nn.Module):
    """Channels are added to a flatten of others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear, self.head = nn.Conv2d(3, 2, 3, padding=1), nn.Linear(128, 128), nn.Linear(128, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.relu(self.conv(x)).flatten(1)
        out: Tensor = self.head(flat + torch.tanh(self.linear(flat)))
        return out


def test_where_no_width_is_free_each_reason_is_told() -> None:
    with pytest.raises(Invalid, match=r"got none \(.*those of `conv`: `add` ties channels that are cut differently"):
        make_continuous(Cut(), example=(2, *IMAGE))


@pytest.mark.parametrize("first", [nn.Linear(5, 6), nn.Identity()])
def test_a_norm_across_several_widths_is_refused(first: nn.Module) -> None:
    """Whether or not the first of them may change."""

    class Side(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = first, nn.Linear(5, 6)
            self.norm = nn.LayerNorm(12 if isinstance(first, nn.Linear) else 11)
            self.c, self.head = nn.Linear(self.norm.normalized_shape[0], 7), nn.Linear(7, OUTPUTS)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.tanh(self.c(self.norm(torch.cat([self.a(x), self.b(x)], 1)))))
            return out

    with pytest.raises(Invalid, match=r"network\.norm: a norm across channels must read one layer's"):
        make_continuous(Side(), example=(2, 5))
    _, space = make_continuous(Side(), leave=["norm"], example=(2, 5))
    assert list(space.parameters) == ["width.c"]


def test_a_network_that_cannot_be_traced_says_why() -> None:
    with pytest.raises(Untraceable, match="Branching"):
        make_continuous(Branching(), example=(2, 5))


def test_all_faulty_arguments_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        make_continuous(BasicBlock(8, 8), width=(0.0, 2.0), leave=["conv9"], example=(2, 8, 8, 8))
    text = "\n".join(caught.value.faults)
    assert "width" in text
    assert "Did you mean 'conv1'?" in text or "Did you mean 'conv2'?" in text


def test_layers_may_be_left_as_they_are() -> None:
    make, shape = ORDINARY["resnet"]
    _, space = make_continuous(make(), leave=["layer2"], example=(2, *shape))
    assert list(space.parameters) == WIDTHS["resnet"][:3]


def test_a_gated_network_is_not_gated_again() -> None:
    gated, _ = make_continuous(ORDINARY["mlp"][0](), example=(2, 5))
    with pytest.raises(Invalid, match="gate"):
        make_continuous(gated, example=(2, 5))


def test_the_example_is_guessed_where_a_common_shape_runs() -> None:
    _, space = make_continuous(ORDINARY["resnet"][0]())
    assert list(space.parameters) == WIDTHS["resnet"]
    assert IMAGE == (3, 8, 8)
