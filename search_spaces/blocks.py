"""Blocks that a network has in part, and sums whose terms it has in part: depth and topology in a network's code.

    >>> h = Passing(gate, 2)(h, block(h))              # h + m_2 (block(h) - h): a third block of a real depth
    >>> x = Mix(gate, (3, 4))(conv(a), pool(a))        # m_3 conv(a) + m_4 pool(a): operations of an edge

Each is one operation of a traced network, and so is `Evened`, which keeps a sum's scale. `branches` tells which
operations stand or fall with which grade, `settle` makes a network of what is kept.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from search_spaces.cost import Share, clipped
from search_spaces.width import Acting, Gate


class Passing(Acting):
    """h_{l+1} = h_l + m_l (block(h_l) - h_l): one block of a depth, by its grade. At grade 1 it is the block, at grade
    0 nothing."""

    def __init__(self, gate: Gate, index: int) -> None:
        super().__init__()
        self.gate, self.index = gate, index

    def forward(self, h: Tensor, out: Tensor) -> Tensor:
        return torch.lerp(h, out, self.gate.grades()[self.index])

    def extra_repr(self) -> str:
        return f"block {self.index} of {self.gate.name!r}"


@dataclass(frozen=True)
class Term:
    """What stands on an edge into a node of a graph, in words: the node that it reads, the operation, and its name."""

    source: str
    operation: str
    name: str


class Mix(Acting):
    """The sum of terms, each times the grade of a unit of a topology.

    `node` and `terms` say in words which node of which graph it is; the plain network's value keeps them (`NODES`).
    """

    def __init__(self, gate: Gate, units: Sequence[int], node: str = "", terms: Sequence[Term] = ()) -> None:
        super().__init__()
        self.gate, self.units, self.node, self.terms = gate, tuple(units), node, tuple(terms)

    def forward(self, *terms: Tensor) -> Tensor:
        m_U = self.gate.grades()
        out = terms[0] * m_U[self.units[0]]
        for unit, term in zip(self.units[1:], terms[1:], strict=True):
            out = out + term * m_U[unit]
        return out

    def extra_repr(self) -> str:
        return f"units {self.units} of {self.gate.name!r}"


@dataclass(frozen=True)
class Node:
    """A node of a graph in a plain network: the module that summed it, what it is called, and what is kept of it."""

    path: str
    name: str
    terms: tuple[Term, ...]


class Evened(Acting):
    """A sum of terms over the root of how many there are, x / sqrt(max(1, sum of their grades)): of independent terms
    it has the variance of one, however many are kept."""

    def __init__(self, gate: Gate, units: Sequence[int]) -> None:
        super().__init__()
        self.gate, self.units = gate, tuple(units)

    def forward(self, x: Tensor) -> Tensor:
        m_U = self.gate.grades()
        return x * torch.stack([m_U[unit] for unit in self.units]).sum().clamp(min=1.0).rsqrt()

    def extra_repr(self) -> str:
        return f"units {self.units} of {self.gate.name!r}"


@dataclass(frozen=True)
class Several(Share):
    """Whether there are several of a topology's `units`: what only a sum of more than one term needs."""

    units: tuple[int, ...] = ()

    def of(self, sizes: Mapping[str, Any]) -> Any:
        return clipped(sum(sizes[self.gate][..., unit] for unit in self.units) - 1)


Unit = tuple[str, int]  # a gate's name, an index
NODES = "nodes"  # where a plain network's operation has, in its `meta`, the nodes of graphs whose value it is


def units_of(graph: fx.GraphModule) -> dict[Unit, bool]:
    """Every block and every term's unit in a traced network, and whether it is a topology's."""
    found: dict[Unit, bool] = {}
    for node in graph.graph.nodes:
        module = module_of(graph, node)
        if isinstance(module, Passing):
            found[module.gate.name, module.index] = False
        elif isinstance(module, Mix):
            found |= dict.fromkeys([(module.gate.name, unit) for unit in module.units], True)
    return found


def branches(graph: fx.GraphModule) -> dict[fx.Node, tuple[Share, ...]]:
    """For each operation, the grades that it stands or falls with."""
    modules = {node: module_of(graph, node) for node in graph.graph.nodes}  # looked up once, for there are many units
    needed = _needed(modules, None)
    found: dict[fx.Node, tuple[Share, ...]] = {}
    for unit, graded in units_of(graph).items():
        for node in needed - _needed(modules, unit):
            found[node] = (*found.get(node, ()), Share(*unit, graded=graded))
        for node in set() if graded else needed - _needed(modules, unit, there=True):  # what only a lack of it reads
            found[node] = (*found.get(node, ()), Share(*unit, absent=True))
    for node in needed:
        if isinstance(module := modules[node], Evened):
            several = Several(module.gate.name, module.units[0], graded=True, units=module.units)
            found[node] = (*found.get(node, ()), several)
    return found


def _needed(
    modules: Mapping[fx.Node, torch.nn.Module | None], settled: Unit | None, there: bool = False
) -> set[fx.Node]:
    """What the output needs where one unit is whole: there, or not; by each node's module."""
    found: set[fx.Node] = set()
    waiting = [node for node in modules if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        module = modules[node]
        inputs: list[Any] = list(node.all_input_nodes)
        if isinstance(module, Passing) and (module.gate.name, module.index) == settled:
            inputs = [node.args[int(there)]]
        elif isinstance(module, Mix):
            terms = zip(module.units, node.args, strict=True)
            inputs = [term for unit, term in terms if (module.gate.name, unit) != settled]
        waiting += inputs
    return found


def settle(graph: fx.GraphModule, kept: Mapping[str, Tensor], *, drop_only: bool = False) -> None:
    """Keep the blocks and terms of the `kept` indices of each gate, drop the others and all that only they need; with
    `drop_only`, what is kept keeps its grade."""
    renumbered: set[Passing] = set()
    for node in list(graph.graph.nodes):
        module = module_of(graph, node)
        if isinstance(module, Passing) and module.gate.name in kept:
            units = kept[module.gate.name].tolist()
            stays = module.index in units
            if stays and drop_only:
                if module not in renumbered:
                    module.index = units.index(module.index)  # its grade's place among those that are kept
                    renumbered.add(module)
                continue
            node.replace_all_uses_with(node.args[int(stays)])
        elif isinstance(module, Mix) and module.gate.name in kept:
            units = kept[module.gate.name].tolist()
            value = _sum(graph, node, module, units)
            _tell(value, node, module, units)
            node.replace_all_uses_with(value)
        elif isinstance(module, Evened) and module.gate.name in kept:
            node.replace_all_uses_with(_evened(graph, node, module, kept[module.gate.name].tolist()))
        else:
            continue
        graph.graph.erase_node(node)
    bare = _bare_tensors(graph)
    for node in reversed(graph.graph.nodes):
        if not node.users and node.op not in ("output", "placeholder"):
            graph.graph.erase_node(node)
    for path in bare - _bare_tensors(graph):  # of modules that nothing calls the graph forgets by itself
        owner, _, name = path.rpartition(".")
        delattr(graph.get_submodule(owner), name)


def _bare_tensors(graph: fx.GraphModule) -> set[str]:
    """The paths of tensors that are read by themselves."""
    return {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}


def _sum(graph: fx.GraphModule, node: fx.Node, mix: Mix, kept: Sequence[int]) -> fx.Node:
    """The plain sum of the kept terms; nothing where there are none, which no kept unit reads."""
    terms = [term for unit, term in zip(mix.units, node.args, strict=True) if unit in kept]
    with graph.graph.inserting_before(node):
        if not terms:
            return graph.graph.call_function(operator.mul, (node.args[0], 0.0))
        out = terms[0]
        for term in terms[1:]:
            out = graph.graph.call_function(operator.add, (out, term))
    assert isinstance(out, fx.Node)
    return out


def _tell(value: fx.Node, node: fx.Node, mix: Mix, kept: Sequence[int]) -> None:
    """Let the value of a graph's node say so."""
    terms = tuple(term for unit, term in zip(mix.units, mix.terms, strict=False) if unit in kept)
    if terms:
        value.meta[NODES] = (*value.meta.get(NODES, ()), Node(str(node.target), mix.node, terms))


def retell(graph: fx.GraphModule, before: fx.GraphModule) -> None:
    """Let a network that was traced again say of which graphs' nodes its values are, as it did before."""
    old, new = ([node for node in each.graph.nodes if node.op != "get_attr"] for each in (before, graph))
    if [(node.op, node.target) for node in old] == [(node.op, node.target) for node in new]:
        for one, again in zip(old, new, strict=True):
            again.meta |= {key: value for key, value in one.meta.items() if key == NODES}


def _evened(graph: fx.GraphModule, node: fx.Node, evened: Evened, kept: Sequence[int]) -> Any:
    """The sum over the root of the number of its kept terms."""
    count = sum(unit in kept for unit in evened.units)
    if count <= 1:
        return node.args[0]
    with graph.graph.inserting_before(node):
        out = graph.graph.call_function(operator.mul, (node.args[0], count**-0.5))
    out.meta[NODES] = node.all_input_nodes[0].meta.pop(NODES, ())
    return out


def module_of(graph: fx.GraphModule, node: fx.Node) -> torch.nn.Module | None:
    """The module that a node calls."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None
