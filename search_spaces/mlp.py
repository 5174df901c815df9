"""The multi-layer perceptron as modules: relaxed (gated, of maximum size) and plain (of whole sizes).

>>> relaxed = GatedMLP(64, (128, 128), 10)
>>> gates_of(relaxed)["width.0"].set(17)
>>> plain(relaxed, torch.zeros(1, 64))          # search_spaces.materialise: 64 -> 17 -> 128 -> 10
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from search_spaces.width import WidthGate

ACTIVATION_MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


class GatedMLP(nn.Module):
    """Linear layers of maximum size, each hidden one followed by its activation and its gate `width.i`. An input of
    more axes than [B, D] is flattened."""

    def __init__(
        self,
        inputs: int,
        maxima: Sequence[int],
        outputs: int,
        *,
        activation: str = "relu",
        membership: str = "interval",
        tau: float | None = None,
    ) -> None:
        super().__init__()
        widths = [inputs, *maxima, outputs]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.activation = ACTIVATION_MODULES[activation]()
        self.gates = nn.ModuleList(
            WidthGate(f"width.{i}", maximum, membership=membership, tau=tau) for i, maximum in enumerate(maxima)
        )

    def forward(self, x_BD: Tensor) -> Tensor:
        h = x_BD.flatten(1)
        for linear, gate in zip(self.linears[:-1], self.gates, strict=True):
            h = gate(self.activation(linear(h)))
        out: Tensor = self.linears[-1](h)
        return out


def plain_mlp(weights: Sequence[Tensor], biases: Sequence[Tensor], activation: str = "relu") -> nn.Sequential:
    """A plain network from its matrices [out, in] and biases [out], layer by layer."""
    layers: list[nn.Module] = []
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        layers += [linear, ACTIVATION_MODULES[activation]()] if i + 1 < len(weights) else [linear]
    return nn.Sequential(*layers)
