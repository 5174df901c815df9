"""One training as anybody writes it in torch: a Sequential, cross-entropy, autograd, torch.optim.SGD."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.rivals import Inputs, error_rate, evaluation_steps


@dataclass(frozen=True, kw_only=True)
class Data:
    """The job's rows on a device, made once per worker."""

    x: Tensor
    y: Tensor
    selection_x: Tensor
    order: Tensor
    inputs: Inputs

    @classmethod
    def of(cls, inputs: Inputs, device: torch.device | str = "cpu") -> Data:
        """The tensors of `inputs`."""
        x, y, selection_x, order = (
            torch.from_numpy(inputs[name]).to(device) for name in ("x", "y", "selection_x", "order")
        )
        return cls(x=x, y=y, selection_x=selection_x, order=order, inputs=inputs)


def model_of(weights: list[Tensor]) -> nn.Sequential:
    """A relu network that begins with these weights [out, in] and zero biases."""
    layers: list[nn.Module] = []
    for w in weights:
        linear = nn.Linear(w.shape[1], w.shape[0], device=w.device)
        with torch.no_grad():
            linear.weight.copy_(w)
            linear.bias.zero_()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train(data: Data, number: int) -> tuple[float, nn.Sequential]:
    """One trial from its beginning to its end: its selection error, and the network."""
    inputs = data.inputs
    model = model_of([torch.from_numpy(w).to(data.x.device) for w in inputs.weights(number)])
    lr, momentum = float(inputs["lr"][number]), float(inputs["momentum"][number])
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    measured, error = evaluation_steps(len(data.order)), float("nan")
    for step, rows in enumerate(data.order, 1):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(data.x[rows]), data.y[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step in measured:
            with torch.no_grad():
                error = error_rate(model(data.selection_x).cpu().numpy(), inputs["selection_y"])
    return error, model
