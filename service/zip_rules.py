"""What keeps a zip of a user's code from being taken, told by its table of contents alone: nothing is unpacked.

    >>> zip_faults(Path("code.zip").read_bytes())
    ["code: '../etc/passwd': a name must lead to a place in the zip, without `.` or `..`; pack it again."]

Sizes that a table declares are safe to rely on: Python's reader gives no more than those.
"""

from __future__ import annotations

import io
import re
import stat
import unicodedata
import zipfile
import zlib

MIB = 1024 * 1024
MOST_PACKED = 50 * MIB
MOST_UNPACKED = 256 * MIB
MOST_ENTRIES = 10_000
MOST_RATIO = 200  # unpacked bytes for one packed byte, beyond the first MiB
MOST_FAULTS = 20  # that are told one by one
LONGEST, DEEPEST = 512, 32  # bytes and levels of a name

OURS = ("service", "trials", "search_spaces")
LEFT_OUT = frozenset(
    (".git", ".hg", ".svn", ".env", ".venv", "__pycache__")
    + (".mypy_cache", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints")
)
_IMPORTED = (".py", ".pyc", ".so", ".pyd")
_ENTRY = b"PK\x01\x02"  # begins every entry of a table of contents
BROKEN = (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, EOFError, NotImplementedError, ValueError)


def zip_faults(payload: bytes) -> list[str]:
    """What keeps a zip from being taken, by its table of contents alone; nothing is unpacked. Twenty at most."""
    if len(payload) > MOST_PACKED:
        return [f"code: must have at most {MOST_PACKED // MIB} MiB, but got {len(payload) / MIB:.1f}; leave files out."]
    if (count := payload.count(_ENTRY)) > MOST_ENTRIES:  # before a million of them are read into memory
        return [f"code: must hold at most {MOST_ENTRIES:,} files, but got {count:,}; leave some out."]
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            entries = archive.infolist()
    except (*BROKEN, OverflowError, OSError) as error:
        return [f"code: must be a zip, but {error}; pack it again."]
    if not entries:
        return ["code: must hold at least one file, but the zip is empty; pack it again."]
    hiding = dict.fromkeys(filter(None, map(_hiding, entries)))
    faults = [f"code: {name!r} would hide continua's own code on the workers; rename it." for name in hiding]
    faults += [*_size_faults(entries, len(payload)), *(fault for entry in entries for fault in _entry_faults(entry))]
    return first(faults or _collisions(entries))


def _size_faults(entries: list[zipfile.ZipInfo], size: int) -> list[str]:
    total, faults = sum(entry.file_size for entry in entries), []
    if total > MOST_UNPACKED:
        faults.append(f"code: must unpack to at most {MOST_UNPACKED // MIB} MiB, but got {total / MIB:.1f}; trim it.")
    if total > MIB + MOST_RATIO * size:
        rule = f"must unpack to at most {MOST_RATIO} times its size"
        faults.append(f"code: {rule}, but got {total / max(size, 1):.0f} times; leave such files out.")
    if sum(entry.compress_size for entry in entries) > size:
        faults.append("code: its entries must not overlap, but have more bytes than the zip; pack it again.")
    return faults


def _entry_faults(entry: zipfile.ZipInfo) -> list[str]:
    name, where = entry.orig_filename, f"code: {entry.orig_filename!r}"
    parts = name.removesuffix("/").split("/")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    faults = []
    if name.startswith("/") or "\\" in name or re.match(r"[A-Za-z]:", name):
        faults.append(f"{where}: a name must be relative, with `/`; pack it again.")
    elif any(part in ("", ".", "..") for part in parts):
        faults.append(f"{where}: a name must lead to a place in the zip, without `.` or `..`; pack it again.")
    if not name.isprintable() or len(name.encode("utf-8", "replace")) > LONGEST or len(parts) > DEEPEST:
        faults.append(f"{where}: a name must be printable, {LONGEST} bytes and {DEEPEST} levels at most; rename it.")
    if any(part in LEFT_OUT for part in parts):
        faults.append(f"{where}: version control, secrets, caches and environments are no code; leave it out.")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        word = "a link" if kind == stat.S_IFLNK else "a special file"
        faults.append(f"{where}: must be a file, but is {word}; pack the file itself.")
    if entry.flag_bits & 0x2041:
        faults.append(f"{where}: must not be encrypted; pack it without a password.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        faults.append(f"{where}: must be stored or deflated, but is {entry.compress_type}; pack it again.")
    return faults


def _hiding(entry: zipfile.ZipInfo) -> str:
    """The name at the top that would be found before a package of ours when modules are looked for; else nothing."""
    top, slash, _ = entry.orig_filename.partition("/")
    stem, dot, rest = top.partition(".")
    hides = not dot or (not slash and f".{rest}".endswith(_IMPORTED))
    return top if stem.casefold() in OURS and hides else ""


def _collisions(entries: list[zipfile.ZipInfo]) -> list[str]:
    """Names that stand twice, or would be one file where capitals, or ways to write an accent, do not count; files
    that are directories too."""
    spelt: dict[str, str] = {}
    files: set[str] = set()
    folders: set[str] = set()
    faults = []
    for entry in entries:
        parts = entry.orig_filename.removesuffix("/").split("/")
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            key = unicodedata.normalize("NFC", path).casefold()
            is_file = depth == len(parts) and not entry.is_dir()
            if spelt.setdefault(key, path) != path:
                faults.append(f"code: {path!r} and {spelt[key]!r} are one name on some machines; rename one.")
            elif is_file and key in files:
                faults.append(f"code: {path!r} stands twice; pack it once.")
            elif key in (folders if is_file else files):
                faults.append(f"code: {path!r} is a file and a directory; rename one.")
            (files if is_file else folders).add(key)
    return faults


def first(faults: list[str]) -> list[str]:
    """At most `MOST_FAULTS` of them, and how many there are more."""
    more = len(faults) - MOST_FAULTS
    return faults if more <= 0 else [*faults[:MOST_FAULTS], f"code: and {more:,} faults more; mend these first."]
