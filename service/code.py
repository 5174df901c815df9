"""A user's own code on its way to the workers: packed into a zip, checked without opening it, unpacked where it runs.

    >>> made = packed(Path("project"))            # the same bytes for the same files
    >>> zip_faults(made.payload)                  # what a server asks before it keeps the zip
    []
    >>> unpacked(Path("store"), made.sha256, Path("cache"))
    PosixPath('cache/3fa2b1...')

The zip is named by the sha256 of its bytes, `<store>/code/<sha256>.zip`. Only a worker opens it; whoever else handles
it reads its table of contents alone. No torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import secrets
import shutil
import stat
import time
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from search_spaces.faults import Invalid
from service import ignored
from service.zip_rules import BROKEN, LEFT_OUT, MIB, MOST_ENTRIES, MOST_PACKED, MOST_UNPACKED, first, zip_faults
from trials import layout
from trials.segments import Damaged
from trials.store import NotFound

__all__ = ["Packed", "packed", "unpacked", "zip_faults"]

LEFT_AFTER = 3600.0  # seconds after which nobody is unpacking any more
_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
_HALF = re.compile(r"\.[0-9a-f]{16}-[0-9a-f]{8}")  # what is being unpacked
_SHA = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A zip and its name: the sha256 of its bytes. `files` are the names in it, sorted."""

    sha256: str
    payload: bytes
    files: tuple[str, ...]


# -- packing -----------------------------------------------------------------------------------------------------------


def packed(directory: Path | str) -> Packed:
    """A directory's files as a zip that depends on their names and bytes alone.

    `.gitignore` is respected; version control, caches, virtual environments and stores of ours are left out anyway.

    Raises:
        Invalid: with every fault: too large, a link that leads outside, a name of ours at the top...
    """
    top = Path(directory).absolute()
    if not top.is_dir():
        raise Invalid([f"code: must be a directory, but got {str(directory)!r}; name the one that holds your modules."])
    if _is_store(top):
        raise Invalid([f"code: must not be a store, but {str(top)!r} is one; put your code in a directory of its own."])
    names = sorted(_wanted(top, ignored.files(top)))
    faults = [fault for name in names if (fault := _file_fault(top, name))]
    if not names:
        faults.append(f"code: must hold at least one file, but {str(top)!r} has none that is not ignored.")
    if faults:
        raise Invalid(first(faults))
    sizes = {name: (top / name).stat().st_size for name in names}
    if len(names) > MOST_ENTRIES or sum(sizes.values()) > MOST_UNPACKED:
        raise Invalid([_too_large(sizes, sum(sizes.values()), "")])
    payload = _zipped(top, names)
    if len(payload) > MOST_PACKED:
        raise Invalid([_too_large(sizes, len(payload), " packed")])
    if faults := zip_faults(payload):
        raise Invalid(faults)
    return Packed(sha256=hashlib.sha256(payload).hexdigest(), payload=payload, files=tuple(names))


def _wanted(top: Path, names: Iterable[str]) -> Iterable[str]:
    """Those that no rule of ours leaves out."""
    left: dict[str, bool] = {}

    def left_out(folder: str) -> bool:
        if folder not in left:
            above, _, name = folder.rpartition("/")
            place = top / folder
            foreign = name in LEFT_OUT or (place / "pyvenv.cfg").is_file() or _is_store(place)
            left[folder] = foreign or bool(above and left_out(above))
        return left[folder]

    for name in names:
        above, _, last = name.rpartition("/")
        if last not in LEFT_OUT and not last.endswith(".pyc") and not (above and left_out(above)):
            yield name


def _is_store(place: Path) -> bool:
    return (place / "board.sqlite").is_file() or any((place / "searches").glob("*/spec.json"))


def _file_fault(top: Path, name: str) -> str | None:
    """What keeps a file from being packed."""
    where, way = f"code: {name!r}", "leave it out in .gitignore"
    try:
        name.encode()
    except UnicodeEncodeError:
        return f"{where}: a name must be UTF-8; rename it, or {way}."
    real = (top / name).resolve()
    if (top / name).is_symlink() and not real.is_relative_to(top.resolve()):
        return f"{where}: is a link that leads outside, to {str(real)!r}; copy the file here, or {way}."
    if not real.is_file():
        kind = "a directory by a link" if real.is_dir() else "no file"
        return f"{where}: only files and links to files can be packed, but it is {kind}; {way}."
    if not os.access(real, os.R_OK):
        return f"{where}: cannot be read; let yourself read it, or {way}."
    return None


def _too_large(sizes: dict[str, int], total: int, how: str) -> str:
    largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
    named = ", ".join(f"{name} ({sizes[name] / MIB:.1f} MiB)" for name in largest)
    rule = f"at most {MOST_ENTRIES:,} files, {MOST_UNPACKED // MIB} MiB, packed {MOST_PACKED // MIB} MiB"
    got = f"{len(sizes):,} files and {total / MIB:.1f} MiB{how}"
    way = "leave out in .gitignore what the workers do not need, and keep data in a place that they can read"
    return f"code: must hold {rule}, but got {got}; the largest are {named}; {way}."


def _zipped(top: Path, names: Iterable[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in names:
            entry = zipfile.ZipInfo(name, _TIME)
            entry.create_system, entry.compress_type = 3, zipfile.ZIP_DEFLATED  # 3: Unix, wherever it is packed
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, (top / name).read_bytes())
    return buffer.getvalue()


# -- unpacking ---------------------------------------------------------------------------------------------------------


def unpacked(store_root: Path, sha256: str, cache: Path) -> Path:
    """The directory of a store's code in `cache`, unpacked there unless it is already. Many may ask at once. Its files
    are read-only.

    Raises:
        NotFound: when the store has no such code.
        Damaged: when its bytes are not those that it is named by, or cannot be unpacked.
        Invalid: when it breaks a rule of `zip_faults`.
    """
    if not _SHA.fullmatch(sha256):
        raise Invalid([f"code: must be a sha256 in 64 hexadecimal digits, but got {sha256!r}; upload the code anew."])
    ready = cache / sha256
    if ready.is_dir():
        return ready
    path = layout.code(store_root, sha256)
    try:
        payload = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"code {sha256}: the store has none of that name; submit the search again.") from None
    if hashlib.sha256(payload).hexdigest() != sha256:
        raise Damaged(path, "its bytes do not have the digest that it is named by.")
    if faults := zip_faults(payload):
        raise Invalid(faults)
    cache.mkdir(parents=True, exist_ok=True)
    _swept(cache)
    making = cache / f".{sha256[:16]}-{secrets.token_hex(4)}"
    try:
        _extract(payload, making)
        try:
            making.rename(ready)
        except OSError as error:
            if not ready.is_dir():  # else somebody was first, and made the same
                raise OSError(error.errno, error.strerror, str(ready)) from error
    except BROKEN as error:
        raise Damaged(path, f"cannot be unpacked: {error}.") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return ready


def _swept(cache: Path) -> None:
    """Removes what killed processes left half unpacked."""
    for path in cache.iterdir():
        with contextlib.suppress(OSError):
            if _HALF.fullmatch(path.name) and time.time() - path.stat().st_mtime > LEFT_AFTER:
                shutil.rmtree(path, ignore_errors=True)


def _extract(payload: bytes, directory: Path) -> None:
    directory.mkdir(mode=0o755)
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        for entry in archive.infolist():
            path = directory / entry.filename
            if entry.is_dir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, path.open("xb") as target:
                shutil.copyfileobj(source, target)
                target.flush()
                os.fsync(target.fileno())  # what has the name is whole, after a power cut too
            path.chmod(0o444)
