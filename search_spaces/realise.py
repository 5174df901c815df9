"""From a network's declaration to the module that realises it, its flow of channels, and its costs.

    >>> built = realise(ConvNet(layers=2), (1, 28, 28), 10)
    >>> built.costs.parameters({"width.0": 8, "width.1": 16})
    1442

What is built here has held gates (`HeldGate`): a lane of a program gives it its grades.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from search_spaces import stride as strides
from search_spaces.convnets import GatedConvNet, GatedResidual
from search_spaces.cost import Costs, LayerCost
from search_spaces.faults import Invalid
from search_spaces.flow import Flow, Untraceable
from search_spaces.flow_costs import costs_of
from search_spaces.graph_networks import Cell, Fabric, Graphon, Wired
from search_spaces.graphs import GatedFabric, GatedGraph
from search_spaces.kept import kept_units, roles_of
from search_spaces.materialise import pruned
from search_spaces.mlp import GatedMLP
from search_spaces.networks import MLP, ConvNet, Network, Own, Residual
from search_spaces.norms import MaskedNorm
from search_spaces.own import Found
from search_spaces.parameters import Stride
from search_spaces.space import Space
from search_spaces.topology import TopologyGate
from search_spaces.width import Gate, MemberGate, gates_of, held

ACTS = {  # how a gate acts, so that it can be traced
    "width": "after the layer whose units it gates",
    "stride": "by a Stride after the layer that strides",
    "depth": "by a Passing after each block",
    "topology": "by a Mix of the terms that it grades",
}
SEED = 0  # what a user's own layers, which we do not initialise, are drawn from


@dataclass(frozen=True, eq=False)
class Realised:
    """A network as a module of maximum size with held gates, and its flow (None: it cannot be traced)."""

    module: nn.Module
    gates: Mapping[str, Gate]
    flow: Flow | None
    example: Tensor

    @functools.cached_property
    def costs(self) -> Costs:
        """Costs by the names of the gates; a network that cannot be traced costs what it costs at its widest."""
        return costs_of(self.flow) if self.flow is not None else _widest_costs(self.module, self.example)


def module_of(
    network: Network, shape: Sequence[int], outputs: int, maxima: Mapping[str, int], activation: str | None = None
) -> nn.Module:
    """The gated module of a network, at `maxima` (by gate), for rows of `shape`."""
    activation = activation or network.activation
    if isinstance(network, MLP):
        inputs = functools.reduce(lambda a, b: a * b, shape, 1)
        return GatedMLP(inputs, list(maxima.values()), outputs, activation=activation)
    if isinstance(network, Own):
        assert network.factory is not None, "an own network is resolved before it is built"
        return own_module(network.factory, network.options, shape, outputs)
    if isinstance(network, Wired):
        return _graph(network, shape, maxima, outputs, activation)
    kinds: dict[type[Network], Callable[..., nn.Module]] = {ConvNet: GatedConvNet, Residual: GatedResidual}
    assert isinstance(network, ConvNet | Residual)
    make = kinds[type(network)]
    return make(
        shape,
        maxima,
        outputs,
        kernel=network.kernel,
        norm=network.norm,
        activation=activation,
        stride=network.stride_kind,
    )


def _graph(network: Wired, shape: Sequence[int], maxima: Mapping[str, int], outputs: int, activation: str) -> nn.Module:
    assert network.wired is not None, "a graph is bound to its space before it is built"
    options: dict[str, Any] = {"topology": network.wired, "norm": network.norm, "activation": activation}
    if isinstance(network, Fabric):
        return GatedFabric(shape, maxima, outputs, **options)
    assert isinstance(network, Cell | Graphon)
    return GatedGraph(shape, maxima, outputs, cells=network.cells, **options)


def realise(
    network: Network,
    shape: Sequence[int],
    outputs: int,
    maxima: Mapping[str, int] | None = None,
    activation: str | None = None,
) -> Realised:
    """The network with held gates. Raises `Invalid` with every fault of its gates."""
    maxima = maxima or dict(zip(network.gates, network.maxima(), strict=True))
    module = held(module_of(network, shape, outputs, maxima, activation))
    example = torch.zeros(2, *shape)
    try:
        flow = Flow(module, example)
    except Untraceable:
        return Realised(module, _ordered(gates_of(module), network), None, example)
    if flow.faults:
        raise Invalid(flow.faults)
    return Realised(flow.graph, _ordered(gates_of(flow.graph), network), flow, example)


def map_faults(network: Network, shape: Sequence[int], outputs: int, space: Space) -> list[str]:
    """What is wrong with strides that shrink a map below what a later layer reads."""
    highs = {
        name: int(parameter.high + 0.5)
        for name, parameter in space.parameters.items()
        if isinstance(parameter, Stride) and name in network.gates
    }
    flow = realise(network, shape, outputs).flow if highs else None
    if flow is None:
        return []
    plain = pruned(flow, kept_units(flow, highs)).eval()
    try:
        with torch.no_grad():
            plain(flow.example)
    except RuntimeError as error:
        most = ", ".join(f"{name}={s}" for name, s in highs.items())
        problem = " ".join(str(error).split())[:120]
        told = f"at {most} the network fails with: {problem}"
        return [f"space: maps must not vanish at the greatest strides, but {told}; lower a stride's `high`."]
    return []


def _widest_costs(module: nn.Module, example: Tensor) -> Costs:
    """Fixed costs: what torch counts in one pass of the whole module."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(example)
    each = counter.get_total_flops() // (2 * len(example))
    one = ((None, 1, 1),)
    own = {id(p) for gate in gates_of(module).values() for p in gate.parameters()}
    trained = sum(p.numel() for p in module.parameters() if id(p) not in own)
    return Costs(
        (
            LayerCost("network", "linear", ((None, each, 1),), one, own=False),
            LayerCost("network", "parameter", one, ((None, trained, 1),)),
        )
    )


def _ordered(gates: Mapping[str, Gate], network: Network) -> dict[str, Gate]:
    return {name: gates[name] for name in network.gates}


@functools.lru_cache(maxsize=64)
def costs(network: Network, shape: tuple[int, ...], outputs: int) -> Costs:
    """The network's costs as a function of its gates' sizes."""
    return realise(network, shape, outputs).costs


# -- the user's own ----------------------------------------------------------------------------------------------------


def own_module(
    factory: Callable[..., Any], options: Mapping[str, Any], shape: Sequence[int], outputs: int
) -> nn.Module:
    """What the user's function returns, its own layers drawn from a fixed seed.

    Raises:
        Invalid: when it cannot be called so, raises, or returns no module.
    """
    offered = {"shape": tuple(shape), "outputs": outputs}
    name = getattr(factory, "__name__", repr(factory))
    try:
        known = inspect.signature(factory).parameters
        given = {**{key: value for key, value in offered.items() if key in known}, **options}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            module = factory(**given)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise Invalid(
            [
                f"network: {name} must return an nn.Module when called with network.options (and shape and outputs, "
                f"if it takes them), but raised {problem}; mend it, or the options."
            ]
        ) from error
    if not isinstance(module, nn.Module):
        hint = "; take [0] of what make_continuous returns" if isinstance(module, tuple) else ""
        raise Invalid([f"network: {name} must return an nn.Module, but got {_shortly(module)}{hint}."])
    return module


def _shortly(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"a {type(value).__name__}"


def resolve(network: Own, factory: Callable[..., Any], shape: Sequence[int], outputs: int) -> Own:
    """The user's network with its gates found. Raises `Invalid` with every fault of the module and its gates."""
    module = own_module(factory, network.options, shape, outputs)
    try:
        gates = gates_of(module)
    except ValueError as error:
        raise Invalid([f"network: {error}."]) from error
    faults = [] if gates else ["network: must have at least one gate (search_spaces.width.WidthGate), but has none."]
    example = torch.zeros(2, *shape)
    try:
        out = _run_shape(module, example)  # before it is traced: its own error is the clearest
    except Invalid as error:
        raise _crash(module, example, error) from error
    roles = roles_of(module)
    flow: Flow | None
    try:
        flow = Flow(held(module), example)
        faults += flow.faults + [
            f"network: the gate {gate!r} must be called in forward, {ACTS[role]}, but it never is; call it, or drop it."
            for gate, role in (() if flow.faults else roles.items())
            if gate not in (flow.groups if role == "width" else flow.gates)
        ]
    except Untraceable as error:
        flow = None  # trained whole, exported with masks
        if "stride" in roles.values():
            faults += [f"{fault}; only then can a real stride be told to what follows it." for fault in error.faults]
    if out[1:] != (outputs,):
        faults.append(f"network: must return {outputs} numbers a row, but got an output of shape {out}.")
    if faults:
        raise Invalid(faults)
    met = _strides_met(flow)
    found = [replace(_found(gate, roles[name]), **met.get(name, {})) for name, gate in gates.items()]
    costs = costs_of(flow) if flow is not None else _widest_costs(module, example)
    whole = flow is None or any(isinstance(child, MaskedNorm) for child in flow.graph.modules())
    return network.resolved(
        factory, found, costs, alone=flow is None or draws(flow.graph) or _odd_norms(flow), whole=whole
    )


def _found(gate: Gate, role: str) -> Found:
    return Found(
        name=gate.name,
        maximum=gate.maximum,
        membership=gate.membership.kind if isinstance(gate, MemberGate) else "interval",
        role=role,
        starts=_starts(gate),
        topology=gate.topology if isinstance(gate, TopologyGate) else None,
    )


def _starts(gate: Gate) -> tuple[float, ...]:
    if isinstance(gate, strides.StrideGate):
        return (float(gate.size().detach()),)
    return tuple(gate.w.tolist()) if isinstance(gate, TopologyGate) else ()


def _strides_met(flow: Flow | None) -> dict[str, dict[str, Any]]:
    """Of each gate that gives strides: their kind, the least map that they meet, and the longest ramp."""
    found: dict[str, dict[str, Any]] = {}
    if flow is None:
        return found
    ones = dict.fromkeys(flow.gates, 1.0)
    for module in flow.graph.modules():
        if isinstance(module, strides.Stride):
            side = min(int(extent.live(ones)) for extent in module.extents)
            ramp = max(step.smoothness for step in module.steps)
            known = found.get(module.gate.name, {"side": side, "ramp": ramp})
            own = {"side": min(side, known["side"]), "ramp": max(ramp, known["ramp"])}
            found[module.gate.name] = {"stride": module.kind, **own}
    return found


def draws(module: nn.Module) -> bool:
    """Whether a training pass may draw random numbers of its own: a layer of dropout, or the function."""
    nodes = module.graph.nodes if isinstance(module, fx.GraphModule) else ()
    opaque = not isinstance(module, fx.GraphModule)
    return (
        opaque
        or any(isinstance(child, nn.modules.dropout._DropoutNd) for child in module.modules())
        or any("dropout" in getattr(node.target, "__name__", "") for node in nodes)
    )


def _odd_norms(flow: Flow) -> bool:
    """Whether a batch norm remembers otherwise than by an exponential mean."""
    norms = [m for m in flow.graph.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return any(norm.momentum is None or not norm.track_running_stats for norm in norms)


def _run_shape(module: nn.Module, example: Tensor) -> tuple[int, ...]:
    """The shape of what a module returns. Raises `Invalid` when it does not run."""
    try:
        with torch.no_grad():
            out = copy.deepcopy(module).eval()(example)
    except Exception as error:  # the user's forward may raise anything
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise Invalid([f"network: must run on an input of shape {tuple(example.shape)}, but got {problem}"]) from error
    if not isinstance(out, Tensor):
        got = type(out).__name__
        raise Invalid([f"network: must return a tensor [rows, outputs], but got {got}; return the logits."])
    return tuple(out.shape)


def _crash(module: nn.Module, example: Tensor, error: Invalid) -> Invalid:
    """What to say of a module that does not run: what is wrong with its gates, if that is known to be why."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # torch.fx prints the error by itself
            found = Flow(module, example).faults
    except Invalid:
        found = []
    return Invalid(found) if found else error
