"""Graphs, cells and fabrics: the rounded network is the relaxed one at hard grades, in outputs, gradients and costs; a
fabric of one path is a plain network written by hand; gradients by the numbers are finite differences.

Legend of shape suffixes: K lanes, U units, N units of a width.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from search_spaces.blocks import Evened
from search_spaces.flow import Flow
from search_spaces.flow_costs import costs_of
from search_spaces.graphs import GatedFabric, GatedGraph
from search_spaces.materialise import materialise
from search_spaces.operations import Operations
from search_spaces.topology import TopologyGate
from search_spaces.width import Gate, HeldGate, WidthGate, gates_of, held
from search_spaces.wiring import OPERATIONS, Topology, operation_faults

IMAGE, ROW, OUTPUTS, BATCH = (3, 8, 8), (7,), 4, 5
MAXIMA = {"width.0": 6, "width.1": 5, "width.2": 5}  # two are one, and yet two widths
Sizes = dict[str, Any]


def first(count: int) -> dict[str, int]:
    return dict(list(MAXIMA.items())[:count])


def graph(shape: tuple[int, ...], *operations: str, cells: int = 1, **options: Any) -> Callable[[str], nn.Module]:
    topology = Topology(operations=operations, **options)
    return lambda norm: GatedGraph(
        shape, first(cells), OUTPUTS, topology=topology, norm=norm, activation="silu", cells=cells
    )


def fabric(shape: tuple[int, ...], *operations: str, layers: int = 3, scales: int = 3) -> Callable[[str], nn.Module]:
    topology = Topology(kind="fabric", layers=layers, scales=scales, operations=operations)
    return lambda norm: GatedFabric(shape, first(scales), OUTPUTS, topology=topology, norm=norm, activation="silu")


WIRINGS: dict[str, tuple[Callable[[str], nn.Module], tuple[int, ...]]] = {
    "graphon": (graph(IMAGE, "conv3", "skip", kind="graphon", nodes=3), IMAGE),
    "graphon of rows": (graph(ROW, "linear", "zero", kind="graphon", nodes=4), ROW),
    "free": (graph(IMAGE, *OPERATIONS, nodes=2), IMAGE),
    "cells": (graph(IMAGE, "separable", "max_pool", "conv1", nodes=2, cells=3), IMAGE),
    "cells without skips": (graph(IMAGE, "linear", "conv5", kind="graphon", nodes=2, cells=2), IMAGE),
    "cells of rows": (graph(ROW, "linear", "skip", nodes=3, cells=2), ROW),
    "fabric": (fabric(IMAGE, "conv3", "skip", "avg_pool"), IMAGE),
    "fabric without skips": (fabric(IMAGE, "separable", "max_pool", layers=2, scales=2), IMAGE),
    "fabric of odd sides": (fabric((3, 7, 5), "linear", "conv5"), (3, 7, 5)),
    "fabric of rows": (fabric(ROW, "linear", "skip", layers=4), ROW),
}
NORMS = ("batch", "none")


@dataclass(frozen=True)
class Case:
    """A relaxed network in float64, in eval mode, with statistics of some data; its flow, and an input."""

    module: nn.Module
    flow: Flow
    x: Tensor

    @property
    def topology(self) -> Topology:
        gate = self.flow.gates["topology"]
        assert isinstance(gate, TopologyGate)
        return gate.topology

    @property
    def widths(self) -> dict[str, int]:
        return {name: gate.maximum for name, gate in gates_of(self.module).items() if name != "topology"}


def built(wiring: str, norm: str) -> Case:
    make, shape = WIRINGS[wiring]
    torch.manual_seed(0)
    module = make(norm).double()
    gates = gates_of(module)
    assert isinstance(gates["topology"], TopologyGate)
    gates["topology"].set(torch.rand(gates["topology"].topology.size))
    for _ in range(3):
        module.train()(2 * torch.randn(9, *shape, dtype=torch.float64) + 0.5)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(child.weight, 0.3, 1.5)
            nn.init.uniform_(child.bias, -0.5, 0.5)
    x = torch.randn(BATCH, *shape, dtype=torch.float64)
    return Case(module.eval(), Flow(module, x), x)


@pytest.fixture(scope="module", params=[(w, n) for w in WIRINGS for n in NORMS], ids=lambda param: "-".join(param))
def case(request: pytest.FixtureRequest) -> Case:
    return built(*request.param)


def points(case: Case) -> list[tuple[list[float], dict[str, int]]]:
    """Numbers of the topology, dense, sparse, whole, all and none; and whole widths."""
    generator = torch.Generator().manual_seed(1)
    size, found = case.topology.size, []
    u = torch.rand(size, generator=generator, dtype=torch.float64)
    for numbers in (u, u**4, (u > 0.4).double(), torch.ones(size), torch.zeros(size)):
        widths = {
            name: int(torch.randint(1, maximum + 1, (), generator=generator)) for name, maximum in case.widths.items()
        }
        found.append((numbers.tolist(), widths))
    return found


def at(case: Case, numbers: list[float], widths: dict[str, int]) -> tuple[nn.Module, Sizes, Sizes]:
    """The relaxed network at hard grades, its sizes for a cost, and for the plain network."""
    kept = case.topology.hard(numbers)
    m_U = torch.zeros(len(case.topology.units), dtype=torch.float64)
    m_U[list(kept)] = 1.0
    relaxed = held(case.module)
    for name, gate in gates_of(relaxed).items():
        assert isinstance(gate, HeldGate)
        gate.m = m_U if name == "topology" else (torch.arange(gate.maximum) < widths[name]).double()
    return relaxed, {"topology": m_U, **widths}, {"topology": kept, **widths}


# -- rounding ----------------------------------------------------------------------------------------------------------


def test_the_gates_are_the_topology_and_then_the_widths(case: Case) -> None:
    assert case.flow.faults == []
    assert case.flow.unknown == {}
    assert list(gates_of(case.module)) == ["topology", *first(len(case.widths))]


@pytest.mark.slow
def test_the_plain_network_is_the_relaxed_one_at_hard_grades(case: Case) -> None:
    """Outputs, and gradients: those of what is kept equal the plain network's, all others are 0. None of the plain
    network's weights is dead."""
    for numbers, widths in points(case):
        relaxed, _, sizes = at(case, numbers, widths)
        plain = materialise(case.flow, sizes)
        own = [type(child) for child in plain.modules() if child is not plain]
        assert all(cls.__module__.startswith("torch.nn.modules") for cls in own), own
        wide_out, plain_out = relaxed(case.x), plain(case.x)
        torch.testing.assert_close(wide_out, plain_out, rtol=1e-11, atol=1e-12)
        for out in (wide_out, plain_out):
            functional.cross_entropy(out, torch.arange(BATCH) % OUTPUTS).backward()
        places, left = kept_places(case, sizes), dict(plain.named_parameters())
        for path, wide in relaxed.named_parameters():
            gradient = torch.zeros_like(wide) if wide.grad is None else wide.grad
            others = torch.ones(wide.numel(), dtype=torch.bool)
            if path in left:
                narrow = left[path].grad
                assert narrow is not None, path
                assert narrow.any(), path
                members = gradient.flatten()[places[path]]
                torch.testing.assert_close(members, narrow.flatten(), rtol=1e-8, atol=1e-13)
                others[places[path]] = False
            assert not gradient.flatten()[others].any(), path


def kept_places(case: Case, sizes: Sizes) -> dict[str, Tensor]:
    """Where each number of the plain network lies in the relaxed one: the plain network of weights that count."""
    tensors = {
        **{path: p for path, p in case.module.named_parameters() if not path.startswith(("topology", "widths"))},
        **dict(case.module.named_buffers()),
    }
    before = {path: tensor.detach().clone() for path, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.data = torch.arange(tensor.numel()).to(tensor.dtype).reshape(tensor.shape)
    state = materialise(case.flow, sizes).state_dict()
    for path, tensor in tensors.items():
        tensor.data = before[path]
    return {path: tensor.flatten().long() for path, tensor in state.items()}


@pytest.mark.parametrize("case", [("free", "batch"), ("cells of rows", "none"), ("fabric", "batch")], indirect=True)
def test_whole_numbers_are_hard_grades(case: Case) -> None:
    """The network's own gates say so there; a graphon's grades are never 0 and 1."""
    numbers, widths = points(case)[0]
    relaxed, _, _ = at(case, numbers, widths)
    module = copy.deepcopy(case.module)
    for name, gate in gates_of(module).items():
        assert isinstance(gate, TopologyGate | WidthGate)
        gate.set(case.topology.whole(numbers) if name == "topology" else widths[name])  # type: ignore[arg-type]
    torch.testing.assert_close(module(case.x), relaxed(case.x), rtol=1e-13, atol=1e-14)


def test_costs_are_real_counts_of_the_plain_network(case: Case) -> None:
    costs = costs_of(case.flow)
    for numbers, widths in points(case):
        _, at_grades, sizes = at(case, numbers, widths)
        plain = materialise(case.flow, sizes)
        assert costs.parameters(at_grades) == sum(p.numel() for p in plain.parameters())
        with FlopCounterMode(display=False) as counter:
            plain(case.x)
        assert costs.flops(at_grades) * BATCH == counter.get_total_flops()
        assert costs.activation_bytes(at_grades) == bytes_written(plain, case.x)


def bytes_written(plain: fx.GraphModule, x: Tensor) -> int:
    """Of every result that lies in memory of its own, for one example in float32."""
    written = []

    class Counting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            out = super().run_node(n)
            if n.op in ("call_module", "call_function", "call_method") and isinstance(out, Tensor):
                read = [self.env[source] for source in n.all_input_nodes if isinstance(self.env[source], Tensor)]
                if all(value.untyped_storage().data_ptr() != out.untyped_storage().data_ptr() for value in read):
                    written.append(4 * out[0].numel())
            return out

    Counting(plain, garbage_collect_values=False).run(x)
    return sum(written)


# -- gradients and lanes -----------------------------------------------------------------------------------------------


def test_gradients_by_the_numbers_and_the_widths_are_finite_differences(case: Case) -> None:
    """Where no number is at a kink: widths are not whole, no node's grades add up to 1."""
    module, y = copy.deepcopy(case.module), torch.arange(BATCH) % OUTPUTS
    generator = torch.Generator().manual_seed(3)
    gates = gates_of(module)
    for name, gate in gates.items():
        assert isinstance(gate, TopologyGate | WidthGate)
        u = 0.1 + 0.8 * torch.rand(case.topology.size, generator=generator)
        gate.set(u if name == "topology" else gate.maximum - 1.37)  # type: ignore[arg-type]
    moved = [p for gate in gates.values() for p in gate.parameters()]

    def loss() -> Tensor:
        return functional.cross_entropy(module(case.x), y)

    slopes = torch.autograd.grad(loss(), moved)
    with torch.no_grad():
        for parameter, slope in zip(moved, slopes, strict=True):
            for i in torch.randperm(parameter.numel(), generator=generator)[:5].tolist():
                number, h = parameter.view(-1)[i : i + 1], 1e-5
                around = [loss() for _ in map(number.add_, (h, -2 * h))]
                number.add_(h)
                difference = (around[0] - around[1]) / (2 * h)
                torch.testing.assert_close(slope.view(-1)[i], difference, rtol=1e-5, atol=1e-10)


def test_lanes_of_grades_are_the_loop(case: Case) -> None:
    lanes, generator = 3, torch.Generator().manual_seed(4)
    net = held(case.module)
    gates = gates_of(net)
    grades = {
        name: torch.rand(lanes, gate.maximum, generator=generator, dtype=torch.float64) for name, gate in gates.items()
    }
    paths = {
        name: [path for path, m in net.named_modules(remove_duplicate=False) if m is g] for name, g in gates.items()
    }

    def loss(lane: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        buffers = {f"{path}.m": m for name, m in lane.items() for path in paths[name]}
        out = functional_call(net, buffers, (case.x,))
        return functional.cross_entropy(out, torch.arange(BATCH) % OUTPUTS), out

    slope = grad(loss, has_aux=True)
    together, outs = vmap(slope)(grades)
    for k in range(lanes):
        alone, out = slope({name: m[k] for name, m in grades.items()})
        torch.testing.assert_close(outs[k], out, rtol=1e-11, atol=1e-13)
        for name in gates:
            assert alone[name].any()
            torch.testing.assert_close(together[name][k], alone[name], rtol=1e-9, atol=1e-13)


# -- a fabric ----------------------------------------------------------------------------------------------------------


def woven() -> Topology:
    return Topology(kind="fabric", layers=4, scales=3, operations=("conv3", "separable", "skip"))


PATH = ["l0s0_l1s1_conv3", "l1s1_l2s0_skip", "l2s0_l3s1_separable", "l3s1_l4s2_skip"]


def test_a_fabric_of_one_path_is_a_plain_network_written_by_hand() -> None:
    torch.manual_seed(0)
    topology = woven()
    module = GatedFabric(IMAGE, MAXIMA, OUTPUTS, topology=topology, activation="gelu").double().train()
    module(torch.randn(9, *IMAGE, dtype=torch.float64))
    a, b, c = MAXIMA.values()
    net = nn.Sequential(
        *(nn.Conv2d(3, a, 3, padding=1, bias=False), nn.BatchNorm2d(a)),
        *(nn.AvgPool2d(2), nn.GELU(), nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b)),
        *(nn.Upsample(scale_factor=2), nn.Conv2d(b, a, 1, bias=False), nn.BatchNorm2d(a)),
        *(nn.AvgPool2d(2), nn.GELU(), nn.Conv2d(a, a, 3, padding=1, groups=a, bias=False)),
        *(nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b)),
        *(nn.AvgPool2d(2), nn.Conv2d(b, c, 1, bias=False), nn.BatchNorm2d(c)),
        *(nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, OUTPUTS)),
    ).double()
    state = module.state_dict()
    prefixes = ("stem.", *(f"fabric.edges.{name}." for name in PATH), "head.")
    weights = [t for prefix in prefixes for key, t in state.items() if key.startswith(prefix) and ".gate." not in key]
    net.load_state_dict(dict(zip(net.state_dict(), weights, strict=True)))
    names = [unit_name(topology, unit) for unit in range(len(topology.units))]
    module.topology.set([float(name in PATH) for name in names])
    x = torch.randn(BATCH, *IMAGE, dtype=torch.float64)
    torch.testing.assert_close(module.eval()(x), net.eval()(x), rtol=1e-12, atol=1e-12)
    kept = tuple(sorted(names.index(name) for name in PATH))
    plain = materialise(Flow(module, x), {"topology": kept})
    torch.testing.assert_close(plain(x), net(x), rtol=1e-12, atol=1e-12)
    assert list(dict(plain.named_parameters())) == [
        key
        for prefix in prefixes
        for key, _ in module.named_parameters()
        if key.startswith(prefix) and "gate" not in key
    ]


def unit_name(topology: Topology, unit: int) -> str:
    edge, operation = topology.units[unit]
    layer = edge.source // topology.scales
    return f"l{layer}s{edge.scale_from}_l{layer + 1}s{edge.scale_to}_{operation}"


def test_a_fabrics_maps_have_their_scales_sides_and_no_more_nodes_than_are_on_paths() -> None:
    """Of 15 nodes (0, 1), (0, 2), (1, 2) are reached by no path, and (3, 0), (4, 0), (4, 1) lead to no output."""
    topology = Topology(kind="fabric", layers=4, scales=3, operations=("conv3", "skip"))
    module, seen = GatedFabric((3, 7, 5), MAXIMA, OUTPUTS, topology=topology), {}
    for name, node in module.fabric.nodes.items():
        node.register_forward_hook(lambda _, __, out, name=name: operator.setitem(seen, name, tuple(out.shape[1:])))
    module(torch.randn(2, 3, 7, 5))
    sides = [(6, 7, 5), (5, 4, 3), (5, 2, 2)]
    assert seen == {str(3 * layer + s): sides[s] for layer, s in [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]} | {
        str(3 * layer + s): sides[s] for layer, s in [(3, 1), (3, 2), (4, 2)]
    }
    assert not any(name.startswith(("l0s1", "l0s2", "l1s2", "l2s0_l3s0")) for name in module.fabric.edges)
    for numbers in (torch.rand(topology.size), torch.zeros(topology.size)):
        assert set(topology.hard(numbers.tolist())) <= set(topology.useful)


# -- sums --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("operations", [("conv3",), ("conv3", "skip")])
def test_the_scale_of_eight_nodes_is_that_of_one(operations: tuple[str, ...], norm: str) -> None:
    """Within 4; without the root it is 100 times as great where there are skips. He weights, all grades 1."""
    torch.manual_seed(0)
    module = GatedGraph(IMAGE, {"width.0": 16}, OUTPUTS, topology=Topology(nodes=8, operations=operations), norm=norm)
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight)
    module.topology.set(torch.ones(module.topology.topology.size))
    stds: list[Tensor] = []
    module.cells[0].register_forward_hook(lambda _, x, out: stds.extend((x[0].std(), out.std())))
    module(torch.randn(8, *IMAGE))
    assert 0.25 < stds[1] / stds[0] < 4


def test_a_sum_is_divided_by_the_root_of_how_many_terms_it_has_and_never_by_less_than_one() -> None:
    gate, x = HeldGate("topology", 5), torch.randn(3, dtype=torch.float64)
    evened = Evened(gate, (0, 2, 4))
    for m_U, divisor in (
        ([1.0, 9.0, 1.0, 9.0, 1.0], 3**0.5),
        ([0.5, 0.0, 0.7, 0.0, 0.9], 2.1**0.5),
        ([1.0, 9.0, 0.0, 9.0, 0.0], 1.0),
        ([0.1, 0.0, 0.2, 0.0, 0.0], 1.0),
    ):
        gate.m = torch.tensor(m_U, dtype=torch.float64)
        torch.testing.assert_close(evened(x), x / divisor, rtol=1e-14, atol=0)


# -- operations --------------------------------------------------------------------------------------------------------


def test_what_an_operation_is_made_of() -> None:
    make = Operations(images=True, norm="batch", activation="relu")
    one, other = WidthGate("width.0", 4, dim=1), WidthGate("width.1", 6, dim=1)

    def parts(kind: str, writes: WidthGate) -> list[str]:
        return [name for name, _ in make.operation(kind, one, writes).named_children()]

    mixed = ["gate", "conv", "norm"]
    assert parts("linear", one) == mixed
    assert parts("conv3", one) == ["activation", *mixed]
    assert parts("separable", one) == ["activation", "depthwise", *mixed]
    assert [parts("max_pool", one), parts("avg_pool", one), parts("skip", one)] == [["pool"], ["pool"], []]
    assert [parts("max_pool", other), parts("skip", other)] == [["pool", *mixed], mixed]
    rows = Operations(images=False, norm="none", activation="relu").operation("linear", one, other)
    assert [name for name, _ in rows.named_children()] == ["activation", "gate", "linear"]
    assert rows.linear.bias is not None


def test_operations_that_need_an_image_are_named_for_rows() -> None:
    assert operation_faults("operations", OPERATIONS, images=True) == []
    assert operation_faults("operations", ("linear", "skip", "zero"), images=False) == []
    faults = operation_faults("operations", OPERATIONS, images=False)
    assert [fault.split("got ")[1].split(",")[0] for fault in faults] == [
        repr(operation) for operation in OPERATIONS if operation not in ("linear", "skip", "zero")
    ]
    assert faults[0] == (
        "operations: must be among linear, skip, zero for rows of numbers, but got 'conv1', which slides over an "
        "image; drop it, or use 'linear'."
    )


def test_there_is_a_width_for_each_cell() -> None:
    with pytest.raises(ValueError, match=r"must have 2 widths, one for each cell or scale, but got \['width\.0'\]"):
        GatedGraph(IMAGE, {"width.0": 4}, OUTPUTS, topology=Topology(), cells=2)


# -- one gate for several layers ---------------------------------------------------------------------------------------


class Shared(nn.Module):
    """Two layers whose channels never meet, under one gate."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(7, 6), nn.Linear(6, 6), nn.Linear(6, OUTPUTS)
        self.gate = WidthGate("width", 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.gate(torch.tanh(self.a(x)))
        out: Tensor = self.c(self.gate(torch.tanh(self.b(h))))
        return out


def test_layers_that_one_gate_gates_one_by_one_share_their_width() -> None:
    torch.manual_seed(0)
    module, x = Shared().double(), torch.randn(BATCH, *ROW, dtype=torch.float64)
    flow = Flow(module, x)
    assert flow.faults == []
    assert list(flow.groups) == ["width"]
    for n in (1, 4, 6):
        module.gate.set(n)
        plain = materialise(flow, {"width": n})
        torch.testing.assert_close(plain(x), module(x), rtol=1e-13, atol=1e-14)
        assert (plain.b.in_features, plain.b.out_features) == (n, n)
        sizes = {"width": n}
        assert costs_of(flow).parameters(sizes) == sum(p.numel() for p in plain.parameters())
        with FlopCounterMode(display=False) as counter:
            plain(x)
        assert costs_of(flow).flops(sizes) * BATCH == counter.get_total_flops()
        assert costs_of(flow).activation_bytes(sizes) == bytes_written(plain, x)
    assert not any(isinstance(child, Gate) for child in plain.modules())


def test_a_gate_of_layers_of_two_sizes_is_refused() -> None:
    module = Shared()
    module.b, module.c = nn.Linear(6, 5), nn.Linear(5, OUTPUTS)
    (fault,) = Flow(module, torch.zeros(2, *ROW)).faults
    assert "as many units as the layer it follows (5 in `b`), but got maximum=6; set it to 5." in fault
