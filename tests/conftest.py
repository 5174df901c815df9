"""What every test shares: one thread, fixed seeds, derandomised properties, a fresh store, and a small spec."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

from trials.store import Store

torch.set_num_threads(1)
hypothesis.settings.register_profile("continua", deadline=None, derandomize=True, database=None, print_blob=False)
hypothesis.settings.load_profile("continua")

WIDTH = {"type": "width", "low": 2, "high": 24}
DIGITS: dict[str, Any] = {
    "name": "digits",
    "task": "uci/digits",
    "network": {"kind": "mlp", "layers": 2},
    "space": {
        "width.0": WIDTH,
        "width.1": WIDTH,
        "lr": {"type": "float", "low": 1e-2, "high": 0.5, "log": True},
        "batch_size": {"type": "choice", "options": [32, 64]},
    },
    "training": {"optimizer": "sgd", "momentum": 0.5, "epochs": 2},
    "search": {"sampler": "random", "batch": 8},
    "budget": {"trials": 24},
    "resources": {"workers": 2, "lanes": 4},
    "seed": 3,
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def digits_spec() -> Callable[..., dict[str, Any]]:
    """A search of seconds over digits; sections given replace those of the base, a None drops one."""

    def spec(**sections: Any) -> dict[str, Any]:
        data = {**copy.deepcopy(DIGITS), **sections}
        return {key: value for key, value in data.items() if value is not None}

    return spec
