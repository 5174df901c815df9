"""`make_continuous` on networks as people write them: nothing changes at full width, narrow is really narrow, costs are
real counts, and what it does not know is named."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from network_cases import IMAGE, ORDINARY, OUTPUTS, BasicBlock
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from search_spaces import Invalid
from search_spaces.continuous import make_continuous
from search_spaces.flow import Flow, Untraceable
from search_spaces.materialise import costs_of, materialise
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
    "sequence": ["width.body.0", "width.body.4"],
}
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
        if isinstance(norm, nn.LayerNorm | nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
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
    for path, parameter in left.items():
        wide = gated.get_parameter(path).grad
        assert wide is not None
        assert parameter.grad is not None
        kept = wide[tuple(slice(0, n) for n in parameter.shape)] if _is_prefix(name, path) else None
        if kept is not None:
            torch.testing.assert_close(kept, parameter.grad, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(wide.norm(), parameter.grad.norm(), rtol=1e-8, atol=1e-12)  # so the rest is 0
    for (_, a), (_, b) in zip(_statistics(gated), _statistics(narrow), strict=True):
        if name != "densenet":
            torch.testing.assert_close(a[: len(b)], b, rtol=1e-10, atol=1e-12)


def _is_prefix(name: str, path: str) -> bool:
    """Members are the leading channels of every tensor, but not of one that reads several widths side by side, or each
    channel at several places."""
    return name != "densenet" and path != "classifier.0.weight"


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
    if name not in ("mobilenet", "convnext"):
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


def test_activation_bytes_are_those_that_hooks_count() -> None:
    """Of a network whose every value is written by a module."""
    make, shape = ORDINARY["vgg"]
    gated, _ = make_continuous(make(), example=(2, *shape))
    sizes = set_sizes(gated, 0.5)
    flow = Flow(gated, torch.zeros(2, *shape))
    narrow, written = materialise(flow), []
    for child in narrow.modules():
        if not list(child.children()) and not isinstance(child, nn.Dropout | nn.Flatten):
            child.register_forward_hook(lambda _, __, out: written.append(4 * out[0].numel()))
    narrow.eval()(torch.zeros(2, *shape))
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


def test_a_pattern_that_is_not_known_is_named() -> None:
    with pytest.raises(Invalid, match="sort"):
        make_continuous(Odd(), example=(2, 5))


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
