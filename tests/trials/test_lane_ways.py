"""The ways of running lanes of any module agree with each other, and a plain lane with torch's own training loop.

Legend of shape suffixes: K lanes, N units of a gate, B batch, O outputs.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.continuous import make_continuous
from search_spaces.networks import MLP, ConvNet, Network, Own, Residual
from search_spaces.realise import Realised, realise, resolve
from trials.lanes.dense import DenseShape
from trials.lanes.gated import DenseProgram
from trials.lanes.initial import Start
from trials.lanes.looped import LoopedLanes
from trials.lanes.program import anew
from trials.lanes.vmapped import VmappedLanes
from trials.optimisers import Rule
from trials.training import WAYS
from trials.widths import GateKind, Widths

BATCH, OUTPUTS = 6, 3
CASES: dict[str, tuple[Network, tuple[int, ...]]] = {
    "convnet": (ConvNet(layers=2, width=8), (2, 6, 6)),
    "convnet without norm": (ConvNet(layers=2, width=8, norm="none", activation="tanh"), (2, 6, 6)),
    "residual": (Residual(stages=2, blocks=1, width=8), (2, 6, 6)),
    "residual of rows": (Residual(stages=1, blocks=2, width=8, activation="gelu"), (5,)),
}
RULES = {
    "sgd": Rule(uses=frozenset({"lr", "momentum"})),
    "adamw": Rule(kind="adamw", uses=frozenset({"lr", "beta1", "beta2", "weight_decay"})),
}


def hyper(lanes: int) -> dict[str, Tensor]:
    of = {"lr": [0.05, 0.02, 0.03], "momentum": [0.9, 0.5, 0.7], "weight_decay": [0.01, 0.1, 0.0]}
    of |= {"beta1": [0.9, 0.8, 0.7], "beta2": [0.99, 0.9, 0.95]}
    return {name: torch.tensor(values[:lanes], dtype=torch.float64) for name, values in of.items()}


def batch_of(shape: tuple[int, ...], seed: int, lanes: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = (lanes, BATCH, *shape) if lanes else (BATCH, *shape)
    x = torch.randn(rows, generator=generator, dtype=torch.float64)
    return x, functional.one_hot(torch.randint(OUTPUTS, (BATCH,), generator=generator), OUTPUTS).double()


class Mixed(nn.Module):
    """Widths side by side under one batch norm, and a norm across channels."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(2, 8, 1)
        self.norm, self.c = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3, padding=1)
        self.across, self.head = nn.LayerNorm(8), nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        both = functional.silu(self.norm(torch.cat([torch.tanh(self.a(x)), self.b(x)], 1)))
        out: Tensor = self.head(functional.gelu(self.across(self.c(both).mean((2, 3)))))
        return out


def mixed(shape: tuple[int, ...], outputs: int) -> nn.Module:
    return make_continuous(Mixed(outputs), example=(2, *shape))[0]


CASES["rows without norm"] = (Residual(stages=1, blocks=1, width=8, norm="none", activation="gelu"), (5,))
CASES["made continuous"] = (resolve(Own(reference="here:mixed"), mixed, (2, 6, 6), OUTPUTS), (2, 6, 6))


def built(case: str) -> tuple[Realised, Start, tuple[int, ...]]:
    network, shape = CASES[case]
    found = realise(network, shape, OUTPUTS)
    assert found.flow is not None
    return found, Start(flow=found.flow, gates=tuple(found.gates)), shape


def program(way: str, start: Start, gated: bool, growth: str = "fresh") -> LoopedLanes | VmappedLanes:
    if way == "per_lane":
        return LoopedLanes(start, gated=gated, growth=growth, dtype=torch.float64)
    return VmappedLanes(start, way=way, growth=growth, dtype=torch.float64)


def widths_of(found: Realised, membership: str, sizes: list[list[float]]) -> Widths:
    kinds = [
        GateKind(name=name, maximum=gate.maximum, membership=membership, scale=(1.0, float(gate.maximum), True))
        for name, gate in found.gates.items()
    ]
    return Widths(kinds, torch.tensor(sizes, dtype=torch.float64))


def journey(
    way: str, case: str, membership: str, rule: str, *, own: bool = False, growth: str = "fresh"
) -> list[Tensor]:
    """What a program answers on a way that narrows and widens its lanes."""
    found, start, shape = built(case)
    gates = len(found.gates)
    paths = [[[2.4, 3.7, 6.2][k % 3]] * gates for k in range(3)]
    widths = widths_of(found, membership, paths)
    lanes = program(way, start, True, growth)
    reach = [dict(zip(found.gates, lane, strict=True)) for lane in widths.reach()]
    live = [dict(zip(found.gates, lane, strict=True)) for lane in widths.sizes_KG.tolist()]
    lanes.begin([(0, k, 0) for k in range(3)], reach, live)
    lanes.attach(RULES[rule], hyper(3))
    answers = []
    for step in range(6):
        if step % 2 == 0:
            change = [0.0, 2.9, -1.6][step // 2]
            widths = widths_of(found, membership, [[n + change for n in lane] for lane in paths])
            batch = batch_of(shape, 50 + step)
            lanes.regate(widths.grades(), widths.reach(lanes.sizes), widths.sizes_KG, batch)
        x, y_BO = batch_of(shape, step, 3 if own else 0)
        answers.append(torch.cat(lanes.grade_gradients(x, y_BO), 1))
        lanes.step(x, y_BO)
        answers.append(lanes.predict(batch_of(shape, 100)[0]))
    return answers


@pytest.mark.slow
@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("membership", ["interval", "band"])
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("way", WAYS[1:])
def test_ways_agree_through_growth_and_shrinking(way: str, case: str, membership: str, rule: str) -> None:
    for got, want in zip(
        journey(way, case, membership, rule), journey("per_lane", case, membership, rule), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("way", WAYS[1:])
def test_ways_agree_when_each_lane_has_a_batch_of_its_own(way: str) -> None:
    found, want = (journey(w, "convnet", "band", "sgd", own=True) for w in (way, "per_lane"))
    for got, right in zip(found, want, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-8, atol=1e-9)


# -- against torch itself ----------------------------------------------------------------------------------------------


def whole_lanes(way: str, case: str, sizes: list[int], rule: str, dtype: torch.dtype = torch.float64) -> Any:
    """Lanes of whole sizes, the same at every gate."""
    found, start, _ = built(case)
    named = [dict.fromkeys(found.gates, n) for n in sizes]
    kind: Any = LoopedLanes if way == "per_lane" else VmappedLanes
    lanes = kind(start, dtype=dtype, **({} if way == "per_lane" else {"way": way}))
    lanes.begin([(0, k, 0) for k in range(len(sizes))], named)
    lanes.attach(RULES[rule], hyper(len(sizes)))
    if way != "per_lane":
        widths = Widths(
            [GateKind(name=name, maximum=gate.maximum) for name, gate in found.gates.items()],
            torch.tensor([[float(n)] * len(found.gates) for n in sizes]),
        )
        lanes.regate(widths.grades(), lanes.sizes, widths.sizes_KG)
    return lanes


def alone(case: str, sizes: list[int], rule: str) -> list[tuple[nn.Module, torch.optim.Optimizer]]:
    """As many really narrow networks of plain layers, each with torch's own optimiser."""
    lanes, values, found = whole_lanes("per_lane", case, sizes, rule), hyper(len(sizes)), []
    for k in range(len(sizes)):
        module = copy.deepcopy(lanes.module(k)).train()
        lr, decay = float(values["lr"][k]), float(values["weight_decay"][k])
        optimiser: torch.optim.Optimizer
        if rule == "sgd":
            optimiser = torch.optim.SGD(module.parameters(), lr=lr, momentum=float(values["momentum"][k]))
        else:
            betas = (float(values["beta1"][k]), float(values["beta2"][k]))
            optimiser = torch.optim.AdamW(module.parameters(), lr=lr, betas=betas, weight_decay=decay)
        found.append((module, optimiser))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("way", WAYS)
def test_lanes_equal_narrow_networks_in_torchs_own_loop(way: str, case: str, rule: str) -> None:
    """Batch norms included: statistics of the batch in training, running ones in prediction."""
    sizes, shape = [3, 8, 5], CASES[case][1]
    lanes, loops = whole_lanes(way, case, sizes, rule), alone(case, sizes, rule)
    for step in range(12):
        x, y_BO = batch_of(shape, step)
        lanes.step(x, y_BO)
        for module, optimiser in loops:
            optimiser.zero_grad()
            functional.cross_entropy(module(x), y_BO).backward()
            optimiser.step()
    x, _ = batch_of(shape, 77)
    for got, (module, _) in zip(lanes.predict(x), loops, strict=True):
        torch.testing.assert_close(got.mT, module.eval()(x), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("way", WAYS)
def test_fifty_adam_steps_in_single_precision_stay_within_its_rounding(way: str) -> None:
    """Lanes and torch's loop at the usual rate of 1e-3: weights equal to 5e-7."""
    sizes, lr = [3, 8, 5], 1e-3
    lanes = whole_lanes(way, "rows without norm", sizes, "adamw", torch.float32)
    rule = Rule(kind="adam", uses=frozenset({"lr", "beta1", "beta2"}))
    lanes.attach(rule, {"lr": torch.full((3,), lr), "beta1": torch.full((3,), 0.9), "beta2": torch.full((3,), 0.999)})
    if way != "per_lane":
        lanes.regate(*regated(sizes))
    loops = [module.float() for module, _ in alone("rows without norm", sizes, "adamw")]
    adams = [torch.optim.Adam(module.parameters(), lr=lr) for module in loops]
    for step in range(50):
        x, y_BO = batch_of((5,), step)
        lanes.step(x.float(), y_BO.float())
        for module, adam in zip(loops, adams, strict=True):
            adam.zero_grad()
            functional.cross_entropy(module(x.float()), y_BO.float()).backward()
            adam.step()
    for k, module in enumerate(loops):
        lane = dict(lanes.module(k).named_parameters())
        for path, wanted in module.named_parameters():
            got = lane[path][tuple(slice(0, n) for n in wanted.shape)]
            torch.testing.assert_close(got, wanted, rtol=0, atol=5e-7)


@pytest.mark.parametrize("way", WAYS)
def test_a_lane_does_not_depend_on_its_neighbours_not_even_on_one_that_is_lost(way: str) -> None:
    """Bitwise: in other company of the same shape class, and beside a lane that leaves the finite numbers."""
    found = []
    for sizes, spoilt in (([5, 8, 6], False), ([5, 8, 6], True), ([5, 8, 7], False)):
        lanes = whole_lanes(way, "convnet", sizes, "sgd", torch.float32)
        if spoilt:
            values = hyper(3)
            values["lr"][2] = 1e30
            lanes.attach(RULES["sgd"], values)
            if way != "per_lane":
                lanes.regate(*regated(sizes))
        for step in range(8):
            x, y_BO = batch_of((2, 6, 6), step)
            lanes.step(x.float(), y_BO.float())
        found.append(lanes.predict(batch_of((2, 6, 6), 9)[0].float()))
    assert not found[1][2].isfinite().all()
    for other in found[1:]:
        assert torch.equal(other[:2], found[0][:2])


def regated(sizes: list[int]) -> tuple[list[Tensor], list[tuple[int, ...]], Tensor]:
    n_KG = torch.tensor([[float(n)] * 2 for n in sizes])
    widths = Widths([GateKind(name=f"width.{g}", maximum=8) for g in range(2)], n_KG)
    return widths.grades(), [(8, 8)] * len(sizes), widths.sizes_KG


@pytest.mark.parametrize("way", ["dense", *WAYS])
def test_a_unit_that_begins_to_speak_takes_adams_first_step(way: str) -> None:
    """Its numbers move by the learning rate, as bias correction has it, however long its neighbours have trained."""
    lr, adam = 0.01, Rule(kind="adam", uses=frozenset({"lr", "beta1", "beta2"}))
    shape, sizes = ((5,), [[3.0, 8.0], [4.0, 8.0]])
    kinds = [GateKind(name=f"width.{g}", maximum=8, scale=(1.0, 8.0, True)) for g in range(2)]
    before, after = (Widths(kinds, torch.tensor([n], dtype=torch.float64)) for n in sizes)
    lanes: Any
    if way == "dense":
        lanes = DenseProgram(
            DenseShape(inputs=5, outputs=OUTPUTS, maxima=(8, 8)), BATCH, gated=True, dtype=torch.float64
        )
        lanes.begin([(0, 0, 0)], before.reach(), sizes[:1])
    else:
        network = Residual(stages=1, blocks=1, width=8, norm="none", activation="tanh")
        flow = realise(network, shape, OUTPUTS).flow
        assert flow is not None
        lanes = program(way, Start(flow=flow, gates=("width.0.0", "width.0")), gated=True)
        lanes.begin([(0, 0, 0)], [{"width.0.0": 8, "width.0": 8}], [{"width.0.0": 3.0, "width.0": 8.0}])
    hypers = {"lr": lr, "beta1": 0.9, "beta2": 0.999}
    lanes.attach(adam, {name: torch.tensor([value], dtype=torch.float64) for name, value in hypers.items()})
    lanes.regate(before.grades(), before.reach(lanes.sizes), before.sizes_KG)

    def weights() -> Tensor:
        module = lanes.module(0)
        path = "linears.0.weight" if way == "dense" else "blocks.0.first.weight"
        return module.get_parameter(path).detach()[3].clone()

    for step in range(30):
        x, y_BO = batch_of(shape, step)
        lanes.step(functional.pad(x, (1, 0), value=1.0) if way == "dense" else x, y_BO)
    lanes.regate(after.grades(), after.reach(lanes.sizes), after.sizes_KG)
    start = weights()
    x, y_BO = batch_of(shape, 99)
    lanes.step(functional.pad(x, (1, 0), value=1.0) if way == "dense" else x, y_BO)
    moved = (weights() - start).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, lr), rtol=1e-3, atol=0)


@pytest.mark.parametrize("way", WAYS)
def test_one_gate_may_outgrow_its_room_while_another_shrinks(way: str) -> None:
    found, start, shape = built("convnet")
    small, large = (widths_of(found, "interval", [sizes] * 2) for sizes in ([2.0, 7.0], [7.0, 2.0]))
    lanes = program(way, start, gated=True)
    names = list(found.gates)
    lanes.begin([(0, k, 0) for k in range(2)], [dict(zip(names, (2, 8), strict=True))] * 2)
    lanes.attach(RULES["adamw"], hyper(2))
    for widths in (small, large, small):
        lanes.regate(widths.grades(), [(int(n), int(m)) for n, m in widths.sizes_KG.tolist()], widths.sizes_KG)
        lanes.step(*batch_of(shape, 0))
    assert lanes.predict(batch_of(shape, 1)[0]).isfinite().all()


# -- growth ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("growth", ["zero", "scaled", "net2net", "gradmax"])
@pytest.mark.parametrize("case", ["convnet", "residual", "residual of rows"])
@pytest.mark.parametrize("way", WAYS[1:])
def test_growing_lanes_agree_in_every_way(way: str, case: str, growth: str) -> None:
    found, want = (journey(w, case, "interval", "sgd", growth=growth) for w in (way, "per_lane"))
    for got, right in zip(found, want, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-7, atol=1e-8)


GROWING: dict[str, tuple[Network, tuple[int, ...]]] = {
    **{name: CASES[name] for name in ("convnet", "residual", "residual of rows")},
    "rows without norm": (Residual(stages=1, blocks=1, width=8, norm="none", activation="tanh"), (5,)),
    "mlp": (MLP(layers=2, width=8, activation="tanh"), (5,)),
}


def grown_lane(
    case: str, way: str, growth: str, only: int | None = None
) -> tuple[Any, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """A trained lane of whole sizes 3, its outputs, and those after each gate (or only one) has grown to 5."""
    network, shape = GROWING[case]
    found = realise(network, shape, OUTPUTS)
    larger = [5.0 if only in (None, g) else 3.0 for g in range(len(found.gates))]
    widths, wider = (widths_of(found, "interval", [sizes]) for sizes in ([3.0] * len(larger), larger))
    if way == "dense":
        dense = DenseShape(inputs=5, outputs=OUTPUTS, activation="tanh", maxima=(8, 8))
        lanes: Any = DenseProgram(dense, BATCH, gated=True, growth=growth, dtype=torch.float64)
        lanes.begin([(0, 0, 0)], widths.reach(), [(3.0, 3.0)])
    else:
        assert found.flow is not None
        start = Start(flow=found.flow, gates=tuple(found.gates))
        options = {"gated": True} if way == "per_lane" else {"way": way}
        kind: Any = LoopedLanes if way == "per_lane" else VmappedLanes
        lanes = kind(start, growth=growth, dtype=torch.float64, **options)
        named = [dict.fromkeys(found.gates, n) for n in (8, 3.0)]
        lanes.begin([(0, 0, 0)], [named[0]], [named[1]])
    lanes.attach(RULES["sgd"], hyper(1))
    lanes.regate(widths.grades(), widths.reach(), widths.sizes_KG)

    def read(seed: int) -> tuple[Tensor, Tensor]:
        x, y_BO = batch_of(shape, seed)
        return (functional.pad(x, (1, 0), value=1.0) if way == "dense" else x), y_BO

    for step in range(4):
        lanes.step(*read(step))
    before = lanes.predict(read(9)[0]).clone()
    lanes.regate(wider.grades(), wider.reach(), wider.sizes_KG, read(4))
    return lanes, before, lanes.predict(read(9)[0]), read(4)


WAYS_OF = [(case, way) for case in GROWING for way in (("dense", "per_lane") if case == "mlp" else WAYS)]


@pytest.mark.parametrize(("case", "way"), WAYS_OF)
@pytest.mark.parametrize(("growth", "harm"), [("zero", 1e-12), ("net2net", 1e-12), ("gradmax", 0.05)])
def test_growth_that_keeps_the_function_does_so_in_every_way(case: str, way: str, growth: str, harm: float) -> None:
    """gradmax's units are off 0 by a thousandth of an initial weight, so that a relu lets a gradient through."""
    _, before, after, _ = grown_lane(case, way, growth)
    torch.testing.assert_close(after, before, rtol=harm, atol=harm)


@pytest.mark.parametrize(("case", "way"), WAYS_OF)
def test_fresh_growth_does_harm_and_scaled_growth_a_tenth_of_it_or_so(case: str, way: str) -> None:
    harm = {}
    for growth in ("fresh", "scaled"):
        _, before, after, _ = grown_lane(case, way, growth)
        harm[growth] = float((after - before).norm())
    assert 0 < harm["scaled"] < 0.3 * harm["fresh"]


@pytest.mark.parametrize("way", ["per_lane", "dense"])
def test_gradmax_has_the_steepest_gradient_of_all_directions(way: str) -> None:
    """|dL/d(incoming)| of the first new unit is c sigma_1, and no other outgoing vector of that length has more."""
    case, gate = ("mlp", 1) if way == "dense" else ("rows without norm", 1)
    lanes, _, _, (x, y_BO) = grown_lane(case, way, "gradmax", only=gate)
    module = lanes.module(0).double()
    x = x[:, 1:] if way == "dense" else x
    writer, reader = ("linears.1", "linears.2") if way == "dense" else ("blocks.0.first", "blocks.0.second")
    incoming, outgoing = module.get_submodule(writer).weight, module.get_submodule(reader).weight
    unit, others = 3, range(3, 5)

    def steepness(direction: Tensor) -> float:
        with torch.no_grad():
            incoming[others] = 0.0
            outgoing[:, others] = 0.0
            outgoing[:, unit] = direction
        loss = functional.cross_entropy(module(x), y_BO)
        wanted = [incoming, *([bias] if (bias := module.get_submodule(writer).bias) is not None else [])]
        gradients = torch.autograd.grad(loss, wanted)
        return float(torch.cat([g[unit].flatten() for g in gradients]).norm())

    chosen = outgoing[:, unit].detach().clone()
    generator = torch.Generator().manual_seed(gate)
    found = steepness(chosen)
    assert found > 1e-6
    for _ in range(50):
        other = torch.randn(len(chosen), generator=generator, dtype=torch.float64)
        assert steepness(other / other.norm() * chosen.norm()) <= found * (1 + 1e-9)


def test_calibration_leaves_frozen_and_unreached_norms_what_they_know() -> None:
    """As a network has them that keeps statistics of elsewhere; the others become torch's own averages."""

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.unused, self.live = (nn.BatchNorm1d(3) for _ in range(3))
            self.frozen.running_mean, self.unused.running_var = torch.full((3,), 3.0), torch.full((3,), 9.0)

        def train(self, mode: bool = True) -> Partly:
            super().train(mode)
            self.frozen.eval()
            return self

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.live(self.frozen(x))
            return out

    module, batches = (
        Partly().train(),
        [torch.randn(8, 3, generator=torch.Generator().manual_seed(k)) for k in range(3)],
    )
    with torch.no_grad(), anew(module):
        for x in batches:
            module(x)
    assert module.frozen.running_mean.tolist() == [3.0] * 3  # type: ignore[union-attr]
    assert module.unused.running_var.tolist() == [9.0] * 3  # type: ignore[union-attr]
    mean = torch.stack([module.frozen(x).mean(0) for x in batches]).mean(0)
    torch.testing.assert_close(module.live.running_mean, mean)
    assert [norm.momentum for norm in (module.frozen, module.unused, module.live)] == [0.1] * 3
