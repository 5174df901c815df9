"""What a lane of any module begins with: weights as a function of (search seed, trial number, replicate) alone.

Numbers are drawn for the module of maximum size and nested by prefix, so a wider lane begins with the narrower one's
weights; their scale follows the lane's own live sizes. Layers of types that are not linear or convolutional, and norms,
begin as they were built.

Legend of shape suffixes: O outputs, I numbers that an output reads.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search_spaces.cost import live
from search_spaces.flow import Flow, Opaque, Use
from search_spaces.flow_costs import channels_of
from search_spaces.network import Size
from search_spaces.norms import MaskedNorm
from search_spaces.parametrisation import REFERENCE, Scaling, scaling
from trials.lanes.places import Places, cut
from trials.noise import fold, normal

LAYERS = ("linear", "conv", "grouped", "depthwise")
Identity = tuple[int, int, int]  # search seed, trial number, replicate


@dataclass(frozen=True, kw_only=True)
class Start:
    """How lanes of a network begin: its flow at maximum size, its gates in the order of its sizes, its parametrisation
    and the optimiser's kind."""

    flow: Flow
    gates: tuple[str, ...]
    parametrisation: str = "sp"
    optimizer: str = "sgd"

    @functools.cached_property
    def frozen(self) -> frozenset[str]:
        """Parameters that ask for no gradient, and the layers whose weights do not: they stay as they are."""
        still = [name for name, p in self.flow.graph.named_parameters() if not p.requires_grad]
        return frozenset([*still, *(name.removesuffix(".weight") for name in still if name.endswith(".weight"))])

    def layers(self) -> dict[str, Use]:
        """The first use of each layer with weights, by path."""
        found: dict[str, Use] = {}
        for use in self.flow.uses:
            if use.kind in LAYERS:
                found.setdefault(use.path, use)
        return found

    def scaling(self, use: Use, sizes: Mapping[str, float]) -> Scaling:
        """The scaling of one layer at live sizes."""
        inputs, outputs = channels_of(use.inputs), channels_of(use.outputs)
        mup = self.parametrisation == "mup"
        base = {name: REFERENCE if mup else size for name, size, _ in (*inputs, *outputs) if name is not None}
        depthwise = use.kind == "depthwise"
        return scaling(
            self.parametrisation,
            self.optimizer,
            fan_in=use.taps * (1.0 if depthwise else float(live(inputs, sizes))),
            base_in=use.taps * (1.0 if depthwise else float(live(inputs, base))),
            fan_out=float(live(outputs, sizes)),
            base_out=float(live(outputs, base)),
            reads=not depthwise and any(name for name, _, _ in inputs),
            writes=any(name for name, _, _ in outputs),
        )

    def weights(self, identity: Identity, sizes: Mapping[str, float], like: Tensor) -> dict[str, Tensor]:
        """A lane's weights and biases at maximum size, by the paths of the module's parameters."""
        if isinstance(self.flow, Opaque):
            return untraced(self.flow.graph, identity, like)
        seed, number, replicate = identity
        found: dict[str, Tensor] = {}
        for i, (path, use) in enumerate(self.layers().items()):
            layer = self.flow.module(path)
            assert isinstance(layer.weight, Tensor)
            if path in self.frozen:
                continue  # it keeps what it was made with
            shape = layer.weight.shape
            drawn_OI = normal(fold(seed, "init", number, replicate, i), shape[0], shape[1:].numel(), like.device)
            found[f"{path}.weight"] = (drawn_OI * self.scaling(use, sizes).std).view(shape).to(like)
            if layer.bias is not None:
                found[f"{path}.bias"] = torch.zeros(shape[0]).to(like)
        return found

    def initial(
        self, identity: Identity, sizes: Mapping[str, float], like: Mapping[str, Tensor], place: Mapping[str, Places]
    ) -> dict[str, Tensor]:
        """What a lane laid out as `like` would begin with, parameters and running statistics, by path."""
        whole = {**dict(self.flow.graph.named_parameters()), **dict(self.flow.graph.named_buffers())}
        whole |= self.weights(identity, sizes, next(iter(like.values())))
        found = {}
        for name, view in like.items():
            own = place.get(name) or place.get(f"{name.rpartition('.')[0]}.weight")
            if name in whole and view.dim() and not name.endswith(".m"):
                rows = own and (own[0], own[1] if name.endswith("weight") else None)
                found[name] = cut(whole[name].detach().to(view), rows)
        return found

    def rates(self, sizes: Mapping[str, float]) -> dict[str, float]:
        """What the learning rate of each weight and bias is multiplied by."""
        found: dict[str, float] = dict.fromkeys(self.frozen, 0.0)
        for path, use in self.layers().items():
            s = self.scaling(use, sizes)
            for name, rate in ((f"{path}.weight", s.weight_lr), (f"{path}.bias", s.bias_lr)):
                found.setdefault(name, rate)
        return found


def units_only(sizes: Sequence[Mapping[str, Size]]) -> list[dict[str, float]]:
    """The sizes that are numbers: a topology has none."""
    return [{name: float(n) for name, n in lane.items() if isinstance(n, int | float)} for lane in sizes]


def is_fixed(flow: Flow) -> bool:
    """Whether gated lanes must keep the network's maximum size: it cannot be cut, or a norm asks for all grades."""
    return isinstance(flow, Opaque) or any(isinstance(m, MaskedNorm) for m in flow.graph.modules())


def untraced(module: nn.Module, identity: Identity, like: Tensor) -> dict[str, Tensor]:
    """The same for a module that cannot be traced: He weights at full fan-in."""
    seed, number, replicate = identity
    found: dict[str, Tensor] = {}
    layers = [(p, m) for p, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    for i, (path, layer) in enumerate(layers):
        shape = layer.weight.shape
        drawn_OI = normal(fold(seed, "init", number, replicate, i), shape[0], shape[1:].numel(), like.device)
        found[f"{path}.weight"] = (drawn_OI * (2.0 / shape[1:].numel()) ** 0.5).view(shape).to(like)
        if layer.bias is not None:
            found[f"{path}.bias"] = torch.zeros(shape[0]).to(like)
    return found
