"""The `forward` of a traced network as Python: a line a value; of a graph, a line a node.

>>> print("\\n".join(Forward(graph, parts_of(graph)).lines()))
x0 = self.stem(x)
x1 = (self.e01_conv3(x0) + x0) * 2**-0.5
return self.head(x1)
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from search_spaces.export_layers import Part, short
from search_spaces.export_words import Found, nodes_of
from search_spaces.faults import Invalid

LONGEST = 110  # a line's length
PREFIX = {operator.neg: "-", operator.pos: "+", operator.invert: "~"}
INFIX = {
    operator.add: "+",
    operator.iadd: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.imul: "*",
    operator.truediv: "/",
    operator.floordiv: "//",
    operator.pow: "**",
    operator.matmul: "@",
    torch.matmul: "@",
    operator.isub: "-",
    operator.itruediv: "/",
    operator.mod: "%",
    operator.gt: ">",
    operator.ge: ">=",
    operator.lt: "<",
    operator.le: "<=",
}


class Forward:
    """What each value is called, and how it is computed."""

    def __init__(self, graph: fx.GraphModule, parts: Sequence[Part]) -> None:
        self.graph = graph
        self.found: dict[fx.Node, list[Found]] = {}
        for one in nodes_of(graph):
            self.found.setdefault(one.value, []).append(one)
        self.attributes = {path: part.name for part in parts for path in part.paths}
        self.ends = {part.nodes[-1]: part for part in parts if len(part.nodes) > 1}
        self.inside = {node for part in parts for node in part.nodes[:-1]}
        self.names: dict[fx.Node, str] = {}
        self.called: dict[tuple[str, str], str] = {}  # nodes, by their graph's owner and name
        self.variables: dict[fx.Node, list[str]] = {}  # the nodes that a value is; first what a graph begins with
        self._name_nodes()
        self._name_others()
        self.in_place = _writes_in_place(graph)
        self.inlined = set() if self.in_place else self._inlined()

    @property
    def input(self) -> str:
        """The arguments."""
        return ", ".join(self.names[node] for node in self.graph.graph.nodes if node.op == "placeholder")

    def lines(self) -> list[str]:
        """The body."""
        lines: list[str] = []
        for node in self.graph.graph.nodes:
            if node.op == "output":
                lines.append(f"return {self._text(node.args[0])}")
            elif node.op not in ("placeholder", "get_attr") and node not in self.inside | self.inlined:
                lines += self._assigned(self.names[node], node)
            others = [name for name in self.variables.get(node, ()) if name != self.names[node]]
            lines += [f"{name} = {self._text(node)}" for name in others]
        return _returned_at_once(lines)

    # -- names ---------------------------------------------------------------------------------------------------------

    def _name_nodes(self) -> None:
        every = [one for group in self.found.values() for one in group]
        owners = {one.owner for one in every}
        nodes = {(one.owner, one.node.name): one.value for one in every}
        sources = {(one.owner, term.source): one.source(i) for one in every for i, term in enumerate(one.node.terms)}
        for (owner, name), value in {**{key: sources[key] for key in sources if key not in nodes}, **nodes}.items():
            variable = self.called[owner, name] = short(owner, name, owners)
            self.variables.setdefault(value, []).append(variable)

    def _name_others(self) -> None:
        inputs = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        taken = {"torch", "functional", "nn", "self", *self.called.values()}
        for node in self.graph.graph.nodes:
            name = self.ends[node].name if node in self.ends else node.name.lstrip("_")
            name = f"h_{name}" if name[0].isdigit() else name
            if node.op == "placeholder":
                name = "x" if len(inputs) == 1 else name
            elif own := self.variables.get(node):
                self.names[node] = own[0]
                continue
            while name in taken:
                name += "_"
            taken.add(name)
            self.names[node] = name

    def _inlined(self) -> set[fx.Node]:
        """What is written where it is used: the terms of a sum, and the sum before it is divided."""
        found: set[fx.Node] = set()
        for one in (one for group in self.found.values() for one in group if len(one.summed) > 1):
            found |= {term for term in one.summed if len(term.users) == 1 and term.op == "call_module"}
            node = one.value.all_input_nodes[0]
            for _ in range(len(one.summed) - 1 - (not one.divided)):
                found.add(node)
                node = node.all_input_nodes[0]
        return {node for node in found if node not in self.variables}

    # -- text ----------------------------------------------------------------------------------------------------------

    def _assigned(self, name: str, node: fx.Node) -> list[str]:
        """The lines that compute a value."""
        own = [one for one in self.found.get(node, ()) if self.called[one.owner, one.node.name] == name]
        if not own or self.in_place:
            return [f"{name} = {self._call(node)}"]
        one = own[0]
        terms = [self._term(one, i) for i in range(len(one.summed))]
        factor = f" * {len(terms)}**-0.5" if one.divided else ""
        line = f"{name} = ({' + '.join(terms)}){factor}" if factor else f"{name} = {' + '.join(terms)}"
        if len(line) <= LONGEST:
            return [line]
        return [f"{name} = (", f"    {terms[0]}", *(f"    + {term}" for term in terms[1:]), f"){factor}"]

    def _term(self, one: Found, i: int) -> str:
        """A term of a node, by the name of the node that it reads."""
        value, reads = one.summed[i], self.called[one.owner, one.node.terms[i].source]
        if value is one.source(i):
            return reads
        part = self.ends.get(value)
        written = value in self.inlined or value is one.value
        first = part.nodes[0] if part else value
        if written and first.args == (one.source(i),):
            return f"self.{self.attributes[str(value.target)]}({reads})"
        return self._call(value) if written else self.names[value]

    def _call(self, node: fx.Node) -> str:
        if part := self.ends.get(node):
            return f"self.{part.name}({self._text(part.nodes[0].args[0])})"
        arguments = [self._text(a) for a in node.args] + [f"{key}={self._text(a)}" for key, a in node.kwargs.items()]
        if node.op == "call_module":
            return f"self.{self.attributes[str(node.target)]}({', '.join(arguments)})"
        if node.op == "call_method":
            return f"{arguments[0]}.{node.target}({', '.join(arguments[1:])})"
        function: Any = node.target
        if function in PREFIX:
            return f"{PREFIX[function]}{arguments[0]}"
        if function in INFIX and len(arguments) == 2 and not node.kwargs:
            return f"{arguments[0]} {INFIX[function]} {arguments[1]}"
        if function is operator.getitem:
            return f"{arguments[0]}[{self._index(node.args[1])}]"
        if function is getattr:
            return f"{arguments[0]}.{node.args[1]}"
        return f"{_named(function)}({', '.join(arguments)})"

    def _index(self, index: Any) -> str:
        """What stands between brackets."""
        if isinstance(index, tuple) and len(index) > 1:
            return ", ".join(self._index(each) for each in index)
        if not isinstance(index, slice):
            return self._text(index)
        start, stop, step = ("" if each is None else self._text(each) for each in (index.start, index.stop, index.step))
        return f"{start}:{stop}" + (f":{step}" if step else "")

    def _text(self, value: Any) -> str:
        """A value as it is written."""
        if isinstance(value, fx.Node):
            return f"self.{self.attributes[str(value.target)]}" if value.op == "get_attr" else self.names[value]
        if isinstance(value, tuple | list):
            inner = ", ".join(self._text(item) for item in value)
            if isinstance(value, list):
                return f"[{inner}]"
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        if isinstance(value, slice):
            return f"slice({self._text(value.start)}, {self._text(value.stop)}, {self._text(value.step)})"
        return repr(value)


def _writes_in_place(graph: fx.GraphModule) -> bool:
    """Whether some operation changes what another reads, so that each must stay where it is."""
    layers = any(getattr(module, "inplace", False) for module in graph.modules())
    names = [str(getattr(node.target, "__name__", node.target)) for node in graph.graph.nodes if node.op[:5] == "call_"]
    in_place = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
    called = any(node.target in in_place for node in graph.graph.nodes)
    return layers or called or any(name.endswith("_") and not name.endswith("__") for name in names)


def _returned_at_once(lines: list[str]) -> list[str]:
    """Without a name for what is returned at once."""
    *before, assigned, returned = ["", *lines][-max(2, len(lines)) :]
    name, is_assigned, value = assigned.partition(" = ")
    return [*before, f"return {value}"] if is_assigned and returned == f"return {name}" else lines


def _named(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", str(function))
    for place, spelt in ((torch, "torch"), (functional, "functional")):
        if getattr(place, name, None) is function:
            return f"{spelt}.{name}"
    raise Invalid([f"export: .py knows torch's own functions, but the network calls {name}; try .pt2."])
