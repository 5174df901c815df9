"""The graph that a plain network came of, node by node: what of a found topology the written file shows.

>>> print("\\n".join(graph_words(nodes_of(graph))))
    x0 -> x1  skip
    x0 -> x2  conv3
    x1 -> x2  conv3, skip
<BLANKLINE>
A node is the sum of what its edges give, over the root of how many they are.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from search_spaces.blocks import NODES, Node

SUMMED = "A node is the sum of what its edges give, over the root of how many they are."
PLACED = "Node l2s1 is that of layer 2 and scale 1, whose map has half the side of scale 0."
WOVEN = re.compile(r"l\d+s\d+")
OWNER = re.compile(r"(?:(.*)\.)?nodes\.")


@dataclass(frozen=True)
class Found:
    """A node of a graph: its value in the network, and the values that were summed, in the order of its terms."""

    node: Node
    value: fx.Node
    summed: tuple[fx.Node, ...]

    @property
    def owner(self) -> str:
        """The path of the graph that it belongs to."""
        found = OWNER.match(self.node.path)
        return (found and found.group(1)) or ""

    @property
    def divided(self) -> bool:
        """Whether the sum is over the root of how many terms it has."""
        return _divided(self.value, len(self.summed))

    def source(self, i: int) -> fx.Node:
        """The value of the node that a term reads."""
        node, name = self.summed[i], self.node.terms[i].name
        while node.op == "call_module" and f".{node.target}".rpartition(".")[0].endswith(f".{name}"):
            node = node.all_input_nodes[0]
        return node


def nodes_of(graph: fx.GraphModule) -> list[Found]:
    """Every node of every graph that the network was made of, in the order of the network."""
    return [
        Found(node, value, _summed(value, len(node.terms)))
        for value in graph.graph.nodes
        for node in value.meta.get(NODES, ())
    ]


def _summed(value: fx.Node, count: int) -> tuple[fx.Node, ...]:
    node: Any = value.args[0] if _divided(value, count) else value
    terms: list[fx.Node] = []
    for _ in range(count - 1):
        node, term = node.args
        terms.append(term)
    return (node, *reversed(terms))


def _divided(value: fx.Node, count: int) -> bool:
    return count > 1 and value.target is operator.mul and value.args[1] == count**-0.5


def graph_words(found: Sequence[Found]) -> list[str]:
    """The graph in lines, each edge with what stands on it; graphs that say the same are told once."""
    graphs: dict[str, list[Node]] = {}
    for one in found:
        graphs.setdefault(one.owner, []).append(one.node)
    told: dict[tuple[str, ...], list[str]] = {}
    for owner, nodes in graphs.items():
        told.setdefault(tuple(_edges(nodes)), []).append(owner.replace(".", "_"))
    lines = []
    for edges, owners in told.items():
        lines += [f"{', '.join(owners)}:"] if len(graphs) > 1 else []
        lines += [*(f"    {edge}" for edge in edges), ""]
    woven = any(WOVEN.fullmatch(one.node.name) for one in found)
    return [*lines, *([PLACED] if woven else []), SUMMED]


def _edges(nodes: Sequence[Node]) -> list[str]:
    operations: dict[str, list[str]] = {}
    for node in nodes:
        for term in node.terms:
            operations.setdefault(f"{term.source} -> {node.name}", []).append(term.operation)
    longest = max(map(len, operations))
    return [f"{edge:{longest}}  {', '.join(each)}" for edge, each in operations.items()]
