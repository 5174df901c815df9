"""The multi-layer perceptron as modules: relaxed (gated, of maximum size) and plain (of whole sizes).

>>> relaxed = GatedMLP(64, (128, 128), 10)
>>> gates_of(relaxed)["width.0"].n.data.fill_(17)
>>> materialise(relaxed)          # Sequential: 64 -> 17 -> 128 -> 10
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
    """Linear layers of maximum size, each hidden one followed by its activation and its gate `width.i`."""

    def __init__(
        self,
        inputs: int,
        maxima: Sequence[int],
        outputs: int,
        *,
        activation: str = "relu",
        membership: str = "interval",
        tau: float = 0.3,
    ) -> None:
        super().__init__()
        widths = [inputs, *maxima, outputs]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.activation = ACTIVATION_MODULES[activation]()
        self.gates = nn.ModuleList(
            WidthGate(f"width.{i}", maximum, membership=membership, tau=tau) for i, maximum in enumerate(maxima)
        )

    def forward(self, x_BD: Tensor) -> Tensor:
        h = x_BD
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


def materialise(network: GatedMLP) -> nn.Sequential:
    """The plain network at the gates' sizes rounded to whole ones (halves up): units pruned, nothing left of the gates.

    Equal to the relaxed network where every size is whole and its membership is the interval's.
    """
    linears = [layer for layer in network.linears if isinstance(layer, nn.Linear)]
    gates = [gate for gate in network.gates if isinstance(gate, WidthGate)]
    kept = [
        linears[0].in_features,
        *(min(int(float(gate.n.detach()) + 0.5), gate.maximum) for gate in gates),
        linears[-1].out_features,
    ]
    weights = [layer.weight[:b, :a] for layer, (a, b) in zip(linears, pairwise(kept), strict=True)]
    biases = [layer.bias[:b] for layer, b in zip(linears, kept[1:], strict=True)]
    name = next(key for key, make in ACTIVATION_MODULES.items() if type(network.activation) is make)
    return plain_mlp(weights, biases, name)
