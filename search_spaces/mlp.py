"""The multi-layer perceptron as modules: relaxed (gated, of maximum size) and plain (of whole sizes).

    >>> relaxed = GatedMLP(64, (128, 128), 10)
    >>> gates_of(relaxed)["width.0"].n.data.fill_(17)
    >>> materialise(relaxed)          # Sequential: 64 -> 17 -> 128 -> 10
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from search_spaces.width import WidthGate

ACTIVATION_MODULES: dict[str, Callable[[], nn.Module]] = {
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
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
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


def plain_mlp(
    weights: Sequence[Tensor], biases: Sequence[Tensor], activation: str = "relu"
) -> nn.Sequential:
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
    kept = [network.linears[0].in_features]
    kept += [min(int(float(gate.n) + 0.5), gate.maximum) for gate in network.gates]  # type: ignore[arg-type]
    kept.append(network.linears[-1].out_features)
    weights = [linear.weight[:b, :a] for linear, a, b in zip(network.linears, kept, kept[1:], strict=False)]
    biases = [linear.bias[:b] for linear, b in zip(network.linears, kept[1:], strict=True)]
    name = next(key for key, make in ACTIVATION_MODULES.items() if isinstance(network.activation, make))  # type: ignore[arg-type]
    return plain_mlp(weights, biases, name)
