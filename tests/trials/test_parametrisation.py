"""Parametrisations: the arithmetic by hand, the same in every program of lanes, and the coordinate check."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.coordinates import change, exponent
from search_spaces.network import PARAMETRISATIONS
from search_spaces.networks import Residual
from search_spaces.parametrisation import REFERENCE, scaling
from search_spaces.realise import realise
from trials.batches import Rows
from trials.lanes.dense import DenseLanes, DenseShape
from trials.lanes.initial import Start
from trials.optimisers import Rule
from trials.tasks import load

WIDTHS = (16, 64, 256)


def test_every_kind_is_he_at_the_reference_but_for_what_it_is_about() -> None:
    hidden = {"fan_in": 64.0, "base_in": 64.0, "fan_out": 64.0, "base_out": 64.0, "reads": True, "writes": True}
    for optimizer in ("sgd", "adam"):
        for kind in PARAMETRISATIONS:
            found = scaling(kind, optimizer, **hidden)  # type: ignore[arg-type]
            assert (found.std, found.weight_lr, found.bias_lr) == (math.sqrt(2 / 64), 1.0, 1.0)


@pytest.mark.parametrize("width", [16, 256])
def test_mup_is_table_3(width: int) -> None:
    """Tensor Programs V, relative to the reference: what the table multiplies learning rates by, layer by layer."""
    r = width / REFERENCE
    sized = {"fan_in": float(width), "base_in": float(REFERENCE)}
    outwards = {"fan_out": float(width), "base_out": float(REFERENCE)}
    first = {"fan_in": 10.0, "base_in": 10.0, **outwards, "reads": False, "writes": True}
    middle = {**sized, **outwards, "reads": True, "writes": True}
    last = {**sized, "reads": True, "writes": False}
    rates = [
        [scaling("mup", optimizer, **layer).weight_lr for layer in (first, middle, last)]  # type: ignore[arg-type]
        for optimizer in ("sgd", "adam")
    ]
    assert rates == [pytest.approx([r, 1.0, 1 / r]), pytest.approx([1.0, 1 / r, 1 / r])]
    assert scaling("mup", "sgd", **last).std == 0.0  # type: ignore[arg-type]
    assert scaling("mup", "sgd", **first).bias_lr == pytest.approx(r)  # type: ignore[arg-type]


def test_dense_lanes_set_the_rates_that_the_arithmetic_says() -> None:
    lanes = DenseLanes(DenseShape(inputs=10, outputs=3, parametrisation="mup"), [(16, 256)], 8)
    lanes.initialise([(0, 0, 0)])
    lanes.attach(Rule(uses=frozenset({"lr"})), {"lr": torch.tensor([0.5])})
    first, middle, last = lanes.matrices(0, lanes.optimiser.hyper["lr"])
    assert first[:, 1:].unique().tolist() == [0.5 * 16 / 64]
    assert middle[:, 1:].unique().tolist() == [0.5]
    assert middle[:, 0].unique().tolist() == [0.5 * 256 / 64]
    assert last[:, 1:].unique().tolist() == [0.5 * 64 / 256]


def test_other_networks_follow_the_same_arithmetic() -> None:
    built = realise(Residual(stages=1, blocks=1, width=32, norm="none"), (5,), 3)
    assert built.flow is not None
    start = Start(flow=built.flow, gates=("width.0", "width.0.0"), parametrisation="mup")
    rates = start.rates({"width.0": 16.0, "width.0.0": 32.0})
    assert rates["stem.weight"] == rates["stem.bias"] == 16 / 64
    assert rates["blocks.0.first.weight"] == 1.0
    assert rates["blocks.0.first.bias"] == 32 / 64
    assert rates["head.weight"] == 64 / 16
    assert rates["head.bias"] == 1.0


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@torch.no_grad()
def test_the_coordinate_check(optimizer: str) -> None:
    """The change of the logits in the first steps: nearly the same at every width under mup, more with width under
    sp."""
    rows = Rows.of(load("uci/digits"), "train", "outer", dense=True, device=torch.device("cpu"))
    found = {
        kind: exponent(WIDTHS, [change(kind, optimizer, width, rows, 4, 512) for width in WIDTHS])
        for kind in ("sp", "mup")
    }
    assert abs(found["mup"]) < 0.2
    assert found["sp"] > 0.2
    assert abs(found["mup"]) < found["sp"]
