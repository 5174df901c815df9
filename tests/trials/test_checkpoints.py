"""A training that is cut off goes on from any of its checkpoints bitwise as if nothing had happened: whole, in half,
alone, whatever its lanes are made of and whatever moves them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from search_spaces import Space
from search_spaces.networks import MLP, Cell, ConvNet, Fabric, Graphon, Network, Own, Residual
from search_spaces.realise import resolve
from search_spaces.width import WidthGate
from trials.fused import lane_rule
from trials.hypergradients import Method
from trials.lanes import saving
from trials.lanes.gated import DenseProgram
from trials.lanes.making import make
from trials.plan import Plan
from trials.records import Bundle, Checkpoint, Ending, Outcome, Report, Trial
from trials.resuming import picked
from trials.tasks import load
from trials.train import Trainer
from trials.training import Training

MOVED = {"moved_by": "gradient"}
WIDTH = {"type": "width", "low": 2, "high": 24}
RATE = {"type": "float", "low": 1e-3, "high": 1.0, "log": True}
SHARE = {"type": "float", "low": 0.01, "high": 0.9}
WIDTHS = [(3.3, 17.5), (10.2, 4.0), (6.6, 20.1), (21.4, 8.8)]


class Mine(nn.Module):
    """A module of one's own, whose layers draw."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Linear(12, outputs)
        self.gate, self.drop = WidthGate("mine", 12), nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.b(self.drop(self.gate(torch.relu(self.norm(self.a(x))))))
        return out


class Branching(Mine):
    """One that cannot be traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(x.shape[1] // 64):
            out = super().forward(x)
        return out


def own(kind: type[nn.Module]) -> Network:
    def made(shape: tuple[int, ...], outputs: int) -> nn.Module:
        return kind(outputs)

    return resolve(Own(reference=f"here:{kind.__name__}"), made, (64,), 10)


def dense(layers: int = 2, *, space: dict[str, Any] | None = None, **facts: Any) -> Plan:
    """A few steps of multi-layer perceptrons on small rows; what `facts` say of them otherwise."""
    network = facts.pop("network", None) or MLP(layers=layers, activation="silu")
    training = Training(**{"batch_size": 14, "epochs": 3, "momentum": 0.9, **facts.pop("training", {})})
    moved = MOVED if "method" in facts else {}
    own_space = {**{f"width.{i}": {**WIDTH, **moved} for i in range(layers)}, "lr": RATE, **(space or {})}
    told = {"space": Space.from_dict(own_space), "task": load("uci/iris"), "network": network, "metric": "val_loss"}
    return Plan(**{**told, "training": training, "evaluations": 3, **facts})


def maps(network: Network, way: str, space: dict[str, Any], **facts: Any) -> Plan:
    """A few steps of networks of another kind."""
    windows = "method" in facts and facts["method"].window > 0  # which want more steps
    own_training = {"batch_size": 400, "epochs": 3 if windows else 1, "momentum": 0.9, **facts.pop("training", {})}
    training = Training(**own_training)
    facts = {"evaluations": 2, "metric": "val_loss", **facts}
    task = load("uci/digits" if isinstance(network, Own) else "uci/digits-images")
    return Plan(
        space=Space.from_dict({**space, "lr": RATE}), task=task, network=network, way=way, training=training, **facts
    )


def moving(kind: str, **facts: Any) -> Method:
    return Method(**{"kind": kind, "every": 3, "warmup": 2, "lr": 0.2, **facts})


METHODS = {
    "descent": moving("descent", schedule="cosine", optimizer="sgd"),
    "bilevel": moving("bilevel", ends="reflect"),
    "second": moving("bilevel", order="second"),
    "unrolled": moving("unrolled", ends="sigmoid", clip=0.01),
    "kept": moving("unrolled", checkpoints=True),
    "truncated": moving("truncated", horizon=2),
    "forward": moving("forward"),
    "reversible": moving("reversible"),
    "neumann": moving("implicit", terms=3),
    "cg": moving("implicit", solver="cg", terms=3),
    "hypernet": moving("hypernet"),
}
SEES = ("second", "unrolled", "kept", "truncated", "forward", "reversible")


def by_method(name: str, **facts: Any) -> Plan:
    space = {"lr": {**RATE, **MOVED}} if name in SEES else {}
    return dense(space=space, method=METHODS[name], **facts)


def steps_of(low: float, high: float) -> dict[str, Any]:
    return {"type": "stride", "low": low, "high": high}


def cases() -> Iterator[tuple[str, Plan, bool]]:
    """Name, plan, and whether it is quick."""
    yield "dense", dense(), True
    adam = {"optimizer": "adamw", "weight_decay": 0.01}
    yield "dense adamw replicates", dense(training=adam, seeds=2), True
    layers = {"lr.1": RATE, "momentum.0": SHARE, "dropout": SHARE, "dropout.1": SHARE}
    yield "dense layer by layer dropout", dense(space=layers), True
    yield "dense feedback", dense(training={"learner": "feedback"}, method=moving("bilevel")), True
    yield (
        "dense mup schedules",
        dense(network=MLP(layers=2, parametrisation="mup"), schedules={"lr": ((0.0, 0.1), (0.3, 0.02), (0.8, 0.2))}),
        True,
    )
    yield "dense ntk", dense(network=MLP(layers=2, parametrisation="ntk")), False
    for name in METHODS:
        yield f"dense {name}", by_method(name), name in ("descent", "unrolled", "hypernet", "reversible")
        # an interval is laid out for as much as it needs, and anew on its way
        interval = MLP(layers=2, membership="interval", activation="tanh")
        yield f"dense interval {name}", by_method(name, network=interval), name in ("bilevel", "hypernet")
    for membership in ("nested", "fuzzy", "support", "concrete"):
        network = MLP(layers=2, membership=membership, tau=0.3, tau_end=0.05)
        yield f"dense annealed {membership}", by_method("bilevel", network=network), membership == "nested"
        yield f"dense annealed {membership} unrolled", by_method("unrolled", network=network), False
    bounds = {"bounds": {"parameters": 120.0}, "penalty": {"flops": 1e-6}}
    yield "dense bounds", by_method("bilevel", **bounds), True
    for growth in ("gradmax", "net2net", "scaled"):
        network = MLP(layers=2, membership="interval", growth=growth)
        yield f"dense growth {growth}", dense(network=network, method=moving("descent")), growth == "gradmax"
    momentum = {"momentum": {**SHARE, "moved_by": "gradient"}}
    yield (
        "dense rates alone",
        dense(
            space={"width.0": WIDTH, "width.1": WIDTH, **momentum},
            method=METHODS["second"],
            schedules={"lr": ((0.0, 0.1), (0.5, 0.02))},
        ),
        True,
    )
    wide = {"width.0": {"type": "width", "low": 2, "high": 12}}
    for way in ("per_lane", "grouped", "unfolded"):
        convnet = ConvNet(layers=2, width=8)
        yield f"convnet {way}", maps(convnet, way, wide), way != "grouped"
        moved = {"width.0": {**wide["width.0"], **MOVED}, "stride.0": {**steps_of(1.0, 2.5), **MOVED}}
        yield f"convnet {way} moved", maps(convnet, way, moved, method=moving("descent", every=1)), way == "per_lane"
        adam = {"optimizer": "adam"}
        yield (
            f"convnet {way} unrolled adam",
            maps(convnet, way, moved, method=moving("unrolled", every=2, warmup=1), training=adam),
            False,
        )
        growing = replace(convnet, membership="interval", growth="gradmax")
        yield (
            f"convnet {way} interval growth",
            maps(growing, way, moved, method=moving("descent", every=1), training=adam),
            way == "per_lane",
        )
        depth = {"depth.0": {"type": "depth", "low": 0, "high": 2, **MOVED}}
        residual = Residual(stages=1, blocks=2, width=4)
        yield f"residual {way}", maps(residual, way, depth, method=moving("descent", every=1)), way == "per_lane"
        yield f"residual {way} hypernet", maps(residual, way, depth, method=moving("hypernet", every=1)), False
        yield f"convnet {way} whole strides", maps(convnet, way, {**wide, "stride.0": steps_of(1.6, 2.4)}), False
        for name, graph, topology in (
            ("cell", Cell(width=3), {"nodes": 2}),
            ("graphon", Graphon(width=3), {"kind": "graphon", "nodes": 2}),
            ("fabric", Fabric(width=3), {"kind": "fabric", "layers": 2, "scales": 2}),
        ):
            edges = {"topology": {"type": "topology", "operations": ["conv1", "skip"], **topology, **MOVED}}
            pressed = moving("descent", every=1, entropy=0.1, sparsity=0.01)
            yield f"{name} {way}", maps(graph, way, edges, method=pressed), False
        still = {"topology": {"type": "topology", "operations": ["conv1", "skip"], "nodes": 2}}
        yield f"cell {way} still", maps(Cell(width=3), way, still), False

    mine = {"mine": {"type": "width", "low": 2, "high": 12}}
    moved = {"mine": {**mine["mine"], **MOVED}}
    yield "own", maps(own(Mine), "per_lane", mine), True
    for kind in (Mine, Branching):
        yield f"own {kind.__name__} moved", maps(own(kind), "per_lane", moved, method=moving("descent", every=1)), True
        through = moving("unrolled", every=1, warmup=1)
        yield f"own {kind.__name__} unrolled", maps(own(kind), "per_lane", moved, method=through), False


PLANS = {name: plan for name, plan, _ in cases()}
CASES = [pytest.param(name, marks=() if quick else pytest.mark.long) for name, _, quick in cases()]


def point_of(plan: Plan, number: int) -> dict[str, Any]:
    """A point of the plan's space for each number, whatever the space."""
    known = {"width.0": WIDTHS[number][0], "width.1": WIDTHS[number][1], "depth.0": (1.3, 0.4, 1.8, 1.0)[number]}
    known |= {
        "stride.0": (1.63, 2.3, 1.2, 1.9)[number],
        "lr": (0.1, 0.02, 0.05, 0.2)[number],
        "lr.1": 0.03,
        "mine": WIDTHS[number][0],
    }
    known |= {"momentum": (0.3, 0.5, 0.8, 0.6)[number], "momentum.0": 0.4, "dropout": 0.2, "dropout.1": 0.4}
    found = {}
    for i, (name, parameter) in enumerate(plan.space.coordinates.items()):
        value = known.get(name, 0.2 + 0.1 * ((i + 3 * number) % 7))
        found[name] = min(max(value, parameter.low), parameter.high)  # type: ignore[attr-defined]
    return found


def bundle_of(plan: Plan, numbers: Sequence[int], bundle_id: str = "b", **facts: Any) -> Bundle:
    trials = tuple(Trial(search_id="s", number=n, point=point_of(plan, n)) for n in numbers)
    return Bundle(search_id="s", id=bundle_id, generation=0, trials=trials, **facts)


def trained(plan: Plan, numbers: Sequence[int], **facts: Any) -> tuple[list[Any], list[Checkpoint]]:
    records = list(Trainer(plan).train(bundle_of(plan, numbers), **facts))
    kept = [record for record in records if isinstance(record, Checkpoint)]
    return [record for record in records if not isinstance(record, Checkpoint)], kept


TAPE = ("tape_bits",)  # of a bundle, not of a lane


def told(records: Sequence[Report | Outcome], numbers: Sequence[int], after: int = -1) -> dict[Any, Any]:
    """What records say of some trials, by trial and step, but for what depends on the clock or on the bundle."""
    ids = {f"s-t{number:06d}" for number in numbers}
    found: dict[Any, Any] = {}
    for record in records:
        if record.trial_id not in ids or (isinstance(record, Report) and record.step <= after):
            continue
        metrics = {name: value for name, value in record.metrics.items() if name not in TAPE}
        flops = (record.spent.flops, record.spent.executed_flops)
        if isinstance(record, Report):
            found[record.trial_id, record.step] = (metrics, dict(record.architecture), flops)
        else:
            assert record.ending is Ending.COMPLETE, record.error
            facts = (record.value, record.point, record.rounded, record.step)
            found[record.trial_id, "outcome"] = (metrics, facts, flops)
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_training_that_was_cut_off_ends_as_if_it_had_not_been(case: str) -> None:
    plan = PLANS[case]
    numbers = [0, 1, 2, 3]
    whole, none = trained(plan, numbers)
    again, kept = trained(plan, numbers, checkpoint_every=0.0)
    expected = told(whole, numbers)
    assert none == []
    assert told(again, numbers) == expected, "making checkpoints must change nothing"
    last = whole[-1].step
    assert [c.step for c in kept] == sorted({c.step for c in kept})
    assert kept[-1].step < last
    stops = sorted({0, len(kept) // 2, len(kept) - 1})
    for stop, chosen in zip(stops, ([0, 1, 2, 3], [2, 0], [3]), strict=False):
        start = picked(kept[stop], chosen)
        rest, _ = trained(plan, chosen, start=start)
        assert {r.step for r in rest if isinstance(r, Report)} == {
            r.step for r in whole if isinstance(r, Report) and r.step > start.step
        }
        assert told(rest, chosen) == told(whole, chosen, after=start.step)


# -- what a trainer promises -------------------------------------------------------------------------------------------


def test_a_lane_laid_out_anew_on_its_way_leaves_the_others_what_they_remember() -> None:
    """Else the plans of intervals above would show nothing: lanes grow there, each when it wants to."""
    plan = PLANS["dense interval hypernet"]
    _, kept = trained(plan, [0, 1, 2, 3], checkpoint_every=0.0)
    sizes = [c.tensors["program.sizes"] for c in kept]
    assert any(not torch.equal(a, b) and bool((a == b).all(1).any()) for a, b in pairwise(sizes))
    alone, _ = trained(plan, [1])
    together, _ = trained(plan, [0, 1, 2, 3])
    assert told(alone, [1]) == told(together, [1])


def test_a_trainer_takes_a_checkpoint_of_its_own_trials_alone() -> None:
    plan = dense()
    _, kept = trained(plan, [0, 1], checkpoint_every=0.0)
    for numbers in ([1, 0], [0], [0, 2]):
        with pytest.raises(ValueError, match="checkpoint of its own trials"):
            trained(plan, numbers, start=kept[3])


def test_checkpoints_come_when_their_time_has_come_and_only_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = dense()
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    _, kept = trained(plan, [0, 1], checkpoint_every=5.0)
    _, often = trained(plan, [0, 1], checkpoint_every=2.0)
    assert 2 <= len(kept) < len(often)
    assert trained(plan, [0, 1], checkpoint_every=1e9)[1] == []
    assert trained(plan, [0, 1])[1] == []


def test_what_was_spent_before_counts_and_time_begins_anew() -> None:
    plan = dense()
    whole, kept = trained(plan, [0, 1], checkpoint_every=0.0)
    tensors = {**kept[5].tensors, "run.device_seconds": torch.tensor([1000.0, 3000.0]).double()}
    tensors["run.started"] = torch.tensor([11.0, 22.0]).double()
    start = replace(kept[5], tensors=tensors)
    rest = [r for r in trained(plan, [0, 1], start=start)[0] if isinstance(r, Outcome)]
    assert [1000 < rest[0].spent.device_s < 1100, 3000 < rest[1].spent.device_s < 3100] == [True] * 2
    assert [r.started for r in rest] == [11.0, 22.0]
    assert [r.spent.flops for r in rest] == [r.spent.flops for r in whole if isinstance(r, Outcome)]
    trainer = Trainer(plan)
    late = list(trainer.train(bundle_of(plan, [0, 1], seconds=0.0), start=start))
    assert [(r.ending, r.step) for r in late if isinstance(r, Outcome)] == [(Ending.CANCELLED, start.step)] * 2
    in_time = list(trainer.train(bundle_of(plan, [0, 1], seconds=500.0), start=start))
    assert [r.ending for r in in_time if isinstance(r, Outcome)] == [Ending.COMPLETE] * 2


def test_one_that_fails_after_it_went_on_has_spent_what_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = dense(seeds=2)
    _, kept = trained(plan, [0, 1], checkpoint_every=0.0)

    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(DenseProgram, "step", fails)
    start = kept[4]
    outcomes, _ = trained(plan, [0, 1], start=start)
    flops = start.tensors["run.flops"].view(2, 2).sum(1).tolist()
    assert [(o.ending, o.spent.flops) for o in outcomes] == [(Ending.OOM, flops[0]), (Ending.OOM, flops[1])]
    assert flops[0] > 0


def test_plain_objectives_have_no_checkpoints() -> None:
    plan = Plan(space=Space.from_dict({"lr": RATE}), objective=lambda trial: 1.0, metric="value")
    records, kept = trained(plan, [0, 1], checkpoint_every=0.0)
    assert (len(records), kept) == (2, [])


def test_a_checkpoint_is_a_copy_that_later_steps_do_not_touch() -> None:
    plan = PLANS["dense unrolled"]
    records = Trainer(plan).train(bundle_of(plan, [0, 1]), checkpoint_every=0.0)
    first = next(record for record in records if isinstance(record, Checkpoint))
    before = {name: tensor.clone() for name, tensor in first.tensors.items()}
    assert len(list(records)) > 2
    assert all(torch.equal(first.tensors[name], tensor) for name, tensor in before.items())
    assert all(len(t) == 2 and t.is_contiguous() and not t.requires_grad for t in first.tensors.values())


def test_a_schedule_of_one_rate_leaves_another_where_a_gradient_has_moved_it() -> None:
    """At the step of a schedule no rate but its own begins anew."""
    plan = PLANS["dense rates alone"]
    _, kept = trained(plan, [0, 1], checkpoint_every=0.0)
    moved = [c.tensors["rates.momentum"] for c in kept]
    lr = [float(c.tensors["rates.lr"][0]) for c in kept]
    change = lr.index(0.02)
    assert 0 < change < len(kept)
    assert not torch.equal(moved[change - 1], moved[0]), "no move before the schedule's step"
    outer = [c.tensors["outer.n"] for c in kept]
    for rates_K, n_KM in zip(moved, outer, strict=True):
        assert torch.equal(rates_K, n_KM[:, -1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "case",
    [
        "dense interval bilevel",
        *(pytest.param(f"convnet {way} moved", marks=pytest.mark.long) for way in ("per_lane", "unfolded")),
    ],
)
def test_lanes_of_any_precision_are_put_beside_others(case: str, dtype: torch.dtype) -> None:
    plan, cpu = PLANS[case], torch.device("cpu")

    def fresh(numbers: Sequence[int]) -> tuple[Any, Any]:
        bundle = bundle_of(plan, numbers)
        rule, hyper = lane_rule(plan, plan.training, bundle.trials)
        points, who = [trial.point for trial in bundle.trials], [(0, n, 0) for n in numbers]
        return make(plan, points, who, rule, hyper, plan.training.batch_size, cpu, dtype)

    rows = Trainer(plan).rows("train")
    places = torch.arange(plan.training.batch_size)

    def step(program: Any) -> None:
        x, y_BO = rows.batch(places)
        program.step(x.to(dtype), y_BO.to(dtype))

    together, _ = fresh([0, 1, 2, 3])
    for _ in range(3):
        step(together)
    state = {name: value[[3, 1]] for name, value in saving.saved(together).items()}
    two, widths = fresh([3, 1])
    saving.begin(two, state, widths.members(), widths.sizes_KG)
    assert state["weights"].dtype is dtype
    for _ in range(2):
        step(together)
        step(two)
    after, want = saving.saved(two), saving.saved(together)
    for name, value in after.items():
        own = want[name][[3, 1]]
        own = own[:, : value.shape[1]] if own.dim() > 1 else own
        assert torch.equal(value[:, : own.shape[1]] if own.dim() > 1 else value, own), name
