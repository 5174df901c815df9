"""The wiring of a network as numbers in [0, 1]: the edges a graph may have, and those it keeps. No torch.

    >>> Topology(nodes=2, operations=("linear", "skip")).hard([0.9, 0.1, 0.2, 0.3, 0.8, 0.1])
    (0, 4)

x_j = sum over edges i -> j and operations o of a_ijo op_o(x_i): each *unit* (an edge and an operation on it) has a
grade a in [0, 1]. Three kinds of topology give the grades:

    free     nodes 0 .. N (N = `nodes`), an edge i -> j for each i < j; one number per unit
    graphon  the same nodes and edges; a_ijo = w_o(u_i, u_j) with u_i = (i + 1/2) / (N + 1), for a kernel w_o given by
             `coefficients` numbers: as many for any N, so that a graph is refined without changing its point
    fabric   nodes (l, s), layer l = 0 .. `layers`, scale s = 0 .. `scales` - 1, an edge (l, s) -> (l + 1, s') for each
             |s - s'| <= 1; one number per unit. The trellis of Saxena & Verbeek (2016, figure 1), which enters at its
             finest scale and leaves at its coarsest, without the edges inside its first and last layer

The torch side, with temperatures and derivatives, is topology.py. Legend of shape suffixes: E edges, U units, C
coefficients of one kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np

from search_spaces.faults import unknown
from search_spaces.parameters import Float, Parameter, is_whole

KINDS = ("free", "graphon", "fabric")
OWN_KEYS = {"free": ("nodes",), "graphon": ("nodes", "coefficients"), "fabric": ("layers", "scales")}
OPERATIONS = ("linear", "conv1", "conv3", "conv5", "separable", "max_pool", "avg_pool", "skip", "zero")
OF_ROWS = ("linear", "skip", "zero")  # what rows of numbers, which have no places, allow
REACH = 4.0  # a kernel's coefficient lies in [-REACH, REACH]


@dataclass(frozen=True)
class Edge:
    """An edge between nodes of the given indices; the scales of its ends are 0 but in a fabric."""

    source: int
    target: int
    scale_from: int = 0
    scale_to: int = 0


@dataclass(frozen=True, kw_only=True)
class Topology(Parameter):
    """A graph as a family of numbers in [0, 1]; see the module for its kinds.

    `size` numbers: for free and fabric one per unit, in the units' order; for a graphon the C coefficients of the first
    operation's kernel, then those of the second. `zero` is an operation whose output is nothing: its units have grade 0
    whatever their numbers.
    """

    type: ClassVar[str] = "topology"
    movable: ClassVar[bool] = True

    kind: str = "free"
    nodes: int = 4
    operations: tuple[str, ...] = ("linear",)
    coefficients: int = 6
    layers: int = 4
    scales: int = 3
    moved_by: str = "sampler"
    start: float | str = "sampled"

    def declaration_faults(self, where: str) -> list[str]:
        faults = []
        if self.kind not in KINDS:
            faults.append(unknown(f"{where}.kind", self.kind, KINDS, "kind of topology"))
        faults += [
            f"{where}.{key}: must be a whole number of at least 1, but got {getattr(self, key)!r}."
            for key in ("nodes", "coefficients", "layers", "scales")
            if not is_whole(getattr(self, key)) or getattr(self, key) < 1
        ]
        if self.kind == "fabric" and not faults and self.layers < self.scales - 1:
            faults.append(
                f"{where}.layers: a fabric moves one scale a layer, so its output is reached where `layers >= scales "
                f"- 1`, but got layers={self.layers}, scales={self.scales}; add layers or drop scales."
            )
        faults += self._operation_faults(f"{where}.operations")
        if self.moved_by not in ("sampler", "gradient"):
            faults.append(unknown(f"{where}.moved_by", self.moved_by, ("sampler", "gradient"), "mover"))
        if self.start != "sampled":
            faults += Float(low=0.0, high=1.0).value_faults(f"{where}.start", self.start)
            if self.moved_by != "gradient":
                faults.append(f"{where}.start: only a parameter with `moved_by: gradient` has a start; drop it.")
        return faults

    def _operation_faults(self, where: str) -> list[str]:
        operations, given = self.operations, cast(object, self.operations)
        if not isinstance(given, tuple):
            usual = given if isinstance(given, str) and given in OPERATIONS else "conv3"
            return [f"{where}: must be a list of operations, such as [{usual}], but got {given!r}."]
        if not operations:
            return [f"{where}: must name at least one operation, but got {operations!r}."]
        faults = [unknown(where, o, OPERATIONS, "operation") for o in operations if o not in OPERATIONS]
        faults += [
            f"{where}: each must differ from the others, but got {o!r} twice; drop one."
            for i, o in enumerate(operations)
            if operations[:i].count(o) == 1
        ]
        if all(o == "zero" for o in operations):
            faults.append(f"{where}: nothing flows through `zero`, but got no other operation; add one.")
        return faults

    @property
    def graph(self) -> str:
        """The graph in words, whatever moves its numbers."""
        if self.kind == "fabric":
            size = f"{self.layers} layers of {self.scales} scales"
        else:
            size = f"{self.nodes} nodes" + (f", {self.coefficients} coefficients" if self.kind == "graphon" else "")
        return f"{self.kind} of {size} over {', '.join(self.operations)}"

    @property
    def size(self) -> int:
        """How many numbers the topology has."""
        if self.kind == "graphon":
            return self.coefficients * len(self.operations)
        if self.kind == "fabric":
            between = 3 * self.scales - 2  # own scale and the neighbours that exist
            return self.layers * between * len(self.operations)
        return self.nodes * (self.nodes + 1) // 2 * len(self.operations)

    def coordinates(self, name: str) -> dict[str, Float]:
        """Its numbers, each a real parameter of its own under `name.i`."""
        one = Float(low=0.0, high=1.0, when=self.when, moved_by=self.moved_by, start=self.start)
        return {f"{name}.{i}": one for i in range(self.size)}

    # -- the graph -------------------------------------------------------------------------------------------------

    @property
    def input(self) -> int:
        """The node that holds the input."""
        return 0

    @property
    def output(self) -> int:
        """The node that holds the output, the last one; node (l, s) of a fabric has index l * scales + s."""
        return (self.layers + 1) * self.scales - 1 if self.kind == "fabric" else self.nodes

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Every edge there may be, by source, then target; a source is always less than its target."""
        if self.kind != "fabric":
            return tuple(Edge(i, j) for i, j in itertools.combinations(range(self.nodes + 1), 2))
        return tuple(
            Edge(layer * self.scales + s, (layer + 1) * self.scales + to, s, to)
            for layer in range(self.layers)
            for s in range(self.scales)
            for to in range(max(s - 1, 0), min(s + 2, self.scales))
        )

    @cached_property
    def units(self) -> tuple[tuple[Edge, str], ...]:
        """The index set of the grades: each edge with each operation, edge-major."""
        return tuple(itertools.product(self.edges, self.operations))

    @cached_property
    def useful(self) -> tuple[int, ...]:
        """The units that lie on some path from input to output, ascending: no network has use for the others."""
        flowing = [unit for unit, (_, operation) in enumerate(self.units) if operation != "zero"]
        return tuple(sorted(self._on_paths(flowing)))

    # -- whole graphs ----------------------------------------------------------------------------------------------

    def hard(self, numbers: Sequence[float]) -> tuple[int, ...]:
        """The units that the rounded graph keeps, as ascending indices into `units`; there is always a path.

        Those of grade 1/2 or more, without what lies on no path from input to output. Where that leaves no path, the
        one with the greatest product of grades (each edge by its best operation) comes first; of equal ones that whose
        last edge begins at the lowest node, and so on backwards; of equal operations the first.
        """
        grade_U = self.grades(numbers)
        kept = {unit for unit, grade in enumerate(grade_U) if grade >= 0.5 and self.units[unit][1] != "zero"}
        on_paths = self._on_paths(kept) or self._on_paths(kept | self._best_path(grade_U))
        return tuple(sorted(on_paths))

    def whole(self, numbers: Sequence[float]) -> list[float]:
        """The numbers of the rounded graph, which rounds to itself.

        For free and fabric 1 for each unit that `hard` keeps, else 0. A graphon's stay as they are: few coefficients do
        not make each edge 0 or 1, so its rounded graph is a function of them, `hard`.
        """
        if self.kind == "graphon":
            return list(numbers)
        kept = set(self.hard(numbers))
        return [float(unit in kept) for unit in range(len(self.units))]

    def grades(self, numbers: Sequence[float]) -> list[float]:
        """Each unit's grade at temperature 1, where a free unit's is its number; those of `zero` count nowhere."""
        if self.kind != "graphon":
            return list(numbers)
        u = (np.arange(self.nodes + 1) + 0.5) / (self.nodes + 1)
        source, target = np.array([(edge.source, edge.target) for edge in self.edges]).T
        basis_CE = np.stack(kernel_basis(u[source], u[target], self.coefficients, np.cos))
        f_OC = REACH * (2 * np.array(numbers, dtype=float).reshape(len(self.operations), self.coefficients) - 1)
        grade_OE = np.exp(-np.logaddexp(0.0, -(f_OC @ basis_CE)))
        return [float(grade) for grade in grade_OE.T.ravel()]

    def _on_paths(self, kept: Collection[int]) -> set[int]:
        """Those of the units that lie on some path of them from input to output."""
        ends = [(unit, edge) for unit, (edge, _) in enumerate(self.units) if unit in kept]
        reached, leading = {self.input}, {self.output}
        for _, edge in ends:  # sources ascend, so all ways into one are known when its own edges come
            if edge.source in reached:
                reached.add(edge.target)
        for _, edge in reversed(ends):
            if edge.target in leading:
                leading.add(edge.source)
        return {unit for unit, edge in ends if edge.source in reached and edge.target in leading}

    def _best_path(self, grade_U: Sequence[float]) -> set[int]:
        """The units of the path from input to output with the greatest product of grades."""
        flowing = [i for i, operation in enumerate(self.operations) if operation != "zero"]
        best: dict[int, tuple[float, int]] = {self.input: (0.0, -1)}  # by node: log of the product, the unit before it
        for e, edge in enumerate(self.edges):
            if edge.source not in best:
                continue
            unit = max((e * len(self.operations) + i for i in flowing), key=lambda unit: grade_U[unit])
            grade = grade_U[unit]
            score = best[edge.source][0] + (math.log(grade) if grade > 0 else -math.inf)
            if edge.target not in best or score > best[edge.target][0]:
                best[edge.target] = (score, unit)
        path, node = set(), self.output
        while node != self.input:
            unit = best[node][1]
            path.add(unit)
            node = self.units[unit][0].source
        return path


# -- a graphon's kernel ------------------------------------------------------------------------------------------------


def kernel_terms(count: int) -> list[tuple[int, int]]:
    """The first `count` pairs (a, b), a <= b, by a + b, then a: (0, 0), (0, 1), (0, 2), (1, 1), (0, 3), (1, 2), ..."""
    pairs = ((a, total - a) for total in itertools.count() for a in range(total // 2 + 1))
    return list(itertools.islice(pairs, count))


def kernel_basis(u: Any, v: Any, count: int, cos: Callable[[Any], Any]) -> list[Any]:
    """The first `count` symmetric terms of a kernel, (cos(pi a u) cos(pi b v) + cos(pi b u) cos(pi a v)) / 2.

    u, v are floats, arrays or tensors of one shape, which each term has too; `cos` is their cosine. The first term is
    the constant 1. A kernel is w(u, v) = sigmoid(f(u, v) / t), f the sum of the terms times 2 REACH (number - 1/2).
    """
    return [
        (cos(math.pi * a * u) * cos(math.pi * b * v) + cos(math.pi * b * u) * cos(math.pi * a * v)) / 2
        for a, b in kernel_terms(count)
    ]


def operation_faults(where: str, operations: Iterable[str], images: bool) -> list[str]:
    """A sentence for each operation that the kind of data does not allow: rows have no places to slide over."""
    if images:
        return []
    return [
        f"{where}: must be among {', '.join(OF_ROWS)} for rows of numbers, but got {operation!r}, which slides over "
        "an image; drop it, or use 'linear'."
        for operation in operations
        if operation not in OF_ROWS
    ]
