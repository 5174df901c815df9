"""A segment is there whole or not at all, and no change of a single bit of it goes unseen."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from trials import segments
from trials.segments import Damaged, Reader, write

TABLE = pa.table({"step": [1, 2, 3], "loss": [0.5, float("nan"), None], "point": ['{"lr": 1}', "", None]})


def nth_fsync_fails(monkeypatch: pytest.MonkeyPatch, nth: int, code: int = errno.EIO) -> list[int]:
    """Makes the nth call of os.fsync fail (1-based); the returned list grows with each call."""
    calls: list[int] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) == nth:
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return calls


def test_reads_what_was_written_under_the_digest_of_its_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, "part-0", TABLE)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert path.name == f"part-0-{digest}.arrow"
    assert os.listdir(tmp_path) == [path.name]
    read = Reader().read(path)
    assert read.schema == TABLE.schema
    assert repr(read.to_pylist()) == repr(TABLE.to_pylist())


def test_others_read_it_with_no_code_of_ours(tmp_path: Path) -> None:
    path = write(tmp_path, "part-0", TABLE)
    assert pd.read_feather(path)["step"].tolist() == [1, 2, 3]
    with pa.memory_map(str(path)) as file:
        assert pa.ipc.open_file(file).read_all()["step"].to_pylist() == [1, 2, 3]


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, "part-0", TABLE)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            Reader().read(path)
    path.write_bytes(whole)
    assert Reader().read(path).num_rows == 3


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, "part-0", TABLE.select(["step"]))
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            broken = bytearray(whole)
            broken[place] ^= 1 << bit
            path.write_bytes(broken)
            with pytest.raises(Damaged):
                Reader().read(path)


def test_a_tail_of_zeros_and_a_longer_file_are_found(tmp_path: Path) -> None:
    path = write(tmp_path, "part-0", TABLE)
    whole = path.read_bytes()
    tails = [n for n in range(1, len(whole) + 1) if any(whole[-n:])]
    for broken in [*(whole[:-n] + bytes(n) for n in tails), whole + b"\0", whole + whole]:
        path.write_bytes(broken)
        with pytest.raises(Damaged, match="digest"):
            Reader().read(path)


@pytest.mark.parametrize("name", ["part-0.arrow", "part-0-.arrow", "part-0-0123456789abcdeg.arrow"])
def test_a_name_without_a_digest_is_damage(tmp_path: Path, name: str) -> None:
    write(tmp_path, "part-0", TABLE).rename(tmp_path / name)
    with pytest.raises(Damaged, match="digest"):
        Reader().read(tmp_path / name)


def test_a_missing_file_and_a_directory_are_damage(tmp_path: Path) -> None:
    for path in (tmp_path / "gone-0123456789abcdef.arrow", tmp_path):
        with pytest.raises(Damaged, match="cannot be read") as caught:
            Reader().read(path)
        assert caught.value.path == path


def test_bytes_with_a_right_digest_that_are_no_arrow_file_are_damage(tmp_path: Path) -> None:
    path = tmp_path / f"part-0-{hashlib.sha256(b'hello').hexdigest()[:16]}.arrow"
    path.write_bytes(b"hello")
    with pytest.raises(Damaged, match="not an Arrow file"):
        Reader().read(path)


def test_a_verified_file_is_trusted_until_its_size_or_time_changes(tmp_path: Path) -> None:
    path = write(tmp_path, "part-0", pa.table({"step": [77]}))
    facts = path.stat()
    reader = Reader()
    assert reader.read(path)["step"].to_pylist() == [77]
    whole = path.read_bytes()
    assert whole.count((77).to_bytes(8, "little")) == 1
    path.write_bytes(whole.replace((77).to_bytes(8, "little"), (78).to_bytes(8, "little")))

    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert reader.read(path)["step"].to_pylist() == [78]  # the price of reading each digest once
    with pytest.raises(Damaged):
        Reader().read(path)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    with pytest.raises(Damaged):
        reader.read(path)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    reader.forget()
    with pytest.raises(Damaged):
        reader.read(path)


def test_a_segment_is_never_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path, "part-0", TABLE)
    before = path.stat()
    with pytest.raises(FileExistsError):
        write(tmp_path, "part-0", TABLE)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_no_fsync_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    nth = 0
    while True:
        nth += 1
        with monkeypatch.context() as patch:
            calls = nth_fsync_fails(patch, nth, code)
            caught = None
            try:
                write(tmp_path, "part-0", TABLE)
            except OSError as error:
                caught = error
        if caught is None:
            break
        assert caught.errno == code
        assert os.listdir(tmp_path) == []
    assert len(calls) == 2  # the file and its directory
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("call", ["rename", "open"])
def test_neither_may_any_other_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def refuse(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(segments.os, call, refuse)  # `open` only opens the directory, to fsync it
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "part-0", TABLE)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


FILE_TOO_LARGE = """
import errno, os, resource, signal, sys
from pathlib import Path
import pyarrow as pa
from trials.segments import Reader, write

directory = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
kept = write(directory, "part-0", pa.table({"x": [1.0]}))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    write(directory, "part-1", pa.table({"x": [0.5] * 10_000}))
except OSError as error:
    assert error.errno == errno.EFBIG, error
else:
    raise AssertionError("written beyond the limit")
assert os.listdir(directory) == [kept.name], os.listdir(directory)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert Reader().read(write(directory, "part-1", pa.table({"x": [0.5] * 10_000}))).num_rows == 10_000
"""


def test_a_write_that_the_kernel_cuts_short_leaves_nothing(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", FILE_TOO_LARGE, str(tmp_path)], check=True, env=environment())


DISK_FULL = """
import errno, os, sys
from pathlib import Path
from trials.segments import Reader
from trials.store import Store

root = Path(sys.argv[1])
log = Store(root).create("s", {}).log_writer(1)
acknowledged = 0
try:
    while True:
        log.append("told", {"text": "x" * 5000})
        acknowledged += 1
except OSError as error:
    assert error.errno == errno.ENOSPC, error
search = Store.open_for_reading(root).search("s")
assert acknowledged > 3
assert len(search.log()) == acknowledged, "reads go on, and see what was acknowledged"
assert search.damaged == []
(root / "ballast").unlink()
log.append("told", {"text": "x" * 5000})
assert [event.seq for event in search.log()] == list(range(acknowledged + 1))
"""


def test_a_full_disk_is_never_acknowledged_and_recovers(tmp_path: Path) -> None:
    fill = 'mount -t tmpfs -o size=256k none "$1" && head -c 100000 /dev/zero >"$1/ballast"'
    inside = f'{fill} && {sys.executable} -c "$0" "$1"'
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    probe = [*namespace, "mount", "-t", "tmpfs", "none", str(tmp_path)]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here")
    subprocess.run([*namespace, "sh", "-c", inside, DISK_FULL, str(tmp_path)], check=True, env=environment())


def environment() -> dict[str, str]:
    """The environment of a child that imports this checkout."""
    root = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}


def test_a_file_with_the_right_digest_and_a_bad_offset_is_damaged_and_crashes_nobody(tmp_path):
    text = '{"state":"AAAAAAAAAAAAAAAAAAAA"}'
    sink = pa.BufferOutputStream()
    table = pa.table({"body": [text]})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    payload = sink.getvalue().to_pybytes()
    offsets = struct.pack("<2i", 0, len(text))
    at = payload.rindex(offsets)
    payload = payload[:at] + struct.pack("<2i", 0, 2**31 - 1) + payload[at + 8 :]
    path = tmp_path / f"part-0000000000-{hashlib.sha256(payload).hexdigest()[:16]}.arrow"
    path.write_bytes(payload)
    with pytest.raises(Damaged, match="is not an Arrow file"):
        Reader().read(path)
