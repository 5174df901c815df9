"""`make_continuous(stride=..., depth=...)` on networks as people write them: nothing changes at their own strides and
at full depth, and at other whole ones it is the network that one would have written."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from network_cases import IMAGE, ORDINARY, OUTPUTS, BasicBlock, LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from search_spaces import Depth, Invalid, Stride
from search_spaces.continuous import make_continuous
from search_spaces.flow import Flow
from search_spaces.flow_costs import costs_of
from search_spaces.materialise import materialise
from search_spaces.width import gates_of


class DeepResNet(nn.Module):
    """A strided stem, a pooling that strides, and two stages of three blocks each (He et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8), BasicBlock(8, 8))
        self.layer2 = nn.Sequential(BasicBlock(8, 12, 2), BasicBlock(12, 12), BasicBlock(12, 12))
        self.fc = nn.Linear(12, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(functional.silu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        out: Tensor = self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return out


class Mixer(nn.Module):
    """A block that adds what it makes of norm, depthwise and pointwise convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(channels)
        self.dw, self.pw = (
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pw(functional.gelu(self.dw(self.norm(x))))


class Mixers(nn.Module):
    """Stages in a ModuleList, between which a convolution as large as its stride shrinks the map (Liu et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.ModuleList([Mixer(6), Mixer(6)])
        self.down = nn.Conv2d(6, 8, 2, 2)
        self.last = nn.ModuleList([Mixer(8)])
        self.head = nn.Linear(8, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = self.down(x)
        for block in self.last:
            x = block(x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Signal(nn.Module):
    """Convolutions along a signal, of which two stride."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv1d(3, 8, 5, 2, 2), nn.BatchNorm1d(8), nn.GELU()),
            *(nn.Conv1d(8, 10, 3, 1), nn.GELU(), nn.AvgPool1d(2), nn.Conv1d(10, 10, 3, padding=1), nn.GELU()),
        )
        self.head = nn.Linear(10, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).mean(2))
        return out


NETWORKS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "resnet": (DeepResNet, (3, 23, 23)),
    "mixers": (Mixers, (3, 9, 9)),
    "signal": (Signal, (3, 31)),
}
#: each stride's own, and the layers that share it
STRIDES = {
    "resnet": {
        "stride.conv1": ["conv1"],
        "stride.pool": ["pool"],
        "stride.layer2.0.conv1": ["layer2.0.conv1", "layer2.0.downsample.0"],
    },
    "mixers": {"stride.down": ["down"]},
    "signal": {"stride.body.0": ["body.0"], "stride.body.5": ["body.5"]},
}
#: each depth's blocks
DEPTHS = {
    "resnet": {"depth.layer1": ["layer1.0", "layer1.1", "layer1.2"], "depth.layer2": ["layer2.1", "layer2.2"]},
    "mixers": {"depth.blocks": ["blocks.0", "blocks.1"], "depth.last": ["last.0"]},
    "signal": {},
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    module, example = make().double(), torch.randn(4, *shape, dtype=torch.float64)
    for _ in range(2):
        module(torch.randn(8, *shape, dtype=torch.float64))
    return module.eval(), example


def by_hand(module: nn.Module, name: str, sizes: dict[str, int]) -> nn.Module:
    """The network with those strides and without the blocks beyond each depth."""
    own = copy.deepcopy(module)
    for gate, layers in STRIDES[name].items():
        for path in layers if gate in sizes else []:
            layer: Any = own.get_submodule(path)
            rank = 1 if isinstance(layer, nn.Conv1d | nn.AvgPool1d) else 2
            layer.stride = (sizes[gate],) * rank
    for gate, blocks in DEPTHS[name].items():
        for path in blocks[sizes[gate] :] if gate in sizes else []:
            owner, _, place = path.rpartition(".")
            own.get_submodule(owner).add_module(place, nn.Identity())
    return own


@pytest.mark.parametrize("name", NETWORKS)
def test_the_space_names_what_strides_and_each_row_of_blocks(name: str) -> None:
    module, example = network(name)
    depth = (0.0, 1.0) if DEPTHS[name] else None
    gated, space = make_continuous(module, None, stride=(1, 3), depth=depth, example=example)
    assert list(space.parameters) == [*STRIDES[name], *DEPTHS[name]]
    for gate, blocks in DEPTHS[name].items():
        assert space.parameters[gate] == Depth(low=0.0, high=len(blocks))
    assert all(space.parameters[gate] == Stride(low=1, high=3) for gate in STRIDES[name])
    torch.testing.assert_close(gated(example), module(example), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shrink", "resize", "spectral"])
@pytest.mark.parametrize("name", NETWORKS)
def test_at_whole_strides_and_depths_it_is_the_network_that_one_would_write(name: str, kind: str) -> None:
    module, example = network(name)
    depth = (0.0, 1.0) if DEPTHS[name] else None
    gated, _ = make_continuous(module, (0.5, 1.0), stride=(1, 3), depth=depth, example=example, kind=kind)
    flow, rng = Flow(gated.double().eval(), example), torch.Generator().manual_seed(1)
    assert flow.faults == []
    options = [*((1, 2, 3) for _ in STRIDES[name]), *(range(len(blocks) + 1) for blocks in DEPTHS[name].values())]
    every = list(itertools.product(*options))
    chosen = torch.randperm(len(every), generator=rng)[:12].tolist()
    for i in chosen:
        sizes = dict(zip([*STRIDES[name], *DEPTHS[name]], every[i], strict=True))
        for gate, size in sizes.items():
            gates_of(flow.graph)[gate].set(size)  # type: ignore[operator]
        plain = materialise(flow)
        assert not any(type(child).__module__.startswith("search_spaces") for child in plain.modules())
        torch.testing.assert_close(flow.graph(example), plain(example), rtol=1e-12, atol=1e-12)
        assert costs_of(flow).parameters({**widths(flow), **sizes}) == sum(p.numel() for p in plain.parameters())
        if kind == "shrink" or all(sizes[gate] == 1 for gate in STRIDES[name]):
            torch.testing.assert_close(plain(example), by_hand(module, name, sizes)(example), rtol=1e-12, atol=1e-12)


def widths(flow: Flow) -> dict[str, int]:
    return {name: gate.maximum for name, gate in flow.gates.items() if name.startswith("width.")}


def test_the_module_itself_stays_as_it_was() -> None:
    module, example = network("resnet")
    before, said = copy.deepcopy(module.state_dict()), module(example)
    make_continuous(module, stride=(1, 3), depth=(0.0, 1.0), example=example)
    assert module.conv1.stride == (2, 2)
    torch.testing.assert_close(module(example), said, rtol=0, atol=0)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_what_is_left_keeps_its_stride_and_its_blocks() -> None:
    module, example = network("resnet")
    _, space = make_continuous(
        module, None, stride=(1, 3), depth=(0.0, 1.0), example=example, leave=("conv1", "layer1.1")
    )
    assert list(space.parameters) == ["stride.pool", "stride.layer2.0.conv1", "depth.layer1", "depth.layer2"]
    assert space.parameters["depth.layer1"] == Depth(low=0.0, high=2)


def test_a_map_that_is_laid_flat_keeps_the_strides_before_it() -> None:
    make, shape = ORDINARY["vgg"]
    with pytest.raises(Invalid, match="its map must end in a mean over all places, but got none; drop `stride`"):
        make_continuous(make(), stride=(1, 3), example=(2, *shape))


def test_a_network_without_blocks_has_no_depth() -> None:
    make, shape = ORDINARY["mobilenet"]
    with pytest.raises(Invalid, match=r"at least one residual block .* but got none; drop `depth`"):
        make_continuous(make(), depth=(0.0, 1.0), example=(2, *shape))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"stride": (0.5, 2)},
            "stride: must be (least, greatest) with `1 <= least < greatest`, but got (0.5, 2); write (1.0, 4.0).",
        ),
        ({"stride": 2}, "with `1 <= least < greatest`, but got 2; write (1.0, 4.0)."),
        ({"depth": (0.5, 2)}, "with `0 <= least < greatest <= 1`, but got (0.5, 2); write (0.0, 1.0)."),
        ({"depth": (0.5, 0.5)}, "depth: must be (least, greatest) with `0 <= least < greatest <= 1`"),
        ({"leave": "stem"}, "leave: must be a list of paths, but got 'stem'; write ['stem']."),
        ({"membership": "intervall"}, "membership: unknown membership 'intervall'. Did you mean 'interval'?"),
        ({"example": 3}, "example: must be an input or its shape, but got 3; write (2, 3, 32, 32)."),
        ({"width": None}, "width: at least one of width, stride and depth must be asked for, but got none."),
        ({"kind": "shrunk"}, "kind: unknown kind of stride 'shrunk'. Did you mean 'shrink'?"),
    ],
)
def test_what_is_asked_for_must_make_sense(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(Invalid) as caught:
        make_continuous(DeepResNet(), **{"example": (2, *IMAGE), **arguments})
    assert words in caught.value.faults[0]
