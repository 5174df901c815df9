"""The grades of a topology's units: differentiable, with a temperature, and the statistics one steers by.

    >>> grades(Topology(nodes=2), torch.tensor([0.0, 0.3, 1.0]), t=0.5)
    tensor([0.0000, 0.1552, 1.0000])

A unit is an edge with an operation on it (`Topology.units`). All but `hard_grades` take any leading axes and have no
control flow that depends on data, so they run under vmap. As t falls along `TEMPERATURE`, grades become 0 or 1; at
t = 1 a free or fabric unit's grade is its number.

Legend of shape suffixes: K lanes, P numbers, U units, E edges, O operations, C coefficients of one kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from search_spaces.width import Gate
from search_spaces.wiring import REACH, Topology, kernel_basis

TEMPERATURE = (1.0, 0.1)  # where annealing begins and ends


def grades(topology: Topology, numbers: Tensor, t: float) -> Tensor:
    """The units' grades at temperature 0.01 <= t <= 1 for numbers in [0, 1], [..., P] -> [..., U].

    Free and fabric: sigmoid(logit(w) / t). Graphon: w_o(u_i, u_j) = sigmoid(f_o(u_i, u_j) / t), f the sum of cosines of
    `wiring.kernel_basis`. Units of `zero` have grade 0.
    """
    operations = topology.operations
    if topology.kind == "graphon":
        f_OC = 2 * REACH * (_rows(numbers, topology.coefficients) - 0.5)
        own_EO = torch.sigmoid(f_OC @ _basis(topology, numbers) / t).transpose(-1, -2)
    else:
        own_EO = _rows(sharpened(numbers, t), len(operations))
    columns = [
        torch.zeros_like(own_EO[..., o]) if operation == "zero" else own_EO[..., o]
        for o, operation in enumerate(operations)
    ]
    return torch.stack(columns, -1).flatten(-2)


def sharpened(w: Tensor, t: float) -> Tensor:
    """sigmoid(logit(w) / t), elementwise for w in [0, 1] and t <= 1: 0, 1/2 and 1 stay, the rest moves to an end.

    As w^(1/t) / (w^(1/t) + (1 - w)^(1/t)), which has no pole at 0 and 1 and is w itself at t = 1, to the last bit.
    """
    a, b = w ** (1 / t), (1 - w) ** (1 / t)
    return a / (a + b)


def _basis(topology: Topology, like: Tensor) -> Tensor:
    """The kernel's terms on the edges, [C, E]; made on the device, for a captured graph cannot copy to it."""
    many = topology.nodes + 1
    i_E, j_E = torch.triu_indices(many, many, 1, device=like.device)
    u_E, v_E = ((k_E.to(like.dtype) + 0.5) / many for k_E in (i_E, j_E))
    return torch.stack(kernel_basis(u_E, v_E, topology.coefficients, torch.cos))


def hard_grades(topology: Topology, numbers_KP: Tensor) -> Tensor:
    """The grades of the rounded graphs, 1 for each unit that `Topology.hard` keeps, else 0: [K, P] -> [K, U]."""
    m_KU = torch.zeros(len(numbers_KP), len(topology.units), dtype=numbers_KP.dtype)
    for m_U, numbers in zip(m_KU, numbers_KP.detach().double().tolist(), strict=True):
        m_U[list(topology.hard(numbers))] = 1.0
    return m_KU.to(numbers_KP.device)


# -- statistics --------------------------------------------------------------------------------------------------------


def undecided(topology: Topology, grades: Tensor) -> Tensor:
    """The mean entropy in bits of a unit's being there, over those that a network has use for: [..., U] -> [...].

    0 where each grade is 0 or 1, where also the gradient is 0, so that nothing pulls at a decided unit.
    """
    m = grades[..., list(topology.useful)]
    decided = (m <= 0) | (m >= 1)
    safe = torch.where(decided, 0.5, m)
    entropy = -(safe * torch.log(safe) + (1 - safe) * torch.log1p(-safe)) / math.log(2)
    return torch.where(decided, 0.0, entropy).mean(-1)


def edges_kept(topology: Topology, grades: Tensor) -> Tensor:
    """The real number of units there are, the sum of the grades of those that a network has use for: [..., U] ->
    [...]."""
    return grades[..., list(topology.useful)].sum(-1)


def skip_share(topology: Topology, grades: Tensor) -> Tensor:
    """The share of `skip` units in the grades of those that a network has use for, [..., U] -> [...]; 0 where all
    are 0.

    Near 1 is how differentiable search fails: it prefers what needs no training (Zela et al. 2020, section 3).
    """
    total = edges_kept(topology, grades)
    skips = grades[..., [unit for unit in topology.useful if topology.units[unit][1] == "skip"]].sum(-1)
    return skips / torch.where(total == 0, 1.0, total)


def _rows(x: Tensor, length: int) -> Tensor:
    """The last axis in rows of that length, [..., R L] -> [..., R, L]."""
    return x.reshape(*x.shape[:-1], -1, length)


# -- a gate ------------------------------------------------------------------------------------------------------------


class TopologyGate(Gate):
    """Grades the units of a graph by numbers `w` [P] in [0, 1], an ordinary `nn.Parameter`.

    Args:
        name: the topology's name in the space.
        topology: its declaration; the gate's maximum is the number of its units U.
        tau: the temperature (default: where its annealing begins).
    """

    role: ClassVar[str] = "topology"

    def __init__(self, name: str, topology: Topology, *, tau: float = TEMPERATURE[0]) -> None:
        super().__init__(name, len(topology.units))
        self.topology, self.tau = topology, tau
        self.w = nn.Parameter(torch.full((topology.size,), 0.5))

    def set(self, numbers: Sequence[float] | Tensor) -> None:
        """Begin anew at the numbers, [P]."""
        with torch.no_grad():
            self.w.copy_(torch.as_tensor(numbers))

    def grades(self) -> Tensor:
        """The units' grades, shape [U]."""
        return grades(self.topology, self.w, self.tau)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kind={self.topology.kind}"
