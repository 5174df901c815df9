"""Tables become tasks: numbers recomputed by hand, splits that cover and never leak, and every bad input refused."""

from __future__ import annotations

import csv
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import datasets
from sklearn.linear_model import LogisticRegression, Ridge

from search_spaces import Invalid
from trials.tasks import SPLITS, Split, Task, known, load
from trials.tasks.splitting import DEFAULT_FRACTIONS, deal

UCI = Path(os.environ["CONTINUA_DATA"]) / "uci" if os.environ.get("CONTINUA_DATA") else None
INDEX: dict[str, dict[str, Any]] = yaml.safe_load((UCI / "index.yaml").read_text()) if UCI else {}
needs_data = pytest.mark.skipif(UCI is None, reason="CONTINUA_DATA does not name a directory with uci/index.yaml")


def write(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def table(path: Path | str, **keys: object) -> dict[str, object]:
    return {"kind": "table", "path": str(path), **keys}


def faults(spec: Any, **keys: Any) -> tuple[str, ...]:
    with pytest.raises(Invalid) as caught:
        load(spec, **keys)
    return caught.value.faults


def numbered(count: int, seed: int = 0) -> list[list[object]]:
    """Rows `a, b, target` whose column a is unlike in every row, so that a row can be told from its numbers."""
    rng = np.random.default_rng(seed)
    return [[float(i), float(rng.normal()), float(rng.normal())] for i in range(count)]


def original(task: Task, rows: list[list[object]], column: int = 0) -> dict[str, list[int]]:
    """The number in the file of each row of each split, found by undoing the standardisation by brute force: the row
    numbers 0..n-1 are column `column`, so its standardised values are equally spaced."""
    everything = task.rows(*SPLITS).x[:, column]
    step = (everything.max() - everything.min()) / (len(rows) - 1)
    low = everything.min()
    return {s: [round(float(v - low) / float(step)) for v in task.rows(s).x[:, column]] for s in SPLITS}


# -- the bundled tables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "inputs", "outputs", "kind"),
    [
        ("uci/breast_cancer", 569, 30, 2, "classification"),
        ("uci/diabetes", 442, 10, 1, "regression"),
        ("uci/digits", 1797, 64, 10, "classification"),
        ("uci/iris", 150, 4, 3, "classification"),
        ("uci/wine", 178, 13, 3, "classification"),
    ],
)
def test_bundled_tables_have_their_known_shapes(name: str, rows: int, inputs: int, outputs: int, kind: str) -> None:
    task = load(name)
    assert (task.name, task.kind, task.inputs, task.outputs) == (name, kind, inputs, outputs)
    assert len(task.classes) == (outputs if kind == "classification" else 0)
    assert len(task.rows(*SPLITS)) == rows
    for split, share in DEFAULT_FRACTIONS.items():
        part = task.rows(split)
        assert part.x.shape == (len(part), inputs)
        assert abs(len(part) - share * rows) <= 1
        assert part.x.dtype == np.float32
        assert part.x.flags.c_contiguous
        assert part.y.dtype == (np.int64 if kind == "classification" else np.float32)


def test_the_bundled_names_are_known_and_no_other() -> None:
    assert known() == ("uci/breast_cancer", "uci/diabetes", "uci/digits", "uci/iris", "uci/wine")
    assert "Did you mean 'uci/digits'" in faults("uci/digit")[0]
    assert "must be a name" in faults(3)[0]


def test_digits_keep_all_pixels_and_their_labels() -> None:
    task = load("uci/digits")
    whole = task.rows(*SPLITS)
    truth = datasets.load_digits()
    key = {tuple(pixels): label for pixels, label in zip(truth.data.astype(int), truth.target, strict=True)}
    assert Counter(map(tuple, truth.data)) == Counter(map(tuple, np.round(whole.x * 16).astype(float)))
    assert all(key[tuple(np.round(x * 16).astype(int))] == y for x, y in zip(whole.x, whole.y, strict=True))


def test_iris_is_standardised_by_its_train_rows_alone() -> None:
    task = load("uci/iris")
    truth = datasets.load_iris()
    np.testing.assert_allclose(task.train.x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(task.train.x.std(axis=0), 1, rtol=1e-5)
    # every original row must come back through one affine map a column, whatever its split
    whole = task.rows(*SPLITS).x.astype(np.float64)
    for column in range(4):
        slope, shift = np.polyfit(np.sort(whole[:, column]), np.sort(truth.data[:, column]), 1)
        np.testing.assert_allclose(np.sort(whole[:, column]) * slope + shift, np.sort(truth.data[:, column]), atol=1e-5)
    assert np.abs(task.test.x.mean(axis=0)).max() > 1e-3


# -- numbers, recomputed -------------------------------------------------------------------------------------------


def test_numbers_text_and_gaps_are_encoded_as_by_hand(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    sizes = [["s", "m", "l"][i] for i in rng.integers(0, 3, 50)]
    rows: list[list[object]] = [
        [i, "?" if i % 7 == 0 else round(rng.normal(5, 2), 3), "?" if i % 11 == 0 else sizes[i], rng.normal(100, 9)]
        for i in range(50)
    ]
    path = write(tmp_path / "t.csv", [["row", "gappy", "size", "price"], *rows])
    task = load(table(path, missing="?"))
    numbers = original(task, rows)
    train = numbers["train"]
    known_cells = np.array([float(rows[i][1]) for i in train if rows[i][1] != "?"])  # type: ignore[arg-type]
    filled = np.array([np.median(known_cells) if rows[i][1] == "?" else rows[i][1] for i in range(50)], float)
    mean, std = filled[train].mean(), filled[train].std()
    prices = np.array([row[3] for row in rows], float)
    for split in SPLITS:
        part, own = task.rows(split), numbers[split]
        np.testing.assert_allclose(part.x[:, 1], (filled[own] - mean) / std, rtol=1e-4, atol=1e-5)
        for value in ("s", "m", "l", "(missing)"):
            column = task.features.index(f"size={value}")
            assert part.x[:, column].tolist() == [float(rows[i][2] == value.replace("(missing)", "?")) for i in own]
        target = (prices[own] - prices[train].mean()) / prices[train].std()
        np.testing.assert_allclose(part.y, target, rtol=1e-4, atol=1e-5)
    assert task.target_scale == pytest.approx((prices[train].mean(), prices[train].std()))
    assert task.features[:2] == ("row", "gappy")
    assert task.inputs == 6
    notes = " ".join(task.notes)
    for word in ("`header: false`", "`task: classification`", "gappy (8)", "size (5)"):
        assert word in notes


def test_no_row_outside_train_changes_the_train_rows(tmp_path: Path) -> None:
    rows = [[*row[:2], "red" if i % 2 else "blue", row[2]] for i, row in enumerate(numbered(60))]
    before = load(table(write(tmp_path / "a.csv", rows)))
    numbers = original(before, rows)
    for i in numbers["outer"] + numbers["selection"] + numbers["test"]:
        rows[i] = [1e9 + i, "unheard of" if i % 3 else "inf", f"colour {i}", 1e7 * i]
    after = load(table(write(tmp_path / "b.csv", rows)))
    np.testing.assert_array_equal(after.train.x, before.train.x)
    np.testing.assert_array_equal(after.train.y, before.train.y)
    assert after.features == before.features
    assert np.isfinite(after.rows(*SPLITS).x).all()
    assert not after.test.x[:, -2:].any()  # a colour that train never saw is none of its colours


def test_splits_are_disjoint_covering_and_repeatable(tmp_path: Path) -> None:
    rows = numbered(53)
    path = write(tmp_path / "t.csv", rows)
    one, two, other = (load(table(path, split_seed=seed)) for seed in (0, 0, 1))
    assert sorted(i for part in original(one, rows).values() for i in part) == list(range(53))
    for split in SPLITS:
        np.testing.assert_array_equal(one.rows(split).x, two.rows(split).x)
        np.testing.assert_array_equal(one.rows(split).y, two.rows(split).y)
    assert original(one, rows) != original(other, rows)
    both = one.rows("test", "train")
    np.testing.assert_array_equal(both.x, np.concatenate([one.test.x, one.train.x]))
    np.testing.assert_array_equal(both.y, np.concatenate([one.test.y, one.train.y]))
    with pytest.raises(Invalid, match="Did you mean 'train'"):
        one.rows("trian")
    with pytest.raises(Invalid, match="at least one split"):
        one.rows()


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    groups=st.lists(st.integers(0, 5), min_size=1, max_size=200),
    weights=st.lists(st.integers(1, 20), min_size=4, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_dealing_covers_all_rows_in_proportion(groups: list[int], weights: list[int], seed: int) -> None:
    fractions = {name: weight / sum(weights) for name, weight in zip(SPLITS, weights, strict=True)}
    parts = deal(np.array(groups), fractions, seed)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(groups)))
    assert {groups[i] for i in parts["train"]} == set(groups)
    extra = len(set(groups))  # train is owed the first row of each class
    for name, rows in parts.items():
        assert abs(len(rows) - fractions[name] * len(groups)) <= 1 + extra
        for group, count in Counter(groups).items():
            assert abs(sum(groups[i] == group for i in rows) - fractions[name] * count) <= 3 + extra


def test_default_splits_of_seed_0_never_move() -> None:
    """Searches are compared across versions: a row must not wander from test to train. These numbers are frozen."""
    parts = deal(np.array([0] * 6 + [1] * 6), DEFAULT_FRACTIONS, seed=0)
    assert {name: rows.tolist() for name, rows in parts.items()} == {
        "train": [4, 0, 5, 6, 7],
        "outer": [2, 11, 9],
        "selection": [1, 10],
        "test": [3, 8],
    }


def test_fractions_are_those_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", numbered(100))

    def sizes(**keys: object) -> list[int]:
        return [len(load(table(path, **keys)).rows(split)) for split in SPLITS]

    assert sizes() == [40, 20, 20, 20]
    assert sizes(splits={"train": 0.7}) == [70, 10, 10, 10]
    assert sizes(splits={"train": 0.1, "outer": 0.2, "selection": 0.3, "test": 0.4}) == [10, 20, 30, 40]
    other = write(tmp_path / "test.csv", numbered(7, seed=1))
    assert sizes(test_path=str(other)) == [50, 25, 25, 7]
    assert sizes(test_path=str(other), splits={"train": 0.4, "outer": 0.2, "selection": 0.2}) == [50, 25, 25, 7]


def test_classes_are_stratified_and_rare_ones_reach_train(tmp_path: Path) -> None:
    labels = ["common"] * 60 + ["seldom"] * 20 + ["pair"] * 2 + ["single"]
    rows = [[i, label] for i, label in enumerate(labels)]
    task = load(table(write(tmp_path / "t.csv", rows), split_seed=5))
    assert task.classes == ("common", "pair", "seldom", "single")
    counts = {split: Counter(task.classes[y] for y in task.rows(split).y) for split in SPLITS}
    assert counts["train"]["common"] == pytest.approx(24, abs=1)
    assert counts["test"]["seldom"] == pytest.approx(4, abs=1)
    assert counts["train"]["single"] == 1
    assert counts["train"]["pair"] >= 1
    assert sum(counts.values(), Counter()) == Counter(labels)
    assert any("pair (2), single (1)" in note for note in task.notes)
    numbers = original(task, rows)
    for split in SPLITS:
        assert [labels[i] for i in numbers[split]] == [task.classes[y] for y in task.rows(split).y]


# -- files as they come --------------------------------------------------------------------------------------------


def test_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=40)
    a[3] = np.nan
    data = pa.table(
        {
            "a": a,
            "n": pa.array([None if i == 5 else i for i in range(40)], pa.int32()),
            "word": pa.array(["x", "y", None, "z"] * 10).dictionary_encode(),
            "nested": pa.array([[1, 2]] * 40),
            "y": np.arange(40) % 2,
        }
    )
    pq.write_table(data, tmp_path / "t.parquet")
    lines = [[cell for key, cell in row.items() if key != "nested"] for row in data.to_pylist()]
    csv_path = write(tmp_path / "t.csv", [["a", "n", "word", "y"], *lines])
    one, two = load(table(csv_path, target=3)), load(table(tmp_path / "t.parquet", target=4))
    assert one.features == two.features == ("a", "n", "word=(missing)", "word=x", "word=y", "word=z")
    assert (one.kind, one.classes) == (two.kind, two.classes) == ("classification", ("0", "1"))
    for split in SPLITS:
        np.testing.assert_array_equal(one.rows(split).x, two.rows(split).x)
        np.testing.assert_array_equal(one.rows(split).y, two.rows(split).y)
    assert any("nested" in note for note in two.notes)


def test_parquet_times_switches_and_decimals_are_numbers(tmp_path: Path) -> None:
    days = pa.array(range(20), pa.int32()).cast(pa.date32())
    data = pa.table(
        {
            "day": days,
            "stamp": days.cast(pa.timestamp("us", "UTC")),
            "on": [i % 2 == 0 for i in range(20)],
            "money": pa.array(range(20)).cast(pa.decimal128(30, 2)),
            "nothing": pa.nulls(20),
            "y": np.linspace(0, 1, 20),
        }
    )
    pq.write_table(data, tmp_path / "t.parquet")
    task = load(table(tmp_path / "t.parquet"))
    assert task.features == ("day", "stamp", "on", "money")
    whole = task.rows(*SPLITS).x
    np.testing.assert_allclose(whole[:, 0], whole[:, 1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole[:, 0], whole[:, 3], rtol=1e-5, atol=1e-6)
    assert len(np.unique(whole[:, 2])) == 2


def test_the_header_is_inferred_or_told(tmp_path: Path) -> None:
    body = [[f"{row[0]}", row[1], "ab"[i % 2], row[2]] for i, row in enumerate(numbered(40))]
    plain, headed = write(tmp_path / "p.csv", body), write(tmp_path / "h.csv", [["i", "j", "k", "l"], *body])
    assert load(table(plain)).features == ("column_0", "column_1", "column_2=a", "column_2=b")
    assert load(table(headed)).features == ("i", "j", "k=a", "k=b")
    assert len(load(table(plain, header=True)).rows(*SPLITS)) == 39
    np.testing.assert_array_equal(load(table(plain)).train.x, load(table(headed)).train.x)
    # numbers as names look like data, unless the target is named after one of them
    years = write(tmp_path / "y.csv", [["2001", "2002", "k", "2003"], *body])
    assert len(load(table(years, target="2003")).rows(*SPLITS)) == 40
    words = [["red" if i % 3 else "blue", "ab"[i % 2], "yes" if i % 5 else "no"] for i in range(40)]
    assert len(load(table(write(tmp_path / "w.csv", words))).rows(*SPLITS)) == 40
    assert load(table(write(tmp_path / "v.csv", [["colour", "group", "answer"], *words]))).features[0] == "colour=blue"


def test_columns_that_say_nothing_are_dropped_with_a_note(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    header = ["", "same", "word", "hash", "empty", "x", "x", "many", "y"]
    rows = [
        [i, 7, "w", f"id-{i * 37}", "", rng.normal(), rng.normal(), f"town {rng.integers(200)}", rng.normal()]
        for i in range(1000)
    ]
    task = load(table(write(tmp_path / "t.csv", [header, *rows])))
    assert task.features[:2] == ("x", "x.6")
    assert task.inputs == 2 + 64
    assert task.features[-1] == "many=(other)"
    assert task.train.x[:, -1].sum() > 0
    np.testing.assert_array_equal(task.train.x[:, 2:].sum(axis=1), 1)
    notes = "\n".join(task.notes)
    for words in (
        "constant on the train rows are dropped: same, word.",
        "nearly every value is different are dropped: hash.",
        "without a value on the train rows are dropped: empty.",
        "count the rows are dropped: column_0.",
        "the others share one: many.",
    ):
        assert words in notes


def test_marks_infinities_and_blanks_are_missing(tmp_path: Path) -> None:
    rows = numbered(40)
    for i, mark in enumerate(
        ["?", " ? ", "", "NaN", "NA", "-999", "-999.0", "inf", "-Infinity", "1e39", " 3.5 ", "+2"]
    ):
        rows[i][1] = mark
    path = write(tmp_path / "t.csv", rows)
    task = load(table(path, missing=["?", -999]))
    assert task.inputs == 2
    assert np.isfinite(task.rows(*SPLITS).x).all()
    assert any("column_1 (10)" in note for note in task.notes)
    assert any(note.startswith("Infinite numbers") and "column_1" in note for note in task.notes)


def test_outliers_outside_train_stay_finite_and_train_decides_what_is_constant(tmp_path: Path) -> None:
    rows = [[*row[:2], 5.0, row[2]] for row in numbered(40)]
    numbers = original(load(table(write(tmp_path / "a.csv", rows))), rows)
    far = numbers["test"][0]
    rows[far][1:] = [3e38, 6.0, -3e38]
    path = write(tmp_path / "b.csv", rows)
    task = load(table(path))
    assert task.features == ("column_0", "column_1")  # column_2 varies, but not on the train rows
    assert task.test.x[0, 1] == 1e6
    assert task.test.y[0] == -1e6
    for i in numbers["train"]:
        rows[i][3] = 5.0
    assert "must vary on the train rows" in faults(table(write(tmp_path / "c.csv", rows), task="regression"))[0]


def test_signs_and_exponents_are_numbers(tmp_path: Path) -> None:
    spelt = ["+2", "-2", " 2. ", ".5", "+1e1", "1E-1", "007", "-0"]
    truth = np.array([2, -2, 2, 0.5, 10, 0.1, 7, 0])
    rows = [[i, spelt[i % 8], i % 2] for i in range(80)]
    task = load(table(write(tmp_path / "t.csv", rows)))
    assert task.features == ("column_0", "column_1")
    numbers = original(task, rows)
    own = truth[np.array(numbers["train"]) % 8]
    np.testing.assert_allclose(task.train.x[:, 1], (own - own.mean()) / own.std(), atol=1e-5)


def test_one_undeclared_mark_is_hinted_at(tmp_path: Path) -> None:
    rows = [[row[0], "unknown" if i % 6 == 0 else row[1], row[2]] for i, row in enumerate(numbered(60))]
    task = load(table(write(tmp_path / "t.csv", rows)))
    assert any("but for 'unknown'" in note and "`missing`" in note for note in task.notes)


def test_semicolons_and_quoted_cells_are_read(tmp_path: Path) -> None:
    rows = numbered(20)
    lines = ["i;'b;c';y", *(";".join(map(str, row)) for row in rows)]
    (tmp_path / "t.csv").write_text("\ufeff" + "\n".join(lines).replace("'", '"'))
    task = load(table(tmp_path / "t.csv", target="y"))
    assert task.features == ("i", "b;c")
    np.testing.assert_allclose(np.sort(task.rows(*SPLITS).x[:, 0])[0], task.rows(*SPLITS).x[:, 0].min())
    (tmp_path / "q.csv").write_text("a,b,y\n" + "".join(f'{i},"x, ""{"uv"[i % 2]}""\nz",{i}.5\n' for i in range(20)))
    assert load(table(tmp_path / "q.csv")).features == ("a", 'b=x, "u"\nz', 'b=x, "v"\nz')


def test_paths_are_looked_for_here_then_in_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, data, elsewhere = (tmp_path / name for name in ("here", "data", "elsewhere"))
    for count, place in enumerate((here, data, elsewhere)):
        place.mkdir()
        write(place / "t.csv", numbered(20 + count))
    monkeypatch.chdir(here)
    monkeypatch.setenv("CONTINUA_DATA", str(elsewhere))

    def rows(**keys: Any) -> int:
        return len(load("t.csv", **keys).rows(*SPLITS))

    assert rows() == rows(data=data) == 20
    (here / "t.csv").unlink()
    assert rows(data=data) == 21
    assert rows() == 22
    monkeypatch.delenv("CONTINUA_DATA")
    assert "must be a file that exists" in faults("t.csv")[0]
    assert load(str(data / "t.csv")).name == "t"


def test_a_test_file_is_the_test_split(tmp_path: Path) -> None:
    rows = [[i, "uv"[i % 2], ("no", "yes")[i % 3 == 0]] for i in range(60)]
    names = ["i", "letter", "answer"]
    path = write(tmp_path / "t.csv", [names, *rows])
    other = write(tmp_path / "o.csv", [["answer", "i", "letter"], *([f"{r[2]}.", r[0], r[1]] for r in rows[:9])])
    task = load(table(path, test_path=str(other), target="answer"))
    assert len(task.test) == 9
    assert [task.classes[y] for y in task.test.y] == [row[2] for row in rows[:9]]
    assert any("full stop" in note for note in task.notes)
    assert np.diff(task.test.x[:, 0]).min() > 0
    narrow = write(tmp_path / "n.csv", [["i", "answer"], [1, "yes"]])
    assert "lacks letter and adds none" in faults(table(path, test_path=str(narrow), target="answer"))[0]
    strange = write(tmp_path / "s.csv", [names, [1, "u", "perhaps"]])
    assert "'answer' also holds perhaps" in faults(table(path, test_path=str(strange), target="answer"))[0]
    bare = write(tmp_path / "b.csv", rows)
    assert "as many columns" in faults(table(bare, header=False, test_path=str(write(tmp_path / "c.csv", [[1]]))))[0]
    assert "`test_path`" in faults(table(path, test_path=str(other), splits={"test": 0.2}))[0]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", "b"], "classification"),
        ([0, 1], "classification"),
        ([1.0, 2.0, 7.0], "classification"),
        ([0.5, 1.5], "regression"),
        (list(range(20)), "classification"),
        (list(range(21)), "regression"),
    ],
)
def test_the_kind_is_inferred_from_the_target(tmp_path: Path, values: list[object], kind: str) -> None:
    rows = [[i, values[i % len(values)]] for i in range(105)]
    task = load(table(write(tmp_path / "t.csv", rows)))
    assert task.kind == kind
    best = {
        "classification": ["val_error", "val_loss", "val_accuracy"],
        "regression": ["val_mse", "val_loss", "val_r2"],
    }
    assert list(task.metrics()) == best[kind]
    assert list(task.metrics().values()) == ["min", "min", "max"]


def test_classes_that_are_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    rows = [[i, [10, 9, 100][i % 3]] for i in range(60)]
    assert load(table(write(tmp_path / "t.csv", rows))).classes == ("9", "10", "100")


# -- bad input -----------------------------------------------------------------------------------------------------


def fine() -> list[list[object]]:
    return [[*row[:2], "uv"[i % 2]] for i, row in enumerate(numbered(40))]


def with_column(values: Sequence[object]) -> list[list[object]]:
    return [[*row[:2], values[i % len(values)]] for i, row in enumerate(numbered(40))]


BAD_TABLES: dict[str, tuple[list[list[object]], dict[str, object], str]] = {
    "absent target": (fine(), {"target": "lable"}, "unknown column 'lable'. Known: column_0, column_1, column_2"),
    "nearest target": ([["i", "j", "label"], *fine()], {"target": "lable"}, "Did you mean 'label'?"),
    "target beyond": (fine(), {"target": 3}, "a position from -3 to 2"),
    "target before": (fine(), {"target": -4}, "a position from -3 to 2"),
    "target twice": ([["i", "y", "y"], *fine()], {"target": "y"}, "names more than one column"),
    "NaN in target": (with_column([1.5, 2.5, "nan", 4]), {}, "10 of 40 rows of 'column_2' are missing"),
    "inf in target": (with_column([1.5, 2.5, "inf", 4]), {}, "say `missing_target: drop`"),
    "gap in classes": (with_column(["a", "b", ""]), {}, "13 of 40 rows of 'column_2' are missing"),
    "no target at all": (with_column([""]), {"header": False}, "'column_2' holds no value at all"),
    "one class": (with_column(["a"]), {}, "needs two classes or more, but 'column_2' is 'a' in every row"),
    "one class as number": (with_column([3]), {"task": "classification"}, "is '3' in every row"),
    "constant": (with_column([3.25]), {}, "must vary, but 'column_2' is 3.25 in every row"),
    "text regression": (
        fine(),
        {"task": "regression"},
        "regression needs numbers, but 'column_2' holds text such as 'u'",
    ),
    "all classes differ": (numbered(40), {"task": "classification"}, "40 classes in 40 rows"),
    "no usable column": ([[7, "", "uv"[i % 2]] for i in range(40)], {}, "at least one usable column"),
    "target alone": ([[i] for i in range(40)], {}, "there is none besides the target"),
    "names alone": ([["i", "j", "y"]], {}, "needs rows of data"),
    "nothing": ([], {}, "needs rows of data"),
    "too few rows": (numbered(3), {}, "task.splits.test: every split needs a row or more, but of 3 rows"),
    "too small a split": (numbered(40), {"splits": {"test": 0.001}}, "task.splits.test: every split needs a row"),
    "ragged": ([*fine(), [1, 2]], {}, "Expected 3 columns, got 2"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_is_refused_with_its_reason(case: str, tmp_path: Path) -> None:
    rows, keys, words = BAD_TABLES[case]
    found = faults(table(write(tmp_path / "t.csv", rows), **keys))
    assert any(words in fault for fault in found), found
    assert all(fault.startswith("task") and ": " in fault for fault in found)


BAD_KEYS: dict[str, tuple[dict[str, object], str]] = {
    "unknown key": ({"targt": "y"}, "task: unknown key 'targt'. Did you mean 'target'?"),
    "unknown kind": ({"kind": "tabel"}, "unknown kind of task 'tabel'. Did you mean 'table'?"),
    "unknown task": ({"task": "regresion"}, "Did you mean 'regression'?"),
    "path's type": ({"path": 3}, "task.path: must be a file's path, but got 3."),
    "path's end": ({"path": "t.xlsx"}, "must end in one of .csv"),
    "missing file": ({"path": "none.csv"}, "task.path: must be a file that exists"),
    "missing test file": ({"test_path": "none.csv"}, "task.test_path: must be a file that exists"),
    "target's type": ({"target": 1.5}, "task.target: must be a column's name or its position"),
    "a switch for a position": ({"target": True}, "but got True"),
    "header's type": ({"header": "yes"}, "task.header: must be true or false"),
    "missing's type": ({"missing": {"a": 1}}, "task.missing: must be a mark"),
    "missing_target": ({"missing_target": "skip"}, "Known: drop, refuse"),
    "seed's type": ({"split_seed": -1}, "task.split_seed: must be a whole number"),
    "splits' type": ({"splits": [0.5]}, "task.splits: must be a mapping"),
    "unknown split": ({"splits": {"valid": 0.2}}, "task.splits: unknown split 'valid'"),
    "a fraction's type": ({"splits": {"train": "half"}}, "task.splits.train: must be a fraction"),
    "a fraction of 0": ({"splits": {"train": 0}}, "between 0 and 1, but got 0"),
    "nothing left": ({"splits": {"train": 0.6, "outer": 0.4}}, "leave some for selection, test"),
    "too much": ({"splits": {"train": 0.5, "outer": 0.5, "selection": 0.5, "test": 0.5}}, "sum to 2"),
    "too little": (
        {"splits": {"train": 0.2, "outer": 0.2, "selection": 0.2, "test": 0.2}},
        "must sum to 1, but got 0.8",
    ),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_a_bad_declaration_is_refused_with_its_reason(case: str, tmp_path: Path) -> None:
    keys, words = BAD_KEYS[case]
    found = faults({**table(write(tmp_path / "t.csv", fine())), **keys})
    assert len(found) == 1
    assert words in found[0]


def test_all_faults_that_can_be_known_are_told_together(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [[7, "w", ""], *([7, "w", "u"] for _ in range(9))])
    found = faults({"kind": "table", "path": str(path), "splits": {"train": 2}, "sed": 1, "test_path": "none.csv"})
    wanted = ["'sed'", "task.test_path", "task.splits.train", "1 of 10 rows", "two classes", "one usable column"]
    assert len(found) == len(wanted)
    for fault, words in zip(found, wanted, strict=True):
        assert words in fault
    assert [fault.split(":")[0] for fault in faults({})] == ["task.kind", "task.path"]


def test_broken_files_are_refused_with_the_parsers_reason(tmp_path: Path) -> None:
    noise = bytes(np.random.default_rng(0).integers(0, 256, 3000, dtype=np.uint8))
    for name, content in (("a.parquet", noise), ("b.csv", noise), ("c.csv", b"a,b\n\xff\xfe,1\n"), ("d.parquet", b"")):
        (tmp_path / name).write_bytes(content)
        assert "cannot be read: " in faults(table(tmp_path / name))[0]
    (tmp_path / "e.csv").write_bytes(b"")
    assert "needs rows of data" in faults(table(tmp_path / "e.csv"))[0]
    (tmp_path / "f.csv").mkdir()
    assert "is a directory" in faults(table(tmp_path / "f.csv"))[0]
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "g.parquet")
    assert "drop `header`" in faults(table(tmp_path / "g.parquet", header=True))[0]


def test_rows_without_a_target_are_dropped_where_the_user_says_so(tmp_path: Path) -> None:
    rows = numbered(40)
    for i, mark in ((3, "nan"), (11, "-"), (17, "inf")):
        rows[i][2] = mark
    path = write(tmp_path / "t.csv", rows)
    task = load(table(path, missing="-", missing_target="drop"))
    numbers = original(task, rows)
    assert sorted(i for part in numbers.values() for i in part) == [i for i in range(40) if i not in (3, 11, 17)]
    mean, std = task.target_scale
    for split in SPLITS:
        truth = [float(rows[i][2]) for i in numbers[split]]  # type: ignore[arg-type]
        np.testing.assert_allclose(task.rows(split).y * std + mean, truth, atol=1e-5)
    assert any(note.startswith("3 of 40 rows") for note in task.notes)


CELLS = st.one_of(
    st.floats(width=64),
    st.integers(-3, 3),
    st.sampled_from(
        ["", "a", "b", "?", "nan", "inf", "-inf", "1e400", "x,y", 'q"', "\n", " ", "é", "0x1", "1_000", "٣"]
    ),
)


KEYS: tuple[dict[str, object], ...] = (
    {},
    {"missing_target": "drop"},
    {"task": "regression"},
    {"task": "classification", "header": False},
)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    rows=st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), max_size=30)),
    keys=st.sampled_from(KEYS),
)
def test_any_table_is_a_finite_task_or_refused(rows: list[list[object]], keys: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            task = load(table(write(Path(folder) / "t.csv", rows), **keys))
        except Invalid:
            return
    whole: Split = task.rows(*SPLITS)
    assert np.isfinite(whole.x).all()
    assert np.isfinite(whole.y).all()
    assert all(len(task.rows(split)) for split in SPLITS)
    assert task.train.x.std(axis=0).all()


# -- the classic tables in files -----------------------------------------------------------------------------------


def declared(name: str, **keys: object) -> dict[str, object]:
    entry: Mapping[str, Any] = INDEX[name]
    spec = table(f"uci/{entry['file']}", **keys)
    if "test_file" in entry:
        spec["test_path"] = f"uci/{entry['test_file']}"
    return spec | {key: entry[key] for key in ("target", "missing") if key in entry}


@needs_data
@pytest.mark.parametrize("name", INDEX or ["none"])
def test_every_classic_table_loads(name: str) -> None:
    assert UCI is not None
    task = load(declared(name, task=INDEX[name]["kind"]))
    assert task.kind == INDEX[name]["kind"]
    whole = task.rows(*SPLITS)
    assert whole.x.shape == (len(whole), task.inputs)
    assert np.isfinite(whole.x).all()
    assert np.isfinite(whole.y).all()
    files = [INDEX[name][key] for key in ("file", "test_file") if key in INDEX[name]]
    assert len(whole) == sum(sum(1 for line in (UCI / file).read_text().splitlines() if line) for file in files)
    if task.kind == "classification":
        assert set(task.train.y) == set(range(task.outputs))


@needs_data
def test_inference_misses_only_the_wines() -> None:
    """Wine quality is a grade from 3 to 9: whole numbers, few, many rows each. Nothing tells it from classes."""
    wrong = [name for name in INDEX if load(declared(name)).kind != INDEX[name]["kind"]]
    assert wrong == ["wine-red", "wine-white"]


@needs_data
@pytest.mark.parametrize("name", ["sonar", "seeds", "german", "banknote", "abalone", "housing", "autos"])
def test_rows_and_targets_still_belong_together(name: str) -> None:
    task = load(declared(name, task=INDEX[name]["kind"]))
    if task.kind == "classification":
        model = LogisticRegression(max_iter=2000).fit(task.train.x, task.train.y)
        majority = np.bincount(task.train.y).argmax()
        assert model.score(task.test.x, task.test.y) > (task.test.y == majority).mean() + 0.02
    else:
        assert Ridge(alpha=1.0).fit(task.train.x, task.train.y).score(task.test.x, task.test.y) > 0.3
