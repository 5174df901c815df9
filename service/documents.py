"""Files that hold a declaration: YAML or JSON read strictly, and `key=value` overrides laid over it.

>>> document(Path("digits.yaml"))
>>> override({"budget": {"trials": 8}}, ["budget.trials=64"])
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from search_spaces.faults import Invalid
from service.sections import DEEPEST, tame


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
        near = difflib.get_close_matches(path.name, files_in(path.parent), n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else " Check its name."
        raise Invalid([f"{path}: must be a file, but there is no such file.{hint}"]) from None
    except IsADirectoryError:
        raise Invalid([f"{path}: must be a file, but is a directory; name the YAML or JSON file in it."]) from None
    except UnicodeDecodeError as error:
        raise Invalid([f"{path}: must be UTF-8 text, but byte {error.start} is not; save it as UTF-8."]) from None
    except (OSError, ValueError) as error:
        raise Invalid([f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}."]) from None
    data = parse_json(text, str(path)) if path.suffix.lower() == ".json" else parse_yaml(text, str(path))
    if data is None:
        raise Invalid([f"{path}: must hold a mapping such as {{task: ..., space: ..., budget: ...}}, but is empty."])
    if not isinstance(data, dict):
        raise Invalid([f"{path}: must hold a mapping `key: value`, but got a {type(data).__name__}."])
    return data


def files_in(directory: Path, suffix: str = "") -> list[str]:
    """The names of a directory's files that end in `suffix`, for hints; none where it cannot be read."""
    try:
        return sorted(file.name for file in directory.iterdir() if file.name.endswith(suffix))
    except OSError:
        return []


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


def parse_json(text: str, where: str) -> Any:
    """Plain data from JSON, each key of an object once; None where the text is empty. Raises `Invalid`."""
    twice: list[str] = []

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice.extend(key for key, count in counts.items() if count > 1)
        return found

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


_FILES = ("path", "test_path", "train", "test")  # keys of a task whose values name files


def located(task: str | Mapping[str, Any], directory: Path) -> str | Mapping[str, Any]:
    """A task whose files, where they lie in `directory`, are named in full; other paths are left as they are."""

    def full(value: Any) -> Any:
        there = isinstance(value, str) and (directory / value).is_file()
        return str((directory / value).absolute()) if there else value

    if isinstance(task, str):
        name: str = full(task)
        return name
    return {key: full(value) if key in _FILES else value for key, value in task.items()}
