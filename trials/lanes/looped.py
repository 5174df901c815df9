"""Lanes of any module, one after the other, each at its own sizes: the way of convolutions on a CPU.

    >>> lanes = LoopedLanes(start, loss="cross_entropy")
    >>> lanes.begin([(0, 0, 0), (0, 1, 0)], sizes=[{"width.0": 17}, {"width.0": 40}])
    >>> lanes.attach(rule, hyper)

All lanes' weights lie in one flat buffer, gradients in another: each lane's forward and backward pass run at its own
exact sizes (nothing is padded), the optimiser once over all. A lane's arithmetic does not depend on its neighbours.

A gated lane is laid out for the units that its membership can reach now; when it is laid anew, its weights and
optimiser state go home to tensors of maximum size and come back from there.

Legend of shape suffixes: K lanes, N units of a gate, B batch, O outputs, R rows, T a whole flat buffer.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from search_spaces.flow import Opaque, Use
from search_spaces.kept import kept_units, sizes_kept
from search_spaces.materialise import narrowed, pruned
from search_spaces.network import Size
from search_spaces.realise import draws
from search_spaces.width import HeldGate, gates_of
from trials.lanes.growing import Growing
from trials.lanes.initial import Identity, Start, units_only
from trials.lanes.layout import Layout
from trials.lanes.places import Places, cut, paste, places
from trials.lanes.program import Batch, Functions, anew, in_chunks, loss_of, norms_of, still
from trials.lanes.regating import Regated
from trials.lanes.saving import remembered, stacked
from trials.noise import fold
from trials.optimisers import Optimiser, Rule

Statistics = tuple[Tensor, Tensor, Tensor, Tensor | None]


class LoopedLanes(Regated):
    """K lanes of one network.

    Args:
        start: the network's flow at maximum size, and how lanes begin.
        gated: lanes keep their gates, whose grades `regate` sets; without, each is a plain network of whole sizes.
        whole: gated lanes have whole sizes too, so that they really stride, and of edges have what is kept.
    """

    def __init__(
        self,
        start: Start,
        *,
        loss: str = "cross_entropy",
        gated: bool = False,
        whole: bool = False,
        growth: str = "fresh",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.start, self.flow, self.loss, self.gated, self.whole = start, start.flow, loss, gated, whole
        self.device, self.dtype = torch.device(device), dtype
        self.gates = list(start.gates)
        self._draws, self._steps = draws(start.flow.graph), 0
        self._moved = False  # whether lanes have been laid anew, so that something of them may be at home alone
        self._growing = Growing(start, growth, loss) if growth != "fresh" else None

    # -- laying out --------------------------------------------------------------------------------------------------

    def begin(
        self,
        identities: Sequence[Identity],
        sizes: Sequence[Mapping[str, Size]],
        live: Sequence[Mapping[str, float]] | None = None,
    ) -> None:
        """Fresh lanes, laid out at `sizes` by gate and initialised for the real sizes `live`."""
        like = torch.zeros((), dtype=self.dtype, device=self.device)
        self.identities = list(identities)
        self.born = self.live = [dict(lane) for lane in live or units_only(sizes)]
        self._home = [
            self.start.weights(identity, lane, like) for identity, lane in zip(identities, self.live, strict=True)
        ]
        self._members = []
        self._home_state: list[dict[str, dict[str, Tensor]]] = [{} for _ in identities]
        self._lay(sizes)

    def _lay(self, sizes: Sequence[Mapping[str, Size]]) -> None:
        """Build every lane's module at `sizes`, its parameters views of one buffer, filled from home."""
        kept = [self._kept(lane) for lane in sizes]
        self.sizes = [tuple(sizes_kept(self.flow, units)[gate] for gate in self.gates) for units in kept]
        self.modules: list[nn.Module] = [self._module(units) for units in kept]
        self.places = [places(self.flow, units, self.device) for units in kept]
        self.own = [dict(module.named_parameters()) for module in self.modules]
        # a lane without a block or an edge has nothing of its parameters
        self.names = [name for name, _ in self.flow.graph.named_parameters() if any(name in own for own in self.own)]
        self.layout = Layout([[(own[n].numel() if n in own else 0, 1) for n in self.names] for own in self.own])
        self.weights = self.layout.zeros(self.device, self.dtype)
        self.gradients_T = self.layout.zeros(self.device, self.dtype)
        for lane, module in enumerate(self.modules):
            owners = _owners(module)
            for i, path in self._numbered(lane):
                parameter = self.own[lane][path]
                view = self._view(self.weights, lane, i).view(parameter.shape)
                home = self._home[lane].get(path)
                view.copy_(parameter.detach() if home is None else cut(home, self.places[lane].get(path)))
                new = nn.Parameter(view)
                new.grad = self._view(self.gradients_T, lane, i).view(parameter.shape)
                self.own[lane][path] = new
                for owner, name in owners[id(parameter)]:
                    setattr(owner, name, new)
        self.alive = None

    def _numbered(self, lane: int) -> Iterator[tuple[int, str]]:
        """The parameters that a lane has, each with its part of the buffer."""
        return ((i, name) for i, name in enumerate(self.names) if name in self.own[lane])

    def _kept(self, sizes: Mapping[str, Size]) -> dict[str, Tensor]:
        return kept_units(self.flow, self._room(sizes) if self.gated else sizes)

    def _module(self, kept: Mapping[str, Tensor]) -> nn.Module:
        if not self.gated:
            module: nn.Module = pruned(self.flow, kept)
        elif isinstance(self.flow, Opaque):
            module = copy.deepcopy(self.flow.graph)
        else:
            module = narrowed(self.flow, kept, whole=self.whole)
        return module.to(self.device, self.dtype).train()

    def _view(self, buffer_T: Tensor, lane: int, part: int) -> Tensor:
        return self.layout.lane_view(buffer_T, lane, part)

    # -- optimiser ---------------------------------------------------------------------------------------------------

    def attach(self, rule: Rule, hyper: Mapping[str, Tensor]) -> None:
        self.rule, self.optimiser = rule, Optimiser(rule, {}, self.weights)
        self.retune(hyper)

    def retune(self, hyper: Mapping[str, Tensor]) -> None:
        self.hyper = {name: hyper[name].to(self.device, self.dtype) for name in sorted(self.rule.uses)}
        self.optimiser.hyper = {name: self.layout.spread(values_K) for name, values_K in self.hyper.items()}
        self._set_rates()

    def _set_rates(self) -> None:
        """Learning rates as the parametrisation wants them, and 0 where a weight is no member."""
        self.rates_T = torch.ones_like(self.weights) if self.alive is None else self.alive.clone()
        for lane, sizes in enumerate(self.live):
            rates = self.start.rates(sizes)
            for i, name in self._numbered(lane):
                if (rate := rates.get(name, 1.0)) != 1.0:
                    self._view(self.rates_T, lane, i).mul_(rate)
        self.optimiser.hyper["lr"] = self.layout.spread(self.hyper["lr"]) * self.rates_T

    # -- gates -------------------------------------------------------------------------------------------------------

    def _make_room(self, reach: Sequence[tuple[Size, ...]]) -> None:
        lanes = [self._room(dict(zip(self.gates, lane, strict=True))) for lane in reach]
        if [tuple(lane[gate] for gate in self.gates) for lane in lanes] != self.sizes:
            self._relay(lanes)

    @property
    def executed(self) -> list[tuple[Size, ...]]:
        return self.sizes

    @property
    def in_place(self) -> bool:
        return self.gated and not self.whole

    def _parts(self, buffer: Tensor, lane: int) -> dict[str, Tensor]:
        return {n: self._view(buffer, lane, i).view(self.own[lane][n].shape) for i, n in self._numbered(lane)}

    def _buffers_of(self, lane: int) -> dict[str, Tensor]:
        return dict(self.modules[lane].named_buffers())

    def _places_of(self, lane: int) -> Mapping[str, Places]:
        return self.places[lane]

    def _as_module(self, lane: int) -> nn.Module:
        return self.modules[lane]

    def sample(self, grades: Sequence[Tensor]) -> None:
        for lane, module in enumerate(self.modules):
            for name, gate in gates_of(module).items():  # a lane without blocks has no gate for them
                g = self.gates.index(name)
                assert isinstance(gate, HeldGate)
                gate.m = grades[g][lane, : gate.maximum].to(self.device, self.dtype)

    def _relay(self, sizes: Sequence[Mapping[str, Size]]) -> None:
        """Weights, optimiser state and running statistics go home; the lanes that changed are cut anew."""
        statistics, self._moved = [], True
        for lane, module in enumerate(self.modules):
            for i, name in self._numbered(lane):
                place = self.places[lane].get(name)
                self._go_home(self._home[lane], name, self._view(self.weights, lane, i), module, place)
                for slot, state_T in self.optimiser.state.items():
                    state = self._home_state[lane].setdefault(slot, {})
                    self._go_home(state, name, self._view(state_T, lane, i), module, place, slot)
            statistics.append(_statistics(module, self.flow.uses, self.places[lane]))
        self._lay(sizes)
        self.attach(self.rule, self.hyper)
        for lane, module in enumerate(self.modules):
            for i, name in self._numbered(lane):
                place = self.places[lane].get(name)
                for slot, state_T in self.optimiser.state.items():
                    view, home = self._view(state_T, lane, i), self._home_state[lane][slot]
                    if name in home:
                        view.copy_(cut(home[name], place).reshape(view.shape))
            _restore(module, statistics[lane], self.places[lane])

    def _go_home(
        self,
        home: dict[str, Tensor],
        name: str,
        view: Tensor,
        module: nn.Module,
        place: Places | None,
        slot: str = "",
    ) -> None:
        parameter = module.get_parameter(name)
        if name not in home:
            home[name] = self._begun(self.flow.graph.get_parameter(name), slot)
        paste(home[name], view.view(parameter.shape), place)

    def _begun(self, parameter: nn.Parameter, slot: str) -> Tensor:
        """A parameter at its maximum size as it was made, or its state before the first step."""
        full = parameter.detach().to(self.device, self.dtype)
        return full.clone() if not slot else torch.full_like(full, 1.0 if slot.startswith("power") else 0.0)

    # -- as they are -------------------------------------------------------------------------------------------------

    def by_lane(self, buffer: Tensor) -> Tensor:
        return self.layout.by_lane(buffer)

    def take(self, rows: Tensor, buffer: Tensor) -> None:
        self.layout.take(rows, buffer)

    def memory(self) -> dict[str, Tensor]:
        found = {"steps": torch.full((len(self.modules),), self._steps)}
        found |= {f"buffers.{name}": value for name, value in stacked([*map(remembered, self.modules)]).items()}
        for slot in ("", *self.optimiser.state) if self._moved else ():
            whole = [
                torch.cat([m.flatten() for m in self._whole(lane, slot).values()]) for lane in range(len(self.own))
            ]
            found[f"home.{slot or 'weights'}"] = torch.stack(whole)
        return found

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        self._steps = int(memory["steps"][0])
        for lane, module in enumerate(self.modules):
            for name, buffer in remembered(module).items():
                buffer.copy_(memory[f"buffers.{name}"][lane, : buffer.numel()].view(buffer.shape))
        self._moved = "home.weights" in memory
        for slot in ("", *self.optimiser.state) if self._moved else ():
            for lane, row in enumerate(memory[f"home.{slot or 'weights'}"]):
                whole = self._whole(lane, slot)
                pieces = torch.split(row.to(self.device), [m.numel() for m in whole.values()])
                parts = {name: part.view(whole[name].shape) for name, part in zip(whole, pieces, strict=True)}
                if slot:
                    self._home_state[lane][slot] = parts
                else:
                    self._home[lane] = parts

    def _whole(self, lane: int, slot: str) -> dict[str, Tensor]:
        """What a lane has at home, of every parameter: as it began where it has not been there."""
        home = self._home_state[lane].get(slot, {}) if slot else self._home[lane]
        return {
            name: home[name] if name in home else self._begun(parameter, slot)
            for name, parameter in self.flow.graph.named_parameters()
        }

    def again(self, sizes: Sequence[tuple[Size, ...]]) -> None:
        if list(sizes) != self.sizes:
            self._lay([dict(zip(self.gates, lane, strict=True)) for lane in sizes])
            self.attach(self.rule, self.hyper)
        self._members = []

    # -- the step ----------------------------------------------------------------------------------------------------

    def step(self, x: Tensor, y_BO: Tensor) -> None:
        self.gradients_T.zero_()
        with torch.enable_grad():
            for lane, module in enumerate(self.modules):
                with self._luck("step", lane):
                    torch.autograd.backward(loss_of(self.loss, module(self._own(x, lane)), y_BO))
        self.optimiser.step(self.weights, self.gradients_T)
        self._steps += 1

    def functions(self) -> Functions:
        return Functions(
            lane_T=self.layout.spread(torch.arange(len(self.modules), device=self.device)),
            rates_T=self.rates_T,
            losses=self._losses,
        )

    def stands(self) -> tuple[Tensor, dict[str, Tensor]]:
        return self.weights, self.optimiser.state

    def _losses(self, weights_T: Tensor, grades: Sequence[Tensor], batch: Batch) -> Tensor:
        """Every lane's loss on a batch, [K]."""
        found = []
        for lane, module in enumerate(self.modules):
            values = self._values(lane, weights_T, grades)
            memory = contextlib.nullcontext() if batch.remembers else still(module)
            with memory, self._luck("step", lane, batch.step):
                outputs_BO = functional_call(module, values, (self._own(batch.x, lane),), tie_weights=False)
            found.append(loss_of(self.loss, outputs_BO, batch.y_BO))
        return torch.stack(found)

    def _values(self, lane: int, weights_T: Tensor, grades: Sequence[Tensor]) -> dict[str, Tensor]:
        """A lane's parameters and grades by every path but a second one to the same module: a call with both would not
        put back what was there."""
        views = {
            id(self.own[lane][n]): self._view(weights_T, lane, i).view_as(self.own[lane][n])
            for i, n in self._numbered(lane)
        }
        found = {}
        for path, module in self.modules[lane].named_modules():
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                found[f"{path}.{name}".lstrip(".")] = views[id(parameter)]
            if isinstance(module, HeldGate):
                m_N = grades[self.gates.index(module.name)][lane, : module.maximum]
                found[f"{path}.m".lstrip(".")] = m_N.to(self.device, self.dtype)
        return found

    @contextlib.contextmanager
    def _luck(self, purpose: str, lane: int, step: int | None = None) -> Iterator[None]:
        """Whatever a lane's own layers draw (dropout) is a function of whose lane it is, and of the step."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=self._draws):
            if self._draws:
                seed, number, replicate = self.identities[lane]
                torch.manual_seed(
                    fold(seed, f"layers {purpose}", number, replicate, self._steps if step is None else step) >> 1
                )
            yield

    def grade_gradients(self, x: Tensor, y_BO: Tensor) -> list[Tensor]:
        found = [
            torch.zeros(len(self.modules), self.flow.gates[gate].maximum, dtype=self.dtype, device=self.device)
            for gate in self.gates
        ]
        for lane, module in enumerate(self.modules):
            held = gates_of(module)
            with torch.enable_grad(), still(module), self._luck("move", lane):
                for gate in held.values():
                    gate.m = gate.m.detach().requires_grad_()  # type: ignore[operator]
                loss = loss_of(self.loss, module(self._own(x, lane)), y_BO)
                leaves: list[Tensor] = [gate.m for gate in held.values()]  # type: ignore[misc]
                gradients = torch.autograd.grad(loss, leaves)
            for (name, gate), gradient in zip(held.items(), gradients, strict=True):
                found[self.gates.index(name)][lane, : gate.maximum] = gradient
                gate.m = gate.m.detach()  # type: ignore[operator]
        return found

    @property
    def normed(self) -> bool:
        return any(norms_of(module) for module in self.modules)

    def recalibrate(self, batches: Sequence[Tensor]) -> None:
        for lane, module in enumerate(self.modules):
            with torch.no_grad(), anew(module), self._luck("norms", lane):
                for x in batches:
                    module(self._own(x, lane))

    def predict(self, x: Tensor) -> Tensor:
        found = []
        with torch.no_grad():
            for lane, module in enumerate(self.modules):
                module.eval()
                found.append(torch.cat([module(part) for part in in_chunks(self._own(x, lane))]).mT)
                module.train()
        return torch.stack(found)

    def module(self, lane: int) -> nn.Module:
        return copy.deepcopy(self.modules[lane])


def _owners(module: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Who has each parameter, and under which name: tied ones stay tied."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False, remove_duplicate=False):
            found.setdefault(id(parameter), []).append((child, name))
    return found


def _statistics(module: nn.Module, uses: Sequence[Use], places: Mapping[str, Places]) -> dict[str, Statistics]:
    """Each batch norm's running mean and variance, the channels they belong to, and of how many batches they are."""
    found: dict[str, Statistics] = {}
    there = dict(module.named_modules())
    for use in uses:
        norm = there.get(use.path) if use.kind == "norm" else None
        rows = places.get(f"{use.path}.weight", (None, None))[0]
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None and rows is not None:
            assert norm.running_var is not None
            found[use.path] = (rows, norm.running_mean.clone(), norm.running_var.clone(), norm.num_batches_tracked)
    return found


def _restore(module: nn.Module, statistics: Mapping[str, Statistics], places: Mapping[str, Places]) -> None:
    there = dict(module.named_modules())
    for path, (old, mean, variance, batches) in statistics.items():
        norm = there.get(path)
        if norm is None:
            continue  # its block is gone
        rows = places[f"{path}.weight"][0]
        assert rows is not None
        width = int(max(old.max(), rows.max())) + 1
        for name, value, fresh in (("running_mean", mean, 0.0), ("running_var", variance, 1.0)):
            full = torch.full((width,), fresh, dtype=value.dtype, device=value.device)
            full[old] = value
            getattr(norm, name).copy_(full[rows])
        norm.num_batches_tracked = batches
