"""Spaces: what holds for every valid one, and the sentence for everything that makes one invalid."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces import Choice, Depth, Float, Int, Invalid, Space, Stride, Topology, Width
from search_spaces.parameters import Parameter, Real, same
from search_spaces.space import json_schema

EPS = 2.0**-52

# -- every valid space -------------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-1e3, 1e3) | st.text("abc", max_size=3)
positive = st.floats(1e-9, 1e9)
plain = st.floats(-1e6, 1e6)


@st.composite
def ranges(draw: st.DrawFn, ends: st.SearchStrategy[float]) -> dict[str, Any]:
    low, high = sorted(draw(st.tuples(ends, ends).filter(lambda pair: pair[0] != pair[1])))
    return {"low": low, "high": high}


@st.composite
def declarations(draw: st.DrawFn) -> dict[str, Any]:
    """One parameter without a condition."""
    kind = draw(st.sampled_from(["float", "log", "int", "log_int", "choice", "width", "stride", "depth", "topology"]))
    if kind == "float":
        data = {"type": "float", **draw(ranges(plain))}
    elif kind == "log":
        data = {"type": "float", "log": True, **draw(ranges(positive).filter(lambda r: r["high"] / r["low"] > 1))}
    elif kind == "int":
        low = draw(st.integers(-(2**40), 2**40))
        return {"type": "int", "low": low, "high": draw(st.integers(low, 2**40))}
    elif kind == "log_int":
        low = draw(st.integers(1, 2**40))
        return {"type": "int", "log": True, "low": low, "high": draw(st.integers(low, 2**40))}
    elif kind == "choice":
        return {"type": "choice", "options": draw(st.lists(scalars, min_size=1, max_size=5, unique_by=repr_of))}
    elif kind == "width":
        data = {"type": "width", "low": (low := draw(st.floats(1, 500))), "high": math.floor(low) + 1}
        data["high"] += draw(st.integers(0, 500))
    elif kind == "stride":
        data = {"type": "stride", **draw(ranges(st.floats(1, 8)))}
    elif kind == "depth":
        data = {"type": "depth", "low": draw(st.floats(0, 3)), "high": draw(st.integers(4, 9))}
    else:
        topology = draw(st.sampled_from(["free", "graphon", "fabric"]))
        data = {"type": "topology", "kind": topology, "nodes": draw(st.integers(1, 3)), "operations": ["linear"]}
        data |= {"scales": draw(st.integers(1, 3)), "layers": 2}
    if draw(st.booleans()):
        data["moved_by"] = "gradient"
        if data["type"] != "topology" and draw(st.booleans()):
            data["start"] = draw(st.floats(data["low"], data["high"]))
    return data


def repr_of(option: Any) -> tuple[str, float] | tuple[str, str]:
    """What makes an option differ from another: 1 and 1.0 are the same, 1 and True are not."""
    number = isinstance(option, int | float) and not isinstance(option, bool)
    return ("number", float(option)) if number else (type(option).__name__, repr(option))


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Any]:
    """Several parameters, later ones perhaps under conditions on earlier ints and choices."""
    data: dict[str, Any] = {}
    for i in range(draw(st.integers(1, 6))):
        declaration = draw(declarations())
        parents = [name for name, other in data.items() if other["type"] in ("int", "choice")]
        for parent in draw(st.lists(st.sampled_from(parents), max_size=2, unique=True)) if parents else []:
            other = data[parent]
            if other["type"] == "choice":
                values = st.sampled_from(other["options"])
            else:
                values = st.integers(other["low"], other["high"])
            wanted = draw(values | st.lists(values, min_size=1, max_size=3))
            declaration.setdefault("when", {})[parent] = wanted
        data[f"p.{i}"] = declaration
    return dict(draw(st.permutations(list(data.items()))))


def tolerance(parameter: Real, value: float) -> float:
    """1e-14 of the range. To that come roundings that no formula through [0, 1] can avoid: an ulp or two of the value
    where |value| dwarfs a linear range; and on a log scale exp turns the absolute error of its argument, an ulp of
    log(high / low) in each of four operations, into a relative error of the value."""
    rounding = 4 * EPS * max(abs(parameter.low), abs(parameter.high))
    if parameter.log:
        rounding = 4 * EPS * value * (1 + math.log(parameter.high / parameter.low))
    return 1e-14 * (parameter.high - parameter.low) + rounding


@given(spaces(), st.integers(0, 2**32))
def test_a_sample_is_valid_and_comes_back_from_the_cube(data: dict[str, Any], seed: int) -> None:
    space = Space.from_dict(data)
    point = space.sample(np.random.default_rng(seed))
    assert space.faults(point) == []
    u = space.encode(point)
    assert u.shape == (len(space.coordinates),)
    assert ((u >= 0) & (u <= 1)).all()
    back = space.decode(u)
    assert back.keys() == point.keys()
    for name, value in point.items():
        parameter = space.coordinates[name]
        if isinstance(parameter, Real):
            assert abs(back[name] - value) <= tolerance(parameter, value)
        else:
            assert same(back[name], value)
            assert type(back[name]) is type(value)


@given(spaces())
def test_plain_data_read_back_to_an_equal_space(data: dict[str, Any]) -> None:
    space = Space.from_dict(data)
    again = Space.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space
    assert hash(again) == hash(space)
    assert again.digest() == space.digest()
    assert list(again.coordinates) == list(space.coordinates)


@given(st.data(), spaces())
def test_the_ends_of_every_range_are_reached_exactly(draw: st.DataObject, data: dict[str, Any]) -> None:
    space = Space.from_dict(data)
    parameter = draw.draw(st.sampled_from(list(space.coordinates.values())))
    if isinstance(parameter, Choice):
        ends = parameter.options[0], parameter.options[-1]
    else:
        ends = parameter.low, parameter.high
    for u, end in zip((0.0, 1.0), ends, strict=True):
        assert parameter.decode(u) == end
        assert parameter.value_faults("", parameter.decode(u)) == []


@given(st.integers(1, 300), st.integers(0, 300), st.booleans())
def test_whole_numbers_have_cells_of_the_right_size(low: int, more: int, log: bool) -> None:
    """Uniform on the scale: each value owns [v - 1/2, v + 1/2] on it, so that no end is rarer than its neighbours."""
    parameter = Int(low=low, high=low + more, log=log)
    scale = math.log if log else float
    total = scale(low + more + 0.5) - scale(low - 0.5)
    for value in {low, low + more // 2, low + more}:
        begin, end = ((scale(value + side) - scale(low - 0.5)) / total for side in (-0.5, 0.5))
        assert parameter.decode(begin + 1e-6 * (end - begin)) == value
        assert parameter.decode(end - 1e-6 * (end - begin)) == value


def test_samples_are_uniform_on_each_scale() -> None:
    from scipy.stats import kstest

    space = Space({"a": Float(low=-3, high=5), "b": Float(low=1e-4, high=10, log=True), "w": Width(low=4, high=128)})
    rng = np.random.default_rng(0)
    points = [space.sample(rng) for _ in range(2000)]
    places = {
        "a": [(p["a"] + 3) / 8 for p in points],
        "b": [math.log10(p["b"] / 1e-4) / 5 for p in points],
        "w": [math.log2(p["w"] / 4) / 5 for p in points],
    }
    for name, place in places.items():
        assert kstest(place, "uniform").pvalue > 0.01, name


def test_a_sample_draws_the_same_numbers_whatever_the_conditions_say() -> None:
    free = Space.from_dict(
        {"c": {"type": "choice", "options": ["a", "b"]}, "x": {"type": "float", "low": 0, "high": 1}}
    )
    bound = Space.from_dict({**free.to_dict(), "x": {"type": "float", "low": 0, "high": 1, "when": {"c": "a"}}})
    rngs = np.random.default_rng(1), np.random.default_rng(1)
    for _ in range(50):
        one, other = (space.sample(rng) for space, rng in zip((free, bound), rngs, strict=True))
        assert other == {name: value for name, value in one.items() if name == "c" or one["c"] == "a"}


def test_a_start_stands_whatever_the_cube_says() -> None:
    space = Space.from_dict({"width.0": {"type": "width", "low": 4, "high": 128, "moved_by": "gradient", "start": 17}})
    assert space.decode(np.array([0.9])) == {"width.0": 17.0}
    assert space.searched() == {}
    assert list(space.moved()) == ["width.0"]


# -- conditions --------------------------------------------------------------------------------------------------------

NESTED = {
    "x": {"type": "float", "low": 0, "high": 1, "when": {"inner": [2, 3]}},
    "inner": {"type": "int", "low": 1, "high": 3, "when": {"outer": "deep"}},
    "outer": {"type": "choice", "options": ["deep", "flat"]},
    "y": {"type": "float", "low": 0, "high": 1, "when": {"outer": ["flat", "deep"], "inner": 1}},
}


def test_nested_conditions_and_lists_of_values() -> None:
    space = Space.from_dict(NESTED)
    assert list(space.coordinates) == ["outer", "inner", "x", "y"]
    for outer, inner, exist in [
        ("flat", None, {"outer"}),
        ("deep", 1, {"outer", "inner", "y"}),
        ("deep", 2, {"outer", "inner", "x"}),
        ("deep", 3, {"outer", "inner", "x"}),
    ]:
        point = {"outer": outer} | ({"inner": inner} if inner else {})
        assert {name for name, _ in space.active(point)} == exist
    assert space.encode({"outer": "flat"}).tolist() == [0.75, 0.5, 0.5, 0.5]


def test_what_depends_on_a_parent_that_is_not_there_does_not_exist_either() -> None:
    space = Space.from_dict(NESTED)
    assert space.faults({"outer": "flat", "inner": 2, "x": 0.5}) == [
        "point.inner: does not exist where outer='deep' does not hold; drop it.",
        "point.x: does not exist where inner=(2, 3) does not hold; drop it.",
    ]


def test_a_switch_is_not_a_one() -> None:
    space = Space.from_dict(
        {
            "c": {"type": "choice", "options": [True, 1, "1"]},
            "x": {"type": "float", "low": 0, "high": 1, "when": {"c": True}},
        }
    )
    assert {name for name, _ in space.active({"c": 1})} == {"c"}
    assert {name for name, _ in space.active({"c": True})} == {"c", "x"}
    assert space.decode(space.encode({"c": 1})) == {"c": 1}
    assert type(space.decode(space.encode({"c": True, "x": 0.5}))["c"]) is bool


def test_a_signature_holds_what_changes_shapes_or_code_and_exists() -> None:
    space = Space.from_dict(NESTED)
    assert space.signature({"outer": "deep", "inner": 2, "x": 0.1}) == (("inner", 2), ("outer", "deep"))
    assert space.signature({"outer": "deep", "inner": 2, "x": 0.9}) == (("inner", 2), ("outer", "deep"))
    assert space.signature({"outer": "flat"}) == (("outer", "flat"),)


def test_a_topology_is_a_family_of_numbers_under_its_own_condition() -> None:
    c = {"type": "choice", "options": ["a", "b"]}
    space = Space.from_dict({"c": c, "t": {"type": "topology", "nodes": 2, "when": {"c": "a"}}})
    assert list(space.coordinates) == ["c", "t.0", "t.1", "t.2"]
    assert space.faults({"c": "a", "t.0": 0.0, "t.1": 1.0, "t.2": 0.5}) == []
    assert len(space.faults({"c": "b", "t.0": 0.0})) == 1
    sizes = {"free": 3 * 4 // 2 * 2, "graphon": 5 * 2, "fabric": 2 * 7 * 2}
    for kind, size in sizes.items():
        operations = ("linear", "skip")
        assert Topology(kind=kind, nodes=3, operations=operations, coefficients=5, layers=2).size == size


# -- faults ------------------------------------------------------------------------------------------------------------

F = {"type": "float", "low": 0.0, "high": 1.0}
KINDS = "choice, depth, float, int, stride, topology, width"
OPERATIONS = "avg_pool, conv1, conv3, conv5, linear, max_pool, separable, skip, zero"
FAULTS: list[tuple[Any, str]] = [
    (3, "space.p: must be a mapping such as {type: float, low: 0, high: 1}, but got 3."),
    ({"low": 1}, "space.p.type: is missing; one of float, int, choice, width, stride, depth, topology."),
    ({"type": "flaot"}, f"space.p.type: unknown type of parameter 'flaot'. Did you mean 'float'? Known: {KINDS}."),
    (
        {**F, "hihg": 1},
        "space.p: unknown key 'hihg'. Did you mean 'high'? Known: high, log, low, moved_by, start, type",
    ),
    ({"type": "float", "low": 0}, "space.p.high: is missing; a float needs it."),
    ({**F, "log": "yes"}, "space.p.log: must be true or false, but got 'yes'."),
    ({**F, "when": 3}, "space.p.when: must be a mapping {other: value}, but got 3."),
    ({**F, "low": 1.0}, "space.p: `low < high` must hold, but got low=1.0, high=1.0."),
    ({**F, "log": True}, "space.p: `log: true` needs `low > 0`, but got low=0.0."),
    ({**F, "low": "a"}, "space.p.low: must be a finite number, but got 'a'."),
    ({**F, "high": True}, "space.p.high: must be a finite number, but got True."),
    ({**F, "high": math.nan}, "space.p.high: must be a finite number, but got nan."),
    ({**F, "high": 10**400}, "space.p.high: must be a finite number, but got 1000"),
    ({**F, "low": -1.7e308, "high": 1.7e308}, "space.p: `high - low` must be a number that a float holds, but got"),
    ({**F, "low": 5e-324, "high": 1e308, "log": True}, "space.p: `high / low` must be a number that a float holds"),
    ({**F, "moved_by": "hand"}, "space.p.moved_by: unknown mover 'hand'. Known: gradient, sampler."),
    ({**F, "start": 0.5}, "space.p.start: only a parameter with `moved_by: gradient` has a start; drop it."),
    ({**F, "moved_by": "gradient", "start": 2}, "space.p.start: must lie in [0, 1], but got 2."),
    ({**F, "moved_by": "gradient", "start": "x"}, "space.p.start: must be 'sampled' or a number, but got 'x'."),
    (
        {"type": "width", "low": 0.5, "high": 8},
        "space.p.low: a layer needs at least one unit (`low >= 1`), but got 0.5",
    ),
    ({"type": "width", "low": 1, "high": 8.5}, "space.p.high: the layer's maximum must be whole, but got 8.5."),
    ({"type": "stride", "low": 0.5, "high": 2}, "space.p.low: a stride below 1 would enlarge the map (`low >= 1`)"),
    ({"type": "depth", "low": -1, "high": 2}, "space.p.low: a depth is 0 or more, but got -1."),
    ({"type": "depth", "low": 0, "high": 2.5}, "space.p.high: the number of blocks must be whole, but got 2.5."),
    ({"type": "int", "low": 0.5, "high": 2}, "space.p.low: must be a whole number, but got 0.5."),
    ({"type": "int", "low": 3, "high": 2}, "space.p: `low <= high` must hold, but got low=3, high=2."),
    ({"type": "int", "low": 0, "high": 2**50}, "space.p.high: must lie within 2**40 of 0"),
    ({"type": "int", "low": 0, "high": 2, "log": True}, "space.p: `log: true` needs `low > 0`, but got low=0."),
    ({"type": "choice", "options": []}, "space.p.options: must be a list of at least one option, but got ()."),
    ({"type": "choice", "options": "ab"}, "space.p.options: must be a list of at least one option, but got 'ab'."),
    (
        {"type": "choice", "options": [[1]]},
        "space.p.options: each must be text, a number, a switch or null, but got (1",
    ),
    ({"type": "choice", "options": [math.inf]}, "space.p.options: each must be text, a number, a switch or null"),
    ({"type": "choice", "options": ["a", 1, 1.0]}, "space.p.options: each must differ from the others, but 1.0 stands"),
    ({"type": "topology", "kind": "fre"}, "space.p.kind: unknown kind of topology 'fre'. Did you mean 'free'? Known:"),
    ({"type": "topology", "nodes": 0}, "space.p.nodes: must be a whole number of at least 1, but got 0."),
    (
        {"type": "topology", "operations": ["mean"]},
        f"space.p.operations: unknown operation 'mean'. Known: {OPERATIONS}",
    ),
    ({"type": "topology", "operations": []}, "space.p.operations: must name at least one operation, but got ()."),
    (
        {"type": "topology", "operations": ["skip", "linear", "skip"]},
        "space.p.operations: each must differ from the others, but got 'skip' twice; drop one.",
    ),
    (
        {"type": "topology", "operations": ["zero"]},
        "space.p.operations: nothing flows through `zero`, but got no other operation; add one.",
    ),
    (
        {"type": "topology", "kind": "fabric", "layers": 1, "scales": 3},
        "space.p.layers: a fabric moves one scale a layer, so its output is reached where `layers >= scales - 1`, but "
        "got layers=1, scales=3; add layers or drop scales.",
    ),
    ({"type": "topology", "moved_by": "gradient", "start": 2}, "space.p.start: must lie in [0, 1], but got 2."),
    ({**F, "when": {"q": 1}}, "space.p.when.q: unknown parameter 'q'. Known: i, r."),
    ({**F, "when": {"r": 1}}, "space.p.when.r: must name an int or a choice, but 'r' is a float."),
    ({**F, "when": {"i": 9}}, "space.p.when.i: must lie in [1, 3], but got 9."),
    ({**F, "when": {"i": [1, "x"]}}, "space.p.when.i: must be a whole number, but got 'x'."),
    ({**F, "when": {"i": []}}, "space.p.when.i: must be a value or a list of at least one, but got an empty list."),
    (
        {"type": "int", "low": 1, "high": 2, "when": {"p": 1}},
        "space: conditions must not go round in a circle, but got p",
    ),
]


@pytest.mark.parametrize(("declaration", "sentence"), FAULTS, ids=range(len(FAULTS)))
def test_every_fault_of_a_declaration_has_its_sentence(declaration: Any, sentence: str) -> None:
    others = {"i": {"type": "int", "low": 1, "high": 3}, "r": F}
    with pytest.raises(Invalid) as caught:
        Space.from_dict({**others, "p": declaration})
    (fault,) = [f for f in caught.value.faults if not f.startswith("space.p.type: is missing; one of t")]
    assert fault.startswith(sentence), fault
    assert fault.endswith(".")


@pytest.mark.parametrize("name", ["", "a b", "a..b", ".a", "a/b", "1a"])
def test_names_are_words_joined_by_dots(name: str) -> None:
    with pytest.raises(Invalid) as caught:
        Space.from_dict({name: F})
    assert caught.value.faults == (
        f"space.{name}: a name is made of letters, digits and _, in parts joined by dots; rename it.",
    )


@pytest.mark.parametrize("data", [None, {}, [], "x", 3])
def test_a_space_is_a_mapping_of_at_least_one_parameter(data: Any) -> None:
    with pytest.raises(Invalid, match="space: must be a mapping of at least one parameter, but got"):
        Space.from_dict(data)


def test_a_name_of_a_topologys_number_is_taken() -> None:
    with pytest.raises(Invalid) as caught:
        Space.from_dict({"t": {"type": "topology", "nodes": 2}, "t.1": F})
    assert caught.value.faults == ("space.t.1: is a number of the topology 't' already; rename one.",)


def test_longer_circles_are_named() -> None:
    i = {"type": "int", "low": 0, "high": 1}
    with pytest.raises(Invalid) as caught:
        Space.from_dict({"a": {**i, "when": {"b": 1}}, "b": {**i, "when": {"c": 1}}, "c": {**i, "when": {"a": 1}}})
    (fault,) = caught.value.faults
    ring = fault.removeprefix("space: conditions must not go round in a circle, but got ").rstrip(".").split(" -> ")
    assert set(ring) == {"a", "b", "c"}
    assert ring[0] == ring[-1]


def test_all_faults_at_once_in_the_order_of_the_input() -> None:
    with pytest.raises(Invalid) as caught:
        Space.from_dict(
            {
                "w": {"type": "width", "low": 128.5, "high": 4.5, "lgo": True},
                "v": {"type": "width", "low": 0.5, "high": 0.25},
                "a b": F,
                "x": {**F, "when": {"nowhere": 1}},
                "y": {**F, "when": {"w": 1}},
                "z": {**F, "when": {"x": 1}},
            }
        )
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "space.w",
        "space.v",
        "space.v.low",
        "space.v.high",
        "space.a b",
        "space.x.when.nowhere",
        "space.z.when.x",
    ]


def test_a_parent_that_is_faulty_itself_is_no_second_fault() -> None:
    with pytest.raises(Invalid) as caught:
        Space({"i": Int(low="a", high=3), "x": Float(low=0, high=1, when={"i": 2})})  # type: ignore[arg-type]
    assert caught.value.faults == ("space.i.low: must be a whole number, but got 'a'.",)


def test_every_fault_of_a_point_at_once() -> None:
    i, s = {"type": "int", "low": 1, "high": 3}, {"type": "stride", "low": 1, "high": 2}
    space = Space.from_dict({**NESTED, "i": i, "s": s})
    with pytest.raises(Invalid) as caught:
        space.validate({"outer": "deep", "inner": 4, "x": 0.5, "i": 1.0, "s": math.nan, "lr": 3})
    assert caught.value.faults == (
        "point: unknown parameter 'lr'. Known: i, inner, outer, s, x, y.",
        "point.i: must be a whole number, but got 1.0.",
        "point.s: must be a finite number, but got nan.",
        "point.inner: must lie in [1, 3], but got 4.",
        "point.x: does not exist where inner=(2, 3) does not hold; drop it.",
    )
    assert space.faults({"outer": "flat"}) == ["point.i: is missing.", "point.s: is missing."]
    assert space.faults({"outer": "flta", "i": 1, "s": 1}) == [
        "point.outer: unknown option 'flta'. Did you mean 'flat'? Known: deep, flat."
    ]


# -- the schema --------------------------------------------------------------------------------------------------------


@given(spaces())
def test_the_schema_accepts_what_is_valid(data: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(data)


VISIBLE = "mapping", "missing", "unknown type", "unknown key", "true or false", "finite number, but got '", "got ()."


@pytest.mark.parametrize("declaration", [d for d, sentence in FAULTS if any(word in sentence for word in VISIBLE)])
def test_the_schema_refuses_what_it_can_see(declaration: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid({"p": declaration})


def test_each_type_of_parameter_is_in_the_schema() -> None:
    types: list[type[Parameter]] = [Float, Int, Choice, Width, Stride, Depth, Topology]
    options = json_schema()["additionalProperties"]["oneOf"]
    assert [option["properties"]["type"]["const"] for option in options] == [cls.type for cls in types]
