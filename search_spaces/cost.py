"""What a network costs, as plain arithmetic on its real sizes: numbers give numbers, tensors give gradients.

FLOPs are 2 per multiply-add, without biases and elementwise work (the convention of torch's FlopCounterMode). At whole
sizes both figures equal a real count of the materialised network.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any


def mlp_parameters(inputs: int, sizes: Sequence[Any], outputs: int) -> Any:
    """Weights and biases of an MLP: sum over layers of (n_in + 1) n_out."""
    return sum((a + 1) * b for a, b in _pairs(inputs, sizes, outputs))


def mlp_flops(inputs: int, sizes: Sequence[Any], outputs: int) -> Any:
    """FLOPs of one example's forward pass: sum over layers of 2 n_in n_out."""
    return sum(2 * a * b for a, b in _pairs(inputs, sizes, outputs))


def mlp_training_flops(inputs: int, sizes: Sequence[Any], outputs: int) -> Any:
    """FLOPs of one example's training pass: forward, weight gradients, input gradients of all but the first layer."""
    (first_in, first_out), *_ = pairs = _pairs(inputs, sizes, outputs)
    return sum(6 * a * b for a, b in pairs) - 2 * first_in * first_out


def _pairs(inputs: int, sizes: Sequence[Any], outputs: int) -> list[tuple[Any, Any]]:
    widths = [inputs, *sizes, outputs]
    return list(pairwise(widths))
