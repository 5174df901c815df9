"""The gradient of a loss by every number of every gate against finite differences: membership x network x width.

`python tests/search_spaces/test_gate_gradients.py` prints the matrix of relative errors. Each cell is judged while
training (batch statistics, noise that is drawn from one seed) and in evaluation, in float64, at real sizes that are not
whole, on networks whose activations are smooth.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from network_cases import ORDINARY, OUTPUTS
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.continuous import make_continuous
from search_spaces.membership import MEMBERSHIPS
from search_spaces.networks import MLP, ConvNet, Network, Residual
from search_spaces.norms import MaskedLayerNorm, MaskedRMSNorm
from search_spaces.realise import module_of
from search_spaces.width import WidthGate, gates_of

BATCH, DRAWS = 5, 3  # rows of a batch, and batches of noise that a loss is summed over
STEP, TOLERANCE = 1e-4, 1e-6
STENCIL = ((1, 2 / 3), (-1, -2 / 3), (2, -1 / 12), (-2, 1 / 12))  # of fourth order: a long step loses fewer digits
LEAST = 1e-6  # a gradient below would show nothing


class OwnNetwork(nn.Module):
    """Gates placed by hand: two branches side by side, norms that ask their gates, and a gate that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 6), nn.Linear(5, 4)
        self.left_gate, self.right_gate = WidthGate("left", 6), WidthGate("right", 4)
        self.left_norm, self.right_norm = MaskedLayerNorm(6, self.left_gate), MaskedRMSNorm(4, self.right_gate)
        self.stem, self.block, self.head = nn.Linear(10, 7), nn.Linear(7, 7), nn.Linear(7, OUTPUTS)
        self.stream_gate = WidthGate("stream", 7)

    def forward(self, x: Tensor) -> Tensor:
        left = self.left_gate(torch.tanh(self.left_norm(self.left(x))))
        right = self.right_gate(functional.gelu(self.right_norm(self.right(x))))
        h = torch.tanh(self.stem(torch.cat([left, right], 1)))
        h = h + torch.tanh(self.block(self.stream_gate(h)))
        out: Tensor = self.head(self.stream_gate(h))
        return out


def ours(network: Network, shape: tuple[int, ...]) -> nn.Module:
    return module_of(network, shape, OUTPUTS, {gate: network.default(gate) for gate in network.gates})


def ordinary(name: str) -> nn.Module:
    make, shape = ORDINARY[name]
    return make_continuous(make(), example=(2, *shape))[0]


#: name -> how it is made, the shape of one example, its continuous values
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...]]] = {
    "mlp": (lambda: ours(MLP(layers=2, width=6, activation="tanh"), (5,)), (5,), ("width.0", "width.1")),
    "convnet": (
        lambda: ours(ConvNet(layers=2, width=5, activation="gelu"), (2, 6, 6)),
        (2, 6, 6),
        ("width.0", "width.1"),
    ),
    "residual_images": (
        lambda: ours(Residual(stages=2, width=5, activation="silu"), (2, 6, 6)),
        (2, 6, 6),
        ("width.0", "width.0.0", "width.1", "width.1.0"),
    ),
    "residual_rows": (
        lambda: ours(Residual(stages=1, blocks=2, width=6, norm="none", activation="tanh"), (5,)),
        (5,),
        ("width.0", "width.0.0", "width.0.1"),
    ),
    "own": (OwnNetwork, (5,), ("left", "right", "stream")),
    "vgg": (
        lambda: ordinary("vgg"),
        ORDINARY["vgg"][1],
        ("width.features.0", "width.features.4", "width.classifier.0"),
    ),
    "resnet": (
        lambda: ordinary("resnet"),
        ORDINARY["resnet"][1],
        (
            *("width.conv1", "width.layer1.0.conv1", "width.layer1.1.conv1"),
            *("width.layer2.0.conv1", "width.layer2.0.conv2"),
        ),
    ),
    "mobilenet": (
        lambda: ordinary("mobilenet"),
        ORDINARY["mobilenet"][1],
        ("width.stem.0", "width.expand.0", "width.se.conv_reduce"),
    ),
    "densenet": (lambda: ordinary("densenet"), ORDINARY["densenet"][1], ("width.first", "width.second", "width.third")),
}
CELLS = [(kind, name, gate) for kind in MEMBERSHIPS for name, (_, _, gates) in NETWORKS.items() for gate in gates]


def remade(module: nn.Module, kind: str) -> nn.Module:
    """A copy whose gates have another membership, at sizes that are not whole and away from where they begin."""
    generator = torch.Generator().manual_seed(7)
    memo: dict[int, nn.Module] = {}
    for i, gate in enumerate(gates_of(module).values()):
        new = WidthGate(gate.name, gate.maximum, membership=kind, dim=gate.dim).double()
        new.set(0.4 * gate.maximum + 0.137 + 0.11 * i)
        for key, parameter in new.named_parameters():
            if key != "n":
                moved = 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data += moved
        memo[id(gate)] = new
    return copy.deepcopy(module, memo)


@functools.cache
def built(kind: str, name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The network in float64 with statistics of some data, a batch, and its labels."""
    make, shape, _ = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = remade(make().double(), kind).train()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        for _ in range(2):
            module(torch.randn(8, *shape, dtype=torch.float64))
        return module, torch.randn(BATCH, *shape, dtype=torch.float64), torch.arange(BATCH) % OUTPUTS


def loss_of(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Summed over batches of noise, the same at every call."""
    draws = DRAWS if module.training else 1
    total = torch.zeros((), dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for _ in range(draws):
            total = total + functional.cross_entropy(module(x), y)
    return total


def compared(kind: str, name: str, gate: str) -> Iterator[tuple[str, float, float]]:
    """For each kind of number of one gate, and each mode: what it is, the greatest gradient, the relative error."""
    module, x, y = built(kind, name)
    own = gates_of(module)[gate]
    for mode in ("train", "eval"):
        module.train(mode == "train")
        for key, parameter in own.named_parameters():
            parameter.requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss_of(module, x, y), parameter)
            parameter.requires_grad_(False)
            differences, flat = torch.zeros(parameter.numel(), dtype=torch.float64), parameter.data.view(-1)
            for i in range(parameter.numel()):
                start = flat[i].item()
                for steps, weight in STENCIL:
                    flat[i] = start + steps * STEP
                    differences[i] += weight * loss_of(module, x, y).item() / STEP
                flat[i] = start
            scale = differences.abs().max().item()
            wrong = (gradient.view(-1) - differences).abs().max().item()
            yield f"{key} ({mode})", scale, wrong / max(scale, LEAST)


@pytest.mark.parametrize(("kind", "name", "gate"), CELLS, ids=["-".join(cell) for cell in CELLS])
def test_gradients_equal_finite_differences(kind: str, name: str, gate: str) -> None:
    for what, scale, error in compared(kind, name, gate):
        assert scale > LEAST, what
        assert error < TOLERANCE, what


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_matrix_has_every_continuous_value(name: str) -> None:
    make, _, gates = NETWORKS[name]
    assert tuple(gates_of(make())) == gates


def main() -> None:
    """Print the matrix: a line for each network and width, a column for each membership."""
    torch.set_num_threads(1)
    rows = [(name, gate) for name, (_, _, gates) in NETWORKS.items() for gate in gates]
    print(f"{'greatest relative error':40}" + "".join(f"{kind:>15}" for kind in MEMBERSHIPS))
    for name, gate in rows:
        errors = [max(error for _, _, error in compared(kind, name, gate)) for kind in MEMBERSHIPS]
        print(f"{name + ' ' + gate:40}" + "".join(f"{error:15.1e}" for error in errors))


if __name__ == "__main__":
    main()
