"""Topologies against closed forms, finite differences, integrals and a graph search that shares no code with them.

Legend of shape suffixes: K lanes, P numbers, U units, E edges, M nodes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import dblquad, quad
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from search_spaces import Topology
from search_spaces.declarations import parameter_from_dict
from search_spaces.topology import (
    TEMPERATURE,
    TopologyGate,
    edges_kept,
    grades,
    hard_grades,
    sharpened,
    skip_share,
    undecided,
)
from search_spaces.width import gates_of, held
from search_spaces.wiring import OPERATIONS, kernel_terms

DOUBLE = torch.float64
CASES = [
    Topology(kind="free", nodes=3, operations=("linear", "zero", "skip")),
    Topology(kind="graphon", nodes=3, operations=("linear", "zero", "skip"), coefficients=5),
    Topology(kind="fabric", layers=3, scales=3, operations=("conv3", "zero")),
]
IDS = [topology.kind for topology in CASES]
every = pytest.mark.parametrize("topology", CASES, ids=IDS)


def numbers_of(topology: Topology, seed: int = 0, lanes: int = 4) -> Tensor:
    """Seeded numbers [K, P] away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    return 0.05 + 0.9 * torch.rand(lanes, topology.size, generator=generator, dtype=DOUBLE)


# -- the graph ---------------------------------------------------------------------------------------------------------


def test_a_free_graph_has_every_edge_forwards_in_order() -> None:
    topology = Topology(nodes=3, operations=("linear", "skip"))
    pairs = [(edge.source, edge.target) for edge in topology.edges]
    assert pairs == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert (topology.input, topology.output) == (0, 3)
    assert [(e.source, e.target, o) for e, o in topology.units[:3]] == [
        (0, 1, "linear"),
        (0, 1, "skip"),
        (0, 2, "linear"),
    ]
    assert len(topology.units) == topology.size == 12


@pytest.mark.parametrize(("layers", "scales"), [(1, 1), (1, 2), (2, 3), (5, 3), (6, 6)])
def test_a_fabric_is_the_trellis(layers: int, scales: int) -> None:
    """Saxena & Verbeek 2016, section 2.1: into each node from its own, the next finer and the next coarser scale."""
    topology = Topology(kind="fabric", layers=layers, scales=scales, operations=("conv3", "skip"))
    into: dict[int, list[int]] = {}
    for edge in topology.edges:
        (layer, s), (after, to) = divmod(edge.source, scales), divmod(edge.target, scales)
        assert after == layer + 1
        assert (edge.scale_from, edge.scale_to) == (s, to)
        into.setdefault(edge.target, []).append(s)
    assert set(into) == set(range(scales, (layers + 1) * scales))
    for node, sources in into.items():
        assert sources == [s for s in range(scales) if abs(s - node % scales) <= 1]
    assert len(topology.edges) == layers * (3 * scales - 2)
    assert topology.size == len(topology.units) == 2 * len(topology.edges)
    assert divmod(topology.output, scales) == (layers, scales - 1)
    order = [(edge.source, edge.target) for edge in topology.edges]
    assert order == sorted(order)


def test_a_graphons_numbers_do_not_grow_with_its_nodes() -> None:
    for nodes in (1, 4, 9):
        topology = Topology(kind="graphon", nodes=nodes, operations=("linear", "skip"), coefficients=7)
        assert topology.size == 14
        assert len(topology.units) == nodes * (nodes + 1)


def test_a_kernels_terms_come_by_their_total_frequency() -> None:
    assert kernel_terms(9) == [(0, 0), (0, 1), (0, 2), (1, 1), (0, 3), (1, 2), (0, 4), (1, 3), (2, 2)]


FAULTS = [
    ({"operations": ["skip", "skip"]}, ["t.operations: each must differ from the others, but got 'skip' twice"]),
    ({"operations": ["zero"]}, ["t.operations: nothing flows through `zero`"]),
    ({"operations": ["zero", "zero", "zero"]}, ["t.operations: each must differ", "t.operations: nothing flows"]),
    ({"kind": "fabric", "layers": 2, "scales": 4}, ["t.layers: a fabric moves one scale a layer"]),
    ({"kind": "fabric", "layers": 0, "scales": 4}, ["t.layers: must be a whole number"]),
    ({"operations": [["skip"], ["skip"]]}, ["t.operations: unknown", "t.operations: unknown", "t.operations: each"]),
]
SOUND = [
    {"operations": list(OPERATIONS)},
    {"operations": ["zero", "skip"]},
    {"kind": "fabric", "layers": 3, "scales": 4},
    {"kind": "free", "layers": 1, "scales": 4},
]


@pytest.mark.parametrize(("given_", "sentences"), FAULTS, ids=range(len(FAULTS)))
def test_every_fault_has_its_sentence(given_: dict[str, object], sentences: list[str]) -> None:
    parameter, faults = parameter_from_dict("t", {"type": "topology", **given_})
    assert parameter is None
    assert len(faults) == len(sentences)
    assert all(fault.startswith(sentence) for fault, sentence in zip(faults, sentences, strict=True)), faults


@pytest.mark.parametrize("given_", SOUND, ids=range(len(SOUND)))
def test_what_is_sound_has_no_fault(given_: dict[str, object]) -> None:
    assert parameter_from_dict("t", {"type": "topology", **given_})[1] == []


# -- grades ------------------------------------------------------------------------------------------------------------


def kernel(c: list[float], u: float, v: float, t: float = 1.0) -> float:
    """w(u, v) for up to six coefficients, written out."""
    k = [8 * x - 4 for x in c] + [0.0] * (6 - len(c))
    cu, cv = ([math.cos(math.pi * a * x) for a in range(4)] for x in (u, v))
    f = k[0] + k[1] * (cu[1] + cv[1]) / 2 + k[2] * (cu[2] + cv[2]) / 2 + k[3] * cu[1] * cv[1]
    f += k[4] * (cu[3] + cv[3]) / 2 + k[5] * (cu[1] * cv[2] + cu[2] * cv[1]) / 2
    return 1 / (1 + math.exp(-f / t))


@pytest.mark.parametrize("t", [1.0, 0.4, 0.1])
@every
def test_grades_are_their_closed_form(topology: Topology, t: float) -> None:
    numbers_KP = numbers_of(topology)
    for numbers, got_U in zip(numbers_KP.tolist(), grades(topology, numbers_KP, t).tolist(), strict=True):
        want = []
        for i, (edge, operation) in enumerate(topology.units):
            if operation == "zero":
                want.append(0.0)
            elif topology.kind == "graphon":
                o, many = topology.operations.index(operation), topology.nodes + 1
                c = numbers[5 * o : 5 * o + 5]
                want.append(kernel(c, (edge.source + 0.5) / many, (edge.target + 0.5) / many, t))
            else:
                want.append(1 / (1 + (1 / numbers[i] - 1) ** (1 / t)))
        assert got_U == pytest.approx(want, rel=1e-9, abs=1e-15)


@given(st.sampled_from(CASES), st.integers(0, 99), st.floats(0.1, 1.0))
def test_gradients_equal_finite_differences(topology: Topology, seed: int, t: float) -> None:
    """Of each unit's grade by each number."""
    numbers_P, h = numbers_of(topology, seed, lanes=1)[0], 1e-5
    moved = torch.eye(topology.size, dtype=DOUBLE) * h
    by_hand = (grades(topology, numbers_P + moved, t) - grades(topology, numbers_P - moved, t)) / (2 * h)
    gradient_UP = jacrev(lambda numbers: grades(topology, numbers, t))(numbers_P)
    m_U = grades(topology, numbers_P, t)
    assert torch.equal(gradient_UP.any(1), (m_U > 0) & (m_U < 1))  # a kernel far from 0 is 1 to the last bit
    torch.testing.assert_close(gradient_UP, by_hand.T, rtol=1e-5, atol=1e-6)


@given(st.floats(0, 1), st.sampled_from([torch.float32, DOUBLE]))
def test_at_temperature_1_a_grade_is_its_number(w: float, dtype: torch.dtype) -> None:
    """To the last bit, and so is its derivative 1."""
    for number in (w, 0.0, 1.0):
        w_P = torch.tensor([number], dtype=dtype, requires_grad=True)
        m_P = sharpened(w_P, 1.0)
        (slope_P,) = torch.autograd.grad(m_P.sum(), w_P)
        assert torch.equal(m_P, w_P)
        assert slope_P.item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("t", [0.5, 0.1, 0.01])
def test_ends_and_the_middle_stay_where_they_are(t: float, dtype: torch.dtype) -> None:
    """With finite slopes: 0 at the ends, 1 / t in the middle."""
    w_P = torch.tensor([0.0, 0.5, 1.0], dtype=dtype, requires_grad=True)
    m_P = sharpened(w_P, t)
    (slope_P,) = torch.autograd.grad(m_P.sum(), w_P)
    assert m_P.tolist() == [0.0, 0.5, 1.0]
    assert slope_P.tolist() == pytest.approx([0.0, 1 / t, 0.0], rel=1e-5)


@every
def test_annealing_decides(topology: Topology) -> None:
    numbers_KP = numbers_of(topology)
    doubts = [undecided(topology, grades(topology, numbers_KP, t)) for t in TEMPERATURE]
    assert (doubts[1] < 0.5 * doubts[0]).all()


@every
def test_vmap_equals_the_loop(topology: Topology) -> None:
    numbers_KP = numbers_of(topology)

    def lane(numbers_P: Tensor) -> tuple[Tensor, ...]:
        m_U = grades(topology, numbers_P, 0.3)
        return m_U, undecided(topology, m_U), edges_kept(topology, m_U), skip_share(topology, m_U)

    alone = [torch.stack(parts) for parts in zip(*map(lane, numbers_KP), strict=True)]
    for got, want in zip(vmap(lane)(numbers_KP), alone, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-14)
    for got, want in zip(lane(numbers_KP), alone, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-14)
    slopes = vmap(jacrev(lane))(numbers_KP)
    for got, *parts in zip(slopes, *map(jacrev(lane), numbers_KP), strict=True):
        torch.testing.assert_close(got, torch.stack(parts), rtol=0, atol=1e-13)


@every
def test_one_lane_without_a_number_leaves_its_neighbours_alone(topology: Topology) -> None:
    numbers_KP = numbers_of(topology)
    broken = numbers_KP.clone()
    broken[1] = math.nan
    m_KU = grades(topology, broken, 0.3)
    assert torch.equal(m_KU[[0, 2, 3]], grades(topology, numbers_KP, 0.3)[[0, 2, 3]])
    assert undecided(topology, m_KU).isnan().tolist() == [False, True, False, False]


# -- refinement of a graphon -------------------------------------------------------------------------------------------

COEFFICIENTS = [0.45, 0.7, 0.4, 0.65, 0.55, 0.6]


def adjacency(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """The symmetric matrix [M, M] of the edges' grades, and the nodes' places u [M]."""
    topology = Topology(kind="graphon", nodes=nodes, coefficients=len(COEFFICIENTS))
    m_U = grades(topology, torch.tensor(COEFFICIENTS, dtype=DOUBLE), 1.0).numpy()
    a_MM = np.zeros((nodes + 1, nodes + 1))
    for (edge, _), grade in zip(topology.units, m_U, strict=True):
        a_MM[edge.source, edge.target] = a_MM[edge.target, edge.source] = grade
    return a_MM, (np.arange(nodes + 1) + 0.5) / (nodes + 1)


def test_finer_graphs_converge_to_the_kernels_operator() -> None:
    """(1 / N) sum_j A_ij g(u_j) -> the integral of w(u_i, v) g(v) dv, the error at each node falling like 1 / N."""
    errors = []
    for nodes in (8, 16, 32, 64):
        a_MM, u_M = adjacency(nodes)
        got = a_MM @ (np.sin(2 * u_M) + 1.5) / nodes
        want = [quad(lambda v, u=u: kernel(COEFFICIENTS, u, v) * (math.sin(2 * v) + 1.5), 0, 1)[0] for u in u_M]
        errors.append(np.abs(got - want).max())
    assert errors[0] < 0.2
    assert all(finer < 0.6 * coarser for coarser, finer in itertools.pairwise(errors)), errors
    assert errors[-1] < errors[0] / 7


def test_finer_graphs_keep_the_kernels_density() -> None:
    """The mean grade of a pair of nodes -> the integral of w over the square."""
    want = dblquad(lambda v, u: kernel(COEFFICIENTS, u, v), 0, 1, 0, 1)[0]
    errors = []
    for nodes in (8, 16, 32, 64):
        a_MM, _ = adjacency(nodes)
        errors.append(abs(a_MM.sum() / (nodes * (nodes + 1)) - want))
    assert 1e-5 < errors[0] < 0.1
    assert all(finer < 0.6 * coarser for coarser, finer in itertools.pairwise(errors)), errors


# -- whole graphs ------------------------------------------------------------------------------------------------------


@st.composite
def rounded(draw: st.DrawFn) -> tuple[Topology, list[float]]:
    """A small topology with numbers, among them many on the ends and at 1/2, and lists with `zero`."""
    kind = draw(st.sampled_from(["free", "graphon", "fabric"]))
    operations = draw(
        st.lists(st.sampled_from(["linear", "skip", "zero"]), min_size=1, max_size=3, unique=True).filter(
            lambda names: names != ["zero"]
        )
    )
    scales = draw(st.integers(1, 3))
    layers = draw(st.integers(max(scales - 1, 1), 4))
    topology = Topology(
        kind=kind, nodes=draw(st.integers(1, 5)), layers=layers, scales=scales, operations=tuple(operations)
    )
    low = st.floats(0.0, 0.45)  # where rounding leaves no path
    mixed = low | st.sampled_from([0.0, 0.5, 0.6, 1.0])
    number = draw(st.sampled_from([st.just(0.0), st.just(1.0), st.just(0.5), low, st.floats(0, 1), mixed]))
    return topology, draw(st.lists(number, min_size=topology.size, max_size=topology.size))


def paths(topology: Topology, node: int) -> Iterator[list[int]]:
    """Every path of edges, as indices, from the node to the output."""
    if node == topology.output:
        yield []
    for e, edge in enumerate(topology.edges):
        if edge.source == node:
            yield from ([e, *rest] for rest in paths(topology, edge.target))


def by_search(topology: Topology, grade_U: list[float]) -> set[int] | None:
    """The units to keep, by listing every path; None where equal products leave it open."""
    many = len(topology.operations)
    flowing = [o for o in range(many) if topology.operations[o] != "zero"]
    every_path = list(paths(topology, topology.input))
    kept = {e * many + o for e in range(len(topology.edges)) for o in flowing if grade_U[e * many + o] >= 0.5}

    def on_paths() -> set[int]:
        sound = [path for path in every_path if all(any(e * many + o in kept for o in flowing) for e in path)]
        return {unit for unit in kept if any(unit // many in path for path in sound)}

    if found := on_paths():
        return found
    products = sorted((math.prod(max(grade_U[e * many + o] for o in flowing) for e in p), p) for p in every_path)
    if len(products) > 1 and products[-2][0] >= products[-1][0] * (1 - 1e-9):
        return None
    for e in products[-1][1]:
        kept.add(max((e * many + o for o in flowing), key=lambda unit: grade_U[unit]))
    return on_paths()


@given(rounded())
def test_a_rounded_graph_is_the_one_that_a_search_over_all_paths_finds(case: tuple[Topology, list[float]]) -> None:
    topology, numbers = case
    hard = topology.hard(numbers)
    units = [topology.units[i] for i in hard]
    assert list(hard) == sorted(set(hard))
    assert all(operation != "zero" for _, operation in units)
    edges = {(edge.source, edge.target) for edge, _ in units}
    sound = [
        p
        for p in paths(topology, topology.input)
        if {(topology.edges[e].source, topology.edges[e].target) for e in p} <= edges
    ]
    assert sound
    on_paths = {(topology.edges[e].source, topology.edges[e].target) for path in sound for e in path}
    assert on_paths == edges
    soft = grades(topology, torch.tensor(numbers, dtype=DOUBLE), 1.0).tolist()
    near = topology.kind == "graphon" and any(abs(grade - 0.5) < 1e-9 for grade in soft)  # a rounding decides
    want = by_search(topology, soft)
    assert near or want is None or set(hard) == want


@given(rounded())
def test_a_rounded_graph_rounds_to_itself(case: tuple[Topology, list[float]]) -> None:
    topology, numbers = case
    whole = topology.whole(numbers)
    assert topology.hard(whole) == topology.hard(numbers)
    assert topology.whole(whole) == whole
    if topology.kind == "graphon":
        assert whole == numbers
    else:
        assert set(whole) <= {0.0, 1.0}
        m_KU = hard_grades(topology, torch.tensor([numbers], dtype=DOUBLE))
        assert torch.equal(m_KU[0], grades(topology, torch.tensor(whole, dtype=DOUBLE), 1.0))


def test_hard_by_hand() -> None:
    free = Topology(nodes=3)  # edges 01 02 03 12 13 23
    assert free.hard([0.9, 0.1, 0.1, 0.9, 0.1, 0.9]) == (0, 3, 5)
    assert free.hard([0.5] * 6) == (0, 1, 2, 3, 4, 5)
    assert free.hard([0.1, 0.1, 0.9, 0.9, 0.9, 0.9]) == (2,)  # nothing comes into nodes 1 and 2
    assert free.hard([0.9, 0.9, 0.9, 0.9, 0.1, 0.1]) == (2,)  # nothing leads out of them
    assert free.hard([0.9, 0.1, 0.1, 0.1, 0.4, 0.1]) == (0, 4)  # .9 x .4 is greatest
    assert free.hard([0.9, 0.1, 0.3, 0.9, 0.1, 0.4]) == (0, 3, 5)  # .9 x .9 x .4 is greater than .3
    assert free.hard([0.9, 0.9, 0.1, 0.6, 0.1, 0.4]) == (0, 1, 3, 5)  # 02, 23 is best, and opens the way of 01, 12
    assert free.hard([0.0, 0.9, 0.0, 0.9, 0.1, 0.0]) == (2,)  # every way is barred by a 0
    assert free.hard([0.0, 0.0, 0.1, 0.4, 0.4, 0.4]) == (2,)  # all others are
    assert free.hard([0.0] * 6) == (2,)  # equal products: the edge that begins lowest
    assert Topology(nodes=1, operations=("zero", "linear", "skip")).hard([1.0, 0.2, 0.3]) == (2,)
    assert Topology(nodes=2, operations=("linear", "skip")).hard([0.9, 0.1, 0.2, 0.3, 0.8, 0.1]) == (0, 4)


def test_products_too_small_for_a_float_are_still_compared() -> None:
    fabric = Topology(kind="fabric", layers=400, scales=2)
    numbers = [0.02 if edge.scale_from == edge.scale_to == 1 else 0.01 for edge in fabric.edges]
    kept = [fabric.edges[i] for i in fabric.hard(numbers)]
    assert [(edge.scale_from, edge.scale_to) for edge in kept] == [(0, 1)] + [(1, 1)] * 399


def test_hard_grades_are_those_of_each_lane() -> None:
    topology = CASES[0]
    numbers_KP = numbers_of(topology).float()
    m_KU = hard_grades(topology, numbers_KP)
    assert m_KU.shape == (4, len(topology.units))
    assert m_KU.dtype == torch.float32
    assert [tuple(m_U.nonzero()[:, 0].tolist()) for m_U in m_KU] == [topology.hard(row) for row in numbers_KP.tolist()]
    assert len({tuple(m_U) for m_U in m_KU.tolist()}) > 1


# -- statistics --------------------------------------------------------------------------------------------------------

PAIR = Topology(nodes=2, operations=("skip", "zero", "linear"))  # three edges, nine units


def test_statistics_by_hand() -> None:
    m_U = torch.tensor([0.5, 0.0, 1.0, 0.25, 0.0, 0.0, 0.25, 0.0, 1.0], dtype=DOUBLE)
    quarter = 2 - 0.75 * math.log2(3)
    assert float(undecided(PAIR, m_U)) == pytest.approx((1 + 2 * quarter) / 6, rel=1e-14)
    assert float(edges_kept(PAIR, m_U)) == 3.0
    assert float(skip_share(PAIR, m_U)) == pytest.approx(1 / 3, rel=1e-14)
    slope_U = jacrev(lambda m: skip_share(PAIR, m))(m_U)
    assert slope_U.tolist() == pytest.approx([2 / 9, 0, -1 / 9] * 3, rel=1e-12)  # `zero` is nothing
    slope_U = jacrev(lambda m: undecided(PAIR, m))(m_U)  # log2(1 / m - 1) for each of six
    third = math.log2(3) / 6
    assert slope_U.tolist() == pytest.approx([0, 0, 0, third, 0, 0, third, 0, 0], abs=1e-14)


def test_units_on_no_path_count_in_no_statistic() -> None:
    lattice = Topology(kind="fabric", layers=3, scales=3, operations=("skip", "conv1"))
    useless = sorted(set(range(len(lattice.units))) - set(lattice.useful))
    assert useless
    m_U = torch.rand(len(lattice.units), generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    other_U = m_U.clone()
    other_U[useless] = 0.5
    for statistic in (undecided, edges_kept, skip_share):
        assert torch.equal(statistic(lattice, m_U), statistic(lattice, other_U))


def test_statistics_of_nothing() -> None:
    nothing_U = torch.zeros(9, dtype=DOUBLE)
    assert float(skip_share(PAIR, nothing_U)) == 0.0
    assert jacrev(lambda m: skip_share(PAIR, m))(nothing_U).isfinite().all()
    assert float(undecided(PAIR, nothing_U)) == 0.0
    assert not jacrev(lambda m: undecided(PAIR, m))(nothing_U).any()
    assert skip_share(Topology(nodes=2), torch.ones(5, 3)).tolist() == [0.0] * 5
    assert float(skip_share(Topology(nodes=2, operations=("skip",)), torch.ones(3))) == 1.0


@given(st.floats(0, 1e-300) | st.floats(1 - 1e-15, 1))
def test_the_pull_to_decide_is_finite_at_the_ends(w: float) -> None:
    m_U = torch.full((9,), w, dtype=DOUBLE)
    assert undecided(PAIR, m_U).isfinite()
    assert jacrev(lambda m: undecided(PAIR, m))(m_U).isfinite().all()


# -- the gate ----------------------------------------------------------------------------------------------------------


@every
def test_a_gate_gives_the_grades_of_its_numbers(topology: Topology) -> None:
    gate = TopologyGate("graph", topology)
    assert gate.maximum == len(topology.units)
    assert [(name, w.tolist()) for name, w in gate.named_parameters()] == [("w", [0.5] * topology.size)]
    undecided_U = [0.0 if operation == "zero" else 0.5 for _, operation in topology.units]
    assert gate.grades().tolist() == undecided_U
    numbers_P = numbers_of(topology)[0].float()
    gate.set(numbers_P.tolist())
    gate.tau = 0.3
    assert torch.equal(gate.grades(), grades(topology, numbers_P, 0.3))
    gate.grades().sum().backward()
    assert gate.w.grad is not None
    assert gate.w.grad.any()


def test_gates_run_in_lanes_and_can_be_held() -> None:
    module = torch.nn.Sequential(TopologyGate("graph", CASES[2]))
    assert list(gates_of(module)) == ["graph"]
    numbers_KP = numbers_of(CASES[2])
    x_U = torch.ones(1, len(CASES[2].units), dtype=DOUBLE)
    lanes = vmap(lambda w: functional_call(module, {"0.w": w}, (x_U,)))(numbers_KP)
    torch.testing.assert_close(lanes[:, 0], grades(CASES[2], numbers_KP, 1.0))
    assert gates_of(held(module))["graph"].grades().shape == (len(CASES[2].units),)
