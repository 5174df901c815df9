"""What `benchmarks.elastic` measures: a network on rows of noise, as modules under autograd and as programs of lanes.

Legend of shape suffixes: B batch, O outputs, K lanes, G gates, N units of a gate.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import Work
from search_spaces import Space
from search_spaces.cost import Costs
from search_spaces.flow import Flow
from search_spaces.materialise import materialise
from search_spaces.membership import interval
from search_spaces.network import Size
from search_spaces.networks import Network
from search_spaces.realise import module_of, realise
from search_spaces.width import WidthGate, gates_of
from trials.lanes.dense import DenseShape
from trials.lanes.gated import DenseProgram
from trials.lanes.initial import Start
from trials.lanes.looped import LoopedLanes
from trials.lanes.program import Program
from trials.lanes.vmapped import VmappedLanes
from trials.optimisers import Rule

OUTPUTS = 10
RATE = 1e-3
PART = 0.5  # of its last unit that a gate of "full" width lacks: a gate of whole width could be left out


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, the shape of its rows, and where and in which batches it trains.

    `space` gives it what it has none of by itself: greatest widths of its own, strides, a graph.
    """

    network: Network
    shape: tuple[int, ...]
    batch: int
    device: torch.device
    space: Space | None = None

    def __post_init__(self) -> None:
        if self.space is not None:
            object.__setattr__(self, "network", self.network.within(self.space))

    @property
    def name(self) -> str:
        """The network's kind and the shape of a row."""
        return f"{self.network.kind} {'x'.join(map(str, self.shape))}"

    @functools.cached_property
    def maxima(self) -> dict[str, int]:
        """Each gate's greatest size."""
        return dict(zip(self.network.gates, self.network.maxima(self.space), strict=True))

    @functools.cached_property
    def flow(self) -> Flow:
        """The network of maximum size with held gates, traced."""
        flow = realise(self.network, self.shape, OUTPUTS, self.maxima).flow
        assert flow is not None
        return flow

    @functools.cached_property
    def costs(self) -> Costs:
        """What the network costs at any sizes."""
        return self.network.costs(self.shape, OUTPUTS)

    def shares(self, share: float) -> dict[str, int]:
        """That share of each gate's greatest size."""
        return {gate: max(1, round(share * maximum)) for gate, maximum in self.maxima.items()}

    @functools.cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """One batch of noise, and its targets as rows of probabilities."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, *self.shape, generator=generator)
        y_BO = functional.one_hot(torch.randint(OUTPUTS, (self.batch,), generator=generator), OUTPUTS)
        return x.to(self.device), y_BO.float().to(self.device)

    def training_flops(self) -> float:
        """FLOPs of one training step at the greatest sizes."""
        return float(self.batch * self.costs.training_flops(self.maxima))

    # -- modules -----------------------------------------------------------------------------------------------------

    def relaxed(self, sizes: Mapping[str, float]) -> fx.GraphModule:
        """The network of maximum size, its gates at `sizes`."""
        return self._flow(sizes).graph.to(self.device)

    def plain(self, sizes: Mapping[str, int]) -> fx.GraphModule:
        """The materialised network of whole sizes."""
        return materialise(self._flow(sizes), sizes).to(self.device)

    def _flow(self, sizes: Mapping[str, float]) -> Flow:
        torch.manual_seed(0)
        module = module_of(self.network, self.shape, OUTPUTS, self.maxima)
        for name, gate in gates_of(module).items():
            assert isinstance(gate, WidthGate)
            gate.set(sizes[name])
        return Flow(module, torch.zeros(2, *self.shape))

    # -- lanes -------------------------------------------------------------------------------------------------------

    def lanes(self, way: str, count: int = 1, *, gated: bool = False) -> Program:
        """So many lanes of the greatest size; `gated`: their last unit has grade 1/2."""
        grades = [interval(torch.tensor([n - PART] * count), n) for n in self.maxima.values()]
        if way != "dense":
            sizes = [self.maxima] * count
            return begun(self.flow, self.network.gates, way, sizes, grades if gated else None, device=self.device)
        shape = DenseShape(inputs=math.prod(self.shape), outputs=OUTPUTS, maxima=tuple(self.maxima.values()))
        lanes = DenseProgram(shape, self.batch, gated=gated, device=self.device)
        own = list(self.maxima.values())
        live = [[n - PART if gated else float(n) for n in own]] * count
        lanes.begin([(0, number, 0) for number in range(count)], [own] * count, live)
        lanes.attach(Rule(), {"lr": torch.full((count,), RATE)})
        if gated:
            lanes.regate(grades, lanes.sizes, torch.tensor(live, dtype=torch.float64))
        return lanes

    def lane_bytes(self, way: str) -> float:
        """Bytes that one more lane needs, roughly from above."""
        weights = 40.0 * float(self.costs.parameters(self.maxima))
        if way == "per_lane":  # activations are of one lane at a time
            return weights
        columns = max(layer.taps for layer in self.costs.layers) if way == "unfolded" else 0
        copies = 4 + columns
        return weights + copies * self.batch * float(self.costs.activation_bytes(self.maxima))


def begun(
    flow: Flow,
    gates: Sequence[str],
    way: str,
    sizes: Sequence[Mapping[str, Size]],
    grades: Sequence[Tensor] | None = None,
    *,
    whole: bool = False,
    device: torch.device,
) -> Program:
    """Lanes of a traced network, each laid out at its `sizes` by gate, with `grades` [K, N] a gate where there are any;
    `whole`: vmapped lanes really stride."""
    start = Start(flow=flow, gates=tuple(gates))
    lanes: LoopedLanes | VmappedLanes
    if way == "per_lane":
        lanes = LoopedLanes(start, gated=grades is not None, device=device)
    else:
        lanes = VmappedLanes(start, way=way, whole=whole, device=device)
    identities = [(0, number, 0) for number in range(len(sizes))]
    if grades is None:
        lanes.begin(identities, sizes)
    else:
        live_KG = torch.stack([m_KN.double().sum(1) for m_KN in grades], 1)
        lanes.begin(identities, sizes, [dict(zip(gates, lane, strict=True)) for lane in live_KG.tolist()])
    lanes.attach(Rule(), {"lr": torch.full((len(sizes),), RATE)})
    if grades is not None:
        lanes.regate(list(grades), lanes.sizes, live_KG)
    return lanes


# -- what is timed -----------------------------------------------------------------------------------------------------


def module_step(module: nn.Module, case: Case) -> Work:
    """A training step under autograd with torch's own SGD."""
    x, y_BO = case.rows
    optimiser = torch.optim.SGD(module.train().parameters(), lr=RATE)

    def step() -> None:
        optimiser.zero_grad()
        torch.autograd.backward(functional.cross_entropy(module(x), y_BO))
        optimiser.step()

    return step


def module_pass(module: nn.Module, case: Case) -> Work:
    """A forward pass for evaluation."""
    x, _ = case.rows
    module.eval()

    def forward() -> None:
        with torch.no_grad():
            module(x)

    return forward


def lane_step(lanes: Program, case: Case) -> Work:
    """A training step of all lanes on one batch."""
    x, y_BO = case.rows
    if isinstance(lanes, DenseProgram):  # whose rows have a leading 1
        x = functional.pad(x.flatten(1), (1, 0), value=1.0)

    def step() -> None:
        with torch.no_grad():
            lanes.step(x, y_BO)

    return step


# -- what is counted ---------------------------------------------------------------------------------------------------


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of what is trained."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


def executed_flops(work: Work) -> int:
    """FLOPs that torch counts while something runs (of vmapped `grouped` convolutions it counts too many)."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


class _Written(fx.Interpreter):
    """Runs a graph and counts the bytes that its nodes write; a view writes nothing."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)  # or another tensor might take a freed one's place
        self.total, self._seen = 0, set[int]()

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if isinstance(out, Tensor) and n.op != "output":
            place = out.untyped_storage().data_ptr()
            if place not in self._seen and n.op != "placeholder":
                self.total += out.numel() * out.element_size()
            self._seen.add(place)
        return out


def activation_bytes(module: fx.GraphModule, case: Case) -> float:
    """Bytes that a forward pass writes for one example."""
    written = _Written(module.train())
    with torch.no_grad():
        written.run(case.rows[0])
    return written.total / case.batch
