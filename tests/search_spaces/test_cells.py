"""Networks with real strides: at whole ones the relaxed, the materialised and the hand-written network are the same, in
outputs, gradients, statistics and costs; between them everything has the derivative of its finite differences."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from real_counts import flops_of, parameters_of, written_by
from strided_cases import OUTPUTS, STRIDED, Strides, weights_of
from torch import Tensor, fx, nn
from torch.nn import functional

from search_spaces.blocks import module_of
from search_spaces.extent import KINDS
from search_spaces.flow import Flow
from search_spaces.flow_costs import costs_of
from search_spaces.kept import kept_units
from search_spaces.materialise import materialise, narrowed
from search_spaces.stride import Stride, StrideGate
from search_spaces.strided import STRIDED as FOLDING
from search_spaces.width import HeldGate, gates_of

CASES = [(name, kind) for name in STRIDED for kind in KINDS]
DEPTHWISE = ("mobilenet", "convnext")  # torch counts the gradient of all pairs of their channels
WHOLE = (1, 2, 3)


@functools.cache
def case(name: str, kind: str) -> tuple[Flow, Tensor]:
    """A traced network in float64 with statistics of some data, and its input."""
    make, shape, _ = STRIDED[name]
    torch.manual_seed(0)
    module = make(Strides(kind)).double().train()
    for tensor in weights_of(module):
        if tensor.is_floating_point() and tensor.dim() == 1:
            nn.init.uniform_(tensor, 0.3, 1.2)
    return Flow(module, torch.randn(4, *shape, dtype=torch.float64)), torch.randn(4, *shape, dtype=torch.float64)


def at(flow: Flow, strides: Mapping[str, float]) -> fx.GraphModule:
    """The relaxed network of these strides, with weights of its own."""
    return striding(copy.deepcopy(flow.graph), strides)


def striding(relaxed: fx.GraphModule, strides: Mapping[str, float]) -> fx.GraphModule:
    for name, gate in gates_of(relaxed).items():
        assert isinstance(gate, StrideGate)
        gate.set(strides[name])
    return relaxed


def combinations(name: str) -> Iterator[dict[str, int]]:
    """All of two strides; of a third, each with each of the others."""
    gates = STRIDED[name][2]
    for first, second in itertools.product(WHOLE, repeat=2):
        yield dict(zip(gates, (first, second, (first + second) % 3 + 1), strict=False))


def between(name: str, count: int) -> Iterator[dict[str, float]]:
    """Random strides, none of them whole."""
    draws = torch.Generator().manual_seed(len(name))
    for _ in range(count):
        yield {gate: 1 + 2 * float(torch.rand((), generator=draws)) for gate in STRIDED[name][2]}


def loss_of(out: Tensor) -> Tensor:
    return functional.cross_entropy(out, torch.arange(len(out)) % OUTPUTS)


def same(a: Tensor | None, b: Tensor | None) -> None:
    assert a is not None
    assert b is not None
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


# -- whole strides -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_materialised_is_the_relaxed_network_at_whole_strides(name: str, kind: str) -> None:
    """Outputs in both modes, gradients of all weights, and statistics; its maps are as small as they are said to be."""
    flow, x = case(name, kind)
    assert not flow.faults
    for strides in combinations(name):
        relaxed, plain = at(flow, strides), materialise(flow, strides)
        assert all(type(m).__module__.startswith("torch.nn") for m in plain.modules() if m is not plain)
        same(relaxed.eval()(x), plain.eval()(x))
        outs = [module.train()(x) for module in (relaxed, plain)]
        same(*outs)
        for out in outs:
            loss_of(out).backward()
        for path, parameter in plain.named_parameters():
            same(relaxed.get_parameter(path).grad, parameter.grad)
        for path, buffer in plain.named_buffers():
            if "running" in path:
                same(relaxed.get_buffer(path), buffer)
        assert {tuple(g.shape) for g in (p.grad for p in plain.parameters()) if g is not None}
        sides = shapes_of(plain, x)
        for node, axes in flow.axes.items():
            if node.op == "call_module" and str(node.target) in sides:
                shape = sides[str(node.target)]
                assert all(shape[axis] == extent.live(strides) for axis, extent in axes.items())


def shapes_of(plain: fx.GraphModule, x: Tensor) -> dict[str, tuple[int, ...]]:
    """What each layer writes that took no stride upon itself."""
    found: dict[str, tuple[int, ...]] = {}

    class Shapes(fx.Interpreter):
        def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
            out = super().call_module(target, args, kwargs)
            if not isinstance(self.fetch_attr(target), FOLDING):
                found[str(target)] = tuple(out.shape)
            return out

    Shapes(plain).run(x)
    return found


@pytest.mark.parametrize("name", list(STRIDED))
def test_shrink_is_the_network_that_really_strides(name: str) -> None:
    """Written by hand, with the same weights: outputs in both modes, gradients, statistics."""
    flow, x = case(name, "shrink")
    for strides in combinations(name):
        relaxed, twin = at(flow, strides), STRIDED[name][0](Strides(whole=strides)).double()
        ours, theirs = weights_of(relaxed), weights_of(twin)
        homes = weights_of(STRIDED[name][0](Strides("shrink")))
        assert [t.shape for t in homes] == [t.shape for t in theirs]
        paths = [path for path in STRIDED[name][0](Strides("shrink")).state_dict() if "gate" not in path.split(".")]
        state = relaxed.state_dict(keep_vars=True)
        for path, tensor in zip(paths, theirs, strict=True):
            tensor.data.copy_(state[path])
        assert len(ours) >= len(theirs)
        same(relaxed.eval()(x), twin.eval()(x))
        outs = [module.train()(x) for module in (relaxed, twin)]
        same(*outs)
        for out in outs:
            loss_of(out).backward()
        for path, tensor in zip(paths, theirs, strict=True):
            if isinstance(tensor, nn.Parameter):
                same(state[path].grad, tensor.grad)
            else:
                same(state[path].double(), tensor.double())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_costs_are_real_counts_at_whole_strides(name: str, kind: str) -> None:
    flow, x = case(name, kind)
    costs = costs_of(flow)
    for strides in list(combinations(name))[::2]:
        plain = materialise(flow, strides)
        forward, both = flops_of(plain, x)
        assert costs.parameters(strides) == parameters_of(plain)
        assert costs.flops(strides) * len(x) == forward, strides
        if name not in DEPTHWISE:
            assert costs.training_flops(strides) * len(x) == both, strides
        assert costs.activation_bytes(strides) == written_by(plain, x), strides


# -- between them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_costs_have_the_gradient_of_their_finite_differences(name: str, kind: str) -> None:
    """Piecewise polynomials of low degree, by central differences of 2e-4."""
    costs = costs_of(case(name, kind)[0])
    for strides in between(name, 2):
        point = {gate: torch.tensor(s, dtype=torch.float64, requires_grad=True) for gate, s in strides.items()}
        for cost in (costs.flops, costs.training_flops, costs.activation_bytes):
            for relaxed in (False, True) if cost != costs.activation_bytes else (False,):
                options = {"relaxed": True} if relaxed else {}
                slopes = torch.autograd.grad(cost(point, **options), list(point.values()))
                for gate, slope in zip(point, slopes, strict=True):
                    around = [cost({**strides, gate: strides[gate] + h}, **options) for h in (1e-4, -1e-4)]
                    assert slope.item() == pytest.approx((around[0] - around[1]) / 2e-4, rel=1e-5)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_gradient_by_strides_is_that_of_finite_differences(name: str, kind: str) -> None:
    """Through the whole network, by differences of 2e-7: too near for kinks of maxima, off by rounding's 1e-9.
    In either mode."""
    flow, x = case(name, kind)
    for training, strides in zip((True, False), between(name, 2), strict=True):
        relaxed = at(flow, strides).train(training)
        gates = gates_of(relaxed)
        slopes = torch.autograd.grad(loss_of(relaxed(x)), [gates[gate].n for gate in strides])  # type: ignore[arg-type]
        for gate, slope in zip(strides, slopes, strict=True):
            around = [loss_of(striding(relaxed, {**strides, gate: strides[gate] + h})(x)).item() for h in (1e-7, -1e-7)]
            assert slope.item() == pytest.approx((around[0] - around[1]) / 2e-7, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_cropped_maps_give_the_same(name: str, kind: str) -> None:
    """Laid out at the whole strides below, with less to compute."""
    flow, x = case(name, kind)
    for strides in between(name, 2):
        relaxed = at(flow, strides)
        small = narrowed(flow, kept_units(flow, {gate: int(s) for gate, s in strides.items()}))
        for gate in gates_of(small).values():
            assert isinstance(gate, HeldGate)
            gate.m = torch.tensor([strides[gate.name]], dtype=torch.float64)
        same(relaxed.eval()(x), small.eval()(x))
        same(relaxed.train()(x), small.train()(x))
        for path, buffer in relaxed.named_buffers():
            if "running" in path:
                same(small.get_buffer(path), buffer)
        written, cropped = (sum(shape.numel() for shape in maps(module, x)) for module in (relaxed, small))
        assert cropped < written or max(map(int, strides.values())) == 1


def maps(module: fx.GraphModule, x: Tensor) -> list[torch.Size]:
    """The shapes of all results."""
    found = []

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            out = super().run_node(n)
            found.append(out.shape if isinstance(out, Tensor) else torch.Size([0]))
            return out

    Shapes(module).run(x)
    return found


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_float32_stays_finite_down_to_one_cell(name: str, kind: str) -> None:
    """Even where a kernel no longer fits into what is left of a map."""
    flow, x = case(name, kind)
    side = max(STRIDED[name][1])
    for strides in ((1.0, 1.0), (side, side), (side, 1.3), (3.4, 5.7)):
        relaxed = at(flow, dict(zip(STRIDED[name][2], (*strides, 2.2), strict=False))).float().train()
        out = relaxed(x.float())
        loss_of(out).backward()
        assert out.isfinite().all()
        assert all(p.grad.isfinite().all() for p in relaxed.parameters() if p.grad is not None)
        assert all(gate.n.grad is not None for gate in gates_of(relaxed).values())  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_another_walk_changes_nothing(name: str, kind: str) -> None:
    flow, x = case(name, kind)
    again = Flow(copy.deepcopy(flow.graph), x)
    assert not again.faults
    assert again.graph.code == flow.graph.code
    kinds = [[type(module_of(graph, node)) for node in graph.graph.nodes] for graph in (again.graph, flow.graph)]
    assert kinds[0] == kinds[1]
    named = {node.name: axes for node, axes in flow.axes.items()}
    assert {node.name: axes for node, axes in again.axes.items()} == named
    strides = next(between(name, 1))
    assert torch.equal(at(again, strides)(x), at(flow, strides)(x))
    whole = dict.fromkeys(strides, 2)
    assert costs_of(again).flops(whole) == costs_of(flow).flops(whole)
    same(materialise(again, whole)(x), materialise(flow, whole)(x))


def test_what_was_traced_stays_as_it_was() -> None:
    """So that it can be traced anew, for images of another size."""
    make, shape, _ = STRIDED["resnet"]
    module = make(Strides("spectral"))
    before = str(module), {name: type(child) for name, child in module.named_modules()}
    for side in (9, 12):
        flow = Flow(module, torch.zeros(2, shape[0], side, side))
        assert not flow.faults
        assert materialise(flow, {"a": 2, "b": 3})(torch.zeros(2, shape[0], side, side)).shape == (2, OUTPUTS)
    assert (str(module), {name: type(child) for name, child in module.named_modules()}) == before
    assert not any(child.extents for child in module.modules() if isinstance(child, Stride))


def test_an_example_does_not_see_the_others() -> None:
    """In evaluation mode, between whole strides, poolings of maxima included."""
    for name, kind in CASES:
        flow, x = case(name, kind)
        relaxed = at(flow, next(between(name, 1))).eval()
        same(relaxed(x)[:1], relaxed(x[:1]))
