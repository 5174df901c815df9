"""A user's code in a zip: the same bytes for the same files, refused before it is opened, unpacked once by many."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import shutil
import stat
import string
import subprocess
import threading
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from search_spaces import Invalid
from service import code, ignored, zip_rules
from service.code import packed, unpacked, zip_faults
from trials import layout
from trials.store import Damaged, NotFound

PROFILE = profile(deadline=None, derandomize=True, max_examples=200, suppress_health_check=list(HealthCheck))
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not there to compare with")


def tree(top: Path, **files: str) -> Path:
    """Files by name, `__` for `/` and `_py` for `.py`."""
    return written(top, {name.replace("__", "/").replace("_py", ".py"): text for name, text in files.items()})


def written(top: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    return top


def faults_of(directory: Path) -> str:
    with pytest.raises(Invalid) as caught:
        packed(directory)
    return str(caught.value)


# -- packing -----------------------------------------------------------------------------------------------------------


def test_the_same_files_give_the_same_bytes_whatever_their_times_modes_and_order(tmp_path: Path) -> None:
    files = {"b.py": "b = 1", "a/deep/c.txt": "x" * 5000, "a.py": "import b", "empty": ""}
    one, two = written(tmp_path / "one", files), written(tmp_path / "two", dict(reversed(files.items())))
    for path in two.rglob("*"):
        os.utime(path, (0, 86400 * 365 * 20))
    (two / "a.py").chmod(0o755)
    first, second = packed(one), packed(two)
    assert first == second
    assert first.files == ("a.py", "a/deep/c.txt", "b.py", "empty")
    assert first.sha256 == hashlib.sha256(first.payload).hexdigest()
    (two / "b.py").write_text("b = 2")
    assert packed(two).sha256 != first.sha256


@pytest.mark.parametrize("with_git", [pytest.param(True, marks=needs_git), False])
def test_what_is_ignored_or_no_code_is_left_out(with_git: bool, tmp_path: Path) -> None:
    kept = {"mine.py": "x", "data/small.csv": "1", "keep.log": "y", ".gitignore": "*.log\n!keep.log\n/big/\n"}
    left = ("a.log", ".env", "big/a.bin", "__pycache__/mine.pyc", ".venv/lib/x.py", "env/pyvenv.cfg", "env/lib/y.py")
    more = ("runs/searches/iris-1/spec.json", "runs/searches/iris-1/log/1.arrow", "deep/st/board.sqlite", "loose.pyc")
    written(tmp_path, {**kept, **dict.fromkeys([*left, *more], "z")})
    if with_git:
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert packed(tmp_path).files == tuple(sorted(kept))


@needs_git
def test_what_git_keeps_though_it_is_ignored_is_packed_and_what_was_deleted_is_not(tmp_path: Path) -> None:
    tree(tmp_path, mine_py="x", forced_py="y", gone_py="z")
    (tmp_path / ".gitignore").write_text("forced.py\n")
    tree(tmp_path / "within", sub_py="s")
    for folder in (tmp_path / "within", tmp_path):
        subprocess.run(["git", "init", "-q", folder], check=True)
    subprocess.run(["git", "-C", tmp_path, "add", "-f", "forced.py", "gone.py"], check=True)
    (tmp_path / "gone.py").unlink()
    assert packed(tmp_path).files == (".gitignore", "forced.py", "mine.py", "within/sub.py")


def test_links_within_are_packed_as_files_and_others_are_refused(tmp_path: Path) -> None:
    top = tree(tmp_path / "top", mine_py="x = 1", lib__a_py="a")
    (tmp_path / "secret").write_text("password")
    (top / "same.py").symlink_to("mine.py")
    made = packed(top)
    with zipfile.ZipFile(io.BytesIO(made.payload)) as archive:
        assert archive.read("same.py") == b"x = 1"
        assert {stat.S_IFMT(entry.external_attr >> 16) for entry in archive.infolist()} == {stat.S_IFREG}
    (top / "out").symlink_to(tmp_path / "secret")
    (top / "folder").symlink_to("lib")
    (top / "nowhere").symlink_to("not-there")
    os.mkfifo(top / "pipe")
    said = faults_of(top).splitlines()
    assert len(said) == 4
    assert "'folder': only files and links to files can be packed, but it is a directory by a link" in said[0]
    assert "'out': is a link that leads outside" in said[2]
    assert all(".gitignore" in line for line in said)


@pytest.mark.parametrize(
    "name", ["service/x.py", "trials.py", "search_spaces/__init__.py", "Service/x.py", "trials.so"]
)
def test_a_name_that_would_hide_ours_is_refused_at_the_top_alone(name: str, tmp_path: Path) -> None:
    written(tmp_path, {name: "", "fine.py": ""})
    assert "would hide continua's own code on the workers; rename it" in faults_of(tmp_path)
    shutil.move(tmp_path / name.split("/")[0], tmp_path / "sub")
    written(tmp_path, {"service.md": "", "pkg/service/x.py": "", "pkg/trials.py": ""})
    packed(tmp_path)


def test_what_is_too_large_names_the_largest_and_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, {"mine.py": "x", "weights.bin": "".join(random.Random(0).choices(string.printable, k=300_000))})
    monkeypatch.setattr(code, "MOST_PACKED", 100_000)
    assert "the largest are weights.bin (0.3 MiB), mine.py" in faults_of(tmp_path)
    monkeypatch.setattr(code, "MOST_PACKED", 2**30)
    monkeypatch.setattr(code, "MOST_ENTRIES", 1)
    assert "got 2 files" in faults_of(tmp_path)
    assert ".gitignore" in faults_of(tmp_path)
    (tmp_path / ".gitignore").write_text("*.bin\n.gitignore\n")
    assert packed(tmp_path).files == ("mine.py",)


def test_what_is_no_directory_of_code_is_refused(tmp_path: Path) -> None:
    assert "must be a directory" in faults_of(tmp_path / "nowhere")
    assert "must hold at least one file" in faults_of(tmp_path)
    written(tmp_path, {"searches/a-1/spec.json": "{}"})
    assert "must not be a store" in faults_of(tmp_path)


ODD = st.text(alphabet="ab/*?[]!-\\ .#", min_size=1, max_size=8)
PARTS = ["a", "b", "ab", "*", "**", "a*", "?b", "[ab]", "[!a]", "[^b]*", "\\a", "a b", "\\!a", "\\#a"]
USUAL = st.builds(
    lambda begin, parts, end: begin + "/".join(parts) + end,
    st.sampled_from(["", "", "/", "!", "!/"]),
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=3),
    st.sampled_from(["", "", "/", " "]),
)
PATTERNS = st.lists(USUAL | USUAL | ODD, min_size=1, max_size=4)
NAMES = ["ab", "ba", ".a", "a b", "#a", "!a", "a-", "x/a", "x/b", "b/b", "b/ab", "b/a/b", "b/a/a/ab", "b/x/a/b"]
NAMES += ["a/a", "a/ab", "a/b/b", "a/b/ab", "a/b/a/ba", "a/x/y/b", "[a]", "x/a*", "x/y/b/a"]


@pytest.mark.slow
@needs_git
@PROFILE
@given(patterns=PATTERNS, inner=st.just([]) | PATTERNS)
def test_patterns_mean_what_they_mean_to_git(
    patterns: list[str], inner: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    top = written(tmp_path_factory.mktemp("patterns"), dict.fromkeys(NAMES, ""))
    (top / ".gitignore").write_text("\n".join(patterns) + "\n")
    if inner:
        (top / "a" / ".gitignore").write_text("\n".join(inner) + "\n")
    ours = ignored.files(top)
    subprocess.run(["git", "init", "-q", "--template=", top], check=True)
    assert sorted(ignored.files(top)) == sorted(ours)
    shutil.rmtree(top)


# -- zips made by others -----------------------------------------------------------------------------------------------


def made(*names: str, text: bytes = b"x", mode: int = 0, way: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", way) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that stand twice
        for name in names:
            entry = zipfile.ZipInfo(name)
            entry.external_attr, entry.compress_type = mode << 16, way
            archive.writestr(entry, text)
    return buffer.getvalue()


def test_an_honest_zip_has_no_fault() -> None:
    assert zip_faults(made("mine.py", "lib/a.py", "lib/")) == []


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "must be a zip"),
        (b"PK\x05\x06" + b"\0" * 18, "the zip is empty"),
        (made("a")[:-10], "must be a zip"),
        (made("../a"), "without `.` or `..`"),
        (made("a/../../b"), "without `.` or `..`"),
        (made("a//b"), "without `.` or `..`"),
        (made("/etc/passwd"), "must be relative"),
        (made("C:/windows"), "must be relative"),
        (made("a\\b"), "must be relative"),
        (made("a\nb"), "must be printable"),
        (made("a" * 600), "must be printable"),
        (made("a/" * 40 + "b"), "32 levels at most"),
        (made("link", mode=stat.S_IFLNK | 0o777), "but is a link"),
        (made("pipe", mode=stat.S_IFIFO), "but is a special file"),
        (made("a", "a"), "stands twice"),
        (made("Mine.py", "mine.py"), "one name on some machines"),
        (made("e\u0301.py", "\u00e9.py"), "one name on some machines"),
        (made("Lib/a.py", "lib/b.py"), "one name on some machines"),
        (made("a", "a/b"), "is a file and a directory"),
        (made("a/b", "a"), "is a file and a directory"),
        (made("service/x.py"), "'service' would hide"),
        (made("trials.py"), "'trials.py' would hide"),
        (made(".git/config"), "version control"),
        (made("a", way=zipfile.ZIP_LZMA), "stored or deflated"),
        (made("a", text=b"\0" * 3_000_000), "times its size"),
    ],
)
def test_every_trick_is_seen_without_opening_it(payload: bytes, words: str, tmp_path: Path) -> None:
    faults = zip_faults(payload)
    assert any(words in fault for fault in faults), faults
    sha = kept(tmp_path, payload)
    with pytest.raises(Invalid):
        unpacked(tmp_path, sha, tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*"))


def test_an_encrypted_entry_is_refused() -> None:
    payload = bytearray(made("a"))
    payload[payload.index(b"PK\x01\x02") + 8] |= 1
    assert any("encrypted" in fault for fault in zip_faults(bytes(payload)))


def test_too_much_of_anything_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    many = made(*(f"f{n}" for n in range(200)), way=zipfile.ZIP_STORED)
    monkeypatch.setattr(zip_rules, "MOST_ENTRIES", 100)
    assert "at most 100 files, but got 200" in zip_faults(many)[0]
    monkeypatch.setattr(zip_rules, "MOST_UNPACKED", 50)
    assert any("must unpack to at most" in fault for fault in zip_faults(made("a", text=b"x" * 60)))
    monkeypatch.setattr(zip_rules, "MOST_PACKED", 50)
    assert "must have at most" in zip_faults(made("a"))[0]
    assert len(zip_faults(made("a"))) == 1


def test_entries_that_share_their_bytes_are_refused() -> None:
    """The table of contents names one entry's bytes many times: small, and large when unpacked."""
    text = random.Random(0).randbytes(100_000)
    whole = made("a" * 9, text=text)
    at = whole.index(b"PK\x01\x02")
    entry = whole[at : at + 46 + 9]
    table = b"".join(entry[:46] + f"name-{n:04d}".encode() for n in range(50))
    end = whole[whole.index(b"PK\x05\x06") :]
    end = end[:8] + (50).to_bytes(2, "little") * 2 + len(table).to_bytes(4, "little") + end[16:]
    assert any("must not overlap" in fault for fault in zip_faults(whole[:at] + table + end))


def test_a_hundred_faults_are_told_as_twenty() -> None:
    faults = zip_faults(made(*(f"../{n}" for n in range(100))))
    assert len(faults) == 21
    assert "80 faults more" in faults[-1]


# -- unpacking ---------------------------------------------------------------------------------------------------------


def kept(root: Path, payload: bytes) -> str:
    sha = hashlib.sha256(payload).hexdigest()
    path = layout.code(root, sha)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(payload)
    return sha


def test_what_was_packed_comes_out_again_read_only_and_once(tmp_path: Path) -> None:
    top = tree(tmp_path / "top", mine_py="x = 1", lib__a_py="a = 2")
    packed_up = packed(top)
    sha = kept(tmp_path, packed_up.payload)
    place = unpacked(tmp_path, sha, tmp_path / "cache")
    assert place == tmp_path / "cache" / sha
    assert (place / "lib" / "a.py").read_text() == "a = 2"
    assert (place / "mine.py").stat().st_mode & 0o777 == 0o444
    layout.code(tmp_path, sha).unlink()
    assert unpacked(tmp_path, sha, tmp_path / "cache") == place
    assert packed(place).sha256 == sha


def test_what_a_killed_process_left_half_unpacked_goes_in_time(tmp_path: Path) -> None:
    sha, cache = kept(tmp_path, made("mine.py")), tmp_path / "cache"
    old, young = cache / ".0123456789abcdef-00000000", cache / ".0123456789abcdef-00000001"
    foreign = cache / ".somebody-elses"
    for left in (old, young, foreign):
        left.mkdir(parents=True)
        (left / "half.py").write_text("x =")
    for left in (old, foreign):
        os.utime(left, (0, 0))
    place = unpacked(tmp_path, sha, cache)
    assert sorted(cache.iterdir()) == sorted([young, foreign, place])


def test_many_at_once_get_one_whole_directory(tmp_path: Path) -> None:
    payload = made(*(f"lib/f{n}.py" for n in range(300)))
    sha = kept(tmp_path, payload)
    counts: list[int] = []
    start = threading.Barrier(8)

    def take() -> None:
        start.wait()
        counts.append(len(list((unpacked(tmp_path, sha, tmp_path / "cache") / "lib").iterdir())))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [300] * 8
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [sha]


def test_code_that_is_missing_damaged_or_misnamed_is_refused(tmp_path: Path) -> None:
    sha = kept(tmp_path, made("a"))
    layout.code(tmp_path, sha).write_bytes(made("b"))
    with pytest.raises(Damaged, match="digest"):
        unpacked(tmp_path, sha, tmp_path / "cache")
    with pytest.raises(NotFound, match="submit the search again"):
        unpacked(tmp_path, "0" * 64, tmp_path / "cache")
    for name in ("../../etc", "A" * 64, ""):
        with pytest.raises(Invalid, match="must be a sha256"):
            unpacked(tmp_path, name, tmp_path / "cache")


def test_a_checksum_that_does_not_hold_leaves_nothing_behind(tmp_path: Path) -> None:
    payload = bytearray(made("a", text=b"hello there", way=zipfile.ZIP_STORED))
    payload[payload.index(b"hello")] ^= 1
    sha = kept(tmp_path, bytes(payload))
    with pytest.raises(Damaged, match="cannot be unpacked"):
        unpacked(tmp_path, sha, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@PROFILE
@given(data=st.data())
def test_bytes_changed_anywhere_are_refused_or_stay_within(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
):
    """Whatever a zip is made into, it is refused, or unpacks below its own directory, within the limits."""
    payload = bytearray(made("mine.py", "lib/a.py", "lib/b/c.txt", text=b"some text " * 20))
    for _ in range(data.draw(st.integers(1, 6))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    top = tmp_path_factory.mktemp("fuzz")
    with contextlib.suppress(Invalid, Damaged):
        place = unpacked(top, kept(top, bytes(payload)), top / "cache")
        inside = list(place.rglob("*"))
        assert not any(path.is_symlink() for path in inside)
        assert sum(path.stat().st_size for path in inside if path.is_file()) <= zip_rules.MOST_UNPACKED
    assert {path.name for path in top.iterdir()} <= {"cache", "code"}
    shutil.rmtree(top)


@PROFILE
@given(names=st.lists(st.text(alphabet="ab./\\~\0:é \n", min_size=1, max_size=12), min_size=1, max_size=5))
def test_no_name_leads_outside(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    top = tmp_path_factory.mktemp("names")
    with contextlib.suppress(Invalid):
        place = unpacked(top, kept(top, made(*names)), top / "cache")
        assert len([path for path in place.rglob("*") if path.is_file()]) <= len(names)
    assert {path.name for path in top.iterdir()} <= {"cache", "code"}
    assert {path.name for path in top.glob("cache/*")} <= {next((top / "code").iterdir()).stem}
    shutil.rmtree(top)
