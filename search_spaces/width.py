"""A layer's width as a real number: a gate that multiplies each unit by its membership.

    >>> net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), WidthGate("width.0", 128), nn.Linear(128, 10))

h = m(n) (.) phi(W x + b): the tensor keeps the shape of the maximum size whatever n is, so networks of different widths
train as one batched program.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search_spaces.membership import grades


class WidthGate(nn.Module):
    """Gates the units along `dim` of its input by a membership of real size `n`, an ordinary scalar parameter.

    Args:
        name: the width's name in the space.
        maximum: the number of units N of the layer it follows.
        membership: `interval` or `band`.
        dim: the axis of the units: -1 after a linear layer, 1 for channels.
    """

    def __init__(
        self, name: str, maximum: int, *, membership: str = "interval", tau: float = 0.3, dim: int = -1
    ) -> None:
        super().__init__()
        self.name, self.maximum, self.membership, self.tau, self.dim = name, maximum, membership, tau, dim
        self.n = nn.Parameter(torch.tensor(float(maximum)))

    def grades(self) -> Tensor:
        """The membership grades, shape [N]."""
        return grades(self.membership, self.n, self.maximum, self.tau)

    def forward(self, x: Tensor) -> Tensor:
        m_N = self.grades()
        trailing = x.dim() - 1 - (self.dim % x.dim())
        return x * m_N.reshape(m_N.shape + (1,) * trailing)

    def extra_repr(self) -> str:
        return f"{self.name!r}, maximum={self.maximum}, membership={self.membership}"


def gates_of(module: nn.Module) -> dict[str, WidthGate]:
    """The gates of a module by their names in the space. Raises ValueError when two gates share a name."""
    gates: dict[str, WidthGate] = {}
    for child in module.modules():
        if isinstance(child, WidthGate):
            if child.name in gates:
                raise ValueError(f"two gates are called {child.name!r}; each needs a name of its own")
            gates[child.name] = child
    return gates
