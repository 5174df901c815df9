"""A parameter's declaration, read from plain data: the types by name, and every fault of one that is none.

>>> parameter_from_dict("space.lr", {"type": "float", "low": 0.1, "high": 1})
(Float(when={}, low=0.1, high=1, log=False, moved_by='sampler', start='sampled'), [])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from search_spaces.faults import unknown
from search_spaces.parameters import Choice, Depth, Float, Int, Parameter, Stride, Width
from search_spaces.wiring import Topology

TYPES: dict[str, type[Parameter]] = {cls.type: cls for cls in (Float, Int, Choice, Width, Stride, Depth, Topology)}


def parameter_from_dict(where: str, data: object) -> tuple[Parameter | None, list[str]]:
    """A declaration read from plain data, with every fault found in it."""
    if not isinstance(data, Mapping):
        return None, [f"{where}: must be a mapping such as {{type: float, low: 0, high: 1}}, but got {data!r}."]
    if "type" not in data:
        return None, [f"{where}.type: is missing; one of {', '.join(TYPES)}."]
    cls = TYPES.get(str(data["type"]))
    if cls is None:
        return None, [unknown(f"{where}.type", data["type"], TYPES, "type of parameter")]
    known = {item.name: item for item in fields(cls)}
    faults = [unknown(where, key, [*known, "type"]) for key in data if key != "type" and key not in known]
    faults += [
        f"{where}.{key}: is missing; a {cls.type} needs it."
        for key, item in known.items()
        if item.default is MISSING and item.default_factory is MISSING and key not in data
    ]
    if not isinstance(data.get("log", False), bool):
        faults.append(f"{where}.log: must be true or false, but got {data['log']!r}.")
    if not isinstance(data.get("when", {}), Mapping):
        faults.append(f"{where}.when: must be a mapping {{other: value}}, but got {data['when']!r}.")
    if faults:
        return None, faults
    parameter = cls(**{key: _frozen(value) for key, value in data.items() if key != "type"})
    faults = parameter.declaration_faults(where)
    return (None if faults else parameter), faults


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    return value
