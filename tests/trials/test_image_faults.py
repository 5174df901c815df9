"""Every bad declaration and every bad file of images is refused with its reason, all faults at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_cases import drawn, encoded, faults, images, write

from trials.tasks.image_files import picture

BAD_KEYS: dict[str, tuple[dict[str, object], str]] = {
    "unknown key": ({"lable": "y"}, "task: unknown key 'lable'. Did you mean 'label'?"),
    "a table's key": ({"path": "t.csv"}, "task: unknown key 'path'"),
    "unknown kind": ({"kind": "image"}, "unknown kind of task 'image'. Did you mean 'images'?"),
    "no kind": ({"kind": None}, "task.kind: is missing; images are declared with `kind: images`."),
    "no train": ({"train": None}, "task.train: is missing; name a Parquet file of images."),
    "path's type": ({"train": 3}, "task.train: must be a file's path, but got 3."),
    "path's end": ({"test": "t.csv"}, "task.test: must end in one of .parquet, .pq"),
    "missing file": ({"train": "none.parquet"}, "task.train: must be a file that exists"),
    "column's type": ({"image": 0}, "task.image: must be a column's name, but got 0."),
    "absent image": ({"image": "imag"}, "task.image: unknown column of `train` 'imag'. Did you mean 'image'?"),
    "absent label": ({"label": "y"}, "task.label: unknown column of `train` 'y'. Known: image, label."),
    "no images": ({"image": "label"}, "task.image: must hold images as struct"),
    "no labels": ({"label": "image"}, "task.label: must hold whole numbers or text, but 'image' of `train` is of type"),
    "rows": ({"rows": 0}, "task.rows: must be a whole number of at least 1, but got 0."),
    "rows' type": ({"rows": True}, "but got True"),
    "too few rows": ({"rows": 3, "splits": {"train": 0.9}}, "every split needs a row or more, but of 3 rows"),
    "seed": ({"split_seed": 0.5}, "task.split_seed: must be a whole number"),
    "splits": ({"splits": {"train": 2}}, "task.splits.train: must be a fraction"),
    "augment's type": ({"augment": True}, "task.augment: must be a mapping"),
    "augment's key": ({"augment": {"flipp": True}}, "task.augment: unknown key 'flipp'. Did you mean 'flip'?"),
    "flip": ({"augment": {"flip": 1}}, "task.augment.flip: must be true or false, but got 1."),
    "shift": ({"augment": {"shift": -1}}, "task.augment.shift: must be a whole number of pixels"),
    "far shift": ({"augment": {"shift": 3}}, "at most half of the shorter side, 2 pixels of 5, but got 3"),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_a_bad_declaration_is_refused_with_its_reason(case: str, tmp_path: Path) -> None:
    keys, words = BAD_KEYS[case]
    found = faults({**images(write(tmp_path / "t.parquet", drawn(20))), **keys})
    assert all(words in found[0] or "task.splits." in fault for fault in found), found
    assert len(found) <= (3 if case == "too few rows" else 1)


def cells(**at: Any) -> list[Any]:
    """Twenty images, but at `_3` what is given."""
    found: list[Any] = drawn(20)
    for place, cell in at.items():
        found[int(place[1:])] = cell
    return found


RAGGED = drawn(1, 6, 5, 3)[0]
BAD_FILES: dict[str, tuple[list[Any], Any, str]] = {
    "no image": (cells(_3=b"text", _7=b""), None, "row 3 does not: cannot identify image file"),
    "how many": (cells(_3=b"text", _7=b""), None, "mend or drop 2 of 20 rows"),
    "cut off": (cells(_5=encoded(RAGGED)[:60]), None, "task.train: every row must hold an image, but row 5 does not"),
    "path alone": (cells(_0=None), None, "row 0 does not: it has no bytes (a path alone is not followed)"),
    "mode": (cells(_9=RAGGED), None, "must be L of 6 x 5 (height x width) as row 0 is, but row 9 is RGB of 6 x 5"),
    "size": (cells(_9=drawn(1, 5, 6)[0], _11=RAGGED), None, "but row 9 is L of 5 x 6 (height x width); resize"),
    "one class": (cells(), [1] * 20, "needs two classes or more, but every label is '1'"),
    "no label": (cells(), [None, *range(19)], "1 of 20 rows have none, the first is row 0"),
    "labels' type": (cells(), [0.5] * 20, "'label' of `train` is of type double; name another column"),
    "all differ": (cells(), list(range(20)), "task.splits.outer: every split needs a row or more"),
    "no rows": ([], [], "task.train: needs rows of images"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_its_reason(case: str, tmp_path: Path) -> None:
    drawings, labels, words = BAD_FILES[case]
    found = faults(images(write(tmp_path / "t.parquet", drawings, labels)))
    assert any(words in fault for fault in found), found
    assert all(fault.startswith("task.") for fault in found)


def test_a_bad_test_file_is_refused_with_its_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", drawn(20), names=["cat", "ant"])

    def told(drawings: list[Any], labels: list[Any], **keys: Any) -> str:
        found = faults(images(path, test=str(write(tmp_path / "o.parquet", drawings, labels)), **keys))
        assert len(found) == 1, found
        return found[0]

    assert "must be L of 6 x 5 (height x width) as in `train`, but row 1 is RGB" in told([*drawn(1), RAGGED], [0, 1])
    assert "also emu; relabel" in told(drawn(2), ["cat", "emu"])
    assert "labels must be from 0 to 1, for 2 classes are named, but row 1 has -1" in told(drawn(2), [0, -1])
    assert "the test rows come from `test`; drop one" in told(drawn(2), [0, 1], splits={"test": 0.2})


def test_all_faults_that_can_be_known_are_told_together(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", cells(_2=b"text", _4=RAGGED), [1] * 20)
    test = write(tmp_path / "b.parquet", drawn(3), columns=("picture", "label"))
    found = faults({"kind": "images", "train": str(path), "test": str(test), "sed": 1, "augment": {"shift": "far"}})
    wanted = ["'sed'", "augment.shift", "two classes", "column of `test` 'image'", "also 0", "row 2", "row 4"]
    assert len(found) == len(wanted), found
    for words in wanted:
        assert any(words in fault for fault in found), words
    assert [fault.split(":")[0] for fault in faults({"kind": "images"})] == ["task.train"]


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", drawn(20), columns=("same", "same"))
    for fault in faults(images(path, image="same", label="same")):
        assert "'same' names more than one column of `train`" in fault


def test_broken_files_are_refused_with_the_parsers_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", drawn(50, 20, 20), compression="snappy")
    whole = path.read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[:4000] + bytes(2000) + whole[6000:])
    (tmp_path / "c.parquet").write_bytes(whole[:-9])
    (tmp_path / "d.parquet").write_bytes(b"")
    for name in "bcd":
        found = faults(images(tmp_path / f"{name}.parquet"))
        assert any("cannot be read: " in fault or "must hold an image" in fault for fault in found)


@given(st.integers(0, 400), st.binary(min_size=1, max_size=4), st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP"]))
def test_any_bytes_are_an_image_or_refused_and_never_more(place: int, junk: bytes, kind: str) -> None:
    data = encoded(drawn(1, 6, 5)[0], kind)
    place = min(place, len(data))
    try:
        pixels = picture(data[:place] + junk + data[place + len(junk) :])
    except Exception:  # `decode` takes any for the row's fault
        return
    assert (pixels.dtype, pixels.ndim) == (np.uint8, 3)
