"""What a map that has shrunk must not enter is named, and so are modules that stand at two places."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from strided_cases import conv
from torch import Tensor, fx, nn
from torch.nn import functional

from search_spaces import Invalid
from search_spaces.flow import Flow
from search_spaces.materialise import materialise
from search_spaces.stride import Stride
from search_spaces.width import gates_of

EXAMPLE = torch.zeros(2, 2, 8, 8)


class Ended(nn.Module):
    """A convolution with a stride, and whatever comes then."""

    def __init__(self, *then: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(2, 4), Stride("s"), *then)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


class Called(Ended):
    """Functions of a shrunken map, by name."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.place = what, nn.Parameter(torch.zeros(1, 1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.what == "view":
            return x.view(x.size(0), -1)
        if self.what == "size":
            return (x * x.size(2)).mean((2, 3))
        if self.what == "shape":
            return functional.avg_pool2d(x, x.shape[2:]).flatten(1)
        if self.what == "parameter":
            return (x + self.place).mean((2, 3))
        if self.what == "concatenation":
            return torch.cat([x, x], 2).mean((2, 3))
        if self.what == "part":
            return torch.relu(x[:, :, :4]).mean((2, 3))
        if self.what == "one axis":
            return x.mean(3)
        if self.what == "all axes":
            return x.mean()
        return functional.interpolate(x, scale_factor=2.0).mean((2, 3))


LAYERS: dict[str, nn.Module] = {
    "flatten": nn.Flatten(),
    "conv_transpose": nn.Sequential(nn.ConvTranspose2d(4, 4, 2, 2), nn.AdaptiveAvgPool2d(1)),
    "group_norm": nn.Sequential(nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(1)),
    "layer_norm": nn.Sequential(nn.LayerNorm([4, 8, 8]), nn.AdaptiveAvgPool2d(1)),
    "instance_norm": nn.Sequential(nn.InstanceNorm2d(4), nn.AdaptiveAvgPool2d(1)),
    "ceil_mode": nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), nn.AdaptiveAvgPool2d(1)),
    "ceil_mode avg": nn.Sequential(nn.AvgPool2d(3, 2, ceil_mode=True), nn.AdaptiveAvgPool2d(1)),
    "padded average": nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.AdaptiveAvgPool2d(1)),
    "adaptive": nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d(1)),
    "reflected": nn.Sequential(conv(4, 4, padding_mode="reflect"), nn.AdaptiveAvgPool2d(1)),
    "upsample": nn.Sequential(nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(1)),
    "across a row": nn.Sequential(nn.Linear(8, 8), nn.AdaptiveAvgPool2d(1)),
    "the output": nn.ReLU(),
}
CALLS = ["view", "size", "shape", "parameter", "concatenation", "part", "one axis", "all axes", "interpolate"]


@pytest.mark.parametrize("module", [*map(Ended, LAYERS.values()), *map(Called, CALLS)], ids=[*LAYERS, *CALLS])
def test_what_cannot_be_followed_is_named(module: nn.Module) -> None:
    flow = Flow(module, EXAMPLE)
    assert flow.faults
    assert flow.faults[0].startswith("network: the map of 's' must meet only convolutions, norms and activations, ")
    with pytest.raises(Invalid, match="the map of 's'"):
        materialise(flow, {"s": 2})


class Twice(nn.Module):
    """One module at two places."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.a, self.b, self.what = conv(2, 4), conv(4, 4), what
        self.stride, self.norm, self.other = Stride("s"), nn.BatchNorm2d(4), Stride("t")

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.what == "stride":
            return self.stride(self.b(self.stride(x))).mean((2, 3))
        if self.what == "before":
            return self.stride(self.norm(self.b(self.norm(x)))).mean((2, 3))  # both on whole maps
        if self.what == "norm first":
            return self.norm(self.stride(self.norm(x))).mean((2, 3))
        if self.what == "norm":
            return self.norm(self.b(self.other(self.norm(self.stride(x))))).mean((2, 3))
        if self.what == "branches":
            return (self.stride(x) + self.stride(self.b(x))).mean((2, 3))  # of maps that are alike
        return (self.stride(x) + self.other(x)).mean((2, 3))


def striding(flow: Flow, s: float) -> fx.GraphModule:
    relaxed = copy.deepcopy(flow.graph)
    for gate in gates_of(relaxed).values():
        gate.set(s)  # type: ignore[operator]
    return relaxed


def test_one_module_at_two_places_is_named_where_its_maps_differ() -> None:
    faults = {what: Flow(Twice(what), EXAMPLE).faults for what in ("stride", "norm", "norm first", "sum")}
    assert "network.stride: one stride module must stand at one place" in faults["stride"][0]
    for what in ("norm", "norm first"):
        assert "network.norm: one batch norm must not normalise maps that differ" in faults[what][0]
    assert "the map of 's', 't' must meet only" in faults["sum"][0]
    for what in ("before", "branches"):
        flow = Flow(Twice(what).eval(), EXAMPLE)
        assert not flow.faults
        x = torch.randn(2, 2, 8, 8)
        torch.testing.assert_close(striding(flow, 3)(x), materialise(flow, {"s": 3})(x), rtol=1e-5, atol=1e-6)


def test_a_stride_of_what_is_no_map_is_named() -> None:
    flow = Flow(nn.Sequential(nn.Linear(5, 6), Stride("s")), torch.zeros(2, 5))
    assert (
        "network.1: a stride must follow a map [B, C, I] or [B, C, I, I], but got one of shape (2, 6)" in flow.faults[0]
    )


def test_a_stride_of_rows_of_tokens_is_named() -> None:
    """Their last axis holds features, not cells."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.stride = nn.Linear(5, 6), Stride("s")

        def forward(self, x: Tensor) -> Tensor:
            return self.stride(self.embed(x)).mean(2)

    (fault,) = Flow(Tokens(), torch.zeros(2, 4, 5)).faults
    assert "the channels of its input lie on axis 2" in fault


@pytest.mark.parametrize("stride", [0, 1.5, (1,)])
def test_a_stride_that_is_not_whole_is_refused(stride: Any) -> None:
    with pytest.raises(Invalid, match=r"sizes\.s: must be a whole stride of at least 1"):
        materialise(Flow(Ended(nn.AdaptiveAvgPool2d(1)), EXAMPLE), {"s": stride})
