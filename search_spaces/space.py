"""A search space: named parameters, and the four things one does with them: sample, validate, encode, decode.

    >>> space = Space.from_dict({"width.0": {"type": "width", "low": 4, "high": 128},
    ...                          "lr": {"type": "float", "low": 1e-3, "high": 1.0, "log": True}})
    >>> point = space.sample(numpy.random.default_rng(0))
    >>> space.decode(space.encode(point)) == point

A *point* maps the names of the parameters that exist there (see `when`) to their values; a topology's numbers stand in
it as `name.i`. A point's *signature* holds the values that change shapes or code: trials of one bundle share it.
"""

from __future__ import annotations

import graphlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeAlias

import numpy as np

from search_spaces.declarations import TYPES, parameter_from_dict
from search_spaces.faults import Invalid, unknown
from search_spaces.parameters import Parameter, Real, Value, same
from search_spaces.wiring import Topology

Point: TypeAlias = "dict[str, Value]"


class Space:
    """An immutable, validated set of named parameters.

    Raises:
        Invalid: with every broken rule, when a declaration or a `when` does not hold together.
    """

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self.parameters: dict[str, Parameter] = dict(parameters)
        own = {
            name: [*_name_faults(name), *parameter.declaration_faults(f"space.{name}")]
            for name, parameter in self.parameters.items()
        }
        sound = {name: parameter for name, parameter in self.parameters.items() if not own[name]}
        if faults := [fault for found in own.values() for fault in found] + _joint_faults(sound, self.parameters):
            raise Invalid(faults)
        self.coordinates: dict[str, Parameter] = dict(self._ordered_coordinates())

    @classmethod
    def from_dict(cls, data: object) -> Space:
        """A space from plain data, as it stands under `space:` in a spec."""
        if not isinstance(data, Mapping) or not data:
            raise Invalid([f"space: must be a mapping of at least one parameter, but got {data!r}."])
        faults: list[str] = []
        parameters: dict[str, Parameter] = {}
        for name, declaration in data.items():
            parameter, found = parameter_from_dict(f"space.{name}", declaration)
            faults += [*_name_faults(str(name)), *found]
            if parameter is not None:
                parameters[str(name)] = parameter
        if faults:
            raise Invalid(faults + _joint_faults(parameters, [str(name) for name in data]))
        return cls(parameters)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back to an equal space."""
        return {name: parameter.to_dict() for name, parameter in self.parameters.items()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self.parameters == other.parameters

    def __hash__(self) -> int:
        return hash(frozenset((name, parameter.type) for name, parameter in self.parameters.items()))

    def __repr__(self) -> str:
        return f"Space({', '.join(f'{name}: {p.type}' for name, p in self.parameters.items())})"

    def digest(self) -> str:
        """Sixteen hex digits that change when the space does."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    # -- points ----------------------------------------------------------------------------------------------------

    def active(self, point: Mapping[str, Value]) -> Iterator[tuple[str, Parameter]]:
        """The coordinates that exist at `point`, parents before children."""
        alive: Point = {}
        for name, parameter in self.coordinates.items():
            if _holds(parameter, alive):
                if name in point:
                    alive[name] = point[name]
                yield name, parameter

    def exists(self, name: str, point: Mapping[str, Value]) -> bool:
        """Whether the coordinate exists at `point`, in which its parents stand already."""
        return _holds(self.coordinates[name], point)

    def sample(self, rng: np.random.Generator) -> Point:
        """One point, uniform on each parameter's own scale; draws the same numbers whatever the conditions say."""
        return self.decode(rng.random(len(self.coordinates)))

    def faults(self, point: Mapping[str, object], where: str = "point") -> list[str]:
        """Every rule that `point` breaks: values out of range, names missing, names that do not exist there."""
        known: dict[str, Value] = {k: v for k, v in point.items() if k in self.coordinates}  # type: ignore[misc]
        live = dict(self.active(known))
        faults = [unknown(where, name, self.coordinates, "parameter") for name in point if name not in self.coordinates]
        for name, parameter in self.coordinates.items():
            if name in live and name not in point:
                faults.append(f"{where}.{name}: is missing.")
            elif name in live:
                faults += parameter.value_faults(f"{where}.{name}", point[name])
            elif name in point:
                faults.append(f"{where}.{name}: does not exist where {_words(parameter.when)} does not hold; drop it.")
        return faults

    def validate(self, point: Mapping[str, object]) -> None:
        """Raises `Invalid` with every fault of `point`."""
        if faults := self.faults(point):
            raise Invalid(faults)

    def encode(self, point: Mapping[str, Value]) -> np.ndarray:
        """The point in the unit cube, shape [D] float64; a coordinate that does not exist there stands at 0.5."""
        live = dict(self.active(point))
        return np.array(
            [parameter.encode(point[name]) if name in live else 0.5 for name, parameter in self.coordinates.items()]
        )

    def decode(self, u: np.ndarray) -> Point:
        """The point at `u`, shape [D] in [0, 1]; a number given as `start` stands there whatever `u` says."""
        point: Point = {}
        for (name, parameter), place in zip(self.coordinates.items(), u, strict=True):
            if _holds(parameter, point):
                fixed = fixed_start(parameter)
                point[name] = parameter.decode(float(place)) if fixed is None else fixed
        return point

    def signature(self, point: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
        """The values at `point` that change shapes or code, sorted by name."""
        return tuple(sorted((name, point[name]) for name, p in self.active(point) if p.structural))

    def searched(self) -> dict[str, Parameter]:
        """The coordinates whose value a sampler chooses (all but those with a fixed `start`)."""
        return {name: p for name, p in self.coordinates.items() if fixed_start(p) is None}

    def moved(self) -> dict[str, Real]:
        """The coordinates that a gradient moves."""
        return {n: p for n, p in self.coordinates.items() if isinstance(p, Real) and p.moved_by == "gradient"}

    def _ordered_coordinates(self) -> Iterator[tuple[str, Parameter]]:
        done: set[str] = set()
        waiting = dict(self.parameters)
        while waiting:
            for name in [n for n, p in waiting.items() if set(p.when) <= done]:
                parameter = waiting.pop(name)
                done.add(name)
                if isinstance(parameter, Topology):
                    yield from parameter.coordinates(name).items()
                else:
                    yield name, parameter


def fixed_start(parameter: Parameter) -> float | None:
    """The number a gradient-moved parameter begins at, when the spec fixes it."""
    start = getattr(parameter, "start", "sampled")
    return None if start == "sampled" else float(start)


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of the `space:` section, for editors and clients."""
    kinds: dict[str, Any] = {
        "float": {"type": "number"},
        "int": {"type": "integer"},
        "bool": {"type": "boolean"},
        "str": {"type": "string"},
        "float | str": {"type": ["number", "string"]},
        "tuple[Value, ...]": {"type": "array", "minItems": 1},
        "tuple[str, ...]": {"type": "array", "minItems": 1, "items": {"type": "string"}},
    }
    options = []
    for cls in TYPES.values():
        properties: dict[str, Any] = {"type": {"const": cls.type}}
        required = ["type"]
        for item in fields(cls):
            properties[item.name] = kinds.get(str(item.type), {"type": "object"})
            if item.default is MISSING and item.default_factory is MISSING:
                required.append(item.name)
        options.append(
            {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        )
    return {"type": "object", "minProperties": 1, "additionalProperties": {"oneOf": options}}


def _joint_faults(sound: Mapping[str, Parameter], declared: Collection[str]) -> list[str]:
    """Rules between the parameters that are sound by themselves; `declared` names the faulty ones too."""
    faults = []
    for name, parameter in sound.items():
        for other, wanted in parameter.when.items():
            where, parent = f"space.{name}.when.{other}", sound.get(other)
            if other not in declared:
                faults.append(unknown(where, other, [n for n in declared if n != name], "parameter"))
            elif parent is not None and not parent.structural:
                faults.append(f"{where}: must name an int or a choice, but {other!r} is a {parent.type}.")
            elif wanted == ():
                faults.append(f"{where}: must be a value or a list of at least one, but got an empty list.")
            elif parent is not None:
                values = wanted if isinstance(wanted, tuple) else (wanted,)
                faults += [fault for value in values for fault in parent.value_faults(where, value)]
        if isinstance(parameter, Topology):
            taken = [number for number in parameter.coordinates(name) if number in declared]
            faults += [f"space.{number}: is a number of the topology {name!r} already; rename one." for number in taken]
    cycle = _cycle({name: list(p.when) for name, p in sound.items()})
    if cycle:
        faults.append(f"space: conditions must not go round in a circle, but got {' -> '.join(cycle)}.")
    return faults


def _holds(parameter: Parameter, point: Mapping[str, Value]) -> bool:
    return all(
        other in point
        and any(same(point[other], value) for value in (wanted if isinstance(wanted, tuple) else (wanted,)))
        for other, wanted in parameter.when.items()
    )


def _name_faults(name: str) -> list[str]:
    if name and all(part.isidentifier() or part.isdigit() for part in name.split(".")):
        return []
    return [f"space.{name}: a name is made of letters, digits and _, in parts joined by dots; rename it."]


def _words(when: Mapping[str, Any]) -> str:
    return " and ".join(f"{k}={v!r}" for k, v in when.items())


def _cycle(parents: Mapping[str, list[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(parents).prepare()
    except graphlib.CycleError as error:
        return [str(name) for name in error.args[1]]
    return []
