"""The files of a directory that `.gitignore` does not pass over: asked of git in a work tree of it, else found here.

    >>> files(Path("project"))
    ['.gitignore', 'objectives.py', 'data/small.csv']

What the patterns mean is git's: the last one that matches decides, those of a deeper `.gitignore` come after, and
nothing below an ignored directory comes back. Character classes by name (`[[:alpha:]]`) are not known here.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 60.0  # seconds that git may take


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of a `.gitignore` that lies in `base` (relative to the top, "" for the top itself)."""

    base: str
    regex: re.Pattern[str]
    negated: bool
    directories_only: bool

    def matches(self, path: str, is_directory: bool) -> bool:
        """Whether the line speaks of that path."""
        if self.directories_only and not is_directory:
            return False
        return self.regex.fullmatch(path, len(self.base)) is not None


def files(directory: Path) -> list[str]:
    """Every file that is not ignored, relative, with `/`; links are listed, not followed. The order is not told."""
    listed = _by_git(directory)
    if listed is None:
        return _walked(directory, "", ())
    found = []
    for name in listed:
        if (directory / name).is_dir() and not (directory / name).is_symlink():  # a repository within
            found += [f"{name.rstrip('/')}/{inner}" for inner in files(directory / name)]
        else:
            found.append(name)
    return found


def rules_of(text: str, base: str) -> list[Rule]:
    """The rules of a `.gitignore` in `base`."""
    return [rule for line in text.splitlines() if (rule := _rule(line, base)) is not None]


def _by_git(directory: Path) -> list[str] | None:
    """What git lists; None where it is not there, or this is no work tree of it, or it will not say."""
    command = ["git", "-C", str(directory), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, env=own, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode != 0:
        return None
    names = {os.fsdecode(name) for name in done.stdout.split(b"\0") if name}
    return [name for name in names if os.path.lexists(directory / name)]  # one that was deleted is listed still


def _walked(directory: Path, base: str, above: Sequence[Rule]) -> list[str]:
    rules = [*above, *_rules_in(directory, base)]
    found = []
    for entry in os.scandir(directory):
        path = base + entry.name
        is_directory = entry.is_dir(follow_symlinks=False)
        last = next((rule for rule in reversed(rules) if rule.matches(path, is_directory)), None)
        if entry.name == ".git" or (last is not None and not last.negated):
            continue
        found += _walked(Path(entry.path), f"{path}/", rules) if is_directory else [path]
    return found


def _rules_in(directory: Path, base: str) -> list[Rule]:
    file = directory / ".gitignore"
    if file.is_symlink() or not file.is_file():
        return []
    return rules_of(file.read_text(encoding="utf-8", errors="surrogateescape"), base)


def _rule(line: str, base: str) -> Rule | None:
    pattern = line.rstrip("\r\n")
    while pattern.endswith(" ") and not pattern.endswith("\\ "):
        pattern = pattern[:-1]
    if not pattern or pattern.startswith("#"):
        return None
    negated = pattern.startswith("!")
    pattern = pattern.removeprefix("!") if negated else pattern
    directories_only = pattern.endswith("/")
    pattern = pattern.removesuffix("/")
    anchored = "/" in pattern
    text = _regex(pattern.removeprefix("/"))
    if not pattern or text is None:
        return None
    regex = re.compile(text if anchored else f"(?:.*/)?{text}", re.DOTALL)
    return Rule(base=base, regex=regex, negated=negated, directories_only=directories_only)


def _regex(pattern: str) -> str | None:
    """The pattern as a regular expression of a whole path; None for one that matches nothing."""
    found, at = "", 0
    while at < len(pattern):
        begins = at == 0 or pattern[at - 1] == "/"
        if begins and pattern.startswith("**/", at):
            found, at = found + "(?:.*/)?", at + 3
        elif begins and pattern[at:] == "**":
            found, at = found + ".+", at + 2
        elif pattern[at] == "*":
            found += "[^/]*"
            while at < len(pattern) and pattern[at] == "*":
                at += 1
        elif pattern[at] == "?":
            found, at = found + "[^/]", at + 1
        elif pattern[at] == "[":
            end = _class_end(pattern, at)
            if end is None:
                return None
            found, at = found + _class(pattern[at + 1 : end]), end + 1
        elif pattern[at] == "\\":
            if at + 1 == len(pattern):
                return None
            found, at = found + re.escape(pattern[at + 1]), at + 2
        else:
            found, at = found + re.escape(pattern[at]), at + 1
    return found


def _class_end(pattern: str, start: int) -> int | None:
    at = start + 1
    at += pattern[at : at + 1] in ("!", "^")
    at += pattern[at : at + 1] == "]"
    while at < len(pattern) and pattern[at] != "]":
        at += 2 if pattern[at] == "\\" else 1
    return at if at < len(pattern) else None


def _class(body: str) -> str:
    """A character class without what a slash would match: `[a-c]`, `[!x]`."""
    negated = body[:1] in ("!", "^")
    body = body[1:] if negated else body
    plain: list[str] = []
    at = 0
    while at < len(body):
        at += body[at] == "\\" and at + 1 < len(body)
        low = body[at]
        if body[at + 1 : at + 2] == "-" and at + 2 < len(body):
            high = at + 2 + (body[at + 2] == "\\" and at + 3 < len(body))
            if low <= body[high]:
                plain.append(f"{re.escape(low)}-{re.escape(body[high])}")
            at = high + 1
        else:
            plain.append(re.escape(low))
            at += 1
    inside = "".join(plain)
    if not inside:
        return "[^/]" if negated else "(?!)"
    return f"(?!/)[{'^' if negated else ''}{inside}]"
