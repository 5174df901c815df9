"""Table files as they come: headers, marks, types, broken ones, and every bad declaration refused with its reason."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_cases import faults, numbered, original, table, write

from search_spaces import Invalid
from trials.tasks import SPLITS, Split, load

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


@pytest.mark.slow
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
