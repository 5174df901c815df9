"""A trial trained once more gives the network that was measured: its plain form has the rounded value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from search_spaces import Space
from search_spaces.networks import MLP, Cell, ConvNet, Fabric, Graphon, Network, Residual
from search_spaces.width import Gate
from trials.batches import Rows
from trials.hypergradients import Method
from trials.metrics import measure
from trials.plan import Plan
from trials.records import Bundle, Outcome, Trial
from trials.reproduce import reproduce
from trials.tasks import load
from trials.train import Trainer
from trials.training import Training

ARMS: dict[str, dict[str, Any]] = {
    "rounded": {},
    "fractional": {"realise": "fractional"},
    "moved": {"method": Method(kind="bilevel", warmup=2, every=2)},
    "padded": {"way": "unfolded"},
    "padded and moved": {"way": "grouped", "method": Method(kind="descent", warmup=2, every=2)},
}
NETWORKS: dict[str, Network] = {
    "mlp": MLP(layers=2),
    "mlp under ntk": MLP(layers=2, parametrisation="ntk"),
    "mlp of support": MLP(layers=2, membership="support_nodes"),
    "convnet": ConvNet(layers=2),
    "convnet under ntk": ConvNet(layers=2, parametrisation="ntk"),
    "convnet of nested": ConvNet(layers=2, membership="nested"),
    "convnet of concrete": ConvNet(layers=2, membership="concrete"),
    "residual under mup": Residual(stages=1, blocks=1, parametrisation="mup"),
    "strides": ConvNet(layers=2, norm="batch"),
    "strides and depth": Residual(stages=2, blocks=2, stride="resize"),
    "cell": Cell(cells=2),
    "graphon": Graphon(),
    "fabric": Fabric(),
}
GRAPH = {"type": "topology", "operations": ["conv3", "avg_pool", "skip"]}
#: what the space has beside widths
FURTHER: dict[str, dict[str, Any]] = {
    "strides": {f"stride.{i}": {"type": "stride", "low": 1, "high": 3} for i in range(2)},
    "strides and depth": {
        "stride.1": {"type": "stride", "low": 1, "high": 3},
        "depth.0": {"type": "depth", "low": 0, "high": 2},
        "depth.1": {"type": "depth", "low": 0, "high": 2},
    },
    "cell": {"topology": {**GRAPH, "kind": "free", "nodes": 2}},
    "graphon": {"topology": {**GRAPH, "kind": "graphon", "nodes": 2, "coefficients": 3}},
    "fabric": {"topology": {**GRAPH, "kind": "fabric", "layers": 2, "scales": 2}},
}


def point_of(space: Space, i: int) -> dict[str, float]:
    """A point between whole ones; strides round alike, so that lanes may share a bundle."""
    at = {"width": (3.3, 2.4, 0.3), "stride": (1.6, 0.2, 0.3), "depth": (0.6, 0.4, 0.3), "topology": (0.3, 0.1, 0.07)}
    found = {}
    for g, name in enumerate(space.coordinates):
        start, lane, gate = at[name.split(".")[0]]
        among = g if name.startswith("width") else int(name.split(".")[1])
        found[name] = start + lane * i + gate * among
        if name.startswith("topology"):
            found[name] %= 1.0
    return found


#: what both tiers have; padded lanes of graphs take seconds to trace
QUICK = [(name, arm) for name in NETWORKS for arm in ARMS if "padded" not in arm or name not in ("graphon", "fabric")]
SLOW = [(name, arm) for name in NETWORKS for arm in ARMS if (name, arm) not in QUICK]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arm"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.long) for case in SLOW)])
def test_the_network_taken_is_the_one_measured(name: str, arm: str) -> None:
    network, facts = NETWORKS[name], ARMS[arm]
    moved = {"moved_by": "gradient"} if "method" in facts else {}
    width = {"type": "width", "low": 2, "high": 12, **moved}
    further = {key: {**value, **moved} for key, value in FURTHER.get(name, {}).items()}
    network = network if "topology" not in further else network.within(Space.from_dict(further))
    space = Space.from_dict({**dict.fromkeys(network.widths, width), **further})
    plan = Plan(
        space=space,
        task=replace(load("uci/digits"), shape=(1, 8, 8)),
        network=network,
        training=Training(epochs=1, batch_size=256),
        metric="val_loss",
        **facts,
    )
    trials = [Trial(search_id="s", number=i, point=point_of(space, i)) for i in range(3)]
    bundle = Bundle(search_id="s", id="b", generation=0, trials=tuple(trials))
    stored = [record for record in Trainer(plan).train(bundle) if isinstance(record, Outcome)]
    assert [outcome.error for outcome in stored] == [None] * 3
    again = reproduce(plan, trials[1])
    assert again.outcome.metrics["rounded_value"] == pytest.approx(stored[1].metrics["rounded_value"], rel=1e-4)
    rows = Rows.of(plan.task, "selection", dense=False, device=torch.device("cpu"))  # type: ignore[arg-type]
    with torch.no_grad():
        logits = again.network(rows.x).mT.unsqueeze(0)
    value = float(measure("classification", logits, rows.y_R)["val_loss"])
    assert value == pytest.approx(again.outcome.metrics["rounded_value"], rel=1e-4)
    assert sum(p.numel() for p in again.network.parameters()) == again.outcome.metrics["parameters"]
    assert not any(isinstance(module, Gate) for module in again.network.modules())
    assert type(again.network).__module__.startswith("torch.fx") or isinstance(again.network, nn.Sequential)
