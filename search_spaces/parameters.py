"""The types of parameter a space is made of: declarations only, no torch.

A parameter is a frozen value that knows its own range and its map to the unit interval:

    >>> Width(low=4, high=128).decode(0.5)
    22.627416997969522

`float, width, stride, depth` are real numbers (lane tensors); `int` and `choice` change shapes or code and make up a
bundle's signature. A `topology`, a family of numbers in [0, 1] named `name.0, name.1, ...`, stands in wiring.py; a
declaration is read by declarations.py.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, TypeAlias

from search_spaces.faults import unknown

Value: TypeAlias = "float | int | str | bool | None"


def is_real(value: object) -> bool:
    """A finite int or float (an int beyond every float is not finite); a bool is neither."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


def is_whole(value: object) -> bool:
    """An int; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def same(a: object, b: object) -> bool:
    """Equality that tells `1` from `True` and not `1` from `1.0`."""
    return isinstance(a, bool) == isinstance(b, bool) and a == b


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """What every type shares. `when` maps another parameter's name to the value(s) under which this one exists."""

    type: ClassVar[str] = ""
    structural: ClassVar[bool] = False  # changes shapes or code, so lanes of one bundle must agree on it
    movable: ClassVar[bool] = False  # a gradient may move it

    when: Mapping[str, Value | tuple[Value, ...]] = field(default_factory=dict, hash=False)

    def declaration_faults(self, where: str) -> list[str]:
        """Broken rules of the declaration itself."""
        raise NotImplementedError

    def value_faults(self, where: str, value: object) -> list[str]:
        """Broken rules of one value."""
        raise NotImplementedError

    def encode(self, value: Any) -> float:
        """The value's place in [0, 1]."""
        raise NotImplementedError

    def decode(self, u: float) -> Value:
        """The value at `u` in [0, 1]; exact inverse of `encode` for int and choice, to 1e-14 of the range for reals."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The declaration as plain data, without what equals its default."""
        out: dict[str, Any] = {"type": self.type}
        for item in fields(self):
            value = getattr(self, item.name)
            default = item.default_factory() if item.default_factory is not MISSING else item.default
            if value != default:
                out[item.name] = _plain(value)
        return out


@dataclass(frozen=True, kw_only=True)
class Real(Parameter):
    """A real number in [low, high]; `log` spaces it by ratio. `moved_by: gradient` lets the inner loop move it."""

    movable: ClassVar[bool] = True

    low: float
    high: float
    log: bool = False
    moved_by: str = "sampler"  # sampler | gradient
    start: float | str = "sampled"  # where a gradient begins: the sampler's value, or a number

    def declaration_faults(self, where: str) -> list[str]:
        faults = _range_faults(where, self.low, self.high, self.log)
        if self.moved_by not in ("sampler", "gradient"):
            faults.append(unknown(f"{where}.moved_by", self.moved_by, ("sampler", "gradient"), "mover"))
        if self.start == "sampled":
            return faults
        if not is_real(self.start):
            faults.append(f"{where}.start: must be 'sampled' or a number, but got {self.start!r}.")
        elif not faults:
            faults += self.value_faults(f"{where}.start", self.start)
        if self.moved_by != "gradient":
            faults.append(f"{where}.start: only a parameter with `moved_by: gradient` has a start; drop it.")
        return faults

    def value_faults(self, where: str, value: object) -> list[str]:
        if not is_real(value):
            return [f"{where}: must be a finite number, but got {value!r}."]
        if not self.low <= value <= self.high:  # type: ignore[operator]
            return [f"{where}: must lie in [{self.low:g}, {self.high:g}], but got {value!r}."]
        return []

    def encode(self, value: Any) -> float:
        if self.log:
            u = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            u = (value - self.low) / (self.high - self.low)
        return min(max(u, 0.0), 1.0)

    def decode(self, u: float) -> float:
        if u <= 0.0 or u >= 1.0:
            return float(self.low if u <= 0.0 else self.high)
        if self.log:
            value = self.low * math.exp(u * math.log(self.high / self.low))
        else:
            value = self.low + u * (self.high - self.low)
        return min(max(value, float(self.low)), float(self.high))


@dataclass(frozen=True, kw_only=True)
class Float(Real):
    """A real hyperparameter: learning rate, momentum, weight decay..."""

    type: ClassVar[str] = "float"


@dataclass(frozen=True, kw_only=True)
class Width(Real):
    """The real number of units (channels) of a layer; on a log scale unless said otherwise."""

    type: ClassVar[str] = "width"
    log: bool = True

    def declaration_faults(self, where: str) -> list[str]:
        faults = super().declaration_faults(where)
        if is_real(self.low) and self.low < 1:
            faults.append(f"{where}.low: a layer needs at least one unit (`low >= 1`), but got {self.low!r}.")
        if is_real(self.high) and self.high != int(self.high):
            faults.append(f"{where}.high: the layer's maximum must be whole, but got {self.high!r}.")
        return faults


@dataclass(frozen=True, kw_only=True)
class Stride(Real):
    """The real step of a convolution or pooling, 1 or more."""

    type: ClassVar[str] = "stride"

    def declaration_faults(self, where: str) -> list[str]:
        faults = super().declaration_faults(where)
        if is_real(self.low) and self.low < 1:
            faults.append(f"{where}.low: a stride below 1 would enlarge the map (`low >= 1`), but got {self.low!r}.")
        return faults


@dataclass(frozen=True, kw_only=True)
class Depth(Real):
    """The real number of residual blocks, 0 or more."""

    type: ClassVar[str] = "depth"

    def declaration_faults(self, where: str) -> list[str]:
        faults = super().declaration_faults(where)
        if is_real(self.low) and self.low < 0:
            faults.append(f"{where}.low: a depth is 0 or more, but got {self.low!r}.")
        if is_real(self.high) and self.high != int(self.high):
            faults.append(f"{where}.high: the number of blocks must be whole, but got {self.high!r}.")
        return faults


@dataclass(frozen=True, kw_only=True)
class Int(Parameter):
    """A whole number in [low, high]: batch size, seed..."""

    type: ClassVar[str] = "int"
    structural: ClassVar[bool] = True

    low: int
    high: int
    log: bool = False

    def declaration_faults(self, where: str) -> list[str]:
        faults = [
            f"{where}.{key}: must be a whole number, but got {value!r}."
            for key, value in (("low", self.low), ("high", self.high))
            if not is_whole(value)
        ]
        faults += [
            f"{where}.{key}: must lie within 2**40 of 0, where its place in [0, 1] is exact, but got {value!r}."
            for key, value in (("low", self.low), ("high", self.high))
            if is_whole(value) and abs(value) > 2**40
        ]
        return faults or _range_faults(where, self.low, self.high, self.log, strict=False)

    def value_faults(self, where: str, value: object) -> list[str]:
        if not is_whole(value):
            return [f"{where}: must be a whole number, but got {value!r}."]
        if not self.low <= value <= self.high:  # type: ignore[operator]
            return [f"{where}: must lie in [{self.low}, {self.high}], but got {value!r}."]
        return []

    def _bounds(self) -> tuple[float, float]:
        low, high = self.low - 0.5, self.high + 0.5
        return (math.log(low), math.log(high)) if self.log else (low, high)

    def encode(self, value: Any) -> float:
        low, high = self._bounds()
        return ((math.log(value) if self.log else value) - low) / (high - low)

    def decode(self, u: float) -> int:
        low, high = self._bounds()
        place = low + min(max(u, 0.0), 1.0) * (high - low)
        return min(max(math.floor((math.exp(place) if self.log else place) + 0.5), self.low), self.high)


@dataclass(frozen=True, kw_only=True)
class Choice(Parameter):
    """One of a list of names, numbers or switches: optimiser, activation..."""

    type: ClassVar[str] = "choice"
    structural: ClassVar[bool] = True

    options: tuple[Value, ...]

    def declaration_faults(self, where: str) -> list[str]:
        if not isinstance(self.options, tuple) or not self.options:
            return [f"{where}.options: must be a list of at least one option, but got {self.options!r}."]
        faults = [
            f"{where}.options: each must be text, a number, a switch or null, but got {option!r}."
            for option in self.options
            if not (option is None or isinstance(option, str | bool) or is_real(option))
        ]
        for i, option in enumerate(self.options):
            if any(same(option, other) for other in self.options[:i]):
                faults.append(f"{where}.options: each must differ from the others, but {option!r} stands twice.")
        return faults

    def value_faults(self, where: str, value: object) -> list[str]:
        if any(same(value, option) for option in self.options):
            return []
        return [unknown(where, value, self.options, "option")]

    def encode(self, value: Any) -> float:
        index = next(i for i, option in enumerate(self.options) if same(option, value))
        return (index + 0.5) / len(self.options)

    def decode(self, u: float) -> Value:
        return self.options[min(max(math.floor(u * len(self.options)), 0), len(self.options) - 1)]


def _range_faults(where: str, low: object, high: object, log: bool, strict: bool = True) -> list[str]:
    faults = [
        f"{where}.{key}: must be a finite number, but got {value!r}."
        for key, value in (("low", low), ("high", high))
        if not is_real(value)
    ]
    if faults:
        return faults
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    if low > high or (strict and low == high):
        rule = "low < high" if strict else "low <= high"
        faults.append(f"{where}: `{rule}` must hold, but got low={low!r}, high={high!r}.")
    if log and low <= 0:
        faults.append(f"{where}: `log: true` needs `low > 0`, but got low={low!r}.")
    low, high = float(low), float(high)
    if not faults and low < high and not 0 < (high / low - 1 if log else high - low) < math.inf:
        measure = "high / low" if log else "high - low"
        faults.append(f"{where}: `{measure}` must be a number that a float holds, but got low={low!r}, high={high!r}.")
    return faults


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
