"""What is wanted of a search, by version: one small durable file each, so that two editors can never both win.

    >>> write(directory, goal)                   # raises Conflict where that version is there
    >>> [goal.version for goal in read(directory, lost)]
    [1, 2]

Version 0 is the spec's own and has no file. A version holds the whole goal, not a change of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from trials import layout, rows, segments
from trials.segments import Conflict, Damaged

STATES = ("run", "pause", "stop", "cancel")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is wanted.

    `state`: run; pause (ask nothing more, let bundles finish, keep it for later); stop (the same, for good); cancel
    (end what runs). `workers` is the number of worker slots, `budget` the spec's section, `space` the narrowed space
    as plain data (None: the spec's), `priority` that against other searches (None: as it was submitted). `verb` is what
    made this version, `by` who, `at` when (Unix seconds).
    """

    version: int = 0
    state: str = "run"
    workers: int = 1
    budget: Mapping[str, float] = field(default_factory=dict)
    space: Mapping[str, Any] | None = None
    priority: int | None = None
    verb: str = "submit"
    by: str = ""
    at: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it is stored and sent."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Goal:
        """A goal from what `to_dict` gave; what later versions of this program add is passed over."""
        names = {item.name for item in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in names})


def write(directory: Path, goal: Goal) -> None:
    """A new version, durable on return.

    Raises:
        Conflict: when that version is there: somebody else changed the goal first.
        OSError: when it cannot be made durable.
    """
    if not directory.is_dir():
        directory.mkdir(exist_ok=True)
        segments.sync_directory(directory.parent)
    text = rows.to_json(goal.to_dict())
    try:
        segments.write_once(directory / layout.goal_name(goal.version), f"{_digest(text)}\n{text}\n".encode())
    except FileExistsError:
        rule = "a goal's versions are written once"
        raise Conflict(f"goal: {rule}, but version {goal.version} is there; read it and decide anew.") from None


def read(directory: Path, lost: Callable[[Damaged], None]) -> list[Goal]:
    """Every version in order; `lost` is told of those that cannot be trusted."""
    names = sorted(os.listdir(directory)) if directory.is_dir() else []
    found = []
    for name in names:
        if layout.goal_version(name) is None:
            continue
        try:
            found.append(_read(directory / name))
        except Damaged as damage:
            lost(damage)
    return found


def last_version(directory: Path) -> int:
    """The highest version that is there; 0 where there is none. Cheap, for whoever looks often."""
    names = os.listdir(directory) if directory.is_dir() else []
    return max((v for name in names if (v := layout.goal_version(name)) is not None), default=0)


def _read(path: Path) -> Goal:
    try:
        digest, _, text = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, ValueError) as error:
        raise Damaged(path, f"cannot be read: {error}") from error
    text = text.removesuffix("\n")
    if _digest(text) != digest:
        raise Damaged(path, "its bytes do not have the digest that it begins with.")
    return Goal.from_dict(rows.from_json(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[: layout.DIGITS]
