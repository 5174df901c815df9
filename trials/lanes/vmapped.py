"""Lanes of any gated module as one program, by torch.func: one call of each operation for all lanes.

    >>> lanes = VmappedLanes(start, way="unfolded", loss="cross_entropy")
    >>> lanes.begin(identities, sizes=[{"width.0": 17}, {"width.0": 40}])       # all laid out for 64: a shape class
    >>> lanes.attach(rule, hyper)
    >>> lanes.regate(grades, lanes.sizes, n_KG)

Every parameter has a leading lane axis, every gate is held at its lane's grades. vmap turns a convolution whose weights
differ from lane to lane into a grouped one, which is slow on many machines: `unfolded` makes it a product instead.
Batch norms keep statistics per lane outside the module, for torch.func forbids a module to write its own.

Legend of shape suffixes: K lanes, P parameters of one lane, N units of a gate, B batch, O outputs, R rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from search_spaces.cells import CellBatchNorm, cell_statistics, normed, unbiased
from search_spaces.flow import Opaque
from search_spaces.kept import kept_units, roles_of, sizes_kept
from search_spaces.materialise import narrowed
from search_spaces.network import Size
from search_spaces.width import gates_of
from trials.lanes.growing import Growing
from trials.lanes.initial import Identity, Start, units_only
from trials.lanes.places import Places, cut, places
from trials.lanes.program import Batch, Functions, in_chunks, loss_of
from trials.lanes.regating import Regated
from trials.lanes.saving import remembered
from trials.optimisers import Optimiser, Rule

Values = dict[str, Tensor]


class VmappedLanes(Regated):
    """K lanes of one network, laid out at one shape: each gate's greatest size among the lanes, as a power of two.

    Maps have room for the least stride among them; with `whole` all lanes have the same whole strides, and really
    stride.
    """

    def __init__(
        self,
        start: Start,
        *,
        way: str = "unfolded",
        loss: str = "cross_entropy",
        growth: str = "fresh",
        whole: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.start, self.flow, self.way, self.loss, self.whole = start, start.flow, way, loss, whole
        self.device, self.dtype = torch.device(device), dtype
        self.gates = list(start.gates)
        self._growing = Growing(start, growth, loss) if growth != "fresh" else None

    def begin(
        self,
        identities: Sequence[Identity],
        sizes: Sequence[Mapping[str, Size]],
        live: Sequence[Mapping[str, float]] | None = None,
    ) -> None:
        """Fresh lanes with room for `sizes` by gate, initialised for the real sizes `live`."""
        self.born = self.live = [dict(lane) for lane in live or units_only(sizes)]
        self._members = []
        self.identities, self.lanes = list(identities), len(identities)
        self._lay(sizes)

    def _lay(self, sizes: Sequence[Mapping[str, Size]]) -> None:
        self.kept = kept_units(self.flow, self._class(sizes))
        self.sizes = [tuple(sizes_kept(self.flow, self.kept)[gate] for gate in self.gates)] * self.lanes
        self.net = lane_ready(self._module(), self.way).to(self.device, self.dtype).train()
        like = torch.zeros((), dtype=self.dtype, device=self.device)
        shapes = dict(self.net.named_parameters())
        self.weights = torch.zeros(self.lanes, sum(p.numel() for p in shapes.values()), dtype=self.dtype).to(like)
        self.views = self._views(self.weights)
        place = places(self.flow, self.kept, self.device)
        for k, (identity, lane) in enumerate(zip(self.identities, self.born, strict=True)):
            fresh = self.start.weights(identity, lane, like)
            for name, view in self.views.items():
                home = fresh.get(name)
                view[k].copy_(shapes[name].detach() if home is None else cut(home, place.get(name)))
        self.buffers = {
            name: b.detach().to(like).expand(self.lanes, *b.shape).clone() for name, b in self.net.named_buffers()
        }
        self._gate_names = {
            gate.name: [path for path, m in self.net.named_modules(remove_duplicate=False) if m is gate]
            for gate in gates_of(self.net).values()
        }
        self.alive = None
        self._compile()

    def _module(self) -> nn.Module:
        """The network at the lanes' shape."""
        opaque = isinstance(self.flow, Opaque)
        return copy.deepcopy(self.flow.graph) if opaque else narrowed(self.flow, self.kept, whole=self.whole)

    @property
    def executed(self) -> list[tuple[Size, ...]]:
        return self.sizes

    @property
    def in_place(self) -> bool:
        return not self.whole

    def _class(self, sizes: Sequence[Mapping[str, Size]]) -> dict[str, Size]:
        """The shape class: powers of two that hold every lane, the least stride, every unit of a topology."""
        found: dict[str, Size] = {}
        rooms = [self._room(lane) for lane in sizes]
        for gate, role in roles_of(self.flow.graph).items():
            maximum, lanes = self.flow.gates[gate].maximum, [lane[gate] for lane in rooms]
            if role == "stride":
                assert not self.whole or len(set(lanes)) == 1, "lanes that really stride do so alike"
                found[gate] = min(n for n in lanes if isinstance(n, int))
            elif role == "topology":
                found[gate] = tuple(range(maximum))
            else:
                most = max(n for n in lanes if isinstance(n, int))
                found[gate] = min(1 << max(most - 1, 0).bit_length(), maximum)
        return found

    def _views(self, buffer_KP: Tensor) -> Values:
        found, place = {}, 0
        for name, p in self.net.named_parameters():
            found[name] = buffer_KP[:, place : place + p.numel()].view(self.lanes, *p.shape)
            place += p.numel()
        return found

    def _compile(self) -> None:
        """One lane's functions, mapped over all: once for a common batch, once for a batch of each lane's own."""
        norms = {path: m for path, m in self.net.named_modules() if isinstance(m, LaneBatchNorm)}

        def lane_loss(weights: Values, buffers: Values, x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
            out = functional_call(self.net, {**weights, **buffers}, (x,))
            return loss_of(self.loss, out, y), {path: norm.seen for path, norm in norms.items()}

        def statistics(weights: Values, buffers: Values, x: Tensor) -> Any:
            functional_call(self.net, {**weights, **buffers}, (x,))
            return {path: norm.seen for path, norm in norms.items()}

        def gated_loss(gates: Values, weights: Values, buffers: Values, x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
            return lane_loss(weights, {**buffers, **self._spread(gates)}, x, y)

        def gate_loss(gates: Values, weights: Values, buffers: Values, x: Tensor, y: Tensor) -> Tensor:
            return gated_loss(gates, weights, buffers, x, y)[0]

        def predicted(weights: Values, buffers: Values, x: Tensor) -> Tensor:
            out: Tensor = functional_call(self.net, {**weights, **buffers}, (x,))
            return out

        self._gradients = [over_lanes(grad(lane_loss, has_aux=True), (0, 0, own, None)) for own in (None, 0)]
        self._gate_gradients = [over_lanes(grad(gate_loss), (0, 0, 0, own, None)) for own in (None, 0)]
        self._gated_losses = [over_lanes(gated_loss, (0, 0, 0, own, None)) for own in (None, 0)]
        self._statistics = [over_lanes(statistics, (0, 0, own)) for own in (None, 0)]
        self._predictions = over_lanes(predicted, (0, 0, None))

    def _spread(self, gates: Values) -> Values:
        return {f"{path}.m": m for name, m in gates.items() for path in self._gate_names[name]}

    def _apart(self, x: Tensor) -> int:
        """1 where each lane has a batch of its own, else 0."""
        return int(x.dim() > self.flow.example.dim())

    # -- optimiser ---------------------------------------------------------------------------------------------------

    def attach(self, rule: Rule, hyper: Mapping[str, Tensor]) -> None:
        """Begin an optimiser with each lane's own hyperparameters, name -> [K]."""
        self.rule, self.optimiser = rule, Optimiser(rule, {}, self.weights)
        self.retune(hyper)

    def retune(self, hyper: Mapping[str, Tensor]) -> None:
        self.hyper = {name: hyper[name].to(self.device, self.dtype) for name in sorted(self.rule.uses)}
        self.optimiser.hyper = {name: v.unsqueeze(1).expand_as(self.weights) for name, v in self.hyper.items()}
        self._set_rates()

    def _set_rates(self) -> None:
        self.rates_KP = torch.ones_like(self.weights) if self.alive is None else self.alive.clone()
        views = self._views(self.rates_KP)
        for k, sizes in enumerate(self.live):
            for name, rate in self.start.rates(sizes).items():
                if name in views and rate != 1.0:
                    views[name][k].mul_(rate)
        self.optimiser.hyper["lr"] = self.hyper["lr"].unsqueeze(1) * self.rates_KP

    # -- gates -------------------------------------------------------------------------------------------------------

    def _make_room(self, reach: Sequence[tuple[Size, ...]]) -> None:
        """A lane that outgrows the class lays all of them anew, at their greatest sizes."""
        lanes = [dict(zip(self.gates, lane, strict=True)) for lane in (*reach, *self.sizes)]
        if self._class(lanes) != dict(zip(self.gates, self.sizes[0], strict=True)):
            self._relay(lanes)

    def _parts(self, buffer: Tensor, lane: int) -> dict[str, Tensor]:
        return {name: view[lane] for name, view in self._views(buffer).items()}

    def _buffers_of(self, lane: int) -> dict[str, Tensor]:
        return {name: buffer[lane] for name, buffer in self.buffers.items()}

    def _places_of(self, lane: int) -> Mapping[str, Places]:
        return places(self.flow, self.kept, self.device)

    def _as_module(self, lane: int) -> nn.Module:
        return self.module(lane)

    def sample(self, grades: Sequence[Tensor]) -> None:
        """Take random grades for the coming step."""
        for g, name in enumerate(self.gates):
            for path in self._gate_names.get(name, ()):
                if (held := self.buffers.get(f"{path}.m")) is not None:
                    self.buffers[f"{path}.m"] = grades[g][:, : held.shape[1]].to(self.device, self.dtype)

    def _relay(self, sizes: Sequence[Mapping[str, Size]]) -> None:
        """Lay all lanes anew at larger sizes: leading units keep weights, state and statistics."""
        weights, buffers = {n: v.clone() for n, v in self.views.items()}, self.buffers
        state = {slot: {n: v.clone() for n, v in self._views(s).items()} for slot, s in self.optimiser.state.items()}
        old = places(self.flow, self.kept, self.device)
        self._lay(sizes)
        self.attach(self.rule, self.hyper)
        new = places(self.flow, self.kept, self.device)
        targets = {"": (self.views, weights)}
        targets |= {slot: (self._views(self.optimiser.state[slot]), saved) for slot, saved in state.items()}
        for views, saved in targets.values():
            for name, view in views.items():
                if name not in saved:
                    continue  # a block that had no room
                whole = (None, None)
                rows, columns = (_within(a, b) for a, b in zip(old.get(name, whole), new.get(name, whole), strict=True))
                _paste_lanes(view, saved[name], rows, columns)
        for name, saved_b in buffers.items():
            if name in self.buffers and self.buffers[name].dim() == saved_b.dim() and not name.endswith(".m"):
                owner = name.rpartition(".")[0]
                whole = (None, None)
                rows = _within(old.get(f"{owner}.weight", whole)[0], new.get(f"{owner}.weight", whole)[0])
                _paste_lanes(self.buffers[name], saved_b, rows, None)

    # -- as they are -------------------------------------------------------------------------------------------------

    def by_lane(self, buffer: Tensor) -> Tensor:
        return buffer.reshape(self.lanes, -1, *buffer.shape[1:]).clone()

    def take(self, rows: Tensor, buffer: Tensor) -> None:
        buffer.view(self.lanes, -1, *buffer.shape[1:]).copy_(rows[:, : len(buffer) // self.lanes])

    def memory(self) -> dict[str, Tensor]:
        return {f"buffers.{name}": buffer.clone() for name, buffer in self._remembered().items()}

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        for name, buffer in self._remembered().items():
            buffer.copy_(memory[f"buffers.{name}"])

    def _remembered(self) -> Values:
        """The buffers that no grade is."""
        return {name: self.buffers[name] for name in remembered(self.net)}

    def again(self, sizes: Sequence[tuple[Size, ...]]) -> None:
        if list(sizes) != self.sizes:
            self._lay([dict(zip(self.gates, lane, strict=True)) for lane in sizes])
            self.attach(self.rule, self.hyper)
        self._members = []

    # -- the step ----------------------------------------------------------------------------------------------------

    def step(self, x: Tensor, y_BO: Tensor) -> None:
        """One training step of every lane's weights."""
        found, seen = self._gradients[self._apart(x)](self.views, self.buffers, x, y_BO)
        flat_KP = torch.cat([found[name].reshape(self.lanes, -1) for name in self.views], 1)
        self.optimiser.step(self.weights, flat_KP)
        self._remember(seen)

    def _remember(self, seen: Mapping[str, tuple[Tensor, Tensor]], share: float | None = None) -> None:
        """Take a batch's means and variances, [K, N], into the running ones, each norm's share or that one."""
        for path, statistics in seen.items():
            norm = self.net.get_submodule(path)
            assert isinstance(norm, LaneBatchNorm)
            for name, value_KN in zip(("running_mean", "running_var"), statistics, strict=True):
                held_KN = self.buffers[f"{path}.{name}"]
                # whatever is held, even what is not finite, is gone where the batch is all
                held_KN.copy_(value_KN) if share == 1.0 else held_KN.lerp_(value_KN, share or norm.momentum)

    @property
    def normed(self) -> bool:
        return any(isinstance(module, LaneBatchNorm) for module in self.net.modules())

    def recalibrate(self, batches: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for i, x in enumerate(batches):
                self._remember(self._statistics[self._apart(x)](self.views, self.buffers, x), 1.0 / (i + 1))

    def grade_gradients(self, x: Tensor, y_BO: Tensor) -> list[Tensor]:
        """d(lane loss on this batch)/d(grade), [K, N] a gate."""
        gates = {name: self.buffers[f"{paths[0]}.m"] for name, paths in self._gate_names.items()}
        found = self._gate_gradients[self._apart(x)](gates, self.views, self.buffers, x, y_BO)
        none_K0 = torch.zeros(self.lanes, 0, dtype=self.dtype, device=self.device)  # of blocks for which none has room
        by_gate = [(found.get(gate, none_K0), self.flow.gates[gate].maximum) for gate in self.gates]
        return [functional.pad(m_KN, (0, maximum - m_KN.shape[1])) for m_KN, maximum in by_gate]

    def functions(self) -> Functions:
        lanes_K = torch.arange(self.lanes, device=self.device)
        return Functions(
            lane_T=lanes_K.repeat_interleave(self.weights.shape[1]),
            rates_T=self.rates_KP.flatten(),
            losses=self._losses,
        )

    def stands(self) -> tuple[Tensor, dict[str, Tensor]]:
        return self.weights.view(-1), {slot: state_KP.view(-1) for slot, state_KP in self.optimiser.state.items()}

    def _losses(self, weights_T: Tensor, grades: Sequence[Tensor], batch: Batch) -> Tensor:
        """Every lane's loss on a batch, [K]."""
        by_name = dict(zip(self.gates, grades, strict=True))
        gates = {
            name: by_name[name][:, : self.buffers[f"{paths[0]}.m"].shape[1]].to(self.device, self.dtype)
            for name, paths in self._gate_names.items()
        }
        views, own = self._views(weights_T.view(self.lanes, -1)), self._apart(batch.x)
        losses_K, seen = self._gated_losses[own](gates, views, self.buffers, batch.x, batch.y_BO)
        if batch.remembers:
            with torch.no_grad():
                self._remember(tree_map(torch.detach, seen))
        return losses_K  # type: ignore[no-any-return]

    def predict(self, x: Tensor) -> Tensor:
        """Every lane's outputs, [K, O, R]."""
        self.net.eval()
        with torch.no_grad():
            parts = [self._predictions(self.views, self.buffers, part) for part in in_chunks(x, 256)]
        self.net.train()
        return torch.cat(parts, 1).mT

    def module(self, lane: int) -> nn.Module:
        """A lane as a module of its own."""
        module = self._module().to(self.device, self.dtype).train()
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.copy_(self.views[name][lane])
            for name, b in module.named_buffers():
                if name in self.buffers and b.shape == self.buffers[name][lane].shape:
                    b.copy_(self.buffers[name][lane])
        return module


def _within(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    """Where the old places lie among the new ones."""
    return None if old is None or new is None else torch.searchsorted(new, old)


def _paste_lanes(view: Tensor, saved: Tensor, rows: Tensor | None, columns: Tensor | None) -> None:
    if rows is None:
        view.copy_(saved)
    elif columns is None:
        view.index_copy_(1, rows, saved)
    else:
        view[:, rows.unsqueeze(1), columns] = saved


def over_lanes(function: Callable[..., Any], in_dims: tuple[int | None, ...]) -> Callable[..., Any]:
    """`vmap` whose lanes are bitwise the same in any company: a lane alone runs beside a copy of itself, because torch
    has kernels of their own for a batch of one matrix. The copy's FLOPs are charged to nobody."""
    mapped = vmap(function, in_dims=in_dims)

    def called(*values: Any) -> Any:
        lanes = len(next(iter(values[0].values())))
        if lanes > 1:
            return mapped(*values)
        twice = [v if axis is None else tree_map(_doubled, v) for v, axis in zip(values, in_dims, strict=True)]
        return tree_map(lambda t: t[:1], mapped(*twice))

    return called


def _doubled(lane_1: Tensor) -> Tensor:
    return lane_1.expand(2, *lane_1.shape[1:])


# -- modules that bear vmap --------------------------------------------------------------------------------------------


def lane_ready(module: nn.Module, way: str) -> nn.Module:
    """The module with batch norms, and for `unfolded` convolutions, that bear vmap; in place."""
    for path, child in list(module.named_modules()):
        new: nn.Module | None = None
        if isinstance(child, CellBatchNorm):
            new = LaneCellBatchNorm(child)
        elif isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            new = LaneBatchNorm(child)
        elif way == "unfolded" and isinstance(child, nn.Conv2d) and child.groups == 1:
            new = UnfoldedConv2d(child)
        if new is not None:
            owner, _, name = path.rpartition(".")
            module.get_submodule(owner).add_module(name, new)
    return module


class LaneBatchNorm(nn.Module):
    """nn.BatchNorm that writes nothing: the statistics of its batch are left in `seen` (mean, unbiased variance)."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.eps, self.momentum = norm.eps, norm.momentum if norm.momentum is not None else 0.1
        self.weight, self.bias = norm.weight, norm.bias
        channels = norm.num_features
        for name, start in (("running_mean", torch.zeros(channels)), ("running_var", torch.ones(channels))):
            own = getattr(norm, name)
            self.register_buffer(name, start if own is None else own.detach().clone())
        self.seen: tuple[Tensor, Tensor] = (self.running_mean, self.running_var)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:  # torch's own kernel, which vmap runs once over the channels of all lanes
            out, mean, inverse = torch.native_batch_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps)
            variance = (inverse.detach() ** -2 - self.eps).clamp(min=0.0)
            count = x.numel() // x.shape[1]
            self.seen = (mean.detach(), variance * (count / max(count - 1, 1)))
            return out
        return normed(x, self.running_mean, self.running_var, self)


class LaneCellBatchNorm(LaneBatchNorm):
    """The same over live cells."""

    def __init__(self, norm: CellBatchNorm) -> None:
        super().__init__(norm)
        self.axes, self.gates = norm.axes, norm.gates

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        mean, variance, count = cell_statistics(self.axes, self.gates, x)
        self.seen = (mean.detach(), unbiased(variance, count).detach())
        return normed(x, mean, variance, self)


class UnfoldedConv2d(nn.Module):
    """nn.Conv2d as unfold and one product."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            raise ValueError("unfolded: a convolution must have numbers of zeros as padding")
        self.options: dict[str, Any] = {
            "kernel_size": layer.kernel_size,
            "padding": layer.padding,
            "stride": layer.stride,
            "dilation": layer.dilation,
        }

    def forward(self, x: Tensor) -> Tensor:
        columns = functional.unfold(x, **self.options)
        out = self.weight.flatten(1) @ columns
        if self.bias is not None:
            out = out + self.bias.unsqueeze(1)
        sides = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(
                x.shape[2:],
                self.options["padding"],
                self.options["dilation"],
                self.options["kernel_size"],
                self.options["stride"],
                strict=True,
            )
        ]
        return out.view(*out.shape[:2], *sides)
