"""Files of images become tasks: pixels as they were drawn, splits that never share a row, bytes normalised."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_cases import DATA, drawn, encoded, images, needs_images, write
from PIL import Image

from trials.pixels import normalised
from trials.tasks import SPLITS, Augment, load
from trials.tasks.image_files import picture
from trials.tasks.images import moments

# -- good files ----------------------------------------------------------------------------------------------------


def numbered(task_x: np.ndarray, drawings: list[np.ndarray]) -> list[int]:
    """Which drawing each row is."""
    places = {(d if d.ndim == 2 else d.transpose(2, 0, 1)).tobytes(): i for i, d in enumerate(drawings)}
    return [places[row.tobytes()] for row in task_x]


@pytest.mark.parametrize("shape", [(6, 5), (4, 7, 2), (5, 6, 3), (3, 4, 4)])
def test_pixels_and_labels_come_back_and_splits_are_disjoint(tmp_path: Path, shape: tuple[int, ...]) -> None:
    drawings, labels = drawn(50, *shape), np.arange(50) % 3
    task = load(images(write(tmp_path / "shapes.parquet", drawings, labels, row_group_size=7)))
    channels = 1 if len(shape) == 2 else shape[2]
    assert (task.name, task.kind, task.outputs, task.features) == ("shapes", "classification", 3, ())
    assert task.shape == (channels, *shape[:2])
    assert task.inputs == np.prod(shape)
    found = {split: numbered(task.rows(split).x, drawings) for split in SPLITS}
    assert sorted(itertools.chain(*found.values())) == list(range(50))
    for split, share in (("train", 20), ("outer", 10), ("selection", 10), ("test", 10)):
        part = task.rows(split)
        assert abs(len(part) - share) <= 1
        assert part.x.dtype == np.uint8
        assert part.x.flags.c_contiguous
        assert part.y.dtype == np.int64
        assert part.y.tolist() == [labels[i] for i in found[split]]


def test_a_test_file_is_the_test_split_in_its_order(tmp_path: Path) -> None:
    drawings, others = drawn(30), drawn(9, seed=1)
    path = write(tmp_path / "train.parquet", drawings, [["cat", "dog", "ant"][i % 3] for i in range(30)])
    test = write(tmp_path / "test.parquet", others, ["dog", "cat", "cat"] * 3)
    task = load(images(path, test=str(test)))
    assert task.name == tmp_path.name
    assert numbered(task.test.x, others) == list(range(9))
    assert task.classes == ("ant", "cat", "dog")
    assert task.test.y.tolist() == [2, 1, 1] * 3
    assert sorted(numbered(task.rows("train", "outer", "selection").x, drawings)) == list(range(30))
    assert [len(task.rows(split)) for split in ("train", "outer", "selection")] == [15, 8, 7]


def test_classes_have_the_files_own_names_where_it_has_them(tmp_path: Path) -> None:
    drawings = drawn(20)
    plain = write(tmp_path / "p.parquet", drawings, [[3, 20, -1, 100][i % 4] for i in range(20)])
    assert load(images(plain)).classes == ("-1", "3", "20", "100")
    named = write(tmp_path / "n.parquet", drawings, names=["cat", "ant", "emu"])
    bare = write(tmp_path / "b.parquet", drawn(3, seed=1), [2, 0, 1])
    task = load(images(named, test=str(bare)))
    assert (task.classes, task.outputs) == (("cat", "ant", "emu"), 3)
    assert task.test.y.tolist() == [2, 0, 1]
    assert any("without a train row" in note and "emu" in note for note in task.notes)
    swapped = write(tmp_path / "s.parquet", drawn(3, seed=1), [0, 1, 1], names=["ant", "cat"])
    assert load(images(named, test=str(swapped))).test.y.tolist() == [1, 0, 0]
    odd = write(tmp_path / "o.parquet", drawings, names=[["no", "name"]])
    assert load(images(odd)).classes == ("0", "1")


@pytest.mark.parametrize("kind", ["dictionary", "large", "small", "pandas"])
def test_labels_of_any_plain_type_are_read(tmp_path: Path, kind: str) -> None:
    words = pa.array(["b", "a", "b", "c"] * 10)
    labels = {
        "dictionary": words.dictionary_encode(),
        "large": words.cast(pa.large_string()),
        "small": pa.array([1, 0, 1, 2] * 10, pa.uint8()),
        "pandas": pa.array([1, 0, 1, 2] * 10).dictionary_encode(),
    }[kind]
    drawings = drawn(40)
    task = load(images(write(tmp_path / "t.parquet", drawings, labels)))
    assert task.classes == (("a", "b", "c") if kind in ("dictionary", "large") else ("0", "1", "2"))
    whole = task.rows(*SPLITS)
    assert whole.y.tolist() == [[1, 0, 1, 2][i % 4] for i in numbered(whole.x, drawings)]


def test_the_same_declaration_gives_the_same_task_and_another_seed_another(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", drawn(60))
    one, same, other = (load(images(path, split_seed=seed)) for seed in (4, 4, 5))
    for split in SPLITS:
        np.testing.assert_array_equal(one.rows(split).x, same.rows(split).x)
        np.testing.assert_array_equal(one.rows(split).y, same.rows(split).y)
    assert not np.array_equal(one.train.x, other.train.x)
    assert (one.offset, one.scale) == (same.offset, same.scale)


def test_rows_are_chosen_by_the_seed_and_no_other_is_decoded(tmp_path: Path) -> None:
    drawings: list[Any] = drawn(60)
    whole = write(tmp_path / "t.parquet", drawings)
    few = [load(images(whole, rows=20, split_seed=seed, test=str(whole))) for seed in (1, 2)]
    used = [set(numbered(task.rows("train", "outer", "selection").x, drawings)) for task in few]
    assert [len(some) for some in used] == [20, 20]
    assert used[0] != used[1]
    assert len(few[0].test) == 20
    assert few[0].notes[0] == "20 of the 60 rows of `train` are used, as `rows` says."
    assert "of `test`" in few[0].notes[1]
    broken = [drawing if i in used[0] else b"no image" for i, drawing in enumerate(drawings)]
    again = load(images(write(tmp_path / "b.parquet", broken), rows=20, split_seed=1))
    assert set(numbered(again.rows(*SPLITS).x, drawings)) == used[0]
    assert len(load(images(whole, rows=1000)).rows(*SPLITS)) == 60


def test_images_are_read_in_the_mode_that_keeps_their_quantities() -> None:
    grey = drawn(1, 8, 8)[0]
    black = Image.fromarray((grey > 99).astype(np.uint8) * 255).convert("1")
    np.testing.assert_array_equal(picture(encoded(black)), ((grey > 99) * 255)[None])
    colour = np.repeat(np.repeat(drawn(1, 2, 2, 3)[0], 4, 0), 4, 1)
    palette = Image.fromarray(colour).quantize(4)
    np.testing.assert_array_equal(picture(encoded(palette)), np.asarray(palette.convert("RGB")).transpose(2, 0, 1))
    assert picture(encoded(palette, transparency=0)).shape == (4, 8, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees to the right
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(picture(encoded(grey, kind, exif=exif))[0], np.rot90(grey, -1))
    with pytest.raises(ValueError, match="its mode is CMYK"):
        picture(encoded(Image.fromarray(colour).convert("CMYK"), "TIFF"))


def test_bytes_alone_and_other_columns_names_are_read(tmp_path: Path) -> None:
    data = pa.table({"img.png": [encoded(d) for d in drawn(20)], "img": [0] * 20, "fine": [0, 1] * 10})
    pq.write_table(data, tmp_path / "t.pq")
    assert load(images(tmp_path / "t.pq", image="img.png", label="fine")).shape == (1, 6, 5)


# -- normalisation ---------------------------------------------------------------------------------------------------


def test_each_channel_of_the_train_rows_has_mean_0_and_deviation_1(tmp_path: Path) -> None:
    drawings = drawn(40, 8, 6, 3)
    for drawing in drawings:
        drawing[..., 1] //= 5
        drawing[..., 2] = 77
    task = load(images(write(tmp_path / "t.parquet", drawings)))
    pixels = task.train.x.reshape(-1, 3, 48).astype(np.float64)
    np.testing.assert_allclose(task.offset, pixels.mean((0, 2)), rtol=1e-12)
    np.testing.assert_allclose(task.scale[:2], pixels.std((0, 2))[:2], rtol=1e-12)
    assert (task.offset[2], task.scale[2]) == (77, 1)
    x = normalised(torch.from_numpy(task.train.x), task)
    assert (x.dtype, x.shape) == (torch.float32, (len(task.train), 3, 8, 6))
    np.testing.assert_allclose(x.mean((0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(x.std((0, 2, 3), correction=0)[:2], 1, rtol=1e-5)
    assert not x[:, 2].any()
    one = normalised(torch.from_numpy(task.test.x[3:4]), task)
    assert torch.equal(one[0], normalised(torch.from_numpy(task.test.x), task)[3])
    np.testing.assert_array_equal(task.train.x.reshape(-1, 3, 48), pixels)  # the bytes are left as they were


def test_moments_of_many_rows_are_those_of_all() -> None:
    x = np.random.default_rng(0).integers(0, 256, (9000, 6), dtype=np.uint8)
    offset, scale = moments(x, 2)
    np.testing.assert_allclose(offset, [x[:, :3].mean(), x[:, 3:].mean()])
    np.testing.assert_allclose(scale, [x[:, :3].std(), x[:, 3:].std()])


def test_rows_of_tables_keep_their_numbers() -> None:
    task = load("uci/iris")
    assert task.shape == (4,)
    x = torch.from_numpy(task.train.x)
    assert torch.equal(normalised(x, task), x)


# -- the rest --------------------------------------------------------------------------------------------------------


def test_the_declared_augmentation_is_the_tasks(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", drawn(20))
    assert load(images(path)).augment == Augment() == Augment(flip=False, shift=0)
    assert load(images(path, augment={"flip": True, "shift": 2})).augment == Augment(flip=True, shift=2)


def test_tasks_need_no_torch() -> None:
    code = "import sys, trials.tasks; sys.exit(any(m in sys.modules for m in ('torch', 'pandas', 'ray', 'optuna')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@needs_images
@pytest.mark.parametrize(("name", "shape", "rows"), [("mnist", (1, 28, 28), 600), ("cifar10", (3, 32, 32), 400)])
def test_real_images_are_read(name: str, shape: tuple[int, ...], rows: int) -> None:
    declared = images(f"{name}/train.parquet", test=f"{name}/test.parquet", rows=rows)
    task = load(declared, data=DATA)
    assert (task.name, task.shape, task.outputs) == (name, shape, 10)
    assert task.classes == tuple("0123456789")
    assert [len(task.rows(split)) for split in SPLITS] == [rows // 2, rows // 4, rows // 4, rows]
    assert min(task.offset) > 20
    assert max(task.offset) < 140
    x = normalised(torch.from_numpy(task.train.x), task)
    assert x.mean().abs() < 1e-4
    if name == "mnist":  # digits are drawn in the middle, on black
        corners = task.train.x.reshape(-1, 28, 28)[:, :2, :2]
        assert not corners.any()
