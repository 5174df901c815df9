"""New grades for lanes of any module, whatever way they run: who rests, who begins anew, who grows.

Legend of shape suffixes: K lanes, G gates, N units of a gate, O outputs of a layer, I inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from search_spaces.flow import Opaque
from search_spaces.kept import roles_of, sizes_of
from search_spaces.network import Size
from trials.lanes.growing import Growing, Lane
from trials.lanes.initial import Identity, Start, is_fixed
from trials.lanes.masks import newcomers, rest, silenced, speaking
from trials.lanes.places import Places
from trials.optimisers import Optimiser

FRESH = {"running_mean": 0.0, "running_var": 1.0}  # statistics of a channel that has not spoken


class Regated:
    """What `LoopedLanes` and `VmappedLanes` share. Their flat buffers of weights are shaped as each wants them; a part
    of one is what a lane has of a parameter there."""

    start: Start
    gates: list[str]
    sizes: list[tuple[Size, ...]]
    identities: list[Identity]
    born: list[dict[str, float]]
    live: list[dict[str, float]]
    optimiser: Optimiser
    weights: Tensor
    alive: Tensor | None
    _growing: Growing | None
    _members: list[dict[str, Tensor]]

    def sample(self, grades: Sequence[Tensor]) -> None:
        raise NotImplementedError

    def _make_room(self, reach: Sequence[tuple[Size, ...]]) -> None:
        """Lay lanes anew where that many units want it."""
        raise NotImplementedError

    def _set_rates(self) -> None:
        raise NotImplementedError

    def _parts(self, buffer: Tensor, lane: int) -> dict[str, Tensor]:
        """A lane's places in a flat buffer, by the paths of its parameters."""
        raise NotImplementedError

    def _buffers_of(self, lane: int) -> dict[str, Tensor]:
        """A lane's buffers by path, to be written to."""
        raise NotImplementedError

    def _places_of(self, lane: int) -> Mapping[str, Places]:
        raise NotImplementedError

    def _own(self, x: Tensor, lane: int) -> Tensor:
        """What a lane sees of a batch that all share, or of which each has its own."""
        return x[lane] if x.dim() > self.start.flow.example.dim() else x

    def _as_module(self, lane: int) -> nn.Module:
        """A module of a lane's weights and grades, in training."""
        raise NotImplementedError

    def regate(
        self,
        grades: Sequence[Tensor],
        reach: Sequence[tuple[Size, ...]],
        live: Tensor,
        batch: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Take new grades ([K, N] a gate); see `trials.lanes.program.Program`."""
        if self.alive is not None:
            self.optimiser.forget(self.alive)  # whatever they gathered while they rested
        self.live = [dict(zip(self.gates, lane, strict=True)) for lane in live.tolist()]
        self._make_room(reach)
        members = [
            {gate: grades[g][lane, : self._laid(gate, laid[g])] > 0 for g, gate in enumerate(self.gates)}
            for lane, laid in enumerate(self.sizes)
        ]
        if self._members:
            self._begin_statistics(members)
        if self._members and self._growing is not None:
            # a gradient for growth is that of the network as it was
            self.sample(silenced(self.gates, grades, self._members))
            for lane, now in enumerate(members):
                own = None if batch is None else (self._own(batch[0], lane), batch[1])
                self._growing.grow(self._as_lane(lane, now, grades), own)
        self.sample(grades)
        self._members, self.alive = members, self._speaking(members)
        self._set_rates()
        self.optimiser.forget(self.alive)

    def _room(self, sizes: Mapping[str, Size]) -> Mapping[str, Size]:
        """What a lane is laid out at that wants to be so: whole in width where a norm asks for all grades, whole in all
        where the network cannot be cut."""
        flow = self.start.flow
        if isinstance(flow, Opaque):
            return sizes_of(flow.graph)
        widths = flow.groups if is_fixed(flow) else ()
        return {**sizes, **{name: flow.gates[name].maximum for name in widths}}

    def _laid(self, gate: str, size: Size) -> int:
        """How many of a gate's grades a lane has that is laid out so."""
        return size if isinstance(size, int) and gate in self._counted else self.start.flow.gates[gate].maximum

    @functools.cached_property
    def _counted(self) -> frozenset[str]:
        """The gates whose units or blocks are laid out in part."""
        return frozenset(n for n, role in roles_of(self.start.flow.graph).items() if role in ("width", "depth"))

    def _speaking(self, members: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """1 for every weight between units that speak, 0 for the others, shaped as the weights."""
        alive = torch.ones_like(self.weights)
        for lane, member in enumerate(members):
            parts = self._parts(alive, lane)
            for name, rows_O, columns_I in speaking(self.start.flow, member):
                if name in parts:
                    rest(parts[name], rows_O, columns_I)
        return alive

    def _begin_statistics(self, members: Sequence[Mapping[str, Tensor]]) -> None:
        for lane, now in enumerate(members):
            buffers = self._buffers_of(lane)
            for path, new_O in newcomers(self.start.flow, self._members[lane], now):
                for name, value in FRESH.items():
                    if f"{path}.{name}" in buffers:
                        buffers[f"{path}.{name}"][new_O] = value

    def _as_lane(self, lane: int, now: Mapping[str, Tensor], grades: Sequence[Tensor]) -> Lane:
        """A lane as growth sees it."""
        views, identity = {**self._parts(self.weights, lane), **self._buffers_of(lane)}, self.identities[lane]
        return Lane(
            views=views,
            initial=self.start.initial(identity, self.born[lane], views, self._places_of(lane)),
            identity=identity,
            module=self._as_module(lane),
            before=self._members[lane],
            now=now,
            grades={name: grades[g][lane, : len(now[name])] for g, name in enumerate(self.gates)},
        )
