"""Small records, failing disks and exact comparison, for the tests of the store."""

from __future__ import annotations

import math
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from trials.records import Ending, Outcome, Report, Spent
from trials.store import SearchStore


def outcome(number: int, bundle: str = "b0", attempt: int = 0, **other: Any) -> Outcome:
    facts: dict[str, Any] = {"ending": Ending.COMPLETE, "point": {"lr": 0.1}, "value": float(number), **other}
    return Outcome(trial_id=f"s-t{number:06d}", number=number, bundle_id=bundle, attempt=attempt, **facts)


def report(number: int, step: int, bundle: str = "b0", attempt: int = 0, **other: Any) -> Report:
    facts: dict[str, Any] = {"metrics": {"loss": 1 / (1 + step)}, **other}
    return Report(trial_id=f"s-t{number:06d}", bundle_id=bundle, attempt=attempt, step=step, **facts)


def closed(search: SearchStore, *records: Outcome | Report) -> None:
    writer = search.attempt_writer(records[0].bundle_id, records[0].attempt)
    for record in records:
        writer.append(record)
    writer.close()


def segments_of(search: SearchStore, kind: str) -> list[Path]:
    return sorted((search.path / kind).rglob("*.arrow"))


def fail_fsync(patch: pytest.MonkeyPatch, nth: int) -> list[int]:
    calls: list[int] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) == nth:
            raise OSError(5, "Input/output error")
        real(handle)

    patch.setattr(os, "fsync", fsync)
    return calls


def keep_what_fails(directory: Path, patch: pytest.MonkeyPatch, aside: Path) -> list[Path]:
    """Fails the fsync of `directory`, keeping aside a copy of the segment whose name it was to make durable."""
    before = set(os.listdir(directory))
    real, kept = os.fsync, []

    def fsync(handle: int) -> None:
        new = {name for name in set(os.listdir(directory)) - before if name.endswith(".arrow")}
        if new:
            kept.append(aside / new.pop())
            shutil.copy(directory / kept[0].name, kept[0])
            raise OSError(5, "fsync of the directory")
        real(handle)

    patch.setattr(os, "fsync", fsync)
    return kept


def bits(value: Any) -> Any:
    """A value in which floats are their bits, so that NaN equals NaN and -0.0 does not equal 0.0."""
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, Spent):
        return bits(vars(value))
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    return value if isinstance(value, Ending) else (type(value), value)


def canonical(value: Any) -> Any:
    """JSON knows one NaN."""
    if isinstance(value, dict):
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [canonical(item) for item in value]
    return math.nan if isinstance(value, float) and math.isnan(value) else value
