"""Networks as people write them with real strides, each with its twin that really strides, written with torch's own.

>>> relaxed, twin = make(Strides("shrink")), make(Strides(whole={"a": 2, "b": 3}))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.stride import Stride, StrideGate

OUTPUTS = 3


class Every(nn.Module):
    """Every s-th cell."""

    def __init__(self, s: int) -> None:
        super().__init__()
        self.s = s

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.s, :: self.s] if x.dim() == 4 else x[:, :, :: self.s]


class Strides:
    """Where a network strides: by gates, or really, by `whole` strides."""

    def __init__(self, kind: str = "shrink", whole: Mapping[str, int] | None = None) -> None:
        self.kind, self.whole = kind, whole
        self.gates: dict[str, StrideGate] = {}

    def alone(self, name: str) -> nn.Module:
        if self.whole is not None:
            return Every(self.whole[name])
        gate = self.gates.setdefault(name, StrideGate(name))
        return Stride(gate, self.kind, smoothness=1 if self.kind == "spectral" else None)

    def after(self, layer: Any, name: str) -> nn.Module:
        """A layer that strides as far again."""
        if self.whole is None:
            return nn.Sequential(layer, self.alone(name))
        stride = layer.stride if isinstance(layer.stride, tuple) else (layer.stride,) * 2
        layer.stride = tuple(own * self.whole[name] for own in stride)
        if isinstance(layer, nn.MaxPool1d | nn.AvgPool1d):
            layer.stride = layer.stride[:1]
        return layer  # type: ignore[no-any-return]


def conv(inputs: int, outputs: int, side: Any = 3, **options: Any) -> nn.Conv2d:
    padding = options.pop("padding") if "padding" in options else side // 2
    return nn.Conv2d(inputs, outputs, side, padding=padding, **options)


class VGG(nn.Module):
    """Strides after a convolution, after poolings, and in a pooling's place; poolings of shrunken maps."""

    def __init__(self, strides: Strides) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(strides.after(conv(2, 4), "a"), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2, 1)),
            *(conv(4, 5, bias=False), nn.BatchNorm2d(5), nn.GELU(), nn.AvgPool2d(3, 1, 1), strides.alone("b")),
            *(conv(5, 4), nn.SiLU(), strides.after(nn.MaxPool2d(3, 1, 1), "a"), nn.Sigmoid(), conv(4, 4)),
        )
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.flatten(self.pool(self.features(x)), 1))
        return out


class Block(nn.Module):
    """A stride in the block and in its projected skip."""

    def __init__(self, inputs: int, width: int, strides: Strides, name: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = strides.after(conv(inputs, width, bias=False), name), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, bias=False), nn.BatchNorm2d(width, momentum=None)
        self.skip = nn.Sequential(strides.after(conv(inputs, width, 1, bias=False), name), nn.BatchNorm2d(width))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        out += self.skip(x)
        return functional.relu(out)


class ResNet(nn.Module):
    """Two blocks, whose norms see live cells alone."""

    def __init__(self, strides: Strides) -> None:
        super().__init__()
        self.stem, self.bn = conv(2, 4, bias=False), nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(Block(4, 5, strides, "a"), Block(5, 4, strides, "b"))
        self.head = nn.Linear(4, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(torch.tanh(self.bn(self.stem(x)))).mean((2, 3)))
        return out


class MobileNet(nn.Module):
    """A depthwise convolution that strides; squeeze and excite on what is left, with sizes taken from the tensor."""

    def __init__(self, strides: Strides) -> None:
        super().__init__()
        self.stem = nn.Sequential(strides.after(conv(2, 4, stride=2), "a"), nn.BatchNorm2d(4), nn.Hardswish())
        self.expand = nn.Sequential(conv(4, 6, 1, bias=False), nn.BatchNorm2d(6, affine=False), nn.SiLU())
        self.depth = nn.Sequential(strides.after(conv(6, 6, groups=6), "b"), nn.BatchNorm2d(6), nn.SiLU())
        self.reduce, self.widen, self.fc = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1), nn.Linear(6, 6)
        self.project, self.head = conv(6, 5, 1), nn.Linear(5, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(self.expand(self.stem(x)))
        x = x * torch.sigmoid(self.widen(functional.silu(self.reduce(x.mean((2, 3), keepdim=True)))))
        b, c, _, _ = x.size()
        y = torch.sigmoid(self.fc(functional.adaptive_avg_pool2d(x, 1).view(b, c))).view(b, c, 1, 1)
        out: Tensor = self.head(self.project(x * y.expand_as(x)).mean(dim=[-2, -1]))
        return out


class ConvNeXt(nn.Module):
    """Layer norms over channels that lie last, and a layer scale."""

    def __init__(self, strides: Strides) -> None:
        super().__init__()
        self.stem, self.first = strides.after(conv(2, 4, 2, stride=2, padding=0), "a"), nn.LayerNorm(4)
        self.dw, self.norm = conv(4, 4, groups=4), nn.LayerNorm(4, eps=1e-6)
        self.pw1, self.act, self.pw2 = nn.Linear(4, 7), nn.GELU(), nn.Linear(7, 4)
        self.gamma = nn.Parameter(torch.full((4,), 0.5))
        self.down, self.head = strides.after(conv(4, 5, 2, padding=0), "b"), nn.Linear(5, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x).permute(0, 2, 3, 1)).permute((0, 3, 1, 2))
        y = self.dw(x).permute(0, 2, 3, 1)
        x = x + (self.gamma * self.pw2(self.act(self.pw1(self.norm(y))))).permute(0, 3, 1, 2)
        out: Tensor = self.head(self.down(x).mean([-2, -1]))
        return out


class Kernels(nn.Module):
    """Kernels without padding, dilated, longer than high, fixed strides, two branches side by side, a maximum."""

    def __init__(self, strides: Strides) -> None:
        super().__init__()
        self.a = strides.after(conv(2, 4, 3, padding=0), "a")
        self.b, self.c = conv(4, 3, 3, padding=2, dilation=2, stride=2), conv(4, 2, 5, padding=2, stride=2)
        self.d = strides.after(conv(5, 4, (1, 2), padding=(0, 1)), "b")
        self.e, self.head = conv(4, 4, 3, padding="same"), nn.Linear(4, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.elu(self.a(x))
        x = torch.cat([self.b(x), self.c(x)], 1)
        x = functional.avg_pool2d(self.d(functional.leaky_relu(x, 0.1)), 2, stride=1, padding=1)
        out: Tensor = self.head(torch.amax(self.e(x), (2, 3)))
        return out


class Signals(nn.Module):
    """Along a sequence."""

    def __init__(self, strides: Strides) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv1d(2, 4, 5, padding=2), strides.alone("a"), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(3, 1)),
            *(nn.Conv1d(4, 5, 3), nn.Tanh(), strides.after(nn.AvgPool1d(2, 1), "b"), nn.Conv1d(5, 4, 1)),
            *(strides.after(nn.MaxPool1d(2, 2), "a"), nn.AdaptiveMaxPool1d(1), nn.Flatten()),
        )
        self.head = nn.Linear(4, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


class Chain(nn.Module):
    """A stride on the input itself, and one after each convolution."""

    def __init__(self, strides: Strides) -> None:
        super().__init__()
        self.first = strides.alone("a")
        self.a, self.b = strides.after(conv(2, 4), "b"), strides.after(conv(4, 4), "c")
        self.c, self.head = strides.after(conv(4, 4), "b"), nn.Linear(4, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.transpose(
            torch.permute(self.c(self.b(torch.tanh(self.a(self.first(x))))), dims=(0, 1, 3, 2)), dim0=1, dim1=2
        )
        out: Tensor = self.head(x.mean((1, 3)))
        return out


#: name -> how it is made, the shape of one example, its strides
STRIDED: dict[str, tuple[Callable[[Strides], nn.Module], tuple[int, ...], tuple[str, ...]]] = {
    "vgg": (VGG, (2, 13, 12), ("a", "b")),
    "resnet": (ResNet, (2, 9, 10), ("a", "b")),
    "mobilenet": (MobileNet, (2, 16, 15), ("a", "b")),
    "convnext": (ConvNeXt, (2, 17, 14), ("a", "b")),
    "kernels": (Kernels, (2, 15, 18), ("a", "b")),
    "signals": (Signals, (2, 47), ("a", "b")),
    "chain": (Chain, (2, 19, 16), ("a", "b", "c")),
}


def weights_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers in the order in which they were made, without the gates'."""
    return [t for name, t in module.state_dict(keep_vars=True).items() if "gate" not in name.split(".")]
