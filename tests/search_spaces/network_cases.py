"""Networks as people write them, none of which knows of widths."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGE = (3, 8, 8)
OUTPUTS = 4


class VGG(nn.Module):
    """Convolutions with norms, poolings, a flatten, and a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.GELU(), nn.AvgPool2d(2)),
        )
        self.classifier = nn.Sequential(nn.Linear(12 * 4, 10), nn.GELU(), nn.Dropout(0.0), nn.Linear(10, OUTPUTS))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return out


class BasicBlock(nn.Module):
    """Two convolutions and a skip, which is projected where the width or the side changes (He et al. 2016)."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out = functional.silu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        identity = x if self.downsample is None else self.downsample(x)
        out += identity
        return functional.silu(out)


class ResNet(nn.Module):
    """A stem, two stages, the average over all places, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.SiLU()
        self.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
        self.layer2 = nn.Sequential(BasicBlock(8, 12, 2))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(12, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        out: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return out


class LayerNorm2d(nn.LayerNorm):
    """Across the channels of an image, as timm writes it."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    """Each channel times what the means of all say of it."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.conv_reduce, self.conv_expand = nn.Conv2d(channels, reduced, 1), nn.Conv2d(reduced, channels, 1)
        self.act1, self.gate = nn.SiLU(), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x_se = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.conv_expand(self.act1(self.conv_reduce(x_se))))


class MobileNet(nn.Module):
    """An inverted residual: expand, depthwise, squeeze and excite, project."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.depth = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.SiLU()
        )
        self.se = SqueezeExcite(16, 4)
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.se(self.depth(self.expand(x))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class ConvNeXt(nn.Module):
    """A block of depthwise convolution, layer norm, two linear layers over channels last, and a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.dw, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.LayerNorm(8, eps=1e-6)
        self.pw1, self.act, self.pw2 = nn.Linear(8, 20), nn.GELU(), nn.Linear(20, 8)
        self.gamma = nn.Parameter(0.5 * torch.ones(8))
        self.head = nn.Linear(8, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shortcut = x
        x = self.dw(x).permute(0, 2, 3, 1)
        x = self.gamma * self.pw2(self.act(self.pw1(self.norm(x))))
        x = shortcut + x.permute(0, 3, 1, 2)
        out: Tensor = self.head(x.mean([-2, -1]))
        return out


class DenseNet(nn.Module):
    """Each layer reads all that came before it, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second, self.third = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(11, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(15)
        self.head = nn.Linear(15, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.tanh(self.first(x))
        ab = torch.cat([a, torch.tanh(self.second(a))], dim=1)
        abc = torch.cat((ab, torch.tanh(self.third(ab))), 1)
        out: Tensor = self.head(functional.silu(self.norm(abc)).mean((2, 3)))
        return out


class Sequence1d(nn.Module):
    """Convolutions along a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2)),
            *(nn.Conv1d(8, 6, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()),
        )
        self.head = nn.Linear(6, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def plain_mlp() -> nn.Module:
    """Three linear layers, two kinds of norm."""
    return nn.Sequential(
        *(nn.Linear(5, 9), nn.LayerNorm(9), nn.GELU()),
        *(nn.Linear(9, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, OUTPUTS)),
    )


#: name -> how it is made, the shape of one example
ORDINARY = {
    "mlp": (plain_mlp, (5,)),
    "vgg": (VGG, IMAGE),
    "resnet": (ResNet, IMAGE),
    "mobilenet": (MobileNet, IMAGE),
    "convnext": (ConvNeXt, IMAGE),
    "densenet": (DenseNet, IMAGE),
    "sequence": (Sequence1d, (3, 8)),
}
