"""Where everything lies in a store, and how names are spelt: the one file that knows its paths.

    <root>/searches/<search_id>/spec.json
                                lease.sqlite  lease.json
                                log/<epoch>-<n>-<digest>.arrow  log/<epoch>.closed
                                metrics/<bundle>.<attempt>/part-<n>-<digest>.arrow | final-<n>-<digest>.arrow
                                checkpoints/<bundle>.<attempt>-<step>-<digest>.safetensors
                                goals/<version>.json
                                driver.log
    <root>/code/<sha256>.zip
    <root>/requests/<sha256>.json

Numbers are padded with zeros, so that the order of names is the order of writing:

    >>> segment_name(log_stem(epoch=2, n=7), "0123456789abcdef")
    '00000002-0000000007-0123456789abcdef.arrow'

Names made outside (search and bundle ids) become file names, so they are checked here: they are never paths.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path

DIGITS = 16  # of the sha256 in a segment's name
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(rf".*-([0-9a-f]{{{DIGITS}}})\.(?:arrow|safetensors)")
_CHECKPOINT = re.compile(rf"(.+)\.(\d+)-(\d+)-[0-9a-f]{{{DIGITS}}}\.safetensors")
_UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]+\.tmp")
_GOAL = re.compile(r"(\d{8})\.json")
_LOG = re.compile(r"(\d+)-(\d+)-.*\.arrow")
_PART = re.compile(r"(part|final)-(\d+)-.*\.arrow")


def fresh_id(name: str) -> str:
    """A new search's id: its name, made fit for a file's, and six random digits."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].rstrip("-") or "search"
    return f"{slug}-{secrets.token_hex(3)}"


def id_faults(where: str, name: str) -> list[str]:
    """What keeps `name` from being part of a file's name."""
    if _ID.fullmatch(name):
        return []
    rule = "must begin with a letter or digit and go on with letters, digits, `_`, `.` or `-`, 128 at most"
    return [f"{where}: {rule}, but got {name!r}; rename it."]


def searches(root: Path) -> Path:
    """The directory of all searches."""
    return root / "searches"


def search(root: Path, search_id: str) -> Path:
    """The directory of one search."""
    return searches(root) / search_id


def spec(search_path: Path) -> Path:
    """A search's declaration."""
    return search_path / "spec.json"


def lease(search_path: Path) -> Path:
    """The file that the search's one owner keeps locked."""
    return search_path / "lease.sqlite"


def log(search_path: Path) -> Path:
    """The directory of a search's events."""
    return search_path / "log"


def metrics(search_path: Path) -> Path:
    """The directory of all attempts of a search."""
    return search_path / "metrics"


def checkpoints(search_path: Path) -> Path:
    """The directory of a search's checkpoints."""
    return search_path / "checkpoints"


def attempt(search_path: Path, bundle_id: str, attempt: int) -> Path:
    """The directory of what one attempt at a bundle measured."""
    return metrics(search_path) / f"{bundle_id}.{attempt}"


def driver_log(search_path: Path) -> Path:
    """What the process that drives a search for a runner says; the file before it has `.1` at its end."""
    return search_path / "driver.log"


def goals(search_path: Path) -> Path:
    """The directory of a search's goals."""
    return search_path / "goals"


def goal_name(version: int) -> str:
    """The file of a goal's version."""
    return f"{version:08d}.json"


def goal_version(name: str) -> int | None:
    """The version that a file of goals holds; None for any other file."""
    match = _GOAL.fullmatch(name)
    return int(match[1]) if match else None


def code(root: Path, digest: str) -> Path:
    """The zip of some user's code, by the sha256 of its bytes."""
    return root / "code" / f"{digest}.zip"


def request(root: Path, digest: str) -> Path:
    """Which search a request made, by the sha256 of whose it was and its key."""
    return root / "requests" / f"{digest}.json"


def checkpoint_name(bundle_id: str, attempt: int, step: int, digest: str) -> str:
    """The file of an attempt's lanes after some steps."""
    return f"{bundle_id}.{attempt}-{step:010d}-{digest}.safetensors"


def checkpoint_place(name: str) -> tuple[str, int, int] | None:
    """Bundle, attempt and step of a checkpoint's file; None for any other file."""
    match = _CHECKPOINT.fullmatch(name)
    return (match[1], int(match[2]), int(match[3])) if match and not id_faults("", match[1]) else None


def unfinished(name: str, salt: str) -> str:
    """The name of a file while it is being written."""
    return f".{name}.{salt}.tmp"


def written(name: str) -> str:
    """The name that a file is to have that is being written; any other is its own."""
    match = _UNFINISHED.fullmatch(name)
    return match[1] if match else name


def attempt_of(name: str) -> tuple[str, int] | None:
    """Bundle and attempt that a directory under `metrics` is named for."""
    bundle_id, dot, number = name.rpartition(".")
    return (bundle_id, int(number)) if dot and bundle_id and number.isdecimal() else None


def log_stem(epoch: int, n: int) -> str:
    """The beginning of a log segment's name."""
    return f"{epoch:08d}-{n:010d}"


def log_closed(epoch: int) -> str:
    """The file that says that an epoch of the log is over, whoever still writes it."""
    return f"{epoch:08d}.closed"


def log_place(name: str) -> tuple[int, int] | None:
    """Epoch and n of a log segment; None for any other file."""
    match = _LOG.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def part_stem(n: int, final: bool) -> str:
    """The beginning of the name of an attempt's segment."""
    return f"{'final' if final else 'part'}-{n:010d}"


def part_place(name: str) -> tuple[int, bool] | None:
    """n of an attempt's segment, and whether it is the final one; None for any other file."""
    match = _PART.fullmatch(name)
    return (int(match[2]), match[1] == "final") if match else None


def segment_name(stem: str, digest: str) -> str:
    """A segment's whole name."""
    return f"{stem}-{digest}.arrow"


def digest_of(name: str) -> str | None:
    """The digest that the name of a segment or a checkpoint carries."""
    match = _DIGEST.fullmatch(name)
    return match[1] if match else None
