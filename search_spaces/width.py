"""A layer's width as a real number: a gate that multiplies each unit by its membership.

    >>> net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), WidthGate("width.0", 128), nn.Linear(128, 10))

h = m(n) (.) phi(W x + b): the tensor keeps the shape of the maximum size whatever n is, so networks of different widths
train as one batched program. A gate belongs after a layer's norm and activation: what follows it must map 0 to 0 until
the next layer reads it, or a unit that is no member would speak.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from search_spaces.membership import MEMBERSHIPS


class Gate(nn.Module):
    """What all gates share: a name in the space, a maximum size, and the axis of the units. `role` is what it is made
    to give a size to, where no module that acts by it says so."""

    role: ClassVar[str] = "width"

    def __init__(self, name: str, maximum: int, dim: int | None = None) -> None:
        super().__init__()
        self.name, self.maximum, self.dim = name, maximum, dim

    def grades(self) -> Tensor:
        """The membership grades, shape [N]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        m_N = self.grades()
        trailing = x.dim() - 1 - self.axis(x)
        return x * m_N.reshape(m_N.shape + (1,) * trailing)

    def axis(self, x: Tensor) -> int:
        """The axis of x that holds the units: `dim`, or the only one of axis 1 and the last whose size is N.

        Raises:
            ValueError: when neither has that size, or both have and the two readings differ.
        """
        if self.dim is not None:
            axis = self.dim % x.dim()
            if x.shape[axis] != self.maximum:
                raise ValueError(self._misfit(x))
            return axis
        fitting = [axis for axis in dict.fromkeys((1, x.dim() - 1)) if axis < x.dim() and x.shape[axis] == self.maximum]
        if not fitting:
            raise ValueError(self._misfit(x))
        if len(fitting) == 2 and x.dim() == 3:
            raise ValueError(
                f"gate {self.name!r}: axes 1 and 2 of an input of shape {tuple(x.shape)} both have {self.maximum} "
                "units; say which with dim=1 (channels) or dim=-1 (features)."
            )
        return fitting[0]

    def _misfit(self, x: Tensor) -> str:
        return (
            f"gate {self.name!r}: its maximum must be the number of units of the layer before it, but got "
            f"maximum={self.maximum} for an input of shape {tuple(x.shape)}; set maximum to that number."
        )

    def extra_repr(self) -> str:
        return f"{self.name!r}, maximum={self.maximum}"


class MemberGate(Gate):
    """Gives grades by a membership, whose parameters are ordinary `nn.Parameter`s.

    Args:
        name: the width's name in the space.
        maximum: the number N of units (or blocks).
        membership: one of `search_spaces.membership.MEMBERSHIPS`; the size is `n` where the membership has one.
        tau: the membership's temperature (default: where its annealing begins).
        dim: the axis of the units; by default axis 1 or the last, whichever has N units.

    While training, memberships that draw noise draw it from torch's generator.
    """

    def __init__(
        self, name: str, maximum: int, *, membership: str = "interval", tau: float | None = None, dim: int | None = None
    ) -> None:
        super().__init__(name, maximum, dim)
        if membership not in MEMBERSHIPS:
            raise ValueError(f"gate {name!r}: unknown membership {membership!r}; known: {', '.join(MEMBERSHIPS)}.")
        self.membership = MEMBERSHIPS[membership]
        self.tau = tau if tau is not None else (self.membership.temperature or (1.0, 1.0))[0]
        for key, value in self.membership.start(torch.tensor(float(maximum)), maximum, self.tau).items():
            self.register_parameter(key, nn.Parameter(value))

    def set(self, n: float) -> None:
        """Begin anew at real size n."""
        own = dict(self.named_parameters(recurse=False))
        like = next(iter(own.values()))
        start = self.membership.start(torch.tensor(n, dtype=like.dtype, device=like.device), self.maximum, self.tau)
        with torch.no_grad():
            for key, value in start.items():
                own[key].copy_(value)

    def grades(self) -> Tensor:
        own = dict(self.named_parameters(recurse=False))
        draws = self.membership.draws(self.maximum) if self.training else 0
        like = next(iter(own.values()))
        noise = torch.rand(draws, dtype=like.dtype, device=like.device).clamp(1e-6, 1 - 1e-6) if draws else None
        return self.membership.grades(own, self.maximum, self.tau, noise)

    def size(self) -> Tensor:
        """The real size, a scalar."""
        return self.membership.size(dict(self.named_parameters(recurse=False)), self.maximum, self.tau)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, membership={self.membership.kind}"


class WidthGate(MemberGate):
    """Gates the units of the layer it follows, its input's."""


class DepthGate(MemberGate):
    """Gives the grades of blocks, for `search_spaces.blocks.Passing`."""


class Acting(nn.Module):
    """A module that works by the grades of gates it holds; one operation of a traced network."""


class GateRow(Acting):
    """Gates side by side, for a tensor whose channels are several widths'.

    Args:
        parts: what stands along `dim`: a gate, or a number of channels that have none; and how often each channel of
            it stands there.
    """

    def __init__(self, parts: Sequence[tuple[Gate | int, int]], dim: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(gate for gate, _ in parts if isinstance(gate, Gate))
        self.parts = [(0 if isinstance(gate, Gate) else gate, repeat) for gate, repeat in parts]  # 0: the next gate
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        gates, row = iter(self.gates), []
        for size, repeat in self.parts:
            m_N = x.new_ones(size) if size else next(gates).grades()  # type: ignore[operator]
            row.append(m_N.repeat_interleave(repeat))
        trailing = x.dim() - 1 - self.dim % x.dim()
        return x * torch.cat(row).view(-1, *(1,) * trailing)


class HeldGate(Gate):
    """A gate whose grades `m` [N] are given from outside: what a lane of a program sees of a width."""

    m: Tensor

    def __init__(self, name: str, maximum: int, dim: int | None = None) -> None:
        super().__init__(name, maximum, dim)
        self.register_buffer("m", torch.ones(maximum))

    def grades(self) -> Tensor:
        return self.m


def gates_of(module: nn.Module) -> dict[str, Gate]:
    """The gates of a module by their names in the space. Raises ValueError when two gates share a name."""
    gates: dict[str, Gate] = {}
    for child in module.modules():
        if isinstance(child, Gate):
            if child.name in gates:
                raise ValueError(
                    f"two gates are called {child.name!r}; each needs a name of its own (one gate may be called twice)"
                )
            gates[child.name] = child
    return gates


def held(module: nn.Module) -> nn.Module:
    """A copy of the module in which every gate is a `HeldGate`; a gate that stood in several places still does."""
    memo: dict[int, nn.Module] = {}
    for gate in gates_of(module).values():
        memo[id(gate)] = HeldGate(gate.name, gate.maximum, gate.dim)
    return copy.deepcopy(module, memo)
