"""Networks that are wrong, or that torch.fx cannot trace: refused in a sentence of their own, or working with masks."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search_spaces import Invalid
from search_spaces.flow import Flow, Untraceable
from search_spaces.materialise import MaskedExport, masked, materialise, plain
from search_spaces.networks import Own
from search_spaces.norms import MaskedLayerNorm
from search_spaces.realise import realise, resolve
from search_spaces.width import HeldGate, WidthGate, gates_of

INPUTS, OUTPUTS = 5, 3
EXAMPLE = torch.zeros(2, INPUTS)


class Two(nn.Module):
    """Two gated layers; what is wrong is said by the arguments."""

    def __init__(
        self,
        names: tuple[str, str] = ("first", "second"),
        maxima: tuple[int, int] = (8, 6),
        outputs: int = OUTPUTS,
        called: bool = True,
    ) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(INPUTS, 8), nn.Linear(8, 6), nn.Linear(6, outputs)
        self.gates = nn.ModuleList(WidthGate(*pair) for pair in zip(names, maxima, strict=True))
        self.called = called

    def forward(self, x: Tensor) -> Tensor:
        h = self.gates[0](torch.relu(self.a(x)))
        h = torch.relu(self.b(h))
        out: Tensor = self.c(self.gates[1](h) if self.called else h)
        return out


class Branching(Two):
    """The same, but what it does depends on what it reads."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Normed(nn.Module):
    """A norm that asks a gate which gates nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = WidthGate("first", 8)
        self.a, self.norm, self.b = nn.Linear(INPUTS, 8), MaskedLayerNorm(8, self.gate), nn.Linear(8, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.relu(self.norm(self.a(x))))
        return out


def broken() -> nn.Module:
    raise OSError("no such\nfile")


def needy(missing: int) -> nn.Module:
    raise AssertionError("never called")


def found(factory: Callable[..., Any], **options: Any) -> tuple[str, ...]:
    """The faults of a network of the user's own."""
    with pytest.raises(Invalid) as caught:
        resolve(Own(reference="here:network", options=options), factory, (INPUTS,), OUTPUTS)
    lines = "".join(traceback.format_exception_only(caught.value)).splitlines()
    assert len(lines) == len(caught.value.faults)  # a sentence for each, and none of our internals
    assert all(fault.startswith("network") and not fault.endswith("..") for fault in caught.value.faults)
    return caught.value.faults


# -- the user's function -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        (
            broken,
            "network: broken must return an nn.Module when called with network.options (and shape and outputs, "
            "if it takes them), but raised OSError",
        ),
        (needy, "missing 1 required positional argument: 'missing'"),
        (lambda: "a module", "must return an nn.Module, but got 'a module'."),
        (lambda: Two, "must return an nn.Module, but got <class"),
        (lambda: nn.Linear(INPUTS, OUTPUTS), "must have at least one gate (search_spaces.width.WidthGate), but has"),
        (Normed, "the gate 'first' must be called in forward"),
    ],
)
def test_a_function_that_gives_no_network(factory: Callable[..., Any], sentence: str) -> None:
    (fault,) = found(factory)
    assert sentence in fault


@pytest.mark.parametrize("kind", [Two, Branching])
@pytest.mark.parametrize(
    ("options", "sentences"),
    [
        ({"names": ("first", "first")}, ["two gates are called 'first'"]),
        ({"outputs": 4}, ["must return 3 numbers a row, but got an output of shape (2, 4)"]),
        ({"maxima": (8, 5)}, ["'second'"]),
    ],
)
def test_what_is_wrong_is_named_traced_or_not(kind: type[Two], options: dict[str, Any], sentences: list[str]) -> None:
    faults = found(kind, **options)
    assert [sentence in fault for sentence, fault in zip(sentences, faults, strict=True)] == [True] * len(sentences)


def test_a_gate_of_another_size_than_its_layer_says_what_to_set() -> None:
    (fault,) = found(Two, maxima=(7, 6))
    assert "as many units as the layer it follows (8 in `a`), but got maximum=7; set it to 8." in fault
    assert len(found(Two, maxima=(7, 5))) == 2


def test_a_gate_that_is_never_called_is_named() -> None:
    (fault,) = found(Two, called=False)
    assert "the gate 'second' must be called in forward" in fault


def test_an_untraceable_network_that_does_not_run_says_so() -> None:
    class Narrow(Branching):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(INPUTS + 1, 8)

    (fault,) = found(Narrow)
    assert "must run on an input of shape (2, 5), but got RuntimeError" in fault


# -- what cannot be traced ---------------------------------------------------------------------------------------------


def branching(first: int, second: int) -> Branching:
    torch.manual_seed(0)
    module = Branching().double()
    gates = gates_of(module)
    for name, n in (("first", first), ("second", second)):
        gate = gates[name]
        assert isinstance(gate, WidthGate)
        gate.set(n)
    return module


def test_what_cannot_be_traced_is_masked_with_a_warning_and_says_the_same() -> None:
    module = branching(3, 5)
    x = torch.randn(7, INPUTS, dtype=torch.float64)
    with pytest.raises(Untraceable, match=r"Branching must be traceable by torch\.fx"):
        Flow(module, EXAMPLE)
    with pytest.warns(MaskedExport, match="Branching cannot be traced, so it is exported with masks"):
        fixed = plain(module, EXAMPLE.double())
    assert all(isinstance(gate, HeldGate) for gate in gates_of(fixed).values())
    for sign in (1, -1):  # both branches
        torch.testing.assert_close(fixed(sign * x), module(sign * x), rtol=1e-14, atol=1e-15)
    assert {name: gate.grades().tolist() for name, gate in gates_of(fixed).items()} == {
        "first": [1.0] * 3 + [0.0] * 5,
        "second": [1.0] * 5 + [0.0],
    }
    assert not any("gates" in name for name, _ in fixed.named_parameters())


def test_masks_are_the_narrow_network_computed_by_hand() -> None:
    module = branching(8, 6)
    x = torch.rand(7, INPUTS, dtype=torch.float64)
    with pytest.warns(MaskedExport):
        fixed = masked(module, {"first": 4, "second": 2})
    a, b, c = module.a, module.b, module.c
    h = torch.relu(x @ a.weight[:4].T + a.bias[:4])
    h = torch.relu(h @ b.weight[:2, :4].T + b.bias[:2])
    torch.testing.assert_close(fixed(x), h @ c.weight[:, :2].T + c.bias, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(fixed(-x), fixed(x), rtol=0, atol=0)


def test_what_is_masked_costs_what_it_costs_whole() -> None:
    network = resolve(Own(reference="here:network"), Branching, (INPUTS,), OUTPUTS)
    whole = (INPUTS + 1) * 8 + 9 * 6 + 7 * OUTPUTS
    costs = network.costs((INPUTS,), OUTPUTS)
    assert costs.parameters({"first": 2, "second": 1}) == costs.parameters({"first": 8, "second": 6}) == whole
    assert costs.flops({"first": 2, "second": 1}) == 2 * (INPUTS * 8 + 8 * 6 + 6 * OUTPUTS)
    built = realise(network, (INPUTS,), OUTPUTS)
    assert built.flow is None
    assert list(built.gates) == ["first", "second"]


@pytest.mark.filterwarnings("ignore::search_spaces.materialise.MaskedExport")
@pytest.mark.parametrize("kind", [Two, Branching])
def test_sizes_that_no_gate_has_are_refused_all_at_once(kind: type[Two]) -> None:
    with pytest.raises(Invalid) as caught:
        plain(kind(), EXAMPLE, {"frist": 3, "second": 7, "first": 0})
    text = "\n".join(caught.value.faults)
    assert len(caught.value.faults) == 3
    assert "unknown gate 'frist'. Did you mean 'first'?" in text
    assert "sizes.second: must lie in 1 .. 6, but got 7" in text
    assert "sizes.first: must lie in 1 .. 8, but got 0" in text


def test_faults_of_a_traced_network_are_all_told_before_anything_is_pruned() -> None:
    module = Two(maxima=(7, 5))
    with pytest.raises(ValueError, match="must be the number of units of the layer before it"):
        module(EXAMPLE)
    with pytest.raises(Invalid) as caught:
        materialise(Flow(module, EXAMPLE))
    assert len(caught.value.faults) == 2
