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


class ConvNeXt2d(nn.Module):
    """The same as timm writes it with convolutions: layer norms of images, and a layer scale that is reshaped."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 2, 2), LayerNorm2d(8, eps=1e-6))
        self.dw, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), LayerNorm2d(8, eps=1e-6)
        self.fc1, self.fc2 = nn.Conv2d(8, 20, 1), nn.Conv2d(20, 8, 1)
        self.gamma = nn.Parameter(0.5 * torch.ones(8))
        self.head = nn.Linear(8, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branch = self.fc2(functional.gelu(self.fc1(self.norm(self.dw(x)))))
        x = x + branch.mul(self.gamma.reshape(1, -1, 1, 1))
        out: Tensor = self.head(x.mean((2, 3)))
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


class DenseLayers(nn.Module):
    """The same in the order of Huang et al. 2017: norm, activation and convolution of a list of features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (6, 10, 14))
        self.convs = nn.ModuleList(nn.Conv2d(n, 4, 3, padding=1, bias=False) for n in (6, 10))
        self.transition, self.head = nn.Conv2d(14, 7, 1), nn.Linear(7, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms[:2], self.convs, strict=True):
            features.append(conv(functional.relu(norm(torch.cat(features, 1)))))
        x = functional.avg_pool2d(self.transition(functional.relu(self.norms[2](torch.cat(features, 1)))), 2)
        out: Tensor = self.head(functional.adaptive_avg_pool2d(functional.relu(x), (1, 1)).flatten(1))
        return out


class Excite(nn.Module):
    """Squeeze and excite as it was first published, with sizes that are taken from the tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(8, 4, bias=False), nn.ReLU(), nn.Linear(4, 8, bias=False), nn.Sigmoid())
        self.head = nn.Linear(8, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        b, c, _, _ = x.size()
        scale = self.fc(self.pool(x).view(b, c)).view(b, c, 1, 1)
        out: Tensor = self.head(self.pool(x * scale.expand_as(x)).flatten(1))
        return out


class Groups1d(nn.Module):
    """Group norms of one group, of as many as there are channels, and of a number between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv1d(3, 8, 3, padding=1), nn.GroupNorm(1, 8)
        self.second, self.norm2 = nn.Conv1d(8, 6, 3, stride=2), nn.GroupNorm(6, 6)
        self.third, self.norm3 = nn.Conv1d(6, 8, 1), nn.GroupNorm(4, 8)
        self.head = nn.Linear(8, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.first(x)))
        x = torch.relu(self.norm2(self.second(x)))
        x = torch.relu(self.norm3(self.third(x)))
        out: Tensor = self.head(x.mean(-1))
        return out


class Twice(nn.Module):
    """Layers and norms that are used twice, so that what they read and write has one width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), LayerNorm2d(8)
        self.conv, self.batch = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(self.norm(self.stem(x))))
        x = torch.tanh(self.conv(functional.gelu(self.batch(self.norm(x)))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Tokens(nn.Module):
    """A transformer's blocks without attention: rows of tokens, layer norms, RMS norms, sums."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(5, 8), nn.LayerNorm(8, bias=False)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.last, self.head = nn.RMSNorm(8), nn.Linear(8, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(functional.gelu(self.up(self.norm(x))))
        out: Tensor = self.head(self.last(x).mean(1))
        return out


class Bare(nn.Module):
    """Norms without weights, and weights that are one number for all channels (ReZero, PReLU)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, affine=False)
        self.norm2, self.conv = nn.GroupNorm(1, 8, affine=False), nn.Conv2d(8, 8, 3, padding=1)
        self.share, self.act = nn.Parameter(torch.tensor([0.3])), nn.PReLU()
        self.norm3, self.norm4 = nn.GroupNorm(8, 8, affine=False), nn.LayerNorm(8, elementwise_affine=False)
        self.head = nn.Linear(8, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.stem(x))
        x = functional.gelu(self.norm3(x + self.share * self.act(self.conv(torch.tanh(self.norm2(x))))))
        out: Tensor = self.head(self.norm4(x.mean((2, 3))))
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
    "convnext_2d": (ConvNeXt2d, IMAGE),
    "densenet": (DenseNet, IMAGE),
    "dense_layers": (DenseLayers, IMAGE),
    "excite": (Excite, IMAGE),
    "twice": (Twice, IMAGE),
    "bare": (Bare, IMAGE),
    "sequence": (Sequence1d, (3, 8)),
    "groups": (Groups1d, (3, 9)),
    "tokens": (Tokens, (3, 5)),
}
