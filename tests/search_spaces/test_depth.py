"""Depth as a real number: its derivative by hand, whole depths against networks written by hand, what is dropped, and
what a depth costs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from real_counts import flops_of, parameters_of, written_by
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from search_spaces.blocks import Passing
from search_spaces.flow import Flow
from search_spaces.flow_costs import costs_of
from search_spaces.kept import kept_units, sizes_of
from search_spaces.materialise import materialise, narrowed
from search_spaces.stride import Stride, StrideGate
from search_spaces.width import DepthGate, HeldGate, gates_of

BLOCKS, OUTPUTS = 4, 3
X = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Block(nn.Module):
    """h + scale (.) conv2(act(norm(conv1(h)))), with a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.conv2, self.scale = nn.Conv2d(5, 4, 1), nn.Parameter(0.5 + torch.rand(4, 1, 1))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.scale * self.conv2(functional.silu(self.norm(self.conv1(h))))


class Net(nn.Module):
    """A stem, blocks and a head; each block with a bare parameter of the network itself. `depth`: so many, written by
    hand, or None: as many as a gate says."""

    def __init__(self, depth: int | None = None, membership: str = "interval", stride: bool = False) -> None:
        super().__init__()
        count = BLOCKS if depth is None else depth
        self.stem, self.blocks = nn.Conv2d(2, 4, 3, padding=1), nn.ModuleList(Block() for _ in range(count))
        self.shifts = nn.ParameterList(nn.Parameter(0.1 * torch.randn(1, 4, 1, 1)) for _ in range(count))
        self.head = nn.Linear(4, OUTPUTS)
        self.stride = Stride("s") if stride else nn.Identity()
        self.passing: nn.ModuleList | None = None
        if depth is None:
            gate = DepthGate("depth", BLOCKS, membership=membership)
            self.passing = nn.ModuleList(Passing(gate, i) for i in range(BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stride(self.stem(x))
        for i, (block, shift) in enumerate(zip(self.blocks, self.shifts, strict=True)):
            out = block(h) + shift
            h = out if self.passing is None else self.passing[i](h, out)
        scores: Tensor = self.head(h.mean((2, 3)))
        return scores


def flow_of(**options: Any) -> Flow:
    torch.manual_seed(0)
    return Flow(Net(**options).double(), X)


def at(flow: Flow, depth: float, s: float = 1.0) -> fx.GraphModule:
    relaxed = copy.deepcopy(flow.graph)
    for gate in gates_of(relaxed).values():
        gate.set(s if isinstance(gate, StrideGate) else depth)  # type: ignore[operator]
    return relaxed


def loss_of(out: Tensor) -> Tensor:
    return functional.cross_entropy(out, torch.arange(len(out)) % OUTPUTS)


def same(a: Tensor | None, b: Tensor | None) -> None:
    assert a is not None
    assert b is not None
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


# -- the derivative ----------------------------------------------------------------------------------------------------


def by_hand(net: Any, grades: Sequence[float]) -> tuple[Tensor, list[float]]:
    """The loss, and <dL/dh_{l+1}, f_l(h_l)> for each block, f_l(h) = block_l(h) - h."""
    h, states, updates = net.stem(X), [], []
    for block, shift, m in zip(net.blocks, net.shifts, grades, strict=True):
        update = block(h) + shift - h
        h = h + m * update
        states.append(h)
        updates.append(update)
    loss = loss_of(net.head(h.mean((2, 3))))
    pulls = torch.autograd.grad(loss, states)
    return loss, [float((pull * update).sum().detach()) for pull, update in zip(pulls, updates, strict=True)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("depth", [0.4, 1.7, 2.05, 3.9])
def test_the_derivative_by_depth_is_what_the_boundary_block_adds(depth: float, training: bool) -> None:
    """dL/dd = <dL/dh_{l+1}, f_l(h_l)> for d in (l, l + 1), and of finite differences (2e-6, curved by 1e-10)."""
    flow = flow_of()
    relaxed, boundary = at(flow, depth).train(training), int(depth)
    loss = loss_of(relaxed(X))
    (slope,) = torch.autograd.grad(loss, gates_of(relaxed)["depth"].n)  # type: ignore[arg-type]
    torch.manual_seed(0)
    net = Net().double().train(training)
    want, pulls = by_hand(net, [min(max(depth - i, 0.0), 1.0) for i in range(BLOCKS)])
    same(loss, want)
    assert float(slope) == pytest.approx(pulls[boundary], rel=1e-10)
    around = [loss_of(at(flow, depth + h).train(training)(X)).item() for h in (1e-6, -1e-6)]
    assert float(slope) == pytest.approx((around[0] - around[1]) / 2e-6, rel=1e-6, abs=1e-9)


def test_a_band_of_blocks_moves_together() -> None:
    """dL/dd = sum_l <dL/dh_{l+1}, f_l(h_l)> dm_l/dd."""
    relaxed = at(flow_of(membership="band"), 2.3)
    gate: Any = gates_of(relaxed)["depth"]
    (slope,) = torch.autograd.grad(loss_of(relaxed(X)), gate.n)
    m = gate.grades()
    paces = [torch.autograd.grad(one, gate.n, retain_graph=True)[0].item() for one in m]
    torch.manual_seed(0)
    _, pulls = by_hand(Net().double(), m.detach().tolist())
    assert sum(abs(pace) > 0.01 for pace in paces) > 1  # not one boundary alone
    assert float(slope) == pytest.approx(sum(a * b for a, b in zip(pulls, paces, strict=True)), rel=1e-10)


def test_lanes_are_the_loop() -> None:
    """Of depths, whole ones among them, in evaluation mode."""
    relaxed = at(flow_of(), 1.0).eval()
    (path,) = (name for name, p in relaxed.named_parameters() if p.dim() == 0)

    def loss(n: Tensor) -> Tensor:
        return loss_of(functional_call(relaxed, {path: n}, (X,)))

    n_K = torch.tensor([0.0, 0.6, 1.0, 2.5, 4.0], dtype=torch.float64)
    slopes_K, losses_K = vmap(torch.func.grad_and_value(loss))(n_K)
    for n, slope, value in zip(n_K, slopes_K, losses_K, strict=True):
        n = n.clone().requires_grad_()
        out = loss(n)
        same(out, value)
        same(torch.autograd.grad(out, n)[0], slope)


# -- whole depths ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("membership", ["interval", "band"])
@pytest.mark.parametrize("depth", range(BLOCKS + 1))
def test_a_whole_depth_is_the_network_of_so_many_blocks(depth: int, membership: str) -> None:
    """Written by hand, with the same weights: outputs, gradients, statistics; of an interval the relaxed one, too."""
    flow = flow_of(membership=membership)
    plain, twin = materialise(flow, {"depth": depth}).train(), Net(depth).double()
    state = plain.state_dict(keep_vars=True)
    assert set(state) == set(twin.state_dict())  # nothing of a dropped block is left
    twin.load_state_dict(state)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules()) == depth
    assert not any(isinstance(m, Passing | DepthGate) for m in plain.modules())
    relaxed = at(flow, depth).train()
    modules = [plain, twin, *([relaxed] if membership == "interval" else [])]
    outs = [module(X) for module in modules]
    for out in outs:
        loss_of(out).backward()
        same(out, outs[1])
    for module in modules:
        for path, p in twin.named_parameters():
            same(module.get_parameter(path).grad, p.grad)
        for path, b in twin.named_buffers():
            same(module.get_buffer(path), b)
    if membership == "interval":
        for path, p in relaxed.named_parameters():
            assert path in state or p.dim() == 0 or p.grad is None or not p.grad.any(), path  # nothing reaches others


def test_a_real_depth_is_rounded_to_the_nearest() -> None:
    flow = flow_of()
    for depth, whole in ((0.0, 0), (0.49, 0), (0.5, 1), (2.5, 3), (3.4, 3), (4.0, 4)):
        assert sizes_of(at(flow, depth))["depth"] == whole


def test_blocks_may_share_their_weights() -> None:
    """One block over and over; it is gone when none is left."""

    class Again(nn.Module):
        def __init__(self, depth: int | None = None) -> None:
            super().__init__()
            self.stem, self.block, self.head = nn.Conv2d(2, 4, 1), Block(), nn.Linear(4, OUTPUTS)
            gate, self.depth = DepthGate("depth", BLOCKS), depth
            self.passing = nn.ModuleList(Passing(gate, i) for i in range(BLOCKS))

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            for i in range(BLOCKS if self.depth is None else self.depth):
                h = self.block(h) if self.depth is not None else self.passing[i](h, self.block(h))
            out: Tensor = self.head(h.mean((2, 3)))
            return out

    flow = Flow(Again().double().eval(), X)
    costs = costs_of(flow)
    for depth in range(BLOCKS + 1):
        plain, twin = materialise(flow, {"depth": depth}), Again(depth).double().eval()
        twin.load_state_dict({**twin.state_dict(), **plain.state_dict()})
        same(plain(X), twin(X))
        same(at(flow, depth)(X), twin(X))
        assert any("block" in path for path in plain.state_dict()) == (depth > 0)
        assert costs.parameters({"depth": depth}) == parameters_of(plain)
        assert costs.flops({"depth": depth}) * len(X) == flops_of(plain, X)[0]


# -- what is laid out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
def test_narrowed_has_the_blocks_that_are_kept_with_their_grades(count: int) -> None:
    flow, depth = flow_of(), count - 0.6
    small, relaxed = narrowed(flow, kept_units(flow, {"depth": count})), at(flow, depth)
    paths = set(small.state_dict())
    assert {path for path in paths if "blocks" in path or "shifts" in path} == {
        path for path in relaxed.state_dict() for i in range(count) if f"blocks.{i}." in path or path == f"shifts.{i}"
    }
    gate = gates_of(small)["depth"]
    assert isinstance(gate, HeldGate)
    assert gate.maximum == count
    gate.m = gates_of(relaxed)["depth"].grades()[:count].detach()
    same(small(X), relaxed(X))


def test_the_blocks_that_are_kept_need_not_be_the_first() -> None:
    """A membership may be surest of any; each block is still asked by its own grade."""
    flow = flow_of(membership="concrete")
    gate: Any = flow.gates["depth"]
    gate.log_alpha.data = torch.tensor([-0.3, 3.0, -4.0, 1.0], dtype=torch.float64)
    kept = kept_units(flow.__class__(flow.graph.eval(), X), {"depth": 2})
    assert kept["depth"].tolist() == [1, 3]
    small, held = narrowed(flow, kept), narrowed(flow, {"depth": torch.arange(BLOCKS)})
    for module, grades in ((small, [0.3, 0.8]), (held, [0.0, 0.3, 0.0, 0.8])):
        lone = gates_of(module)["depth"]
        assert isinstance(lone, HeldGate)
        lone.m = torch.tensor(grades, dtype=torch.float64)
    same(small(X), held(X))
    plain = materialise(flow, {"depth": 2})
    assert {path.split(".")[1] for path in plain.state_dict() if "blocks" in path} == {"1", "3"}
    twin = Net(2).double().eval()
    named = {"1": "0", "3": "1"}
    state = {
        ".".join([part if part not in named or i != 1 else named[part] for i, part in enumerate(path.split("."))]): t
        for path, t in plain.state_dict().items()
    }
    twin.load_state_dict(state)
    same(plain(X), twin(X))


# -- with strides ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("s", [1, 2, 3])
def test_depth_and_stride_are_whole_together(s: int) -> None:
    flow = flow_of(stride=True)
    assert not flow.faults
    costs = costs_of(flow)
    for depth in range(BLOCKS + 1):
        relaxed, plain = at(flow, depth, s).train(), materialise(flow, {"depth": depth, "s": s}).train()
        same(relaxed(X), plain(X))
        sizes = {"depth": depth, "s": s}
        assert costs.parameters(sizes) == parameters_of(plain)
        assert costs.flops(sizes) * len(X) == flops_of(plain, X)[0]


def test_a_stride_within_a_block_is_named() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.stride, self.passing = nn.Conv2d(2, 2, 1), Stride("s"), Passing(DepthGate("depth", 1), 0)

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x)
            return self.passing(h, self.stride(self.conv(h))).mean((2, 3))

    assert "it enters `passing`" in Flow(Inside().double(), X).faults[0]


# -- costs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", range(BLOCKS + 1))
def test_costs_are_real_counts_at_whole_depths(depth: int) -> None:
    flow = flow_of()
    costs, plain = costs_of(flow), materialise(flow, {"depth": depth})
    forward, both = flops_of(plain, X)
    sizes = {"depth": depth}
    assert costs.parameters(sizes) == parameters_of(plain)
    assert costs.flops(sizes) * len(X) == forward
    assert costs.training_flops(sizes) * len(X) == both
    assert costs.activation_bytes(sizes) == written_by(plain, X)


def test_each_block_costs_its_share() -> None:
    """Linear between whole depths; at one, the derivative is that of a falling depth, of one block alone."""
    costs = costs_of(flow_of())
    for cost in (costs.parameters, costs.flops, costs.training_flops, costs.activation_bytes):
        whole = [cost({"depth": d}) for d in range(BLOCKS + 1)]
        for d in (0.3, 1.0, 1.5, 2.0, 3.9, 4.0):
            n = torch.tensor(d, dtype=torch.float64, requires_grad=True)
            low = min(int(d), BLOCKS - 1)
            assert cost({"depth": n}).item() == pytest.approx(whole[low] + (d - low) * (whole[low + 1] - whole[low]))
            (slope,) = torch.autograd.grad(cost({"depth": n}), n)
            below = int(d) - (d == int(d))
            assert float(slope) == pytest.approx(whole[below + 1] - whole[below], rel=1e-12)
