"""Sections of a declaration: frozen values with a rule for each field, read from plain data with every fault at once.

>>> class Budget(Section):
...     trials: int = rule(64, kind="whole number", least=1)
>>> Budget.read({"trials": 0})            # Invalid: budget.trials: must be a whole number of at least 1, ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Protocol, Self, TypeVar

from search_spaces.faults import Invalid, unknown
from search_spaces.parameters import is_real

DEEPEST = 20  # levels of a spec


class _Declared(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def faults(self, where: str) -> list[str]: ...


Plain = TypeVar("Plain", bound=_Declared)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one value must be: one of `names`, or of a `kind`: number, whole number (from `least` up), switch, text.
    `later` says why nothing but the default is known so far."""

    names: tuple[str, ...] = ()
    what: str = "name"
    kind: str = ""
    least: float = 0
    above: bool = False  # whether `least` itself is too little
    later: str = ""

    def faults(self, where: str, value: object, default: object) -> list[str]:
        if (isinstance(value, str) and value in self.names) or (value is None and default is None):
            return []
        if not self.kind:
            return [unknown(where, value, self.names, self.what)]
        if not self._fits(value):
            kinds = {"switch": "true or false", "text": "one line of at most 200 characters"}
            number = f"a {self.kind} {'above' if self.above else 'of at least'} {self.least:g}"
            words = " or ".join([*self.names, kinds.get(self.kind, number)])
            return [f"{where}: must be {words}, but got {value!r}."]
        if self.later and value != default:
            return [f"{where}: {self.later} not known yet, so it must be {default!r}, but got {value!r}; drop it."]
        return []

    def _fits(self, value: object) -> bool:
        if self.kind == "switch":
            return isinstance(value, bool)
        if self.kind == "text":
            return isinstance(value, str) and 0 < len(value.strip()) <= 200 and value.isprintable()
        if isinstance(value, int) and abs(value) >= 2**63:
            return False  # `is_real` would overflow
        if not is_real(value) or (self.kind == "whole number" and not isinstance(value, int)):
            return False
        assert isinstance(value, int | float)
        return value > self.least or (value == self.least and not self.above)

    def schema(self) -> dict[str, Any]:
        least = {"exclusiveMinimum" if self.above else "minimum": self.least}
        kinds: dict[str, dict[str, Any]] = {
            "switch": {"type": "boolean"},
            "text": {"type": "string", "minLength": 1, "maxLength": 200},
            "number": {"type": "number", **least},
            "whole number": {"type": "integer", **least},
        }
        options = ([{"enum": list(self.names)}] if self.names else []) + ([kinds[self.kind]] if self.kind else [])
        return options[0] if len(options) == 1 else {"anyOf": options}


def rule(default: Any = MISSING, **rule: Any) -> Any:
    """A field whose value must keep a `Rule`."""
    return field(default=default, metadata={"rule": Rule(**rule)})


def part(
    kind: type,
    read: Callable[[Any], Any] | None = None,
    schema: Mapping[str, Any] | None = None,
    names: Iterable[str] = (),
) -> dict[str, Any]:
    """A field's metadata: it holds a `kind`, made by `read` from plain data (a `Section` knows how, perhaps from one of
    `names` alone)."""
    if issubclass(kind, Section):
        read = read or kind.read
        schema = schema or ({"anyOf": [{"enum": list(names)}, kind.schema()]} if names else kind.schema())
    return {"kind": kind, "read": read, "schema": schema}


@dataclass(frozen=True, kw_only=True)
class Section:
    """A frozen part of the spec. Raises `Invalid` with all its faults when made; a value of None is an absent one."""

    WHERE: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if faults := self.value_faults(self.WHERE, vars(self)):
            raise Invalid(faults)

    @classmethod
    def value_faults(cls, where: str, values: Mapping[str, Any]) -> list[str]:
        """Broken rules of the values that are there, by field name."""
        faults: list[str] = []
        for item in fields(cls):
            if item.name not in values:
                continue
            at, value = f"{where}.{item.name}".lstrip("."), values[item.name]
            if rule := item.metadata.get("rule"):
                faults += rule.faults(at, value, item.default)
            elif (kind := item.metadata.get("kind")) and not (isinstance(value, kind) or value is item.default is None):
                faults.append(f"{at}: must be a {kind.__name__}, but got {value!r}.")
        return faults

    @classmethod
    def parse(cls, data: object, where: str = "") -> tuple[dict[str, Any], list[str]]:
        """The values in plain data, defaults filled in and faulty parts left out, and every fault."""
        where, known = where or cls.WHERE, {item.name: item for item in fields(cls)}
        if not isinstance(data, Mapping):
            raise Invalid([f"{where or 'spec'}: must be a mapping of {', '.join(known)}, but got {data!r}."])
        faults = [unknown(where or "spec", key, known) for key in data if key not in known]
        values: dict[str, Any] = {}
        for key, item in known.items():
            if key in data:
                try:
                    values[key] = item.metadata.get("read", lambda value: value)(data[key])
                except Invalid as error:
                    faults += error.faults
            elif item.default is not MISSING or item.default_factory is not MISSING:
                values[key] = item.default if item.default_factory is MISSING else item.default_factory()
            else:
                faults.append(f"{where}.{key}: is missing, but every {where or 'spec'} needs it; add it.".lstrip("."))
        return values, faults + cls.value_faults(where, values)

    @classmethod
    def read(cls, data: object, where: str = "") -> Self:
        """The section from plain data."""
        values, faults = cls.parse(data, where)
        if faults:
            raise Invalid(faults)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The section as plain data, without what is absent."""
        return {key: plain(value) for key, value in vars(self).items() if value is not None}

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """JSON schema of the section."""
        rules = {item.name: item.metadata for item in fields(cls)}
        parts = {name: at["schema"] if "schema" in at else at["rule"].schema() for name, at in rules.items()}
        needed = [i.name for i in fields(cls) if i.default is MISSING and i.default_factory is MISSING]
        return {"type": "object", "properties": parts, "required": needed, "additionalProperties": False}


def plain(value: Any) -> Any:
    """A value as plain data."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return {key: plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def declared(cls: type[Plain], where: str, data: object) -> Plain:
    """A plain dataclass whose `faults(where)` says what is wrong with it, from plain data."""
    known = [item.name for item in fields(cls)]
    if not isinstance(data, Mapping):
        raise Invalid([f"{where}: must be a mapping of {', '.join(known)}, but got {data!r}."])
    made = cls(**{key: value for key, value in data.items() if key in known})
    if faults := [unknown(where, key, known) for key in data if key not in known] + made.faults(where):
        raise Invalid(faults)
    return made


def declared_schema(cls: Any, **names: Sequence[str]) -> dict[str, Any]:
    """JSON schema of a plain dataclass; `names` are the options of its fields that have some."""
    kinds = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}
    own = [item for item in fields(cls) if item.name not in names]
    parts: dict[str, Any] = {item.name: {"type": kinds.get(_bare(item.type), "object")} for item in own}
    parts |= {name: {"enum": list(options)} for name, options in names.items()}
    return {"type": "object", "properties": parts, "additionalProperties": False}


def _bare(annotation: object) -> str:
    return str(annotation).removesuffix(" | None")


def tame(value: Any, *, whole: bool = False, depth: int = 0) -> Any:
    """A copy of plain data in which keys are text and a number beyond 64 bits is a float (infinite at worst); `whole`:
    4.0 stands as 4, as JSON may carry it."""
    if depth > DEEPEST:
        raise Invalid([f"spec: must have at most {DEEPEST} levels, but is nested deeper; flatten it."])
    if isinstance(value, Mapping):
        return {str(key): tame(item, whole=whole, depth=depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [tame(item, whole=whole, depth=depth + 1) for item in value]
    if isinstance(value, int) and abs(value) >= 2**63:
        return float(value) if abs(value) < 10**300 else math.inf * (1 if value > 0 else -1)
    return int(value) if whole and isinstance(value, float) and value.is_integer() else value
