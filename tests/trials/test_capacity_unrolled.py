"""The slope of C_k by reverse mode, against differences of what the fused lanes measure."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from search_spaces import Invalid
from search_spaces.networks import MLP
from trials.capacity.losses import objective
from trials.capacity.slopes import central_differences
from trials.capacity.unrolled import unrolled_slope
from trials.tasks import load
from trials.training import Training

POINT = {"width.0": 4.6, "width.1": 7.3}
RULES = {
    "sgd": Training(batch_size=16, lr=0.2),
    "momentum": Training(batch_size=16, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": Training(batch_size=16, lr=0.02, optimizer="adam"),
}


@pytest.mark.parametrize("k", [0, 1, 5])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("membership", ["interval", "band"])
def test_it_is_the_limit_of_differences(membership: str, rule: str, k: int) -> None:
    """Of the same initialisations and batches, in float64."""
    task, network = load("uci/iris"), MLP(layers=2, activation="tanh", membership=membership, width=12)
    found = unrolled_slope(network, task, POINT, k, 6, training=RULES[rule], dtype=torch.float64)
    loss = objective(network, task, k, 6, fractional=True, training=RULES[rule], dtype=torch.float64)
    differences = central_differences(loss, np.log(list(POINT.values())), step=1e-5)
    np.testing.assert_allclose(found.gradient_Z, differences.gradient_Z, rtol=2e-6, atol=1e-8)
    assert found.samples_NZ.shape == (6, 2)
    assert (found.error_Z > 0).all()


def test_other_parametrisations_are_refused() -> None:
    with pytest.raises(Invalid, match="must be sp, but got 'mup'; take differences"):
        unrolled_slope(MLP(layers=1, parametrisation="mup"), load("uci/iris"), {"width.0": 3.5}, 1, 2)
