"""What a user says and where it stands: sections with rules, the files that hold them, the user's code, the store.

    >>> store_root(None)
    (PosixPath('/home/me/.local/share/continua'), 'default')

Where the store is: `--store`, else `CONTINUA_STORE`, else `store` in `./continua.toml` or under `[tool.continua]` in
`./pyproject.toml`, else in `$XDG_CONFIG_HOME/continua/config.toml`, else `$XDG_DATA_HOME/continua`. A relative path in
a file counts from that file. `continua.toml` and `config.toml` may also hold the table `[tool.continua]`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import json
import math
import os
import re
import sys
import tomllib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

import yaml

from search_spaces.faults import Invalid, unknown
from search_spaces.parameters import is_real

OURS = ("service", "trials", "search_spaces")
DEEPEST = 20  # levels of a spec


class _Declared(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def faults(self, where: str) -> list[str]: ...


Plain = TypeVar("Plain", bound=_Declared)


# -- sections ----------------------------------------------------------------------------------------------------------


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
    parts: dict[str, Any] = {item.name: {"type": kinds[str(item.type)]} for item in own}
    parts |= {name: {"enum": list(options)} for name, options in names.items()}
    return {"type": "object", "properties": parts, "additionalProperties": False}


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


# -- documents ---------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML's plain data alone, each key of a mapping once, and `1e-3` a number (as YAML 1.2 has it)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"), list("-+.0123456789")
)


def document(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file. Raises `Invalid` with the line and column of what cannot be read."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [file.name for file in _files(path.parent)], n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else " Check its name."
        raise Invalid([f"{path}: must be a file, but there is no such file.{hint}"]) from None
    except IsADirectoryError:
        raise Invalid([f"{path}: must be a file, but is a directory; name the YAML or JSON file in it."]) from None
    except UnicodeDecodeError as error:
        raise Invalid([f"{path}: must be UTF-8 text, but byte {error.start} is not; save it as UTF-8."]) from None
    except (OSError, ValueError) as error:
        raise Invalid([f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}."]) from None
    data = _json(text, str(path)) if path.suffix.lower() == ".json" else parse_yaml(text, str(path))
    if data is None:
        raise Invalid([f"{path}: must hold a mapping such as {{task: ..., space: ..., budget: ...}}, but is empty."])
    if not isinstance(data, dict):
        raise Invalid([f"{path}: must hold a mapping `key: value`, but got a {type(data).__name__}."])
    return data


def parse_yaml(text: str, where: str) -> Any:
    """Plain data from YAML without aliases, anchors and tags."""
    faults, depth = [], 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                faults.append(f"{where}: must have at most {DEEPEST} levels, but is nested deeper; flatten it.")
                break
            anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
            at = _at(where, event.start_mark)
            if anchor is not None:
                faults.append(f"{at}: anchors and aliases are refused, but got {anchor!r}; write the value out.")
            elif tag not in (None, "!"):
                faults.append(f"{at}: tags are refused, but got {tag!r}; write the plain value.")
        if not faults:
            return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        faults.append(f"{_at(where, mark)}: must be YAML: {' '.join(str(problem).split())}; correct it there.")
    except ValueError as error:
        faults.append(f"{where}: must be YAML, but {error}; put the value in quotes.")
    raise Invalid(faults)


def _at(where: str, mark: Any) -> str:
    return f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where


def _json(text: str, where: str) -> Any:
    twice: list[str] = []

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice.extend(key for i, key in enumerate(keys) if key in keys[:i])
        return dict(pairs)

    try:
        data = json.loads(text, object_pairs_hook=mapping) if text.strip() else None
    except json.JSONDecodeError as error:
        at = f"{where}:{error.lineno}:{error.colno}"
        raise Invalid([f"{at}: must be JSON: {error.msg}; correct it there."]) from None
    except RecursionError:
        raise Invalid([f"{where}: must have at most {DEEPEST} levels, but is nested deeper; flatten it."]) from None
    except ValueError as error:
        raise Invalid([f"{where}: must be JSON, but {error}."]) from None
    if twice:
        raise Invalid([f"{where}: each key must stand once, but {key!r} stands twice; drop one." for key in twice])
    return data


def override(data: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """`data` with each `dotted.key=value` set, the value read as YAML. The longest key that exists is taken first, for
    a parameter's name has dots of its own; a new parameter is `space.NAME={type: ...}`."""
    result: dict[str, Any] = tame(data)
    faults: list[str] = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            faults.append(f"--set {text}: must be KEY=VALUE such as budget.trials=64.")
            continue
        try:
            _set(result, key, parse_yaml(value, f"--set {key}"))
        except Invalid as error:
            faults += error.faults
    if faults:
        raise Invalid(faults)
    return result


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    at, parts = data, key.split(".")
    done: list[str] = []
    while parts:
        size = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in at), 0)
        if size == 0 and done == ["space"]:  # a name with dots, or a field of a parameter that is not there
            size = len(parts) if isinstance(value, dict) or len(parts) == 1 else len(parts) - 1
        name, parts = ".".join(parts[: size or 1]), parts[size or 1 :]
        done.append(name)
        if not parts:
            at[name] = value
            return
        inner = at.setdefault(name, {})
        if isinstance(inner, str) and done in (["search", "sampler"], ["search", "hypergradient"]):
            inner = at[name] = {"kind": inner}
        if not isinstance(inner, dict):
            raise Invalid([f"--set {key}: {'.'.join(done)} must be a mapping, but is {inner!r}; set it as a whole."])
        at = inner


# -- the user's code ---------------------------------------------------------------------------------------------------


def function(reference: str, directories: Sequence[Path]) -> Callable[..., Any]:
    """The function `module:attribute` of the user's, whose module may lie in one of `directories`.

    A directory with a top-level name of ours is refused: on a worker, either code would hide the other.
    """
    directories = list(dict.fromkeys(directory.resolve() for directory in directories))
    own = Path(__file__).resolve().parent.parent
    faults = [
        f"task: {directory / name} would hide continua's own package `{name}`; rename it, or keep the code elsewhere."
        for directory in directories
        if directory != own
        for name in OURS
        if (directory / name).is_dir() or (directory / f"{name}.py").is_file()
    ]
    if faults:
        raise Invalid(faults)
    module_name, _, attribute = reference.partition(":")
    sys.path[:0] = added = [str(directory) for directory in directories]
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        places, files = " or ".join(map(str, directories)), [f.stem for d in directories for f in _files(d, ".py")]
        near = difflib.get_close_matches(module_name, files, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near and near[0] != module_name else f"It was looked for in {places}."
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise Invalid([f"task: {module_name!r} must be a module that imports, but got {problem}. {hint}"]) from error
    finally:
        for path in added:
            if path in sys.path:  # the user's code may have taken it out
                sys.path.remove(path)
    try:
        found = functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        functions = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise Invalid([unknown("task", attribute, functions, f"function of {module_name}")]) from None
    if not callable(found):
        raise Invalid([f"task: {reference!r} must be a function, but got {found!r}; name a callable."])
    return found


def _files(directory: Path, suffix: str = "") -> Iterator[Path]:
    try:
        yield from (file for file in sorted(directory.iterdir()) if file.name.endswith(suffix))
    except OSError:
        return


# -- where things are --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A value and where it was said: `--store`, an environment variable, a file, or `default`."""

    value: str
    origin: str


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting with its origin. `data` is where tasks look for their files after the working directory."""

    store: Setting
    data: Setting | None = None

    def rows(self) -> list[tuple[str, str, str]]:
        """(name, value, origin) of every setting that is there."""
        pairs = [("store", self.store), ("data", self.data)]
        return [(name, setting.value, setting.origin) for name, setting in pairs if setting is not None]


def settings(flag: str | None = None) -> Settings:
    """The settings as they hold in this process. Raises `Invalid` as `store_root` does."""
    root, origin = store_root(flag)
    data = os.environ.get("CONTINUA_DATA")
    return Settings(
        store=Setting(value=str(root), origin=origin),
        data=Setting(value=data, origin="CONTINUA_DATA") if data else None,
    )


def store_root(flag: str | None) -> tuple[Path, str]:
    """The store's directory and who says so. Files are read only where the flag and the environment are silent."""
    for text, origin, base in _said(flag):
        if not text.strip():
            raise Invalid([f"store ({origin}): must be a directory's path, but got {text!r}."])
        if "://" in text:
            raise Invalid([f"store ({origin}): must be a directory, but got the URL {text!r}; URLs are not known yet."])
        try:
            path = base / Path(text).expanduser()
            taken = path.exists() and not path.is_dir()
        except (RuntimeError, OSError, ValueError) as error:
            raise Invalid([f"store ({origin}): must be a directory, but got {text!r}: {error}."]) from None
        if taken:
            raise Invalid([f"store ({origin}): must be a directory, but {str(path)!r} is a file; name another."])
        return path, origin
    raise AssertionError("the default comes last")


def _said(flag: str | None) -> Iterator[tuple[str, str, Path]]:
    """What each source says of the store, first to last: the text, its origin, what a relative path counts from."""
    here = Path.cwd()
    if flag is not None:
        yield flag, "--store", here
    if text := os.environ.get("CONTINUA_STORE"):
        yield text, "CONTINUA_STORE", here
    config = _xdg("XDG_CONFIG_HOME", ".config") / "continua" / "config.toml"
    for file in (here / "continua.toml", here / "pyproject.toml", config):
        if (text := _toml_store(file)) is not None:
            yield text, str(file), file.parent
    yield str(_xdg("XDG_DATA_HOME", ".local/share") / "continua"), "default", here


def _xdg(variable: str, fallback: str) -> Path:
    given = Path(os.environ.get(variable, ""))
    return given if given.is_absolute() else Path("~").expanduser() / fallback  # relative ones do not count (XDG)


def _toml_store(file: Path) -> str | None:
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Invalid([f"{file}: must be TOML, but: {error}; correct it."]) from None
    table = data.get("tool", {})
    table = table.get("continua") if isinstance(table, dict) else None
    where = f"{file}: [tool.continua]"
    if table is None:
        if file.name == "pyproject.toml":
            return None
        table, where = {key: value for key, value in data.items() if key != "tool"}, str(file)
    if not isinstance(table, dict):
        raise Invalid([f"{where}: must be a table such as [tool.continua], but got {table!r}."])
    faults = [unknown(where, key, ("store",)) for key in table if key != "store"]
    store = table.get("store")
    if "store" in table and (not isinstance(store, str) or not store):
        faults.append(f"{where} store: must be a directory's path, but got {store!r}.")
    if faults:
        raise Invalid(faults)
    return store
