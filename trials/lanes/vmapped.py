"""Fused lanes of any gated module, by torch.func: slower than `dense` on a CPU, indifferent to the network's kind.

    >>> lanes = VmappedLanes(GatedMLP(64, (128, 128), 10), loss=functional.cross_entropy, lanes=8)
    >>> gradients = lanes.gradients(x_BD, y_B)        # every parameter, and every gate's size, with a lane axis

Each parameter has a leading lane axis; the losses of all lanes are summed, so a lane's gradient is its own. Optimisers
work on the same flat buffer as elsewhere, here [K, P] with hyperparameters [K, 1].

Legend of shape suffixes: K lanes, P parameters of one lane, B batch, D inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from search_spaces.width import gates_of
from trials.optimisers import Optimiser, Rule


class VmappedLanes:
    """K copies of a module that train together. Its gates' sizes are per-lane values outside the optimiser.

    Args:
        loss: (output, target) of one lane -> scalar.
    """

    def __init__(self, module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], lanes: int) -> None:
        self.module, self.lanes = module, lanes
        sizes = {f"{path}.n" for path, child in module.named_modules() if child in set(gates_of(module).values())}
        shapes = {name: p for name, p in module.named_parameters() if name not in sizes}
        total = sum(p.numel() for p in shapes.values())
        example = next(iter(shapes.values()))
        self.weights_KP = torch.zeros(lanes, total, dtype=example.dtype, device=example.device)
        self.views: dict[str, Tensor] = {}
        place = 0
        for name, p in shapes.items():
            self.views[name] = self.weights_KP[:, place : place + p.numel()].view(lanes, *p.shape)
            place += p.numel()
        self.sizes = {name: torch.zeros(lanes, dtype=example.dtype, device=example.device) for name in sizes}

        def lane_loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return loss(functional_call(module, values, (x,)), y)

        self._gradients = vmap(grad(lane_loss), in_dims=(0, None, None))
        self._outputs = vmap(lambda values, x: functional_call(module, values, (x,)), in_dims=(0, None))

    def gradients(self, x_BD: Tensor, y_B: Tensor) -> dict[str, Tensor]:
        """d(lane loss)/d(value) for every weight and every gate's size, each with a leading lane axis."""
        found: dict[str, Tensor] = self._gradients({**self.views, **self.sizes}, x_BD, y_B)
        return found

    def attach(self, rule: Rule, hyper: Mapping[str, Tensor]) -> None:
        """Begin an optimiser with each lane's own hyperparameters, name -> [K]."""
        spread = {name: hyper[name].unsqueeze(1).expand_as(self.weights_KP) for name in rule.uses}
        self.optimiser = Optimiser(rule, spread, self.weights_KP)

    def step(self, x_BD: Tensor, y_B: Tensor) -> None:
        """One training step of every lane's weights on the same batch."""
        found = self.gradients(x_BD, y_B)
        flat_KP = torch.cat([found[name].reshape(self.lanes, -1) for name in self.views], 1)
        self.optimiser.step(self.weights_KP, flat_KP)

    def predict(self, x_BD: Tensor) -> Tensor:
        """Every lane's outputs, with a leading lane axis."""
        out: Tensor = self._outputs({**self.views, **self.sizes}, x_BD)
        return out
