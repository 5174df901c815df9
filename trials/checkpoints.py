"""Checkpoints of lanes as files: safetensors, written whole or not at all, checked when they are read.

    >>> path = save(directory, checkpoint)                      # earlier ones of the same attempt are gone then
    >>> path.name
    'b000003.0-0000001200-3f0c6c0d5b1d7a55.safetensors'
    >>> load(directory, Start(bundle_id="b000003", attempt=0, step=1200), [17, 4])

The name says whose it is, after how many steps, and the digest of its bytes; the header has the trials, the version of
what the tensors mean, and the digest of the user's own code where that trained them. All tensors have the lanes on
their first axis, so that some of the trials can be taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trials import layout, segments
from trials.records import Checkpoint, Start
from trials.segments import Damaged

VERSION = 1
MOST_HEADER = 2**24  # bytes; a longer one is no header of ours
_KEY = "continua"  # the only one in the header, for safetensors gives several no order, and bytes should be a function
_ODD = (struct.error, ValueError, TypeError, KeyError)  # what a header is that is not ours


def picked(checkpoint: Checkpoint, numbers: Sequence[int]) -> Checkpoint:
    """Those trials of a checkpoint, in that order. Raises ValueError for a trial that it does not have."""
    if missing := [number for number in numbers if number not in checkpoint.trials]:
        has = ", ".join(map(str, checkpoint.trials))
        raise ValueError(f"a checkpoint must hold the trials asked for, but {missing} are not among its {has}")
    if tuple(numbers) == checkpoint.trials:
        return checkpoint
    places = [checkpoint.trials.index(number) for number in numbers]

    def of(tensor: Any) -> Any:
        seeds = len(tensor) // len(checkpoint.trials)
        return tensor[[place * seeds + replicate for place in places for replicate in range(seeds)]]

    tensors = {name: of(tensor) for name, tensor in checkpoint.tensors.items()}
    return replace(checkpoint, trials=tuple(numbers), tensors=tensors)


def save(directory: Path, checkpoint: Checkpoint) -> Path:
    """A durable file of `directory`; then whatever its attempt had before is removed.

    Raises:
        OSError: disk full, fsync failed...; what was there before is there still.
    """
    from safetensors.torch import save as encoded  # slow, and who only lists checkpoints does not need it

    told: dict[str, Any] = {"version": VERSION, "trials": checkpoint.trials}
    told |= {"code": checkpoint.code} if checkpoint.code else {}
    payload = encoded(dict(checkpoint.tensors), metadata={_KEY: json.dumps(told)})
    place = (checkpoint.bundle_id, checkpoint.attempt, checkpoint.step)
    if not directory.exists():  # in a search of before there were checkpoints
        segments.make_directory(directory)
    path = directory / layout.checkpoint_name(*place, _digest(payload))
    segments.write_bytes(path, payload, replace=True)  # of equal bytes, where it is there
    forget(directory, *place[:2], but=path.name)
    return path


def places(directory: Path) -> dict[tuple[str, int], int]:
    """The last step of each attempt, bundle and number, that has a checkpoint: by the names alone."""
    found: dict[tuple[str, int], int] = {}
    for name in _names(directory):
        if place := layout.checkpoint_place(name):
            found[place[:2]] = max(found.get(place[:2], 0), place[2])
    return found


def trials_in(directory: Path, start: Start) -> tuple[int, ...]:
    """The trials of the checkpoint that `start` names, by its header alone; none where there is no such file."""
    for name in _names(directory):
        if layout.checkpoint_place(name) == (start.bundle_id, start.attempt, start.step):
            try:
                with open(directory / name, "rb") as file:
                    (length,) = struct.unpack("<Q", file.read(8))
                    return _told(file.read(min(length, MOST_HEADER)))[1]
            except (OSError, *_ODD):
                continue  # whoever loads it will say what is wrong
    return ()


def load(directory: Path, start: Start, numbers: Sequence[int]) -> Checkpoint:
    """Those trials of the checkpoint that `start` names, in that order.

    Raises:
        Damaged: it is not there, is not what was written, or of a version that is not known here.
        ValueError: it does not hold one of the trials.
    """
    asked = (start.bundle_id, start.attempt, start.step)
    damage = Damaged(directory, f"has no checkpoint of {start.bundle_id}.{start.attempt} at step {start.step}.")
    for name in _names(directory):
        if layout.checkpoint_place(name) == asked:
            try:
                return picked(read(directory / name), numbers)
            except Damaged as error:
                damage = error
    raise damage


def read(path: Path) -> Checkpoint:
    """The checkpoint in a file. Raises Damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load as decoded

    payload, trials, code = _checked(path)
    place = layout.checkpoint_place(path.name)
    assert place is not None
    try:
        tensors = decoded(payload)
    except SafetensorError as error:
        raise Damaged(path, f"is not a checkpoint: {error}") from error
    return Checkpoint(bundle_id=place[0], attempt=place[1], step=place[2], trials=trials, tensors=tensors, code=code)


def check(path: Path) -> None:
    """Raises Damaged unless the file is what was written."""
    _checked(path)


def forget(directory: Path, bundle_id: str, attempt: int, but: str = "") -> None:
    """Removes an attempt's checkpoints, and what is left of one whose writer was killed; `but` one file."""
    for name in _names(directory):
        place = layout.checkpoint_place(layout.written(name))
        if name != but and place and place[:2] == (bundle_id, attempt):
            (directory / name).unlink(missing_ok=True)


def files(directory: Path) -> Iterator[Path]:
    """All checkpoints of a directory."""
    yield from (directory / name for name in _names(directory) if layout.checkpoint_place(name))


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()[: layout.DIGITS]


def _told(header: bytes) -> tuple[int, tuple[int, ...], str]:
    """The version, the trials and the code that a file's header tells. Raises one of `_ODD` where it tells none."""
    told = json.loads(json.loads(header)["__metadata__"][_KEY])
    return told["version"], tuple(map(int, told["trials"])), str(told.get("code", ""))


def _checked(path: Path) -> tuple[bytes, tuple[int, ...], str]:
    """The bytes of a file, its trials and the code that trained them."""
    try:
        payload = path.read_bytes()
    except OSError as error:
        if error.errno in segments.OURS:
            raise
        raise Damaged(path, f"cannot be read: {error.strerror}.") from error
    if _digest(payload) != layout.digest_of(path.name):
        raise Damaged(path, "its bytes do not have the digest that its name carries.")
    try:
        (length,) = struct.unpack_from("<Q", payload)
        version, trials, code = _told(payload[8 : 8 + length])
    except _ODD as error:
        raise Damaged(path, f"is not a checkpoint: {error!r}") from error
    if version != VERSION:
        raise Damaged(path, f"is of version {version}, but only {VERSION} is known here; go on with the code it is of.")
    return payload, trials, code
